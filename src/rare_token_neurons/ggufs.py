"""GGUF files: dequantised once with transformers and kept as a float32 folder of safetensors, which later uses load."""

import json
from functools import lru_cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rare_token_neurons import store
from rare_token_neurons.paths import CACHE, shown

FOLDERS = CACHE / "gguf"


def folder(path):
    """The folder of a GGUF file's float32 safetensors and tokenizer, made at first use and known by the file's sha256.

    Raises
    ------
    FileNotFoundError, ValueError
        There is no such file; it is damaged, or of an architecture that transformers does not read from GGUF.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no GGUF file {path}.")
    stamp = path.stat()
    target = FOLDERS / _hash(path, stamp.st_size, stamp.st_mtime_ns)[:12]
    if not target.exists():
        with store.new_folder(target) as made:
            convert(path, made)
    return target


@lru_cache(maxsize=None)
def _hash(path, size, time):
    return store.sha256(path)


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
    except Exception as error:  # numpy, gguf, tokenizers and transformers raise what comes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"The GGUF file {shown(path)} cannot be read: {reason}") from None


def _drop_made_up_tokens(path, rows):
    """Without the <|endoftext|> that transformers adds to a byte-level vocabulary that has none (such as Llama 3's)."""
    content = json.loads(path.read_text())
    real = [token for token in content["added_tokens"] if token["id"] < rows]
    if len(real) < len(content["added_tokens"]):
        path.write_text(json.dumps(content | {"added_tokens": real}))


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
