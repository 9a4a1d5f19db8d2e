"""Intervals by drawing documents with replacement, from second moments kept document by document.

Tokens of one document are not independent, so every interval resamples documents. The moments of a group are
computed once; each of a thousand resamples is then a weighted sum over documents, never a pass over tokens.
"""

from dataclasses import dataclass

import numpy as np


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
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), size=draws)
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


def contrast(statistic, activations, documents, group, groups, *, draws=1000, seed=0, centred=True):
    """A group's statistic less its mean over control groups, with the documents resampled in both at once.

    Parameters
    ----------
    statistic : callable, (draws, m, m) -> (draws,), such as `effective_dimension`.
    activations : (tokens, neurons); documents : (tokens,) int.
    group : (m,) neuron indices; groups : (g, m) control groups (50 are enough for their mean).

    Returns
    -------
    value, low, high : float, the difference and its interval.
    """
    activations = np.asarray(activations)
    value, samples = bootstrap(statistic, moments(activations[:, group], documents), draws=draws, seed=seed, centred=centred)
    controls = [bootstrap(statistic, moments(activations[:, other], documents), draws=draws, seed=seed, centred=centred)
                for other in groups]
    value = value - np.mean([control for control, _ in controls], axis=0)
    samples = samples - np.mean([sample for _, sample in controls], axis=0)
    return (float(value), *map(float, interval(value, samples)))
