"""What a run tells: its closing table, how far its tables lie from the commit's, what it would cost beforehand."""

import io
import math
import resource
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_float_dtype, is_numeric_dtype

from rare_token_neurons import paths, store

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
    return table.apply(lambda column: column if is_numeric_dtype(column) and not is_bool_dtype(column) else column.astype(str))


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


def closing_table(jobs, records, skipped):
    """What was run, as text: notebook, model, seconds (of which forward passes, ablation), figures, deviation; at the end
    the largest resident memory of a process that this one started (a notebook's kernel).

    Parameters
    ----------
    jobs : list of jobs.Job
    records : list of dict, of the jobs that are finished, in the same order
    skipped : list of the jobs that were not repeated
    """
    rows = []
    for job, record in zip(jobs, records, strict=False):
        seconds = record["seconds"]
        rows.append({
            "notebook": job.name,
            "model": job.folder,
            "seconds": "unchanged" if job in skipped else f"{seconds['all']:.0f}",
            "forward": f"{seconds.get('forward', 0):.0f}",
            "ablation": f"{seconds.get('ablation', 0):.0f}",
            "figures": ", ".join(sorted({Path(name).stem.split("_")[0] for name in record["figures"]})) or "-",
            "largest deviation": record["deviation"] if isinstance(record["deviation"], str) else f"{record['deviation']:.1e}",
        })
    spent = sum(record["seconds"]["all"] for job, record in zip(jobs, records, strict=False) if job not in skipped)
    folders = sorted({str(Path(name).parent) for record in records for name in record["figures"]})
    memory = f", {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9:.1f} GB at most in a process" if spent else ""
    return f"{pd.DataFrame(rows).to_string(index=False)}\n{spent:.0f} s in all{memory}; figures are in {', '.join(folders) or 'no folder'}."


def dry_run(jobs, finished):
    """What `run` would do, as text, with minutes and disk as last measured.

    Parameters
    ----------
    jobs : list of jobs.Job
    finished : list of the record of each job that need not be repeated, or None
    """
    rows, minutes, disk = [], 0.0, 0.0
    for job, record in zip(jobs, finished, strict=True):
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
            f"Nothing was started. It would take {least} {minutes:.0f} minutes and {disk:,.0f} MB ({free:,.0f} MB are free).")


def _last_measured(job):
    """Seconds and MB of a notebook: from the committed measurement of the embedded models, else its last run here."""
    path = paths.RESULTS / MINUTES
    if path.exists():
        table = pd.read_csv(path)
        row = table[(table["notebook"] == job.name) & (table["model"] == job.folder)]
        if len(row):
            return row.iloc[0].to_dict()
    record = store.read_json(job.record) or {}
    return {"seconds": record["seconds"]["all"], "disk_mb": record["disk_mb"]} if {"seconds", "disk_mb"} <= set(record) else {}


def save_minutes(jobs, records, skipped):
    """Enter the seconds and MB of what was run in data/results/minutes.csv, for --dry-run."""
    path = paths.RESULTS / MINUTES
    old = pd.read_csv(path) if path.exists() else pd.DataFrame()
    new = pd.DataFrame([
        {"notebook": job.name, "model": job.folder, "seconds": round(record["seconds"]["all"], 1),
         "forward": round(record["seconds"].get("forward", 0), 1), "ablation": round(record["seconds"].get("ablation", 0), 1),
         "disk_mb": round(record["disk_mb"], 1)}
        for job, record in zip(jobs, records, strict=False) if job not in skipped])
    table = pd.concat([old, new]).drop_duplicates(["notebook", "model"], keep="last") if len(new) else old
    with store.new_file(path) as temporary:
        table.sort_values(["model", "notebook"]).to_csv(temporary, index=False)
