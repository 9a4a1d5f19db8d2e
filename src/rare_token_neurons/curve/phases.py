"""Three phases of the ranked influence curve: head, power law, decay.

On a log-log plot the middle of the curve is close to a straight line,

    log influence = -kappa log rank + beta          (natural logarithms, rank from 1).

`fit` takes the fixed head of `heads`: it needs one value a neuron, and no documents, so it cannot say whether a head that
stands above the law is a plateau beyond chance (`heads.judge` does). `by_differences` makes the paper's rule precise: find the
straight middle by finite differences, fit the line there, carry it to the head and to the tail.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.signal import savgol_filter

from rare_token_neurons.curve import heads
from rare_token_neurons.statistics import rankings

# Chosen on planted curves (a head of 1.7 %, a middle of 10 %, a straight or an exponential tail)
# and on Pareto samples; never on a model's curve.
POINTS = 60        # places even in log rank
WINDOW = 5         # points of the smoothing window
THRESHOLD = 0.5    # relative change of the slope per e-fold of rank that still counts as straight
TOLERANCE = 0.3    # e-folds of rank by which the curve may depart from the line


@dataclass(frozen=True)
class Phases:
    """The three phases of one influence curve; together they hold every neuron once.

    head, power_law, decay: neuron indices, int64, by falling influence; each may be empty.
    delta: mean of log influence less the law's line over the head, e-folds of influence: above 0 where the head is raised.
    kappa, beta: the law's slope and intercept (natural logarithms).
    order: all neurons by falling influence.
    boundaries: (last rank of the head, last rank of the power law); 0 where there is no head, the number of neurons where
        there is no decay.
    """

    head: np.ndarray
    power_law: np.ndarray
    decay: np.ndarray
    delta: float
    kappa: float
    beta: float
    order: np.ndarray
    boundaries: tuple[int, int]

    @property
    def shares(self) -> tuple[float, float, float]:
        """Shares of the neurons in head, power law and decay."""
        return tuple(len(part) / len(self.order) for part in (self.head, self.power_law, self.decay))

    def line(self, ranks: np.ndarray) -> np.ndarray:
        """Influence that the law's line gives to `ranks` (from 1), same unit as the input."""
        return np.exp(self.beta - self.kappa * np.log(ranks))


def fit(influence: np.ndarray) -> Phases:
    """Phases of an influence curve, with a head of the paper's share: 1.7 % of the neurons.

    What lies between the head and the law (a cliff) counts to the law here.

    Parameters
    ----------
    influence : (neurons,) float, at or above zero, any order, any unit.

    Returns
    -------
    Phases

    Raises
    ------
    ValueError : fewer than 200 neurons above zero, values that are negative or not finite.

    Example
    -------
    >>> phases = rtn.fit_phases(changes.abs().mean(0).numpy())
    >>> sum(len(part) for part in (phases.head, phases.power_law, phases.decay))
    1536
    """
    order, values = rankings.rank_curve(rankings.check_curve(influence, heads.LEAST_NEURONS))
    alive = int(np.sum(values > 0))
    found = heads.find(values[:alive], "fixed")
    last = int(found.end[0]) if found.decay[0] else alive
    return _parts(order, int(found.size[0]), last, float(found.delta[0]), float(found.kappa[0]), float(found.beta[0]))


def by_differences(influence: np.ndarray) -> Phases:
    """Phases of an influence curve by the paper's finite-difference rule.

    1. Log influence is taken at `POINTS` places even in log rank and smoothed by a straight line fitted in a moving window of
       `WINDOW` points (a line passes unchanged).
    2. The middle is the longest run (a tenth of the points or more) in which |second derivative| < `THRESHOLD` |slope|.
       "About zero" needs something to be judged against: against the slope, the rule does not change when all influences are
       squared, and a flat head, whose second derivative is zero too, is not taken for the power law. A run with a phase on
       both sides goes before a longer one without: a straight head or tail is no middle.
    3. A least-squares line through the middle's points gives kappa and beta.
    4. Walking out of the middle, a phase begins at the first point that departs from the line by more than `TOLERANCE` kappa,
       if the mean of all points beyond departs as far: ABOVE it at the head (a plateau; a head below is none, and counts to
       the power law), BELOW it at the tail (the decay).
    Neurons with influence 0 are dead: left out of the logarithms, counted to the decay.

    Parameters, errors : as in `fit`, from 20 neurons on.

    Source: arXiv 2505.12822, section on the three-phase structure; the numbers are ours.
    """
    order, values = rankings.rank_curve(rankings.check_curve(influence))
    alive = int(np.sum(values > 0))
    x = np.linspace(0.0, np.log(alive), POINTS)
    ranks = np.log(np.arange(1, alive + 1))
    y = np.interp(x, ranks, np.log(values[:alive]))
    found = [_beyond(x, y, run) for run in _straight_runs(x, y)]
    kappa, beta, head, tail, _ = max(found, key=lambda one: (one[2] > 0 and one[3] < POINTS, one[4][1] - one[4][0]))
    first = int(np.exp(x[head - 1]) + 1e-9) if head > 0 else 0
    last = int(np.ceil(np.exp(x[tail]) - 1e-9)) - 1 if tail < POINTS else alive
    delta = float(np.mean(np.log(values[:first]) - beta + kappa * ranks[:first])) if first else 0.0
    return _parts(order, first, last, delta, kappa, beta)


def _parts(order, first, last, *fitted):
    return Phases(order[:first], order[first:last], order[last:], *fitted, order, (first, last))


def _straight_runs(x, y):
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


def _beyond(x, y, run):
    """The line in one run, and where the curve departs from it: (kappa, beta, head, tail, run).

    Points before `head` stand above the line, points from `tail` on lie below it.
    """
    inside = slice(*run)
    slope, beta = np.polyfit(x[inside], y[inside], 1)
    away = y - (slope * x + beta)                 # (points,) above zero: above the line
    limit = TOLERANCE * abs(slope) + 1e-9
    head_mean = np.cumsum(away) / np.arange(1, len(x) + 1)
    tail_mean = (np.cumsum(away[::-1]) / np.arange(1, len(x) + 1))[::-1]
    raised = np.flatnonzero((away > limit)[: run[0]] & (head_mean > limit)[: run[0]])
    sunk = np.flatnonzero((away < -limit)[run[1]:] & (tail_mean < -limit)[run[1]:])
    head = int(raised[-1]) + 1 if len(raised) else 0
    tail = int(sunk[0]) + run[1] if len(sunk) else len(x)
    return float(-slope), float(beta), head, tail, run
