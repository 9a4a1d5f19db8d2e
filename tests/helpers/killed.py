"""Work of every kind that `tables.stage` keeps, done by processes that are killed, or by several at once.

`python killed.py kill FOLDER` kills a process at every moment there is and lets another one do the work again;
`python killed.py race FOLDER` and `unlocked` let four do the same at once. One JSON line each says what was seen.
"""

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

import pandas as pd
import torch

from rare_token_neurons import files, keys
from rare_token_neurons.tables import stage

KEY = keys.key({"seed": 0}, {"weights": "aa"}, ["tables.stage"])


def tell(**seen):
    """One line to the output in one write: `print` may write its end by itself,
    and another process's line before that."""
    os.write(sys.stdout.fileno(), f"{json.dumps(seen)}\n".encode())


def work(root, at_compute=lambda: None):
    """Tensors, two tables of which the second needs the first, and a folder;
    a line in `trace` for each that it makes."""
    stage.CACHE = root / "cache"

    def made(name, result):
        at_compute()
        with (root / "trace").open("a") as file:
            file.write(f"{name}\n")
        return result

    def table(name, needs=()):
        content = pd.DataFrame({"neuron": range(5_000), "influence": [0.5 * row for row in range(5_000)]})
        path = root / "results" / f"{name}.parquet"
        return stage.table_at(path, KEY, lambda: made(name, content.assign(needed=len(needs))))

    kept = stage.tensors("model", KEY, lambda: made("tensors", {"activations": torch.arange(9_000.0)}))
    second = table("second", needs=table("first"))
    if not (root / "step0").exists():
        with files.new_folder(root / "step0") as folder:
            (folder / "weights").write_bytes(made("folder", b"w" * 9_000))
    return float(kept["activations"].sum() + second["influence"].sum() + second["needed"].sum())


def finished(root):
    """Names of what is finished, as a reader of the folder sees it."""
    cache = root / "cache"
    names = {"tensors": cache / "model" / f"{KEY}.safetensors.sha256", "folder": root / "step0"}
    names |= {name: cache / "tables" / f"{name}-{KEY}.parquet.sha256" for name in ("first", "second")}
    return {name for name, path in names.items() if path.exists()}


def child(root, kind=None, moment=0):
    """Do the work in a process of its own, which dies at a moment of a kind; returns its exit status."""
    if (pid := os.fork()) == 0:
        seen, replace = {"compute": 0, "half": 0, "renamed": 0}, os.replace

        def die(now):
            if now == kind and seen[now] == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            seen[now] += 1

        def killed_replace(source, target):
            if kind == "half" and seen["half"] == moment and os.path.isfile(source):
                os.truncate(source, os.path.getsize(source) // 2)
            die("half")
            replace(source, target)
            die("renamed")

        files.os.replace = killed_replace
        try:
            work(root, lambda: die("compute"))
        except BaseException as error:
            tell(error=repr(error))
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def content(root):
    """What a reader finds: bytes of every file that is neither a leftover nor the trace."""
    found = {str(path.relative_to(root)): path for path in sorted(root.rglob("*"))
             if path.is_file() and path.name != "trace"}
    return {name: path.read_bytes().hex() for name, path in found.items() if "/." not in f"/{name}"}


def trace(root):
    return (root / "trace").read_text().split() if (root / "trace").exists() else []


def kill(folder):
    assert child(folder / "whole") == 0
    expected = content(folder / "whole")
    for kind in ("compute", "half", "renamed"):
        for moment in range(99):
            root = folder / f"{kind}{moment}"
            root.mkdir()
            died = child(root, kind, moment)
            if died == 0:
                break
            before, there = trace(root), finished(root)
            again, twice = child(root), (child(root), trace(root))[1]
            tell(kind=kind, moment=moment, died=died, again=again, equal=content(root) == expected,
                 repeated=sorted(set(twice[len(before):]) & there), made=len(twice) - len(before), open=4 - len(there))


def race(folder):
    (folder / "one").mkdir()
    for _ in range(4):
        if os.fork() == 0:
            result = work(folder / "one", lambda: time.sleep(0.3))
            tell(result=result)
            os._exit(0)
    codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(4)]
    child(folder / "whole")
    tell(codes=codes, equal=content(folder / "one") == content(folder / "whole"), trace=trace(folder / "one"))


def refuse(handle, how):
    raise OSError(37, "No locks available")


if __name__ == "__main__":
    (Path(sys.argv[2]) / "whole").mkdir()
    if sys.argv[1] == "unlocked":
        fcntl.flock = refuse
    (kill if sys.argv[1] == "kill" else race)(Path(sys.argv[2]))
