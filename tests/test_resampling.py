"""Bootstrap over documents: equal to repeating the documents' tokens, and intervals that cover."""

import numpy as np
import pytest

from rare_token_neurons.statistics import documents as over_documents, geometry


def text(rng, documents=12, neurons=6):
    """Activations with a mean far from zero and a level of their own in each document."""
    lengths = rng.integers(5, 60, size=documents)
    ids = rng.permutation(np.repeat(np.arange(documents) * 10, lengths))
    level = rng.normal(size=(documents, neurons))
    return level[ids // 10] + rng.normal(size=(len(ids), neurons)) + 3.0, ids


@pytest.mark.parametrize("centred", [True, False])
def test_resampling_documents_is_repeating_their_tokens(centred):
    rng = np.random.default_rng(0)
    values, ids = text(rng)
    group = np.array([4, 1, 2])
    weights = rng.multinomial(12, np.full(12, 1 / 12), size=5)
    found = over_documents.resampled(over_documents.moments(values, ids, rows=group), weights, centred)
    assert found.shape == (5, 3, 6)
    for block, weight in zip(found, weights):
        repeated = np.concatenate([np.tile(values[ids == 10 * d], (w, 1)) for d, w in enumerate(weight)])
        assert block == pytest.approx(geometry.correlation(repeated, centred)[group], abs=1e-10)


def test_bootstrap_is_batched_paired_and_reproducible():
    values, ids = text(np.random.default_rng(1))
    moments = over_documents.moments(values, ids)
    value, samples = over_documents.bootstrap(geometry.mean_pair, moments, draws=70, seed=3)
    assert value == pytest.approx(geometry.mean_pair(geometry.correlation(values)))
    again = over_documents.bootstrap(geometry.mean_pair, moments, draws=70, seed=3, batch=7)[1]
    assert samples.shape == (70,) and samples == pytest.approx(again, abs=1e-12)
    curves = over_documents.bootstrap(geometry.cumulative_variance, moments, draws=70, seed=3)
    low, high = over_documents.interval(*curves)
    assert low.shape == (6,) and np.all(low <= high)


def test_the_interval_covers_the_truth_where_tokens_of_a_document_hang_together():
    rng = np.random.default_rng(2)
    values, ids = text(rng, documents=4000, neurons=4)
    truth = geometry.mean_pair(geometry.correlation(values))
    hits = 0
    for trial in range(100):
        chosen = rng.choice(4000, size=150, replace=False) * 10
        inside = np.isin(ids, chosen)
        low, high = over_documents.interval(*over_documents.bootstrap(
            geometry.mean_pair, over_documents.moments(values[inside], ids[inside]), draws=200, seed=trial))
        hits += low <= truth <= high
    assert hits >= 88


def test_the_basic_interval_takes_off_the_bias_of_resampling():
    rng = np.random.default_rng(3)
    values, ids = rng.normal(size=(600, 12)), np.repeat(np.arange(40), 15)  # true correlations are 0
    value, samples = over_documents.bootstrap(geometry.mean_abs_pair, over_documents.moments(values, ids), draws=400)
    assert samples.mean() > 1.2 * value
    low, high = over_documents.interval(value, samples)
    assert high < value + (samples.mean() - value)


def test_a_planted_group_is_set_apart_from_its_controls_and_another_is_not():
    rng = np.random.default_rng(4)
    values, ids = rng.normal(size=(4000, 80)), np.repeat(np.arange(100), 40)
    values[:, :10] += 0.5 * rng.normal(size=(4000, 1))
    groups = [np.arange(10), np.arange(10, 20), *rng.permuted(np.tile(np.arange(20, 80), (20, 1)), axis=1)[:, :10]]
    found = [over_documents.bootstrap(geometry.mean_pair, over_documents.moments(values[:, group], ids), draws=200) for group in groups]
    everyone, samples = np.array([value for value, _ in found]), np.stack([sample for _, sample in found], axis=1)
    value, low, high = over_documents.against(np.delete(everyone, 1), np.delete(samples, 1, axis=1))
    assert low < value < high and low > 0.1 and value == pytest.approx(0.2, abs=0.03)
    value, low, high = over_documents.against(everyone[1:], samples[:, 1:])
    assert low < 0 < high


def test_with_endless_text_a_group_like_any_other_is_not_set_apart():
    rng = np.random.default_rng(5)
    mixing = rng.normal(size=(30, 120)) / 6  # every pair of neurons is correlated, this way or that
    values, ids = rng.normal(size=(20_000, 30)) @ mixing, np.repeat(np.arange(200), 100)
    groups = rng.permuted(np.tile(np.arange(120), (40, 1)), axis=1)[:, :10]
    found = [over_documents.bootstrap(geometry.mean_pair, over_documents.moments(values[:, group], ids), draws=60) for group in groups]
    everyone, samples = np.array([value for value, _ in found]), np.stack([sample for _, sample in found], axis=1)
    others, excluded = np.arange(20, 40), 0
    for one in range(20):
        value, low, high = over_documents.against(everyone[[one, *others]], samples[:, [one, *others]])
        excluded += not low < 0 < high
    assert excluded <= 4


@pytest.mark.parametrize("centred", [True, False])
def test_correlation_with_the_outside_is_that_of_the_matrix(centred):
    values, ids = text(np.random.default_rng(6), neurons=15)
    groups = np.array([[0, 3, 4], [9, 2, 14]])
    matrix = geometry.correlation(values, centred)
    found, samples = over_documents.outside(values, ids, groups, draws=50, seed=2, centred=centred)
    assert found == pytest.approx([geometry.between(matrix, group).mean() for group in groups])
    exact = over_documents.bootstrap(lambda blocks: blocks[:, :, np.setdiff1d(np.arange(15), groups[0])].mean(axis=(1, 2)),
                                 over_documents.moments(values, ids, rows=groups[0]), draws=50, seed=2, centred=centred)[1]
    assert np.corrcoef(samples[:, 0], exact)[0, 1] > (0.8 if centred else 0.1)
    with pytest.raises(ValueError, match="constant"):
        over_documents.outside(np.zeros((9, 3)), np.arange(9), [[0]])


def test_means_and_ratios_of_documents():
    rng = np.random.default_rng(8)
    ids = np.repeat(np.arange(60), 10)
    values = rng.normal(size=60)[ids] + rng.normal(size=600) + 2
    value, low, high = over_documents.mean(values, ids)
    assert value == pytest.approx(values.mean())
    by_document = values.reshape(60, 10).mean(axis=1)
    assert (high - low) / 2 == pytest.approx(1.96 * by_document.std() / 60**0.5, rel=0.15)
    ratio = over_documents.mean(2 * values, ids, over=values)
    assert ratio == pytest.approx((2, 2, 2))


def test_bad_input_by_name():
    with pytest.raises(ValueError, match="one document"):
        over_documents.moments(np.zeros((5, 2)), np.zeros(4))
    with pytest.raises(ValueError, match="at least 2"):
        over_documents.bootstrap(geometry.mean_pair, over_documents.moments(np.random.rand(5, 2), np.zeros(5)))
