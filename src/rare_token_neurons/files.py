"""Files that are whole or absent: written under another name and renamed, sealed with their hash, made by one process.

A process that is killed leaves `.new-*` (what it was writing) and `.lock-*` behind; `sweep` removes what is a day old.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout
from pyarrow import ArrowException
from safetensors import SafetensorError

from rare_token_neurons.paths import shown

FULL = (errno.ENOSPC, errno.EDQUOT)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
SAID = ("No space left on device", "unexpected pos", "file write failed")  # how safetensors and torch.save say so
DAY = 86_400.0  # seconds; no file takes as long to write


@contextlib.contextmanager
def _room_for(path):
    """A full disk is one sentence, whichever library meets it."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if getattr(error, "errno", None) in FULL or any(words in str(error) for words in SAID):
            raise OSError(errno.ENOSPC, f"No space left on the disk for {shown(path)}; what was finished is kept, and the "
                          "same command goes on when there is room") from None
        raise


@contextlib.contextmanager
def new_file(path):
    """Yield a temporary path beside `path`; on success it takes the name `path`, on failure it is removed.

    Raises
    ------
    OSError
        The disk is full; `path` is as it was.
    """
    path = Path(path)
    with _room_for(path):
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
        with _room_for(path):
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
def lock(path):
    """Hold the making of `path` alone: another process that wants it waits here, until this one has ended or died.

    Where the file system knows no locks, a sentence says that two processes may do the same work; all files are whole.
    """
    place = Path(path).with_name(f".lock-{Path(path).name}")
    place.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(place, fallback_to_soft=False)
    try:
        held.acquire(blocking=False)
    except Timeout:
        print(f"Another process is making {shown(path)}; this one waits for it.", file=sys.stderr, flush=True)
        held.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(f"No locks where {shown(path)} is made: another process may do the same work.", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        place.unlink(missing_ok=True)
        held.release()


def sweep(*folders):
    """Remove what killed processes left below the folders: temporary files, folders and locks of a day ago."""
    for folder in folders:
        for path in [*folder.rglob(".new-*"), *folder.rglob(".lock-*")]:
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > DAY:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def sha256(path):
    """Hash of a file's bytes; None where there is none."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError), Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(path):
    """Write the sha256 of a finished file beside it, so that damage is seen when it is read."""
    with new_file(f"{path}.sha256") as temporary:
        temporary.write_text(f"{sha256(path)}\n", "utf-8")


def whole(path):
    """Whether a sealed file is there and as it was written; a damaged one is named and removed."""
    beside = Path(f"{path}.sha256")
    if not (path.exists() and beside.exists()):
        return False
    if sha256(path).encode() == beside.read_bytes().strip():
        return True
    print(f"{shown(path)} is damaged and is made again.")
    path.unlink(missing_ok=True)
    return False


def write_json(path, content):
    """Write `content` as JSON with sorted keys."""
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", "utf-8")


def read_json(path):
    """The dict in a file of `write_json`; None where the file is not there or damaged."""
    try:
        content = json.loads(Path(path).read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_table(path, table):
    """Write a DataFrame as parquet, each page with its checksum; equal tables give equal bytes."""
    with new_file(path) as temporary:
        table.to_parquet(temporary, index=False, compression="zstd", write_page_checksum=True)


def read_table(path):
    """The DataFrame in a parquet file.

    Raises
    ------
    FileNotFoundError
        There is none.
    ValueError
        It is damaged.
    """
    try:
        return pd.read_parquet(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise
    except (ArrowException, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"The table {shown(path)} is damaged ({reason}); take it from git again (git checkout), or make it "
                         "again with recompute=changed.") from None
