"""Tables and tensors that are computed once, by content key, and the account of a notebook.

A table is a function declared with `@table`: its name is the file's, its module's source decides its key, and what it
reads is said where it is declared. The cache holds it under that key; `data/results` holds the current copy.
"""

import contextlib
import functools
import shutil
import time
from pathlib import Path

import pandas as pd
from safetensors import SafetensorError

from rare_token_neurons import keys
from rare_token_neurons.files import lock, new_file, read_table, seal, sha256, whole, write_json, write_table
from rare_token_neurons.models.steps import step_of
from rare_token_neurons.paths import CACHE, RUNS, shown

GROUPS = ("rare", "common")  # of targets
CAUTION = "caution"  # the column, and the inputs' entry, that name flagged checkpoints which a table measures all the same

_seconds = {}
_written = {"tables": [], "figures": []}


# ---- tables


def table(source, *, reads=(), per=(), at=lambda settings: settings):
    """Declare a function as the table of its name, which others then call as `name(settings)`.

    Parameters
    ----------
    source : what the table is made from, such as `checkpoints.LAST`: `inputs(settings)` gives the hashes that decide it, and
        `walk(settings)` (revision, dict of labels) of each checkpoint.
    reads : names of the parameters that decide it.
    per : what the function is called for: () once, as make(settings); ("revision",) each checkpoint, as
        make(settings, revision); ("revision", "group") also rare and common targets, as make(settings, revision, group).
        The labels (revision, step, group) become the first columns.
    at : from the settings to those in whose folder the table lies.

    The function returns a DataFrame, or an iterable of rows (dicts) or of DataFrames.
    """

    def declare(make):
        @functools.wraps(make)
        def made(settings):
            decide = {name: getattr(settings, name) for name in reads}
            inputs = {} if settings.recompute == "never" else source.inputs(settings)
            key = keys.key(decide, inputs, [make.__module__.split(".", 1)[1]])
            path = at(settings).results / f"{make.__name__}.parquet"
            return table_at(path, key, lambda: _cautioned(_rows(make, source, per, settings), inputs.get(CAUTION, {})),
                            recompute=settings.recompute)

        return made

    return declare


def _rows(make, source, per, settings):
    """All that a declared function makes for these settings, one DataFrame."""
    if not per:
        return _frame(make(settings))
    parts = []
    for revision, labels in source.walk(settings):
        for group in GROUPS if "group" in per else [None]:
            named = labels | ({"group": group} if group else {})
            part = _frame(make(settings, revision, group) if group else make(settings, revision))
            parts.append(pd.DataFrame(named, index=part.index).astype({"step": "Int64"}).join(part))
    return pd.concat(parts, ignore_index=True)


def _cautioned(made, cautions):
    """A table with a column that says which rows are of a flagged checkpoint, where there is one.

    cautions : {revision: words}.
    """
    if not cautions:
        return made
    words = cautions | {step_of(revision): text for revision, text in cautions.items()}
    named = ["revision"] if "revision" in made else [name for name in made if name.split("_")[-1] == "step"]
    rows = made[named].to_numpy(dtype=object) if named else [cautions] * len(made)
    return made.assign(**{CAUTION: ["; ".join(dict.fromkeys(words[value] for value in row if value in words))
                                    for row in rows]})


def _frame(made):
    """A DataFrame as it is, or one made of rows or of parts."""
    if isinstance(made, pd.DataFrame):
        return made
    made = list(made)
    return pd.concat(made, ignore_index=True) if made and isinstance(made[0], pd.DataFrame) else pd.DataFrame(made)


def table_at(path, key, compute, *, recompute="changed"):
    """One table: read from the cache where its key is there, computed where not, and copied to `path`.

    Parameters
    ----------
    path : Path, the table's place under data/results.
    key : str, from `keys.key`.
    compute : callable without arguments that returns a DataFrame.
    recompute : "changed", "always", or "never" (read `path` as it is, whatever its key).

    Returns
    -------
    pandas.DataFrame

    Raises
    ------
    FileNotFoundError, ValueError
        recompute="never" and the table is not there, or damaged.
    """
    path = Path(path)
    if recompute == "never":
        if not path.exists():
            raise FileNotFoundError(f"There is no table {shown(path)} to draw; run with recompute=changed.")
        return read_table(path)
    cached = CACHE / "tables" / f"{path.stem}-{key}.parquet"  # settings that decide alike share it
    with lock(cached):
        if recompute == "always" or not whole(cached):
            write_table(cached, compute())
            seal(cached)
        found = read_table(cached)
        with new_file(path) as temporary:
            shutil.copyfile(cached, temporary)
    _written["tables"].append(shown(path))
    return found


def made_here(path):
    """Whether the table that lies at `path` was made in this checkout: its cache holds the same."""
    return sha256(path) in {sha256(cached) for cached in (CACHE / "tables").glob(f"{path.stem}-*.parquet")}


def tensors(name, key, compute, *, recompute="changed"):
    """Bulky tensors by key, never committed: read from the cache, or computed and kept there.

    Parameters
    ----------
    name : str, the folder under data/cache (the model's slug).
    compute : callable that returns a dict of contiguous tensors.

    Returns
    -------
    dict of str to torch.Tensor
    """
    from safetensors.torch import load_file, save_file  # torch is slow to load, and what only draws needs none

    path = CACHE / name / f"{key}.safetensors"
    with lock(path):
        if recompute != "always" and whole(path):
            with contextlib.suppress(SafetensorError):
                return load_file(path)
        content = compute()
        with new_file(path) as temporary:
            save_file(content, temporary)
        seal(path)
    return content


# ---- the account of a notebook


@contextlib.contextmanager
def clock(what):
    """Add the seconds spent inside to the notebook's account of `what` ("forward", "ablation"), less those of a clock
    inside this one."""
    start, before = time.perf_counter(), sum(_seconds.values())
    try:
        yield
    finally:
        inner = sum(_seconds.values()) - before
        _seconds[what] = _seconds.get(what, 0.0) + time.perf_counter() - start - inner


def note_figure(path):
    """Enter a written figure in the notebook's account."""
    _written["figures"].append(shown(path))


def finish(folder, notebook):
    """Write the notebook's account (seconds by kind, tables, figures) for the runner: the last cell's call.

    Parameters
    ----------
    folder : str, the settings' folder below data/cache/runs.
    notebook : str, two digits.
    """
    write_json(RUNS / folder / f"{notebook}.account.json", {"seconds": _seconds, **_written})
