"""Do the curve's tests keep their promises?  Planted curves, known samples, counted answers.

The definitions of `heads` and the head that decides were fixed by these counts. The full ones (`heads_told`,
`contrasts_told`; an hour and a half of two cores) are committed tables; a notebook and the test suite repeat a few runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from scipy.special import ndtr

from rare_token_neurons.curve import heads
from rare_token_neurons.statistics import powerlaws

NEURONS, DOCUMENTS, NOISE = 1536, 100, 0.343      # noise of a document's log mean: 5 % of the influence on half of them
TAIL, KAPPA, DECAY = 200, 0.7, 3.0                # last rank of the law, slopes of law and decay
LONGEST = 1.5                                     # times the law's true end: beyond, the decay was taken for the law


@dataclass(frozen=True)
class Promise:
    """One promise of the method: `kept` of `runs`, at least `wanted` of 100."""

    name: str
    kept: int
    runs: int
    wanted: int

    @property
    def holds(self) -> bool:
        """Whether the rate reaches the wanted one."""
        return 100 * self.kept >= self.wanted * self.runs


# ---- planted samples: rng -> (neurons,) influences


def law(ranks, kappa=KAPPA, tail=TAIL):
    """Influence of a power law over ranks (from 0 on), which ends in a decay at `tail`."""
    x = np.log(ranks)
    return np.exp(-kappa * np.minimum(x, np.log(tail)) - DECAY * np.maximum(x - np.log(tail), 0))


def shelf(ranks, size, raised, tail=TAIL, cliff=1.0):
    """A law whose first `size` ranks stand on a shelf, `raised` e-folds above the law on average, and nearly flat; from there a
    cliff leads down to the law, at `cliff` times that rank."""
    x = np.log(np.maximum(ranks, 1e-9) / size)
    flat = raised - KAPPA * (np.log(size) - 1) - 0.05 * (x + 1)
    foot = np.log(law(size * cliff, tail=tail))
    falling = np.interp(x, [0, max(np.log(cliff), 1e-9)], [raised - KAPPA * (np.log(size) - 1) - 0.05, foot])
    return np.where(x <= 0, np.exp(flat), np.where(ranks <= size * cliff, np.exp(falling), law(ranks, tail=tail)))


def _ranks(rng, n=NEURONS):
    return rng.uniform(0, n, n)


def outliers(rng):
    """A law whose five largest values are far above it."""
    falling = -np.sort(-law(_ranks(rng)))
    return np.append(falling[:5] * np.exp(1.5), falling[5:])


SIZES = {  # samples without a raised head
    "lognormal": lambda rng: np.exp(rng.standard_normal(NEURONS)),
    "half-normal": lambda rng: np.abs(rng.standard_normal(NEURONS)),
    "exponential": lambda rng: rng.exponential(size=NEURONS),
    "|t|, 3 degrees of freedom": lambda rng: np.abs(rng.standard_t(3, NEURONS)),
    "Pareto": lambda rng: (1 - rng.random(NEURONS)) ** -KAPPA,
} | {f"law, kappa {kappa}, to rank {tail}": lambda rng, kappa=kappa, tail=tail: law(_ranks(rng), kappa, tail)
     for kappa in (0.3, 0.7) for tail in (200, 600, NEURONS)}
SHELVES = {f"shelf of {size}, raised {raised}": lambda rng, size=size, raised=raised: shelf(_ranks(rng), size, raised)
           for size in (10, 30, 60) for raised in (0.5, 1.0)}
OTHERS = {"5 outliers": outliers, "rounded": lambda rng: law(np.maximum(_ranks(rng), 30))} | {
    f"shelf of 30, raised {raised}, {'cliff to rank 60, ' * (cliff > 1)}law to rank {NEURONS}":
        lambda rng, raised=raised, cliff=cliff: shelf(_ranks(rng), 30, raised, tail=NEURONS, cliff=cliff)
    for cliff in (1, 2) for raised in (0.5, 1.0)}
ENDS = dict.fromkeys(SHELVES, TAIL) | {  # where the law truly ends, of those that end in a decay
    f"law, kappa {kappa}, to rank {tail}": tail for kappa in (0.3, 0.7) for tail in (200, 600)}


def measured(truth: np.ndarray, rng: np.random.Generator, *, documents: int = DOCUMENTS,
             noise: float = NOISE) -> tuple[np.ndarray, np.ndarray]:
    """Per-document sums (documents, neurons) and positions (documents,) around true influences.

    noise : standard deviation of the log of a document's mean; the influence then has a relative standard error of about
        sqrt(exp(noise^2) - 1) / sqrt(documents).
    """
    counts = rng.integers(3, 13, size=documents).astype(float)
    wobble = np.exp(noise * rng.standard_normal((documents, len(truth))) - noise**2 / 2)
    return truth * counts[:, None] * wobble, counts


# ---- heads


def head_told(plant, rng: np.random.Generator, *, draws: int = 100) -> dict[str, dict]:
    """What is told of one planted sample: head -> dict of raised (by the test), word, delta, end (of the law), covered
    (whether Delta of the sample without noise lies in the interval)."""
    truth = -np.sort(-np.maximum(plant(rng), 1e-12))
    seed = int(rng.integers(2**31))
    found = heads.measure(*measured(truth, rng), draws=draws, seed=seed)
    made = {}
    for head, verdict in heads.judge(found, heads.null_curves(found, draws=draws, seed=seed + 1)).items():
        low, high = found.interval(head, "delta")
        own = found.own[head]
        made[head] = {"raised": max(verdict.p.values()) < heads.LEVEL, "word": verdict.word, "delta": own.delta[0],
                      "end": own.end[0], "covered": low <= heads.find(truth, head).delta[0] <= high}
    return made


def heads_told(runs: int, *, names=None, draws: int = 100, seed: int = 0) -> list[dict]:
    """How often heads are told as what, one row (sample, head).

    names : of the samples; None: all.

    Returns
    -------
    list of dict: sample, kind ("size": nothing is raised; "power": a shelf is; "other"), head, runs, raised (share), a share
    for each of heads.WORDS, delta (median), covered (share), late (share in which the law ends far beyond its true end; NaN
    where it has none)
    """
    kinds = {"size": SIZES, "power": SHELVES, "other": OTHERS}
    rows = []
    for kind, plants in kinds.items():
        for name, plant in plants.items():
            if names is not None and name not in names:
                continue
            seeds = ([seed, *name.encode(), run] for run in range(runs))
            found = [head_told(plant, np.random.default_rng(one), draws=draws) for one in seeds]
            for head in heads.BREAKS:
                of = pd.DataFrame([one[head] for one in found])
                row = {"sample": name, "kind": kind, "head": head, "runs": runs, "raised": of["raised"].mean()}
                row |= {word: of["word"].eq(word).mean() for word in heads.WORDS}
                row |= {"delta": of["delta"].median(), "covered": of["covered"].mean()}
                rows.append(row | {"late": of["end"].gt(LONGEST * ENDS[name]).mean() if name in ENDS else np.nan})
    return rows


# ---- contrasts of two curves


def pair(rng: np.random.Generator, first, second, coupled: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """Influences of the same neurons by two laws of their own, their ranks coupled: two (neurons,).

    first, second : functions of ranks.   coupled : correlation of the normal scores behind the ranks.
    """
    one, other = rng.standard_normal((2, NEURONS))
    scores = one, coupled * one + np.sqrt(1 - coupled**2) * other
    return tuple(curve(NEURONS * ndtr(score)) for curve, score in zip((first, second), scores))


PAIRS = {
    "two samples of one law": (law, law),
    "two laws of other slopes": (partial(law, kappa=0.3), law),
    "two laws of other ends": (partial(law, tail=600), law),
    "a shelf of 30, raised 0.5, and a law": (partial(shelf, size=30, raised=0.5), law),
    "a shelf of 30, raised 1.0, and a law": (partial(shelf, size=30, raised=1.0), law),
}


def contrasts_told(runs: int, *, names=None, coupled=(0.0, 0.7), seed: int = 0, draws: int = 100) -> list[dict]:
    """How often two heads are told apart, one row (pair, coupled).

    names : of the pairs; None: all.   coupled : of their ranks (see `pair`).

    Returns
    -------
    list of dict: sample, coupled, runs, apart (share with p < 0.05)
    """
    rows = []
    for name, curves in PAIRS.items():
        if names is not None and name not in names:
            continue
        for strength in coupled:
            p = []
            for run in range(runs):
                rng = np.random.default_rng([seed, *name.encode(), int(10 * strength), run])
                truths = pair(rng, *curves, strength)
                one, two = (measured(truth, rng) for truth in truths)
                p.append(heads.contrast(one, two, draws=draws, seed=run).p)
            rows.append({"sample": name, "coupled": strength, "runs": runs, "apart": np.mean(np.array(p) < heads.LEVEL)})
    return rows


# ---- promises: a few runs of each kind


UNRAISED = ("lognormal", "Pareto", "law, kappa 0.7, to rank 200")
RAISED = {"shelf of 30, raised 0.5": 0, "shelf of 30, raised 1.0": 80}  # and how many of 100 are to be found


def told(runs: int, *, draws: int = 60, seed: int = 0) -> list[Promise]:
    """By the head that decides: what nothing raised is not called raised, a shelf is a plateau, a rounded head never."""
    rows = heads_told(runs, names=(*UNRAISED, *RAISED, "rounded"), draws=draws, seed=seed)
    found = {row["sample"]: row for row in rows if row["head"] == heads.DECIDES}
    kept = {f"{name}: the head is not called raised": (1 - found[name]["raised"], 85) for name in UNRAISED}
    kept |= {f"{name}: a plateau": (found[name]["plateau"], wanted) for name, wanted in RAISED.items()}
    kept["a rounded head is never a plateau"] = 1 - found["rounded"]["plateau"], 100
    return [Promise(name, round(share * runs), runs, wanted) for name, (share, wanted) in kept.items()]


def laws(runs: int, *, n: int = 1024, draws: int = 50, seed: int = 0) -> list[Promise]:
    """Pareto samples are not rejected; lognormal ones are rejected or cannot be told, never favoured."""
    words = {"pareto": [], "lognormal": []}
    for run in range(runs):
        rng = np.random.default_rng([seed, 3, run])
        words["pareto"].append(powerlaws.tail(rng.random(n) ** -0.7, draws=draws, seed=run).verdict)
        words["lognormal"].append(powerlaws.tail(np.exp(rng.standard_normal(n)), draws=draws, seed=run).verdict)
    favoured = words["lognormal"].count("not rejected")
    return [Promise("a Pareto sample is not rejected", words["pareto"].count("not rejected"), runs, 85),
            Promise("a lognormal sample is rejected or cannot be told, never called a power law",
                    runs - favoured, runs, 100)]


def middles(runs: int, *, n: int = NEURONS, size: int = 30, draws: int = 40, seed: int = 0) -> list[Promise]:
    """A power law in a fitted range is not rejected; the middle of a lognormal sample is not called one.

    The range is fitted to every sample and to every bootstrap sample (`heads.law_range`), as for the measured influences.
    The planted law lies between a shelf of `size` neurons and a decay. Between its true ends the same samples show what the
    fitting of the range costs; a law without a decay ends with the last neuron, whose cliff must not speak against it.
    """
    def verdict(values, run):
        return powerlaws.middle(values, *heads.law_range(values), draws=draws, seed=run, refit=heads.law_range).verdict

    high, low = law(np.array([size, TAIL]))
    plants, corners, opens, favoured = 0, 0, 0, 0
    for run in range(runs):
        rng = np.random.default_rng([seed, 4, run])
        sample = shelf(_ranks(rng, n), size, 1.0)
        plants += verdict(sample, run) != "rejected"
        corners += powerlaws.middle(sample, low, high, draws=draws, seed=run).verdict != "rejected"
        opens += verdict(law(_ranks(rng, n), tail=n), run) != "rejected"
        favoured += verdict(np.exp(rng.standard_normal(n)), run) == "not rejected"
    return [Promise("the middle of a planted power law is not called rejected", plants, runs, 85),
            Promise("... between its true ends", corners, runs, 0),
            Promise("... nor that of one without a decay", opens, runs, 85),
            Promise("the middle of a lognormal sample is never called a power law", runs - favoured, runs, 90)]


def promises(runs: int, *, seed: int = 0) -> list[Promise]:
    """All promises; about 4 CPU seconds a run."""
    return told(runs, seed=seed) + laws(runs, seed=seed) + middles(runs, seed=seed)
