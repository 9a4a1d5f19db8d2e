"""A group of neurons beside what it is compared with: groups drawn at random, and groups of look-alikes.

Plain groups are drawn from all living neurons, the studied ones included: under the null hypothesis "this group is
any group" that makes the empirical p value exact. Matched groups replace each neuron by one of its nearest
neighbours in activation scale and output-weight norm: what they do not show is not a matter of scale. The head of the
ranked curve is kept out of them, or a group would be compared with more of its kind.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from rare_token_neurons.statistics import documents, geometry

KINDS = ("random", "matched")
POOR_MATCH = 0.25  # standard deviations: beyond it, matched groups match too poorly to be a control (`imbalance`)
FEATURES = ("scale", "norm")  # what `matching_features` tells


def random_groups(pool, size, draws, seed=0):
    """Groups of equal size, drawn without replacement within a group; one neuron more in the pool changes only those that hold it.

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
    keys = np.random.default_rng(seed).random((pool.max() + 1, draws))[pool].T  # a neuron's keys are its own
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


def matched_groups(features, group, pool, *, draws, seed=0):
    """Groups in which each neuron stands for one of `group`: a random one of its m nearest neighbours.

    Distances are Euclidean after each feature is divided by its standard deviation over the pool. No neuron of
    `group` is used, and none twice in a group; members choose in random order (with m candidates one is always left).
    A member's draws are its own: they depend on `seed` and its number, not on its place in the group. `imbalance` says how
    well they match.

    Parameters
    ----------
    features : (neurons, f) float, such as `matching_features`.
    group : (m,) int ; pool : (p,) int neurons to draw from.

    Returns
    -------
    (draws, m) int64, column j in place of group[j].
    """
    features, group = np.asarray(features, dtype=np.float64), np.asarray(group)
    pool, size = np.setdiff1d(pool, group), len(group)
    if size > len(pool):
        raise ValueError(f"Each of {size} neurons needs {size} candidates, and {len(pool)} neurons are left to choose from.")
    if not np.isfinite(features[np.r_[group, pool]]).all():
        raise ValueError("A neuron without finite features (dead or constant) cannot be matched.")
    scaled = features / np.maximum(features[pool].std(axis=0), 1e-12)
    distances = np.linalg.norm(scaled[group][:, None] - scaled[pool][None], axis=-1)  # (m, p)
    candidates = pool[np.argsort(distances, axis=1, kind="stable")[:, :size]]  # (m, m)

    keys = np.stack([np.random.default_rng([seed, neuron]).random((draws, 1 + size), np.float32) for neuron in group])
    turns = keys[..., 0].T.argsort(axis=1)  # each group's own order of choosing
    used, row = np.zeros((draws, len(features)), dtype=bool), np.arange(draws)
    groups = np.empty((draws, size), dtype=np.int64)
    for member in turns.T:  # (draws,)
        offered = candidates[member]  # (draws, m)
        wanted = keys[member, row, 1:] + 2.0 * used[row[:, None], offered]  # a used one loses against any free one
        chosen = offered[row, wanted.argmin(axis=1)]
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
    (f,) float, 0 where the match is perfect; beyond `POOR_MATCH` it is poor.
    """
    features = np.asarray(features, dtype=np.float64)
    living = features[np.isfinite(features).all(axis=1)]
    return (features[group].mean(axis=0) - features[groups].mean(axis=(0, 1))) / living.std(axis=0)


def missed(features, group, groups):
    """`imbalance` as columns of a table: {"imbalance_scale", "imbalance_norm"}, NaN without matched groups (None).

    features : from `matching_features`, or the norm alone, (neurons, 1) ; group : (m,) ; groups : (draws, m).
    """
    names = FEATURES[-features.shape[1]:]
    found = imbalance(features, group, groups) if groups is not None else np.full(len(names), np.nan)
    return {f"imbalance_{name}": float(value) for name, value in zip(names, found)}


def windows(scale, pool, size):
    """Groups of neighbours along one feature: the pool by falling value, cut every `size` neurons; what is left is left out.

    Parameters
    ----------
    scale : (neurons,) float, such as the first of `matching_features` ; pool : (p,) int ; size : neurons a group.

    Returns
    -------
    (p // size, size) int64
    """
    order = pool[np.argsort(-scale[pool], kind="stable")]
    return order[: len(order) // size * size].reshape(-1, size)


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
    null = np.asarray(null, dtype=np.float64)
    null = null[np.isfinite(null)]
    if not (np.isfinite(value) and len(null)):
        return float("nan")
    greater, less = (float(np.sum(as_extreme) + 1) / (len(null) + 1) for as_extreme in (null >= value, null <= value))
    match side:
        case "greater":
            return greater
        case "less":
            return less
        case "two-sided":
            return min(1.0, 2 * min(greater, less))
    raise ValueError(f"The side of a test is greater, less or two-sided, not {side!r}.")


def among(value, null, side=""):
    """Where a value lies among control groups.

    Parameters
    ----------
    value : float ; null : (groups,) that of the control groups, missing ones left out ; side : of the test, "" for none.

    Returns
    -------
    mean, low, high (95 %) of the control groups, p (`empirical_p`) : float, NaN where no group is left
    """
    null = np.asarray(null)
    null = null[np.isfinite(null)]
    if not len(null):
        return (np.nan,) * 4
    low, high = (float(np.quantile(null, end)) for end in (0.025, 0.975))
    return float(null.mean()), low, high, empirical_p(value, null, side) if side else np.nan


# ---- activations, and control groups drawn from them

MEASURES = {"correlation": True, "cosine": False}  # centred or not
DIMENSIONS = {"effective dimension": "less", "whole components": "less", "participation ratio": "less"}  # paper's side
PAIRS = {"mean": "greater", "mean absolute": "greater", "negative share": "less"}
CROSSED = {"mean": "less", "mean absolute": "two-sided", "negative share": "greater"}
DRAWS, LARGE, LARGE_DRAWS = 1000, 100, 200  # control groups; fewer where a group has more than LARGE neurons
MODULE_DRAWS = 200  # of them, where communities are sought, which are not cheap
RESAMPLES = 500  # draws of documents
BASELINES = 50  # of the control groups, to compare with over resampled documents
COLUMNS = 256  # other neurons at once


@dataclass(frozen=True)
class Sample:
    """Activations at some positions, and what every group needs of them.

    values: float32 (tokens, neurons); documents: int (tokens,); living: (p,) neurons that vary; features:
    (neurons, 2), what matched groups are matched on; matrices: correlation and cosine, each (neurons, neurons).
    """

    values: np.ndarray
    documents: np.ndarray
    living: np.ndarray
    features: np.ndarray
    matrices: dict


def sample(values, documents, w_out):
    """A `Sample` of activations (tokens, neurons); w_out (d, neurons), the neurons' output weights."""
    living = np.flatnonzero(geometry.alive(values))
    return Sample(values, documents, living, matching_features(values, w_out),
                  {measure: geometry.correlation(values, centred) for measure, centred in MEASURES.items()})


def control_groups(sample, group, draws=None, seed=0, *, apart=()):
    """Control groups of a group's size: {"random": (draws, m), "matched": (draws, m)}.

    "matched" is missing where too few neurons are left to match each of the group.

    Parameters
    ----------
    sample : Sample ; group : (m,) int, living neurons.
    draws : groups of a kind; None: as many as is usual.
    apart : (a,) int, neurons that no matched group holds, beside the group itself; a random one may.
    """
    draws = draws or (DRAWS if len(group) <= LARGE else LARGE_DRAWS)
    made = {"random": random_groups(sample.living, len(group), draws, seed)}
    pool = np.setdiff1d(sample.living, np.union1d(group, apart))
    if len(pool) >= len(group):
        made["matched"] = matched_groups(sample.features, group, pool, draws=draws, seed=seed)
    return made


# ---- statistics: blocks of correlations in, one column a statistic out


def dimensions(block, tokens):
    """Three dimensions over the group's size: (..., m, m) -> (..., 3).

    The effective dimension (components that reach 95 % of the variance, the last one by the part that is needed), the
    same as a whole number, as in the paper, and the participation ratio (NaN: too few tokens to correct it).
    """
    m = block.shape[-1]
    ratio = geometry.participation_ratio(block, tokens) if tokens >= m + 3 else np.full(block.shape[:-2], np.nan)
    dimension = geometry.effective_dimension(block, interpolate=True)
    return np.stack([dimension, np.ceil(dimension), ratio], axis=-1) / m


def pairs(block):
    """Mean, mean absolute value and share of negative ones over a group's pairs: (..., m, m) -> (..., 3)."""
    return np.stack([geometry.mean_pair(block), geometry.mean_abs_pair(block), geometry.negative_share(block)], axis=-1)


def crossed(block):
    """The same over all entries of blocks between groups: (..., r, c) -> (..., 3)."""
    return np.stack([block.mean((-2, -1)), np.abs(block).mean((-2, -1)), (block < 0).mean((-2, -1))], axis=-1)


def crossed_groups(matrix, living, groups):
    """`crossed` of many groups with the living neurons outside each of them: groups (g, m) -> (g, 3)."""
    m, n = groups.shape[1], len(living)
    columns, alive = [], np.isin(np.arange(len(matrix)), living).astype(np.float64)
    for values in (np.nan_to_num(matrix), np.nan_to_num(np.abs(matrix)), (matrix < 0).astype(np.float64)):
        total = (values @ alive)[groups].sum(axis=1)  # (g,), the group's own pairs included
        columns.append((total - geometry.within(values, groups).sum((-2, -1))) / (m * (n - m)))
    return np.stack(columns, axis=-1)


def whole(statistic):
    """The statistic, for blocks in which a neuron may be silent in all the documents drawn: 0 for what is missing."""
    return lambda block: statistic(np.clip(np.nan_to_num(block), -1, 1))


# ---- a group against its controls


def within(sample, groups, nulls, names, statistic, *, centred=True, resamples=RESAMPLES, baselines=0, seed=0):
    """Statistics inside a group.

    Parameters
    ----------
    groups : (m,) a group, or (g, m) groups whose mean is taken (samples of a phase): these have no p value.
    nulls : control groups by kind, from `control_groups`.
    names : the statistics' names and the side of the test; statistic : (..., m, m) -> (..., len(names)).
    baselines : control groups for the interval of the difference; 0: no difference.

    Returns
    -------
    list of dict, one a statistic: statistic, side, value, low, high, and for each kind of control its mean (kind), its
    95 % band (kind_low, kind_high), p (p_kind), and the difference with interval (less_kind, ..._low, ..._high)
    """

    def drawn(members):
        made = documents.moments(sample.values[:, members], sample.documents)
        return documents.bootstrap(whole(statistic), made, draws=resamples, seed=seed, centred=centred)

    matrix = sample.matrices["correlation" if centred else "cosine"]
    value, samples = (np.mean(found, axis=0) for found in zip(*map(drawn, np.atleast_2d(groups))))
    null = {kind: statistic(geometry.within(matrix, made)) for kind, made in nulls.items()}
    base = {kind: np.stack([drawn(one)[1] for one in made[:baselines]]) for kind, made in nulls.items()} if baselines else {}
    sides = dict.fromkeys(names, "") if np.ndim(groups) == 2 else names
    return beside(sides, value, samples, null, base, seed)


def between(sample, group, nulls, *, centred=True, resamples=RESAMPLES, baselines=0, seed=0):
    """Statistics of a group's neurons with all other living ones: rows as in `within`, differences for the mean only."""
    matrix = sample.matrices["correlation" if centred else "cosine"]
    others = np.setdiff1d(sample.living, group)
    parts = np.array_split(others, -(-len(others) // COLUMNS))
    found = [_crossed_drawn(sample, group, part, resamples, seed, centred) for part in parts]
    share = np.array([len(part) for part in parts]) / len(others)
    value, samples = (np.tensordot(share, np.stack(made), axes=1) for made in zip(*found))
    null = {kind: crossed_groups(matrix, sample.living, made) for kind, made in nulls.items()}
    base = {kind: _outside(sample, made[:baselines], resamples, seed, centred)
            for kind, made in nulls.items()} if baselines else {}
    return beside(CROSSED, value, samples, null, base, seed)


def across(sample, first, second, nulls, *, centred, seed):
    """Statistics of one group's neurons with another's: rows as in `between`, without intervals of the differences.

    nulls : control groups of both together (see `control_groups`), the first group's members in front.
    """
    value, samples = _crossed_drawn(sample, first, second, RESAMPLES, seed, centred)
    matrix, m = sample.matrices["correlation" if centred else "cosine"], len(first)
    null = {kind: crossed(matrix[made[:, :m, None], made[:, None, m:]]) for kind, made in nulls.items()}
    return beside(CROSSED, value, samples, null, {}, seed)


def _crossed_drawn(sample, first, second, resamples, seed, centred):
    """`crossed` of two groups, and over resampled documents."""
    m = len(first)
    made = documents.moments(sample.values[:, np.r_[first, second]], sample.documents, rows=np.arange(m))
    return documents.bootstrap(whole(lambda block: crossed(block[..., m:])), made, draws=resamples, seed=seed,
                               centred=centred)


def relations(sample, group, nulls, *, outside, **options):
    """Rows of pairs within a group and, where `outside`, between it and the other neurons, for both measures.

    Parameters
    ----------
    group, nulls, options : as in `within`.

    Returns
    -------
    list of dict: relation ("within", "between"), measure ("correlation", "cosine"), and the columns of `within`
    """
    rows = []
    for measure, centred in MEASURES.items():
        found = within(sample, group, nulls, PAIRS, pairs, centred=centred, **options)
        rows += [{"relation": "within", "measure": measure} | row for row in found]
        if outside:
            found = between(sample, group, nulls, centred=centred, **options)
            rows += [{"relation": "between", "measure": measure} | row for row in found]
    return rows


def _outside(sample, groups, resamples, seed, centred):
    """Resamples of groups' mean correlation with the living neurons outside them: (g, resamples, 1)."""
    columns, living = np.searchsorted(sample.living, groups), sample.values[:, sample.living]
    return documents.outside(living, sample.documents, columns, draws=resamples, seed=seed, centred=centred)[1].T[..., None]


def beside(names, value, draws, null, base, seed=0):
    """One row a statistic; see `within`.

    Parameters
    ----------
    names : statistic -> side of the test, "" for no test ; value : (k,) ; draws : (draws, k).
    null : kind -> (groups, k) ; base : kind -> (g, draws, j), draws of control groups, for the first j statistics.
    """
    return [_beside(name, side, value[at], draws[:, at], {kind: made[:, at] for kind, made in null.items()},
                    {kind: made[..., at] for kind, made in base.items() if at < made.shape[2]}, seed)
            for at, (name, side) in enumerate(names.items())]


def _beside(name, side, value, draws, null, others, seed):
    """One row of `beside`: draws (draws,), null of a kind (groups,), others (g, draws)."""
    low, high = map(float, documents.interval(value, draws, "centred"))
    random, matched = (_of_kind(kind, value, draws, null.get(kind, ()), others.get(kind, ()), side, seed) for kind in KINDS)
    return {"statistic": name, "side": side, "value": float(value), "low": low, "high": high} | random | matched


def _of_kind(kind, value, draws, null, others, side, seed):
    """The columns of `within` on one kind of control: null (groups,), others (g, draws)."""
    mean, low, high, p = among(value, null, side)
    difference = documents.against(value, draws, mean, others, "centred", seed)
    return {kind: mean, f"{kind}_low": low, f"{kind}_high": high, f"p_{kind}": p} | less(kind, difference)


def less(kind, difference):
    """The columns of a difference from a kind of control: (value, low, high) -> less_X, less_X_low, less_X_high."""
    return dict(zip(less_columns(kind), difference))


def less_columns(kind):
    """The names of these columns."""
    return tuple(f"less_{kind}{end}" for end in ("", "_low", "_high"))


def compare(own, resampled, nulls, sides, fitted):
    """A group's statistics beside those of its controls.

    Parameters
    ----------
    own : one row of `measure` ; resampled : rows for the group chosen anew ; nulls : name -> rows of control groups,
    one of them "random" ; sides : statistic -> side of the tests ; fitted : the statistics that a fit may miss.

    Returns
    -------
    DataFrame, one row a statistic: statistic, side (of the tests: the heavier tail), value, low, high (95 % over
    documents), difference, difference_low, difference_high (the same three less random_mean), for each null the columns of
    `bands`; missing (the share of failed fits in everything compared).
    """
    everything = pd.concat([own, resampled, *nulls.values()])
    tried = {True: everything[everything["status"].notna()], False: everything}  # for what a fit may miss, and the rest
    rows = []
    for statistic, side in sides.items():
        value, null = float(own[statistic].iloc[0]), {kind: made[statistic] for kind, made in nulls.items()}
        (low, high), centre = documents.interval(value, resampled[statistic], "held"), null["random"].mean()
        rows.append({"statistic": statistic, "side": side, "value": value, "low": low, "high": high,
                     "difference": value - centre, "difference_low": low - centre, "difference_high": high - centre,
                     **bands(value, null, side), "missing": tried[statistic in fitted][statistic].isna().mean()})
    return pd.DataFrame(rows)


def bands(value, nulls, side):
    """`among` as columns, for each kind X of control: X_mean, X_low, X_high, p_X, and X_draws, how many of them there are.

    nulls : kind -> (groups,).
    """
    return {f"{before}{kind}{after}": found for kind, null in nulls.items() for (before, after), found in zip(
        (("", "_mean"), ("", "_low"), ("", "_high"), ("p_", ""), ("", "_draws")),
        (*among(value, null, side), int(np.isfinite(null).sum())))}
