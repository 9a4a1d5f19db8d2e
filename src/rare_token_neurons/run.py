"""Running numbered notebooks with papermill: parameters checked first, finished ones skipped, one table at the end.

Every notebook runs in a kernel process of its own, in the repository's root. Executed copies and records lie under
data/cache/runs/<folder>/, where <folder> is the model and, unless all is default, the setting.
"""

import argparse
import contextlib
import logging
import os
import sys
import time

import nbformat
import papermill
import yaml
from nbclient.exceptions import DeadKernelError

from rare_token_neurons import notebooks, paths, reports, store
from rare_token_neurons.jobs import file_hash, finished, plan, tables_read

KERNEL_STARTS = 3  # a kernel on a busy machine may die before its first answer
QUIET = ("--IPKernelApp.log_level=40",)  # errors only: its warnings (no encryption on the loopback) concern servers
DEAD = "DeadKernelError: the kernel was killed; most often the machine had no memory left"

logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it would log is checked before, or reported after


class NotebookError(Exception):
    """A notebook did not run to its end; the message says where and why."""


def execute(job):
    """Run one notebook and record it; where another process runs the same one, wait for it and take its record.

    Returns
    -------
    dict: key, seconds (all, forward, ablation), tables, figures, outputs (their hashes), read, deviation, disk_mb

    Raises
    ------
    NotebookError
        Where it stopped and why; the executed copy is kept.
    """
    try:
        with store.lock(job.record):
            return finished(job) or _executed(job)
    except OSError as error:  # the disk is full, or a folder may not be written
        raise NotebookError(f"{job.name} could not be run to its end: {error}") from None


def _executed(job):
    job.executed.parent.mkdir(parents=True, exist_ok=True)
    for old in (job.record, job.account):
        old.unlink(missing_ok=True)
    start, disk = time.perf_counter(), _megabytes(paths.CACHE)
    _papermill(job)
    seconds = {"all": time.perf_counter() - start}
    account = {"seconds": {}, "tables": [], "figures": []}
    if job.account.exists():
        account = store.read_json(job.account)
        if not account or not {"seconds", "tables", "figures"} <= set(account):
            raise NotebookError(f"{paths.shown(job.account)} is damaged; the same command runs {job.name} again.")
    record = {
        "key": job.key,
        "seconds": seconds | account["seconds"],
        "tables": sorted(set(account["tables"])),
        "figures": sorted(set(account["figures"])),
        "deviation": reports.from_commit(account["tables"]),
        "disk_mb": max(0.0, _megabytes(paths.CACHE) - disk),
    }
    outputs = [*record["tables"], *record["figures"], paths.shown(job.executed)]
    record["outputs"] = {name: file_hash(name) for name in outputs}
    record["read"] = tables_read(job)
    store.write_json(job.record, record)
    return record


def _papermill(job):
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # python3 is this environment's kernel, not one in the user's home
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    for attempt in range(1, KERNEL_STARTS + 1):
        try:
            papermill.execute_notebook(notebooks.braced(job.notebook), notebooks.braced(job.executed), job.values,
                                       kernel_name="python3", cwd=paths.ROOT, progress_bar=False, extra_arguments=[*QUIET])
            return
        except papermill.PapermillExecutionError as error:
            raise NotebookError(_report(job, error.exec_count, error.source, f"{error.ename}: {error.evalue}")) from None
        except DeadKernelError:
            begun = [cell for cell in nbformat.read(job.executed, as_version=4).cells
                     if cell.cell_type == "code" and cell.metadata.get("papermill", {}).get("start_time")]
            source = begun[-1].source if begun else ""
            raise NotebookError(_report(job, len(begun), source, DEAD)) from None
        except RuntimeError as error:
            if attempt == KERNEL_STARTS:
                raise NotebookError(_report(job, 0, "", f"no kernel started in {attempt} tries ({error})")) from None


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


def run(jobs, *, in_place=False):
    """Run jobs in order, a line each, and print the closing table.

    Parameters
    ----------
    in_place : also write each executed notebook, as readers are to see it, over the one in notebooks/.

    Returns
    -------
    (list of dict, list of Job): the records, and the jobs that were skipped because nothing had changed

    Raises
    ------
    NotebookError
        Of the first notebook that failed; those before it are finished and recorded.
    """
    records, skipped, width = [], [], max((len(job.name) for job in jobs), default=0)
    store.sweep(paths.DATA, paths.FIGURES, paths.NOTEBOOKS)
    try:
        for number, job in enumerate(jobs, 1):
            print(f"[{number:>{len(str(len(jobs)))}}/{len(jobs)}] {job.name:<{width}}  {job.folder} ... ", end="", flush=True)
            if job.missing:
                print(f"(has no {', '.join(job.missing)}) ", end="", flush=True)
            record = finished(job)
            if record:
                skipped.append(job)
            records.append(record or execute(job))
            print("unchanged" if record else f"{records[-1]['seconds']['all']:.0f} s", flush=True)
            if in_place:
                clean = notebooks.for_readers(nbformat.read(job.executed, as_version=4))
                with store.new_file(job.notebook) as temporary:
                    nbformat.write(clean, temporary)
    except NotebookError:
        print("failed", flush=True)
        raise
    finally:
        if records:
            print(f"\n{reports.closing_table(jobs, records, skipped)}", flush=True)
    return records, skipped


def main(argv=None):
    """Command line of `run`.

    Returns
    -------
    int: 0; 1 when a notebook failed; 2 when a parameter was wrong and nothing was started; 130 when interrupted
    """
    parser = argparse.ArgumentParser(
        prog="python -m rare_token_neurons run",
        description="Run numbered notebooks with papermill. Parameters are checked before anything starts; a notebook "
        "that is finished and unchanged is not repeated; figures are left in figures/<model>/.",
        epilog="Example: python -m rare_token_neurons run 01 03 --model mini-pythia -p rare_percentile 15")
    parser.add_argument("numbers", nargs="*", metavar="NUMBER", help="notebooks, such as 03 (default: all)")
    parser.add_argument("--model", action="append", default=[], metavar="M",
                        help="mini-pythia, smollm2, a folder or a hub id; may be repeated or a comma list (default: each "
                        "notebook's own)")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="one parameter")
    parser.add_argument("-y", action="append", default=[], metavar="YAML", help="parameters, such as 'steps: [0, 512]'")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, its minutes and disk, and stop")
    parser.add_argument("--in-place", action="store_true",
                        help="refresh notebooks/ with the executed notebooks (default parameters only)")
    parser.add_argument("--save-minutes", action="store_true",
                        help="keep the measured times in data/results/minutes.csv (start from an empty cache: make clean)")
    arguments = parser.parse_intermixed_args(argv)
    try:
        models = [model.strip() for text in arguments.model for model in text.split(",") if model.strip()]
        values = _values(arguments.p, arguments.y)
        if arguments.in_place and (models or values):
            raise ValueError("--in-place takes no parameters: notebooks/ shows every notebook with its defaults.")
        jobs = plan(arguments.numbers, models, values)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.dry_run:
        print(reports.dry_run(jobs, [finished(job) for job in jobs]))
        return 0
    try:
        records, skipped = run(jobs, in_place=arguments.in_place)
    except NotebookError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; the same command goes on where this one stopped.", file=sys.stderr)
        return 130
    if arguments.save_minutes:
        reports.save_minutes(jobs, records, skipped)
    return 0


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
