"""Null curves: fitted families, measured as the curve is; shuffled labels, matched positions."""

import numpy as np
import pytest
from scipy import stats

from rare_token_neurons.curve import nulls

N, DOCUMENTS = 512, 80


def measured(true, seed, noise=1.0):
    """Per-document sums and positions around true influences (neurons,)."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(3, 12, size=DOCUMENTS).astype(float)
    return true * counts[:, None] * np.exp(noise * rng.standard_normal((DOCUMENTS, len(true))) - noise**2 / 2), counts


def lognormal(seed):
    return measured(np.exp(np.random.default_rng(seed).standard_normal(N)), seed + 1000)


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


def test_an_unknown_family_is_named():
    with pytest.raises(ValueError, match="family"):
        nulls.distribution(np.ones(100), "cauchy")
