"""Influence under document weights: halves, bootstrap draws, split-half rank curves, reliability.

Everything starts from per-document sums, so that a draw of documents costs one matrix product.
Shapes: sums (documents, neurons), counts (documents,), weights (..., draws, documents).
"""

from __future__ import annotations

import numpy as np

LEAST_DOCUMENTS = 6
RANKINGS = ("split_half", "same_tokens")


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


def influence(sums: np.ndarray, counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Influence under document weights: |sum over documents| / positions, (..., draws, neurons).

    sums : per-document sums of |change| gives mean |change|; of the change itself, |mean change|.
    """
    return np.abs(weights @ sums) / (weights @ counts)[..., None]


def parts(documents: int, number: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Random cuts of the documents into `number` equal parts: 0/1 weights (number, draws, documents)."""
    label = np.arange(documents) * number // documents
    labels = rng.permuted(np.tile(label, (draws, 1)), axis=1)
    return (labels == np.arange(number)[:, None, None]).astype(float)


def redraw(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bootstrap inside each set of documents: as many as it has, drawn from it with replacement."""
    sizes = weights.sum(axis=-1)
    return rng.multinomial(sizes.astype(int), weights / sizes[..., None]).astype(float)


def resamples(count: int, draws: int, seed) -> np.ndarray:
    """Weights of `count` documents: each once, then drawn with replacement: (1 + draws, count); seed of `default_rng`."""
    every = np.ones((1, count))
    return np.concatenate([every, redraw(np.repeat(every, draws, axis=0), np.random.default_rng(seed))])


def order_of(values: np.ndarray) -> np.ndarray:
    """Neurons by falling influence along the last axis, ties by index."""
    return np.argsort(-values, axis=-1, kind="stable")


def split_half(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Rank curves (draws, neurons): ranked by one half, measured on the other, both ways, averaged."""
    return 0.5 * (np.take_along_axis(second, order_of(first), axis=-1)
                  + np.take_along_axis(first, order_of(second), axis=-1))


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
    if ranking not in RANKINGS:
        raise ValueError(f'ranking must be "split_half" or "same_tokens", not {ranking!r}')
    weights = parts(len(counts), 2 if ranking == "split_half" else 1, draws, rng)
    values = influence(sums, counts, redraw(weights, rng) if resample else weights)
    return split_half(*values) if ranking == "split_half" else -np.sort(-values[0], axis=-1)


def reliability(sums: np.ndarray, counts: np.ndarray, *, splits: int = 20, seed: int = 0) -> float:
    """Split-half reliability: mean correlation of log influence between halves, stepped up (Spearman-Brown)."""
    first, second = influence(sums, counts, parts(len(counts), 2, splits, np.random.default_rng(seed)))
    alive = (first > 0).all(axis=0) & (second > 0).all(axis=0)
    pairs = zip(np.log(first[:, alive]), np.log(second[:, alive]), strict=True)
    r = np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs])
    return float(2 * r / (1 + r))


def detectable(change_sums: np.ndarray, counts: np.ndarray, *, z: float = 1.96) -> np.ndarray:
    """Smallest mean change that can be told from zero, per neuron (neurons,), in the unit of the sums.

    z standard errors of the ratio estimate over documents.
    change_sums : (documents, neurons) per-document sums of the SIGNED change: a mean of absolute
        changes is above zero whatever the noise.
    """
    change_sums, counts = check(change_sums, counts)
    total, k = counts.sum(), len(counts)
    residual = change_sums - np.outer(counts, change_sums.sum(axis=0) / total)
    return z * np.sqrt(k / (k - 1) * np.square(residual).sum(axis=0)) / total
