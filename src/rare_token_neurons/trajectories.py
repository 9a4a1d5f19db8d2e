"""Rank curves and their top groups, followed over checkpoints that read the same documents.

Shapes: sums (documents, neurons) and counts (documents,), one pair a checkpoint. Equal seeds draw equal documents, so
what is drawn at two checkpoints is paired, and a change over training has an interval of its own.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from rare_token_neurons import breaks, documents, lines, networks, phases

PHASES = ("plateau", "power_law", "decay")
QUANTITIES = (*PHASES, "kappa", "beta")
DRAWS, SPLITS, LEVEL = 200, 20, 0.95
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
        return self.value[phase] > 0 and self.drawn(phase) >= LEVEL

    def law_range(self, values):
        """Smallest and largest influence of the power law that the same rule finds in one sample, (neurons,)."""
        if self.breaks is not None:
            return lines.law_range(values, self.breaks)
        first, last = phases.fit(values).boundaries
        falling = -np.sort(-np.asarray(values, dtype=float))
        return float(falling[last - 1]), float(falling[first])


def by_change_points(sums, counts, *, ranking="split_half", draws=DRAWS, splits=SPLITS, seed=0):
    """Phases by a line with breaks, their number chosen by held-out documents: `breaks.bootstrap`, its draws kept.

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
    starts, x = lines.bins(alive)
    number, _ = breaks.choose(breaks.held_out(sums, counts, splits=splits, seed=seed)[0])
    curve = documents.curves_drawn(sums, counts, splits, rng, ranking=ranking, resample=False)
    drawn = documents.curves_drawn(sums, counts, draws, rng, ranking=ranking, resample=True)
    line = lines.fit(x, lines.in_bins(curve, starts).mean(axis=0), number)
    many = lines.fit(x, lines.in_bins(drawn, starts), number)
    edges = [float(edge) for edge in lines.boundaries(line, alive)[:2]]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    padded = [np.append(values, np.zeros(n - alive)) for values in (curve.mean(axis=0), low, high)]
    return Fit({name: float(part) for name, part in _quantities(line, x, alive, n).items()},
               _quantities(many, x, alive, n), tuple(edges), *padded, number)


def _quantities(line, x, alive, n):
    """Shares, kappa and beta of fitted lines, each (...)."""
    plateau, law, kappa = lines.boundaries(line, alive)
    return dict(zip(QUANTITIES, (plateau / n, (law - plateau) / n, 1 - law / n, kappa, intercept(line, x, alive))))


def intercept(line, x, n):
    """beta of the power law: log influence that its stretch, carried to rank 1, would have; (...)."""
    edges, stretch = lines.edges(line, n), lines.law(line, n)[..., None]
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
    low, high = np.quantile(-np.sort(-drawn, axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    samples = np.array([(*one.shares, one.kappa, one.beta) for one in many]).T
    return Fit(dict(zip(QUANTITIES, (*found.shares, found.kappa, found.beta))), dict(zip(QUANTITIES, samples)),
               tuple(map(float, found.boundaries)), np.sort(value)[::-1], low, high)


def first_told(told):
    """When each phase can first be told, and since when it is told at every checkpoint.

    Parameters
    ----------
    told : DataFrame indexed by step (rising), one bool column a phase.

    Returns
    -------
    DataFrame indexed by phase: first, since (Int64, missing where never)
    """
    steady = told[::-1].cummin()[::-1]  # told now and at every later checkpoint
    return pd.DataFrame({name: table.idxmax().where(table.any()).astype("Int64")
                         for name, table in (("first", told), ("since", steady))})


# ---- the top group, and rankings compared


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
    drawn = documents.redraw(np.repeat(plain, draws, axis=1), np.random.default_rng(seed))
    return np.concatenate([plain, drawn], axis=1)


def over_median(values, members):
    """Mean influence of groups over that of the median neuron: values (..., neurons), members (m,) or (g, m)."""
    median = np.median(values, axis=-1)
    return values[..., members].mean(axis=-1) / median.reshape(median.shape + (1,) * (np.ndim(members) - 1))


def median_rank(values, members):
    """Median rank (1: most influential) of groups: values (..., neurons), members (m,) or (g, m)."""
    return np.median(stats.rankdata(-values, axis=-1)[..., members], axis=-1)


@dataclass(frozen=True)
class Ranking:
    """Neurons ranked on two halves of the documents, and again on every draw of them.

    ranks: float32 (2, 1 + draws, neurons), less their mean, of unit norm, so that products are rank correlations.
    members: bool, the same shape: the top group. size: of the top group.
    """

    ranks: np.ndarray
    members: np.ndarray
    size: int


def ranking(values, size):
    """Rank influences (2, 1 + draws, neurons) and mark the `size` largest of each."""
    ranks = stats.rankdata(values, axis=-1)
    ranks -= ranks.mean(axis=-1, keepdims=True)
    norms = np.linalg.norm(ranks, axis=-1, keepdims=True)
    members = np.zeros(values.shape, dtype=bool)
    np.put_along_axis(members, networks.top(values, size), True, axis=-1)
    return Ranking(np.divide(ranks, norms, out=np.zeros_like(ranks), where=norms > 0).astype(np.float32), members, size)


def agreement(first, second):
    """How far two rankings agree when no document serves both: A of one against B of the other, both ways, averaged.

    A ranking against itself gives the agreement that noise leaves, the ceiling for all others.

    Parameters
    ----------
    first, second : Ranking

    Returns
    -------
    correlation, jaccard : (1 + draws,) Spearman's rank correlation over all neurons; Jaccard index of the top groups.
    """
    flipped = second.ranks[::-1], second.members[::-1]
    correlation = np.einsum("hdn,hdn->hd", first.ranks, flipped[0]).mean(axis=0)
    both = (first.members & flipped[1]).sum(axis=-1)
    return correlation, (both / (2 * first.size - both)).mean(axis=0)


def percentile(samples, level=LEVEL):
    """Percentile interval over the last axis: (low, high)."""
    return tuple(np.quantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=-1))


def centred(values, low=-np.inf, high=np.inf):
    """Interval around values[0], as wide as the draws values[1:] spread, kept within `low` and `high`.

    Drawn documents repeat, so a draw's ranking is noisier than the sample's and agreement falls in every draw: the
    draws' percentiles would lie below the estimate. Their spread is what is wanted.
    """
    spread = np.quantile(values[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - values[1:].mean()
    return tuple(float(end) for end in np.clip(values[0] + spread, low, high))
