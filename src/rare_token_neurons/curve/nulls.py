"""What the rank curve looks like by chance, and whether the measured head differs from that.

Independent draws from a lognormal, a half-normal or an exponential, ranked and drawn log-log, show
a shallow head, a straight middle and a cliff too.  A null curve therefore stands beside every
measured one, passes through the same noisy measurement, and the head is compared by the signed
departure from the line of the middle, the law of `piecewise.law`: below the line is a plateau, above it are outliers.
How far ranking alone lifts a group above the median neuron says `ranked_null`.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from rare_token_neurons.curve.piecewise import bins, fit, in_bins, windows
from rare_token_neurons.statistics import documents, rankings
from rare_token_neurons.statistics.controls import empirical_p
from rare_token_neurons.statistics.documents import LEVEL, check, curves_drawn, influence, parts, redraw, split_half
from rare_token_neurons.statistics.rankings import check_curve, order_of

FAMILIES = ("lognormal", "half-normal", "exponential")
LEAST_NULLS = 10


@dataclass(frozen=True)
class Comparison:
    """A measured curve against null curves of the same size.

    departure: the head's mean departure from the middle's line in e-folds of rank, below zero under
        the line.  null_departure: (nulls,) that of each null curve at the same ranks.
    share: share of the neurons before the first break.  null_share: (nulls,).
    p_plateau: chance of a head as far BELOW under the null.  p_outliers: as far ABOVE.
    p_share: chance of a share as extreme, two-sided.   All p: (b + 1) / (nulls + 1).
    ranks: (first, second) break of the measured curve.
    low, high: (neurons,) band of the null curves by rank, 95 %.
    log_likelihood: of the fitted family on the measured influences; nan for other nulls.
    """

    departure: float
    null_departure: np.ndarray
    share: float
    null_share: np.ndarray
    p_plateau: float
    p_outliers: float
    p_share: float
    ranks: tuple[float, float]
    low: np.ndarray
    high: np.ndarray
    log_likelihood: float = float("nan")

    def verdict(self, level: float = 0.05) -> str:
        """In plain words, each side at `level`, one-sided: the claim names the side."""
        if self.p_plateau <= level and self.departure < 0:
            return "plateau beyond the null"
        return "no plateau beyond the null" + (", but outliers" if self.p_outliers <= level else "")


def distribution(values: np.ndarray, family: str):
    """Maximum-likelihood fit of one family to influences above zero: a frozen scipy distribution."""
    values = check_curve(values)
    values = values[values > 0]
    if family == "lognormal":
        logs = np.log(values)
        return stats.lognorm(s=logs.std(), scale=np.exp(logs.mean()))
    if family == "half-normal":
        return stats.halfnorm(scale=np.sqrt(np.mean(values**2)))
    if family == "exponential":
        return stats.expon(scale=values.mean())
    raise ValueError(f"the null family must be one of {', '.join(FAMILIES)}, not {family!r}")


def sample(values: np.ndarray, family: str, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Order statistics of a fitted family: (draws, neurons), falling, as many as `values` has above zero."""
    n = int(np.sum(np.asarray(values) > 0))
    return -np.sort(-distribution(values, family).rvs((draws, n), random_state=rng), axis=1)


def remeasure(truth: np.ndarray, sums: np.ndarray, counts: np.ndarray, rng: np.random.Generator, *,
              ranking: str = "split_half") -> np.ndarray:
    """Null curves as they would have been measured: with the documents' noise and the same ranking.

    The null value of rank r takes the place of the neuron of rank r, whose relative change between
    a document half and a bootstrap draw of this half is the noise.  Without it a split-half curve,
    which regresses to the mean at both ends, would be compared with a noiseless one.

    truth : (draws, neurons) null influences, falling.   sums, counts : of the measured neurons.
    """
    halves = parts(len(counts), 2 if ranking == "split_half" else 1, len(truth), rng)
    plain, drawn = influence(sums, counts, halves), influence(sums, counts, redraw(halves, rng))
    noise = np.divide(drawn, plain, out=np.ones_like(plain), where=plain > 0)     # (halves, draws, neurons)
    overall = order_of(influence(sums, counts, np.ones((1, len(counts))))[0])     # neurons by rank
    values = truth * noise[..., overall]
    return split_half(*values) if ranking == "split_half" else -np.sort(-values[0], axis=-1)


def departures(x: np.ndarray, y: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Signed departure of the head from the line fitted in the middle.

    Parameters
    ----------
    x : (points,) log rank.   y : (curves, points) log influence.
    windows : (windows, 3) log rank where the head ends, where the middle starts and ends (`piecewise.windows`).

    Returns
    -------
    (windows, curves) mean departure over the head divided by the middle's kappa, e-folds: the rank
    distance to the line; the unit and the power of the influence do not matter.
    """
    nats, kappa = np.empty((2, len(windows), len(y)))
    for place, (end, first, last) in enumerate(windows):
        head, middle = x <= end, (x >= first) & (x <= last)
        centred = x[middle] - x[middle].mean()
        slope = y[:, middle] @ centred / (centred @ centred)
        line_at_head = y[:, middle].mean(axis=1) + slope * (x[head].mean() - x[middle].mean())
        nats[place] = y[:, head].mean(axis=1) - line_at_head
        kappa[place] = -slope
    return nats / np.maximum(kappa, 1e-3)


def compare(x: np.ndarray, y: np.ndarray, curves: np.ndarray) -> Comparison:
    """Head of a measured curve against null curves.

    The measured curve chooses its two breaks so as to bend there; a null curve must be allowed the
    same.  At the breaks of every curve (measured or null) its own departure is standardised by that
    of all null curves at the same ranks; p compares these standard scores.

    Parameters
    ----------
    x, y : (bins,) the measured curve in bins (`Breaks.x`, `Breaks.y`).
    curves : (nulls, neurons) null rank curves (falling or nearly so), at least 10: of a fitted family,
        an untrained model, shuffled labels, matched positions ...

    Raises
    ------
    ValueError : fewer than 10 null curves, or curves of another number of neurons.
    """
    curves = np.asarray(curves, dtype=float)
    starts, null_x = bins(curves.shape[-1])
    if len(null_x) != len(x) or not np.allclose(null_x, x):
        raise ValueError(f"null curves of {curves.shape[-1]} neurons do not fit a curve of {len(x)} bins")
    if len(curves) < LEAST_NULLS:
        raise ValueError(f"a comparison needs at least {LEAST_NULLS} null curves, here are {len(curves)}")
    null_y = in_bins(curves, starts)
    n, line, null_lines = curves.shape[1], fit(x, y, 2), fit(x, null_y, 2)
    own = departures(x, y[None], windows(line, n)[None])[0, 0]
    at_own = departures(x, null_y, windows(line, n)[None])[0]            # (nulls,)
    across = departures(x, null_y, windows(null_lines, n))               # (windows, nulls)
    score = (own - at_own.mean()) / at_own.std()
    scores = (np.diag(across) - across.mean(axis=1)) / across.std(axis=1)
    share, shares = np.exp(line.knots[0]) / n, np.exp(null_lines.knots[:, 0]) / n
    low, high = np.quantile(curves, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return Comparison(float(own), at_own, float(share), shares,
                      empirical_p(score, scores, "less"), empirical_p(score, scores, "greater"),
                      empirical_p(share, shares), tuple(float(rank) for rank in np.exp(line.knots)), low, high)


def families(sums: np.ndarray, counts: np.ndarray, *, draws: int = 200, ranking: str = "split_half",
             splits: int = 20, seed: int = 0) -> dict[str, Comparison]:
    """The measured curve against order statistics of each fitted family, measured with the same noise.

    sums : (documents, neurons) per-document sums of |change|.   counts : (documents,) positions.
    """
    sums, counts = check(sums, counts)
    rng = np.random.default_rng(seed)
    sums = sums[:, np.abs(sums).max(axis=0) > 0]
    values = influence(sums, counts, np.ones((1, len(counts))))[0]
    starts, x = bins(sums.shape[1])
    curve = curves_drawn(sums, counts, splits, rng, ranking=ranking, resample=False)
    y = in_bins(curve, starts).mean(axis=0)
    found = {}
    for family in FAMILIES:
        truth = sample(values, family, draws, rng)
        one = compare(x, y, remeasure(truth, sums, counts, rng, ranking=ranking))
        found[family] = replace(one, log_likelihood=float(distribution(values, family).logpdf(values).sum()))
    return found


def best(comparisons: dict[str, Comparison]) -> str:
    """The family that fits the measured influences best: the null that counts.

    A half-normal's head is flat by itself; that says nothing about a curve it does not describe.
    """
    return max(comparisons, key=lambda family: comparisons[family].log_likelihood)


def shuffled(rare: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Rarity labels shuffled over positions: (draws, positions) bool, as many rare ones in each draw."""
    return rng.permuted(np.tile(np.asarray(rare, dtype=bool), (draws, 1)), axis=1)


def matched(rare_losses: np.ndarray, common_losses: np.ndarray) -> np.ndarray:
    """Common positions with the rare ones' number and losses: (rare,) indices into `common_losses`, each once.

    Nearest neighbour without replacement, the highest losses first because they are scarce among
    common tokens; entry i matches rare position i.

    Raises
    ------
    ValueError : fewer common than rare positions.
    """
    rare_losses, common_losses = np.asarray(rare_losses, dtype=float), np.asarray(common_losses, dtype=float)
    if len(common_losses) < len(rare_losses):
        raise ValueError(f"{len(common_losses)} common positions cannot match {len(rare_losses)} rare ones")
    left = np.argsort(common_losses, kind="stable").tolist()
    losses = common_losses[left].tolist()
    chosen = np.empty(len(rare_losses), dtype=np.int64)
    for place in order_of(rare_losses):
        after = bisect_left(losses, rare_losses[place])
        near = [at for at in (after - 1, after) if 0 <= at < len(losses)]
        best = min(near, key=lambda at: abs(losses[at] - rare_losses[place]))
        chosen[place] = left.pop(best)
        losses.pop(best)
    return chosen


def ranked_null(sums, counts, in_a, size, *, draws=1_000, seed=0):
    """The ratio that ranking alone gives: half-normal numbers in place of the influences, measured as these are.

    The influence of neurons that all do the same kind of thing, to random extents, is about half-normal: of 1,536 such
    neurons the top 1.7 % have four times the median's influence. "Far more than the rest" has to be more than that. The
    number of rank r has the noise of the neuron of rank r; half A of the documents chooses the top, half B measures it.

    Parameters
    ----------
    sums : (documents, neurons) per-document sums ; counts : (documents,) positions ; in_a : bool (documents,).
    size : neurons of the group.

    Returns
    -------
    (draws,) float
    """
    every = influence(sums, counts, np.ones((1, len(counts))))[0]
    living, rng = every > 0, np.random.default_rng(seed)
    truth = sample(every, "half-normal", draws, rng)  # (draws, living), falling
    plain, *drawn = np.moveaxis(influence(sums[:, living], counts, documents.halves(in_a, draws, seed)), 1, 0)
    noise = np.divide(drawn, plain, out=np.ones_like(drawn), where=plain > 0)[..., order_of(every[living])]
    first, second = np.moveaxis(truth[:, None] * noise, 1, 0)  # (draws, living) of half A, of half B
    top = np.take_along_axis(second, rankings.top(first, size), -1).mean(-1)
    return top / np.median(np.pad(second, ((0, 0), (0, int((~living).sum())))), -1)
