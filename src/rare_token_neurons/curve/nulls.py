"""Null curves: what ranked influences look like by chance.

Independent draws from a lognormal, a half-normal or an exponential, ranked and drawn log-log, show a shallow head, a straight
middle and a cliff too. A null curve therefore stands beside every measured one, and passes through the same noisy measurement
(`remeasure`). What a head is by such curves, `heads` decides.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from scipy import stats

from rare_token_neurons.statistics import documents, rankings
from rare_token_neurons.statistics.documents import influence, parts, redraw
from rare_token_neurons.statistics.rankings import check_curve, order_of

FAMILIES = ("lognormal", "half-normal", "exponential")
RANKED = 1_000  # draws of `ranked_null`


def distribution(values: np.ndarray, family: str):
    """Maximum-likelihood fit of one family to influences above zero: a frozen scipy distribution."""
    values = check_curve(values)
    values = values[values > 0]
    match family:
        case "lognormal":
            logs = np.log(values)
            return stats.lognorm(s=logs.std(), scale=np.exp(logs.mean()))
        case "half-normal":
            return stats.halfnorm(scale=np.sqrt(np.mean(values**2)))
        case "exponential":
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
    halves = parts(len(counts), documents.PARTS[ranking], len(truth), rng)
    plain, drawn = influence(sums, counts, halves), influence(sums, counts, redraw(halves, rng))
    noise = np.divide(drawn, plain, out=np.ones_like(plain), where=plain > 0)     # (halves, draws, neurons)
    overall = order_of(influence(sums, counts, np.ones((1, len(counts))))[0])     # neurons by rank
    return documents.ranked(truth * noise[..., overall])


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


def ranked_null(sums, counts, in_a, size, *, seed):
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
    (RANKED,) float
    """
    every = influence(sums, counts, np.ones((1, len(counts))))[0]
    living, rng = every > 0, np.random.default_rng(seed)
    truth = sample(every, "half-normal", RANKED, rng)  # (draws, living), falling
    plain, *drawn = np.moveaxis(influence(sums[:, living], counts, documents.halves(in_a, RANKED, seed)), 1, 0)
    noise = np.divide(drawn, plain, out=np.ones_like(drawn), where=plain > 0)[..., order_of(every[living])]
    first, second = np.moveaxis(truth[:, None] * noise, 1, 0)  # (draws, living) of half A, of half B
    top = np.take_along_axis(second, rankings.top(first, size), -1).mean(-1)
    return top / np.median(np.pad(second, ((0, 0), (0, int((~living).sum())))), -1)
