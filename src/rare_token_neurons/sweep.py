"""`python -m rare_token_neurons sweep GRID.csv`: a grid of settings, each row a run in a process of its own.

A column is a parameter (steps as `[0, 512]`), or `notebooks`, such as `01 03`; an empty cell keeps the default. Every row
is checked before the first one starts; a row that fails does not stop the others, and a finished one is not repeated.
Notebooks about all models run once, after the rows. What a row prints is in its log, data/cache/runs/<folder>/row-*.log.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from rare_token_neurons import parameters, paths, store
from rare_token_neurons.jobs import finished, plan
from rare_token_neurons.status import Status
from rare_token_neurons.workers import Cluster, Local, SchedulerGone

POLL = 0.5  # seconds between two looks at the rows


@dataclass(frozen=True)
class Row:
    """One line of a grid: its number (the header is line 1), its settings in words and as text, the jobs that they mean."""

    line: int
    label: str
    values: dict
    jobs: tuple

    @property
    def name(self):
        """A name that tells the content: notebooks, folders and all that decides the outcome."""
        return f"row-{store.digest([[job.name, job.folder, job.key] for job in self.jobs])}"

    @property
    def arguments(self):
        """The arguments of `run` that do this row: its notebooks, and the parameters that one of them has."""
        values = {name: text for name, text in self.values.items() if any(name not in job.missing for job in self.jobs)}
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
        rows.append(Row(line, label, values, tuple(jobs)))
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


def sweep(rows, pool, status, failed):
    """Run rows, keep the status line, and end what runs when this is interrupted.

    Parameters
    ----------
    rows : list of Row
    pool : workers.Local or workers.Cluster
    status : Status
    failed : list, to which (Row, str) of each row that fails is added, with the reason; what it finished before is kept
    """
    futures = {}
    try:
        for row in rows:
            if all(map(finished, row.jobs)):
                status.ended(f"line {row.line} ({row.label})")
            else:
                futures[pool.submit(row)] = row
        while futures:
            for future in [future for future in futures if future.done()]:
                row = futures.pop(future)
                error, seconds = _result(future)
                status.ended(f"line {row.line} ({row.label})", seconds, failed=bool(error))
                if error:
                    failed.append((row, error))
            status.show(pool.running(futures) if futures else 0)
            time.sleep(POLL if futures else 0)
    except BaseException:
        pool.stop(futures)
        raise


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
    int: 0; 1 when a row failed; 2 when the grid was wrong and nothing was started; 130 when interrupted
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
        with pool:
            for what, rows in parts:
                status = Status(what, len(rows))
                sweep(rows, pool, status, failed)
                told.append(f"{status.done} of {status.total} {what} done")
    except SchedulerGone as error:
        told, code = [f"{error} The same command goes on where this one stopped"], 1
    except KeyboardInterrupt:
        told, code = ["Interrupted; the same command goes on where this one stopped"], 130
    for row, error in failed:
        print(f"\nline {row.line} failed ({row.label}):\n{error}\nits output: {row.log}", file=sys.stderr)
    print(f"\n{', '.join(told)}.", file=sys.stderr if code else sys.stdout)
    return code or int(bool(failed))
