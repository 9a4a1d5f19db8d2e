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
