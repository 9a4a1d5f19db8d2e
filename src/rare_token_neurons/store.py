"""Stages by content key: tables and tensors that are computed once, and the account of a notebook.

A stage is one table. Its key hashes all that decides its content: settings, inputs (hashes of weights and text) and
the source of the modules that compute it, with the versions of the libraries. The cache holds it under that key;
`data/results` holds the current copy.
"""

import contextlib
import hashlib
import json
import shutil
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from rare_token_neurons import sources
from rare_token_neurons.files import (lock, new_file, new_folder, read_json, read_table, seal, sha256, sweep, whole,
                                      write_json, write_table)
from rare_token_neurons.paths import CACHE, RUNS, shown

__all__ = ["array_hash", "clock", "digest", "finish", "key", "lock", "new_file", "new_folder", "note_figure", "read_json",
           "read_table", "sha256", "source_hash", "stage", "sweep", "tensors", "write_json", "write_table"]

_seconds = {}
_written = {"tables": [], "figures": []}


def digest(content):
    """16 hexadecimal digits of the sha256 of plain data: dicts with names as keys, lists, numbers, strings, None.

    Raises
    ------
    TypeError
        Anything else: two different objects could look alike.
    """
    _refuse_odd(content)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _refuse_odd(content):
    parts = content if isinstance(content, (list, tuple)) else content.values() if isinstance(content, dict) else None
    odd = [name for name in content if not isinstance(name, str)] if isinstance(content, dict) else []
    if parts is None and not (content is None or isinstance(content, (str, int, float))):
        odd = [content]
    if odd:
        raise TypeError(f"A content key is made of plain data, not of {odd[0]!r} ({type(odd[0]).__name__}).")
    for part in parts or ():
        _refuse_odd(part)


def array_hash(arrays):
    """Hash of the values of numpy arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@lru_cache(maxsize=None)
def source_hash(module):
    """Hash of the source of a module of this package and of all modules of the package that it imports."""
    return digest(sources.module(module))


def key(settings, inputs, modules):
    """The content key of a stage.

    Parameters
    ----------
    settings : dict of the parameters that the stage reads.
    inputs : dict of hashes (weights, text, other stages' keys).
    modules : list of str, the package's modules whose source decides the content.
    """
    return digest([settings, inputs, {name: source_hash(name) for name in modules}, sources.libraries()])


def stage(path, stage_key, compute, *, recompute="changed"):
    """One table: read from the cache where its key is there, computed where not, and copied to `path`.

    Parameters
    ----------
    path : Path, the table's place under data/results.
    stage_key : str, from `key`.
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
    cached = CACHE / "tables" / f"{path.stem}-{stage_key}.parquet"  # settings that decide alike share it
    with lock(cached):
        if recompute == "always" or not whole(cached):
            write_table(cached, compute())
            seal(cached)
        table = read_table(cached)
        with new_file(path) as temporary:
            shutil.copyfile(cached, temporary)
    _written["tables"].append(shown(path))
    return table


def tensors(name, stage_key, compute, *, recompute="changed"):
    """Bulky tensors by key, never committed: read from the cache, or computed and kept there.

    Parameters
    ----------
    name : str, the folder under data/cache (the model's slug).
    compute : callable that returns a dict of contiguous tensors.

    Returns
    -------
    dict of str to torch.Tensor
    """
    from safetensors.torch import load_file, save_file  # torch is slow to load, and what only starts notebooks needs none

    path = CACHE / name / f"{stage_key}.safetensors"
    with lock(path):
        if recompute != "always" and whole(path):
            with contextlib.suppress(SafetensorError):
                return load_file(path)
        content = compute()
        with new_file(path) as temporary:
            save_file(content, temporary)
        seal(path)
    return content


@contextlib.contextmanager
def clock(what):
    """Add the seconds spent inside to the notebook's account of `what` ("forward", "ablation")."""
    start = time.perf_counter()
    try:
        yield
    finally:
        _seconds[what] = _seconds.get(what, 0.0) + time.perf_counter() - start


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
