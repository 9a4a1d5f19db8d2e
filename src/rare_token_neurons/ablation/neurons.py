"""What ablating each neuron of the final layer does to the prediction, from one forward pass.

The final layer writes straight into the final norm and the unembedding, so what follows from one forward pass is enough:
no neuron needs a pass of its own. The arithmetic is in `readout` and `cumulants`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rare_token_neurons.ablation.capture import checked_neurons, checked_positions, references
from rare_token_neurons.ablation.cumulants import PAIRS, Tolerance, expand, mean_rows, moments, settle
from rare_token_neurons.ablation.readout import VOCABULARY_CHUNK, full_precision, predict_at, readout_of, shifts

FREEZES = (None, "unigram", "scale")
# the error above which order 3 is not trusted; float64 falls back to exact sums nearly everywhere
TOLERANCE = {torch.float32: Tolerance(1e-6, 1e-3, 1e-5), torch.float64: Tolerance(1e-10, 0, 1e-10)}


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


@full_precision()
def losses(subject, capture, positions=None, *, memory_gb=2.0):
    """Losses of the unablated model.

    Returns
    -------
    (n,) nats; positions as for `loss_changes`
    """
    positions = checked_positions(subject, capture, positions, memory_gb)
    readout = readout_of(subject)
    bias = None if readout.bias is None else readout.bias.to(subject.dtype)
    step = max(1, int(memory_gb * 1e9 / subject.dtype.itemsize / 4 / subject.n_vocab))
    found = []
    for block, t in (part.unbind(1) for part in positions.split(step)):
        c = readout.centred(capture.residual[block, t - capture.first])
        scale = (c.square().mean(-1, keepdim=True) + readout.eps).rsqrt()
        logits = nn.functional.linear((scale * c * readout.gain).to(subject.dtype), readout.unembedding, bias)
        found.append(nn.functional.cross_entropy(logits, capture.tokens[block, t + 1], reduction="none"))
    return torch.cat(found)


@full_precision()
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
    In float32 the error is at most about max(1e-6, 1e-3 |change|) and 1e-5 + 1e-6 max |g|; float64 serves for the base
    logits and the norm's scale alone (`readout` says why). In float64 it is about 1e-10.

    Example
    -------
    >>> changes = rtn.loss_changes(subject, kept, kept.positions[:100])
    >>> changes.shape
    torch.Size([100, 1536])
    """
    positions, neurons = _checked(subject, capture, positions, neurons, ablation, freeze, memory_gb)
    result = torch.empty(len(positions), len(neurons), dtype=subject.dtype, device=subject.device)
    for rows, columns, changes, _ in _sweep(subject, capture, positions, neurons, ablation, freeze, seed, memory_gb):
        result[rows, columns] = changes.loss
    return result


@full_precision()
def influence(subject, capture, positions=None, documents=None, *, ablation="mean", freeze=None, seed=0, memory_gb=2.0,
              neurons=None, entropy=True):
    """`loss_changes`, reduced on the way: sums by document, and the changes of entropy and unigram projection.

    Parameters
    ----------
    positions, ablation, freeze, seed, memory_gb, neurons : as for `loss_changes`
    documents : int64 (n,) or None, each position's document (None: the capture's).
    entropy : bool, whether the entropy's change is wanted (a third as much work again for a model with biases).

    Returns
    -------
    Influence; without unigram counts its `unigram_sum` is None

    Raises
    ------
    ValueError
        As `loss_changes`; documents that do not match the positions; no positions.

    Example
    -------
    >>> found = rtn.influence(subject, kept, kept.positions[:100])
    >>> found.mean_abs.shape  # over the positions
    torch.Size([1536])
    """
    positions, neurons = _checked(subject, capture, positions, neurons, ablation, freeze, memory_gb)
    if not len(positions):
        raise ValueError("There are no positions to measure influence on.")
    documents = capture.documents[positions[:, 0]] if documents is None else torch.as_tensor(documents)
    if documents.shape != positions.shape[:1]:
        raise ValueError(f"documents must name one document a position, {len(positions)} in all, "
                         f"not {tuple(documents.shape)}.")
    names, index, n = documents.to(subject.device).unique(return_inverse=True, return_counts=True)
    sums = {name: torch.zeros(len(names), len(neurons), dtype=torch.float64, device=subject.device)
            for name in ("change_sum", "abs_sum", "entropy_sum", "unigram_sum")}
    flagged = 0
    for rows, columns, changes, unigram in _sweep(subject, capture, positions, neurons, ablation, freeze, seed, memory_gb,
                                                  entropy=entropy, unigram=True):
        parts = {"change_sum": changes.loss, "abs_sum": changes.loss.abs(), "entropy_sum": changes.entropy,
                 "unigram_sum": unigram}
        for name, values in parts.items():
            if values is None:
                sums[name] = None
            else:
                sums[name][:, columns] = sums[name][:, columns].index_add(0, index[rows], values.double())
        flagged += int(changes.flagged.sum())
    return Influence(names, n, **sums, fallback=flagged / (len(positions) * len(neurons)))


def _sweep(subject, capture, positions, neurons, ablation, freeze, seed, memory_gb, *, entropy=False, unigram=False):
    """Yield (rows, columns, Changes, unigram changes) for tiles of positions and neurons."""
    readout = readout_of(subject, freeze, unigram)
    step, width = _sizes(subject, len(neurons), memory_gb)
    for rows in _slices(len(positions), step):
        base = predict_at(readout, subject, capture, positions[rows], memory_gb)
        means = mean_rows(readout, base, entropy)
        for columns in _slices(len(neurons), width):
            some, (block, t) = neurons[columns], positions[rows].T
            activations = capture.activations[block[:, None], t[:, None] - capture.first, some]  # (n, m)
            delta = references(capture, positions[rows], some, ablation, seed) - activations.double()
            yield rows, columns, *_ablated(subject, readout, base, means, some, delta, freeze == "scale", entropy)
        del base, means  # before the next ones take as much memory


def _ablated(subject, readout, base, means, neurons, delta, frozen_scale, entropy):
    """Changes, and those of the unigram projection, of a tile."""
    w = subject.w_out[:, neurons]
    u = readout.outward(w)  # (d, m)
    moved, shifted = moments(readout, base, means, u, entropy), shifts(base, w, u, delta, frozen_scale)
    changes = expand(base, moved, shifted, TOLERANCE[subject.dtype])
    settle(readout, base, u, shifted, moved, changes)
    return changes, _unigram(readout, base, u, shifted)


def _unigram(readout, base, u, shifted):
    """(n, m) change of the logits' projection on the unigram direction."""
    if readout.along is None or readout.frozen:
        return None if readout.along is None else torch.zeros_like(shifted.rho)
    along = readout.along * readout.gain
    moved = shifted.rho * (base.scale * (base.residual @ along))[:, None] + shifted.tau * (along @ u)
    if base.written is not None:
        moved += shifted.sigma * (base.scale * (base.written.stream @ along))[:, None]
    return moved


def _slices(length, step):
    """Slices of at most `step` and nearly equal length."""
    step = -(-length // -(-length // step)) if length else 1
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _sizes(subject, n_neurons, memory_gb):
    """Positions and neurons in a tile that keep to the memory.

    Counted in numbers of the subject's dtype: a neuron holds its row over the vocabulary; a position f and log p, its
    weights in a chunk of the vocabulary, 5 mean rows and about 26 arrays over the tile's neurons; elementwise work needs
    25 more, for PAIRS at a time. Where a norm follows the MLP, a position holds G too, 4 more weights and mean rows, the
    MLP's activations, output and what it writes, and about 14 arrays more.
    """
    normed = subject.mlp_norm_gain is not None
    numbers = memory_gb * 1e9 / subject.dtype.itemsize
    a_neuron = subject.n_vocab + 2 * VOCABULARY_CHUNK + 5 * subject.d_model
    width = max(1, int(min(n_neurons, 2048, numbers / 4 / a_neuron)))
    a_position = 2 * subject.n_vocab + 5 * VOCABULARY_CHUNK + 5 * subject.d_model + 26 * width
    if normed:
        a_position += subject.n_vocab + 4 * VOCABULARY_CHUNK + 8 * subject.d_model + 3 * subject.n_neurons + 14 * width
    work = 35 if normed else 25
    few = min(0.75 * numbers / (a_position + work * width), PAIRS / width)
    step = max(1, few, (0.75 * numbers - work * PAIRS) / a_position)
    return int(step), width


def _checked(subject, capture, positions, neurons, ablation, freeze, memory_gb):
    if freeze not in FREEZES:
        raise ValueError(f"There is no freeze {freeze!r}; known are {', '.join(map(str, FREEZES))}.")
    if freeze == "unigram" and subject.unigram_counts is None:
        raise ValueError("freeze='unigram' needs the subject's unigram counts, and it has none.")
    return (checked_positions(subject, capture, positions, memory_gb, ablation=ablation),
            checked_neurons(subject, neurons))


# ---- distance from the unigram distribution


@full_precision()
def divergences(subject, capture, positions, entropy, exact, *, ablation="mean", seed=0, memory_gb=2.0):
    """Change of KL(model || unigram) when one neuron is ablated.

    KL(p || u) = -H(p) - E_p log u, with u the unigram distribution (every count raised by one). A value above 0 says that
    the ablated model lies further from the unigram distribution: the neuron kept it near. The entropy's part is the
    kernel's; that of E_p log u is expanded to the second order in the change of the logits, and exact for the neurons in
    `exact`.

    Parameters
    ----------
    subject : Subject with unigram counts ; capture, positions, ablation, seed, memory_gb : as for `loss_changes`.
    entropy : (neurons,) mean change of the entropy there (`Influence.entropy_sum`).
    exact : int64 (k,) neurons whose change is summed over the whole vocabulary.

    Returns
    -------
    (neurons,) nats, mean over the positions
    """
    readout, neurons = readout_of(subject), torch.arange(subject.n_neurons, device=subject.device)
    unigram = (subject.unigram_counts.double() + 1).log()
    unigram = (unigram - torch.logsumexp(unigram, 0)).to(subject.dtype)
    u, along = readout.outward(subject.w_out), torch.zeros(subject.n_neurons, dtype=torch.float64, device=subject.device)
    for rows in positions.split(max(1, int(memory_gb * 1e9 / 16 / subject.dtype.itemsize / subject.n_vocab))):
        base = predict_at(readout, subject, capture, rows, memory_gb / 2)
        block, t = rows.unbind(1)
        active = capture.activations[block, t - capture.first].double()
        delta = references(capture, rows, neurons, ablation, seed) - active
        shifted = shifts(base, subject.w_out, u, delta).map(lambda part: part.to(subject.dtype))
        changes = _expanded(readout, base, u, shifted, unigram)
        for neuron in torch.as_tensor(exact).tolist():
            own = shifted.map(lambda part: part[:, neuron])
            changes[:, neuron] = _summed(readout, base, u[:, [neuron]], own, unigram)
        along += changes.sum(0, dtype=torch.float64)
    return -entropy - along / len(positions)


def _expanded(readout, base, u, shifted, unigram):
    """(n, neurons) change of E_p log u, to the second order in rho f + sigma G + tau B."""
    (rho, tau, sigma), written = shifted, base.written
    p, directions = base.log_p.exp(), readout.directions(u).T  # (n, vocabulary), (neurons, d)
    w = p * (unigram - (p @ unigram)[:, None])
    first, mean, mixed, mixed_g, square = (torch.zeros_like(rho) for _ in range(5))
    for part in readout.parts():
        b = readout.rows(part, base.centre) @ directions.T  # (vocabulary, neurons)
        first += w[:, part] @ b
        mean += p[:, part] @ b
        mixed += (w * base.f)[:, part] @ b
        if written is not None:
            mixed_g += (w * written.g)[:, part] @ b
        square += w[:, part] @ b.square_()
    wf, wff = (w * base.f).sum(1, keepdim=True), (w * base.f.square()).sum(1, keepdim=True)
    linear = rho * wf + tau * first
    quadratic = rho**2 * wff + 2 * rho * tau * mixed + tau**2 * square
    if written is not None:
        wg, wfg, wgg = ((w * written.g * factor).sum(1, keepdim=True) for factor in (1, base.f, written.g))
        linear += sigma * wg
        quadratic += sigma * (sigma * wgg + 2 * rho * wfg + 2 * tau * mixed_g)
    return linear + 0.5 * quadratic - tau * mean * linear


def _summed(readout, base, u, shifted, unigram):
    """(n,) the same for one neuron, by the sum over the vocabulary."""
    b = readout.project(readout.directions(u).T, base.centre)  # (1, vocabulary)
    logs = torch.addcmul(base.log_p, shifted.tau[:, None], b).addcmul_(shifted.rho[:, None], base.f)
    if base.written is not None:
        logs.addcmul_(shifted.sigma[:, None], base.written.g)
    return logs.softmax(1) @ unigram - base.log_p.exp() @ unigram
