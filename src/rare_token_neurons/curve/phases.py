"""Three phases of the ranked influence curve: plateau, power law, rapid decay.

Neurons are ranked by influence, largest first.  On a log-log plot the middle
of that curve is close to a straight line,

    log influence = -kappa log rank + beta          (natural logarithms, rank from 1).

`fit` makes the paper's rule precise: find the straight middle by finite
differences, fit the line there, carry it to the head and to the tail, and call
a phase what lies below it.  Change points with intervals are in `changepoints`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.signal import savgol_filter

from rare_token_neurons.statistics import rankings

# Chosen on planted curves (a head of 1.7 %, a middle of 10 %, a straight or an exponential tail)
# and on Pareto samples; never on a model's curve.
POINTS = 60        # places even in log rank
WINDOW = 5         # points of the smoothing window
THRESHOLD = 0.5    # relative change of the slope per e-fold of rank that still counts as straight
TOLERANCE = 0.3    # e-folds of rank by which the curve may fall short of the line


@dataclass(frozen=True)
class Phases:
    """The three phases of one influence curve; together they hold every neuron once.

    plateau, power_law, decay: neuron indices, int64, by falling influence; each may be empty.
    kappa, beta, r2: the line's slope, intercept and R^2 (natural logarithms).
    order: all neurons by falling influence.
    boundaries: (last rank of the plateau, last rank of the power law); 0 where there is no
        plateau, the number of neurons where there is no decay.
    middle: (first, last) rank of the straight stretch in which the line was fitted.
    """

    plateau: np.ndarray
    power_law: np.ndarray
    decay: np.ndarray
    kappa: float
    beta: float
    r2: float
    order: np.ndarray
    boundaries: tuple[int, int]
    middle: tuple[int, int]

    @property
    def shares(self) -> tuple[float, float, float]:
        """Shares of the neurons in plateau, power law and decay."""
        return tuple(len(part) / len(self.order) for part in (self.plateau, self.power_law, self.decay))

    def line(self, ranks: np.ndarray) -> np.ndarray:
        """Influence that the middle's line gives to `ranks` (from 1), same unit as the input."""
        return np.exp(self.beta - self.kappa * np.log(ranks))


def resample(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The curve at `POINTS` places even in log rank.

    Parameters
    ----------
    values : (..., n) float, falling along the last axis, all above zero.

    Returns
    -------
    x : (points,) log rank, from 0 to log n.
    y : (..., points) log influence, linear in log rank between neighbouring ranks.
    """
    n = values.shape[-1]
    x = np.linspace(0.0, np.log(n), POINTS)
    rank = np.clip(np.exp(x), 1, n)
    left = np.minimum(rank.astype(int), n - 1)                     # (points,) rank at or before
    step = (x - np.log(left)) / (np.log(left + 1) - np.log(left))  # (points,) 0 .. 1
    y = np.log(values)
    return x, y[..., left - 1] * (1 - step) + y[..., left] * step


def fit(influence: np.ndarray) -> Phases:
    """Phases of an influence curve by the paper's finite-difference rule.

    1. Log influence is resampled at `POINTS` places even in log rank and smoothed by a
       straight line fitted in a moving window of `WINDOW` points (a line passes unchanged).
    2. The middle is the longest run (a tenth of the points or more) in which
       |second derivative| < `THRESHOLD` |slope|.  "About zero" needs something to be judged
       against: against the slope, the rule does not change when all influences are squared, and
       a flat head, whose second derivative is zero too, is not taken for the power law.  A run
       with a phase on both sides goes before a longer one without: a straight head or tail is
       no middle.
    3. A least-squares line through the middle's points gives kappa, beta and R^2.
    4. Walking out of the middle, a phase begins at the first point that falls below the line by
       more than `TOLERANCE` kappa (at rank r the curve has sunk to where the line is at rank
       r exp(TOLERANCE)), if the mean of all points beyond falls as far.  Below the line at the
       head: plateau.  Below the line at the tail: decay.  A head ABOVE the line is made of
       outliers, a tail above it is flatter than the middle: neither is a phase, both are
       counted to the power law.
    Neurons with influence 0 are dead: left out of the logarithms, counted to the decay.

    Parameters
    ----------
    influence : (neurons,) float, at or above zero, any order, any unit.

    Returns
    -------
    Phases

    Raises
    ------
    ValueError : fewer than 20 neurons above zero, values that are negative or not finite.

    Example
    -------
    >>> phases = rtn.fit_phases(changes.abs().mean(0).numpy())
    >>> sum(len(part) for part in (phases.plateau, phases.power_law, phases.decay))
    1536

    Source: arXiv 2505.12822, section on the three-phase structure; the numbers are ours.
    """
    order, values = rankings.rank_curve(rankings.check_curve(influence))
    alive = int(np.sum(values > 0))
    x, y = resample(values[:alive])
    found = [_phases_beyond(x, y, run) for run in _straight_runs(x, y)]
    kappa, beta, r2, head, tail, run = max(found, key=lambda f: (f[3] > 0 and f[4] < POINTS, f[5][1] - f[5][0]))

    ranks = np.exp(x)
    first = int(ranks[head - 1] + 1e-9) if head > 0 else 0
    last = int(np.ceil(ranks[tail] - 1e-9)) - 1 if tail < POINTS else alive
    middle = (int(np.ceil(ranks[run[0]] - 1e-9)), int(ranks[run[1] - 1] + 1e-9))
    return Phases(order[:first], order[first:last], order[last:], kappa, beta, r2, order, (first, last), middle)


def _straight_runs(x: np.ndarray, y: np.ndarray) -> list[tuple[int, int]]:
    """Half-open runs of points with |second derivative| < `THRESHOLD` |slope|, at least a tenth of all long."""
    least = max(WINDOW, len(x) // 10)
    step = x[1] - x[0]
    slope = np.gradient(savgol_filter(y, WINDOW, polyorder=1), step)
    bend = np.abs(np.gradient(slope, step)) / np.maximum(np.abs(slope), 1e-9)
    straight = np.concatenate([[False], bend < THRESHOLD, [False]])
    edges = np.flatnonzero(np.diff(straight.astype(int)))
    runs = [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2]) if b - a >= least]
    if not runs:                                  # nothing is straight: the least bent stretch stands in
        bent = np.lib.stride_tricks.sliding_window_view(bend, least).max(axis=1)
        runs = [(int(bent.argmin()), int(bent.argmin()) + least)]
    return runs


def _phases_beyond(x, y, run):
    """Line in one run, and where the curve sinks below it: (kappa, beta, r2, head, tail, run).

    Points before `head` are the plateau, points from `tail` on the decay.
    """
    inside = slice(*run)
    slope, beta = np.polyfit(x[inside], y[inside], 1)
    rest = y[inside] - slope * x[inside] - beta
    spread = np.var(y[inside])
    r2 = 1.0 - np.mean(rest**2) / spread if spread > 1e-18 else 1.0
    departure = y - (slope * x + beta)            # (points,) below zero: under the line
    limit = -TOLERANCE * abs(slope) - 1e-9
    head_mean = np.cumsum(departure) / np.arange(1, len(x) + 1)
    tail_mean = (np.cumsum(departure[::-1]) / np.arange(1, len(x) + 1))[::-1]
    below = departure < limit
    heads = np.flatnonzero(below[: run[0]] & (head_mean[: run[0]] < limit))
    tails = np.flatnonzero(below[run[1]:] & (tail_mean[run[1]:] < limit))
    head = int(heads[-1]) + 1 if len(heads) else 0
    tail = int(tails[0]) + run[1] if len(tails) else len(x)
    return float(-slope), float(beta), float(r2), head, tail, run
