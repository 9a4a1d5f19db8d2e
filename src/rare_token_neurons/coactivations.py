"""Tables of how final-layer neurons fire together, inside a group and with the others: notebook 06."""

import numpy as np
import pandas as pd

from rare_token_neurons import activations, checkpoints, comparisons, geometry, influences, passes

BINS = 50  # of correlations and cosines, from -1 to 1
EDGES = np.linspace(-1, 1, BINS + 1)


def _stage(settings, name, compute):
    return activations.stage(settings, name, compute, module="coactivations")


def coactivation(settings):
    """Correlation and cosine of activations inside the groups, and between them and all other neurons.

    Returns
    -------
    DataFrame, one row (revision, step, where, group, relation, measure, statistic) and the columns of
    `activations.dimensions`. relation: "within", or "between" (rare group and plateau); measure: "correlation" (centred)
    or "cosine" (uncentred); statistic: "mean", "mean absolute", "negative share" of the pairs
    """

    def relations(measured, name, group, nulls):
        return comparisons.relations(measured, group, nulls, outside=group.ndim == 1, seed=settings.seed,
                                     baselines=comparisons.BASELINES if name == "rare" else 0)

    return _stage(settings, "coactivation", lambda: activations.compared(settings, relations))


def distributions(settings):
    """How correlations and cosines are spread over pairs of neurons.

    Returns
    -------
    DataFrame, one row (revision, step, where, relation, measure, set, left): left edge of a bin, share of the set's
    pairs in it, low and high (95 % of the control groups; NaN for "rare"); relation: "within" (pairs inside the group) or
    "between" (group with all other living neurons); set: "rare", "random", "matched"; pairs in one group
    """

    def rows(measured, rare, nulls):
        for measure, matrix in measured.matrices.items():
            for kind, made in ({"rare": rare[None]} | nulls).items():
                for relation, share, pairs in spread(matrix, measured.living, made):
                    low, high = np.quantile(share, [0.025, 0.975], axis=0) if kind != "rare" else (np.nan, np.nan)
                    yield pd.DataFrame({"relation": relation, "measure": measure, "set": kind, "left": EDGES[:-1],
                                        "share": share.mean(axis=0), "low": low, "high": high, "pairs": pairs})

    return _stage(settings, "coactivation_distribution", lambda: _of_rare_groups(settings, rows))


def spread(matrix, living, groups):
    """How the pairs of each group are spread over the bins, inside it and with the living neurons outside it.

    Parameters
    ----------
    matrix : (neurons, neurons) correlations ; living : (p,) int ; groups : (g, m) int, of living neurons.

    Returns
    -------
    ("within", share (g, bins), pairs a group), ("between", share (g, bins), pairs a group)
    """
    m, p = groups.shape[1], len(living)
    place = np.clip(np.digitize(matrix[np.ix_(living, living)], EDGES) - 1, 0, BINS - 1)  # (p, p)
    of_neuron = np.stack([np.bincount(row, minlength=BINS) for row in place])  # (p, bins), itself included
    columns = np.searchsorted(living, groups)  # (g, m)
    blocks = geometry.within(place, columns).reshape(len(groups), -1)  # (g, m * m), each pair twice
    inside = np.stack([np.bincount(block, minlength=BINS) for block in blocks])
    outside = of_neuron[columns].sum(axis=1) - inside
    inside[:, -1] -= m  # of each neuron with itself
    return ("within", inside / (m * (m - 1)), m * (m - 1) // 2), ("between", outside / (m * (p - m)), m * (p - m))


def matrices(settings):
    """The correlations inside the rare group and inside a typical random and matched group: that of median mean.

    Returns
    -------
    DataFrame, one row (revision, step, where, group, i, j): neurons i and j, correlation, cosine
    """

    def rows(measured, rare, nulls):
        chosen = {"rare": rare} | {kind: _typical(measured, made) for kind, made in nulls.items()}
        for name, group in chosen.items():
            first, second = np.repeat(group, len(group)), np.tile(group, len(group))
            yield pd.DataFrame({"group": name, "i": first, "j": second} |
                               {measure: matrix[first, second] for measure, matrix in measured.matrices.items()})

    return _stage(settings, "coactivation_matrix", lambda: _of_rare_groups(settings, rows))


def _typical(measured, made):
    """Of many groups (draws, m) the one whose mean correlation is the median."""
    means = geometry.mean_pair(geometry.within(measured.matrices["correlation"], made))
    return made[np.argsort(means, kind="stable")[len(means) // 2]]


def _of_rare_groups(settings, rows):
    """The tables that `rows(measured, rare, nulls)` yields for each checkpoint and kind of position, as one."""
    influence, made = influences.influence(settings), []
    for revision in passes.revisions(settings):
        rare = influences.rare_group(influence[influence["revision"] == (revision or "")])
        for where in activations.WHERE:
            measured = activations.sample(settings, revision, where)
            living = rare[np.isin(rare, measured.living)]
            for part in rows(measured, living, comparisons.control_groups(measured, living, seed=settings.seed)):
                made.append(part.assign(revision=revision or "", step=checkpoints.step_of(revision), where=where))
    return pd.concat(made, ignore_index=True).astype({"step": "Int64"})
