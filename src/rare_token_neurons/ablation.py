"""What ablating each neuron of the final layer does to the prediction, from one forward pass.

`capture` runs a model once and keeps the final layer's activations and the final residual stream. Everything else
follows from them: the final layer writes straight into the final norm and the unembedding, so no neuron needs a
forward pass of its own. The arithmetic is in `predictions`, `cumulants` and `exact`; it is exact up to rounding.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rare_token_neurons.cumulants import PAIRS, expand, moments
from rare_token_neurons.exact import settle
from rare_token_neurons.predictions import VOCABULARY_CHUNK, Readout, predict, shifts, unigram_direction

ABLATIONS = ("mean", "zero", "resample")
FREEZES = (None, "unigram", "scale")
# (absolute, relative) error of a change above which order 3 is not trusted
TOLERANCE = {torch.float32: (1e-6, 1e-3), torch.float64: (1e-10, 0.0)}


@dataclass
class Capture:
    """One forward pass. Scored position t = first + j of a block sits at index j; scored = length - 1 - first."""

    tokens: Tensor  # int64 (blocks, length)
    first: int
    documents: Tensor  # int64 (blocks,)
    activations: Tensor  # (blocks, scored, neurons)
    residual: Tensor  # (blocks, scored, d), before the final norm

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


@dataclass
class Influence:
    """Effects of each neuron, summed by document; changes in nats (unigram: in logits)."""

    documents: Tensor  # int64 (k,), sorted
    n: Tensor  # int64 (k,), positions a document
    change_sum: Tensor  # (k, neurons), loss changes
    abs_sum: Tensor  # (k, neurons), their absolute values
    entropy_sum: Tensor | None  # (k, neurons), changes of the output's entropy
    unigram_sum: Tensor | None  # (k, neurons), changes of the logits' projection on the unigram direction
    fallback: float  # share of (position, neuron) pairs taken exactly

    @property
    def mean_abs(self):
        """(neurons,) mean |change|: the influence."""
        return self.abs_sum.sum(0) / self.n.sum()

    @property
    def mean(self):
        """(neurons,) mean change."""
        return self.change_sum.sum(0) / self.n.sum()

    @property
    def sem(self):
        """(neurons,) standard error of `mean_abs`, documents as the unit (NaN for a single one)."""
        k = len(self.n)
        excess = self.abs_sum - self.n[:, None] * self.mean_abs
        return (excess.square().sum(0) * (k / (k - 1) if k > 1 else torch.nan)).sqrt() / self.n.sum()


@contextmanager
def _full_precision():
    """No gradients, no TF32 or bfloat16 in float32 products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@_full_precision()
def capture(subject, tokens, *, first=3, documents=None, batch=8):
    """Run the model once and keep what ablation needs.

    Parameters
    ----------
    subject : Subject
    tokens : int64 (blocks, length)
    first : int, the first scored position of a block; the last one is length - 2, which predicts the last token.
    documents : int64 (blocks,) or None, each block's document (None: every block is its own).
    batch : int, blocks in one forward pass.

    Returns
    -------
    Capture

    Raises
    ------
    ValueError
        Tokens of the wrong shape or outside the vocabulary, blocks too short, activations that are not finite.
    """
    if tokens.ndim != 2 or not len(tokens) or tokens.dtype != torch.int64:
        raise ValueError(f"tokens must be int64 of shape (blocks, length), not {tokens.dtype} {tuple(tokens.shape)}.")
    if not 0 <= first < tokens.shape[1] - 1:
        raise ValueError(f"Blocks of {tokens.shape[1]} tokens have no scored position from {first} on.")
    tokens = tokens.to(subject.device)
    if tokens.min() < 0 or tokens.max() >= subject.n_vocab:
        raise ValueError(f"Tokens must be between 0 and {subject.n_vocab - 1}.")
    documents = torch.arange(len(tokens)) if documents is None else torch.as_tensor(documents)
    if documents.shape != tokens.shape[:1]:
        raise ValueError(f"documents must name one document a block, {len(tokens)} in all, not {tuple(documents.shape)}.")
    kept = {subject.mlp_out: [], subject.final_norm: []}
    hooks = [module.register_forward_pre_hook(lambda module, inputs: kept[module].append(inputs[0][:, first:-1].clone()))
             for module in kept]
    try:
        for part in tokens.split(batch):
            subject.model.base_model(part, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    activations, residual = (torch.cat(parts) for parts in kept.values())
    for name, values in (("activations", activations), ("residual stream", residual)):
        if not torch.isfinite(values).all():
            raise ValueError(f"The {name} of {subject.model_id or 'the model'} holds values that are not finite.")
    return Capture(tokens, first, documents.to(tokens.device), activations, residual)


@_full_precision()
def losses(subject, capture, positions=None, *, memory_gb=2.0):
    """Losses of the unablated model.

    Returns
    -------
    (n,) nats; positions as for `loss_changes`
    """
    positions = _checked(subject, capture, positions, "mean", None)
    readout = _readout(subject, None)
    step, *_ = _sizes(subject, 1, memory_gb)
    return torch.cat([_predict(readout, capture, part, memory_gb).loss for part in positions.split(step)])


@_full_precision()
def loss_changes(subject, capture, positions=None, *, ablation="mean", freeze=None, seed=0, memory_gb=2.0, neurons=None):
    """Change of the loss when one neuron is ablated at one position, for all neurons and positions.

    Parameters
    ----------
    subject : Subject
    capture : Capture of the same subject.
    positions : int64 (n, 2) rows (block, t), t the token READ and t + 1 the target; None: every scored position.
    ablation : "mean" (the neuron's mean activation over all scored positions of the capture), "zero", or "resample"
        (its activation at a scored position of another document, drawn for each position and neuron).
    freeze : None, "unigram" (the logits' component along the centred log-unigram direction stays), or "scale" (the
        final norm's scale stays).
    seed : int, of the resampling; a draw depends on it, the position and the neuron alone.
    memory_gb : float, bound on the working memory, results and capture apart.
    neurons : int64 (m,) or None, the neurons to ablate (None: all).

    Returns
    -------
    (n, m) nats, in the subject's dtype

    Raises
    ------
    ValueError
        Positions out of range or not scored, unknown ablation or freeze, freeze="unigram" without counts, resampling
        from a single document, activations that are not finite.

    Notes
    -----
    In float32 the error is at most about max(1e-6, 1e-3 |change|), 1e-5 + 1e-6 max |g| on badly scaled models; float64
    serves for the base logits and the norm's scale alone (`predictions` says why). In float64 it is about 1e-10.
    """
    positions = _checked(subject, capture, positions, ablation, freeze)
    neurons = _neurons(subject, neurons)
    result = torch.empty(len(positions), len(neurons), dtype=subject.dtype, device=subject.device)
    for rows, columns, changes, _ in _sweep(subject, capture, positions, neurons, ablation, freeze, seed, memory_gb, False):
        result[rows, columns] = changes.loss
    return result


@_full_precision()
def influence(subject, capture, positions=None, documents=None, *, ablation="mean", freeze=None, seed=0, memory_gb=2.0,
              neurons=None, entropy=True):
    """`loss_changes`, reduced on the way: sums by document, and the changes of entropy and unigram projection.

    Parameters
    ----------
    positions, ablation, freeze, seed, memory_gb, neurons : as for `loss_changes`
    documents : int64 (n,) or None, each position's document (None: the capture's).
    entropy : bool, whether the entropy's change is wanted (half as much work again for a model with biases).

    Returns
    -------
    Influence; without unigram counts its `unigram_sum` is None

    Raises
    ------
    ValueError
        As `loss_changes`; documents that do not match the positions; no positions.
    """
    positions = _checked(subject, capture, positions, ablation, freeze)
    neurons = _neurons(subject, neurons)
    if not len(positions):
        raise ValueError("There are no positions to measure influence on.")
    documents = capture.documents[positions[:, 0]] if documents is None else torch.as_tensor(documents)
    if documents.shape != positions.shape[:1]:
        raise ValueError(f"documents must name one document a position, {len(positions)} in all, not {tuple(documents.shape)}.")
    names, index, n = documents.to(subject.device).unique(return_inverse=True, return_counts=True)
    sums = {name: torch.zeros(len(names), len(neurons), dtype=torch.float64, device=subject.device)
            for name in ("change_sum", "abs_sum", "entropy_sum", "unigram_sum")}
    flagged = 0
    for rows, columns, changes, unigram in _sweep(subject, capture, positions, neurons, ablation, freeze, seed, memory_gb,
                                                  entropy):
        parts = {"change_sum": changes.loss, "abs_sum": changes.loss.abs(), "entropy_sum": changes.entropy,
                 "unigram_sum": unigram}
        for name, values in parts.items():
            if values is None:
                sums[name] = None
            else:
                sums[name][:, columns] = sums[name][:, columns].index_add(0, index[rows], values.double())
        flagged += int(changes.flagged.sum())
    return Influence(names, n, **sums, fallback=flagged / (len(positions) * len(neurons)))


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


GOLDEN = 0x9E3779B97F4A7C15


def _signed(value):
    return (value + 2**63) % 2**64 - 2**63


def _mixed(bits):
    """splitmix64's finaliser (Steele, Lea and Flood 2014), on int64 tensors."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> shift & 2**(64 - shift) - 1)) * _signed(factor)
    return bits ^ (bits >> 31 & 2**33 - 1)


def _sweep(subject, capture, positions, neurons, ablation, freeze, seed, memory_gb, entropy):
    """Yield (rows, columns, Changes, unigram changes) for tiles of positions and neurons."""
    readout = _readout(subject, freeze, unigram=entropy)
    step, width, group = _sizes(subject, len(neurons), memory_gb)
    for rows in _slices(len(positions), step):
        base = _predict(readout, capture, positions[rows], memory_gb)
        for columns in _slices(len(neurons), width):
            some, where = neurons[columns], positions[rows]
            activations = capture.activations[where[:, 0], where[:, 1] - capture.first][:, some]
            delta = references(capture, where, some, ablation, seed) - activations.double()
            u = readout.centred(subject.w_out[:, some].T).T  # (d, m)
            directions = (readout.gain.double()[:, None] * u).to(subject.dtype)
            rho, tau = (shift.to(subject.dtype) for shift in shifts(base, u, delta, freeze == "scale"))
            b_target = readout.rows(base.targets, base.centre) @ directions
            sums = moments(readout, base, directions, entropy)
            changes = expand(base, sums, rho, tau, b_target, *TOLERANCE[subject.dtype])
            settle(readout, base, directions, rho, tau, changes, group)
            yield rows, columns, changes, _unigram(readout, base, u, rho, tau)


def _unigram(readout, base, u, rho, tau):
    """(n, m) change of the logits' projection on the unigram direction."""
    if readout.along is None or readout.frozen:
        return None if readout.along is None else torch.zeros_like(rho)
    along = readout.along * readout.gain
    return rho * (base.scale * (base.residual @ along))[:, None] + tau * (along @ u)


def _slices(length, step):
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _sizes(subject, n_neurons, memory_gb):
    """Positions and neurons in a tile, and neurons in a group of exact sums, that keep to the memory."""
    numbers = memory_gb * 1e9 / subject.dtype.itemsize
    width = min(n_neurons, 2048, numbers / 4 / (2 * VOCABULARY_CHUNK + 5 * subject.d_model))
    step = (0.75 * numbers - 25 * PAIRS) / (2 * subject.n_vocab + 5 * VOCABULARY_CHUNK + 26 * width)
    return max(1, int(step)), max(1, int(width)), min(256, max(1, int(numbers / 8 / subject.n_vocab)))


def _predict(readout, capture, positions, memory_gb):
    block, t = positions.unbind(1)
    residual = capture.residual[block, t - capture.first]
    step = int(memory_gb * 1e9 / residual.dtype.itemsize / 48 / len(readout.unembedding))
    return predict(readout, residual, capture.tokens[block, t + 1], max(1, step))


def _readout(subject, freeze, unigram=False):
    bias = subject.unembedding_bias
    if subject.norm_bias is not None:
        beta = subject.norm_bias.double()
        through = torch.cat([rows.double() @ beta for rows in subject.unembedding.split(VOCABULARY_CHUNK)])
        bias = through if bias is None else through + bias
    wanted = subject.unigram_counts is not None and (unigram or freeze == "unigram")
    return Readout(subject.unembedding, bias if bias is not None and bias.any() else None, subject.norm_gain,
                   subject.norm_eps, centring=subject.norm == "layer", frozen=freeze == "unigram",
                   direction=unigram_direction(subject.unigram_counts).to(subject.dtype) if wanted else None)


def _neurons(subject, neurons):
    if neurons is None:
        return torch.arange(subject.n_neurons, device=subject.device)
    neurons = torch.as_tensor(neurons, device=subject.device)
    if neurons.ndim != 1 or neurons.is_floating_point() or not ((neurons >= 0) & (neurons < subject.n_neurons)).all():
        raise ValueError(f"neurons must be whole numbers between 0 and {subject.n_neurons - 1}, in one dimension.")
    return neurons


def _checked(subject, capture, positions, ablation, freeze):
    """The positions on the capture's device, after all checks of the arguments."""
    if ablation not in ABLATIONS:
        raise ValueError(f"There is no ablation {ablation!r}; known are {', '.join(ABLATIONS)}.")
    if freeze not in FREEZES:
        raise ValueError(f"There is no freeze {freeze!r}; known are {', '.join(map(str, FREEZES))}.")
    if freeze == "unigram" and subject.unigram_counts is None:
        raise ValueError("freeze='unigram' needs the subject's unigram counts, and it has none.")
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
    return positions
