"""Do the curve's tests keep their promises?  Planted curves, known samples, counted answers.

Every promise is a pair (how many runs kept it, how many runs); a notebook prints the full count,
the test suite runs a few.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rare_token_neurons.curve import changepoints, nulls
from rare_token_neurons.curve.piecewise import law_range
from rare_token_neurons.statistics import powerlaws

HEAD, TAIL = 30, 200                 # planted boundaries, ranks
SLOPES = (0.05, 0.7, 3.0)            # of plateau, power law and decay, on the log-log plot


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


def planted(n: int, *, head: int = HEAD, tail: int = TAIL, slopes: tuple[float, float, float] = SLOPES) -> np.ndarray:
    """True influence by rank, (n,): plateau, power law and decay, three straight stretches."""
    return _curve(np.arange(1, n + 1), head, tail, slopes)


def sampled(n: int, rng: np.random.Generator, *, head: int = HEAD, tail: int = TAIL) -> np.ndarray:
    """n independent values whose quantiles are the planted curve, (n,).

    Those between the two corners are a doubly truncated power law, alpha = 1 + 1 / SLOPES[1]; head and tail are laws of
    their own, outside its range.
    """
    return _curve(rng.uniform(0, n, n), head, tail, SLOPES)


def _curve(ranks, head, tail, slopes):
    x = np.log(ranks)
    return np.exp(-slopes[0] * np.minimum(x, np.log(head))
                  - slopes[1] * np.clip(x - np.log(head), 0, np.log(tail / head))
                  - slopes[2] * np.maximum(x - np.log(tail), 0))


def measured(truth: np.ndarray, rng: np.random.Generator, *, documents: int = 100,
             noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Per-document sums (documents, neurons) and positions (documents,) around true influences.

    noise : standard deviation of the log of a document's mean; the influence then has a relative
        standard error of about sqrt(exp(noise^2) - 1) / sqrt(documents): 13 % by default.
    """
    counts = rng.integers(3, 13, size=documents).astype(float)
    wobble = np.exp(noise * rng.standard_normal((documents, len(truth))) - noise**2 / 2)
    return truth * counts[:, None] * wobble, counts


def boundary(runs: int, *, n: int = 1024, draws: int = 100, seed: int = 0) -> list[Promise]:
    """A planted plateau is found, and its last rank lies inside the interval."""
    found, inside, tails = 0, 0, 0
    for run in range(runs):
        rng = np.random.default_rng([seed, 1, run])
        jitter = np.exp(0.05 * rng.standard_normal(n))                     # no two neurons are alike
        result = changepoints.bootstrap(*measured(planted(n) * jitter, rng), draws=draws, splits=10, seed=run)
        low, high = result.intervals["plateau_end"]
        found += result.told("plateau")
        inside += result.told("plateau") and low <= HEAD <= high
        low, high = result.intervals["law_end"]
        tails += result.told("decay") and low <= TAIL <= high
    return [Promise("a planted plateau is found", found, runs, 90),
            Promise("... with its boundary inside the interval", inside, runs, 90),
            Promise("... and the decay's inside its own", tails, runs, 90)]


def null_heads(runs: int, *, n: int = 1024, draws: int = 100, seed: int = 0) -> list[Promise]:
    """Lognormal samples are no plateau beyond the null; planted ones are."""

    def plateau(truth, run, rng):
        found = nulls.families(*measured(truth, rng), draws=draws, splits=10, seed=run)
        return found[nulls.best(found)].verdict() == "plateau beyond the null"

    samples, plants = 0, 0
    for run in range(runs):
        rng = np.random.default_rng([seed, 2, run])
        samples += not plateau(np.exp(rng.standard_normal(n)), run, rng)
        plants += plateau(planted(n), run, rng)
    return [Promise("a lognormal sample is no plateau beyond the null", samples, runs, 90),
            Promise("a planted plateau lies beyond the null", plants, runs, 0)]


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


def middles(runs: int, *, n: int = 1024, draws: int = 40, seed: int = 0) -> list[Promise]:
    """A power law in a fitted range is not rejected; the middle of a lognormal sample is not called one.

    The range is fitted to every sample and to every bootstrap sample (`law_range`), as for the measured influences.
    Between the planted corners themselves the same samples show what the fitting of the range costs; a law without a decay
    ends with the last neuron, whose cliff must not speak against it.
    """
    def verdict(values, run):
        return powerlaws.middle(values, *law_range(values), draws=draws, seed=run, refit=law_range).verdict

    high, low = planted(n)[[HEAD - 1, TAIL - 1]]
    plants, corners, opens, favoured = 0, 0, 0, 0
    for run in range(runs):
        rng = np.random.default_rng([seed, 4, run])
        law = sampled(n, rng)
        plants += verdict(law, run) != "rejected"
        corners += powerlaws.middle(law, low, high, draws=draws, seed=run).verdict != "rejected"
        opens += verdict(sampled(n, rng, tail=n), run) != "rejected"
        favoured += verdict(np.exp(rng.standard_normal(n)), run) == "not rejected"
    return [Promise("the middle of a planted power law is not called rejected", plants, runs, 85),
            Promise("... between its true ends", corners, runs, 0),
            Promise("... nor that of one without a decay", opens, runs, 85),
            Promise("the middle of a lognormal sample is never called a power law", runs - favoured, runs, 90)]


def promises(runs: int = 100, *, seed: int = 0) -> list[Promise]:
    """All promises; about 2 CPU minutes for 100 runs."""
    return boundary(runs, seed=seed) + null_heads(runs, seed=seed) + laws(runs, seed=seed) + middles(runs, seed=seed)
