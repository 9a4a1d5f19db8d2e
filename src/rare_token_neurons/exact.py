"""The pairs that order 3 cannot settle, by an exact log-sum-exp over the vocabulary.

With h = rho f + tau B (symbols: `predictions`) the loss change is log E_p exp(h) - h_y, and
log E_p exp(h) = logsumexp(log p + h): p exp(h) would lose tokens whose p underflows. Its float32 error is a few 1e-7, of
no account for the changes that come here; the small ones, which would need log1p(E_p expm1(h)), order 3 has settled.

Where a neuron makes up most of the residual stream, rho f and tau B are large and cancel; there h is taken as
U gain (s' c' - s c), the difference formed in float64.

Pairs are grouped by neurons, so that a neuron's row of B is computed once, and within a group by position, whose f and
log p are read once: a tile of a few pairs by the whole vocabulary stays near the processor.
"""

import torch

TILE = 2**19  # entries (pairs x vocabulary) worked on at a time
STRAIN = 3.0  # rho above which rho f and tau B are not added up in the working precision


def settle(readout, predictions, u, rho, tau, changes, group):
    """Overwrite the flagged changes of loss and entropy with exact ones.

    Parameters
    ----------
    u : (d, neurons) float64, output weights after the norm's centring.
    rho, tau : (n, neurons) float64
    changes : Changes, overwritten.
    group : int, neurons whose B is held at a time.
    """
    directions, dtype = readout.directions(u), changes.loss.dtype
    strained = rho > STRAIN
    changes.flagged |= strained
    plain = changes.flagged & ~strained
    often = plain.sum(0)
    columns = often.argsort(descending=True)[:(often > 0).sum()]  # the most often flagged first: dense groups
    for neurons in columns.split(group):
        b = readout.project(directions[:, neurons].T, predictions.centre)  # (group, vocabulary)
        where, which = plain[:, neurons].nonzero().unbind(1)
        pairs = where, neurons[which]
        _settle(predictions, pairs, rho[pairs].to(dtype), tau[pairs].to(dtype), b, which, changes)
    for pairs in zip(*(index.split(group) for index in strained.nonzero().unbind(1))):
        base, away = predictions.residual[pairs[0]], u[:, pairs[1]].T  # (k, d)
        moved = readout.gain * (predictions.scale[pairs[0], None] * rho[pairs][:, None] * base + tau[pairs][:, None] * away)
        h = readout.project(moved.to(dtype), predictions.centre)
        none = torch.zeros_like(h[:, 0])
        _settle(predictions, pairs, none, none + 1, h, torch.arange(len(h), device=h.device), changes)


def _settle(predictions, pairs, rho, tau, b, which, changes):
    """Settle pairs, sorted by position: rho, tau : (k,); b[which] : (k, vocabulary)."""
    where = pairs[0]
    total, entropy = torch.empty_like(rho), torch.empty_like(rho)
    step = max(1, TILE // b.shape[1])
    tilted, ablated = b.new_empty(2, step, b.shape[1])
    for position, tile in _tiles(where, step):
        log_p, h = predictions.log_p[position, None], tilted[:tile.stop - tile.start]
        p = ablated[:len(h)]
        torch.addcmul(log_p, rho[tile, None], predictions.f[position, None], out=h)
        h.addcmul_(tau[tile, None], torch.index_select(b, 0, which[tile], out=p))  # log p + h
        # softmax is one fused pass, but adds up carelessly (1e-5 over 50,000 tokens): torch.sum, which adds pairwise, makes up
        torch.softmax(h, 1, out=p)
        whole, mode = p.sum(1), predictions.modes[position]
        share = p[:, mode] / whole
        total[tile] = h[:, mode] - share.log()  # log E_p exp(h)
        if share.amin() < 1e-2:
            total[tile] = torch.logsumexp(h, 1)
        if changes.entropy is not None:
            entropy[tile] = total[tile] - p.mul_(h).sum(1) / whole
    target = predictions.targets[where]
    changes.loss[pairs] = total - (rho * predictions.f[where, target] + tau * b[which, target])
    if changes.entropy is not None:
        changes.entropy[pairs] = entropy - predictions.entropy[where]


def _tiles(where, step):
    """Yield (position, slice) for runs of equal positions in `where`, at most `step` long."""
    start = 0
    for position, count in zip(*(part.tolist() for part in where.unique_consecutive(return_counts=True))):
        for first in range(start, start + count, step):
            yield position, slice(first, min(first + step, start + count))
        start += count
