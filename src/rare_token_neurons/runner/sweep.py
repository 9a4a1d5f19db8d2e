"""`python -m rare_token_neurons sweep GRID.csv`: a grid of settings, each row a run in a process of its own.

A column is a parameter (steps as `[0, 512]`), or `notebooks`, such as `01 03`; an empty cell keeps the default. Every row
is checked before the first one starts; a row that fails does not stop the others, and a finished one is not repeated.
Notebooks about all models run once, after the rows. What a row prints is in its log, data/cache/runs/<folder>/row-*.log.
"""

import argparse
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from rare_token_neurons import keys, paths, settings as parameters
from rare_token_neurons.runner import run
from rare_token_neurons.runner.jobs import finished, plan


# ---- the rows of a grid


@dataclass(frozen=True)
class Row:
    """One line of a grid: its number (the header is line 1), its settings in words, the jobs that they mean."""

    line: int
    label: str
    jobs: tuple

    @property
    def name(self):
        """A name that tells the content: notebooks, folders and all that decides the outcome."""
        return f"row-{keys.digest([[job.name, job.folder, job.key] for job in self.jobs])}"

    @property
    def arguments(self):
        """The arguments of `run` that do this row: its notebooks, and the parameters in which one differs from its own."""
        values = {name: value for job in self.jobs for name, value in job.values.items()}
        return [*(job.name[:2] for job in self.jobs), *(["-y", json.dumps(values, ensure_ascii=False)] if values else [])]

    @property
    def log(self):
        """Where its output goes, a path from the root: beside the executed notebooks of its most particular setting."""
        return paths.shown(paths.RUNS / max((job.folder for job in self.jobs), key=len) / f"{self.name}.log")


def read(path):
    """The rows of a grid file, checked.

    Parameters
    ----------
    path : a CSV file.

    Returns
    -------
    list of Row

    Raises
    ------
    FileNotFoundError, ValueError
        No such file; no rows; a row with a wrong parameter, or one that would overwrite another's files (the line is named).
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no grid file {path}.")
    table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    if table.empty:
        raise ValueError(f"The grid file {path} has no rows.")
    rows, owners = [], {}
    for line, cells in enumerate(table.to_dict("records"), 2):
        values = {name.strip(): text.strip() for name, text in cells.items() if text.strip()}
        label = ", ".join(f"{name} {text}" for name, text in values.items())
        try:
            jobs = plan(values.pop("notebooks", "").split(), values=values)
            for job in jobs:
                other, first = owners.setdefault((job.name, job.folder), (job, line))
                if other.key != job.key:
                    names = [name for name in job.values | other.values if job.values.get(name) != other.values.get(name)]
                    raise ValueError(f"{job.name} would write to the folder {job.folder} as line {first} does, with another "
                                     f"{' and '.join(names)}; keep one of the two.")
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from None
        rows.append(Row(line, label, tuple(jobs)))
    return rows


def waves(rows):
    """What is to run, in the order of running.

    Returns
    -------
    list of (str, list of Row): what the rows do about one model; then the notebooks about all models, which read the tables
    of all rows. What two lines ask for in the same words or others is there once.
    """
    one = [replace(row, jobs=tuple(job for job in row.jobs if job.model != parameters.ALL_MODELS)) for row in rows]
    every = [replace(row, label=f"{job.name} of {job.folder}", jobs=(job,))
             for row in rows for job in row.jobs if job.model == parameters.ALL_MODELS]
    kinds = [("rows", one), ("runs of notebooks about all models", every)]
    once = [(what, {row.name: row for row in reversed(parts) if row.jobs}) for what, parts in kinds]
    return [(what, sorted(parts.values(), key=lambda row: row.line)) for what, parts in once if parts]


# ---- one row, in a process of its own

PATIENCE = 20  # seconds that an interrupted row has to end its kernel
SENTENCE = ", kept, stopped at cell ["  # of `run.NotebookError`; all after it is the error
_running, _door = {}, threading.Lock()


def execute(name, arguments, log, threads=None):
    """Run a row and wait for its end; what it prints is added to its log.

    Parameters
    ----------
    name : str, the row's name for `stop`.
    arguments : list of str, of the command `run`.
    log : str, a path from the repository's root, which other machines may hold elsewhere.
    threads : OMP_NUM_THREADS of the row, unless that is set already.

    Returns
    -------
    (str, float): what went wrong, "" where nothing did; seconds
    """
    path, start = paths.ROOT / log, time.perf_counter()
    path.parent.mkdir(parents=True, exist_ok=True)
    environment = ({"OMP_NUM_THREADS": str(threads)} if threads else {}) | os.environ
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(paths.ROOT / "src"), os.environ.get("PYTHONPATH")]))
    with path.open("ab") as file:
        file.write(f"{socket.gethostname()}: python -m rare_token_neurons run {shlex.join(arguments)}\n".encode())
        file.flush()
        begin = file.tell()
        with _door:
            process = _running[name] = subprocess.Popen(
                [sys.executable, "-m", "rare_token_neurons", "row", *arguments], cwd=paths.ROOT, env=environment,
                stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait()
        finally:
            process.stdin.close()
            with _door:
                _running.pop(name, None)
    return _reason(code, path.read_bytes()[begin:].decode(errors="replace")), time.perf_counter() - start


def stop(names):
    """Interrupt the rows of these names that this process runs; each ends its kernel, then itself."""
    with _door:
        for name in set(names) & set(_running):
            _running[name].stdin.close()


def _reason(code, told):
    """Why a row failed, from its exit code and what it printed: the notebook, the cell and the error."""
    lines = [line for line in told.splitlines() if line.strip()]
    if code == 0:
        return ""
    if code < 0:
        memory = "; most often the machine had no memory left" if code == -signal.SIGKILL else ""
        return f"The row's process was ended by {signal.Signals(-code).name}{memory}."
    for number in reversed(range(len(lines))):
        if SENTENCE in lines[number]:
            return "\n".join(lines[number:])
    return f"The row's process ended with code {code}: {lines[-1] if lines else 'it printed nothing'}"


def _follow():
    """Interrupt this process when its standard input closes; end it when that was not enough."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(PATIENCE)
    os._exit(130)


def row(arguments):
    """A row's process: the command `row`, which is `run`, one notebook at a time, that ends when its standard input closes.

    Returns
    -------
    int: as `run`
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it would be ignored
    threading.Thread(target=_follow, daemon=True).start()
    return run.main([*arguments, "--jobs", "1"])


# ---- two ways to map over rows

RETRIES = 2  # of a row that could not be started on a worker; one whose worker died is up to the scheduler
TIMEOUT = 10  # seconds to wait for the scheduler
POLL = 0.5  # seconds between two looks at the rows


class SchedulerGone(Exception):
    """The scheduler of the Dask cluster does not answer any more."""


class Local:
    """Processes of this machine, `jobs` at a time, each with its share of the cores."""

    there = True  # what runs the rows

    def __init__(self, jobs):
        self.threads = run.threads_each(jobs)
        self.executor = ThreadPoolExecutor(jobs)

    def submit(self, row):
        """A future of the row; it runs when one of the places is free."""
        return self.executor.submit(execute, row.name, row.arguments, row.log, self.threads)

    def stop(self, futures):
        """Start no other row, interrupt those that run, and wait for their end."""
        self.executor.shutdown(wait=False, cancel_futures=True)
        while not all(future.done() for future in futures):
            stop(row.name for row in futures.values())
            time.sleep(0.1)

    def close(self):
        """Give the threads back."""
        self.executor.shutdown()


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
        self.executor = self.client.get_executor(pure=False, retries=RETRIES)

    @property
    def there(self):
        """Whether the scheduler answers."""
        return self.client.status == "running"

    def submit(self, row):
        """A future of the row."""
        return self.executor.submit(execute, row.name, row.arguments, row.log)

    def stop(self, futures):
        """Start no other row, and interrupt those that run."""
        with contextlib.suppress(OSError):  # it went meanwhile
            self.executor.shutdown(wait=False)
            self.client.run(stop, [row.name for row in futures.values()])

    def close(self):
        """Leave the cluster as it was."""
        self.client.close(TIMEOUT)


# ---- all rows


def sweep(what, rows, pool, failed):
    """Run rows, show how far they are, and end what runs when this is interrupted.

    Parameters
    ----------
    what : str, what a row is, in the plural.
    rows : list of Row
    pool : Local or Cluster
    failed : list, to which (Row, str) of each row that fails is added, with the reason; what it finished before is kept

    Returns
    -------
    str: how many are done
    """
    done, futures, before = [row for row in rows if all(map(finished, row.jobs))], {}, len(failed)
    with tqdm(desc=what, total=len(rows), initial=len(done), unit="row", disable=None) as bar:
        for row in done:
            bar.write(f"line {row.line} ({row.label}): unchanged")
        try:
            for row in rows:
                if row not in done:
                    futures[pool.submit(row)] = row
            left = set(futures)
            while left:
                ended, left = wait(left, timeout=POLL, return_when=FIRST_COMPLETED)
                if not pool.there:
                    raise SchedulerGone
                for future in ended:
                    row, (error, seconds) = futures[future], _result(future)
                    if error:
                        failed.append((row, error))
                    bar.write(f"line {row.line} ({row.label}): {'failed' if error else tqdm.format_interval(seconds)}")
                    bar.set_postfix(failed=len(failed) - before)
                    bar.update()
                bar.refresh()
        except SchedulerGone:  # the workers end without it, and their rows with them
            raise
        except BaseException:
            pool.stop(futures)
            raise
    return f"{len(rows) - len(failed) + before} of {len(rows)} {what} done"


def _result(future):
    """What went wrong in a row, "" where nothing did, and its seconds."""
    try:
        return future.result()
    except Exception as error:  # of the machinery around the row: no process, no worker, no package on the worker
        return f"{type(error).__name__}: {error}", None


def main(argv=None):
    """Command line of `sweep`.

    Returns
    -------
    int: 0; 1 when a row failed; 2 when the grid was wrong and nothing was started
    """
    parser = argparse.ArgumentParser(prog="python -m rare_token_neurons sweep", description=__doc__.split("\n\n", 1)[1])
    parser.add_argument("grid", help="a CSV file, such as data/paper_grid.csv")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--jobs", type=int, default=1, metavar="N", help="rows at a time on this machine (default: 1)")
    where.add_argument("--scheduler", metavar="ADDRESS", help="a Dask cluster that is there, such as tcp://host:8786")
    arguments = parser.parse_args(argv)
    try:
        grid = read(arguments.grid)
        pool = Cluster(arguments.scheduler) if arguments.scheduler else Local(arguments.jobs)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    failed, told, code, parts = [], [], 0, waves(grid)
    for row in grid:
        if not any(row.line == part.line for _, rows in parts for part in rows):
            print(f"line {row.line} asks for what an earlier line does; it is done once.")
    try:
        with contextlib.closing(pool):
            told += [sweep(what, rows, pool, failed) for what, rows in parts]
    except SchedulerGone:
        told, code = ["The Dask scheduler does not answer any more. The same command goes on where this one stopped"], 1
    finally:  # also of a grid that is interrupted
        for row, error in failed:
            print(f"\nline {row.line} failed ({row.label}):\n{error}\nits output: {row.log}", file=sys.stderr)
    print(f"\n{', '.join(told)}.", file=sys.stderr if code else sys.stdout)
    return code or int(bool(failed))
