"""The head of the ranked curve beside its power law: a plateau, outliers, rounded, or on the line.

A plateau stands ABOVE the power law that is carried back to it, and is flatter. A head BELOW the law is what any sorted
sample shows; it is called rounded. Two heads are looked at. The *fixed* one has the paper's share of the neurons, and the law
is fitted beyond it. The *fitted* one is whatever comes before the law in a line with three breaks: a shelf that ends in a cliff
needs three. Which of the two decides was settled on planted samples (`calibration`), before the claims were looked at. Three
things were mended after that, again on planted samples, since words contradicted visible shelves. Where no decay follows a
law, a flat place of it was taken for the law. Where a cliff leads to a law that begins beyond a tenth of the neurons in some
draws, these draws had no head. And the cliff counted to the slope of the head, which made shelves outliers: now the slope is
that of the shelf, and is held against samples of the law over the same ranks.

Influence v(r) by rank r; the law is ln v = beta - kappa ln r; delta(r) = ln v(r) - (beta - kappa ln r), in e-folds of
influence. Every draw of documents and every null curve goes through all steps: ranking, head, law.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rare_token_neurons.curve import nulls, piecewise
from rare_token_neurons.statistics import documents, rankings
from rare_token_neurons.statistics.controls import empirical_p

SHARE = 0.017                           # of the neurons: the paper's plateau
BREAKS = {"fixed": 2, "fitted": 3}      # of the line: beyond the fixed head; of the whole curve
DECIDES = "fitted"                      # the head that keeps the test's size and has more power (`calibration`)
WORDS = ("plateau", "outliers", "rounded", "on the line")
FAMILIES = ("lognormal", "half-normal")
LEAST_NEURONS = 200
SHORTEST = 0.5                          # e-folds of rank that a law has at least
FLATTER = 2 / 3                         # of the next slope: the stretch before the last may be the law, the last the decay
BESIDE = 0.2                            # of the decay's length in log rank: a law before a decay is at least as long
LATEST = 0.1                            # of the neurons: what begins beyond may be the decay
INSIDE = 0.1                            # of the law in log rank, left out at either end where a power law is tested
LEVEL = 0.05                            # of the test
DRAWS, SPLITS = 200, 20
FLOOR = 1 / (1 + DRAWS)                 # of a p value against as many null curves


@dataclass(frozen=True)
class Heads:
    """The heads of ranked curves, each field (curves,).

    size : neurons of the head; 0 where the law begins at rank 1.
    delta : mean of delta(r) over the head, e-folds of influence; 0 without a head.
    kappa, beta : of the law.   start, end : first and last rank of the law.
    slope : of the head up to its shelf, as kappa is of the law; kappa without a head.
    shelf : last rank of the head before the cliff that leads down to the law; `start` without a cliff.
    decay : whether a steeper stretch follows the law.
    """

    size: np.ndarray
    delta: np.ndarray
    kappa: np.ndarray
    beta: np.ndarray
    start: np.ndarray
    end: np.ndarray
    slope: np.ndarray
    shelf: np.ndarray
    decay: np.ndarray

    @property
    def score(self) -> np.ndarray:
        """Of each head, (curves,)."""
        return score(self.delta, self.size, self.kappa)


def score(delta, size, kappa):
    """Delta in units of its spread over samples of one law, kappa sqrt(2 / size) or so."""
    return np.sqrt(size / 2) * delta / np.maximum(kappa, 1e-3)


def head_size(neurons: int) -> int:
    """Neurons of the fixed head."""
    return int(np.ceil(SHARE * neurons))


def find(curves: np.ndarray, head: str = DECIDES) -> Heads:
    """Head and law of ranked curves.

    Parameters
    ----------
    curves : (curves, neurons) or (neurons,) influence by rank, falling or nearly so, above zero.
    head : "fixed" or "fitted".
    """
    curves = np.atleast_2d(curves)
    n, fixed = curves.shape[1], head == "fixed"
    starts, x = piecewise.bins(n)
    y, beyond = piecewise.in_bins(curves, starts), starts >= (head_size(n) if fixed else 0)
    line = piecewise.fit(x[beyond], y[:, beyond], BREAKS[head])
    places = np.pad(line.knots, ((0, 0), (1, 1)), constant_values=np.log(n))   # between which the stretches lie
    places[:, 0] = np.log(head_size(n) + 0.5) if fixed else 0.0
    law = _law(places, line.slopes, n, whole=not fixed)

    first, last = _at(places, law), _at(places, law + 1)
    kappa, beta = _straight(x, y, (x >= first[:, None]) & (x <= last[:, None]))
    size = np.full(len(curves), head_size(n)) if fixed else np.where(law > 0, np.exp(first), 0).astype(int)
    counted = np.maximum(size, 1)
    mean = _at(np.cumsum(np.log(curves), axis=1), counted - 1) / counted
    rank = np.cumsum(np.log(np.arange(1, n + 1)))[counted - 1] / counted
    fall = np.pad(-line.slopes, ((0, 0), (1, 1)), constant_values=-np.inf)
    cliff = (law > 1) & (_at(fall, law) > _at(fall, law + 1))
    shelf = np.exp(np.where(cliff, _at(places, np.maximum(law - 1, 0)), first))
    slope = slopes(curves, np.minimum(size, shelf))
    return Heads(size, np.where(size > 0, mean - beta + kappa * rank, 0.0), kappa, beta, np.exp(first), np.exp(last),
                 np.where(size > 0, slope, kappa), shelf, _at(fall, law + 2) > _at(fall, law + 1))


def slopes(curves: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Minus the slope of ln v over ln r, of each curve (curves, neurons) up to its last rank (curves,), at least 2: (curves,)."""
    starts, x = piecewise.bins(curves.shape[1])
    return _straight(x, piecewise.in_bins(curves, starts), x <= np.log(np.maximum(last, 2) + 0.5)[:, None])[0]


def _at(values, places):
    """One entry of each row: values (curves, m), places (curves,)."""
    return np.take_along_axis(values, places[:, None], axis=1)[:, 0]


def _law(places, slopes, n, whole):
    """Which stretch is the law: (curves,) int.

    The longest in log rank; in a fit of the whole curve the first one is the head's. Where the longest goes on to the end of
    the curve, perhaps with a break that changes its slope little, and a long stretch before it is flatter, the longest is the
    decay, and the nearest such stretch the law: on the paper's own shape the decay is as long as the law or longer. What lies
    before a cliff, a stretch steeper than the longest, is a shelf and no law; nor is what is short beside all that lies beyond
    it: samples of a law without a decay have flat places by chance. In a fit of the whole curve what begins beyond a tenth of
    the neurons is the decay in any case, and the law begins at rank 1, unless what differs from it last before is a cliff.
    """
    length = np.diff(places, axis=1)
    length[length < SHORTEST] = 0.0
    length[:, 0] *= not whole
    law, stretch = length.argmax(axis=1), np.arange(length.shape[1])
    steeper, flatter, before = _beside(slopes, law)
    to_the_end = (before | ~(steeper | flatter)).all(axis=1)
    cliff = _last(before & steeper)[:, None]
    long = length >= BESIDE * (places[:, -1:] - places[:, 1:])
    nearest = _last(before & flatter & long & (stretch > cliff))
    law = np.where(to_the_end & (nearest >= 0), nearest, law)
    late, (steeper, flatter, before) = _at(places, law) > np.log(LATEST * n), _beside(slopes, law)
    return np.where(whole & late & (_last(before & steeper) <= _last(before & flatter)), 0, law)


def _beside(slopes, law):
    """Which stretches are steeper than the law, which are flatter, and which lie before it: (curves, stretches) bool each."""
    steepness = slopes / _at(slopes, law)[:, None]
    return steepness >= 1 / FLATTER, steepness <= FLATTER, np.arange(slopes.shape[1]) < law[:, None]


def _last(which):
    """The last stretch that is so, -1 without one: (curves,)."""
    return np.where(which, np.arange(which.shape[1]), -1).max(axis=1)


def _straight(x, y, inside):
    """Least squares over the bins inside (curves, bins), each bin alike: minus the slope, and the height at rank 1."""
    n = inside.sum(axis=1)
    mean_x, mean_y = (inside * x).sum(axis=1) / n, (inside * y).sum(axis=1) / n
    centred = np.where(inside, x - mean_x[:, None], 0.0)
    slope = (centred * y).sum(axis=1) / np.square(centred).sum(axis=1)
    return -slope, mean_y - slope * mean_x


def spread(deltas: np.ndarray) -> float:
    """Standard deviation of Delta over null curves, from its middle 68 %: in a few curves the decay is taken for the law, and
    their Delta lies whole e-folds away."""
    return float(np.diff(np.quantile(deltas, [0.1587, 0.8413]))[0] / 2)


def law_range(values: np.ndarray) -> tuple[float, float]:
    """Smallest and largest influence of the power law of one sample, less its ends.

    A break is fitted with an error, and neurons from beyond it would speak against a true law; so a tenth of the law, in log
    rank, is left out at either end (chosen on planted laws; `calibration.middles` counts).

    values : (neurons,) any order; zeros are left out.  `powerlaws.middle(..., refit=law_range)` lets every bootstrap sample
    choose its own range.
    """
    falling = -np.sort(-np.asarray(values, dtype=float))
    falling = falling[falling > 0]
    found = find(falling)
    start, end = np.log(found.start[0]), np.log(found.end[0])
    margin = INSIDE * (end - start)
    last, first = (round(float(np.exp(rank))) - 1 for rank in (end - margin, start + margin))
    return float(falling[last]), float(falling[first])


# ---- measured, with intervals over documents


@dataclass(frozen=True)
class Measured:
    """A measured curve with its heads, in the fit and in every draw of documents.

    sums, counts : of the living neurons (documents, living), of the documents (documents,).
    curve, low, high : (neurons,) influence by rank and its pointwise 95 % interval; 0 for dead neurons.
    own : head -> Heads of the curve.   drawn : head -> Heads of the draws.
    """

    sums: np.ndarray
    counts: np.ndarray
    curve: np.ndarray
    low: np.ndarray
    high: np.ndarray
    own: dict[str, Heads]
    drawn: dict[str, Heads]

    @property
    def living(self) -> np.ndarray:
        """The curve of the living neurons, falling."""
        return -np.sort(-self.curve[: self.sums.shape[1]])

    def interval(self, head: str, quantity: str) -> tuple[float, float]:
        """95 % percentile interval over documents of a field of `Heads` (coverage: `calibration`)."""
        return documents.percentile(getattr(self.drawn[head], quantity))


def measure(sums: np.ndarray, counts: np.ndarray, *, ranking: str = "split_half", draws: int = DRAWS,
            seed: int = 0) -> Measured:
    """The ranked curve and its heads, with document bootstraps.

    Documents are split before they are drawn, so that none both ranks the neurons and measures them. Equal seeds draw equal
    documents.

    Parameters
    ----------
    sums : (documents, neurons) per-document sums of |change|, nats; or of the change itself, for |mean change|.
    counts : (documents,) positions of each document.
    ranking : "split_half" or "same_tokens" (see `documents.curves_drawn`).

    Raises
    ------
    ValueError
        Fewer than 6 documents, fewer than 200 living neurons, shapes that do not fit, values that are not finite.
    """
    sums, counts = documents.check(sums, counts)
    neurons, sums = sums.shape[1], sums[:, np.abs(sums).max(axis=0) > 0]
    if sums.shape[1] < LEAST_NEURONS:
        raise ValueError(f"the head of a ranked curve needs at least {LEAST_NEURONS} neurons with influence, "
                         f"here are {sums.shape[1]}")
    rng = np.random.default_rng(seed)
    curve = documents.curves_drawn(sums, counts, SPLITS, rng, ranking=ranking, resample=False).mean(axis=0)
    drawn = documents.curves_drawn(sums, counts, draws, rng, ranking=ranking)
    dead = np.zeros(neurons - len(curve))
    ends = np.quantile(drawn, [0.025, 0.975], axis=0)
    return Measured(sums, counts, *(np.append(values, dead) for values in (curve, *ends)),
                    *({head: find(curves, head) for head in BREAKS} for curves in (curve, drawn)))


def testable(*curves: tuple[np.ndarray, np.ndarray]) -> bool:
    """Whether `measure` takes a curve, or `contrast` two, (sums, counts) each: enough neurons and documents are left."""
    found = shared(*curves)[0][0]
    return found.shape[0] >= documents.LEAST_DOCUMENTS and found.shape[1] >= LEAST_NEURONS


def shared(*curves: tuple[np.ndarray, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Curves (sums, counts) of the same documents and neurons, less documents without positions and neurons without influence
    in any of them."""
    both = np.all([counts > 0 for _, counts in curves], axis=0)
    alive = np.all([(sums[both] != 0).any(axis=0) for sums, _ in curves], axis=0)
    return [(sums[both][:, alive], counts[both]) for sums, counts in curves]


# ---- against what noise and chance give


@dataclass(frozen=True)
class Verdict:
    """What a head is, and by what.

    word : one of WORDS.   p : null -> chance of a score as high, one-sided.   floor : the smallest p that the draws can give.
    flat : chance that a sample of the law is as flat over the ranks of the shelf.
    delta : null -> (draws,) Delta of its curves.   decay : null -> share of its curves with a decay.
    """

    word: str
    p: dict[str, float]
    floor: float
    flat: float
    delta: dict[str, np.ndarray]
    decay: dict[str, float]


def law_curves(found: Heads, curve: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Samples of the law itself: (draws, neurons), falling.

    As many neurons as lie up to the law's end have independent values from the power law with the fitted kappa and beta,
    carried to rank 1; those beyond keep the measured ones.

    found : Heads of one curve.   curve : (neurons,) falling.
    """
    end = int(np.round(found.end[0]))
    drawn = np.exp(found.beta[0] - found.kappa[0] * np.log(1 - rng.random((draws, end))) - found.kappa[0] * np.log(end))
    rest = np.broadcast_to(curve[end:], (draws, len(curve) - end))
    return -np.sort(-np.concatenate([drawn, rest], axis=1), axis=1)


def null_curves(found: Measured, *, ranking: str = "split_half", draws: int = DRAWS, seed: int = 0,
                heads: tuple[str, ...] = tuple(BREAKS)) -> dict[tuple[str, str], np.ndarray]:
    """Null curves as they would have been measured: (null, head) -> (draws, living neurons).

    As many numbers as neurons, from the lognormal and the half-normal with the measured influences' parameters, and from the
    law itself: beside a lognormal alone a head that merely continues its law would be called raised in most samples.
    """
    rng = np.random.default_rng(seed)
    values = documents.influence(found.sums, found.counts, np.ones((1, len(found.counts))))[0]

    def measured(truth):
        return nulls.remeasure(truth, found.sums, found.counts, rng, ranking=ranking)

    made = {}
    for name in FAMILIES:
        curves = measured(nulls.sample(values, name, draws, rng))
        made |= {(name, head): curves for head in heads}
    return made | {("law", head): measured(law_curves(found.own[head], found.living, draws, rng)) for head in heads}


def judge(found: Measured, curves: dict[tuple[str, str], np.ndarray]) -> dict[str, Verdict]:
    """What the heads of a measured curve are, each null's curves (from `null_curves`) going through the same steps."""
    made = {}
    for head in dict.fromkeys(head for _, head in curves):
        null = {name: find(drawn, head) for (name, of), drawn in curves.items() if of == head}
        own, of_law = found.own[head], curves["law", head]
        p = {name: empirical_p(own.score[0], one.score, "greater") for name, one in null.items()}
        shelf = np.full(len(of_law), min(own.size[0], own.shelf[0]))
        flat = empirical_p(own.slope[0], slopes(of_law, shelf), "less")
        made[head] = Verdict(word(found, head, p, flat), p, 1 / (1 + min(len(one.score) for one in null.values())), flat,
                             {name: one.delta for name, one in null.items()},
                             {name: float(one.decay.mean()) for name, one in null.items()})
    return made


def word(found: Measured, head: str, p: dict[str, float], flat: float) -> str:
    """What a head is called, one of WORDS; no other function decides it.

    Raised: Delta's interval lies above 0, and p is below 0.05 against every null. A raised head is a plateau where its shelf
    is flatter than all but 5 % of the law's samples over the same ranks, else it is made of outliers: their own influences
    fall as a law's do. Rounded: Delta's interval lies below 0. What is neither is on the line.
    """
    low, high = found.interval(head, "delta")
    if low > 0 and max(p.values()) < LEVEL:
        return "plateau" if flat < LEVEL else "outliers"
    return "rounded" if high < 0 else "on the line"


@dataclass(frozen=True)
class Contrast:
    """Delta (fixed head) of one curve less that of another: value, low, high (95 % over documents, drawn in common), p (one-sided)
    and null (draws,), the differences that two laws of the same neurons give."""

    value: float
    low: float
    high: float
    p: float
    null: np.ndarray


def contrast(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], *, ranking: str = "split_half",
             draws: int = DRAWS, seed: int = 0) -> Contrast:
    """Is the head of one curve higher above its law than that of another?

    Documents are not the only noise: two samples of ONE law differ in Delta, by 0.2 to 0.3 in the fixed head. So under the null
    both curves are their own laws carried to rank 1, with the ranks of the neurons coupled as measured, each measured with its
    own noise. The laws are fitted anew to every draw of neurons: with one fitted law for all draws, planted samples of one law
    were told apart too often.

    Parameters
    ----------
    first, second : (sums, counts) of the same documents and neurons (see `measure`). Documents without positions in one of
        them, and neurons without influence in one of them, are left out.
    """
    one, two = (measure(*part, ranking=ranking, draws=draws, seed=seed) for part in shared(first, second))
    drawn = [part.drawn["fixed"].delta for part in (one, two)]
    value = float(one.own["fixed"].delta[0] - two.own["fixed"].delta[0])
    rng, n = np.random.default_rng(seed), one.sums.shape[1]
    picked, null = rng.integers(0, n, (draws, n)), []             # neurons with replacement: a sample of the coupled ranks
    for part in (one, two):
        every = documents.influence(part.sums, part.counts, np.ones((1, len(part.counts))))[0]
        rank = np.empty(n)
        rank[rankings.order_of(every)] = np.arange(1, n + 1)
        at, curve = np.sort(rank[picked] - rng.random((draws, n)), axis=1), part.living
        law = find(-np.sort(-every[picked], axis=1), "fixed")     # of the neurons picked: a fitted law is uncertain too
        kappa, beta, end = (values[:, None] for values in (law.kappa, law.beta, law.end))
        truth = np.where(at <= end, np.exp(beta - kappa * np.log(np.maximum(at, 1e-9))),
                         curve[np.ceil(at).astype(int).clip(1, n) - 1])
        truth = -np.sort(-truth, axis=1)
        null.append(find(nulls.remeasure(truth, part.sums, part.counts, rng, ranking=ranking), "fixed").delta)
    null = null[0] - null[1]
    low, high = documents.percentile(drawn[0] - drawn[1])
    return Contrast(value, float(low), float(high), empirical_p(value, null, "greater"), null)


def swapped(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], *, ranking: str = "split_half",
            draws: int = DRAWS, seed: int = 0) -> float:
    """Do the labels of two curves make a difference?  Two-sided p of that of Delta (fixed head), labels swapped in documents.

    It says less than `contrast`, beside which it stands: curves of one law that differ in anything, such as which of the neurons
    are on top, differ in Delta too.

    Parameters
    ----------
    first, second : (sums, counts), as for `contrast`.
    """
    (one, n_one), (two, n_two) = shared(first, second)
    turns = np.random.default_rng(seed).random((1 + draws, len(n_one), 1)) < 0.5
    turns[0] = False                                              # the labels as they are
    curves = [documents.curves_drawn(np.where(turn, b, a), np.where(turn[:, 0], n_b, n_a), SPLITS, np.random.default_rng(seed),
                                     ranking=ranking, resample=False).mean(axis=0)
              for turn in turns for a, b, n_a, n_b in ((one, two, n_one, n_two), (two, one, n_two, n_one))]
    delta = find(np.array(curves), "fixed").delta.reshape(-1, 2)
    differences = delta[:, 0] - delta[:, 1]
    return empirical_p(differences[0], differences[1:], "two-sided")
