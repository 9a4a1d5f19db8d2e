"""Running numbered notebooks with papermill: parameters checked first, finished ones skipped, one table at the end.

Every notebook runs in a kernel process of its own, in the repository's root. Executed copies and records lie under
data/cache/runs/<folder>/, where <folder> is the model and, unless all is default, the setting.
"""

import argparse
import contextlib
import importlib
import io
import json
import logging
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import papermill
import yaml
from nbclient.exceptions import DeadKernelError
from pandas.api.types import is_bool_dtype, is_float_dtype, is_numeric_dtype

from rare_token_neurons import files, keys, paths, settings as parameters
from rare_token_neurons.runner.jobs import file_hash, finished, for_readers, plan, tables_read

KERNEL_STARTS = 3  # a kernel on a busy machine may die before its first answer
QUIET = ("--IPKernelApp.log_level=50",)  # neither warnings for servers (no encryption on the loopback) nor its own end
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
        with files.lock(job.record):
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
        account = files.read_json(job.account)
        if not account or not {"seconds", "tables", "figures"} <= set(account):
            raise NotebookError(f"{paths.shown(job.account)} is damaged; the same command runs {job.name} again.")
    record = {
        "key": job.key,
        "seconds": seconds | account["seconds"],
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


def _papermill(job):
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # python3 is this environment's kernel, not one in the user's home
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    for attempt in range(1, KERNEL_STARTS + 1):
        try:
            papermill.execute_notebook(*map(_braced, (job.notebook, job.executed)), job.values, kernel_name="python3",
                                       cwd=paths.ROOT, progress_bar=False, extra_arguments=[*QUIET])
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
    files.sweep(paths.DATA, paths.FIGURES, paths.NOTEBOOKS)
    try:
        for number, job in enumerate(jobs, 1):
            missing = f"(has no {', '.join(job.missing)}) " if job.missing else ""
            print(f"[{number:>{len(str(len(jobs)))}}/{len(jobs)}] {job.name:<{width}}  {job.folder} ... {missing}",
                  end="", flush=True)
            record = finished(job)
            if record:
                skipped.append(job)
            records.append(record or execute(job))
            print("unchanged" if record else f"{records[-1]['seconds']['all']:.0f} s", flush=True)
            if in_place:
                clean = for_readers(nbformat.read(job.executed, as_version=4))
                with files.new_file(job.notebook) as temporary:
                    nbformat.write(clean, temporary)
    except NotebookError:
        print("failed", flush=True)
        _close(jobs, records, skipped)
        raise
    _close(jobs, records, skipped)
    return records, skipped


def _close(jobs, records, skipped):
    if records:
        print(f"\n{closing_table(jobs, records, skipped)}", flush=True)


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
                        help="mini-pythia, smollm2, a folder, a GGUF file or a hub id; may be repeated or a comma list "
                        "(default: each notebook's own)")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="one parameter")
    parser.add_argument("-y", action="append", default=[], metavar="YAML", help="parameters, such as 'steps: [0, 512]'")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, its minutes and disk, and stop")
    parser.add_argument("--in-place", action="store_true",
                        help="refresh notebooks/ with the executed notebooks (default parameters only)")
    parser.add_argument("--save-minutes", action="store_true",
                        help="keep the measured times in data/results/minutes.csv, and the processor beside them (start "
                        "from an empty cache: make clean)")
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
        try:
            _look_for_models(jobs)
        except (FileNotFoundError, ValueError) as error:
            print(error, file=sys.stderr)
            return 2
        print(dry_run(jobs, [finished(job) for job in jobs]))
        return 0
    try:
        records, skipped = run(jobs, in_place=arguments.in_place)
    except NotebookError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    if arguments.save_minutes:
        save_minutes(jobs, records, skipped)
        save_processor()
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


# ---- what a run tells

PROCESSOR = "processor.json"  # under data/results, committed: where the tables there were made
MINUTES = "minutes.csv"  # under data/results, committed: seconds and disk of the embedded models, from an empty cache


def deviation(table, reference):
    """How far a table lies from its reference: the largest |a - b| / (|b| + mean |b| of the column).

    Rows are matched by the shortest leading run of columns other than floats that identifies them in both tables, and
    by their order where none does. NaN equals NaN.

    Returns
    -------
    float: 0 for equal tables; infinity for other columns, rows, words or truth values, for a number against NaN or
    infinity, and for a number where the reference's column is all zero.
    """
    if list(table.columns) != list(reference.columns) or len(table) != len(reference):
        return math.inf
    table, reference = (_plain(frame) for frame in (table, reference))
    names, key = [name for name in table.columns if not is_float_dtype(reference[name])], []
    for end in range(1, len(names) + 1):
        if not any(frame.duplicated(names[:end]).any() for frame in (table, reference)):
            key = names[:end]
            break
    if key:
        table, reference = (frame.sort_values(key, ignore_index=True) for frame in (table, reference))
        if not table[key].astype(str).equals(reference[key].astype(str)):
            return math.inf
    return max((_column_deviation(table[name], reference[name]) for name in table.columns if name not in key), default=0.0)


def _plain(table):
    """Columns of numbers as they are, all others (truth values, lists) as text."""
    numbers = [is_numeric_dtype(table[name]) and not is_bool_dtype(table[name]) for name in table]
    return table.astype({name: str for name, number in zip(table, numbers) if not number})


def _column_deviation(column, reference):
    if not (is_numeric_dtype(column) and is_numeric_dtype(reference)):
        return 0.0 if column.tolist() == reference.tolist() else math.inf
    a, b = column.to_numpy(float, na_value=np.nan), reference.to_numpy(float, na_value=np.nan)
    differ = ~((a == b) | (np.isnan(a) & np.isnan(b)))
    if not differ.any():
        return 0.0
    if not (np.isfinite(a[differ]).all() and np.isfinite(b[differ]).all()):
        return math.inf
    scale = np.abs(b[differ]) + np.abs(b[np.isfinite(b)]).mean()
    return float(np.max(np.abs(a - b)[differ] / scale)) if scale.all() else math.inf


def from_commit(tables):
    """The largest deviation of written tables from the commit that is checked out.

    Parameters
    ----------
    tables : list of str, paths from the repository's root.

    Returns
    -------
    float, or "other rows" (not comparable), "new" (none is in the commit), "-" (no table, or no git)
    """
    if not tables or _git("rev-parse", "--verify", "HEAD") is None:
        return "-"
    found = []
    for name in tables:
        content = _git("show", f"HEAD:./{name}")
        if content is not None:
            found.append(deviation(pd.read_parquet(paths.ROOT / name), pd.read_parquet(io.BytesIO(content))))
    if not found:
        return "new"
    return "other rows" if max(found) == math.inf else max(found)


def _git(*arguments):
    """What git answers, bytes; None where it fails or is not there."""
    try:
        done = subprocess.run(["git", "-C", str(paths.ROOT), *arguments], capture_output=True)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def processor():
    """This machine's processor: its name, its widest vector instructions, and the number of cores."""
    told = Path("/proc/cpuinfo")
    lines = dict(line.split(":", 1) for line in told.read_text("utf-8").splitlines() if ":" in line) if told.exists() else {}
    lines = {name.strip(): value.strip() for name, value in lines.items()}
    flags = lines.get("flags", "").split()
    widest = next((words for flag, words in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), platform.machine())
    return lines.get("model name", platform.processor()), widest, os.cpu_count()


def _made_on():
    """The processor on which the committed tables were made, as `processor` gives it; () where nobody said."""
    return tuple((files.read_json(paths.RESULTS / PROCESSOR) or {}).get("processor", ()))


def save_processor():
    """Say in data/results on which processor the tables there were made."""
    files.write_json(paths.RESULTS / PROCESSOR, {"processor": processor()})


def closing_table(jobs, records, skipped):
    """What was run, as text: notebook, model, seconds (of which forward passes, ablation), figures, deviation, and whether
    the committed tables come from this kind of processor (on another one near ties of ranks swap); at the end the largest
    resident memory of a process that this one started (a notebook's kernel).

    Parameters
    ----------
    jobs : list of jobs.Job
    records : list of dict, of the jobs that are finished, in the same order
    skipped : list of the jobs that were not repeated
    """
    rows, same = [], _made_on()[1:] == processor()[1:]
    kind = "same kind of processor" if same else "another kind of processor"
    for job, record in zip(jobs, records, strict=False):
        seconds, far = record["seconds"], record["deviation"]
        rows.append({
            "notebook": job.name,
            "model": job.folder,
            "seconds": "unchanged" if job in skipped else f"{seconds['all']:.0f}",
            "forward": f"{seconds.get('forward', 0):.0f}",
            "ablation": f"{seconds.get('ablation', 0):.0f}",
            "figures": ", ".join(sorted({Path(name).stem.split("_")[0] for name in record["figures"]})) or "-",
            f"largest deviation ({kind})": far if isinstance(far, str) else f"{far:.1e}",
        })
    spent = sum(record["seconds"]["all"] for job, record in zip(jobs, records, strict=False) if job not in skipped)
    folders = sorted({str(Path(name).parent) for record in records for name in record["figures"]})
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    memory = f", {largest:.1f} GB at most in a process" if spent else ""
    return (f"{pd.DataFrame(rows).to_string(index=False)}\n"
            f"{spent:.0f} s in all{memory}; figures are in {', '.join(folders) or 'no folder'}.")


def _look_for_models(jobs):
    """Raise what the first notebook of a run would raise: there is no such model, no weights in its folder, or no such step.

    The hub is asked for the names of revisions alone; nothing is downloaded or converted.
    """
    asked = {json.dumps({"model": job.model, **job.values}) for job in jobs
             if job.model != parameters.ALL_MODELS and job.recompute != "never"}
    if asked:
        checkpoints = importlib.import_module(f"{keys.PACKAGE}.tables.checkpoints")  # loads torch, which a run does not need
        for values in sorted(asked):
            settings = parameters.check(json.loads(values))
            *_, revision = checkpoints.asked_for(settings)
            if paths.place(settings.model).is_dir():
                checkpoints.models.locate(settings.model, revision)


def dry_run(jobs, records):
    """What `run` would do, as text, with minutes and disk as last measured.

    Parameters
    ----------
    jobs : list of jobs.Job
    records : list of the record of each job that need not be repeated, or None
    """
    rows, minutes, disk = [], 0.0, 0.0
    for job, record in zip(jobs, records, strict=True):
        last = {} if record else _last_measured(job)
        known = bool(record or last)
        rows.append({
            "notebook": job.name, "model": job.folder, "": "unchanged" if record else "runs",
            "minutes": f"{last.get('seconds', 0) / 60:.1f}" if known else "?",
            "MB": f"{last.get('disk_mb', 0):.0f}" if known else "?",
        })
        minutes, disk = minutes + last.get("seconds", 0) / 60, disk + last.get("disk_mb", 0)
    least = "at least" if any(row["minutes"] == "?" for row in rows) else "about"
    free = shutil.disk_usage(paths.ROOT).free / 1e6
    return (f"{pd.DataFrame(rows).to_string(index=False)}\n"
            f"Nothing was started. It would take {least} {minutes:.0f} minutes and {disk:,.0f} MB "
            f"({free:,.0f} MB are free).")


def _last_measured(job):
    """Seconds and MB of a notebook: from the committed measurement of the embedded models, else its last run here."""
    path = paths.RESULTS / MINUTES
    if path.exists():
        table = pd.read_csv(path)
        row = table[(table["notebook"] == job.name) & (table["model"] == job.folder)]
        if len(row):
            return row.iloc[0].to_dict()
    record = files.read_json(job.record) or {}
    if not {"seconds", "disk_mb"} <= set(record):
        return {}
    return {"seconds": record["seconds"]["all"], "disk_mb": record["disk_mb"]}


def save_minutes(jobs, records, skipped):
    """Enter the seconds and MB of what was run in data/results/minutes.csv, for --dry-run."""
    path = paths.RESULTS / MINUTES
    old = pd.read_csv(path) if path.exists() else pd.DataFrame()
    new = pd.DataFrame([
        {"notebook": job.name, "model": job.folder} | {
            name: round(value, 1) for name, value in (
                ("seconds", record["seconds"]["all"]), ("forward", record["seconds"].get("forward", 0)),
                ("ablation", record["seconds"].get("ablation", 0)), ("disk_mb", record["disk_mb"]))}
        for job, record in zip(jobs, records, strict=False) if job not in skipped])
    table = pd.concat([old, new]).drop_duplicates(["notebook", "model"], keep="last") if len(new) else old
    with files.new_file(path) as temporary:
        table.sort_values(["model", "notebook"]).to_csv(temporary, index=False)
