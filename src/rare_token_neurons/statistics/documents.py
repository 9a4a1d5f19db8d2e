"""Everything over documents, the unit of all uncertainty: sums, halves and draws of them, and intervals.

Influence starts from per-document sums, correlations from per-document second moments, so that a draw of documents costs
one matrix product. Shapes: sums (documents, neurons), counts (documents,), weights (..., draws, documents).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rare_token_neurons.statistics import rankings

LEVEL = 0.95  # of an interval
TAILS = (1 - LEVEL) / 2, (1 + LEVEL) / 2
DRAWS = 1000  # of documents, for a mean
BATCH = 250  # of them at once
LEAST_DOCUMENTS = 6
PARTS = {"split_half": 2, "same_tokens": 1}  # a way to rank -> parts of the documents that it takes


def check(sums: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts as float64, or one ValueError that says what is wrong."""
    sums, counts = np.asarray(sums, dtype=float), np.asarray(counts, dtype=float)
    if sums.ndim != 2 or counts.shape != sums.shape[:1]:
        raise ValueError(f"sums must be (documents, neurons) and counts (documents,), not {sums.shape} and {counts.shape}")
    if not (np.isfinite(sums).all() and np.isfinite(counts).all() and (counts > 0).all()):
        raise ValueError("sums must be finite and every document must have at least one position")
    if len(counts) < LEAST_DOCUMENTS:
        raise ValueError(f"intervals over documents need at least {LEAST_DOCUMENTS} documents, here are {len(counts)}")
    return sums, counts


def by_document(effects, owners, among=None):
    """Sums of effects (n, neurons) by document: (documents, neurons), positions (documents,); among: documents, in order."""
    names = np.unique(owners) if among is None else among
    member = np.zeros((len(names), len(owners)))
    member[np.searchsorted(names, owners), np.arange(len(owners))] = 1.0
    return member @ effects, member.sum(axis=1)


def means(sums: np.ndarray, counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means under document weights: sum over documents / positions, (..., draws, neurons)."""
    return weights @ sums / (weights @ counts)[..., None]


def influence(sums: np.ndarray, counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Influence under document weights: |sum over documents| / positions, (..., draws, neurons).

    sums : per-document sums of |change| gives mean |change|; of the change itself, |mean change|.
    """
    return np.abs(means(sums, counts, weights))


# ---- documents halved and drawn


def parts(documents: int, number: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Random cuts of the documents into `number` equal parts: 0/1 weights (number, draws, documents)."""
    label = np.arange(documents) * number // documents
    labels = rng.permuted(np.tile(label, (draws, 1)), axis=1)
    return (labels == np.arange(number)[:, None, None]).astype(float)


def redraw(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bootstrap inside each set of documents: as many as it has, drawn from it with replacement."""
    sizes = weights.sum(axis=-1)
    return rng.multinomial(sizes.astype(int), weights / sizes[..., None]).astype(float)


@lru_cache(maxsize=8)  # control groups by the hundred are drawn alike
def resamples(count: int, draws: int, seed: int | tuple[int, ...]) -> np.ndarray:
    """Weights of `count` documents: each once, then drawn with replacement: (1 + draws, count), read-only."""
    every = np.ones((1, count))
    weights = np.concatenate([every, redraw(np.repeat(every, draws, axis=0), np.random.default_rng(seed))])
    weights.flags.writeable = False
    return weights


def halves(in_a, draws, seed=0):
    """Document weights of the two halves: once as they are, then each drawn with replacement from itself.

    Parameters
    ----------
    in_a : bool (documents,)

    Returns
    -------
    (2, 1 + draws, documents) float: half A, half B; at 0 every document of the half once.
    """
    plain = np.stack([in_a, ~in_a]).astype(float)[:, None]
    drawn = redraw(np.repeat(plain, draws, axis=1), np.random.default_rng(seed))
    return np.concatenate([plain, drawn], axis=1)


# ---- rank curves, and how sure they are


def split_half(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Rank curves (draws, neurons): ranked by one half, measured on the other, both ways, averaged."""
    return 0.5 * (np.take_along_axis(second, rankings.order_of(first), axis=-1)
                  + np.take_along_axis(first, rankings.order_of(second), axis=-1))


def ranked(values: np.ndarray) -> np.ndarray:
    """Rank curves (draws, neurons) of influences (parts, draws, neurons): `split_half` of two parts; of one sorted by itself."""
    return split_half(*values) if len(values) == 2 else -np.sort(-values[0], axis=-1)


def curves_drawn(sums: np.ndarray, counts: np.ndarray, draws: int, rng: np.random.Generator, *,
                 ranking: str = "split_half", resample: bool = True) -> np.ndarray:
    """Rank curves over random halves of the documents.

    Parameters
    ----------
    ranking : "split_half" (ranked on one half, measured on the other) or "same_tokens" (all documents
        for both; the head then carries the winner's curse).
    resample : draw documents with replacement, AFTER the halves are split.

    Returns
    -------
    (draws, neurons) influence by rank; falling for "same_tokens", nearly so for "split_half".
    """
    if ranking not in PARTS:
        raise ValueError(f'ranking must be {" or ".join(PARTS)}, not {ranking!r}')
    weights = parts(len(counts), PARTS[ranking], draws, rng)
    return ranked(influence(sums, counts, redraw(weights, rng) if resample else weights))


def reliability(sums: np.ndarray, counts: np.ndarray, *, seed: int = 0) -> float:
    """Split-half reliability: mean correlation of log influence over 20 pairs of halves, stepped up (Spearman-Brown)."""
    first, second = influence(sums, counts, parts(len(counts), 2, 20, np.random.default_rng(seed)))
    alive = (first > 0).all(axis=0) & (second > 0).all(axis=0)
    pairs = zip(np.log(first[:, alive]), np.log(second[:, alive]), strict=True)
    r = np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs])
    return float(2 * r / (1 + r))


def mean_and_error(sums: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over positions and its standard error, with documents as the unit (ratio estimator).

    Parameters
    ----------
    sums : (documents, neurons) per-document sums ; counts : (documents,) positions.

    Returns
    -------
    mean, error : (neurons,) in the unit of the sums; the error is NaN for a single document, both are without positions
    """
    k, total = len(counts), counts.sum() or np.nan
    mean = sums.sum(axis=0) / total
    squares = np.square(sums - np.outer(counts, mean)).sum(axis=0)
    return mean, np.sqrt((k / (k - 1) if k > 1 else np.nan) * squares) / total


def detectable(change_sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Smallest mean change that can be told from zero, 1.96 standard errors: (neurons,), in the unit of the sums.

    change_sums : (documents, neurons) per-document sums of the SIGNED change: a mean of absolute
        changes is above zero whatever the noise.
    """
    return 1.96 * mean_and_error(*check(change_sums, counts))[1]


def resampled_groups(sums, counts, size, draws, seed):
    """The top `size` neurons by influence when the documents are drawn with replacement.

    sums : (documents, neurons) per-document sums ; counts : (documents,) positions.

    Returns
    -------
    (draws, size) int64, most influential first
    """
    sums, counts = np.asarray(sums, dtype=np.float64), np.asarray(counts)
    return rankings.top(influence(sums, counts, resamples(len(counts), draws, seed)[1:]), size)


# ---- correlations from second moments


@dataclass(frozen=True)
class Moments:
    """Second moments of activations, document by document: all that a bootstrap over documents needs.

    documents (D,) sorted ids; n (D,) tokens of each; origin (c,) the mean that is subtracted before summing;
    sums (D, c) and squares (D, c) of the activations about the origin; rows (r,) the neurons among the c
    columns that products (D, r, c) pairs with all columns.
    """

    documents: np.ndarray
    n: np.ndarray
    origin: np.ndarray
    sums: np.ndarray
    squares: np.ndarray
    rows: np.ndarray
    products: np.ndarray


def moments(activations, documents, rows=None):
    """Per-document second moments.

    Parameters
    ----------
    activations : (tokens, c) float, the columns to correlate.
    documents : (tokens,) int, the document of each token.
    rows : (r,) int, columns to pair with all columns; None pairs all with all.

    Returns
    -------
    Moments
    """
    values, documents = np.asarray(activations, dtype=np.float64), np.asarray(documents)
    if documents.shape != values.shape[:1]:
        raise ValueError(f"Each token has one document: {len(values):,} tokens, but documents of shape {documents.shape}.")
    rows = np.arange(values.shape[1]) if rows is None else np.asarray(rows)
    ids, place, n = np.unique(documents, return_inverse=True, return_counts=True)
    origin = values.mean(axis=0)
    values, starts = (values - origin)[np.argsort(place, kind="stable")], np.cumsum(n) - n
    sums, squares = (np.add.reduceat(part, starts) for part in (values, values**2))  # (D, c)
    products = np.stack([part[:, rows].T @ part for part in np.split(values, starts[1:])])
    return Moments(ids, n, origin, sums, squares, rows, products)


def resampled(moments, weights, centred=True):
    """Correlations when document d counts weights[:, d] times: (draws, D) -> (draws, r, c)."""
    weights = np.atleast_2d(np.asarray(weights, dtype=np.float64))
    count = (weights @ moments.n)[:, None]  # (draws, 1)
    mean = weights @ moments.sums / count  # (draws, c), about the origin
    square = weights @ moments.squares / count
    product = np.tensordot(weights, moments.products, axes=1) / count[..., None]  # (draws, r, c)
    shift = -mean if centred else np.broadcast_to(moments.origin, mean.shape)  # E[(x + shift)(y + shift)]
    square = square + shift * (2 * mean + shift)
    product = (product + shift[:, moments.rows, None] * (mean + shift)[:, None, :]
               + mean[:, moments.rows, None] * shift[:, None, :])
    norm = np.sqrt(np.maximum(square, 0.0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return product / (norm[:, moments.rows, None] * norm[:, None, :])


def bootstrap(statistic, moments, *, draws, seed=0, centred=True):
    """A statistic of the correlations over documents drawn with replacement.

    Equal seeds draw equal documents, so the results for several groups over the same documents are paired.

    Parameters
    ----------
    statistic : callable, (draws, r, c) correlations -> (draws, ...).
    moments : Moments of the group.

    Returns
    -------
    value : (...) the statistic with every document once.
    samples : (draws, ...) the statistic of each resample.
    """
    count = len(moments.documents)
    if count < 2:
        raise ValueError(f"Resampling documents needs at least 2 of them, here is {count}.")
    weights = resamples(count, draws, seed)[1:]
    samples = [statistic(resampled(moments, part, centred)) for part in np.split(weights, range(BATCH, draws, BATCH))]
    return statistic(resampled(moments, np.ones(count), centred))[0], np.concatenate(samples)


def outside(activations, documents, groups, *, draws, seed=0, centred=True):
    """Mean correlation of each group's neurons with the neurons outside it, and its resamples.

    The mean over all pairs is the covariance of two averages of standardised activations, so that a group costs two
    numbers a token. The neurons' scales are those of the whole text, in the resamples too.

    Parameters
    ----------
    activations : (tokens, neurons) without constant neurons ; documents : (tokens,) int ; groups : (g, m) int.

    Returns
    -------
    values : (g,) ; samples : (draws, g)
    """
    groups, z = np.atleast_2d(groups), np.asarray(activations, dtype=np.float64)
    z = z - z.mean(axis=0) if centred else z
    scale = np.sqrt((z**2).mean(axis=0))
    if not (scale > 0).all():
        raise ValueError("The activations hold a constant neuron: leave it out (geometry.alive).")
    size, neurons = groups.shape[1], z.shape[1]
    member = np.zeros((neurons, len(groups)))
    np.put_along_axis(member, groups.T, 1.0, axis=0)
    inner = (z / scale) @ member  # (tokens, g)
    outer = (z @ (1 / scale))[:, None] - inner
    inner, outer = inner / size, outer / (neurons - size)
    ids, place, n = np.unique(documents, return_inverse=True, return_counts=True)
    sums = [np.stack([np.bincount(place, column) for column in series.T], axis=1)
            for series in (inner, outer, inner * outer)]
    weights = resamples(len(ids), draws, seed)
    first, second, product = (weights @ part / (weights @ n)[:, None] for part in sums)
    found = product - first * second if centred else product
    return found[0], found[1:]


# ---- intervals


def percentile(draws):
    """95 % of draws (draws, ...): (low, high)."""
    return tuple(np.quantile(draws, TAILS, axis=0))


def interval(value, draws, kind, within=(-np.inf, np.inf)):
    """95 % interval over documents, by what drawing documents with replacement does to the statistic.

    Parameters
    ----------
    value : (...) every document once ; draws : (draws, ...) of the documents.
    kind : "percentile", the draws' own quantiles: of a mean, or a fitted head, which draws leave in its place.
        "basic", 2 value - quantiles: of what noise raises, in the sample above the truth and in the draws above the sample,
        such as a mean absolute correlation (planted: covers 82 of 100, percentiles none). Missing draws are left out.
        "centred", the quantiles, moved so that their mean is the value: of agreements. Drawn documents repeat, a draw's
        ranking is noisier than the sample's, and draws fall below the value (planted: 92 of 100, percentiles 78).
        "held", the quantiles, widened to hold the value: of a group chosen anew in each draw. Draws let chance members in,
        which pulls towards the null: the end on the null's side errs towards it, the other end promises nothing. Missing
        draws are left out; NaN without the value, or with fewer than two draws.
    within : low and high end of what the statistic can be.

    Returns
    -------
    low, high : (...) float
    """
    match kind:
        case "percentile":
            ends = percentile(draws)
        case "basic":
            ends = 2 * np.asarray(value, dtype=np.float64) - np.nanquantile(draws, TAILS[::-1], axis=0)
        case "centred":
            ends = np.quantile(draws, TAILS, axis=0) + value - np.mean(draws, axis=0)
        case "held" if np.isfinite(value) and np.isfinite(draws).sum() > 1:
            low, high = np.nanquantile(draws, TAILS)
            ends = min(low, value), max(high, value)
        case "held":
            ends = np.nan, np.nan
        case _:
            raise ValueError(f"An interval is percentile, basic, centred or held, not {kind!r}.")
    return tuple(np.clip(ends, *within))


def against(value, draws, centre, others, kind, seed=0):
    """A group's statistic less `centre`, the mean of its control groups', with an interval.

    Each draw of documents compares the group with ONE control group drawn at random, so that the interval covers the choice
    of the controls as well as that of the documents: with much text any group differs "significantly" from the mean of
    others, a group without a property of its own does not differ from the next one.

    Parameters
    ----------
    value, centre : float ; draws : (draws,) the statistic over documents drawn with replacement.
    others : (g, draws) that of control groups over the same draws; of none: no interval.
    kind : of `interval` ; seed : of the choice of the controls.

    Returns
    -------
    value, low, high : float
    """
    if not len(others):
        return float(value - centre), np.nan, np.nan
    one = np.random.default_rng(seed).integers(len(others), size=len(draws))
    less = draws - np.asarray(others)[one, np.arange(len(draws))]
    return tuple(map(float, (value - centre, *interval(value - centre, less, kind))))


def mean(values, documents, *, seed, over=None):
    """The mean of values, or the ratio of two means, with its interval over documents.

    Parameters
    ----------
    values : (n,) ; documents : (n,) int.
    over : (n,) or None: the ratio mean(values) / mean(over).

    Returns
    -------
    value, low, high : float
    """
    place = np.unique(documents, return_inverse=True)[1]
    above, below = (np.bincount(place, part) for part in (values, over if over is not None else np.ones(len(values))))
    weights, value = resamples(len(above), DRAWS, seed)[1:], above.sum() / below.sum()
    return tuple(map(float, (value, *interval(value, (weights @ above) / (weights @ below), "basic"))))
