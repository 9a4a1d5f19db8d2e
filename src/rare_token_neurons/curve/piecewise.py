"""Continuous lines with breaks, fitted to the log-log rank curve in bins even in log rank.

The search over break places is exhaustive: the places are the same for every curve, so one
orthonormal basis per choice of places serves all bootstrap draws in one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import comb

import numpy as np

POINTS = 60                             # bins of a curve, before those without a rank fall away
LEAST_POINTS = 4                        # bins that every straight stretch must have
PLACES = {0: 2, 1: 2, 2: 2, 3: 1}       # number of breaks: places tried per bin
_LIMIT = 200                            # curves fitted at once, for memory


@dataclass(frozen=True)
class Line:
    """Continuous lines with the same number of breaks, fitted to curves (..., bins).

    knots: (..., breaks) log rank of the breaks.   slopes: (..., breaks + 1), negative where falling.
    """

    knots: np.ndarray
    slopes: np.ndarray


def bins(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Bins of ranks, even in log rank where the ranks allow it, each with one rank or more.

    Returns
    -------
    starts : (bins,) index of the first rank of each bin (from 0).
    x : (bins,) mean log rank in the bin.
    """
    edges = np.unique(np.round(np.exp(np.linspace(0, np.log(n + 1), POINTS + 1))).astype(int)) - 1
    starts = edges[:-1]
    x = np.add.reduceat(np.log(np.arange(1, n + 1)), starts) / np.diff(edges)
    return starts, x


def in_bins(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Log of the mean influence in each bin: (..., neurons) -> (..., bins).

    A bin without influence (dead neurons) takes the smallest mean of its curve.
    """
    sizes = np.diff(np.append(starts, values.shape[-1]))
    means = np.add.reduceat(values, starts, axis=-1) / sizes
    floor = np.where(means > 0, means, np.inf).min(axis=-1, keepdims=True)
    return np.log(np.where(means > 0, means, floor))


@lru_cache(maxsize=16)
def _candidates(x: tuple[float, ...], breaks: int) -> tuple[np.ndarray, np.ndarray]:
    """All break places (candidates, breaks), and orthonormal bases of what the breaks add to the straight line that all
    share: (breaks * candidates, bins)."""
    at = np.asarray(x)
    places = np.linspace(at[0], at[-1], PLACES[breaks] * len(at))
    chosen = np.array(list(combinations(range(len(places)), breaks)), dtype=int).reshape(comb(len(places), breaks), breaks)
    inside = np.pad(np.searchsorted(at, places)[chosen], ((0, 0), (1, 1)), constant_values=((0, 0), (0, len(at))))
    knots = places[chosen[(np.diff(inside, axis=1) >= LEAST_POINTS).all(axis=1)]]
    if len(knots) == 0:
        raise ValueError(f"a curve of {len(at)} bins is too short for {breaks} breaks")
    bases = np.linalg.qr(_design(at, knots))[0][..., 2:]          # (candidates, bins, breaks)
    return knots, np.ascontiguousarray(bases.transpose(2, 0, 1).reshape(-1, len(at)))


def _design(x: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Columns 1, x, (x - knot)+ ...: (..., bins, breaks + 2) for knots (..., breaks)."""
    hinges = np.maximum(x[:, None] - knots[..., None, :], 0.0)
    line = np.broadcast_to(np.stack([np.ones_like(x), x], axis=1), (*hinges.shape[:-1], 2))
    return np.concatenate([line, hinges], axis=-1)


def fit(x: np.ndarray, y: np.ndarray, breaks: int) -> Line:
    """Least-squares continuous line with `breaks` breaks, by trying all places.

    Parameters
    ----------
    x : (bins,) rising.   y : (..., bins).
    breaks : 0 to 3.

    Raises
    ------
    ValueError : another number of breaks, or too few bins for it.
    """
    if breaks not in PLACES:
        raise ValueError(f"the number of breaks must be 0, 1, 2 or 3, not {breaks}")
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    knots, bases = _candidates(tuple(x), breaks)
    flat = y.reshape(-1, len(x))                                  # (curves, bins)
    best = np.concatenate([
        np.square(bases @ part.T).reshape(breaks, len(knots), len(part)).sum(axis=0).argmax(axis=0)
        for part in np.split(flat - flat.mean(axis=1, keepdims=True), range(_LIMIT, len(flat), _LIMIT))])
    chosen = knots[best]                                          # (curves, breaks)
    design = _design(x, chosen)
    across = design.swapaxes(-1, -2)
    weights = np.linalg.solve(across @ design, across @ flat[..., None])
    slopes = np.cumsum(weights[:, 1:, 0], axis=1)
    return Line(chosen.reshape(*y.shape[:-1], breaks), slopes.reshape(*y.shape[:-1], breaks + 1))
