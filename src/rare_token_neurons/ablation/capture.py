"""One forward pass, and what it leaves behind for ablation: the final layer's activations and residual stream.

Also what every measurement on a capture shares: its checks, and the activations that replace the real ones.
"""

import os
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.pool import ThreadPool

import torch
from torch import Tensor

from rare_token_neurons.ablation.readout import full_precision

ABLATIONS = ("mean", "zero", "resample")
PASSES = 2  # at once on one thread each where cores are idle: what a block holds stays in the processor's cache
BATCH = 8  # blocks in one pass on an accelerator; on the processor as many as torch has threads


@dataclass
class Capture:
    """One forward pass. Scored position t = first + j of a block sits at index j; scored = length - 1 - first."""

    tokens: Tensor  # int64 (blocks, length)
    first: int
    documents: Tensor  # int64 (blocks,)
    activations: Tensor  # (blocks, scored, neurons)
    residual: Tensor  # (blocks, scored, d), before the final norm
    entering: Tensor  # (blocks, scored, d), what the final layer's MLP reads

    @property
    def scored(self):
        """Scored positions a block."""
        return self.activations.shape[1]

    @cached_property
    def means(self):
        """(neurons,) float64, mean activation over all scored positions."""
        return self.activations.mean((0, 1), dtype=torch.float64)

    @property
    def positions(self):
        """int64 (blocks x scored, 2), every scored position as (block, t)."""
        block = torch.arange(len(self.tokens), device=self.tokens.device).repeat_interleave(self.scored)
        t = torch.arange(self.first, self.first + self.scored, device=self.tokens.device).repeat(len(self.tokens))
        return torch.stack([block, t], 1)

    def only(self, positions):
        """The capture at some positions, int64 (n, 2), each a block of two tokens, read and predicted; the means stay."""
        block, t = positions.to(self.tokens.device).unbind(1)
        parts = (part[block, t - self.first, None] for part in (self.activations, self.residual, self.entering))
        made = Capture(torch.stack([self.tokens[block, t], self.tokens[block, t + 1]], 1), 0, self.documents[block], *parts)
        made.means = self.means
        return made


@full_precision()
def capture(subject, tokens, *, first=3, documents=None):
    """Run the model once and keep what ablation needs.

    Parameters
    ----------
    subject : Subject
    tokens : int64 (blocks, length)
    first : int, the first scored position of a block; the last one is length - 2, which predicts the last token.
    documents : int64 (blocks,) or None, each block's document (None: every block is its own).

    Returns
    -------
    Capture

    Raises
    ------
    ValueError
        Tokens of the wrong shape or outside the vocabulary, blocks too short or too long, activations that are not finite.

    Example
    -------
    >>> tokens = torch.randint(subject.n_vocab, (8, 64))
    >>> kept = rtn.capture(subject, tokens)
    >>> kept.positions.shape  # t = 3 .. 62 of each block
    torch.Size([480, 2])
    """
    if tokens.ndim != 2 or not len(tokens) or tokens.dtype != torch.int64:
        raise ValueError(f"tokens must be int64 of shape (blocks, length), not {tokens.dtype} {tuple(tokens.shape)}.")
    if not 0 <= first < tokens.shape[1] - 1:
        raise ValueError(f"Blocks of {tokens.shape[1]} tokens have no scored position from {first} on.")
    if subject.n_positions is not None and tokens.shape[1] > subject.n_positions:
        raise ValueError(f"Blocks of {tokens.shape[1]} tokens are too long for {subject.model_id or 'the model'}, which has "
                         f"embeddings for {subject.n_positions} positions.")
    tokens = tokens.to(subject.device)
    if tokens.min() < 0 or tokens.max() >= subject.n_vocab:
        raise ValueError(f"Tokens must be between 0 and {subject.n_vocab - 1}, the rows of the embedding of "
                         f"{subject.model_id or 'the model'}; they lie between {tokens.min()} and {tokens.max()}.")
    documents = torch.arange(len(tokens)) if documents is None else torch.as_tensor(documents)
    if documents.shape != tokens.shape[:1]:
        raise ValueError(f"documents must name one document a block, {len(tokens)} in all, not {tuple(documents.shape)}.")
    modules, running = (subject.mlp_out, subject.final_norm, next(iter(subject.mlp_in.values()))), threading.local()

    def keep(module, inputs):  # OPT's first projection reads flat blocks
        running.kept[module] = inputs[0].view(-1, tokens.shape[1], inputs[0].shape[-1])[:, first:-1].clone()

    def run(part):
        running.kept = {}
        subject.model.base_model(part, use_cache=False)
        return [running.kept[module] for module in modules]

    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_pre_hook(keep))
        blocks = torch.get_num_threads() if tokens.device.type == "cpu" else BATCH
        with ThreadPool(min(PASSES, os.cpu_count()) if blocks == 1 else 1) as pool:
            activations, residual, entering = map(torch.cat, zip(*pool.map(run, tokens.split(blocks), chunksize=1)))
    for name, values in (("activations", activations), ("residual stream", residual)):
        if not torch.isfinite(values).all():
            raise ValueError(f"The {name} of {subject.model_id or 'the model'} holds values that are not finite.")
    return Capture(tokens, first, documents.to(tokens.device), activations, residual, entering)


@full_precision()
def ingredients(subject, capture):
    """What the final layer's neurons are made of at every scored position of a capture.

    Returns
    -------
    dict of name to (n, neurons): "in", the pre-activation, or in a gated MLP "gate" and "up", each before the nonlinearity;
    and "activation"
    """
    made = {name: module(capture.entering.flatten(0, 1)) for name, module in subject.mlp_in.items()}
    return made | {"activation": capture.activations.flatten(0, 1)}


# ---- checks


def checked_positions(subject, capture, positions, memory_gb, *, ablation="mean"):
    """The positions, int64 (n, 2) on the capture's device (None: every scored one), after the checks of a measurement.

    Raises
    ------
    ValueError
        An unknown ablation, no memory, a capture of another model or with values that are not finite, resampling from
        a single document, positions of the wrong shape, out of range or not scored.
    """
    if ablation not in ABLATIONS:
        raise ValueError(f"There is no ablation {ablation!r}; known are {', '.join(ABLATIONS)}.")
    if not memory_gb > 0:
        raise ValueError(f"memory_gb must be above 0, not {memory_gb}.")
    if ablation == "resample" and len(capture.documents.unique()) < 2:
        raise ValueError("Resampling needs positions of at least two documents.")
    if capture.activations.shape[-1] != subject.n_neurons or capture.residual.shape[-1] != subject.d_model:
        raise ValueError("The capture is of another model: its shapes do not match the subject's.")
    if not (torch.isfinite(capture.means).all() and torch.isfinite(capture.residual).all()):
        raise ValueError("The capture holds values that are not finite.")
    if positions is None:
        return capture.positions
    positions = torch.as_tensor(positions, device=capture.tokens.device)
    if positions.ndim != 2 or positions.shape[1] != 2 or positions.is_floating_point():
        raise ValueError(f"positions must be whole numbers of shape (n, 2), not {positions.dtype} {tuple(positions.shape)}.")
    block, t = positions.unbind(1)
    if not ((block >= 0) & (block < len(capture.tokens))).all():
        raise ValueError(f"positions name blocks outside 0 to {len(capture.tokens) - 1}.")
    last = capture.first + capture.scored - 1
    if not ((t >= capture.first) & (t <= last)).all():
        raise ValueError(f"positions name tokens that are not scored: t must be between {capture.first} and {last}.")
    return positions.long()


def checked_neurons(subject, neurons):
    """The neurons, int64 (m,) on the subject's device (None: all).

    Raises
    ------
    ValueError
        Numbers out of range, not whole, or not in one dimension.
    """
    if neurons is None:
        return torch.arange(subject.n_neurons, device=subject.device)
    neurons = torch.as_tensor(neurons, device=subject.device)
    if neurons.ndim != 1 or neurons.is_floating_point() or not ((neurons >= 0) & (neurons < subject.n_neurons)).all():
        raise ValueError(f"neurons must be whole numbers between 0 and {subject.n_neurons - 1}, in one dimension.")
    return neurons


# ---- what replaces an activation

GOLDEN = 0x9E3779B97F4A7C15  # splitmix64's increment


def references(capture, positions, neurons, ablation, seed=0):
    """The activations that replace the real ones: (n, m), or (m,) where all positions share them.

    A resampled one is the neuron's activation at a scored position of another document; the draw hashes seed, position
    and neuron, so that it depends neither on the device nor on what else is measured.
    """
    if ablation == "zero":
        return torch.zeros_like(capture.means[neurons])
    if ablation == "mean":
        return capture.means[neurons]
    documents = capture.documents.repeat_interleave(capture.scored)
    order = documents.argsort(stable=True)
    own = documents[positions[:, 0] * capture.scored]
    start = torch.searchsorted(documents[order], own)[:, None]
    count = torch.searchsorted(documents[order], own, right=True)[:, None] - start
    key = _mixed(positions[:, 0] * capture.tokens.shape[1] + positions[:, 1] + _signed(seed * GOLDEN))
    draw = (_mixed(key[:, None] + neurons * _signed(GOLDEN)) & 2**63 - 1) % (len(order) - count)
    row = order[draw + count * (draw >= start)]
    return capture.activations.flatten(0, 1)[row, neurons].double()


def _signed(value):
    return (value + 2**63) % 2**64 - 2**63


def _mixed(bits):
    """splitmix64's finaliser (Steele, Lea and Flood 2014), on int64 tensors."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> shift & 2**(64 - shift) - 1)) * _signed(factor)
    return bits ^ (bits >> 31 & 2**33 - 1)
