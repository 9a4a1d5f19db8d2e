"""The tables of notebooks 05 and 06, on planted activations without a model; histograms against brute force."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from planted import ENDS, HEAD, NEURONS, ORDER, PLANTED, SIZE, TOKENS, influence_rows, phase_rows, values_of
from rounding import assert_same, rounded

from rare_token_neurons.curve import heads
from rare_token_neurons.statistics import controls, geometry
from rare_token_neurons.tables import activations, checkpoints as passes, influence as influences

LIVING = np.setdiff1d(np.arange(NEURONS), [100])
BOOST = [102, 104, 106, 108, 110, 112, 114, 116, 0, 2]  # the top ten that raise the loss (neuron 100 is dead)
SUPPRESS = [101, 103, 105, 107, 109, 111, 113, 115, 1, 3]


def fit(head, law_end, raised=True):
    return {"head": head, "law_end": law_end, "raised": raised}


@pytest.fixture
def quick(monkeypatch):
    """Few control groups."""
    monkeypatch.setattr(controls, "DRAWS", 99)
    monkeypatch.setattr(controls, "BASELINES", 5)


# ---- which neurons


def test_groups_are_slices_of_the_ranking_without_constant_neurons():
    made = activations.groups(influence_rows(), fit(*ENDS), LIVING)
    assert list(made["rare"]) == list(PLANTED[1:])
    assert set(made["head"]) == set(HEAD) - {100}
    for name, part in (("power law", ORDER[ENDS[0]: ENDS[1]]), ("decay", ORDER[ENDS[1]:])):
        assert made[name].shape == (activations.PHASE_SAMPLES, SIZE - 1) and np.isin(made[name], part).all()
        assert len(np.unique(made[name])) > 10 * SIZE


def test_empty_and_small_phases_are_left_out_and_the_rare_group_is_no_sample_of_a_phase():
    made = activations.groups(influence_rows(), fit(0, NEURONS), LIVING)
    assert set(made) == {"rare", "power law"} and not np.isin(made["power law"], PLANTED).any()
    # one is dead
    assert "head" not in activations.groups(influence_rows(), fit(activations.LEAST_HEAD, NEURONS), LIVING)
    assert "head" in activations.groups(influence_rows(), fit(activations.LEAST_HEAD + 1, NEURONS), LIVING)
    assert set(activations.groups(influence_rows(), fit(*ENDS, raised=False), LIVING)) == {"rare", "power law", "decay"}


@pytest.mark.parametrize("word", heads.WORDS)
def test_the_head_is_that_of_rare_targets_and_both_signs_and_raised_in_two_words_of_four(word):
    assert activations.fitted(phase_rows(["step1"], word)) == fit(*ENDS, raised=word in ("plateau", "outliers"))


def test_a_curve_that_cannot_be_tested_has_no_phases():
    rows = phase_rows(["step1"]).assign(head=pd.array([pd.NA] * 18, dtype="Int64"), law_end=np.nan, word="")
    found = activations.fitted(rows)
    assert not found["raised"] and set(activations.groups(influence_rows(), found, LIVING)) == {"rare"}


def test_neurons_are_ranked_within_each_sign_where_there_are_enough():
    found = activations.by_sign(influence_rows(), LIVING)
    assert set(found) == {("boost", 10), ("suppress", 10)}  # of 500 neurons of a sign a top 50 is too many
    assert found["boost", 10].tolist() == BOOST and found["suppress", 10].tolist() == SUPPRESS
    rows = influence_rows().assign(mean_a=lambda rows: rows["mean_abs_a"])
    assert set(activations.by_sign(rows, np.arange(200))) == {("boost", 10)}
    assert not activations.by_sign(rows, np.arange(199))


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
    assert set(table["group"]) == {"rare", "head"}
    rare = table[(table["group"] == "rare") & (table["where"] == "all")]
    assert list(rare["components"]) == list(range(1, SIZE)) and rare["value"].iloc[-1] == pytest.approx(1)
    assert (rare["value"].iloc[:8] > rare["random_high"].iloc[:8]).all()


def test_windows_lie_outside_the_head_and_along_the_scale(planted_model):
    table = activations.activation_windows(planted_model)
    assert set(table["statistic"]) == {"effective dimension", "mean absolute"}
    assert set(table["left_out"]) == {len(HEAD) - 1}
    features = activations.sample(planted_model, "step1", "all").features[:, 0]
    outside = np.delete(features, HEAD)
    for statistic, rows in table[table["where"] == "all"].groupby("statistic"):
        assert rows["window"].tolist() == list(range(1 + len(outside) // 16)) and set(rows["size"]) == {SIZE - 1}
        group, windows = rows.iloc[0], rows.iloc[1:]
        assert group["scale"] == pytest.approx(features[PLANTED[1:]].mean()) and group["scale"] > windows["scale"].max()
        assert windows["scale"].iloc[0] == pytest.approx(np.sort(outside)[-16:].mean())
        assert windows["scale"].is_monotonic_decreasing
        sign = 1 if statistic == "mean absolute" else -1
        assert (sign * windows["value"] < sign * group["value"]).all()
    table = table.query("window == 0 and statistic == 'effective dimension'").set_index("where")["value"]
    block = np.corrcoef(values_of("step1")[0][:, PLANTED[1:]].astype(np.float64), rowvar=False)
    dimension = geometry.effective_dimension(block, interpolate=True) / 16
    assert table.to_dict() == pytest.approx({"rare": dimension, "all": dimension}, abs=1e-4)


def test_over_training_follows_the_groups(planted_model, monkeypatch):
    table = activations.activations_over_training(planted_model)
    mean = table.query("relation == 'within' and measure == 'correlation' and statistic == 'mean' and where == 'rare'")
    value = mean.set_index(["step", "group"])["value"]
    assert value[(1, "rare")] > 0.3 and abs(value[(0, "rare")]) < 0.05 and abs(value[(0, "last rare")]) < 0.05
    assert not [name for name in table.columns if name.startswith("less_")]
    assert set(table.loc[table["relation"] == "between", "where"]) == {"rare"}
    monkeypatch.setattr(passes, "revisions", lambda settings, default="last": [None])
    assert activations.activations_over_training(planted_model).empty


# ---- control groups


@pytest.mark.parametrize("name", ["activation_dimension", "activation_variance", "activations_over_training",
                                  "coactivation", "coactivation_distribution", "coactivation_matrix"])
def test_no_matched_group_touches_the_head(planted_model, matched, quick, name):
    getattr(activations, name)(planted_model)
    assert len(matched) >= 2
    for group, groups in matched:
        assert not np.isin(groups, HEAD).any() and not np.isin(groups, group).any()


@pytest.mark.parametrize("word, held", [("plateau", False), ("outliers", False), ("rounded", True),
                                        ("on the line", True)])
def test_matched_groups_hold_a_head_that_is_not_raised_but_never_the_group(planted_model, monkeypatch, word, held):
    monkeypatch.setattr(influences, "phases", lambda settings: phase_rows(["step1"], word))
    assert np.array_equal(activations.leaders(planted_model, "step1"), np.sort(PLANTED if held else HEAD))
    _, group, nulls = activations.rare_and_controls(planted_model, "step1", "rare")
    assert np.isin(nulls["matched"], np.setdiff1d(HEAD, PLANTED)).any() == held
    assert not np.isin(nulls["matched"], PLANTED).any() and set(np.unique(nulls["random"])) == set(LIVING)


# ---- co-activation


def test_planted_group_co_activates(planted_model):
    table = activations.coactivation(planted_model)
    assert not table["gated"].any()
    table = table.set_index(["where", "group", "relation", "measure", "statistic"]).sort_index()
    assert table.index.is_unique
    row = table.loc[("rare", "rare", "within", "correlation", "mean")]
    assert row["value"] == pytest.approx(0.5, abs=0.1) and row["p_random"] < 0.01 and row["less_matched_low"] > 0
    assert ("rare", "power law", "between", "correlation", "mean") not in table.index
    inside, outside = (table.loc[("rare", "rare", relation, "correlation", "mean absolute")]
                       for relation in ("within", "between"))
    assert inside["side"] == "greater" and inside["p_matched"] < 0.01 and inside["less_matched_low"] > 0
    assert outside["side"] == "two-sided"
    outside = table.loc[("rare", "rare", "between", "correlation", "mean")]
    assert abs(outside["value"]) < 0.02
    assert outside["less_random_low"] < outside["less_random"] < outside["less_random_high"]


def test_each_sign_stands_beside_the_group_unless_the_mlp_is_gated(planted_model, quick, monkeypatch):
    table = activations.coactivation(planted_model)
    rows = table[table["group"].str.contains("boost|suppress")]
    rows = rows.set_index(["where", "group", "relation", "measure", "statistic"])
    assert {place[1:3] for place in rows.index} == {("boost 10", "within"), ("suppress 10", "within"),
                                                    ("boost and suppress 10", "between")}
    assert rows.index.is_unique and set(rows["size"]) == {10}
    assert rows[["low", "p_random", "p_matched"]].notna().all(axis=None)
    block = np.corrcoef(values_of("step1")[0][:, BOOST + SUPPRESS].astype(np.float64), rowvar=False)
    mean = rows.xs(("correlation", "mean"), level=("measure", "statistic"))["value"]
    assert mean["rare", "boost 10", "within"] == pytest.approx(geometry.mean_pair(block[:10, :10]), abs=1e-5)
    assert mean["all", "boost and suppress 10", "between"] == pytest.approx(block[:10, 10:].mean(), abs=1e-5)
    subject = SimpleNamespace(**vars(passes.subject(planted_model, "step1")) | {"gated": True})
    monkeypatch.setattr(passes, "subject", lambda settings, revision: subject)
    table = activations.coactivation(planted_model)
    assert table["gated"].all() and set(table["group"]) == {"rare", "head", "power law", "decay"}


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


# ---- another processor


def test_rounding_moves_no_table(planted_model, quick, monkeypatch):
    tables, plain = (activations.activation_dimension, activations.coactivation), influences.influence
    expected = [made(planted_model) for made in tables]
    for seed in (1, 2, 3):
        monkeypatch.setattr(passes, "activations", lambda settings, revision, where: (
            rounded(values_of(revision)[0], seed).astype(np.float32), values_of(revision)[1]))
        monkeypatch.setattr(influences, "influence", lambda settings: plain(settings).assign(
            **{name: rounded(plain(settings)[name], seed) for name in ("mean_abs", "mean_abs_a", "mean_a")}))
        activations.sample.cache_clear()
        activations._read.cache_clear()
        for made, before in zip(tables, expected):
            assert_same(made(planted_model), before)
