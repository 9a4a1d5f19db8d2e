"""Documents halved and drawn: nothing shared, nothing lost, no winner's curse, and intervals that cover."""

import numpy as np
import pytest

from rare_token_neurons.statistics import documents, geometry, rankings


def test_parts_share_no_document_and_lose_none():
    weights = documents.parts(50, 3, 100, np.random.default_rng(0))       # (3, 100, 50)
    assert (weights.sum(axis=0) == 1).all()
    assert set(weights.sum(axis=-1).ravel()) <= {16, 17}
    assert len(np.unique(weights[0], axis=0)) > 90                         # a new cut every draw


def test_documents_are_drawn_after_the_split():
    weights = documents.parts(51, 2, 200, np.random.default_rng(0))
    drawn = documents.redraw(weights, np.random.default_rng(1))
    assert ((drawn > 0) <= (weights > 0)).all()                            # never from the other half
    np.testing.assert_array_equal(drawn.sum(axis=-1), weights.sum(axis=-1))
    assert drawn.max() > 1


def test_resamples_are_multinomial_draws_below_every_document_once():
    found = documents.resamples(12, 40, (3, 1))
    assert found.shape == (41, 12) and (found[0] == 1).all()
    drawn = np.random.default_rng([3, 1]).multinomial(12, np.full(12, 1 / 12), size=40)
    np.testing.assert_array_equal(found[1:], drawn)


def test_split_half_curve_has_no_winners_curse():
    rng = np.random.default_rng(1)
    sums = np.exp(rng.standard_normal((40, 500)))               # 500 equal neurons: all spread is noise
    counts = np.ones(40)
    same = documents.curves_drawn(sums, counts, 10, rng, ranking="same_tokens", resample=False).mean(axis=0)
    split = documents.curves_drawn(sums, counts, 10, rng, ranking="split_half", resample=False).mean(axis=0)
    assert same[0] / same.mean() > 1.5
    assert split[:20].mean() / split.mean() == pytest.approx(1.0, abs=0.1)


def test_split_half_by_hand():
    first, second = np.array([[3.0, 1.0, 2.0]]), np.array([[10.0, 30.0, 20.0]])
    # by the first: neurons 0, 2, 1 -> 10, 20, 30 on the second; by the second: 1, 2, 0 -> 1, 2, 3
    np.testing.assert_allclose(documents.split_half(first, second), [[5.5, 11.0, 16.5]])


def test_influence_is_the_ratio_of_sums():
    sums, counts = np.array([[2.0, -6.0], [4.0, 1.0]]), np.array([2.0, 1.0])
    np.testing.assert_allclose(documents.influence(sums, counts, np.array([[1.0, 1], [2, 0]])), [[2, 5 / 3], [1, 3]])


def test_reliability_is_high_with_signal_and_low_without():
    rng = np.random.default_rng(0)
    true = np.exp(rng.standard_normal(500))
    assert documents.reliability(true * np.exp(0.3 * rng.standard_normal((40, 500))), np.ones(40)) > 0.95
    assert abs(documents.reliability(np.exp(rng.standard_normal((40, 500))), np.ones(40))) < 0.25


def test_means_over_documents_count_positions_and_their_error_documents():
    mean, error = documents.mean_and_error(np.array([[2.0, 6.0], [4.0, 2.0]]), np.array([1.0, 3.0]))
    assert mean == pytest.approx([1.5, 2])  # excess over the mean: 0.5 and -0.5, 4 and -4
    assert error == pytest.approx(np.sqrt(2 * np.array([0.5, 32])) / 4)
    assert np.isnan(documents.mean_and_error(np.ones((1, 2)), np.array([5.0]))[1]).all()
    assert np.isnan(documents.mean_and_error(np.ones((0, 2)), np.ones(0))).all()


def test_detectable_change_is_two_standard_errors():
    rng = np.random.default_rng(0)
    found = documents.detectable(rng.standard_normal((400, 300)) * 0.5, np.ones(400))
    assert found.mean() == pytest.approx(1.96 * 0.5 / 20, rel=0.05)


@pytest.mark.parametrize("sums, counts, word", [
    (np.ones((5, 100)), np.ones(5), "at least 6 documents"),
    (np.ones((50, 100)), np.ones(49), "sums must be"),
    (np.full((50, 100), np.nan), np.ones(50), "finite"),
    (np.ones((50, 100)), np.zeros(50), "position"),
])
def test_bad_input_is_one_sentence(sums, counts, word):
    with pytest.raises(ValueError, match=word) as error:
        documents.check(sums, counts)
    assert "\n" not in str(error.value)


def test_bad_ranking_is_named():
    with pytest.raises(ValueError, match="ranking"):
        documents.curves_drawn(np.ones((9, 30)), np.ones(9), 2, np.random.default_rng(0), ranking="best")


# ---- intervals from second moments


def text(rng, count=12, neurons=6):
    """Activations with a mean far from zero and a level of their own in each document."""
    lengths = rng.integers(5, 60, size=count)
    ids = rng.permutation(np.repeat(np.arange(count) * 10, lengths))
    level = rng.normal(size=(count, neurons))
    return level[ids // 10] + rng.normal(size=(len(ids), neurons)) + 3.0, ids


@pytest.mark.parametrize("centred", [True, False])
def test_resampling_documents_is_repeating_their_tokens(centred):
    rng = np.random.default_rng(0)
    values, ids = text(rng)
    group = np.array([4, 1, 2])
    weights = rng.multinomial(12, np.full(12, 1 / 12), size=5)
    found = documents.resampled(documents.moments(values, ids, rows=group), weights, centred)
    assert found.shape == (5, 3, 6)
    for block, weight in zip(found, weights):
        repeated = np.concatenate([np.tile(values[ids == 10 * d], (w, 1)) for d, w in enumerate(weight)])
        assert block == pytest.approx(geometry.correlation(repeated, centred)[group], abs=1e-10)


def test_bootstrap_is_batched_paired_and_reproducible(monkeypatch):
    values, ids = text(np.random.default_rng(1))
    moments = documents.moments(values, ids)
    value, samples = documents.bootstrap(geometry.mean_pair, moments, draws=70, seed=3)
    assert value == pytest.approx(geometry.mean_pair(geometry.correlation(values)))
    monkeypatch.setattr(documents, "BATCH", 7)
    again = documents.bootstrap(geometry.mean_pair, moments, draws=70, seed=3)[1]
    assert samples.shape == (70,) and samples == pytest.approx(again, abs=1e-12)
    curves = documents.bootstrap(geometry.cumulative_variance, moments, draws=70, seed=3)
    for kind in ("percentile", "basic", "centred"):
        low, high = documents.interval(*curves, kind)
        assert low.shape == (6,) and np.all(low <= high)


# a planted sample -> a statistic (1 + 100 draws of 60 documents,), its truth


def a_mean(rng, draw):
    counts = rng.integers(3, 13, 60).astype(float)
    sums = (counts * rng.lognormal(0, 0.4, 60))[:, None]
    return documents.means(sums, counts, documents.resamples(60, 100, draw))[:, 0], np.exp(0.08)


def a_mean_correlation(rng, draw):
    """Tokens of a document hang together: neurons 2 by 2 share its level."""
    level = np.repeat(rng.normal(size=(60, 2)), 2, axis=1)
    values = level.repeat(10, axis=0) + rng.normal(size=(600, 4))
    made = documents.moments(values, np.arange(60).repeat(10))
    return np.append(*documents.bootstrap(geometry.mean_pair, made, draws=100, seed=draw)), 0.5 * 2 / 6


def a_mean_absolute_correlation(rng, draw):
    mixing = np.random.default_rng(9).normal(size=(3, 12)) * 0.02**0.5
    covariance = mixing.T @ mixing + np.eye(12)
    scale = np.sqrt(covariance.diagonal())
    made = documents.moments(rng.multivariate_normal(np.zeros(12), covariance, 600), np.arange(60).repeat(10))
    truth = geometry.mean_abs_pair(covariance / np.outer(scale, scale))
    return np.append(*documents.bootstrap(geometry.mean_abs_pair, made, draws=100, seed=draw)), truth


TRUE = np.exp(np.random.default_rng(1).normal(scale=0.5, size=200))  # influences of 200 neurons


def seen(rng, noise):
    """Per-document sums of noisy influences, and counts."""
    return TRUE * np.exp(noise * rng.standard_normal((60, 200)) - noise**2 / 2), np.ones(60)


def agreement(rng, draw):
    """The truth is what two halves of 60 documents agree on average, 0.324 by 400 samples."""
    halves = documents.influence(*seen(rng, 2.0), documents.halves(np.arange(60) % 2 == 0, 100, draw))
    return rankings.rank_correlation(*halves), 0.324


@pytest.mark.parametrize("kind, plant", [("percentile", a_mean), ("basic", a_mean), ("centred", a_mean),
                                         ("basic", a_mean_correlation), ("basic", a_mean_absolute_correlation),
                                         ("centred", agreement)])
def test_an_interval_covers_the_truth_of_what_it_is_for(kind, plant):
    covered = dict.fromkeys({kind, "percentile"}, 0)
    for run in range(100):
        (value, *draws), truth = plant(np.random.default_rng([7, run]), run)
        for one in covered:
            low, high = documents.interval(value, draws, one)
            covered[one] += low <= truth <= high
    assert covered[kind] >= 80 and covered["percentile"] <= covered[kind] + 5
    if plant in (a_mean_absolute_correlation, agreement):
        assert covered["percentile"] < covered[kind] - 10


def test_the_held_interval_errs_towards_the_null():
    """What the twenty most influential neurons have less of than all others: chance members have it,
    none in the draws less."""
    trait = np.where(TRUE >= np.sort(TRUE)[-20], 0.0, 1.0) + 0.3 * np.random.default_rng(2).normal(size=200)
    truth = trait[rankings.top(TRUE, 20)].mean()
    for run in range(40):
        chosen = documents.influence(*seen(np.random.default_rng([7, run]), 1.0), documents.resamples(60, 100, run))
        value, *draws = trait[rankings.top(chosen, 20)].mean(axis=1)
        low, high = documents.interval(value, draws, "held")
        assert low <= value <= high and truth < high < 1


def test_a_planted_group_is_set_apart_from_its_controls_and_another_is_not():
    rng = np.random.default_rng(4)
    values, ids = rng.normal(size=(4000, 80)), np.repeat(np.arange(100), 40)
    values[:, :10] += 0.5 * rng.normal(size=(4000, 1))
    groups = [np.arange(10), np.arange(10, 20), *rng.permuted(np.tile(np.arange(20, 80), (20, 1)), axis=1)[:, :10]]
    found = [documents.bootstrap(geometry.mean_pair, documents.moments(values[:, group], ids), draws=200)
             for group in groups]
    everyone, samples = np.array([value for value, _ in found]), np.stack([sample for _, sample in found], axis=1)
    for kind in ("basic", "centred"):
        (value, low, high), other = (documents.against(everyone[one], samples[:, one], everyone[2:].mean(),
                                                       samples[:, 2:].T, kind) for one in (0, 1))
        assert low < value < high and low > 0.1 and value == pytest.approx(0.2, abs=0.03)
        assert other[1] < 0 < other[2]
    assert documents.against(0.5, samples[:, 0], 0.3, [], "basic") == pytest.approx((0.2, np.nan, np.nan), nan_ok=True)


def test_with_endless_text_a_group_like_any_other_is_not_set_apart():
    rng = np.random.default_rng(5)
    mixing = rng.normal(size=(30, 120)) / 6  # every pair of neurons is correlated, this way or that
    values, ids = rng.normal(size=(20_000, 30)) @ mixing, np.repeat(np.arange(200), 100)
    groups = rng.permuted(np.tile(np.arange(120), (40, 1)), axis=1)[:, :10]
    found = [documents.bootstrap(geometry.mean_pair, documents.moments(values[:, group], ids), draws=60)
             for group in groups]
    everyone, samples = np.array([value for value, _ in found]), np.stack([sample for _, sample in found], axis=1)
    others, excluded = np.arange(20, 40), 0
    for one in range(20):
        _, low, high = documents.against(everyone[one], samples[:, one], everyone[others].mean(), samples[:, others].T,
                                         "basic")
        excluded += not low < 0 < high
    assert excluded <= 4


@pytest.mark.parametrize("centred", [True, False])
def test_correlation_with_the_outside_is_that_of_the_matrix(centred):
    values, ids = text(np.random.default_rng(6), neurons=15)
    groups = np.array([[0, 3, 4], [9, 2, 14]])
    matrix = geometry.correlation(values, centred)
    found, samples = documents.outside(values, ids, groups, draws=50, seed=2, centred=centred)
    assert found == pytest.approx([np.delete(matrix[group], group, axis=1).mean() for group in groups])
    exact = documents.bootstrap(lambda blocks: blocks[:, :, np.setdiff1d(np.arange(15), groups[0])].mean(axis=(1, 2)),
                                 documents.moments(values, ids, rows=groups[0]), draws=50, seed=2, centred=centred)[1]
    assert np.corrcoef(samples[:, 0], exact)[0, 1] > (0.8 if centred else 0.1)
    with pytest.raises(ValueError, match="constant"):
        documents.outside(np.zeros((9, 3)), np.arange(9), [[0]], draws=9)


def test_means_and_ratios_of_documents():
    rng = np.random.default_rng(8)
    ids = np.repeat(np.arange(60), 10)
    values = rng.normal(size=60)[ids] + rng.normal(size=600) + 2
    value, low, high = documents.mean(values, ids, seed=0)
    assert value == pytest.approx(values.mean())
    by_document = values.reshape(60, 10).mean(axis=1)
    assert (high - low) / 2 == pytest.approx(1.96 * by_document.std() / 60**0.5, rel=0.15)
    ratio = documents.mean(2 * values, ids, seed=0, over=values)
    assert ratio == pytest.approx((2, 2, 2))


def test_bad_input_by_name():
    with pytest.raises(ValueError, match="one document"):
        documents.moments(np.zeros((5, 2)), np.zeros(4))
    with pytest.raises(ValueError, match="at least 2"):
        documents.bootstrap(geometry.mean_pair, documents.moments(np.random.rand(5, 2), np.zeros(5)), draws=9)
    with pytest.raises(ValueError, match="not 'normal'"):
        documents.interval(1.0, np.arange(9.0), "normal")


# ---- groups chosen anew, halves, intervals around the value


def test_groups_chosen_anew_are_those_of_a_ranking_by_hand():
    rng = np.random.default_rng(0)
    sums, n = rng.random((12, 30)), rng.integers(1, 5, size=12)
    found = documents.resampled_groups(sums, n, 4, draws=20, seed=5)
    drawn = np.random.default_rng(5).multinomial(12, np.full(12, 1 / 12), size=20)
    for group, times in zip(found, drawn):
        chosen = np.repeat(np.arange(12), times)
        means = sums[chosen].sum(axis=0) / n[chosen].sum()
        assert group.tolist() == sorted(range(30), key=lambda neuron: -means[neuron])[:4]
    certain = documents.resampled_groups(np.arange(30.0) * n[:, None], n, 4, draws=20, seed=0)
    assert (certain == [29, 28, 27, 26]).all()


def test_the_held_interval_holds_the_value():
    held = lambda value, draws: documents.interval(value, draws, "held")
    assert held(5.0, np.arange(100.0)) == pytest.approx((2.475, 96.525)) == documents.percentile(np.arange(100.0))
    assert held(-3.0, np.arange(100.0))[0] == -3.0 and held(200.0, np.r_[np.arange(100.0), np.nan])[1] == 200.0
    assert np.isnan([held(np.nan, np.arange(9.0)), held(1.0, np.full(9, np.nan))]).all()


def test_halves_hold_each_document_on_one_side_and_draw_from_it():
    in_a = np.array([True, False, True, True, False, False, True])
    weights = documents.halves(in_a, 50, seed=2)
    assert weights.shape == (2, 51, 7) and np.array_equal(weights[:, 0], [in_a, ~in_a])
    assert not weights[0][:, ~in_a].any() and not weights[1][:, in_a].any()
    assert (weights.sum(axis=-1) == [[4], [3]]).all() and weights[0].max() > 1


def test_the_centred_interval_keeps_the_estimate_and_the_draws_spread():
    draws = np.random.default_rng(0).normal(0.5, 0.01, 2000)
    low, high = documents.interval(0.8, draws, "centred")
    assert low < 0.8 < high and high - low == pytest.approx(2 * 1.96 * 0.01, rel=0.1)
    assert documents.interval(0.999, draws, "centred", within=(0, 1))[1] == 1.0
