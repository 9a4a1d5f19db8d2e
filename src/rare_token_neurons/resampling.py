"""Intervals by drawing documents with replacement, from second moments kept document by document.

Tokens of one document are not independent, so every interval resamples documents. The moments of a group are
computed once; each of a thousand resamples is then a weighted sum over documents, never a pass over tokens.
"""

from dataclasses import dataclass

import numpy as np

from rare_token_neurons.documents import resamples


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
    parts = np.split((values - origin)[np.argsort(place, kind="stable")], np.cumsum(n)[:-1])  # D arrays (tokens, c)
    return Moments(ids, n, origin, np.stack([part.sum(axis=0) for part in parts]),
                   np.stack([np.einsum("tc,tc->c", part, part) for part in parts]), rows,
                   np.stack([part[:, rows].T @ part for part in parts]))


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


def bootstrap(statistic, moments, *, draws=1000, seed=0, centred=True, batch=250):
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
    samples = [statistic(resampled(moments, part, centred)) for part in np.split(weights, range(batch, draws, batch))]
    return statistic(resampled(moments, np.ones(count), centred))[0], np.concatenate(samples)


def interval(value, samples, level=0.95):
    """The basic bootstrap interval, 2 value - quantiles, which takes off the bias that resampling adds.

    (The mean of absolute correlations, say, rises with noise: in the sample above the truth, in the resamples
    above the sample; percentiles of the resamples would miss in the wrong direction.)

    Parameters
    ----------
    value : (...) ; samples : (draws, ...) from `bootstrap`.

    Returns
    -------
    low, high : (...) float
    """
    tails = np.nanquantile(samples, [(1 + level) / 2, (1 - level) / 2], axis=0)
    return tuple(2 * np.asarray(value, dtype=np.float64) - tails)


def against(values, samples, seed=0):
    """A group's statistic less the mean of its control groups, with an interval.

    Each resample compares the group with ONE control group drawn at random, so that the interval covers the choice of
    the controls as well as that of the documents: with much text any group differs "significantly" from the mean of
    others, a group without a property of its own does not differ from the next one.

    Parameters
    ----------
    values : (1 + g,) the group's statistic, then the controls'.
    samples : (draws, 1 + g) the same for each resample.
    seed : of the choice of the controls.

    Returns
    -------
    value, low, high : float
    """
    values, samples = np.asarray(values, dtype=np.float64), np.asarray(samples, dtype=np.float64)
    value = values[0] - np.nanmean(values[1:])
    control = samples[np.arange(len(samples)), 1 + np.random.default_rng(seed).integers(len(values) - 1, size=len(samples))]
    low, high = interval(value, samples[:, 0] - control)
    return float(value), float(low), float(high)


def outside(activations, documents, groups, *, draws=1000, seed=0, centred=True):
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
    sums = [np.stack([np.bincount(place, column) for column in series.T], axis=1) for series in (inner, outer, inner * outer)]
    weights = resamples(len(ids), draws, seed)
    first, second, product = (weights @ part / (weights @ n)[:, None] for part in sums)
    found = product - first * second if centred else product
    return found[0], found[1:]


def mean(values, documents, *, draws=1000, seed=0, over=None):
    """The mean of values, or the ratio of two means, with its interval over documents.

    Parameters
    ----------
    values : (n,) ; documents : (n,) int.
    over : (n,) or None: the ratio mean(values) / mean(over).

    Returns
    -------
    value, low, high : float
    """
    values = np.asarray(values, dtype=np.float64)
    over = np.ones(len(values)) if over is None else np.asarray(over, dtype=np.float64)
    ids, place = np.unique(documents, return_inverse=True)
    sums = np.bincount(place, values), np.bincount(place, over)
    weights = resamples(len(ids), draws, seed)[1:]
    value = sums[0].sum() / sums[1].sum()
    return (float(value), *map(float, interval(value, (weights @ sums[0]) / (weights @ sums[1]))))
