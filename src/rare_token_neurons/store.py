"""Files that are whole or absent: atomic tables and tensors, content keys, stages, provenance.

A stage is one table. Its key hashes all that decides its content: settings, inputs (hashes of weights and text) and
the source of the modules that compute it. The cache holds it under that key; `data/results` holds the current copy.
"""

import contextlib
import fcntl
import hashlib
import importlib
import inspect
import json
import os
import re
import shutil
import tempfile
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError

from rare_token_neurons.paths import CACHE, RUNS, shown

PACKAGE = "rare_token_neurons"
_seconds = {}
_written = {"tables": [], "figures": []}


@contextlib.contextmanager
def new_file(path):
    """Yield a temporary path beside `path`; on success it takes the name `path`, on failure it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-", suffix=path.suffix)
    os.close(handle)
    try:
        yield Path(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_folder(path, *, replace=False):
    """Like `new_file`, for a folder; one that is there by then (another process was faster) is kept, or replaced."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=".new-"))
    leftovers = [temporary]
    try:
        yield temporary
        for made in (temporary, *temporary.rglob("*")):  # others on the machine may read it
            made.chmod(0o755 if made.is_dir() else 0o644)
        if replace and path.exists():
            os.replace(path, old := Path(tempfile.mkdtemp(dir=path.parent, prefix=".new-")))
            leftovers.append(old)
        with contextlib.suppress(OSError):
            os.replace(temporary, path)
        if not path.exists():
            raise OSError(f"{shown(path)} could not be written.")
    finally:
        for folder in leftovers:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def alone(path):
    """Make other processes that want to make `path` wait; the lock, `path`.lock, ends with the process that holds it."""
    lock = Path(f"{path}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        held = None
        while not _named(held, lock):  # the one before removes the file that this one waited for
            held = stack.enter_context(lock.open("a"))
            with contextlib.suppress(OSError):  # a file system without locks: files stay whole, work may be done twice
                fcntl.flock(held, fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _named(file, path):
    """Whether an open file is still what the path names."""
    try:
        return file is not None and os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def write_json(path, content):
    """Write `content` as JSON with sorted keys."""
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def write_table(path, table):
    """Write a DataFrame as parquet; equal tables give equal bytes."""
    with new_file(path) as temporary:
        table.to_parquet(temporary, index=False, compression="zstd")


def _seal(path):
    """Write the sha256 of a finished file beside it, so that damage is seen when it is read."""
    with Path(path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with new_file(f"{path}.sha256") as temporary:
        temporary.write_text(digest + "\n")


def _whole(path):
    """Whether a sealed file is there and as it was written; a damaged one is named and removed."""
    seal = Path(f"{path}.sha256")
    if not (path.exists() and seal.exists()):
        return False
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest().encode() == seal.read_bytes().strip():
            return True
    print(f"{shown(path)} is damaged and is made again.")
    path.unlink()
    return False


def digest(content):
    """16 hexadecimal digits of the sha256 of plain data (dicts, lists, numbers, strings)."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def array_hash(arrays):
    """Hash of the values of numpy arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@lru_cache(maxsize=None)
def source_hash(module):
    """Hash of the source of a module of this package and of all modules of the package that it imports."""
    seen, queue = {}, [module]
    while queue:
        name = queue.pop()
        if name not in seen:
            seen[name] = inspect.getsource(importlib.import_module(f"{PACKAGE}.{name}"))
            imports = re.findall(rf"^\s*from {PACKAGE} import (.+)$|^\s*from {PACKAGE}\.(\w+) import", seen[name], re.M)
            queue += [word.strip() for group in imports for part in group for word in part.split(",") if word.strip()]
    return digest(seen)


def key(settings, inputs, modules):
    """The content key of a stage.

    Parameters
    ----------
    settings : dict of the parameters that the stage reads.
    inputs : dict of hashes (weights, text, other stages' keys).
    modules : list of str, the package's modules whose source decides the content.
    """
    return digest([settings, inputs, {name: source_hash(name) for name in modules}])


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
    FileNotFoundError
        recompute="never" and the table is not there.
    """
    path = Path(path)
    if recompute == "never":
        if not path.exists():
            raise FileNotFoundError(f"There is no table {shown(path)} to draw; run with recompute=changed.")
        return pd.read_parquet(path)
    cached = CACHE / "tables" / path.parent.name / f"{path.stem}-{stage_key}.parquet"
    with alone(cached):
        if recompute == "always" or not _whole(cached):
            write_table(cached, compute())
            _seal(cached)
        with new_file(path) as temporary:
            shutil.copyfile(cached, temporary)
    _written["tables"].append(shown(path))
    return pd.read_parquet(path)


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
    with alone(path):
        if recompute != "always" and _whole(path):
            with contextlib.suppress(SafetensorError):
                return load_file(path)
        content = compute()
        with new_file(path) as temporary:
            save_file(content, temporary)
        _seal(path)
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
