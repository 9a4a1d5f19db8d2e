"""Every neuron's effect on the prediction, from joint cumulants, with a bound on the error; where it is too large, exactly.

With g = rho (f - f_y) + tau (B_i - B_iy) (symbols: `readout`), y the target,

    loss change = log E_p exp(g) = E g + k2 / 2 + k3 / 6 + ...

where k2 and k3, the cumulants of h = rho f + tau B under p, are polynomials in rho and tau whose coefficients are joint
cumulants of f and B_i: six matrix products for all neurons together. f and z are centred under p and B at its mean
over the positions, so that little cancels when raw moments become cumulants.

The error of stopping at order 3 is bounded by k2 times a function of the range of h over the vocabulary. With
r(x) = exp(x) - 1 - x - x^2/2 - x^3/6 = x^4/24 E exp(x T), T ~ Beta(1, 4), convexity gives r(x) <= x^4 (4 + exp(x)) / 120.
For h - E h between -D and U that leaves E r(h - E h) <= k2 max(U, D)^2 (4 + exp(U)) / 120, and taking log(1 + u) as u
costs at most u^2 / 2. An improbable token that rises a lot is in U, where the next cumulant would miss it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

PAIRS = 2**16  # (position, neuron) pairs at a time in elementwise work
ROUNDINGS = 8  # roundings that a raw second moment may have gathered


@dataclass
class Moments:
    """Raw moments of B (relative to the centre) with f and z under p, (n, neurons) each, and B's extremes, (neurons,)."""

    b: Tensor
    fb: Tensor
    ffb: Tensor
    bb: Tensor
    fbb: Tensor
    bbb: Tensor
    zb: Tensor | None
    zfb: Tensor | None
    zbb: Tensor | None
    target: Tensor  # (n, neurons), B at the targets
    low: Tensor
    high: Tensor


def moments(readout, predictions, u, entropy):
    """All moments that order 3 needs, by matrix products over chunks of the vocabulary.

    Parameters
    ----------
    u : (d, neurons) float64, output weights after the norm's centring.
    entropy : bool, whether the moments with z are needed.

    Returns
    -------
    Moments
    """
    directions = readout.directions(u)
    n, neurons = len(predictions.f), u.shape[1]
    with_z = entropy and not predictions.z_is_f
    rows = 5 if with_z else 3  # p ff, p z f, p z, p f, p: the last ones also multiply B^2 and B^3
    first, second, third = (predictions.f.new_zeros(k * n, neurons) for k in (rows, rows // 2 + 1, 1))
    low, high = (predictions.f.new_full((neurons,), sign * torch.inf) for sign in (1, -1))
    for part in readout.parts():
        b = readout.rows(part, predictions.centre) @ directions  # (v, neurons)
        smallest, largest = torch.aminmax(b, dim=0)
        low, high = torch.minimum(low, smallest), torch.maximum(high, largest)
        weights = _weights(predictions, part, rows)  # (rows n, v)
        first.addmm_(weights, b)
        power = b * b
        second.addmm_(weights[-len(second):], power)
        third.addmm_(weights[-n:], power.mul_(b))
    first, second = first.view(rows, n, neurons), second.view(-1, n, neurons)
    zb, zfb, zbb = (first[2], first[1], second[0]) if with_z else (first[1], first[0], second[0])
    if not entropy:
        zb = zfb = zbb = None
    return Moments(b=first[-1], fb=first[-2], ffb=first[0], bb=second[-1], fbb=second[-2], bbb=third, zb=zb, zfb=zfb,
                   zbb=zbb, target=readout.rows(predictions.targets, predictions.centre) @ directions, low=low, high=high)


def _weights(predictions, part, rows):
    n = len(predictions.f)
    f, log_p = predictions.f[:, part], predictions.log_p[:, part]
    weights = f.new_empty(rows, n, f.shape[1])
    p, pf = weights[-1], weights[-2]
    torch.exp(log_p, out=p)
    torch.mul(p, f, out=pf)
    torch.mul(pf, f, out=weights[0])
    if rows == 5:
        z = log_p + predictions.entropy[:, None]
        torch.mul(p, z, out=weights[2])
        torch.mul(pf, z, out=weights[1])
    return weights.view(rows * n, -1)


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
        loss[rows] = h.tau * (moments.b[rows] - moments.target[rows]) - h.rho * f_target + h.k2 / 2 + h.k3 / 6
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
    f_low, f_high = (rho * extreme[:, None] for extreme in torch.aminmax(f, dim=1))
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


def settle(readout, predictions, u, rho, tau, changes, group):
    """Overwrite the flagged changes of loss and entropy with exact ones.

    Parameters
    ----------
    u : (d, neurons) float64, output weights after the norm's centring.
    rho, tau : (n, neurons) float64
    changes : Changes, overwritten.
    group : int, rows over the vocabulary (a neuron's B, a pair's h) that may be held at a time.
    """
    directions, dtype = readout.directions(u), changes.loss.dtype
    tile = max(1, min(TILE // len(readout.unembedding), group))
    buffers = changes.loss.new_empty(2, tile, len(readout.unembedding))  # fresh ones for each tile cost as much as the sums
    strained = rho > STRAIN
    changes.flagged |= strained
    plain = changes.flagged & ~strained
    often = plain.sum(0)
    columns = often.argsort(descending=True)[:(often > 0).sum()]  # the most often flagged first: dense groups
    for neurons in columns.split(group):
        b = readout.project(directions[:, neurons].T, predictions.centre)  # (group, vocabulary)
        where, which = plain[:, neurons].nonzero().unbind(1)
        pairs = where, neurons[which]
        _settle(predictions, pairs, rho[pairs].to(dtype), tau[pairs].to(dtype), b, which, changes, buffers)
    for pairs in zip(*(index.split(tile) for index in strained.nonzero().unbind(1))):
        still = predictions.scale[pairs[0], None] * rho[pairs][:, None] * predictions.residual[pairs[0]]
        moved = readout.gain * (still + tau[pairs][:, None] * u[:, pairs[1]].T)  # (k, d)
        h = readout.project(moved.to(dtype), predictions.centre)
        none = torch.zeros_like(h[:, 0])
        _settle(predictions, pairs, none, none + 1, h, torch.arange(len(h), device=h.device), changes, buffers)


def _settle(predictions, pairs, rho, tau, b, which, changes, buffers):
    """Settle k pairs, sorted by position: rho, tau, which : (k,), the pairs' rows of b being b[which]."""
    where = pairs[0]
    total, entropy = torch.empty_like(rho), torch.empty_like(rho)
    for position, tile in _tiles(where, buffers.shape[1]):
        tilted, ablated = buffers[:, :tile.stop - tile.start]
        torch.index_select(b, 0, which[tile], out=ablated)
        torch.addcmul(predictions.log_p[position, None], rho[tile, None], predictions.f[position, None], out=tilted)
        tilted.addcmul_(tau[tile, None], ablated)  # log p + h
        # softmax is one fused pass, but adds up carelessly (1e-5 over 50,000 tokens): sum, which adds pairwise, makes up
        torch.softmax(tilted, 1, out=ablated)
        whole, mode = ablated.sum(1), predictions.modes[position]
        share = ablated[:, mode] / whole
        total[tile] = tilted[:, mode] - share.log()  # log E_p exp(h)
        if share.amin() < 1e-2:
            total[tile] = torch.logsumexp(tilted, 1)
        if changes.entropy is not None:
            entropy[tile] = total[tile] - ablated.mul_(tilted).sum(1) / whole
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
