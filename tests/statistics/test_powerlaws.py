"""Power-law tests: exponents come back, laws survive, lognormals do not pass for laws."""

import numpy as np
import powerlaw
import pytest
from scipy import integrate, stats

from rare_token_neurons.statistics import powerlaws

N = 1000


def pareto(seed, alpha=2.4, n=N):
    return np.random.default_rng(seed).random(n) ** (-1 / (alpha - 1))


def lognormal(seed, sigma=1.0, n=N):
    return np.exp(sigma * np.random.default_rng(seed).standard_normal(n))


def truncated(seed, alpha=2.0, low=1.0, high=20.0, n=N):
    u, a = np.random.default_rng(seed).random(n), alpha - 1
    return low * (1 - u * (1 - (high / low) ** -a)) ** (-1 / a)


def test_tail_is_the_smallest_distance_by_brute_force():
    values = -np.sort(-lognormal(0, n=200))
    (a,), (size,), (distance,) = powerlaws._best_tails(np.log(values[None]))
    sizes = np.unique(np.round(np.geomspace(10, 200, powerlaws.CANDIDATES)).astype(int))

    def by_hand(m):
        top = values[:m]
        alpha = 1 + m / np.log(top / top[-1]).sum()
        return stats.kstest(top, lambda v: 1 - (v / top[-1]) ** (1 - alpha)).statistic

    distances = [by_hand(m) for m in sizes]
    assert distance == pytest.approx(min(distances))
    assert size == sizes[int(np.argmin(distances))]
    assert a == pytest.approx(size / np.log(values[:size] / values[size - 1]).sum())


def test_tail_gives_exponent_and_xmin_back():
    values = np.concatenate([pareto(1, alpha=2.5), np.random.default_rng(1).random(N)])    # bulk below 1
    found = powerlaws.tail(values, draws=10)
    assert found.alpha == pytest.approx(2.5, abs=0.2)
    assert 0.9 < found.low < 3.0                                    # not inside the bulk, nor in the last few
    assert found.kappa == pytest.approx(1 / 1.5, rel=0.15)


def test_tail_agrees_with_the_powerlaw_package():
    values = pareto(2)
    found = powerlaws.tail(values, draws=2)
    theirs = powerlaw.Fit(values, xmin=found.low)
    assert found.alpha == pytest.approx(theirs.alpha, rel=1e-6)
    assert found.ks == pytest.approx(theirs.D, abs=2e-3)


@pytest.mark.parametrize("alpha", [1.3, 2.0, 3.5])
def test_middle_gives_the_exponent_back(alpha):
    found = powerlaws.middle(truncated(3, alpha=alpha), 1.0, 20.0, draws=20)
    assert found.alpha == pytest.approx(alpha, abs=0.15)
    assert found.kappa == pytest.approx(1 / (found.alpha - 1))


def test_exponent_of_a_rank_curve_is_one_plus_one_over_kappa():
    curve = np.arange(1, 2001) ** -0.8
    found = powerlaws.middle(curve, curve[1000], curve[50], draws=5)
    assert found.alpha == pytest.approx(1 + 1 / 0.8, abs=0.02)


def test_a_law_is_not_rejected():
    assert [powerlaws.tail(pareto(seed), draws=30).verdict for seed in range(6)].count("not rejected") >= 5


def test_a_lognormal_is_never_favoured():
    for sigma in (1.0, 2.0):
        words = [powerlaws.tail(lognormal(seed, sigma), draws=30).verdict for seed in range(5)]
        assert words.count("not rejected") == 0


def test_a_law_in_the_middle_is_told_from_a_lognormal_there():
    law = np.concatenate([truncated(4, alpha=2.4, high=50.0), np.full(20, 50.0),
                          0.9 * np.random.default_rng(4).random(500)])
    assert powerlaws.middle(law, 1.0, 49.9, draws=30).verdict == "not rejected"
    values = lognormal(5, n=3000)
    assert powerlaws.middle(values, *np.quantile(values, [0.3, 0.99]), draws=30).verdict == "rejected"
    assert powerlaws.middle(values, *np.quantile(values, [0.9, 0.97]),
                            draws=30).verdict == "cannot tell it from a lognormal"


def test_refit_chooses_a_range_for_every_sample():
    seen = []

    def refit(sample):
        seen.append(sample)
        return tuple(np.quantile(sample, [0.2, 0.8]))

    values = truncated(6)
    powerlaws.middle(values, *np.quantile(values, [0.2, 0.8]), draws=7, refit=refit)
    assert len(seen) == 7 and all(len(sample) == N for sample in seen)
    outside = values[values > np.quantile(values, 0.8)]
    assert np.isin(outside, seen[0]).all()                          # only the middle is drawn anew


@pytest.mark.parametrize("a, b, width", [(1.0, 0.5, 3.0), (-2.0, 1.0, 4.0), (3.0, 0.0, 2.0), (0.0, 0.0, 2.0),
                                         (2.0, 0.1, np.inf), (-3.0, 0.2, np.inf), (-20.0, 1.0, np.inf),
                                         (5.0, 1e-7, np.inf)])
def test_normaliser_is_the_integral(a, b, width):
    centre = max(0.0, -a / (2 * b)) if b else 0.0
    stop = width if np.isfinite(width) else centre + 40
    peak = [centre] if 0 < centre < stop else None
    by_hand = integrate.quad(lambda t: np.exp(-a * t - b * t * t), 0, stop, points=peak, limit=200)[0]
    assert powerlaws.log_normaliser(a, b, width) == pytest.approx(np.log(by_hand), abs=1e-6)


def test_free_lognormal_finds_curvature_and_the_law_its_absence():
    t = np.log(lognormal(7, sigma=1.0, n=20_000))
    a, b = powerlaws.lognormal(t[t > 0.5] - 0.5, np.inf)           # mu 0, sigma 1: b = 1/2, a = 0.5
    assert b == pytest.approx(0.5, rel=0.15) and a == pytest.approx(0.5, rel=0.4)
    assert powerlaws.lognormal(np.random.default_rng(8).exponential(size=20_000), np.inf)[1] < 0.02


def test_free_lognormal_is_never_worse_than_the_law():
    for seed in range(5):
        assert powerlaws.tail(pareto(seed), draws=1).ratio < 1e-3


def test_zeros_are_left_out_and_the_unit_does_not_matter():
    values = pareto(9)
    one, other = powerlaws.tail(values, draws=20), powerlaws.tail(np.append(1e-6 * values, np.zeros(50)), draws=20)
    assert other.alpha == pytest.approx(one.alpha) and other.n == one.n
    assert other.ratio_whole == pytest.approx(one.ratio_whole, rel=1e-6) and other.verdict == one.verdict


def test_too_few_values_cannot_be_tested():
    assert powerlaws.middle(pareto(0), 1e6, 1e7).verdict == "cannot be tested (0 values)"
    with pytest.raises(ValueError, match="at least 10"):
        powerlaws.tail(np.ones(5))
    with pytest.raises(ValueError, match="all values are equal"):
        powerlaws.tail(np.ones(50))
    with pytest.raises(ValueError, match="range"):
        powerlaws.middle(pareto(0), 3.0, 2.0)
