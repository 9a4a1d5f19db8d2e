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
    directions = readout.directions(u)
    strained = rho > STRAIN
    changes.flagged |= strained
    plain = changes.flagged & ~strained
    often = plain.sum(0)
    columns = often.argsort(descending=True)[:(often > 0).sum()]  # the most often flagged first: dense groups
    for neurons in columns.split(group):
        b = readout.project(directions[:, neurons].T, predictions.centre)
        for position, some in _tiles(plain[:, neurons], b.shape[1]):
            pairs = position, neurons[some]
            _settle(predictions, rho[pairs], tau[pairs], b.index_select(0, some), changes, pairs)
    for pairs in _tiles(strained, len(readout.unembedding)):
        position = pairs[0]
        still = predictions.scale[position] * rho[pairs][:, None] * predictions.residual[position]
        moved = readout.gain * (still + tau[pairs][:, None] * u[:, pairs[1]].T)  # (k, d)
        h = readout.project(moved.to(changes.loss.dtype), predictions.centre)
        _settle(predictions, torch.zeros_like(rho[pairs]), torch.ones_like(rho[pairs]), h, changes, pairs)


def _tiles(flagged, n_vocab):
    """Yield (position, neurons) with at most TILE / n_vocab flagged neurons each."""
    for position in flagged.any(1).nonzero()[:, 0].tolist():
        for neurons in flagged[position].nonzero()[:, 0].split(max(1, TILE // n_vocab)):
            yield position, neurons


def _settle(predictions, rho, tau, b, changes, pairs):
    """k pairs of one position; rho, tau : (k,), b : (k, vocabulary)."""
    position = pairs[0]
    f, log_p, target = predictions.f[position], predictions.log_p[position], predictions.targets[position]
    rho, tau = rho.to(f.dtype), tau.to(f.dtype)
    tilted = torch.addcmul(log_p[None], rho[:, None], f[None]).addcmul_(tau[:, None], b)  # log p + h
    # softmax is one fused pass, but adds up carelessly (1e-5 over 50,000 tokens): torch.sum, which adds pairwise, makes up
    ablated = torch.softmax(tilted, 1)
    whole, mode = ablated.sum(1), predictions.modes[position]
    share = ablated[:, mode] / whole
    total = tilted[:, mode] - share.log()  # log E_p exp(h)
    faint = share < 1e-2
    if faint.any():
        total[faint] = torch.logsumexp(tilted[faint], 1)
    changes.loss[pairs] = total - (rho * f[target] + tau * b[:, target])
    if changes.entropy is not None:
        changes.entropy[pairs] = total - ablated.mul_(tilted).sum(1) / whole - predictions.entropy[position]
