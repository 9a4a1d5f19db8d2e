"""Small random models whose final layer matters: norm gains and biases away from 1 and 0,
losses that ablation moves."""

from functools import partial

import torch
from transformers import (AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, GPTNeoXConfig, GPTNeoXForCausalLM,
                          LlamaConfig, LlamaForCausalLM, MistralConfig, Olmo2Config, Olmo3Config, OlmoConfig, OPTConfig,
                          PhiConfig, Qwen2Config, Qwen3Config, SmolLM3Config)

from rare_token_neurons.models.subject import dissect

VOCABULARY, WIDTH, NEURONS, LENGTH = 97, 32, 48, 16


def _neox(parallel, vocabulary):
    return GPTNeoXForCausalLM(GPTNeoXConfig(
        vocab_size=vocabulary, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=NEURONS,
        max_position_embeddings=LENGTH, use_parallel_residual=parallel, attn_implementation="eager"))


def _llama(vocabulary):
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=vocabulary, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=NEURONS, max_position_embeddings=LENGTH, tie_word_embeddings=True,
        attn_implementation="eager"))


def _other(config, vocabulary, **settings):
    """A tiny model of another family, by the class of its configuration."""
    return AutoModelForCausalLM.from_config(config(vocab_size=vocabulary, **settings), attn_implementation="eager")


GPT2 = dict(n_embd=WIDTH, n_layer=2, n_head=4, n_inner=NEURONS, n_positions=LENGTH)
OPT = dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, ffn_dim=NEURONS,
           max_position_embeddings=LENGTH, word_embed_proj_dim=WIDTH)
LLAMA_LIKE = dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                  intermediate_size=NEURONS, max_position_embeddings=LENGTH)
UNPADDED = LLAMA_LIKE | {"pad_token_id": None}
MIXED = {"layer_types": ["sliding_attention", "full_attention"]}  # which turn keys and queries at different speeds
FAMILIES = {  # every family but those above, with a tied and an untied unembedding
    f"{name}{'-tied' if tied else ''}": partial(_other, config, **settings, tie_word_embeddings=tied)
    for name, config, settings in (
        ("gpt2", GPT2Config, GPT2), ("opt", OPTConfig, OPT), ("phi", PhiConfig, LLAMA_LIKE),
        ("mistral", MistralConfig, LLAMA_LIKE), ("qwen2", Qwen2Config, LLAMA_LIKE),
        ("qwen3", Qwen3Config, LLAMA_LIKE | {"head_dim": 12}), ("smollm3", SmolLM3Config, UNPADDED),
        ("olmo", OlmoConfig, UNPADDED), ("olmo2", Olmo2Config, UNPADDED), ("olmo3", Olmo3Config, UNPADDED | MIXED),
        ("gemma3", Gemma3TextConfig, UNPADDED | MIXED | {"head_dim": 12}))
    for tied in (False, True)}
BUILDERS = {"neox-parallel": partial(_neox, True), "neox-sequential": partial(_neox, False), "llama-tied": _llama}
# where the unembedding does not matter
ONE_EACH = (*BUILDERS, *(kind for kind in FAMILIES if not kind.endswith("-tied")))


def tiny_subject(kind, dtype=torch.float32, *, strength=8.0, vocabulary=VOCABULARY, device="cpu"):
    """A tiny model, taken apart: the same weights in every dtype and on every device.

    strength : how far the weights are above transformers' initialisation; at 8 one neuron moves a loss by about 0.01.
    """
    torch.manual_seed(0)
    model = (BUILDERS | FAMILIES)[kind](vocabulary)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or ".ln_" in name:
                weight.add_(0.3 * torch.randn_like(weight))
            elif weight.ndim == 2:
                weight.mul_(strength)
            else:
                weight.add_(0.1 * torch.randn_like(weight))
    counts = torch.randint(0, 1000, (vocabulary,)).double()
    subject = dissect(model.to(device, dtype))
    subject.unigram_counts = counts.to(device)
    return subject
