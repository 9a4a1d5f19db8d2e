"""Random and matched groups, empirical p values."""

import numpy as np
import pytest

from rare_token_neurons.statistics import controls, geometry


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


def test_one_neuron_less_in_the_pool_redraws_only_the_groups_that_held_it():
    whole, pool = (controls.random_groups(some, 9, draws=400) for some in (100, np.delete(np.arange(100), 40)))
    held = (whole == 40).any(axis=1)
    assert 0 < held.mean() < 0.2 and np.array_equal(np.sort(whole[~held]), np.sort(pool[~held]))


def test_matched_groups_do_not_depend_on_the_members_order_and_hardly_on_one_member():
    features, group = np.random.default_rng(0).normal(size=(500, 2)), np.arange(9)
    matched = controls.matched_groups(features, group, np.arange(500), draws=200)
    assert np.array_equal(controls.matched_groups(features, group[::-1], np.arange(500), draws=200)[:, ::-1], matched)
    other = controls.matched_groups(features, np.append(group[:-1], 9), np.arange(500), draws=200)
    assert (other[:, :-1] == matched[:, :-1]).mean() > 0.8


def test_matched_groups_are_closer_than_random_ones_and_never_the_group():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1500, 2))
    group = np.argsort(features[:, 0] + 0.3 * rng.normal(size=1500))[-208::8]  # larger than most
    matched = controls.matched_groups(features, group, np.arange(1500), draws=500, seed=1)
    assert matched.shape == (500, 26) and not np.isin(matched, group).any()
    assert all(len(set(other)) == 26 for other in matched)
    plain = controls.random_groups(1500, 26, draws=500, seed=1)
    assert abs(controls.imbalance(features, group, plain)[0]) > 1
    assert np.all(np.abs(controls.imbalance(features, group, matched)) < 0.15)
    missed = controls.missed(features, group, plain)
    assert missed["imbalance_scale"] == controls.imbalance(features, group, plain)[0] > controls.POOR_MATCH
    assert controls.missed(features[:, 1:], group, plain) == pytest.approx({"imbalance_norm": missed["imbalance_norm"]})
    assert np.isnan(list(controls.missed(features, group, None).values())).all()
    assert len(np.unique(matched)) > 100
    assert np.array_equal(matched, controls.matched_groups(features, group, np.arange(1500), draws=500, seed=1))


def test_with_as_many_candidates_as_members_every_member_still_finds_one():
    features = np.zeros((8, 2))
    groups = controls.matched_groups(features, [0, 1, 2, 3], np.arange(8), draws=50)
    assert np.array_equal(np.sort(groups, axis=1), np.tile(np.arange(4, 8), (50, 1)))


def test_matching_features_leave_out_what_is_constant():
    activations = np.random.default_rng(0).normal(size=(100, 60))
    activations[:, 5] = 1.0
    features = controls.matching_features(activations, 2.0 * np.ones((9, 60)))
    assert features[:, 1] == pytest.approx(np.log(6.0)) and features[5, 0] == -np.inf
    assert features[0, 0] == pytest.approx(np.log(activations[:, 0].std()))
    for group, pool in (([5], np.arange(5)), ([0], np.arange(60))):
        with pytest.raises(ValueError, match="dead or constant"):
            controls.matched_groups(features, group, pool, draws=2)


def test_windows_cut_the_pool_along_the_scale():
    scale, pool = np.array([5.0, 1.0, 9.0, 3.0, 7.0, 4.0, 8.0]), np.array([0, 1, 3, 4, 5, 6])
    assert controls.windows(scale, pool, 2).tolist() == [[6, 4], [0, 5], [3, 1]]
    assert controls.windows(scale, pool, 4).tolist() == [[6, 4, 0, 5]]
    assert controls.windows(scale, pool, 7).shape == (0, 7)


def test_empirical_p():
    null = np.arange(99.0)
    assert controls.empirical_p(1000, null, "greater") == pytest.approx(0.01)
    assert controls.empirical_p(1000, null, "less") == 1.0
    assert controls.empirical_p(49, null, "greater") == pytest.approx(0.51)  # ties count as extreme
    assert controls.empirical_p(-1, null) == pytest.approx(0.02)
    assert controls.empirical_p(0, null) == pytest.approx(0.04)
    assert controls.empirical_p(50, null) == 1.0
    assert controls.empirical_p(97, [*null, np.nan], "greater") == pytest.approx(0.03)
    assert np.isnan(controls.empirical_p(np.nan, null)) and np.isnan(controls.empirical_p(1.0, [np.nan]))


def test_the_p_value_of_a_true_null_is_uniform():
    rng = np.random.default_rng(0)
    p = [controls.empirical_p(rng.normal(), rng.normal(size=99), "less") for _ in range(2000)]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.015)


def test_bad_input_by_name():
    with pytest.raises(ValueError, match="cannot be drawn"):
        controls.random_groups(5, 6, 1)
    with pytest.raises(ValueError, match="candidates"):
        controls.matched_groups(np.zeros((6, 2)), [0, 1, 2, 3], np.arange(6), draws=1)
    with pytest.raises(ValueError, match="side"):
        controls.empirical_p(1.0, [1.0], "upper")


# ---- a group against its control groups


TOKENS, NEURONS, DOCUMENTS = 600, 150, 30
GROUP = np.arange(20, 40)  # co-activates in the planted sample


def made(planted, seed=0):
    """Independent activations with a shared negative offset, in which GROUP shares a signal or does not."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(TOKENS, NEURONS)) - 0.5
    if planted:
        values[:, GROUP] += 0.6 * rng.normal(size=(TOKENS, 1))
    return controls.sample(values.astype(np.float32), np.arange(TOKENS) * DOCUMENTS // TOKENS,
                           rng.normal(size=(8, NEURONS)))


@pytest.fixture(scope="module")
def planted():
    return made(True)


@pytest.fixture(scope="module")
def nulls(planted):
    return controls.control_groups(planted, GROUP, seed=0)


def rows_of(rows):
    return {row["statistic"]: row for row in rows}


def cosine(values):
    unit = values / np.linalg.norm(values, axis=0)
    return unit.T @ unit


def test_crossed_of_many_groups_is_that_of_each(planted, nulls):
    matrix, some = planted.matrices["cosine"], nulls["random"][:5]
    for group, found in zip(some, controls.crossed_groups(matrix, planted.living, some), strict=True):
        block = np.delete(matrix[group], group, axis=1)
        assert found == pytest.approx([block.mean(), np.abs(block).mean(), (block < 0).mean()], abs=1e-12)


@pytest.mark.parametrize("measure", controls.MEASURES)
def test_values_are_those_of_the_whole_sample(planted, nulls, measure, monkeypatch):
    monkeypatch.setattr(controls, "COLUMNS", 37)  # parts of unequal size
    values, centred = planted.values.astype(np.float64), controls.MEASURES[measure]
    matrix = np.corrcoef(values.T) if centred else cosine(values)
    inside = rows_of(controls.within(planted, GROUP, nulls, controls.PAIRS, controls.pairs, centred=centred,
                                     resamples=20))
    outside = rows_of(controls.between(planted, GROUP, nulls, centred=centred, resamples=20))
    blocks = geometry.pairs(matrix[np.ix_(GROUP, GROUP)]), np.delete(matrix[GROUP], GROUP, axis=1)
    for rows, block in zip((inside, outside), blocks):
        expected = {"mean": block.mean(), "mean absolute": np.abs(block).mean(), "negative share": (block < 0).mean()}
        for name, value in expected.items():
            assert rows[name]["value"] == pytest.approx(value, abs=1e-9)
            assert rows[name]["low"] <= value + 1e-9 and value - 1e-9 <= rows[name]["high"]


def test_a_planted_group_is_told_from_random_and_matched_ones(planted, nulls):
    found = rows_of(controls.within(planted, GROUP, nulls, controls.PAIRS, controls.pairs, baselines=20, resamples=200))
    dimension = rows_of(controls.within(planted, GROUP, nulls, controls.DIMENSIONS,
                                           lambda block: controls.dimensions(block, TOKENS), baselines=20,
                                        resamples=200))
    for kind in ("random", "matched"):
        assert found["mean"][f"p_{kind}"] < 0.01 and found["mean"][f"less_{kind}_low"] > 0
        for row in (dimension["effective dimension"], dimension["participation ratio"]):
            assert row[f"p_{kind}"] < 0.01 and row[f"less_{kind}_high"] < 0 and row["value"] < row[f"{kind}_low"]
    assert found["mean"]["value"] == pytest.approx(0.36 / 1.36, abs=0.03)
    assert found["negative share"]["p_random"] < 0.01


def test_a_group_of_no_kind_is_not(planted):
    plain = made(False, seed=1)
    group = controls.random_groups(NEURONS, 20, 1, seed=5)[0]
    nulls = controls.control_groups(plain, group, seed=0)
    rows = [*controls.within(plain, group, nulls, controls.PAIRS, controls.pairs, resamples=50),
            *controls.between(plain, group, nulls, resamples=50)]
    assert min(row["p_random"] for row in rows) > 0.02


def test_a_planted_avoidance_is_seen_between():
    rng = np.random.default_rng(2)
    values, shared = rng.normal(size=(TOKENS, NEURONS)), rng.normal(size=(TOKENS, 1))
    values += 0.5 * shared
    values[:, GROUP] -= 1.0 * shared
    sample = controls.sample(values, np.arange(TOKENS) // 20, rng.normal(size=(8, NEURONS)))
    nulls = controls.control_groups(sample, GROUP, draws=200)
    mean = rows_of(controls.between(sample, GROUP, nulls, baselines=20, resamples=100))["mean"]
    assert mean["high"] < 0 and mean["p_random"] < 0.01 and mean["less_random_high"] < 0
    assert np.isnan(rows_of(controls.between(sample, GROUP, nulls, resamples=5))["mean"]["less_random_low"])


def test_the_difference_has_the_spread_of_documents_and_of_controls():
    rng = np.random.default_rng(0)
    samples, base = rng.normal(5, 0.3, size=(4000, 1)), 4 + rng.normal(0, 0.4,
                                                                       size=(50, 1, 1)) + np.zeros((50, 4000, 1))
    row, = controls.beside({"x": "greater"}, np.array([5.0]), samples, {"random": base[:, 0]}, {"random": base})
    assert row["less_random"] == pytest.approx(5 - base.mean())
    width = row["less_random_high"] - row["less_random_low"]
    assert width / 2 == pytest.approx(1.96 * np.hypot(0.3, base[:, 0].std()), rel=0.1)
    assert (row["high"] - row["low"]) / 2 == pytest.approx(1.96 * 0.3, rel=0.1)


def test_a_group_less_itself_is_zero_whatever_documents_are_drawn(planted):
    itself = {"random": GROUP[None]}
    rows = [*controls.within(planted, GROUP, itself, controls.PAIRS, controls.pairs, baselines=1, resamples=50),
            controls.between(planted, GROUP, itself, baselines=1, resamples=50)[0]]
    for row in [row for row in rows if row["statistic"] != "negative share"]:
        width = row["high"] - row["low"]
        assert width > 0 and row["less_random"] == pytest.approx(0, abs=1e-6)
        # the scales are fixed in one of both
        assert abs(row["less_random_low"]) + abs(row["less_random_high"]) < 0.1 * width
        assert np.isnan(row["matched"]) and np.isnan(row["p_matched"])


def test_samples_of_a_phase_have_their_mean_and_no_p(planted, nulls):
    several = nulls["random"][:4]
    row = rows_of(controls.within(planted, several, nulls, controls.PAIRS, controls.pairs, resamples=20))["mean"]
    matrix = planted.matrices["correlation"]
    assert row["value"] == pytest.approx(geometry.mean_pair(geometry.within(matrix, several)).mean(), abs=1e-6)
    assert np.isnan(row["p_random"]) and row["side"] == ""


def test_two_groups_are_compared_with_pairs_of_groups(planted):
    first, second = GROUP[:8], np.r_[GROUP[8:12], 100:104]
    nulls = controls.control_groups(planted, np.r_[first, second], seed=0)
    rows = rows_of(controls.across(planted, first, second, nulls, centred=True, seed=0))
    matrix = np.corrcoef(planted.values.astype(np.float64).T)
    block, null = matrix[np.ix_(first, second)], [matrix[np.ix_(one[:8], one[8:])].mean() for one in nulls["random"]]
    assert rows["mean"]["value"] == pytest.approx(block.mean(), abs=1e-6) and rows["mean"]["side"] == "less"
    assert rows["mean absolute"]["value"] == pytest.approx(np.abs(block).mean(), abs=1e-6)
    assert rows["mean"]["random"] == pytest.approx(np.mean(null), abs=1e-6) and np.isfinite(rows["mean"]["p_matched"])
    assert rows["mean"]["low"] < block.mean() < rows["mean"]["high"] and np.isnan(rows["mean"]["less_random_low"])


def test_matched_groups_hold_nothing_that_is_kept_apart_and_random_ones_do(planted):
    apart = np.arange(60, 110)
    nulls = controls.control_groups(planted, GROUP, apart=apart, seed=0)
    assert not np.isin(nulls["matched"], np.r_[GROUP, apart]).any()
    assert set(np.unique(nulls["random"])) == set(planted.living)
    plain = controls.control_groups(planted, GROUP, seed=0)
    assert np.array_equal(nulls["random"], plain["random"]) and np.isin(plain["matched"], apart).any()


def test_too_few_neurons_to_match_leaves_the_matched_groups_out(planted):
    assert "matched" not in controls.control_groups(planted, np.arange(80), draws=5)
    assert "matched" in controls.control_groups(planted, np.arange(40), draws=5, apart=np.arange(30, 110))
    assert "matched" not in controls.control_groups(planted, np.arange(40), draws=5, apart=np.arange(30, 111))
    assert controls.control_groups(planted, np.arange(101), seed=0)["random"].shape == (controls.LARGE_DRAWS, 101)


def test_constant_neurons_are_no_controls_and_a_silent_one_ends_no_bootstrap():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(90, 40))
    values[:, 7] = -0.17
    values[:, 3] = 0.0
    values[:3, 3] = 1.0  # active in the first document only
    sample = controls.sample(values, np.arange(90) // 3, rng.normal(size=(4, 40)))
    assert 7 not in sample.living and 3 in sample.living
    nulls = controls.control_groups(sample, np.arange(6), draws=50)
    assert not any((made == 7).any() for made in nulls.values())
    rows = controls.within(sample, np.arange(6), nulls, controls.DIMENSIONS,
                              lambda block: controls.dimensions(block, 90), resamples=50)
    assert all(np.isfinite(row[name]) for row in rows for name in ("value", "low", "high"))
    assert all(np.isfinite(row["low"]) for row in controls.between(sample, np.arange(6), nulls, resamples=50,
                                                                   baselines=2))


def test_a_correction_that_the_tokens_cannot_carry_is_missing():
    block = np.eye(20)
    effective, whole, ratio = controls.dimensions(block, 22)
    assert effective == pytest.approx(19 / 20) and whole == 19 / 20 and np.isnan(ratio)
    assert np.isfinite(controls.dimensions(block, 23)).all()


def test_one_seed_gives_one_result(planted, nulls):
    first, second = (controls.within(planted, GROUP, controls.control_groups(planted, GROUP, seed=4), controls.PAIRS,
                                        controls.pairs, resamples=30, baselines=3, seed=4) for _ in range(2))
    assert first == second
    assert first != controls.within(planted, GROUP, nulls, controls.PAIRS, controls.pairs, resamples=30, baselines=3,
                                    seed=5)


def test_a_constant_neuron_is_no_yardstick_of_matching_even_with_rounding():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(50, 6))
    values[:, 2] = -0.17 * (1 + 1e-7 * values[:, 3])
    features = controls.matching_features(values, rng.normal(size=(4, 6)))
    assert np.isneginf(features[2, 0]) and np.isfinite(np.delete(features, 2, axis=0)).all()
    assert np.array_equal(controls.imbalance(features, [0], np.array([[1]])),
                          controls.imbalance(np.delete(features, 2, axis=0), [0], np.array([[1]])))
