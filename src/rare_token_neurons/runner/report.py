"""What a run tells: how far its tables lie from the committed ones, where its time went, and what a next one would take."""

import importlib
import io
import json
import math
import os
import platform
import resource
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_float_dtype, is_numeric_dtype

from rare_token_neurons import files, keys, paths, settings as parameters

PROCESSOR = "processor.json"  # under data/results, committed: where the tables there were made
STAGES = ("start", "forward", "ablation", "statistics", "drawing")  # of a notebook's seconds
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


def closing_table(jobs, records, skipped, took):
    """What was run, as text: notebook, model, seconds and their `STAGES` (start: the kernel, and loading libraries;
    statistics: making tables, less forward passes and ablation), figures, deviation, and whether the committed tables come
    from this kind of processor (on another one near ties of ranks swap); at the end all notebooks' seconds, those by the
    clock, and the largest resident memory of a process that this one started (a notebook's kernel).

    Parameters
    ----------
    jobs : list of jobs.Job
    records : list of dict, of the jobs that are finished, in the same order
    skipped : list of the jobs that were not repeated
    took : float, seconds by the clock
    """
    rows, same = [], _made_on()[1:] == processor()[1:]
    kind = "same kind of processor" if same else "another kind of processor"
    for job, record in zip(jobs, records, strict=False):
        seconds, far = record["seconds"], record["deviation"]
        rows.append({
            "notebook": job.name,
            "model": job.folder,
            "seconds": "unchanged" if job in skipped else f"{seconds['all']:.0f}",
            **{name: f"{seconds.get(name, 0):.0f}" for name in STAGES},
            "figures": ", ".join(sorted({Path(name).stem.split("_")[0] for name in record["figures"]})) or "-",
            f"largest deviation ({kind})": far if isinstance(far, str) else f"{far:.1e}",
        })
    spent = sum(record["seconds"]["all"] for job, record in zip(jobs, records, strict=False) if job not in skipped)
    folders = sorted({str(Path(name).parent) for record in records for name in record["figures"]})
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    memory = f", {largest:.1f} GB at most in a process" if spent else ""
    return (f"{pd.DataFrame(rows).to_string(index=False)}\n"
            f"{spent:.0f} s of notebooks in {took:.0f} s{memory}; figures are in {', '.join(folders) or 'no folder'}.")


def look_for_models(jobs):
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
        last = {} if record else last_measured(job)
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


def last_measured(job):
    """Seconds and MB of a notebook: from the committed measurement of the embedded models, else its last run here.

    {} where there is none, and where tables are only drawn: what was measured made them.
    """
    if job.recompute == "never":
        return {}
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
            name: round(value, 1) for name, value in {
                "seconds": record["seconds"]["all"], **{stage: record["seconds"].get(stage, 0) for stage in STAGES},
                "disk_mb": record["disk_mb"]}.items()}
        for job, record in zip(jobs, records, strict=False) if job not in skipped])
    table = pd.concat([old, new]).drop_duplicates(["notebook", "model"], keep="last") if len(new) else old
    with files.new_file(path) as temporary:
        table.sort_values(["model", "notebook"]).to_csv(temporary, index=False)
