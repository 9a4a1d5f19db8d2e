"""Every neuron's effect on the prediction, from joint cumulants, with a bound on the error; where it is too large, exactly.

With g = rho (f - f_y) + tau (B_i - B_iy) (symbols: `readout`), y the target,

    loss change = log E_p exp(g) = E g + k2 / 2 + k3 / 6 + ...

where k2 and k3, the cumulants of h = rho f + tau B under p, are polynomials in rho and tau whose coefficients are joint
cumulants of f and B_i. Those linear in B need only mean rows of the unembedding, the same for all neurons; those in B^2
and B^3 are three products over the vocabulary for all neurons together. f and z are centred under p and B at its mean
over the positions, so that little cancels when raw moments become cumulants. Where a norm follows the MLP, h gains
sigma G: like f, G is one row a position and centred under p, so that there are more mean rows (p fG, p GG, p G) and one
product more (p G with B^2).

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

from rare_token_neurons.ablation.readout import Shifts

PAIRS = 2**16  # (position, neuron) pairs at a time in elementwise work
ROUNDINGS = 8  # roundings that a raw second moment may have gathered


@dataclass
class Moments:
    """Raw moments of B (relative to the centre) with f, G and z under p, and B with its extremes."""

    of: dict[str, Tensor]  # (n, neurons) each: b, fb, ffb, bb, fbb, bbb; with G gb, fgb, ggb, gbb; with z zb, zfb, ...
    lead: Tensor  # (n, neurons), E_p B less B at the target
    rows: Tensor  # (neurons, vocabulary), B itself
    low: Tensor  # (neurons,)
    high: Tensor


def kinds(predictions, entropy):
    """What p is multiplied with in moments of B, "ff", "f" and "" (p alone), with G and z where they are needed.

    Each name stands before the one that it is without its first letter.

    Returns
    -------
    all names, and those at their end that also serve for B^2
    """
    z, g = entropy and not predictions.z_is_f, predictions.written is not None
    of_squares = ["z"] * z + ["f"] + ["g"] * g + [""]
    return ["ff"] + ["fg", "gg"] * g + ["zf"] * z + ["zg"] * (z and g) + of_squares, of_squares


def mean_rows(readout, predictions, entropy):
    """Means of the unembedding's rows (less the centre) under p times each of `kinds`.

    B is linear in the rows, so that its first moments are these times u: no sum over the vocabulary for each neuron.

    Parameters
    ----------
    entropy : bool, whether moments with z are wanted.

    Returns
    -------
    (kinds, n, d)
    """
    names, _ = kinds(predictions, entropy)
    n, d = predictions.residual.shape
    means = predictions.f.new_zeros(len(names) * n, d)
    for part in readout.parts():
        means.addmm_(_weights(predictions, part, names), readout.rows(part, predictions.centre))
    return means.view(-1, n, d)


def moments(readout, predictions, means, u, entropy):
    """All moments that order 3 needs; those of B^2 and B^3 by matrix products over chunks of the vocabulary.

    Parameters
    ----------
    means : from `mean_rows`.
    u : (d, neurons) float64, from `Readout.outward`.
    entropy : bool, whether the moments with z are needed.

    Returns
    -------
    Moments
    """
    directions, (n, neurons) = readout.directions(u), (means.shape[1], u.shape[1])
    names, of_squares = kinds(predictions, entropy)
    first = means @ directions
    second, third = (first.new_zeros(k * n, neurons) for k in (len(of_squares), 1))
    rows = first.new_empty(neurons, predictions.f.shape[1])
    for part in readout.parts():
        b = torch.mm(directions.T, readout.rows(part, predictions.centre).T, out=rows[:, part])
        weights = _weights(predictions, part, names)
        power = b * b
        second.addmm_(weights[-len(second):], power.T)
        third.addmm_(weights[-n:], power.mul_(b).T)
    of = {name + "b": part for name, part in zip(names, first)} | {"bbb": third}
    of |= {name + "bb": part for name, part in zip(of_squares, second.view(-1, n, neurons))}
    if entropy and predictions.z_is_f:
        of |= {"z" + name[1:]: part for name, part in of.items() if name[0] == "f"}
    lead = (means[-1] - readout.rows(predictions.targets, predictions.centre)) @ directions
    return Moments(of, lead, rows, low=rows.amin(1), high=rows.amax(1))


def _weights(predictions, part, names):
    """(kinds n, v) p times each of `kinds`, in a part of the vocabulary."""
    log_p = predictions.log_p[:, part]
    factors = {"f": predictions.f[:, part]}
    if predictions.written is not None:
        factors["g"] = predictions.written.g[:, part]
    if "z" in names:
        factors["z"] = log_p + predictions.entropy[:, None]
    weights = log_p.new_empty(len(names), *log_p.shape)
    made = dict(zip(names, weights))
    torch.exp(log_p, out=made[""])
    for name in names[-2::-1]:
        torch.mul(made[name[1:]], factors[name[0]], out=made[name])
    return weights.flatten(0, 1)


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


def expand(predictions, moments, shifted, tolerance):
    """Loss and entropy changes to order 3, flagged where the error bound is above the tolerance.

    Parameters
    ----------
    shifted : Shifts of (n, neurons) float64
    tolerance : Tolerance

    Returns
    -------
    Changes
    """
    loss, flagged = torch.empty_like(moments.lead), torch.empty_like(moments.lead, dtype=torch.bool)
    entropy = torch.empty_like(loss) if "zb" in moments.of else None
    step = max(1, PAIRS // loss.shape[1])
    for start in range(0, len(loss), step):
        rows = slice(start, start + step)
        some = shifted.map(lambda part: part[rows].to(loss.dtype))
        h = _tilt(predictions, moments, some, rows)
        loss[rows] = h.mean + h.k2 / 2 + h.k3 / 6
        error = torch.maximum(h.rest, h.u.square() / 2) + h.variance - h.k2
        flagged[rows] = ~(error <= (tolerance.relative * loss[rows].abs()).clamp(tolerance.least, tolerance.most))
        if entropy is not None:
            entropy[rows], error = _entropy_change(predictions, moments, some, h, rows)
            flagged[rows] |= ~(error <= (tolerance.relative * entropy[rows].abs()).clamp_min(tolerance.most))
    return Changes(loss, entropy, flagged)


@dataclass
class _Tilt:
    """Cumulants and bounds of h = rho f + sigma G + tau B under p, all (rows, neurons)."""

    mean: Tensor  # E h less h at the target
    k2: Tensor
    k3: Tensor
    variance: Tensor  # k2 and what rounding may hide of it
    up: Tensor  # h - E h is at most this
    down: Tensor  # E h - h is at most this
    rest: Tensor  # E r(h - E h) is at most this
    u: Tensor  # E exp(h - E h) - 1 is at most this


def _tilt(predictions, moments, shifted, rows):
    (rho, tau, sigma), written = shifted, predictions.written
    of = {name: part[rows] for name, part in moments.of.items()}
    f, target, b, bb, fb = predictions.f[rows], predictions.targets[rows, None], of["b"], of["bb"], of["fb"]
    ff, fff = predictions.ff[rows, None], predictions.fff[rows, None]
    ffb, fbb, bbb = of["ffb"] - b * ff, of["fbb"] - 2 * b * fb, of["bbb"] - 3 * b * bb + 2 * b**3
    mean = tau * moments.lead[rows] - rho * f.gather(1, target)
    k2 = rho * rho * ff + 2 * rho * tau * fb + tau * tau * (bb - b * b)
    k3 = rho**3 * fff + 3 * rho * tau * (rho * ffb + tau * fbb) + tau**3 * bbb
    raw = rho * rho * ff + tau * tau * bb
    f_low, f_high = (rho * extreme[:, None] for extreme in (f.amin(1), f.amax(1)))
    b_low, b_high = tau * (moments.low - b), tau * (moments.high - b)
    up = torch.maximum(f_low, f_high) + torch.maximum(b_low, b_high)
    down = -torch.minimum(f_low, f_high) - torch.minimum(b_low, b_high)
    if written is not None:
        g, gb = written.g[rows], of["gb"]
        fg, gg, ffg, fgg, ggg = (written.of[name][rows, None] for name in ("fg", "gg", "ffg", "fgg", "ggg"))
        fgb, ggb, gbb = of["fgb"] - b * fg, of["ggb"] - b * gg, of["gbb"] - 2 * b * gb
        mean -= sigma * g.gather(1, target)
        k2 += sigma * (sigma * gg + 2 * (rho * fg + tau * gb))
        k3 += sigma * sigma * sigma * ggg
        k3 += 3 * sigma * (rho * (rho * ffg + sigma * fgg) + tau * (2 * rho * fgb + sigma * ggb + tau * gbb))
        raw += sigma * sigma * gg
        g_low, g_high = (sigma * extreme[:, None] for extreme in (g.amin(1), g.amax(1)))
        up += torch.maximum(g_low, g_high)
        down -= torch.minimum(g_low, g_high)
    k2 = k2.clamp_min(0)
    variance = k2 + ROUNDINGS * torch.finfo(k2.dtype).eps * raw
    # E x^4 <= k2 max(U, D)^2, and (x - U)(x + D) <= 0 gives E x^4 <= (U - D) k3 + U D k2; for x < 0, r(x) <= |x|^3 / 6 too
    fourth = variance * torch.maximum(up * up, torch.minimum(down * down, 4 * down))
    fourth = torch.minimum(fourth, ((up - down) * k3 + up * down * variance).clamp_min(0))
    rest = fourth * (4 + up.exp()) / 120
    return _Tilt(mean, k2, k3, variance, up, down, rest, u=variance / 2 + k3.abs() / 6 + rest)


def _entropy_change(predictions, moments, shifted, h, rows):
    """Entropy change to joint order 3, and a bound on its error: (rows, neurons) each.

    With p' the ablated prediction, H' - H = log E exp(h~) - E_p'[z + h~], h~ = h - E h. The bound adds those of its terms;
    q(x) = exp(x) - 1 - x - x^2/2 obeys |q(x)| <= |x|^3 (3 + exp(x)) / 24, and E |z| h~^2 <= 2 max(z) k2 - E z h~^2.
    """
    (rho, tau, sigma), of, written = shifted, moments.of, predictions.written
    b, zb, zf, zff = of["b"][rows], of["zb"][rows], predictions.zf[rows, None], predictions.zff[rows, None]
    zfb, zbb = of["zfb"][rows] - b * zf, of["zbb"][rows] - 2 * b * zb
    second = rho * zf + tau * zb
    third = rho * rho * zff + 2 * rho * tau * zfb + tau * tau * zbb
    if written is not None:
        zg, zfg, zgg = (written.of[name][rows, None] for name in ("zg", "zfg", "zgg"))
        second += sigma * zg
        third += sigma * (sigma * zgg + 2 * (rho * zfg + tau * (of["zgb"][rows] - b * zg)))
    change = -second - third / 2 - h.k2 / 2 - h.k3 / 3

    z_top = (predictions.log_p[rows].amax(1) + predictions.entropy[rows])[:, None]
    growth = (3 + h.up.exp()) / 24
    z_rest = (2 * z_top * h.variance - third).clamp_min(0) * torch.maximum(h.up, h.down.clamp_max(3)) * growth
    h_rest = h.variance * torch.maximum(h.up * h.up, torch.minimum(h.down * h.down, 3 * h.down)) * growth
    lead = (second + third / 2).abs() + h.variance + h.k3.abs() / 2
    return change, h.rest + h.u * h.u / 2 + z_rest + h_rest + h.u * (lead + z_rest + h_rest)


# ---- the exact fallback

TILE = 2**20  # entries (pairs x vocabulary) worked on at a time
SPAN = 2**14  # of the vocabulary at a time: parts of rows that are needed at position after position stay in the cache
STRAIN = 3.0  # rho or sigma above which rho f, sigma G and tau B are not added up in the working precision
LOG2_E = 1 / math.log(2)  # powers of 2, since torch's exp2 takes a third of the time of its exp


def settle(readout, predictions, u, shifted, moments, changes):
    """Overwrite the flagged changes of loss and entropy with exact ones.

    Parameters
    ----------
    u : (d, neurons) float64, from `Readout.outward`.
    shifted : Shifts of (n, neurons) float64
    moments : Moments of the same neurons.
    changes : Changes, overwritten.
    """
    dtype, n_vocab = changes.loss.dtype, moments.rows.shape[1]
    strained = shifted.rho > STRAIN
    if shifted.sigma is not None:
        strained |= shifted.sigma > STRAIN
    pairs = (changes.flagged & ~strained).nonzero().unbind(1)
    some = shifted.map(lambda part: part[pairs].to(dtype))
    _settle(predictions, pairs, some, moments.rows, pairs[1], changes)
    tile = max(1, min(TILE // n_vocab, len(moments.rows) // 2))  # h takes no more memory than half of the rows
    for pairs in zip(*(index.split(tile) for index in strained.nonzero().unbind(1))):
        rho, tau, sigma = shifted.map(lambda part: part[pairs][:, None])
        scale = predictions.scale[pairs[0], None]
        moved = scale * rho * predictions.residual[pairs[0]] + tau * u[:, pairs[1]].T  # (k, d)
        if sigma is not None:
            moved += scale * sigma * predictions.written.stream[pairs[0]]
        h = readout.project((readout.gain * moved).to(dtype), predictions.centre)
        none, which = torch.zeros_like(h[:, 0]), torch.arange(len(h), device=h.device)
        _settle(predictions, pairs, Shifts(none, none + 1, None), h, which, changes)
    changes.flagged |= strained


def _settle(predictions, pairs, shifted, b, which, changes):
    """Settle k pairs, sorted by position: Shifts of (k,), which : (k,), the pairs' rows of b being b[which]."""
    where, (rho, tau, sigma) = pairs[0], shifted
    target, tiny, entropy = predictions.targets[where], torch.finfo(rho.dtype).tiny ** 0.5, changes.entropy is not None
    sums, top = _sums(predictions, where, shifted, b, which, entropy), torch.zeros_like(rho)
    far = ~((sums[0] > tiny) & (sums[0] < 1 / tiny))  # from 1, and so perhaps out of the numbers' range
    if far.any():
        some = predictions, where[far], shifted.map(lambda part: part[far]), b, which[far]
        top[far] = _tops(*some)
        sums[:, far] = _sums(*some, entropy, top[far])
    whole = sums[0].log()
    h = rho * predictions.f[where, target] + tau * b[which, target]
    if sigma is not None:
        h += sigma * predictions.written.g[where, target]
    changes.loss[pairs] = whole + top / LOG2_E - h  # log E_p exp(h) less h at the target
    if entropy:
        changes.entropy[pairs] = whole - sums[1] / sums[0] / LOG2_E - predictions.entropy[where]


def _sums(predictions, where, shifted, b, which, entropy, top=None):
    """Sums over the vocabulary, (2, k): of 2^(t - top) and, for the entropy, of that times t - top; t : of `_tilted`."""
    sums = shifted.tau.new_zeros(2, len(where))
    for pairs, tilted, room in _tilted(predictions, where, shifted, b, which):
        if top is not None:
            tilted -= top[pairs, None]
        sums[0, pairs] += torch.exp2(tilted, out=room).sum(1)
        if entropy:
            sums[1, pairs] += room.mul_(tilted).sum(1)
    return sums


def _tops(predictions, where, shifted, b, which):
    """Largest t of `_tilted` over the vocabulary: (k,)"""
    top = torch.full_like(shifted.tau, -torch.inf)
    for pairs, tilted, _ in _tilted(predictions, where, shifted, b, which):
        top[pairs] = torch.maximum(top[pairs], tilted.amax(1))
    return top


def _tilted(predictions, where, shifted, b, which):
    """Yield (pairs, t = log p + h in bits, room as large), a span of the vocabulary and a position at a time."""
    rho, tau, sigma = shifted.map(lambda part: LOG2_E * part[:, None])
    width = min(SPAN, b.shape[1])
    tiles = list(_tiles(where, max(1, min(TILE, b.numel() // 2) // width)))  # both buffers take no more than the rows
    buffers = b.new_empty(2, max((pairs.stop - pairs.start for _, pairs in tiles), default=0), width)
    for start in range(0, b.shape[1], width):
        span = slice(start, min(start + width, b.shape[1]))
        rows, log_p, f = b[:, span], predictions.log_p[:, span], predictions.f[:, span]
        for position, pairs in tiles:
            tilted, room = buffers[:, :pairs.stop - pairs.start, :span.stop - start]
            torch.index_select(rows, 0, which[pairs], out=room)
            torch.addcmul(LOG2_E * log_p[position], rho[pairs], f[position], out=tilted)
            if sigma is not None:
                tilted.addcmul_(sigma[pairs], predictions.written.g[position, span])
            yield pairs, tilted.addcmul_(tau[pairs], room), room


def _tiles(where, size):
    """Yield (position, slice) for runs of equal positions in `where`, at most `size` long."""
    start = 0
    for position, count in zip(*(part.tolist() for part in where.unique_consecutive(return_counts=True))):
        for first in range(start, start + count, size):
            yield position, slice(first, min(first + size, start + count))
        start += count
