"""Change points of the influence curve, chosen by held-out documents, with document bootstraps.

The paper's finite-difference rule (`phases.fit`) gives boundaries without uncertainty.  Here the
curve is fitted by a continuous line with 0, 1 or 2 breaks; "no plateau" and "no decay" are possible
answers.  All randomness is over documents: halves are split before documents are drawn, so that no
document both ranks the neurons and measures them, and the neurons are ranked anew in every draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rare_token_neurons.curve import phases, piecewise
from rare_token_neurons.curve.phases import POINTS
from rare_token_neurons.curve.piecewise import Line, bins, boundaries, fit, in_bins, step
from rare_token_neurons.statistics import documents
from rare_token_neurons.statistics.documents import check, curves_drawn, influence, parts
from rare_token_neurons.statistics.rankings import LEAST_NEURONS, order_of

@dataclass(frozen=True)
class Breaks:
    """Phases by change points.

    breaks: number of breaks chosen.  errors: (3,) held-out mean squared error of log influence with
        0, 1 and 2 breaks.  wins: (3, 3), share of the splits in which the column beats the row.
    boundaries: (last rank of the plateau or 0, last rank of the power law or n), as in `Phases`.
    kappa: minus the slope of the power law.  slopes, ranks: of all stretches and breaks.
    intervals: name -> (low, high) at `level`, for "plateau_end", "law_end", "kappa", "plateau_share",
        "law_share", "decay_share", "slope_1" .. and "break_1" ..; ranks from 1.
    plateau_draws, decay_draws: share of the bootstrap draws with a plateau, with a decay.
    x, y, fitted: the curve in bins, log rank and log influence, and the line.
    curve, low, high: (neurons,) influence by rank and its pointwise interval.
    """

    breaks: int
    errors: np.ndarray
    wins: np.ndarray
    boundaries: tuple[int, int]
    kappa: float
    slopes: np.ndarray
    ranks: np.ndarray
    intervals: dict[str, tuple[float, float]]
    level: float
    plateau_draws: float
    decay_draws: float
    x: np.ndarray
    y: np.ndarray
    fitted: np.ndarray
    curve: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def has_plateau(self) -> bool:
        """A plateau in the fitted line and in at least `level` of the draws."""
        return self.boundaries[0] > 0 and self.plateau_draws >= self.level

    @property
    def has_decay(self) -> bool:
        """A decay in the fitted line and in at least `level` of the draws."""
        return self.boundaries[1] < len(self.curve) and self.decay_draws >= self.level


def held_out(sums, counts, *, splits: int = 20, points: int = POINTS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Held-out errors of lines with 0, 1 and 2 breaks.

    The documents are cut into three parts: one ranks the neurons, on one the line is fitted, on one
    it is tested; all three rotations, `splits` times.

    Returns
    -------
    errors : (splits, 3) mean squared error of log influence with 0, 1, 2 breaks.
    x : (bins,)
    """
    thirds = influence(sums, counts, parts(len(counts), 3, splits, np.random.default_rng(seed)))
    starts, x = bins(sums.shape[1], points)
    errors = np.zeros((splits, 3))
    for turn in range(3):
        rank, train, test = (thirds[(turn + step) % 3] for step in range(3))
        order = order_of(rank)
        train, test = (in_bins(np.take_along_axis(values, order, axis=1), starts) for values in (train, test))
        for breaks in range(3):
            errors[:, breaks] += np.square(test - fit(x, train, breaks).fitted).mean(axis=1) / 3
    return errors, x


def choose(errors: np.ndarray, share: float = 0.9) -> tuple[int, np.ndarray]:
    """The fewest breaks that no larger number beats in `share` of the splits; and the table of wins (3, 3)."""
    wins = np.array([[np.mean(errors[:, more] < errors[:, few]) for more in range(3)] for few in range(3)])
    for few in range(3):
        if not any(wins[few, more] >= share for more in range(few + 1, 3)):
            return few, wins
    raise AssertionError("unreachable: nothing beats the largest number of breaks")


def bootstrap(sums: np.ndarray, counts: np.ndarray, *, ranking: str = "split_half", breaks: int | None = None,
              draws: int = 200, splits: int = 20, level: float = 0.95, points: int = POINTS, seed: int = 0) -> Breaks:
    """Change points of the influence curve with intervals over documents.

    Percentile intervals.  With "split_half" the noise of the ranking flattens the curve a little,
    and twice as much in the draws, so that they are wide: on planted curves (`calibration`) those of
    the breaks held the truth in 100 of 100 runs, not 95.  With noise so strong that fewer than two
    breaks are chosen there is no interval for them (52 of 60 runs at noise 1.5).  "same_tokens" held
    the head's break in 48 to 55 of 60.  Three straight stretches are a model: where the tail bends by
    itself (an exponential cut-off) the breaks come late (rank 37 for 30; 52 of 60 intervals held it).

    Parameters
    ----------
    sums : (documents, neurons) per-document sums of |change|, nats (`Influence.abs_sum`); or of the
        change itself, for |mean change|.
    counts : (documents,) positions of each document.
    ranking : "split_half" or "same_tokens".
    breaks : 0, 1 or 2; None: chosen by held-out documents.
    draws : bootstrap draws.   splits : random splits for the choice and for the point estimate.

    Raises
    ------
    ValueError : fewer than 6 documents or 20 neurons with influence, shapes that do not fit,
        values that are not finite.
    """
    sums, counts = check(sums, counts)
    n = sums.shape[1]
    sums = sums[:, np.abs(sums).max(axis=0) > 0]                   # dead neurons: the end of the decay
    alive = sums.shape[1]
    if alive < LEAST_NEURONS:
        raise ValueError(f"a rank curve needs at least {LEAST_NEURONS} neurons with influence, here are {alive}")
    rng = np.random.default_rng(seed)
    errors, x = held_out(sums, counts, splits=splits, points=points, seed=seed)
    chosen, wins = choose(errors)
    breaks = chosen if breaks is None else breaks

    starts = bins(alive, points)[0]
    curve = curves_drawn(sums, counts, splits, rng, ranking=ranking, resample=False)
    y = in_bins(curve, starts).mean(axis=0)
    line = fit(x, y, breaks)
    drawn = curves_drawn(sums, counts, draws, rng, ranking=ranking, resample=True)
    many = fit(x, in_bins(drawn, starts), breaks)

    ends, laws_end, kappa = (float(value) for value in boundaries(line, alive))
    plateaus, laws, _ = boundaries(many, alive)
    dead = np.zeros(n - alive)
    low, high = (np.append(edge, dead) for edge in np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0))
    return Breaks(breaks, errors.mean(axis=0), wins, (round(ends), round(laws_end)), kappa, line.slopes,
                  np.exp(line.knots), _intervals(many, alive, n, x, level), level, float(np.mean(plateaus > 0)),
                  float(np.mean(laws < alive)), x, y, line.fitted, np.append(curve.mean(axis=0), dead), low, high)


def _intervals(many: Line, alive: int, n: int, x: np.ndarray, level: float) -> dict[str, tuple[float, float]]:
    """Percentile intervals over the draws; breaks are widened by half a step of the places tried."""
    plateaus, laws, kappas = boundaries(many, alive)
    half = 0.5 * step(x)

    def interval(values, wider=0.0, most=np.inf):
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        return float(low * np.exp(-wider)), float(min(high * np.exp(wider), most))

    found = {"plateau_end": interval(plateaus, half), "law_end": interval(laws, half, n), "kappa": interval(kappas),
             "plateau_share": interval(plateaus / n, half, 1), "decay_share": interval(1 - laws / n),
             "law_share": interval((laws - plateaus) / n)}
    for place in range(many.knots.shape[-1]):
        found[f"break_{place + 1}"] = interval(np.exp(many.knots[:, place]), half)
    for place in range(many.slopes.shape[-1]):
        found[f"slope_{place + 1}"] = interval(many.slopes[:, place])
    return found


# ---- over checkpoints that read the same documents

PHASES = ("plateau", "power_law", "decay")
QUANTITIES = (*PHASES, "kappa", "beta")
DRAWS, SPLITS = 200, 20
RULE_DRAWS = 100  # each fits the paper's rule once, which is slow


@dataclass(frozen=True)
class Fit:
    """The phases of one curve, with what each draw of documents gives.

    value: quantity -> float, for the shares of the three phases, kappa and beta (natural logarithms, nats).
    samples: quantity -> (draws,). edges: last rank of the plateau (0: none), last rank of the power law.
    curve, low, high: (neurons,) influence by rank and its pointwise interval.
    breaks: number of change points; None: by the paper's rule.
    """

    value: dict[str, float]
    samples: dict[str, np.ndarray]
    edges: tuple[float, float]
    curve: np.ndarray
    low: np.ndarray
    high: np.ndarray
    breaks: int | None = None

    def drawn(self, phase):
        """Share of the draws in which a phase is there."""
        return float(np.mean(self.samples[phase] > 0))

    def told(self, phase):
        """Whether a phase is there, in the fit and in 95 % of the draws."""
        return self.value[phase] > 0 and self.drawn(phase) >= documents.LEVEL

    def law_range(self, values):
        """Smallest and largest influence of the power law that the same rule finds in one sample, (neurons,)."""
        if self.breaks is not None:
            return piecewise.law_range(values, self.breaks)
        first, last = phases.fit(values).boundaries
        falling = -np.sort(-np.asarray(values, dtype=float))
        return float(falling[last - 1]), float(falling[first])


def by_change_points(sums, counts, *, ranking="split_half", draws=DRAWS, splits=SPLITS, seed=0):
    """Phases by a line with breaks, their number chosen by held-out documents: `bootstrap`, its draws kept.

    Parameters
    ----------
    sums : (documents, neurons) per-document sums of |change|, nats; or of the change, for |mean change|.
    counts : (documents,) positions of each document.

    Returns
    -------
    Fit
    """
    sums, counts = documents.check(sums, counts)
    n, sums = sums.shape[1], sums[:, np.abs(sums).max(axis=0) > 0]  # dead neurons: the end of the decay
    alive, rng = sums.shape[1], np.random.default_rng(seed)
    starts, x = piecewise.bins(alive)
    number, _ = choose(held_out(sums, counts, splits=splits, seed=seed)[0])
    curve = documents.curves_drawn(sums, counts, splits, rng, ranking=ranking, resample=False)
    drawn = documents.curves_drawn(sums, counts, draws, rng, ranking=ranking, resample=True)
    line = piecewise.fit(x, piecewise.in_bins(curve, starts).mean(axis=0), number)
    many = piecewise.fit(x, piecewise.in_bins(drawn, starts), number)
    edges = [float(edge) for edge in piecewise.boundaries(line, alive)[:2]]
    low, high = np.quantile(drawn, [(1 - documents.LEVEL) / 2, (1 + documents.LEVEL) / 2], axis=0)
    padded = [np.append(values, np.zeros(n - alive)) for values in (curve.mean(axis=0), low, high)]
    return Fit({name: float(part) for name, part in _quantities(line, x, alive, n).items()},
               _quantities(many, x, alive, n), tuple(edges), *padded, number)


def _quantities(line, x, alive, n):
    """Shares, kappa and beta of fitted lines, each (...)."""
    plateau, law, kappa = piecewise.boundaries(line, alive)
    return dict(zip(QUANTITIES, (plateau / n, (law - plateau) / n, 1 - law / n, kappa, intercept(line, x, alive))))


def intercept(line, x, n):
    """beta of the power law: log influence that its stretch, carried to rank 1, would have; (...)."""
    edges, stretch = piecewise.edges(line, n), piecewise.law(line, n)[..., None]
    centre = sum(np.take_along_axis(edges, stretch + side, axis=-1) for side in (0, 1)) / 2
    place = np.abs(x - centre).argmin(axis=-1)[..., None]  # a bin inside that stretch
    slope = np.take_along_axis(line.slopes, stretch, axis=-1)
    return (np.take_along_axis(line.fitted, place, axis=-1) - slope * x[place])[..., 0]


def by_paper_rule(sums, counts, *, draws=RULE_DRAWS, seed=0):
    """Phases by the paper's finite-difference rule, ranked and measured on the same tokens, as a Fit."""
    sums, counts = documents.check(sums, counts)
    every = np.ones((1, len(counts)))
    value = documents.influence(sums, counts, every)[0]
    weights = documents.redraw(np.repeat(every, draws, axis=0), np.random.default_rng(seed))
    drawn = documents.influence(sums, counts, weights)
    found, many = phases.fit(value), [phases.fit(values) for values in drawn]
    low, high = np.quantile(-np.sort(-drawn, axis=1), [(1 - documents.LEVEL) / 2, (1 + documents.LEVEL) / 2], axis=0)
    samples = np.array([(*one.shares, one.kappa, one.beta) for one in many]).T
    return Fit(dict(zip(QUANTITIES, (*found.shares, found.kappa, found.beta))), dict(zip(QUANTITIES, samples)),
               tuple(map(float, found.boundaries)), np.sort(value)[::-1], low, high)
