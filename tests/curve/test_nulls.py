"""Null curves: fitted families, honest p values, plateaus told from lognormal samples."""

import numpy as np
import pytest
from scipy import stats

from rare_token_neurons.curve import nulls, piecewise

N, DOCUMENTS = 512, 80


def measured(true, seed, noise=1.0):
    """Per-document sums and positions around true influences (neurons,)."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(3, 12, size=DOCUMENTS).astype(float)
    return true * counts[:, None] * np.exp(noise * rng.standard_normal((DOCUMENTS, len(true))) - noise**2 / 2), counts


def lognormal(seed):
    return measured(np.exp(np.random.default_rng(seed).standard_normal(N)), seed + 1000)


def plateau(seed):
    ranks = np.arange(1, N + 1)
    return measured(np.maximum(ranks, 20) ** -0.7 * np.maximum(ranks / 120, 1.0) ** -2.0, seed)


@pytest.mark.parametrize("family, truth", [
    ("lognormal", stats.lognorm(s=0.7, scale=3.0)),
    ("half-normal", stats.halfnorm(scale=2.0)),
    ("exponential", stats.expon(scale=0.2)),
])
def test_families_give_their_parameters_back(family, truth):
    values = truth.rvs(20_000, random_state=0)
    fitted = nulls.distribution(values, family)
    assert fitted.mean() == pytest.approx(truth.mean(), rel=0.03)
    assert fitted.std() == pytest.approx(truth.std(), rel=0.05)
    drawn = nulls.sample(values[:N], family, 50, np.random.default_rng(0))
    assert drawn.shape == (50, N) and (np.diff(drawn, axis=1) <= 0).all()


def test_dead_neurons_are_left_out_of_the_null():
    values = np.append(np.exp(np.random.default_rng(0).standard_normal(100)), np.zeros(30))
    assert nulls.sample(values, "lognormal", 3, np.random.default_rng(0)).shape == (3, 100)


def test_departure_by_hand_and_its_sign():
    x = np.linspace(0, 6, 61)
    flat_head = -0.5 * np.maximum(x, 2.0)
    steep_head = -0.5 * x + np.maximum(2.0 - x, 0)
    found = nulls.departures(x, np.stack([flat_head, steep_head, -0.5 * x]), np.array([[2.0, 2.0, 6.0]]))
    np.testing.assert_allclose(found[0], [-1.0, 2.0, 0.0], atol=1e-9)  # means -0.5 and 1 of a ramp, over kappa


def test_departure_in_efolds_ignores_unit_and_power():
    rng = np.random.default_rng(0)
    x, y = np.linspace(0, 6, 61), -np.abs(rng.standard_normal((1, 61))).cumsum(axis=1)
    windows = np.array([[1.5, 1.5, 4.0]])
    one, other = nulls.departures(x, y, windows), nulls.departures(x, 3 * y + 7, windows)
    np.testing.assert_allclose(one, other)


def test_p_values_of_null_curves_are_uniform():
    rng = np.random.default_rng(0)
    values = np.exp(rng.standard_normal(N))
    curves = nulls.sample(values, "lognormal", 100, rng)
    starts, x = piecewise.bins(N)
    trials = piecewise.in_bins(nulls.sample(values, "lognormal", 60, rng), starts)
    p = [nulls.compare(x, y, curves).p_plateau for y in trials]
    assert stats.kstest(p, "uniform").pvalue > 0.001
    assert np.mean(np.array(p) <= 0.05) < 0.2


def said(sums, counts, seed):
    found = nulls.families(sums, counts, draws=60, splits=5, seed=seed)
    return found[nulls.best(found)].verdict()


def test_lognormal_samples_are_no_plateau_and_planted_ones_are():
    words = [said(*lognormal(seed), seed) for seed in range(8)]
    assert sum(word.startswith("no plateau beyond the null") for word in words) >= 7
    assert [said(*plateau(seed), seed) for seed in range(4)].count("plateau beyond the null") >= 3


def test_the_null_that_counts_is_the_family_that_fits():
    for family, truth in (("lognormal", stats.lognorm(s=1.2)), ("half-normal", stats.halfnorm()),
                          ("exponential", stats.expon())):
        values = truth.rvs(N, random_state=3)
        found = nulls.families(*measured(values, 3, noise=0.3), draws=20, splits=3)
        assert nulls.best(found) == family


def test_outliers_are_named_as_such():
    ranks = np.arange(1, N + 1)
    true = np.where(ranks <= 15, ranks ** -1.5, 15**-1.1 * ranks ** -0.4) * np.maximum(ranks / 250, 1.0) ** -2.0
    found = nulls.families(*measured(true, 0, noise=0.3), draws=60, splits=5)["lognormal"]
    assert found.departure > 0 and found.verdict() == "no plateau beyond the null, but outliers"


def test_remeasured_curves_regress_like_measured_ones():
    rng = np.random.default_rng(0)
    sums, counts = lognormal(0)
    truth = np.tile(-np.sort(-np.exp(rng.standard_normal(N))), (40, 1))
    noisy = nulls.remeasure(truth, sums, counts, rng)
    assert noisy[:, :5].mean() < truth[:, :5].mean()                      # regression to the mean
    assert noisy.mean() == pytest.approx(truth.mean(), rel=0.02)
    quiet_sums = np.outer(counts, sums.sum(axis=0) / counts.sum())        # every document alike: no noise
    np.testing.assert_allclose(nulls.remeasure(truth, quiet_sums, counts, rng), truth)
    same = nulls.remeasure(truth, sums, counts, rng, ranking="same_tokens")
    assert same[:, 0].mean() > noisy[:, 0].mean()                         # the winner's curse


def test_shuffled_labels_keep_their_number():
    rare = np.arange(100) < 30
    labels = nulls.shuffled(rare, 50, np.random.default_rng(0))
    assert labels.shape == (50, 100) and (labels.sum(axis=1) == 30).all()
    assert 0.2 < labels[:, 0].mean() < 0.45                               # a position is rare in 30 % of the draws


def test_matched_positions_have_the_same_losses():
    rng = np.random.default_rng(0)
    rare, common = rng.normal(6, 1, 200), rng.normal(4, 2, 5000)
    chosen = nulls.matched(rare, common)
    assert len(np.unique(chosen)) == 200
    assert np.abs(common[chosen] - rare).max() < 0.3
    np.testing.assert_array_equal(nulls.matched([5.0, 1.0], [1.1, 9.0, 4.9]), [2, 0])
    with pytest.raises(ValueError, match="cannot match"):
        nulls.matched(common, rare)


def test_bad_nulls_are_one_sentence():
    starts, x = piecewise.bins(N)
    curve = piecewise.in_bins(np.arange(1, N + 1) ** -0.5, starts)
    with pytest.raises(ValueError, match="at least 10"):
        nulls.compare(x, curve, np.ones((5, N)))
    with pytest.raises(ValueError, match="do not fit"):
        nulls.compare(x, curve, np.ones((20, N + 100)))
    with pytest.raises(ValueError, match="family"):
        nulls.distribution(np.ones(100), "cauchy")
