"""Running numbered notebooks with papermill: parameters checked first, finished ones skipped, one table at the end.

Two notebooks run at a time where there are two cores, in the repository's root, each place with a kernel that goes from
one notebook to the next: what they load is loaded once. Executed copies and records lie under data/cache/runs/<folder>/,
where <folder> is the model and, unless all is default, the setting.
"""

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from queue import SimpleQueue

import nbformat
import papermill
import yaml
from jupyter_client import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient.exceptions import DeadKernelError

from rare_token_neurons import files, packages, paths, settings as parameters
from rare_token_neurons.runner.jobs import file_hash, finished, for_readers, plan, stage, tables_read, waits_for
from rare_token_neurons.runner.report import (closing_table, dry_run, from_commit, last_measured, look_for_models, save_minutes,
                                               save_processor)

NICENESS = 10  # of every place but the first: the figure that counts most, which comes from there, has all cores
KERNEL_STARTS = 3  # a kernel on a busy machine may die before its first answer
KERNEL = ("--IPKernelApp.log_level=50",  # neither warnings for servers (no encryption on the loopback) nor its own end
          "--HistoryManager.hist_file=:memory:")
EMPTY = "get_ipython().reset(new_session=True)"  # what the notebook before defined
PATIENCE = 20  # seconds that a place has to end what it runs
DEAD = "DeadKernelError: the kernel was killed; most often the machine had no memory left"
logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it would log is checked before, or reported after


class NotebookError(Exception):
    """A notebook did not run to its end; the message says where and why."""


def cores():
    """How many cores this process may use, int."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def threads_each(places):
    """The threads of each of so many places that work at once; None, the libraries' own choice, for one alone.

    Raises
    ------
    ValueError
        There is no place at all.
    """
    if places < 1:
        raise ValueError(f"--jobs is {places}; it must be 1 or more.")
    return max(1, cores() // places) if places > 1 else None


class Kernel:
    """A place for one notebook at a time: its kernel stays from one to the next, with an emptied namespace.

    threads : OMP_NUM_THREADS of the kernel, unless that is set already ; niceness : how far it stands back for others.
    """

    def __init__(self, threads=None, niceness=0):
        os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # python3 is this environment's kernel, not one in the user's home
        own = {"PYDEVD_DISABLE_FILE_VALIDATION": "1"} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        self.environment = own | os.environ
        self.niceness, self.manager, self.ended = niceness, None, False

    def run(self, job):
        """Execute one notebook; the kernel of one that fails is not used again.

        Raises
        ------
        NotebookError
        """
        for attempt in range(1, KERNEL_STARTS + 1):
            try:
                self._prepare()
                papermill.execute_notebook(*map(_braced, (job.notebook, job.executed)), job.values, kernel_name="python3",
                                           km=self.manager, progress_bar=False)
                return
            except papermill.PapermillExecutionError as error:
                self.end()
                raise NotebookError(_report(job, error.exec_count, error.source, f"{error.ename}: {error.evalue}")) from None
            except DeadKernelError:
                self.end()
                begun = [cell for cell in nbformat.read(job.executed, as_version=4).cells
                         if cell.cell_type == "code" and cell.metadata.get("papermill", {}).get("start_time")]
                source = begun[-1].source if begun else ""
                raise NotebookError(_report(job, len(begun), source, DEAD)) from None
            except (RuntimeError, TimeoutError) as error:
                self.end()
                if attempt == KERNEL_STARTS or self.ended:
                    raise NotebookError(_report(job, 0, "", f"no kernel started in {attempt} tries ({error})")) from None

    def _prepare(self):
        """Start the kernel, or empty the one that is there."""
        if self.manager is not None and not run_sync(self.manager.is_alive)():
            self.end()
        if self.manager is None:
            self.manager = AsyncKernelManager(kernel_name="python3")
            run_sync(self.manager.start_kernel)(cwd=str(paths.ROOT), env=self.environment, extra_arguments=[*KERNEL])
            os.setpriority(os.PRIO_PGRP, self.manager.provisioner.pgid, os.nice(0) + self.niceness)
            return
        client = self.manager.blocking_client()
        client.start_channels(iopub=False, stdin=False, hb=False)
        try:
            client.execute(EMPTY, silent=True, reply=True, timeout=60)
        finally:
            client.stop_channels()

    def end(self):
        """Shut the kernel down, if there is one."""
        if self.manager is not None:
            with contextlib.suppress(RuntimeError):
                run_sync(self.manager.shutdown_kernel)(now=True)
            self.manager = None

    def kill(self):
        """From another thread: kill the kernel and start no other; `run` ends with an error."""
        self.ended, manager = True, self.manager
        if manager is not None and manager.provisioner is not None and manager.provisioner.pgid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(manager.provisioner.pgid, signal.SIGKILL)


def execute(job, kernel):
    """Run one notebook and record it; where another process runs the same one, wait for it and take its record.

    Returns
    -------
    dict: key, seconds (all, start, forward, ablation, statistics, drawing), tables, figures, outputs (their hashes), read,
    deviation, disk_mb (with what others wrote meanwhile)

    Raises
    ------
    NotebookError
        Where it stopped and why; the executed copy is kept.
    """
    try:
        with files.lock(job.record):
            return finished(job) or _executed(job, kernel)
    except OSError as error:  # the disk is full, or a folder may not be written
        raise NotebookError(f"{job.name} could not be run to its end: {error}") from None


def _executed(job, kernel):
    job.executed.parent.mkdir(parents=True, exist_ok=True)
    for old in (job.record, job.account):
        old.unlink(missing_ok=True)
    start, disk = time.perf_counter(), _megabytes(paths.CACHE)
    kernel.run(job)
    whole = time.perf_counter() - start
    account = {"seconds": {}, "tables": [], "figures": []}
    if job.account.exists():
        account = files.read_json(job.account)
        if not account or not {"seconds", "tables", "figures"} <= set(account):
            raise NotebookError(f"{paths.shown(job.account)} is damaged; the same command runs {job.name} again.")
    told = account["seconds"]
    record = {
        "key": job.key,
        "seconds": told | {"all": whole, "start": max(0.0, whole - sum(told.values())) + told.get("start", 0.0)},
        "tables": sorted(set(account["tables"])),
        "figures": sorted(set(account["figures"])),
        "deviation": from_commit(account["tables"]),
        "disk_mb": max(0.0, _megabytes(paths.CACHE) - disk),
    }
    outputs = [*record["tables"], *record["figures"], paths.shown(job.executed)]
    record["outputs"] = {name: file_hash(name) for name in outputs}
    record["read"] = tables_read(job)
    files.write_json(job.record, record)
    return record


def _braced(path):
    """`path` as papermill wants it: it reads braces in a path as fields to fill in."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _report(job, count, source, error):
    first = next((line for line in source.splitlines() if line.strip()), "")
    return f"{paths.shown(job.executed)}, kept, stopped at cell [{count}]: {first}\n{error}"


def _megabytes(folder):
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # another run's temporary file is gone by now
                total += os.path.getsize(os.path.join(where, name))
    return total / 1e6


# ---- all notebooks, several at a time


def run(jobs, *, in_place=False, places=1):
    """Run jobs, so many at a time, in the order that their tables need each other; a line at each begin and end.

    What is to come is told with the seconds of its last measurement, where there is one. Interrupted, nothing goes on.

    Parameters
    ----------
    in_place : also write each executed notebook, as readers are to see it, over the one in notebooks/.
    places : how many at a time, each with its share of the cores.

    Returns
    -------
    (list of dict, list of Job, list of str): the records, in the order of the jobs that are finished; the jobs that were
    skipped because nothing had changed; what went wrong in those that failed. What waits for one that failed is not begun.
    """
    begun = time.perf_counter()
    files.sweep(paths.DATA, paths.FIGURES, paths.NOTEBOOKS)
    queue, ended = Queue(jobs), SimpleQueue()
    kernels, threads = [Kernel(threads_each(places), NICENESS * (place > 0)) for place in range(places)], []
    free = list(kernels)
    try:
        while queue.left or queue.running:
            while free and (job := queue.take()):
                if record := finished(job):
                    queue.enter(job, record, skipped=True)
                    continue
                queue.tell_begin(job)
                threads.append(threading.Thread(target=_work, args=(job, free.pop(0), ended), daemon=True))
                threads[-1].start()
            if queue.running:
                job, kernel, found = ended.get()
                free = sorted([*free, kernel], key=kernels.index)
                queue.enter(job, found)
    except BaseException:
        end = time.monotonic() + PATIENCE
        while any(thread.is_alive() for thread in threads) and time.monotonic() < end:
            for kernel in kernels:
                kernel.kill()
            time.sleep(0.1)
        raise
    finally:
        for kernel in kernels:
            kernel.end()
    done = [job for job in jobs if job.record in queue.records]
    if in_place:
        for job in done:
            clean = for_readers(nbformat.read(job.executed, as_version=4))
            with files.new_file(job.notebook) as temporary:
                nbformat.write(clean, temporary)
    records = [queue.records[job.record] for job in done]
    if records:
        print(f"\n{closing_table(done, records, queue.skipped, time.perf_counter() - begun)}", flush=True)
    return records, queue.skipped, queue.errors


def _work(job, kernel, ended):
    """Run a job at its place, and say when it has ended, with its record or what went wrong."""
    try:
        found = execute(job, kernel)
    except BaseException as error:
        found = error
    ended.put((job, kernel, found))


class Queue:
    """Which job comes next, and the lines that tell it."""

    def __init__(self, jobs):
        self.left, self.running = list(jobs), []
        self.records, self.skipped, self.errors = {}, [], []
        self.seconds = {job.record: last_measured(job).get("seconds") for job in jobs}
        self.numbers = {job.record: f"[{number:>{len(str(len(jobs)))}}/{len(jobs)}]" for number, job in enumerate(jobs, 1)}
        self.width = max((len(job.name) for job in jobs), default=0)

    def _rank(self, job):
        """Less is sooner: another model than those that run, the stage, what was never measured, the longest."""
        seconds = self.seconds[job.record]
        return job.model in {one.model for one in self.running}, stage(job), seconds is not None, -(seconds or 0)

    def _first(self, busy):
        """The next job that waits for none of the busy ones; None where all do."""
        return min((job for job in self.left if not any(waits_for(job, one) for one in busy)), key=self._rank, default=None)

    def take(self):
        """The next job whose tables are there, now among those that run; None where all wait."""
        if job := self._first(self.left + self.running):
            self.left.remove(job)
            self.running.append(job)
        return job

    def tell_begin(self, job):
        """Say that a job begins, and which is next."""
        then = self._first(self.left)
        coming = f"; next {then.name} of {then.folder}{self._measured(then)}" if then else ""
        self._tell(job, f"begins{self._measured(job)}{coming}")

    def enter(self, job, found, skipped=False):
        """Note what came of a job: its record, or the error, which ends what waits for it, too."""
        self.running.remove(job)
        if isinstance(found, dict):
            self.records[job.record] = found
            self.skipped += [job] * skipped
            self._tell(job, "unchanged" if skipped else f"{found['seconds']['all']:.0f} s{self._rest()}")
        elif isinstance(found, NotebookError):
            self.errors.append(str(found))
            self._tell(job, "failed")
            for other in [one for one in self.left if waits_for(one, job)]:
                self.left.remove(other)
                self._tell(other, f"not begun, since {job.name} failed")
        else:
            raise found

    def _tell(self, job, what):
        missing = f" (has no {', '.join(job.missing)})" if job.missing else ""
        print(f"{self.numbers[job.record]} {job.name:<{self.width}}  {job.folder} ...{missing} {what}", flush=True)

    def _measured(self, job):
        return f" ({seconds:.0f} s when last measured)" if (seconds := self.seconds[job.record]) else ""

    def _rest(self):
        """What is left, and how long it takes by the last measurements where all are known."""
        seconds = [self.seconds[job.record] for job in self.left + self.running]
        work = f", {sum(seconds) / 60:.0f} minutes when last measured" if all(seconds) else ""
        return f"; {len(seconds)} more{work}" if seconds else ""


def main(argv=None):
    """Command line of `run`.

    Returns
    -------
    int: 0; 1 when a notebook failed; 2 when a parameter was wrong and nothing was started, or --dry-run finds no such model
        or step
    """
    parser = argparse.ArgumentParser(
        prog="python -m rare_token_neurons run",
        description="Run numbered notebooks with papermill. Parameters are checked before anything starts; a notebook "
        "that is finished and unchanged is not repeated; figures are left in figures/<model>/.",
        epilog="Example: python -m rare_token_neurons run 01 03 --model mini-pythia -p rare_percentile 15")
    parser.add_argument("numbers", nargs="*", metavar="NUMBER", help="notebooks, such as 03 (default: all)")
    parser.add_argument("--model", action="append", default=[], metavar="M",
                        help=f"{parameters.HELP['model']}; may be repeated or a comma list "
                        "(default: each notebook's own)")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="one parameter")
    parser.add_argument("-y", action="append", default=[], metavar="YAML", help="parameters, such as 'steps: [0, 512]'")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, its minutes and disk, and stop")
    parser.add_argument("--in-place", action="store_true",
                        help="refresh notebooks/ with the executed notebooks (default parameters only)")
    parser.add_argument("--save-minutes", action="store_true",
                        help="keep the measured times in data/results/minutes.csv, and the processor beside them (start "
                        "from an empty cache: make clean)")
    parser.add_argument("--jobs", type=int, default=min(2, cores()), metavar="N", help="notebooks at a time, each with its "
                        "share of the cores (default: 2 where there are two cores)")
    arguments = parser.parse_intermixed_args(argv)
    try:
        threads_each(arguments.jobs)
        models = [model.strip() for text in arguments.model for model in text.split(",") if model.strip()]
        values = _values(arguments.p, arguments.y)
        if arguments.in_place and (models or values):
            raise ValueError("--in-place takes no parameters: notebooks/ shows every notebook with its defaults.")
        jobs = plan(arguments.numbers, models, values)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.dry_run:
        try:
            look_for_models(jobs)
        except (FileNotFoundError, ValueError) as error:
            print(error, file=sys.stderr)
            return 2
        print(dry_run(jobs, [finished(job) for job in jobs]))
        return 0
    for model in dict.fromkeys(job.model for job in jobs if job.recompute != "never"):
        packages.tell_terms(model)
    records, skipped, errors = run(jobs, in_place=arguments.in_place, places=arguments.jobs)
    for error in errors:
        print(f"\n{error}", file=sys.stderr)
    if arguments.save_minutes and not errors:
        save_minutes(jobs, records, skipped)
        save_processor()
    return int(bool(errors))


def _values(pairs, documents):
    """The parameters of -p and -y in one dict."""
    values = {}
    for text in documents:
        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError:
            content = None
        if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
            raise ValueError(f"-y takes YAML such as 'steps: [0, 512]', not {text!r}.")
        values |= content
    return values | dict(pairs)
