"""The pairs that order 3 cannot settle, by an exact sum over the vocabulary.

With g = rho (f - f_y) + tau (B - B_y) (symbols: `predictions`), the loss change is log E_p exp(g), taken as
log1p(E_p expm1(g)); where that would cancel (the expectation near -1) or lose a token whose p underflows (g above 40)
as logsumexp(log p + g).

Pairs are grouped by neurons, so that a neuron's row of B is computed once, and within a group by position, whose f and
log p are read once: a tile of a few pairs by the whole vocabulary stays near the processor.
"""

import torch

TILE = 2**19  # entries (pairs x vocabulary) worked on at a time


def settle(readout, predictions, directions, rho, tau, changes, group):
    """Overwrite the flagged changes of loss and entropy with exact ones.

    Parameters
    ----------
    directions : (d, neurons), gain u_i.
    rho, tau : (n, neurons)
    changes : Changes, overwritten.
    group : int, neurons whose B is held at a time.
    """
    columns = changes.flagged.any(0).nonzero()[:, 0]
    tile = max(1, TILE // predictions.f.shape[1])
    for neurons in columns.split(group):
        b = torch.cat([directions[:, neurons].T @ readout.rows(part, predictions.centre).T for part in readout.parts()], 1)
        flagged = changes.flagged[:, neurons]
        for position in flagged.any(1).nonzero()[:, 0].tolist():
            p = predictions.log_p[position].exp()
            for some in flagged[position].nonzero()[:, 0].split(tile):
                pairs = position, neurons[some]
                _settle_tile(predictions, position, p, b[some], rho[pairs], tau[pairs], changes, pairs)


def _settle_tile(predictions, position, p, b, rho, tau, changes, pairs):
    """k pairs of one position; p : (vocabulary,), b : (k, vocabulary), rho and tau : (k,)."""
    log_p, target = predictions.log_p[position], predictions.targets[position]
    g = torch.outer(rho, predictions.f[position]).addcmul_(tau[:, None], b)
    g -= g[:, target, None].clone()
    growth = torch.expm1(g)
    mean = growth @ p
    loss = torch.log1p(mean)
    entropy = None
    if changes.entropy is not None:
        z = log_p + predictions.entropy[position]
        moved = growth @ (p * z) + g @ p + growth.mul_(g) @ p  # E exp(g) (z + g)
        entropy = loss - moved * torch.exp(-loss)
    harsh = ~((mean > -0.5) & (g.amax(1) < 40))
    if harsh.any():
        ablated = torch.log_softmax(g[harsh] + log_p, 1)
        loss[harsh] = log_p[target] - ablated[:, target]
        if entropy is not None:
            entropy[harsh] = -(ablated.exp() * ablated).sum(1) - predictions.entropy[position]
    changes.loss[pairs] = loss
    if entropy is not None:
        changes.entropy[pairs] = entropy
