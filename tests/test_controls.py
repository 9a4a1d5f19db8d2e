"""Random and matched groups, empirical p values."""

import numpy as np
import pytest

from rare_token_neurons.statistics import controls


def test_random_groups_hold_each_neuron_once_and_all_equally_often():
    pool = np.array([2, 3, 5, 7, 11, 13, 17, 19])
    groups = controls.random_groups(pool, 3, draws=8000, seed=0)
    assert groups.shape == (8000, 3) and set(np.unique(groups)) == set(pool)
    assert all(len(set(group)) == 3 for group in groups)
    counts = np.array([np.sum(groups == neuron) for neuron in pool])
    assert np.all(np.abs(counts - 3000) < 5 * np.sqrt(3000 * 5 / 8))
    assert np.array_equal(groups, controls.random_groups(pool, 3, draws=8000, seed=0))
    assert not np.array_equal(groups, controls.random_groups(pool, 3, draws=8000, seed=1))
    assert np.array_equal(np.sort(controls.random_groups(4, 4, draws=1)[0]), np.arange(4))


def test_matched_groups_are_closer_than_random_ones_and_never_the_group():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1500, 2))
    group = np.argsort(features[:, 0] + 0.3 * rng.normal(size=1500))[-208::8]  # larger than most
    matched = controls.matched_groups(features, group, draws=500, seed=1)
    assert matched.shape == (500, 26) and not np.isin(matched, group).any()
    assert all(len(set(other)) == 26 for other in matched)
    plain = controls.random_groups(1500, 26, draws=500, seed=1)
    assert abs(controls.imbalance(features, group, plain)[0]) > 1
    assert np.all(np.abs(controls.imbalance(features, group, matched)) < 0.15)
    missed = controls.missed(features, group, plain)
    assert missed["imbalance_scale"] == controls.imbalance(features, group, plain)[0] > controls.POOR_MATCH
    assert np.isnan(list(controls.missed(features, group).values())).all()
    assert len(np.unique(matched)) > 100
    assert np.array_equal(matched, controls.matched_groups(features, group, draws=500, seed=1))


def test_with_as_many_candidates_as_members_every_member_still_finds_one():
    features = np.zeros((8, 2))
    groups = controls.matched_groups(features, [0, 1, 2, 3], draws=50, neighbours=4)
    assert np.array_equal(np.sort(groups, axis=1), np.tile(np.arange(4, 8), (50, 1)))


def test_matching_features_leave_out_what_is_constant():
    activations = np.random.default_rng(0).normal(size=(100, 60))
    activations[:, 5] = 1.0
    features = controls.matching_features(activations, 2.0 * np.ones((9, 60)))
    assert features[:, 1] == pytest.approx(np.log(6.0)) and features[5, 0] == -np.inf
    assert features[0, 0] == pytest.approx(np.log(activations[:, 0].std()))
    assert 5 not in controls.matched_groups(features, [0, 1], draws=20)
    with pytest.raises(ValueError, match="dead or constant"):
        controls.matched_groups(features, [5], draws=2)


def test_empirical_p():
    null = np.arange(99.0)
    assert controls.empirical_p(1000, null, "greater") == pytest.approx(0.01)
    assert controls.empirical_p(1000, null, "less") == 1.0
    assert controls.empirical_p(49, null, "greater") == pytest.approx(0.51)  # ties count as extreme
    assert controls.empirical_p(-1, null) == pytest.approx(0.02) and controls.empirical_p(0, null) == pytest.approx(0.04)
    assert controls.empirical_p(50, null) == 1.0
    assert controls.empirical_p(97, [*null, np.nan], "greater") == pytest.approx(0.03)
    assert np.isnan(controls.empirical_p(np.nan, null)) and np.isnan(controls.empirical_p(1.0, [np.nan]))


def test_the_p_value_of_a_true_null_is_uniform():
    rng = np.random.default_rng(0)
    p = [controls.empirical_p(rng.normal(), rng.normal(size=99), "less") for _ in range(2000)]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.015)


def test_bad_input_by_name():
    with pytest.raises(ValueError, match="cannot be drawn"):
        controls.random_groups(5, 6)
    with pytest.raises(ValueError, match="candidates"):
        controls.matched_groups(np.zeros((6, 2)), [0, 1, 2, 3])
    with pytest.raises(ValueError, match="side"):
        controls.empirical_p(1.0, [1.0], "upper")
