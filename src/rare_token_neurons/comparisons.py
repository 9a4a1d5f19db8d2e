"""A group of neurons against control groups: each statistic with its interval, its nulls and its p values.

Two relations, each on two measures, the correlation (centred) and the cosine (uncentred): how the neurons of a group
go together (`within`), and how they go with all other living neurons (`between`). Null values are those of a thousand
control groups on the same tokens, intervals resample documents. The difference from the controls has an interval of its
own: in each resample the group is compared with one control group drawn at random, on the same documents (as in
`resampling.against`), so that the interval covers the choice of the controls too. Few tokens make a dimension too small
and an absolute correlation too large, in the group and in its controls alike: a comparison needs this bias on both
sides, and the intervals leave it in (`spread`).
"""

from dataclasses import dataclass

import numpy as np

from rare_token_neurons import controls, geometry, resampling

MEASURES = {"correlation": True, "cosine": False}  # centred or not
DIMENSIONS = {"effective dimension": "less", "whole components": "less", "participation ratio": "less"}  # paper's side
PAIRS = {"mean": "greater", "mean absolute": "two-sided", "negative share": "less"}
CROSSED = {"mean": "less", "mean absolute": "two-sided", "negative share": "greater"}
DRAWS, LARGE, LARGE_DRAWS = 1000, 100, 200  # control groups; fewer where a group has more than LARGE neurons
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
    return Sample(values, documents, living, controls.matching_features(values, w_out),
                  {measure: geometry.correlation(values, centred) for measure, centred in MEASURES.items()})


def control_groups(sample, group, draws=None, seed=0):
    """Control groups of a group's size: {"random": (draws, m), "matched": (draws, m)}.

    "matched" is missing where the living neurons are too few to match each of the group.
    """
    draws = draws or (DRAWS if len(group) <= LARGE else LARGE_DRAWS)
    made = {"random": controls.random_groups(sample.living, len(group), draws, seed)}
    if len(sample.living) >= 2 * len(group):
        made["matched"] = controls.matched_groups(sample.features, group, sample.living, draws=draws, seed=seed)
    return made


# ---- statistics: blocks of correlations in, one column a statistic out


def dimensions(block, tokens):
    """Three dimensions over the group's size: (..., m, m) -> (..., 3).

    The effective dimension (components that reach 95 % of the variance, the last one by the part that is needed), the
    same as a whole number, as in the paper, and the participation ratio (NaN: too few tokens to correct it).
    """
    m = block.shape[-1]
    ratio = geometry.participation_ratio(block, tokens) if tokens >= m + 3 else np.full(block.shape[:-2], np.nan)
    return np.stack([geometry.effective_dimension(block, interpolate=True), geometry.effective_dimension(block), ratio],
                    axis=-1) / m


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


# ---- a group and its controls


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
        made = resampling.moments(sample.values[:, members], sample.documents)
        return resampling.bootstrap(whole(statistic), made, draws=resamples, seed=seed, centred=centred)

    matrix = sample.matrices["correlation" if centred else "cosine"]
    value, samples = (np.mean(found, axis=0) for found in zip(*map(drawn, np.atleast_2d(groups))))
    null = {kind: statistic(geometry.within(matrix, made)) for kind, made in nulls.items()}
    base = {kind: np.stack([drawn(one)[1] for one in made[:baselines]]) for kind, made in nulls.items()} if baselines else {}
    sides = dict.fromkeys(names, "") if np.ndim(groups) == 2 else names
    return summaries(sides, value, samples, null, base, seed)


def between(sample, group, nulls, *, centred=True, resamples=RESAMPLES, baselines=0, seed=0):
    """Statistics of a group's neurons with all other living ones: rows as in `within`, differences for the mean only."""
    matrix = sample.matrices["correlation" if centred else "cosine"]
    others, m = np.setdiff1d(sample.living, group), len(group)
    parts, found = np.array_split(others, -(-len(others) // COLUMNS)), []
    for part in parts:
        made = resampling.moments(sample.values[:, np.r_[group, part]], sample.documents, rows=np.arange(m))
        found.append(resampling.bootstrap(whole(lambda block: crossed(block[..., m:])), made, draws=resamples,
                                          seed=seed, centred=centred))
    share = np.array([len(part) for part in parts]) / len(others)
    value, samples = (np.tensordot(share, np.stack(made), axes=1) for made in zip(*found))
    null = {kind: crossed_groups(matrix, sample.living, made) for kind, made in nulls.items()}
    base = {kind: _outside(sample, made[:baselines], resamples, seed, centred)
            for kind, made in nulls.items()} if baselines else {}
    return summaries(CROSSED, value, samples, null, base, seed)


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
    return resampling.outside(living, sample.documents, columns, draws=resamples, seed=seed, centred=centred)[1].T[..., None]


def spread(value, samples, level=0.95):
    """The interval of resamples (draws,) around the value: their quantiles, moved so that their mean is the value."""
    return np.quantile(samples, [(1 - level) / 2, (1 + level) / 2]) + value - samples.mean()


def summaries(names, value, samples, null, base, seed=0):
    """One row a statistic; see `within`.

    Parameters
    ----------
    names : statistic -> side of the test, "" for no test ; value : (k,) ; samples : (draws, k).
    null : kind -> (groups, k) ; base : kind -> (g, draws, j), resamples of control groups, for the first j statistics.
    """
    rows, draw = [], np.arange(len(samples))
    for at, (name, side) in enumerate(names.items()):
        low, high = spread(value[at], samples[:, at])
        row = {"statistic": name, "side": side, "value": value[at], "low": low, "high": high}
        for kind in ("random", "matched"):
            drawn = null[kind][:, at] if kind in null else np.full(1, np.nan)
            row |= {kind: drawn.mean(), f"{kind}_low": np.quantile(drawn, 0.025), f"{kind}_high": np.quantile(drawn, 0.975),
                    f"p_{kind}": controls.empirical_p(value[at], drawn, side) if side else np.nan}
            difference, ends = value[at] - drawn.mean(), (np.nan, np.nan)
            if kind in base and at < base[kind].shape[2]:
                one = np.random.default_rng(seed).integers(len(base[kind]), size=len(draw))
                ends = spread(difference, samples[:, at] - base[kind][one, draw, at])
            row |= {f"less_{kind}": difference, f"less_{kind}_low": ends[0], f"less_{kind}_high": ends[1]}
        rows.append({name: entry if isinstance(entry, str) else float(entry) for name, entry in row.items()})
    return rows
