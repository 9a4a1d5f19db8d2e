"""`python -m rare_token_neurons sweep GRID.csv`: a grid of settings, one row after the other, failures reported at the end.

A column is a parameter (steps as `[0, 512]`), or `notebooks`, such as `01 03`; an empty cell keeps the default. Every row
is checked before the first one starts; a row that fails does not stop the others, and a finished one is not repeated.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rare_token_neurons import run


@dataclass(frozen=True)
class Row:
    """One line of a grid: its number (the header is line 1), its settings in words, and the jobs that they mean."""

    line: int
    label: str
    jobs: list


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
        No such file; no rows; a row with a wrong parameter (the line is named).
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no grid file {path}.")
    table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    if table.empty:
        raise ValueError(f"The grid file {path} has no rows.")
    rows = []
    for line, cells in enumerate(table.to_dict("records"), 2):
        values = {name.strip(): text.strip() for name, text in cells.items() if text.strip()}
        label = ", ".join(f"{name} {text}" for name, text in values.items())
        try:
            rows.append(Row(line, label, run.plan(values.pop("notebooks", "").split(), values=values)))
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from None
    return rows


def sweep(rows):
    """Run the rows one after the other.

    Returns
    -------
    list of (Row, str): the rows that failed and why; what they finished before is kept
    """
    failed = []
    for number, row in enumerate(rows, 1):
        print(f"\n== row {number} of {len(rows)} (line {row.line}): {row.label}", flush=True)
        try:
            run.run(row.jobs)
        except run.NotebookError as error:
            failed.append((row, str(error)))
    return failed


def main(argv=None):
    """Command line of `sweep`.

    Returns
    -------
    int: 0; 1 when a row failed; 2 when the grid was wrong and nothing was started; 130 when interrupted
    """
    parser = argparse.ArgumentParser(prog="python -m rare_token_neurons sweep", description=__doc__.split("\n\n", 1)[1])
    parser.add_argument("grid", help="a CSV file, such as data/paper_grid.csv")
    arguments = parser.parse_args(argv)
    try:
        rows = read(arguments.grid)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    try:
        failed = sweep(rows)
    except KeyboardInterrupt:
        print("\nInterrupted; the same command goes on where this one stopped.", file=sys.stderr)
        return 130
    for row, error in failed:
        print(f"\nline {row.line} failed ({row.label}):\n{error}", file=sys.stderr)
    print(f"\n{len(rows) - len(failed)} of {len(rows)} rows done.")
    return 1 if failed else 0
