"""Brute force: hooks on the whole model, a copy of the text a neuron, for the tests of the ablation arithmetic."""

from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.olmo.modeling_olmo import OlmoLayerNorm

from rare_token_neurons.ablation.capture import capture, references
from rare_token_neurons.ablation.readout import unigram_direction


@contextmanager
def exact_norms(model):
    """RMS norms, and OLMo's norms without weights, that keep the dtype: transformers computes them in float32."""
    def rms(x, gain, eps):
        return gain * (x / (x.square().mean(-1, keepdim=True) + eps).sqrt())

    plain = [module for module in model.modules() if isinstance(module, OlmoLayerNorm)]
    scaled = [module for module in model.modules() if hasattr(module, "variance_epsilon")]
    gemma = [module for module in model.modules() if isinstance(module, Gemma3RMSNorm)]
    for norm in plain:
        norm.forward = lambda x: torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-5)
    for norm in scaled:
        norm.forward = partial(rms, gain=norm.weight, eps=norm.variance_epsilon)
    for norm in gemma:
        norm.forward = partial(rms, gain=1 + norm.weight, eps=norm.eps)
    try:
        yield
    finally:
        for norm in plain + scaled + gemma:
            del norm.forward


def _logits(subject, tokens, ablate=None, scale_of=None):
    """Logits (blocks, length, vocabulary), with a hook on the neurons' activations, or a frozen norm scale."""
    def keep_scale(module, inputs, output):
        x, base = (part - part.mean(-1, keepdim=True) if subject.norm == "layer" else part
                   for part in (inputs[0], scale_of))
        output = subject.norm_gain * x / (base.square().mean(-1, keepdim=True) + subject.norm_eps).sqrt()
        return output if subject.norm_bias is None else output + subject.norm_bias

    with ExitStack() as hooks, torch.no_grad():
        if ablate is not None:
            hooks.enter_context(subject.mlp_out.register_forward_pre_hook(ablate))
        if scale_of is not None:
            hooks.enter_context(subject.final_norm.register_forward_hook(keep_scale))
        return subject.model(tokens).logits


def _final_residual(subject, tokens):
    kept = []
    with subject.final_norm.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0])), torch.no_grad():
        subject.model(tokens)
    return kept[0]


def hooked_changes(subject, tokens, positions, ablation="mean", freeze=None, seed=0, first=3, documents=None):
    """Changes of loss, entropy and unigram projection, each (n, neurons), by a whole forward pass of a copy each."""
    with exact_norms(subject.model):
        kept = capture(subject, tokens, first=first, documents=documents)
        every, (block, t) = torch.arange(subject.n_neurons, device=tokens.device), positions.T[..., None]
        new = references(kept, positions, every, ablation, seed).to(subject.dtype)
        copies, rows = tokens.repeat(len(every), 1), block + every * len(tokens)  # (n, neurons)

        def ablate(module, inputs):
            activations = inputs[0].clone()
            activations[rows, t, every] = new
            return (activations,)

        scale_of = _final_residual(subject, copies) if freeze == "scale" else None
        direction = None if subject.unigram_counts is None else unigram_direction(subject.unigram_counts)
        base, logits = _logits(subject, tokens)[block, t], _logits(subject, copies, ablate, scale_of)[rows, t]
        if freeze == "unigram":
            logits = logits - ((logits - base) @ direction)[..., None] * direction
        return _measures(logits, base, tokens[block, t + 1].expand_as(rows), direction)


def _measures(logits, base, targets, direction):
    after, before = logits.log_softmax(-1), base.log_softmax(-1)
    loss = (before - after).gather(-1, targets[..., None])[..., 0]
    entropy = (before.exp() * before).sum(-1) - (after.exp() * after).sum(-1)
    return loss, entropy, torch.zeros_like(loss) if direction is None else (logits - base) @ direction


def captured_changes(subject, kept, positions, neurons, ablation="mean", seed=0):
    """Loss changes and max |g|, each (n, m), by definition and in float64, from a capture: move x,
    norm and unembed it."""
    block, t = positions.unbind(1)
    now = kept.activations[block, t - kept.first][:, neurons].double()
    delta = references(kept, positions, neurons, ablation, seed) - now
    y = kept.tokens[block, t + 1][:, None]
    unembedding = subject.unembedding.double().T

    def logits(x):
        if subject.norm == "layer":
            x = x - x.mean(-1, keepdim=True)
        x = subject.norm_gain.double() * x / (x.square().mean(-1, keepdim=True) + subject.norm_eps).sqrt()
        out = (x if subject.norm_bias is None else x + subject.norm_bias.double()) @ unembedding
        return out if subject.unembedding_bias is None else out + subject.unembedding_bias.double()

    before, changes, largest = logits(kept.residual[block, t - kept.first].double()), [], []
    for column, neuron in enumerate(neurons):
        after = logits(moved(subject, kept, positions, neuron, delta[:, column]))
        g = (after - before) - (after - before).gather(1, y)
        changes.append((before.log_softmax(1) - after.log_softmax(1)).gather(1, y)[:, 0])
        largest.append(g.abs().amax(1))
    return torch.stack(changes, 1), torch.stack(largest, 1)


def moved(subject, kept, positions, neuron, delta):
    """The final residual stream of a capture, (n, d) in float64, with a neuron's activation changed by delta (n,)."""
    block, t = positions.unbind(1)
    x, change = kept.residual[block, t - kept.first].double(), delta[:, None] * subject.w_out[:, neuron].double()
    if subject.mlp_norm_gain is None:
        return x + change
    m = kept.activations[block, t - kept.first].double() @ subject.w_out.double().T
    before, after = (part / (part.square().mean(-1, keepdim=True) + subject.mlp_norm_eps).sqrt()
                     for part in (m, m + change))
    return x + subject.mlp_norm_gain.double() * (after - before)
