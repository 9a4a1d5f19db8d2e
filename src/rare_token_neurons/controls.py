"""What a group of neurons is compared with: groups drawn at random, and groups of look-alikes.

Plain groups are drawn from all living neurons, the studied ones included: under the null hypothesis "this group is
any group" that makes the empirical p value exact. Matched groups replace each neuron by one of its nearest
neighbours in activation scale and output-weight norm: what they do not show is not a matter of scale.
"""

import numpy as np

KINDS = ("random", "matched")
POOR_MATCH = 0.25  # standard deviations; `imbalance` beyond it is usually called poor


def random_groups(pool, size, draws=1000, seed=0):
    """Groups of equal size, drawn without replacement within a group.

    Parameters
    ----------
    pool : (p,) int neuron indices to draw from, or an int: all neurons below it.
    size : neurons a group.

    Returns
    -------
    (draws, size) int64
    """
    pool = np.arange(pool) if np.ndim(pool) == 0 else np.asarray(pool)
    if not 1 <= size <= len(pool):
        raise ValueError(f"Groups of {size} neurons cannot be drawn from {len(pool)}.")
    keys = np.random.default_rng(seed).random((draws, len(pool)))
    return pool[np.argpartition(keys, size - 1, axis=1)[:, :size]].astype(np.int64)


def matching_features(activations, w_out):
    """What matched groups are matched on: log standard deviation of the activation, log norm of the output weights.

    Parameters
    ----------
    activations : (tokens, neurons) ; w_out : (d, neurons).

    Returns
    -------
    (neurons, 2) float64; -inf for a constant neuron, which cannot be matched.
    """
    spread = np.asarray(activations, dtype=np.float64).std(axis=0)
    norm = np.linalg.norm(np.asarray(w_out, dtype=np.float64), axis=0)
    with np.errstate(divide="ignore"):
        return np.log(np.stack([spread, norm], axis=1))


def matched_groups(features, group, pool=None, *, draws=1000, seed=0, neighbours=None):
    """Groups in which each neuron stands for one of `group`: a random one of its nearest neighbours.

    Distances are Euclidean after each feature is divided by its standard deviation over the pool. No neuron of
    `group` is used, and none twice in a group; members choose in random order.

    Parameters
    ----------
    features : (neurons, f) float, such as `matching_features`.
    group : (m,) int ; pool : (p,) int neurons to draw from, None: all with finite features.
    neighbours : candidates a member, at least m (so that one is always left); None: m. Few match better, many
        give more different groups; `imbalance` says how well it went.

    Returns
    -------
    (draws, m) int64, column j in place of group[j].
    """
    features, group = np.asarray(features, dtype=np.float64), np.asarray(group)
    pool = np.flatnonzero(np.isfinite(features).all(axis=1)) if pool is None else np.asarray(pool)
    pool = np.setdiff1d(pool, group)
    size, neighbours = len(group), len(group) if neighbours is None else neighbours
    if not size <= neighbours <= len(pool):
        raise ValueError(f"Each of {size} neurons needs {size} candidates or more, and {len(pool)} neurons are left to "
                         f"choose from: {neighbours} candidates do not fit.")
    if not np.isfinite(features[np.r_[group, pool]]).all():
        raise ValueError("A neuron without finite features (dead or constant) cannot be matched.")
    scaled = features / np.maximum(features[pool].std(axis=0), 1e-12)
    distances = np.linalg.norm(scaled[group][:, None] - scaled[pool][None], axis=-1)  # (m, p)
    candidates = pool[np.argsort(distances, axis=1, kind="stable")[:, :neighbours]]  # (m, neighbours)

    rng = np.random.default_rng(seed)
    turns = rng.random((draws, size)).argsort(axis=1)  # each group's own order of choosing
    used, row = np.zeros((draws, len(features)), dtype=bool), np.arange(draws)
    groups = np.empty((draws, size), dtype=np.int64)
    for member in turns.T:  # (draws,)
        offered = candidates[member]  # (draws, neighbours)
        keys = rng.random(offered.shape) + 2.0 * used[row[:, None], offered]  # a used one loses against any free one
        chosen = offered[row, keys.argmin(axis=1)]
        used[row, chosen] = True
        groups[row, member] = chosen
    return groups


def imbalance(features, group, groups):
    """How far control groups miss the group: difference of the feature means, in the neurons' standard deviations.

    Parameters
    ----------
    features : (neurons, f) ; group : (m,) ; groups : (draws, m).

    Returns
    -------
    (f,) float, 0 where the match is perfect; beyond `POOR_MATCH` it is usually called poor.
    """
    features = np.asarray(features, dtype=np.float64)
    living = features[np.isfinite(features).all(axis=1)]
    return (features[group].mean(axis=0) - features[groups].mean(axis=(0, 1))) / living.std(axis=0)


def missed(features, group, groups=None):
    """`imbalance` as columns of a table: {"imbalance_scale", "imbalance_norm"}, NaN without matched groups (None).

    features : from `matching_features` ; group : (m,) ; groups : (draws, m).
    """
    found = imbalance(features, group, groups) if groups is not None else (np.nan, np.nan)
    return {"imbalance_scale": float(found[0]), "imbalance_norm": float(found[1])}


def empirical_p(value, null, side="two-sided"):
    """The empirical p value (b + 1) / (B + 1), b of B null values being as extreme as `value` or more so.

    Parameters
    ----------
    value : float ; null : (B,) float, missing ones (NaN) left out.
    side : "greater", "less", or "two-sided" (twice the smaller, at most 1).

    Returns
    -------
    float, NaN where the value is missing or no null value is left.
    """
    if side not in ("greater", "less", "two-sided"):
        raise ValueError(f"The side of a test is greater, less or two-sided, not {side!r}.")
    null = np.asarray(null, dtype=np.float64)
    null = null[np.isfinite(null)]
    if not (np.isfinite(value) and len(null)):
        return float("nan")
    greater, less = ((np.sum(null >= value) + 1) / (len(null) + 1), (np.sum(null <= value) + 1) / (len(null) + 1))
    return float({"greater": greater, "less": less, "two-sided": min(1.0, 2 * min(greater, less))}[side])
