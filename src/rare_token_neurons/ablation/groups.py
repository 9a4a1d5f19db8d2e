"""Whole groups of neurons ablated at once: is the joint effect the sum of the single ones?

Ablating a group moves the final residual stream by sum_i delta_i w_i. With v = sum_i delta_i u_i in place of
delta u (symbols: `readout`), the loss change is the same exact expression, taken over the vocabulary once for each
position: log E_p exp(g), g = rho (f - f_y) + s' (V v - (V v)_y). V v is the sum of the group's delta_i B_i, so that
the unembedding is multiplied with the group's neurons, not with the positions. Where a norm follows the MLP, its scale is
that of m + sum_i delta_i w_i.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from rare_token_neurons.ablation.capture import checked_neurons, checked_positions, references
from rare_token_neurons.ablation.neurons import loss_changes
from rare_token_neurons.ablation.readout import full_precision, joint_shifts, mlp_output, predict_at, readout_of

TILE = 2**22  # entries (positions x vocabulary) worked on at a time


@full_precision()
def joint_changes(subject, capture, positions, groups, *, ablation="mean", seed=0, memory_gb=2.0):
    """Change of the loss when all neurons of a group are ablated at one position.

    Parameters
    ----------
    subject, capture, positions, ablation, seed, memory_gb : as for `neurons.loss_changes`.
    groups : sequence of int arrays, the neurons of each group (sizes may differ).

    Returns
    -------
    (groups, n) nats, in the subject's dtype

    Raises
    ------
    ValueError
        An empty group, a neuron twice in a group, and whatever `neurons.loss_changes` raises.
    """
    positions = checked_positions(subject, capture, positions, memory_gb, ablation=ablation)
    groups = [checked_neurons(subject, torch.as_tensor(np.asarray(group))) for group in groups]
    for group in groups:
        if not len(group) or len(group.unique()) < len(group):
            raise ValueError("A group needs one neuron or more, and each of them once.")
    readout = readout_of(subject)
    arrays = 6 if readout.mlp_gain is None else 7  # of positions and vocabulary
    step = max(1, int(memory_gb * 1e9 / subject.dtype.itemsize / arrays / subject.n_vocab))
    result = torch.empty(len(groups), len(positions), dtype=subject.dtype, device=subject.device)
    for start in range(0, len(positions), step):
        rows = positions[start: start + step]
        base = predict_at(readout, subject, capture, rows, memory_gb / 2)
        p = base.log_p.exp()
        activations = capture.activations[rows[:, 0], rows[:, 1] - capture.first]
        for number, group in enumerate(groups):
            delta = references(capture, rows, group, ablation, seed) - activations[:, group].double()  # (n, m)
            result[number, start: start + step] = _changes(readout, base, p, subject.w_out[:, group], delta)
    return result


def _changes(readout, base, p, w, delta):
    """Loss changes (n,) of one group: p (n, vocabulary), w (d, m), delta (n, m) float64."""
    u, n_vocab = readout.outward(w), base.f.shape[1]
    rho, tau, sigma = joint_shifts(base, w, u, delta).map(lambda part: part.to(base.f.dtype))
    directions = readout.directions(u)  # (d, m)
    b = torch.cat([readout.rows(part, base.centre) @ directions for part in readout.parts()]).T  # (m, vocabulary)
    changes = torch.empty_like(rho)
    for rows in torch.arange(len(delta), device=delta.device).split(max(1, TILE // n_vocab)):
        g = torch.addcmul(tau[rows] @ b, rho[rows, None], base.f[rows])
        if sigma is not None:
            g.addcmul_(sigma[rows, None], base.written.g[rows])
        g -= g.gather(1, base.targets[rows, None])
        mean = (torch.expm1(g) * p[rows]).sum(1)
        changes[rows] = torch.log1p(mean)
        harsh = ~((mean > -0.5) & (g.amax(1) < 40))  # cancellation, or an underflown p that counts
        if harsh.any():
            changes[rows[harsh]] = torch.logsumexp(base.log_p[rows[harsh]] + g[harsh], 1)
    return changes


def sum_of_singles(changes, groups):
    """What the groups would do if their neurons' effects added up, position by position.

    Parameters
    ----------
    changes : (n, neurons) from `neurons.loss_changes` ; groups : sequence of int arrays.

    Returns
    -------
    added : (groups, n) sums of the single changes ; absolute : (groups, n) sums of their absolute values.
    """
    groups = [torch.as_tensor(np.asarray(group), device=changes.device) for group in groups]
    return (torch.stack([changes[:, group].sum(1) for group in groups]),
            torch.stack([changes[:, group].abs().sum(1) for group in groups]))


def synergy(joint, added, absolute):
    """Joint against summed effects, one row a group, means over positions.

    Parameters
    ----------
    joint : (groups, n) from `joint_changes` ; added, absolute : from `sum_of_singles`.

    Returns
    -------
    DataFrame with joint (mean |joint change|), added (mean |sum of single changes|), absolute (mean sum of |single
    changes|), ratio (joint / added: above 1 the group does more together), interaction (mean |joint - sum|),
    signed_joint and signed_added (mean changes).
    """
    joint, added, absolute = (values.double().cpu().numpy() for values in (joint, added, absolute))
    means = {"joint": np.abs(joint).mean(1), "added": np.abs(added).mean(1), "absolute": absolute.mean(1)}
    with np.errstate(invalid="ignore", divide="ignore"):
        means["ratio"] = means["joint"] / means["added"]
    return pd.DataFrame({**means, "interaction": np.abs(joint - added).mean(1),
                         "signed_joint": joint.mean(1), "signed_added": added.mean(1)})


@dataclass(frozen=True)
class Greedy:
    """A group grown one neuron at a time: neurons (size,) in order of choice.

    alone (neurons of the model,): each neuron's influence by itself, on the same positions.
    """

    neurons: np.ndarray
    alone: np.ndarray


def greedy(subject, capture, positions, size, *, ablation="mean", seed=0, memory_gb=2.0):
    """Grow a group by the neuron that raises its influence, mean |joint change|, most: all scored on the same positions.

    With a group ablated, the residual stream is a new one, on which the kernel gives the effect of every further
    neuron: a step costs one call of `neurons.loss_changes`. Choose on one half of the documents, measure
    (`joint_changes`) on the other.

    Parameters
    ----------
    subject, capture, positions, ablation, seed, memory_gb : as for `neurons.loss_changes`.
    size : neurons in the end.

    Returns
    -------
    Greedy
    """
    positions = checked_positions(subject, capture, positions, memory_gb, ablation=ablation)
    if not 1 <= size <= subject.n_neurons:
        raise ValueError(f"A group of {size} cannot be chosen from {subject.n_neurons} neurons.")
    readout, block, index = readout_of(subject), positions[:, 0], positions[:, 1] - capture.first
    total = torch.zeros(len(positions), dtype=torch.float64, device=subject.device)
    current, chosen, alone = capture, [], None
    for _ in range(size):
        changes = loss_changes(subject, current, positions, ablation=ablation, seed=seed, memory_gb=memory_gb)
        joint = total[:, None] + changes.double()  # (n, neurons)
        scores = joint.abs().mean(0)
        alone = scores.cpu().numpy().copy() if alone is None else alone
        scores[chosen] = -1.0
        best = int(scores.argmax())
        chosen.append(best)
        total = joint[:, best]
        activations, residual = current.activations.clone(), current.residual.clone()
        neuron = torch.tensor([best], device=subject.device)
        new = references(capture, positions, neuron, ablation, seed).expand(len(positions), 1)
        activations[block, index, best] = new[:, 0].to(activations.dtype)
        before, after = (readout.written(mlp_output(subject, part[block, index]))
                         for part in (current.activations, activations))
        residual[block, index] += (after - before).to(residual.dtype)
        current = replace(current, activations=activations, residual=residual)
    return Greedy(np.array(chosen, dtype=np.int64), alone)
