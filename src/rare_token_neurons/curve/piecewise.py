"""Continuous lines with breaks, fitted to the log-log rank curve in bins even in log rank.

The search over break places is exhaustive: the places are the same for every curve, so one
orthonormal basis per choice of places serves all bootstrap draws in one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rare_token_neurons.curve.phases import POINTS

LEAST_POINTS = 4      # bins that every straight stretch must have
KNOTS_PER_POINT = 2   # places tried per point of the curve
INSIDE = 0.1          # of a stretch in log rank, left out at either end where a power law is tested
_LIMIT = 200          # curves fitted at once, for memory


@dataclass(frozen=True)
class Line:
    """Continuous lines with the same number of breaks, fitted to curves (..., points).

    knots: (..., breaks) log rank of the breaks.   slopes: (..., breaks + 1), negative where falling.
    fitted: (..., points) log influence.
    """

    knots: np.ndarray
    slopes: np.ndarray
    fitted: np.ndarray


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
    """All break places (candidates, breaks) and orthonormal bases of their lines (candidates, points, breaks + 2)."""
    at = np.asarray(x)
    places = np.linspace(at[0], at[-1], KNOTS_PER_POINT * len(at))
    inside = np.searchsorted(at, places)                          # (places,) points before each place
    if breaks == 0:
        knots = np.empty((1, 0))
    elif breaks == 1:
        good = (inside >= LEAST_POINTS) & (len(at) - inside >= LEAST_POINTS)
        knots = places[good, None]
    else:
        first, second = np.triu_indices(len(places), 1)
        good = ((inside[first] >= LEAST_POINTS) & (inside[second] - inside[first] >= LEAST_POINTS)
                & (len(at) - inside[second] >= LEAST_POINTS))
        knots = np.stack([places[first[good]], places[second[good]]], axis=1)
    if len(knots) == 0:
        raise ValueError(f"a curve of {len(at)} points is too short for {breaks} breaks")
    return knots, np.linalg.qr(_design(at, knots))[0]


def _design(x: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Columns 1, x, (x - knot)+ ...: (..., points, breaks + 2) for knots (..., breaks)."""
    hinges = np.maximum(x[:, None] - knots[..., None, :], 0.0)
    line = np.broadcast_to(np.stack([np.ones_like(x), x], axis=1), (*hinges.shape[:-1], 2))
    return np.concatenate([line, hinges], axis=-1)


def fit(x: np.ndarray, y: np.ndarray, breaks: int) -> Line:
    """Least-squares continuous line with `breaks` breaks, by trying every pair of places.

    Parameters
    ----------
    x : (points,) rising.   y : (..., points).
    breaks : 0, 1 or 2.

    Raises
    ------
    ValueError : another number of breaks, or too few points for it.
    """
    if breaks not in (0, 1, 2):
        raise ValueError(f"the number of breaks must be 0, 1 or 2, not {breaks}")
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    knots, bases = _candidates(tuple(x), breaks)
    flat = y.reshape(-1, len(x))                                  # (curves, points)
    stacked = bases.transpose(0, 2, 1).reshape(-1, len(x))        # (candidates * k, points)
    best = np.concatenate([
        np.square(stacked @ part.T).reshape(len(knots), breaks + 2, len(part)).sum(axis=1).argmax(axis=0)
        for part in np.split(flat, range(_LIMIT, len(flat), _LIMIT))])
    chosen = knots[best]                                          # (curves, breaks)
    design = _design(x, chosen)
    across = design.swapaxes(-1, -2)
    weights = np.linalg.solve(across @ design, across @ flat[..., None])
    fitted = (design @ weights)[..., 0]
    slopes = np.cumsum(weights[:, 1:, 0], axis=1)
    shape = y.shape[:-1]
    return Line(chosen.reshape(*shape, breaks), slopes.reshape(*shape, breaks + 1), fitted.reshape(y.shape))


def edges(line: Line, n: int) -> np.ndarray:
    """Log ranks between which the stretches lie, over `n` ranks: (..., breaks + 2), from 0 to log n."""
    ends = np.zeros((*line.knots.shape[:-1], 1))
    return np.concatenate([ends, line.knots, ends + np.log(n)], axis=-1)


def law(line: Line, n: int) -> np.ndarray:
    """Which stretch is the power law: (...,) int, 0 for the first.

    Of two stretches the longer one in log rank. Of three the middle one, unless the last is flatter (then there is no
    decay, and the middle may be a mere step between two levels) and longer too.
    """
    length = np.diff(edges(line, n))                              # (..., breaks + 1)
    if length.shape[-1] < 3:
        return length.argmax(axis=-1)
    flatter, longer = (part[..., 2] > part[..., 1] for part in (line.slopes, length))
    return 1 + (flatter & longer)


def windows(line: Line, n: int) -> np.ndarray:
    """Of lines with two breaks, log rank of the head's end, of the law's start and end: (..., 3)."""
    at, places = law(line, n)[..., None], edges(line, n)
    start, end = (np.take_along_axis(places, at + side, axis=-1) for side in (0, 1))
    return np.concatenate([places[..., 1:2], start, end], axis=-1)


def boundaries(line: Line, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Phases of fitted lines over `n` ranks, around the power law (`law`).

    The head, up to the first break, is a plateau only where it lies BELOW the law's line on average (else: outliers);
    what comes after the law is a decay only where it is STEEPER.

    Returns
    -------
    plateau_end : (...,) float rank, 0 without a plateau.
    law_end : (...,) float rank, n without a decay.
    kappa : (...,) minus the slope of the law.
    """
    at, places, slopes = law(line, n)[..., None], edges(line, n), line.slopes
    slope = np.take_along_axis(slopes, at, axis=-1)               # (..., 1)
    # a fitted head is straight: its mean departure from the law's line is that of its middle
    away = (slope - slopes[..., :1]) * places[..., 1:2] / 2
    if slopes.shape[-1] == 3:                                     # between head and law there may be a stretch
        away = away + np.where(at == 2, (slope - slopes[..., 1:2]) * (places[..., 2:3] - places[..., 1:2]), 0.0)
    after = np.take_along_axis(slopes, np.minimum(at + 1, slopes.shape[-1] - 1), axis=-1)
    end = np.take_along_axis(places, at + 1, axis=-1)
    plateau_end = np.where((at > 0) & (away < 0), np.exp(places[..., 1:2]), 0.0)
    law_end = np.where(after < slope, np.exp(end), float(n))
    return plateau_end[..., 0], law_end[..., 0], -slope[..., 0]


def step(x: np.ndarray) -> float:
    """Distance between neighbouring break places, in log rank."""
    return float((x[-1] - x[0]) / (KNOTS_PER_POINT * len(x) - 1))


def law_range(values: np.ndarray, breaks: int = 2) -> tuple[float, float]:
    """Smallest and largest influence of the power law of one sample: the stretch that is the law (`law`), less its ends.

    A break is fitted with an error, and neurons from beyond it would speak against a true law; the last neurons of all
    fall off whatever the law, in a stretch too short for a break of its own. So a tenth of the stretch, in log rank, is
    left out at either end (chosen on planted laws, never on a model's curve; `calibration.middles` counts).

    values : (neurons,) any order; zeros are left out.  `powerlaws.middle(..., refit=law_range)`
    lets every bootstrap sample choose its own range.
    """
    falling = -np.sort(-np.asarray(values, dtype=float))
    falling = falling[falling > 0]
    starts, x = bins(len(falling))
    line = fit(x, in_bins(falling, starts), breaks)
    at = int(law(line, len(falling)))
    start, end = edges(line, len(falling))[at : at + 2]
    margin = INSIDE * (end - start)
    last, first = (round(float(np.exp(rank))) - 1 for rank in (end - margin, start + margin))
    return float(falling[last]), float(falling[first])
