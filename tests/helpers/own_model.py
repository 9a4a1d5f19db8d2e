"""A small checkpoint of one's own in a folder: what it is made of, and ways to damage it."""

import contextlib
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY, WIDTH, NEURONS, LAYERS = 40, 16, 48, 3


def network(kind="neox", seed=0):
    """A small model with every weight away from its initial value."""
    torch.manual_seed(seed)
    shape = dict(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2,
                 intermediate_size=NEURONS, max_position_embeddings=32, tie_word_embeddings=kind.endswith("tied"))
    if kind.startswith("neox"):
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**shape))
    else:
        model = LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=1))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def words(size=30):
    backend = Tokenizer(models.WordLevel({f"w{row}": row for row in range(size)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def edit(path, change):
    """Apply `change` to the tensors of a checkpoint's file."""
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def edit_config(path, **values):
    config = json.loads((path / "config.json").read_text())
    config.update(values)
    (path / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def panics(path):
    """A tokenizer.json at which the tokenizers library panics, which in Python is no Exception."""
    content = json.loads(words().backend_tokenizer.to_str())
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": ""}
    (path / "tokenizer.json").write_text(json.dumps(content))


class Bomb:
    """A pickle that leaves a file where it is opened."""

    def __reduce__(self):
        return os.system, ("touch owned",)


@contextlib.contextmanager
def refused(kind, words):
    """What is done inside raises an error of a kind, one sentence that matches the words."""
    with pytest.raises(kind, match=words) as error:
        yield
    assert "\n" not in str(error.value) and len(str(error.value)) < 400, error.value
