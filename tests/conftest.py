"""Small random models whose final layer matters: norm gains and biases away from 1 and 0, losses that ablation moves."""

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from rare_token_neurons.checkpoints import dissect

VOCABULARY, WIDTH, NEURONS, LENGTH = 97, 32, 48, 16


def _neox(parallel):
    return GPTNeoXForCausalLM(GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=NEURONS,
        max_position_embeddings=LENGTH, use_parallel_residual=parallel, attn_implementation="eager"))


def _llama(tied=True):
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=NEURONS, max_position_embeddings=LENGTH, tie_word_embeddings=tied, attn_implementation="eager"))


BUILDERS = {"neox-parallel": lambda: _neox(True), "neox-sequential": lambda: _neox(False), "llama-tied": _llama}


def tiny_subject(kind, dtype=torch.float32, seed=0, strength=8.0, device="cpu"):
    """A tiny model, taken apart. The same seed gives the same weights in every dtype.

    strength : how far the weights are above transformers' initialisation; 8 moves losses by 0.01 to 1 nat.
    """
    torch.manual_seed(seed)
    model = BUILDERS[kind]()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(0.3 * torch.randn_like(weight))
            elif weight.ndim == 2:
                weight.mul_(strength)
            else:
                weight.add_(0.1 * torch.randn_like(weight))
    subject = dissect(model.to(device, dtype))
    subject.unigram_counts = torch.randint(0, 1000, (VOCABULARY,)).double().to(device)
    return subject


@pytest.fixture
def tiny():
    """The builder of tiny subjects."""
    return tiny_subject


@pytest.fixture
def tokens():
    """int64 (6, 16)"""
    return torch.randint(0, VOCABULARY, (6, LENGTH), generator=torch.Generator().manual_seed(1))
