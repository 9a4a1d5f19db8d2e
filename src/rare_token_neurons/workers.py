"""Two ways to map over the rows of a grid: processes of this machine, or a Dask cluster. Notebooks know of neither.

Both are context managers with the same methods: `submit(row)` gives a future whose result is that of `rows.execute`,
`running(futures)` says how many of them run now, `stop(futures)` ends them.
"""

import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor

from rare_token_neurons import rows

RETRIES = 2  # of a row that could not be started on a worker; one whose worker died is up to the scheduler
TIMEOUT = 10  # seconds to wait for the scheduler


class SchedulerGone(Exception):
    """The scheduler of the Dask cluster does not answer any more."""


class Local:
    """Processes of this machine, `jobs` at a time, each with its share of the cores."""

    def __init__(self, jobs):
        if jobs < 1:
            raise ValueError(f"--jobs is {jobs}; it must be 1 or more.")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.threads = max(1, cores // jobs) if jobs > 1 else None  # a row alone: as in `run`
        self.pool = ThreadPoolExecutor(jobs)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.pool.shutdown()

    def submit(self, row):
        """A future of the row; it runs when one of the places is free."""
        return self.pool.submit(rows.execute, row.name, row.arguments, row.log, self.threads)

    def running(self, futures):
        """How many run now."""
        return sum(future.running() for future in futures)

    def stop(self, futures):
        """Start no other row, interrupt those that run, and wait for their end."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        while not all(future.done() for future in futures):
            rows.stop(row.name for row in futures.values())
            time.sleep(0.1)


class Cluster:
    """Workers of a Dask cluster that is there already and sees the same files.

    A row whose worker dies goes to another one, as often as the scheduler's `allowed-failures` permits (3 times unless
    set otherwise; https://distributed.dask.org/en/stable/resilience.html).
    """

    def __init__(self, address):
        try:
            from distributed import Client
        except ImportError:
            raise ValueError("--scheduler needs Dask: pip install -e '.[dask]'.") from None
        try:
            self.client = Client(address, timeout=TIMEOUT, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"No Dask scheduler answers at {address} ({error}).") from None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()

    def submit(self, row):
        """A future of the row, under a key that tells its content."""
        if self.client.status != "running":
            raise SchedulerGone("The Dask scheduler does not answer any more.")
        return self.client.submit(rows.execute, row.name, row.arguments, row.log, key=row.name, pure=False, retries=RETRIES)

    def running(self, futures):
        """How many run now: of those that a worker holds, as many as it has threads."""
        try:
            threads, held = self.client.nthreads(), self.client.processing()
        except OSError as error:
            raise SchedulerGone(f"The Dask scheduler does not answer any more ({error}).") from None
        mine = {future.key for future in futures}
        return sum(min(len(mine.intersection(keys)), threads.get(worker, 0)) for worker, keys in held.items())

    def stop(self, futures):
        """Start no other row, and interrupt those that run."""
        with contextlib.suppress(OSError):  # without a scheduler, workers end and their rows with them
            self.client.cancel(list(futures))
            self.client.run(rows.stop, [row.name for row in futures.values()])
