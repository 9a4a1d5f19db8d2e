"""Do the same neurons matter twice: rankings by influence, their overlap, and their agreement on other documents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

LEAST_NEURONS = 20


def order_of(values: np.ndarray) -> np.ndarray:
    """Neurons by falling influence along the last axis, ties by number: (..., neurons) float -> int.

    Near ties fall as they are measured: rounded first, as many would change places at the edges of the cells. What is made of
    an order should therefore hardly feel two neighbours that swap: groups are sets, and draws belong to neurons, not to ranks.
    """
    return np.argsort(-values, axis=-1, kind="stable")


def top(influence, k):
    """The k most influential neurons: (..., neurons) -> (..., k) int, most influential first."""
    influence = np.asarray(influence)
    if not 1 <= k <= influence.shape[-1]:
        raise ValueError(f"The top of {influence.shape[-1]} neurons has 1 to {influence.shape[-1]} of them, not {k}.")
    return order_of(influence)[..., :k]


def check_curve(influence: np.ndarray, least: int = LEAST_NEURONS) -> np.ndarray:
    """`influence` as a float64 vector (neurons,), or one ValueError that says what is wrong."""
    values = np.asarray(influence, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"influence must have one value per neuron, not the shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"influence holds {np.sum(~np.isfinite(values))} values that are not finite")
    if (values < 0).any():
        raise ValueError(f"influence holds {np.sum(values < 0)} negative values: give a mean absolute change")
    if np.sum(values > 0) < least:
        raise ValueError(f"a rank curve needs at least {least} neurons with influence above zero, "
                         f"here are {np.sum(values > 0)} of {len(values)}")
    return values


def rank_curve(influence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neurons by falling influence.

    Parameters
    ----------
    influence : (neurons,) float, any order.

    Returns
    -------
    order : (neurons,) int64, the neuron at rank 1, 2, ...; ties in order of index.
    values : (neurons,) float64, their influence.
    """
    values = np.asarray(influence, dtype=np.float64)
    order = order_of(values)
    return order, values[order]


def over_median(values, members):
    """Mean influence of groups over that of the median neuron: values (..., neurons), members (m,) or (g, m)."""
    median = np.median(values, axis=-1)
    return values[..., members].mean(axis=-1) / median.reshape(median.shape + (1,) * (np.ndim(members) - 1))


def median_rank(values, members):
    """Median rank (1: most influential) of groups: values (..., neurons), members (m,) or (g, m)."""
    return np.median(stats.rankdata(-values, axis=-1)[..., members], axis=-1)


# ---- two rankings


def shared(first, second, k):
    """How many neurons are among the top k of both: two (..., neurons) influences -> (...) int."""
    members = np.zeros(np.shape(first), dtype=bool)
    np.put_along_axis(members, top(first, k), True, axis=-1)
    return np.take_along_axis(members, top(second, k), axis=-1).sum(axis=-1)


def jaccard(first, second, k):
    """Jaccard index of the two top-k sets, |both| / |either|: two (..., neurons) influences -> (...) float."""
    both = shared(first, second, k)
    return both / (2 * k - both)


def jaccard_by_chance(neurons, k):
    """Jaccard index of two random sets of k among so many neurons, exact (hypergeometric): its mean, low and high (95 %)."""
    null, both = stats.hypergeom(neurons, k, k), np.arange(k + 1)
    low, high = null.interval(0.95)
    return float(null.pmf(both) @ (both / (2 * k - both))), low / (2 * k - low), high / (2 * k - high)


def jaccard_table(first, second, sizes):
    """Overlap of the top k for several k, beside what two unrelated rankings would give.

    The null's mean, its interval and the p value (chance of as many or more in common) are exact.

    Parameters
    ----------
    first, second : (neurons,) influences, higher is more.
    sizes : values of k.

    Returns
    -------
    DataFrame with k, shared, jaccard, null_jaccard, null_low, null_high, p.
    """
    n, rows = len(first), []
    for k in sizes:
        both = int(shared(first, second, k))
        mean, low, high = jaccard_by_chance(n, k)
        rows.append({"k": k, "shared": both, "jaccard": both / (2 * k - both), "null_jaccard": mean, "null_low": low,
                     "null_high": high, "p": float(stats.hypergeom.sf(both - 1, n, k, k))})
    return pd.DataFrame(rows)


def rank_correlation(first, second):
    """Spearman's rank correlation of two rankings: two (..., neurons) influences -> (...) float."""
    ranks = [stats.rankdata(values, axis=-1) for values in (first, second)]
    ranks = [values - values.mean(axis=-1, keepdims=True) for values in ranks]
    norms = [np.sqrt((values**2).sum(axis=-1)) for values in ranks]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (ranks[0] * ranks[1]).sum(axis=-1) / (norms[0] * norms[1])


# ---- rankings on two halves of the documents


@dataclass(frozen=True)
class Ranking:
    """Neurons ranked on two halves of the documents, and again on every draw of them.

    ranks: float32 (2, 1 + draws, neurons), less their mean, of unit norm, so that products are rank correlations.
    members: bool, the same shape: the top group. size: of the top group.
    """

    ranks: np.ndarray
    members: np.ndarray
    size: int


def ranking(values, size):
    """Rank influences (2, 1 + draws, neurons) and mark the `size` largest of each."""
    ranks = stats.rankdata(values, axis=-1)
    ranks -= ranks.mean(axis=-1, keepdims=True)
    norms = np.linalg.norm(ranks, axis=-1, keepdims=True)
    members = np.zeros(values.shape, dtype=bool)
    np.put_along_axis(members, top(values, size), True, axis=-1)
    return Ranking(np.divide(ranks, norms, out=np.zeros_like(ranks), where=norms > 0).astype(np.float32), members, size)


def agreement(first, second):
    """How far two rankings agree when no document serves both: A of one against B of the other, both ways, averaged.

    A ranking against itself gives the agreement that noise leaves, the ceiling for all others.

    Parameters
    ----------
    first, second : Ranking

    Returns
    -------
    correlation, jaccard : (1 + draws,) Spearman's rank correlation over all neurons; Jaccard index of the top groups.
    """
    flipped = second.ranks[::-1], second.members[::-1]
    correlation = np.einsum("hdn,hdn->hd", first.ranks, flipped[0]).mean(axis=0)
    both = (first.members & flipped[1]).sum(axis=-1)
    return correlation, (both / (2 * first.size - both)).mean(axis=0)


# ---- influence beside the scores of token-frequency neurons

SCORES = ("unigram_share", "kl", "entropy", "scale_share")
SIDES = ("boost", "suppress")  # the loss of rare targets rises without the neuron, or falls


def per_nat(neurons, score):
    """(neurons,) a score per nat of influence; a share is relative already. NaN where a neuron has no influence."""
    if score.endswith("share"):
        return neurons[score]
    return neurons[score] / neurons["influence"].where(neurons["influence"] > 0)


def overlaps(neurons):
    """How far the neurons of the rare group are those with the largest scores, boost and suppress apart.

    The changes of KL and entropy are in nats and grow with any effect that a neuron has, so their `shared` is far above
    chance whatever the neurons do. What tests something is `relative`: the same overlap, by the scores per nat of influence.

    Parameters
    ----------
    neurons : rows of `frequency_neurons`: influence, side, rare (whether in the rare group) and the scores.

    Returns
    -------
    DataFrame, one row (score, side): k (neurons of the rare group on that side; none: no row), shared (of these among the top
    k by the score's absolute value; shares by themselves), relative (the same by |score| per nat of influence; for the two
    shares the same as shared), chance (expected of relative), p (hypergeometric, of relative), correlation
    (Spearman's, of influence and |score|), group (median signed score per nat of influence of the rare group; of the two
    shares the median share), others (of the rest)
    """
    rows = []
    for side in ("all", *SIDES):
        part = neurons if side == "all" else neurons[neurons["side"] == side]
        inside = part["rare"].to_numpy(bool)
        k = int(inside.sum())
        if not k:
            continue
        for score in SCORES:
            alike = per_nat(part, score)
            sizes = [one if score.endswith("share") else one.abs() for one in (part[score], alike)]
            shared, relative = (int(inside[top(one, k)].sum()) for one in sizes)
            rows.append({"score": score, "side": side, "neurons": len(part), "k": k, "shared": shared, "relative": relative,
                         "chance": k * k / len(part), "p": float(stats.hypergeom.sf(relative - 1, len(part), k, k)),
                         "correlation": float(part["influence"].corr(sizes[0], method="spearman")),
                         "group": alike[inside].median(), "others": alike[~inside].median()})
    return pd.DataFrame(rows)
