"""The tables of notebooks 05 and 06, on planted activations without a model; histograms against brute force."""

import numpy as np
import pytest
from planted import ENDS, NEURONS, ORDER, PLANTED, SIZE, TOKENS, influence_rows, phase_rows, values_of

from rare_token_neurons.statistics import geometry
from rare_token_neurons.tables import activations, checkpoints as passes

LIVING = np.setdiff1d(np.arange(NEURONS), [100])


def test_groups_are_slices_of_the_ranking_without_constant_neurons():
    made = activations.groups(influence_rows(), ENDS, LIVING)
    assert list(made["rare"]) == list(PLANTED[1:])
    assert set(made["plateau"]) == set(ORDER[: ENDS[0]]) - {100}
    for name, part in (("power law", ORDER[ENDS[0]: ENDS[1]]), ("decay", ORDER[ENDS[1]:])):
        assert made[name].shape == (activations.PHASE_SAMPLES, SIZE - 1) and np.isin(made[name], part).all()
        assert len(np.unique(made[name])) > 10 * SIZE


def test_empty_and_small_phases_are_left_out_and_the_rare_group_is_no_sample_of_a_phase():
    made = activations.groups(influence_rows(), (0, NEURONS), LIVING)
    assert set(made) == {"rare", "power law"} and not np.isin(made["power law"], PLANTED).any()
    assert "plateau" not in activations.groups(influence_rows(), (activations.LEAST_PLATEAU, NEURONS), LIVING)  # one is dead
    assert "plateau" in activations.groups(influence_rows(), (activations.LEAST_PLATEAU + 1, NEURONS), LIVING)


def test_phases_end_where_the_change_points_on_rare_targets_say():
    assert tuple(activations.phase_ends(phase_rows(["step1"]))) == ENDS


def test_a_checkpoint_has_its_own_rows(planted_model):
    rows = phase_rows(["step0", "step1"])
    of_step = activations.rows_at(lambda settings: rows, planted_model, "step1")
    assert set(of_step["revision"]) == {"step1"} and len(of_step) == 2
    assert len(activations.rows_at(lambda settings: phase_rows([""]), planted_model, None)) == 2


def test_planted_group_has_fewer_dimensions(planted_model):
    table = activations.activation_dimension(planted_model)
    assert set(table["where"]) == {"rare", "all"} and set(table["constant"]) == {1}
    rare = table[(table["group"] == "rare") & (table["statistic"] == "effective dimension")]
    assert (rare["size"] == SIZE - 1).all() and (rare["tokens"] == TOKENS).all() and (rare["documents"] == 20).all()
    for kind in ("random", "matched"):
        assert (rare[f"p_{kind}"] < 0.01).all() and (rare[f"less_{kind}_high"] < 0).all()
    phase = table[table["group"] == "decay"]
    assert phase["p_random"].isna().all() and phase["matched"].isna().all() and phase["value"].notna().all()
    assert phase["value"].between(phase["random_low"], phase["random_high"]).all()


def test_variance_curves_end_at_one_and_lie_above_random(planted_model):
    table = activations.activation_variance(planted_model)
    assert set(table["group"]) == {"rare", "plateau"}
    rare = table[(table["group"] == "rare") & (table["where"] == "all")]
    assert list(rare["components"]) == list(range(1, SIZE)) and rare["value"].iloc[-1] == pytest.approx(1)
    assert (rare["value"].iloc[:8] > rare["random_high"].iloc[:8]).all()


def test_over_training_follows_the_groups(planted_model, monkeypatch):
    table = activations.activations_over_training(planted_model)
    mean = table.query("relation == 'within' and measure == 'correlation' and statistic == 'mean' and where == 'rare'")
    value = mean.set_index(["step", "group"])["value"]
    assert value[(1, "rare")] > 0.3 and abs(value[(0, "rare")]) < 0.05 and abs(value[(0, "last rare")]) < 0.05
    assert not [name for name in table.columns if name.startswith("less_")]
    assert set(table.loc[table["relation"] == "between", "where"]) == {"rare"}
    monkeypatch.setattr(passes, "revisions", lambda settings, default="last": [None])
    assert activations.activations_over_training(planted_model).empty


# ---- co-activation


def test_planted_group_co_activates(planted_model):
    table = activations.coactivation(planted_model)
    table = table.set_index(["where", "group", "relation", "measure", "statistic"]).sort_index()
    row = table.loc[("rare", "rare", "within", "correlation", "mean")]
    assert row["value"] == pytest.approx(0.5, abs=0.1) and row["p_random"] < 0.01 and row["less_matched_low"] > 0
    assert ("rare", "power law", "between", "correlation", "mean") not in table.index
    outside = table.loc[("rare", "rare", "between", "correlation", "mean")]
    assert abs(outside["value"]) < 0.02 and outside["less_random_low"] < outside["less_random"] < outside["less_random_high"]


def test_histograms_count_each_pair_once():
    rng = np.random.default_rng(0)
    values, living = rng.normal(size=(30, 40)), np.setdiff1d(np.arange(40), [3, 17])
    values[:, 3] = 1.0  # constant
    matrix, groups = geometry.correlation(values), np.array([[0, 5, 9, 30], [39, 2, 1, 8]])
    (_, inside, pairs), (_, outside, crossed) = activations.spread(matrix, living, groups)
    assert pairs == 6 and crossed == 4 * 34
    for group, shares in zip(groups, zip(inside, outside), strict=True):
        others = np.setdiff1d(living, group)
        parts = geometry.pairs(geometry.within(matrix, group)), matrix[np.ix_(group, others)]
        for share, part in zip(shares, parts, strict=True):
            assert share == pytest.approx(np.histogram(part, activations.EDGES)[0] / part.size)


def test_distributions_sum_to_one_and_show_the_planted_group(planted_model):
    table = activations.coactivation_distribution(planted_model)
    assert table.groupby(["where", "relation", "measure", "set"])["share"].sum().to_numpy() == pytest.approx(1)
    pairs = table.groupby(["set", "relation"])["pairs"].first()
    assert pairs["rare", "within"] == 16 * 15 / 2 and pairs["random", "between"] == 16 * (NEURONS - SIZE)
    right = table[(table["left"] > 0.3) & (table["measure"] == "correlation") & (table["where"] == "all")]
    share = right.groupby(["set", "relation"])["share"].sum()
    assert share["rare", "within"] > 0.9 and share["rare", "between"] < 0.01 and share["random", "within"] < 0.01
    assert table.loc[table["set"] == "rare", ["low", "high"]].isna().all(axis=None)
    null = table[table["set"] == "matched"]
    assert (null["low"] <= null["high"]).all() and (null["high"] > 0).any()


def test_matrices_hold_every_pair(planted_model):
    matrix = activations.coactivation_matrix(planted_model).query("where == 'all' and group == 'rare'")
    block = matrix.pivot(index="i", columns="j", values="correlation").to_numpy()
    assert block.shape == (16, 16) and np.allclose(block, block.T) and np.allclose(block.diagonal(), 1)
    values = values_of("step1")[0][:, np.sort(PLANTED[1:])].astype(np.float64)
    assert block == pytest.approx(np.corrcoef(values.T), abs=1e-5)
