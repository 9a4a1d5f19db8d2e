"""Every neuron's effect on the prediction, from joint cumulants, with a bound on the error; where it is too large, exactly.

With g = rho (f - f_y) + tau (B_i - B_iy) (symbols: `readout`), y the target,

    loss change = log E_p exp(g) = E g + k2 / 2 + k3 / 6 + ...

where k2 and k3, the cumulants of h = rho f + tau B under p, are polynomials in rho and tau whose coefficients are joint
cumulants of f and B_i. Those linear in B need only mean rows of the unembedding, the same for all neurons; those in B^2
and B^3 are three products over the vocabulary for all neurons together. f and z are centred under p and B at its mean
over the positions, so that little cancels when raw moments become cumulants.

The error of stopping at order 3 is bounded by k2 times a function of the range of h over the vocabulary. With
r(x) = exp(x) - 1 - x - x^2/2 - x^3/6 = x^4/24 E exp(x T), T ~ Beta(1, 4), convexity gives r(x) <= x^4 (4 + exp(x)) / 120.
For h - E h between -D and U that leaves E r(h - E h) <= k2 max(U, D)^2 (4 + exp(U)) / 120, and taking log(1 + u) as u
costs at most u^2 / 2. An improbable token that rises a lot is in U, where the next cumulant would miss it.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

PAIRS = 2**16  # (position, neuron) pairs at a time in elementwise work
ROUNDINGS = 8  # roundings that a raw second moment may have gathered


@dataclass
class Moments:
    """Raw moments of B (relative to the centre) with f and z under p, (n, neurons) each, and B with its extremes."""

    lead: Tensor  # E_p B less B at the target
    b: Tensor
    fb: Tensor
    ffb: Tensor
    bb: Tensor
    fbb: Tensor
    bbb: Tensor
    zb: Tensor | None
    zfb: Tensor | None
    zbb: Tensor | None
    rows: Tensor  # (neurons, vocabulary), B itself
    low: Tensor  # (neurons,)
    high: Tensor


def mean_rows(readout, predictions, entropy):
    """Means of the unembedding's rows (less the centre) under p ff, p f and p, with z under p ff, p z f, p z, p f and p.

    B is linear in the rows, so that its first moments are these times u: no sum over the vocabulary for each neuron.

    Parameters
    ----------
    entropy : bool, whether moments with z are wanted.

    Returns
    -------
    (3 or 5, n, d)
    """
    kinds = 5 if entropy and not predictions.z_is_f else 3
    n, d = predictions.residual.shape
    means = predictions.f.new_zeros(kinds * n, d)
    for part in readout.parts():
        means.addmm_(_weights(predictions, part, kinds), readout.rows(part, predictions.centre))
    return means.view(kinds, n, d)


def moments(readout, predictions, means, u, entropy):
    """All moments that order 3 needs; those of B^2 and B^3 by matrix products over chunks of the vocabulary.

    Parameters
    ----------
    means : from `mean_rows`.
    u : (d, neurons) float64, output weights after the norm's centring.
    entropy : bool, whether the moments with z are needed.

    Returns
    -------
    Moments
    """
    directions, (kinds, n, _), neurons = readout.directions(u), means.shape, u.shape[1]
    first, with_z = means @ directions, kinds == 5
    second, third = (first.new_zeros(k * n, neurons) for k in (kinds // 2 + 1, 1))
    rows = first.new_empty(neurons, predictions.f.shape[1])
    for part in readout.parts():
        b = torch.mm(directions.T, readout.rows(part, predictions.centre).T, out=rows[:, part])
        weights = _weights(predictions, part, kinds)
        power = b * b
        second.addmm_(weights[-len(second):], power.T)
        third.addmm_(weights[-n:], power.mul_(b).T)
    second = second.view(-1, n, neurons)
    zb, zfb, zbb = (first[2], first[1], second[0]) if with_z else (first[1], first[0], second[0])
    if not entropy:
        zb = zfb = zbb = None
    lead = (means[-1] - readout.rows(predictions.targets, predictions.centre)) @ directions
    return Moments(lead=lead, b=first[-1], fb=first[-2], ffb=first[0], bb=second[-1], fbb=second[-2], bbb=third, zb=zb,
                   zfb=zfb, zbb=zbb, rows=rows, low=rows.amin(1), high=rows.amax(1))


def _weights(predictions, part, kinds):
    """(kinds n, v) what `mean_rows` weighs with; the last ones, (p z,) p f and p, also weigh B^2, and p weighs B^3."""
    n = len(predictions.f)
    f, log_p = predictions.f[:, part], predictions.log_p[:, part]
    weights = f.new_empty(kinds, n, f.shape[1])
    p, pf = weights[-1], weights[-2]
    torch.exp(log_p, out=p)
    torch.mul(p, f, out=pf)
    torch.mul(pf, f, out=weights[0])
    if kinds == 5:
        z = log_p + predictions.entropy[:, None]
        torch.mul(p, z, out=weights[2])
        torch.mul(pf, z, out=weights[1])
    return weights.view(kinds * n, -1)


class Tolerance(NamedTuple):
    """The error allowed in a loss change: relative |change|, but at least `least` and at most `most` (entropy: at least)."""

    least: float
    relative: float
    most: float


@dataclass
class Changes:
    """What ablation changes at (n, neurons): loss and entropy in nats (entropy may be None)."""

    loss: Tensor
    entropy: Tensor | None
    flagged: Tensor  # bool: a bound on the error exceeds the tolerance


def expand(predictions, moments, rho, tau, tolerance):
    """Loss and entropy changes to order 3, flagged where the error bound is above the tolerance.

    Parameters
    ----------
    rho, tau : (n, neurons) float64
    tolerance : Tolerance

    Returns
    -------
    Changes
    """
    loss, flagged = torch.empty_like(moments.b), torch.empty_like(rho, dtype=torch.bool)
    entropy = None if moments.zb is None else torch.empty_like(loss)
    step = max(1, PAIRS // rho.shape[1])
    for start in range(0, len(rho), step):
        rows = slice(start, start + step)
        h = _tilt(predictions, moments, rho[rows].to(loss.dtype), tau[rows].to(loss.dtype), rows)
        f_target = predictions.f[rows].gather(1, predictions.targets[rows, None])
        loss[rows] = h.tau * moments.lead[rows] - h.rho * f_target + h.k2 / 2 + h.k3 / 6
        error = torch.maximum(h.rest, h.u.square() / 2) + h.variance - h.k2
        flagged[rows] = ~(error <= (tolerance.relative * loss[rows].abs()).clamp(tolerance.least, tolerance.most))
        if entropy is not None:
            entropy[rows], error = _entropy_change(predictions, moments, h, rows)
            flagged[rows] |= ~(error <= (tolerance.relative * entropy[rows].abs()).clamp_min(tolerance.most))
    return Changes(loss, entropy, flagged)


@dataclass
class _Tilt:
    """Cumulants and bounds of h = rho f + tau B under p, all (rows, neurons)."""

    rho: Tensor
    tau: Tensor
    k2: Tensor
    k3: Tensor
    variance: Tensor  # k2 and what rounding may hide of it
    up: Tensor  # h - E h is at most this
    down: Tensor  # E h - h is at most this
    rest: Tensor  # E r(h - E h) is at most this
    u: Tensor  # E exp(h - E h) - 1 is at most this


def _tilt(predictions, moments, rho, tau, rows):
    b, bb = moments.b[rows], moments.bb[rows]
    f = predictions.f[rows]
    ff, fff = predictions.ff[rows, None], predictions.fff[rows, None]
    fb = moments.fb[rows]
    ffb = moments.ffb[rows] - b * ff
    fbb = moments.fbb[rows] - 2 * b * fb
    bbb = moments.bbb[rows] - 3 * b * bb + 2 * b**3
    k2 = (rho * rho * ff + 2 * rho * tau * fb + tau * tau * (bb - b * b)).clamp_min(0)
    k3 = rho**3 * fff + 3 * rho * tau * (rho * ffb + tau * fbb) + tau**3 * bbb
    variance = k2 + ROUNDINGS * torch.finfo(k2.dtype).eps * (rho * rho * ff + tau * tau * bb)
    f_low, f_high = (rho * extreme[:, None] for extreme in (f.amin(1), f.amax(1)))
    b_low, b_high = tau * (moments.low - b), tau * (moments.high - b)
    up = torch.maximum(f_low, f_high) + torch.maximum(b_low, b_high)
    down = -torch.minimum(f_low, f_high) - torch.minimum(b_low, b_high)
    # E x^4 <= k2 max(U, D)^2, and (x - U)(x + D) <= 0 gives E x^4 <= (U - D) k3 + U D k2; for x < 0, r(x) <= |x|^3 / 6 too
    fourth = variance * torch.maximum(up * up, torch.minimum(down * down, 4 * down))
    fourth = torch.minimum(fourth, ((up - down) * k3 + up * down * variance).clamp_min(0))
    rest = fourth * (4 + up.exp()) / 120
    return _Tilt(rho, tau, k2, k3, variance, up, down, rest, u=variance / 2 + k3.abs() / 6 + rest)


def _entropy_change(predictions, moments, h, rows):
    """Entropy change to joint order 3, and a bound on its error: (rows, neurons) each.

    With p' the ablated prediction, H' - H = log E exp(h~) - E_p'[z + h~], h~ = h - E h. The bound adds those of its terms;
    q(x) = exp(x) - 1 - x - x^2/2 obeys |q(x)| <= |x|^3 (3 + exp(x)) / 24, and E |z| h~^2 <= 2 max(z) k2 - E z h~^2.
    """
    rho, tau, b, zb = h.rho, h.tau, moments.b[rows], moments.zb[rows]
    zf, zff = predictions.zf[rows, None], predictions.zff[rows, None]
    zfb = moments.zfb[rows] - b * zf
    zbb = moments.zbb[rows] - 2 * b * zb
    second = rho * zf + tau * zb
    third = rho * rho * zff + 2 * rho * tau * zfb + tau * tau * zbb
    change = -second - third / 2 - h.k2 / 2 - h.k3 / 3

    z_top = (predictions.log_p[rows].amax(1) + predictions.entropy[rows])[:, None]
    growth = (3 + h.up.exp()) / 24
    z_rest = (2 * z_top * h.variance - third).clamp_min(0) * torch.maximum(h.up, h.down.clamp_max(3)) * growth
    h_rest = h.variance * torch.maximum(h.up * h.up, torch.minimum(h.down * h.down, 3 * h.down)) * growth
    lead = (second + third / 2).abs() + h.variance + h.k3.abs() / 2
    return change, h.rest + h.u * h.u / 2 + z_rest + h_rest + h.u * (lead + z_rest + h_rest)


# ---- the exact fallback

TILE = 2**19  # entries (pairs x vocabulary) worked on at a time
STRAIN = 3.0  # rho above which rho f and tau B are not added up in the working precision
LOG2_E = 1 / math.log(2)  # powers of 2, since torch's exp2 takes a third of the time of its exp


def settle(readout, predictions, u, rho, tau, moments, changes):
    """Overwrite the flagged changes of loss and entropy with exact ones.

    Parameters
    ----------
    u : (d, neurons) float64, output weights after the norm's centring.
    rho, tau : (n, neurons) float64
    moments : Moments of the same neurons.
    changes : Changes, overwritten.
    """
    dtype, n_vocab = changes.loss.dtype, moments.rows.shape[1]
    tile = max(1, min(TILE // n_vocab, len(moments.rows) // 2))  # both buffers take no more memory than the rows
    buffers = changes.loss.new_empty(2, tile, n_vocab)  # fresh ones for each tile cost as much as the sums
    strained = rho > STRAIN
    pairs = (changes.flagged & ~strained).nonzero().unbind(1)
    _settle(predictions, pairs, rho[pairs].to(dtype), tau[pairs].to(dtype), moments.rows, pairs[1], changes, buffers)
    for pairs in zip(*(index.split(tile) for index in strained.nonzero().unbind(1))):
        still = predictions.scale[pairs[0], None] * rho[pairs][:, None] * predictions.residual[pairs[0]]
        moved = readout.gain * (still + tau[pairs][:, None] * u[:, pairs[1]].T)  # (k, d)
        h = readout.project(moved.to(dtype), predictions.centre)
        none = torch.zeros_like(h[:, 0])
        _settle(predictions, pairs, none, none + 1, h, torch.arange(len(h), device=h.device), changes, buffers)
    changes.flagged |= strained


def _settle(predictions, pairs, rho, tau, b, which, changes, buffers):
    """Settle k pairs, sorted by position: rho, tau, which : (k,), the pairs' rows of b being b[which]."""
    where = pairs[0]
    total, entropy = torch.empty_like(rho), torch.empty_like(rho)
    small, rho_bits, tau_bits = torch.finfo(rho.dtype).tiny ** 0.5, LOG2_E * rho, LOG2_E * tau
    for position, tile in _tiles(where, buffers.shape[1]):
        tilted, ablated = buffers[:, :tile.stop - tile.start]
        torch.index_select(b, 0, which[tile], out=ablated)
        torch.addcmul(LOG2_E * predictions.log_p[position], rho_bits[tile, None], predictions.f[position], out=tilted)
        tilted.addcmul_(tau_bits[tile, None], ablated)  # log p + h, in bits
        whole, top = torch.exp2(tilted, out=ablated).sum(1), 0
        if not (whole.amin() > small and whole.amax() < 1 / small):
            top = tilted.amax(1)
            whole = torch.exp2(tilted.sub_(top[:, None]), out=ablated).sum(1)
        total[tile] = whole.log() + top / LOG2_E  # log E_p exp(h)
        if changes.entropy is not None:
            entropy[tile] = whole.log() - ablated.mul_(tilted).sum(1) / whole / LOG2_E
    target = predictions.targets[where]
    changes.loss[pairs] = total - (rho * predictions.f[where, target] + tau * b[which, target])
    if changes.entropy is not None:
        changes.entropy[pairs] = entropy - predictions.entropy[where]


def _tiles(where, size):
    """Yield (position, slice) for runs of equal positions in `where`, at most `size` long."""
    start = 0
    for position, count in zip(*(part.tolist() for part in where.unique_consecutive(return_counts=True))):
        for first in range(start, start + count, size):
            yield position, slice(first, min(first + size, start + count))
        start += count
