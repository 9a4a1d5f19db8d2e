"""Is it a power law?  Tests after Clauset, Shalizi and Newman (2009), for a tail and for a middle.

A straight stretch of a rank curve, influence ~ rank^-kappa, is a density ~ influence^-alpha with
alpha = 1 + 1/kappa.  The head is claimed NOT to follow the law, so `middle` tests it between two
influences (doubly truncated); `tail` tests all above xmin, chosen by the Kolmogorov-Smirnov distance.

With t = log(value / low) the law is an exponential, density ~ exp(-a t), a = alpha - 1, and a
lognormal adds curvature, density ~ exp(-a t - b t^2) with b > 0: the power law is the limit b = 0 of
the lognormals.  Against a lognormal that is free to straighten itself no power law can ever win, so
two are asked: the best one in the range (nested, it can only reject), and the one that the WHOLE
sample suggests, cut to the range (it can be told from the law, or not).

The ratios come from powerlaw 1.5 (`loglikelihood_ratio`), the densities from here: that version's
continuous densities are not normalised to an upper limit (they ignore xmax).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import powerlaw
from scipy.optimize import brentq, minimize
from scipy.special import erfcx

from rare_token_neurons.statistics.rankings import check_curve

LEAST = 10           # values in the range
CANDIDATES = 50      # tail sizes tried, even in the logarithm
VALUES = 40_000      # values of samples whose tails are sought at once, for memory
LEVEL_FIT = 0.1      # goodness of fit, as Clauset et al. use it
LEVEL_RATIO = 0.05
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(96)


@dataclass(frozen=True)
class PowerLaw:
    """One power-law test.

    alpha: exponent of the density; kappa = 1 / (alpha - 1) that of the rank curve.
    low, high: the range of values (high is inf for a tail).  n: values in it.
    ks, p_fit: Kolmogorov-Smirnov distance, and the share of fitted laws that are as far away.
    ratio, p_ratio: log-likelihood ratio to the best lognormal in the range (below zero: lognormal).
    ratio_whole, p_whole: to the lognormal of the whole sample cut to the range, two-sided (Vuong).
    """

    alpha: float
    low: float
    high: float
    n: int
    ks: float
    p_fit: float
    ratio: float
    p_ratio: float
    ratio_whole: float
    p_whole: float

    @property
    def kappa(self) -> float:
        """Exponent of the rank curve, 1 / (alpha - 1)."""
        return 1.0 / (self.alpha - 1.0)

    @property
    def verdict(self) -> str:
        """"rejected", "not rejected", "cannot tell it from a lognormal", or "cannot be tested (...)"."""
        if self.n < LEAST:
            return f"cannot be tested ({self.n} values)"
        if self.p_fit < LEVEL_FIT or (self.ratio < 0 and self.p_ratio < LEVEL_RATIO):
            return "rejected"
        if self.ratio_whole > 0 and self.p_whole < LEVEL_RATIO:
            return "not rejected"
        return "cannot tell it from a lognormal"


def tail(values: np.ndarray, *, draws: int = 100, seed: int = 0) -> PowerLaw:
    """Power-law test of the upper tail, xmin by the smallest Kolmogorov-Smirnov distance.

    Parameters
    ----------
    values : (n,) influences or eigenvalues, at or above zero, any order; zeros are left out.
    draws : bootstrap samples; each draws the values below xmin from the data and those above from
        the fitted law, and chooses its own xmin.
    """
    falling = _falling(values)
    (a,), (size,), (ks,) = _best_tails(np.log(falling[None]))
    if not np.isfinite(ks):
        raise ValueError("all values are equal: there is no tail to fit")
    low = falling[size - 1]
    rng = np.random.default_rng(seed)
    n, below = len(falling), falling[size:]
    samples = np.empty((draws, n))
    for sample in samples:
        above = rng.binomial(n, size / n) if len(below) else n
        sample[:above] = low * np.exp(rng.exponential(1 / a, above))
        sample[above:] = rng.choice(below, n - above) if n > above else below[:0]
    logs = np.log(-np.sort(-samples, axis=1))
    further = sum((_best_tails(part)[2] >= ks).sum() for part in np.array_split(logs, -(-logs.size // VALUES)))
    return _result(falling, a, low, np.inf, ks, (further + 1) / (draws + 1))


def middle(values: np.ndarray, low: float, high: float, *, draws: int = 100, seed: int = 0,
           refit: Callable[[np.ndarray], tuple[float, float]] | None = None) -> PowerLaw:
    """Power-law test between two values: doubly truncated, for example between two fitted breaks.

    Parameters
    ----------
    values : (n,) at or above zero, any order.
    low, high : the range, in the unit of `values`.
    refit : gives (low, high) for a sample of all values.  With it every bootstrap sample, whose values
        in the range are drawn from the law and whose others are kept, chooses its own range, as the
        data did (`heads.law_range`); without it the range is fixed. `calibration.middles` counts how
        often a true law is then called rejected.
    """
    falling = _falling(values)
    if not 0 < low < high:
        raise ValueError(f"the range must rise and be above zero, not from {low} to {high}")
    inside = (falling >= low) & (falling <= high)
    if inside.sum() < LEAST:
        nan = float("nan")
        return PowerLaw(nan, low, high, int(inside.sum()), nan, nan, nan, nan, nan, nan)
    a, ks = _best_middle(falling, low, high)
    rng = np.random.default_rng(seed)
    further = 0
    for _ in range(draws):
        drawn = low * np.exp(_draw(a, np.log(high / low), int(inside.sum()), rng))
        sample = np.concatenate([falling[falling > high], drawn, falling[falling < low]])
        further += _best_middle(sample, *(refit(sample) if refit else (low, high)))[1] >= ks
    return _result(falling, a, low, high, ks, (further + 1) / (draws + 1))


def _falling(values) -> np.ndarray:
    values = check_curve(values, least=LEAST)
    return -np.sort(-values[values > 0])


def _best_tails(logs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rate a, size and KS distance (infinite where all values are equal) of the tail with the smallest distance.

    logs : (samples, n), each falling; the results are (samples,).
    """
    n = logs.shape[1]
    sizes = np.unique(np.round(np.geomspace(min(LEAST, n), n, CANDIDATES)).astype(int))
    excess = np.cumsum(logs, axis=1)[:, sizes - 1] / sizes - logs[:, sizes - 1]  # (samples, sizes) mean of t
    usable = excess > 1e-12
    rates = np.divide(1.0, excess, out=np.zeros_like(excess), where=usable)
    gap = (logs[:, sizes - 1, None] - logs[:, None]) * rates[..., None]         # (samples, sizes, n): -a t
    gap = np.exp(np.minimum(gap, 0.0, out=gap), out=gap)                        # survival of the law
    gap -= (np.arange(n) + 0.5) / sizes[:, None]                                # middle of the data's step
    np.abs(gap, out=gap)
    gap[:, np.arange(n) >= sizes[:, None]] = 0.0
    distances = np.where(usable, gap.max(axis=2) + 0.5 / sizes, np.inf)         # to the step's farther end
    best = distances.argmin(axis=1)
    rows = np.arange(len(logs))
    return rates[rows, best], sizes[best], distances[rows, best]


def _best_middle(values: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Rate a and KS distance of the doubly truncated law between `low` and `high`."""
    t = np.sort(np.log(values[(values >= low) & (values <= high)] / low))
    if len(t) < 2:
        return 0.0, 1.0
    width = np.log(high / low)
    a = rate(t, width)
    below = -np.expm1(-a * t) / -np.expm1(-a * width) if abs(a * width) > 1e-9 else t / width
    place = np.arange(1, len(t) + 1) / len(t)
    return a, float(np.maximum(np.abs(below - place), np.abs(below - place + 1 / len(t))).max())


def rate(t: np.ndarray, width: float) -> float:
    """Maximum-likelihood a of density ~ exp(-a t) on [0, width]; 1 / mean(t) for an infinite width."""
    if not np.isfinite(width):
        return float(1.0 / t.mean())

    def mean(a):                                  # expected t / width at rate a / width, falling in a
        return 0.5 - a / 12 if abs(a) < 1e-4 else 1.0 / a - 1.0 / np.expm1(a)

    share = np.clip(t.mean() / width, 2e-3, 1 - 2e-3)
    return float(brentq(lambda a: mean(a) - share, -600.0, 600.0) / width)


def _draw(a: float, width: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """n draws of t with density ~ exp(-a t) on [0, width]."""
    u = rng.random(n)
    return u * width if abs(a * width) < 1e-9 else -np.log1p(u * np.expm1(-a * width)) / a


def log_normaliser(a: float, b: float, width: float) -> float:
    """Log of the integral of exp(-a t - b t^2) over [0, width]; b > 0 for an infinite width."""
    if np.isfinite(width):
        t = 0.5 * width * (_NODES + 1.0)
        exponent = -a * t - b * t * t
        top = exponent.max()
        return float(top + np.log(0.5 * width * (_WEIGHTS @ np.exp(exponent - top))))
    u = a / (2.0 * np.sqrt(b))
    half = 0.5 * np.sqrt(np.pi / b)
    if u < -5.0:                                  # the mode lies far inside: nearly a whole Gaussian
        return float(np.log(2.0 * half) + u * u)
    return float(np.log(half * erfcx(u)))


def lognormal(t: np.ndarray, width: float) -> tuple[float, float]:
    """Maximum-likelihood (a, b), b >= 0, of density ~ exp(-a t - b t^2) on [0, width]."""
    scale = t.mean()
    one, two = 1.0, np.mean((t / scale) ** 2)     # sufficient statistics in units of the mean

    def loss(ab):
        return ab[0] * one + ab[1] * two + log_normaliser(ab[0], ab[1], width / scale)

    start = [rate(t / scale, width / scale), 1e-3]
    found = minimize(loss, start, method="L-BFGS-B", bounds=[(-200.0, 600.0), (1e-7, 200.0)])
    a, b = found.x if found.fun < loss(start) else start
    return float(a / scale), float(b / scale**2)


def _result(falling, a, low, high, ks, p_fit) -> PowerLaw:
    """The two likelihood ratios in the range, and the result."""
    width = np.log(high / low) if np.isfinite(high) else np.inf
    t = np.log(falling[(falling >= low) & (falling <= high)] / low)
    normaliser = log_normaliser(a, 0.0, width) if np.isfinite(width) else -np.log(a)
    law = -a * t - normaliser
    free_a, free_b = lognormal(t, width)
    free = -free_a * t - free_b * t * t - log_normaliser(free_a, free_b, width)
    logs = np.log(falling)
    b = 1.0 / (2.0 * max(logs.var(), 1e-12))
    whole_a = -2.0 * b * (logs.mean() - np.log(low))
    whole = -whole_a * t - b * t * t - log_normaliser(whole_a, b, width)
    ratio, p_ratio = _ratio(law, free, nested=True)
    ratio_whole, p_whole = _ratio(law, whole, nested=False)
    return PowerLaw(1.0 + a, float(low), float(high), len(t), ks, p_fit, ratio, p_ratio, ratio_whole, p_whole)


def _ratio(first: np.ndarray, second: np.ndarray, *, nested: bool) -> tuple[float, float]:
    """Log-likelihood ratio and its p value; equal likelihoods are a ratio of 0 with p = 1."""
    if np.abs(first - second).max() < 1e-9:
        return 0.0, 1.0
    ratio, p = powerlaw.loglikelihood_ratio(first, second, nested=nested)
    return float(ratio), float(p)
