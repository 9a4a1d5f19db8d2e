"""The phases of an influence curve with what draws of documents leave of them: by change points, and by the paper's rule.

By change points the curve is fitted by a continuous line with 0, 1 or 2 breaks, whose number held-out documents choose;
"no plateau" and "no decay" are possible answers.  The paper's finite-difference rule (`phases.fit`) gives boundaries
without uncertainty: `by_paper_rule` draws documents for it.  All randomness is over documents: halves are split before
documents are drawn, so that no document both ranks the neurons and measures them, and the neurons are ranked anew in
every draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rare_token_neurons.curve import phases, piecewise
from rare_token_neurons.curve.piecewise import Line, bins, boundaries, fit, in_bins
from rare_token_neurons.statistics import documents
from rare_token_neurons.statistics.documents import LEVEL, check, curves_drawn, influence, parts
from rare_token_neurons.statistics.rankings import LEAST_NEURONS, order_of

PHASES = ("plateau", "power_law", "decay")
QUANTITIES = (*PHASES, "kappa", "beta")
DRAWS, SPLITS = 200, 20
RULE_DRAWS = 100  # each fits the paper's rule once, which is slow
OFTEN = 0.9  # share of the splits in which a larger number of breaks must be the better one


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
    breaks: int | None

    @property
    def boundaries(self) -> tuple[int, int]:
        """(last rank of the plateau or 0, last rank of the power law or n), as in `Phases`."""
        return tuple(round(edge) for edge in self.edges)

    @property
    def kappa(self) -> float:
        """Minus the slope of the power law."""
        return self.value["kappa"]

    def drawn(self, phase: str) -> float:
        """Share of the draws in which a phase is there."""
        return float(np.mean(self.samples[phase] > 0))

    def told(self, phase: str) -> bool:
        """Whether a phase is there, in the fit and in 95 % of the draws."""
        return self.value[phase] > 0 and self.drawn(phase) >= LEVEL

    def law_range(self, values: np.ndarray) -> tuple[float, float]:
        """Smallest and largest influence of the power law that the same rule finds in one sample, (neurons,)."""
        if self.breaks is not None:
            return piecewise.law_range(values, self.breaks)
        first, last = phases.fit(values).boundaries
        falling = -np.sort(-np.asarray(values, dtype=float))
        return float(falling[last - 1]), float(falling[first])


@dataclass(frozen=True)
class Breaks(Fit):
    """Phases by change points: a `Fit`, and the line behind it.

    errors: (3,) held-out mean squared error of log influence with 0, 1 and 2 breaks.
    slopes, ranks: of all stretches and breaks.
    intervals: name -> (low, high), 95 %, for "plateau_end", "law_end", "kappa", "plateau_share", "law_share",
        "decay_share", "slope_1" .. and "break_1" ..; ranks from 1.
    plateau_draws, decay_draws: share of the draws with a plateau, with a decay among the neurons with influence.
    x, y, fitted: the curve in bins, log rank and log influence, and the line.
    """

    errors: np.ndarray
    slopes: np.ndarray
    ranks: np.ndarray
    intervals: dict[str, tuple[float, float]]
    plateau_draws: float
    decay_draws: float
    x: np.ndarray
    y: np.ndarray
    fitted: np.ndarray


# ---- by change points


def held_out(sums, counts, *, splits: int = SPLITS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Held-out errors of lines with 0, 1 and 2 breaks.

    The documents are cut into three parts: one ranks the neurons, on one the line is fitted, on one
    it is tested; all three rotations, `splits` times.

    Returns
    -------
    errors : (splits, 3) mean squared error of log influence with 0, 1, 2 breaks.
    x : (bins,)
    """
    thirds = influence(sums, counts, parts(len(counts), 3, splits, np.random.default_rng(seed)))
    starts, x = bins(sums.shape[1])
    errors = np.zeros((splits, 3))
    for turn in range(3):
        rank, train, test = (thirds[(turn + step) % 3] for step in range(3))
        order = order_of(rank)
        train, test = (in_bins(np.take_along_axis(values, order, axis=1), starts) for values in (train, test))
        for breaks in range(3):
            errors[:, breaks] += np.square(test - fit(x, train, breaks).fitted).mean(axis=1) / 3
    return errors, x


def choose(errors: np.ndarray) -> int:
    """The fewest breaks that no larger number beats in `OFTEN` of the splits: errors (splits, 3)."""
    return next(few for few in range(3)
                if not any(np.mean(errors[:, more] < errors[:, few]) >= OFTEN for more in range(few + 1, 3)))


def bootstrap(sums: np.ndarray, counts: np.ndarray, *, ranking: str = "split_half", breaks: int | None = None,
              draws: int = DRAWS, splits: int = SPLITS, seed: int = 0) -> Breaks:
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
    errors, x = held_out(sums, counts, splits=splits, seed=seed)
    breaks = choose(errors) if breaks is None else breaks

    starts = bins(alive)[0]
    curve = curves_drawn(sums, counts, splits, rng, ranking=ranking, resample=False)
    y = in_bins(curve, starts).mean(axis=0)
    line = fit(x, y, breaks)
    drawn = curves_drawn(sums, counts, draws, rng, ranking=ranking, resample=True)
    many = fit(x, in_bins(drawn, starts), breaks)

    plateaus, laws, _ = boundaries(many, alive)
    dead = np.zeros(n - alive)
    low, high = (np.append(edge, dead) for edge in np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0))
    return Breaks(
        {name: float(part) for name, part in _quantities(line, x, alive, n).items()}, _quantities(many, x, alive, n),
        tuple(float(edge) for edge in boundaries(line, alive)[:2]), np.append(curve.mean(axis=0), dead), low, high, breaks,
        errors.mean(axis=0), line.slopes, np.exp(line.knots), _intervals(many, alive, n, x), float(np.mean(plateaus > 0)),
        float(np.mean(laws < alive)), x, y, line.fitted)


def _intervals(many: Line, alive: int, n: int, x: np.ndarray) -> dict[str, tuple[float, float]]:
    """Percentile intervals over the draws; breaks are widened by half a step of the places tried."""
    plateaus, laws, kappas = boundaries(many, alive)
    half = 0.5 * piecewise.step(x)

    def interval(values, wider=0.0, most=np.inf):
        low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low * np.exp(-wider)), float(min(high * np.exp(wider), most))

    found = {"plateau_end": interval(plateaus, half), "law_end": interval(laws, half, n), "kappa": interval(kappas),
             "plateau_share": interval(plateaus / n, half, 1), "decay_share": interval(1 - laws / n),
             "law_share": interval((laws - plateaus) / n)}
    for place in range(many.knots.shape[-1]):
        found[f"break_{place + 1}"] = interval(np.exp(many.knots[:, place]), half)
    for place in range(many.slopes.shape[-1]):
        found[f"slope_{place + 1}"] = interval(many.slopes[:, place])
    return found


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


# ---- by the paper's rule


def by_paper_rule(sums, counts, *, draws=RULE_DRAWS, seed=0):
    """Phases by the paper's finite-difference rule, ranked and measured on the same tokens, as a Fit."""
    sums, counts = check(sums, counts)
    every = np.ones((1, len(counts)))
    value = influence(sums, counts, every)[0]
    weights = documents.redraw(np.repeat(every, draws, axis=0), np.random.default_rng(seed))
    drawn = influence(sums, counts, weights)
    found, many = phases.fit(value), [phases.fit(values) for values in drawn]
    low, high = np.quantile(-np.sort(-drawn, axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    samples = np.array([(*one.shares, one.kappa, one.beta) for one in many]).T
    return Fit(dict(zip(QUANTITIES, (*found.shares, found.kappa, found.beta))), dict(zip(QUANTITIES, samples)),
               tuple(map(float, found.boundaries)), np.sort(value)[::-1], low, high, None)
