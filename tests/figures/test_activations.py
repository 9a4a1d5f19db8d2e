"""Groups beside their controls: matched groups that cannot be used are neither drawn nor told; signs, words."""

import numpy as np
import pandas as pd
import pytest

from rare_token_neurons.figures import activations, axes as plots
from rare_token_neurons.statistics import controls


def row(**changed):
    made = {"where": "rare", "group": "rare", "statistic": "effective dimension", "side": "less", "size": 27,
            "tokens": 1011,
            "documents": 132, "constant": 0, "imbalance_scale": 0.1, "imbalance_norm": -0.05, "value": 0.8, "low": 0.7,
            "high": 0.9}
    for kind, mean in (("random", 0.9), ("matched", 0.85)):
        made |= {kind: mean, f"{kind}_low": mean - 0.02, f"{kind}_high": mean + 0.02, f"p_{kind}": 1 / 1001,
                 f"less_{kind}": 0.8 - mean, f"less_{kind}_low": -0.2, f"less_{kind}_high": 0.0}
    return made | changed


def table(*rows):
    return pd.DataFrame([row(**changed) for changed in rows])


GOOD, POOR, NONE = {}, {"imbalance_scale": -0.3}, {"imbalance_scale": np.nan, "imbalance_norm": np.nan,
                                                   "matched": np.nan}


# ---- matched groups


@pytest.mark.parametrize("imbalance, good", [(GOOD, True), (POOR, False), (NONE, False),
                                             ({"imbalance_norm": 0.26}, False)])
def test_matched_groups_count_within_a_quarter_of_a_standard_deviation(imbalance, good):
    rows = table(imbalance)
    assert activations.matches(rows.iloc[0]) == good
    found = activations.usable(rows)
    columns = [name for name in rows if "matched" in name]
    assert len(columns) == 7 and found[columns].notna().all(axis=None) == good
    assert good or found[columns].isna().all(axis=None)
    assert found.drop(columns=columns).equals(rows.drop(columns=columns))
    assert activations.matches(found.iloc[0]) == good  # nothing more is lost a second time


def test_a_norm_alone_decides_where_nothing_else_was_matched():
    rows = table(GOOD, POOR).drop(columns="imbalance_norm").rename(columns={"imbalance_scale": "imbalance_norm"})
    assert activations.usable(rows)["matched"].notna().tolist() == [True, False]


def test_rows_without_an_account_are_judged_by_that_of_their_positions():
    behind = activations.account(table(GOOD, POOR | {"where": "all"}, {"group": "head"} | POOR))
    assert behind.index.tolist() == ["rare", "all"] and activations.unmatched(behind) == ["all"]
    curves = pd.DataFrame({"where": ["all", "rare", "all"], "value": 1.0, "matched_low": 2.0, "random_low": 3.0})
    assert activations.usable(curves, behind)["matched_low"].notna().tolist() == [False, True, False]


def test_groups_without_usable_controls_leave_no_trace_in_the_legend(ax, legend):
    for imbalance, names in ((GOOD, {"random", "matched", "group,"}), (POOR, {"random", "group,"})):
        ax.clear()
        activations.of_groups(ax, activations.usable(table(imbalance)))
        activations.drop_empty(ax)
        assert {name.split()[0] for name in legend()} == names
    rows = activations.usable(table(POOR, POOR)).assign(components=[1, 2])
    ax.clear()
    activations.of_curve(ax, rows, label="rare group")
    assert not any("matched" in name for name in legend())
    assert len(ax.lines) == 1 and len(ax.collections) == 2  # the curve, and the bands of random groups and of the group


def test_matching_in_words():
    said = activations.matching(activations.account(table(GOOD, {"where": "all"})))
    assert said.startswith("Matched groups miss the rare group by 0.10 SD in activation scale (rare positions), 0.10 "
                           "SD")
    assert said.endswith("the limit is 0.25 SD. They are a good match.")
    said = activations.matching(activations.account(table(GOOD, POOR | {"where": "all"})))
    assert "0.30 SD in activation scale (all positions); the limit" in said
    assert "**At all positions they cannot be used**" in said
    assert "**They cannot be used**" in activations.matching(activations.account(table(POOR, NONE | {"where": "all"})))


@pytest.mark.parametrize("p, size, side, words", [
    (1 / 1001, 27, "less", "none of 1,000 random groups is as far out"), (2 / 1001, 27, "less", "p = 0.002"),
    (2 / 1001, 27, "two-sided", "none of 1,000 random groups is as far out"), (np.nan, 27, "less", "no p value"),
    (1 / 201, controls.LARGE + 1, "greater", "none of 200 random groups is as far out")])
def test_a_p_value_at_its_floor_is_told_as_what_it_is(p, size, side, words):
    assert activations.chance(row(p_random=p, size=size, side=side), "random") == words


def test_boost_and_suppress_together_are_twice_as_many():
    both = row(p_random=1 / 201, size=100, side="less", group="boost and suppress 100")
    assert activations.chance(both, "random") == "none of 200 random groups is as far out"
    assert activations.chance(both | {"group": "boost 100"}, "random") == "p = 0.005"


def test_controls_that_cannot_be_used_are_named_so():
    found = activations.usable(table(GOOD, POOR))
    assert activations.beside(found.iloc[0]) == (
        "**0.8** (0.7 to 0.9; random groups 0.9, none of 1,000 random groups is as far out; matched groups 0.85, none "
        "of 1,000 matched groups is as far out)")
    assert activations.beside(found.iloc[1]).endswith("is as far out; matched groups cannot be used)")
    assert [activations.among(one, activations.percent) for _, one in found.iterrows()] == [
        "random groups 90 %, matched groups 85 %", "random groups 90 %"]
    shown = activations.listed(found, positions=["rare", "all"])
    assert shown.index.tolist() == ["rare", "all"] and shown.loc["rare", "95 % over documents"] == "0.700 to 0.900"
    assert shown["matched groups"].tolist() == ["0.850", ""] and shown.loc["rare", "group"] == "rare group"
    assert "matched groups" not in activations.listed(activations.usable(table(POOR)), positions=["rare"])


# ---- dimensions, and the course of training


def training():
    missing = [name for name in row() if any(part in name for part in ("random", "matched", "imbalance"))]
    last = {"group": "last rare"} | dict.fromkeys(missing, np.nan)
    rows = table(*({"step": step, "value": value, **match} for step, value, match in (
        (0, 0.9, GOOD), (64, 0.8, POOR), (512, 0.8, GOOD))), *({"step": step} | last for step in (0, 64, 512)))
    return activations.usable(rows)


def test_steps_beyond_the_controls_are_counted_where_these_can_be_used(ax, legend):
    rows = training()
    assert activations.beyond(rows, "random", "below") == ([64, 512], 3)
    assert activations.beyond(rows, "matched", "below") == ([512], 2)
    assert activations.beyond(rows, "matched", "above") == ([0], 2)
    assert activations.course(rows, "below", "effective dimension") == (
        " Over training the rare group lies below random groups at 2 of 3 checkpoints (first at step 64) and below "
        "matched groups at 1 of 2 checkpoints (first at step 512).")
    assert activations.course(rows.iloc[:0], "below", "effective dimension") == ""
    activations.course_of(ax, rows, "below", "dimension", 99)
    assert ax.get_title(loc="left") == "Lower dimension than random groups from step 64 on"
    few = next(one for one in ax.collections if one.get_label() == "matched groups, 95 %")
    assert [list(one.vertices[:, 0]) for one in few.get_paths()] == [[0, 0], [512, 512]]  # not at step 64
    assert legend().count("matched groups, 95 %") == 1
    ax.clear()
    activations.over_steps(ax, activations.usable(rows.assign(imbalance_scale=1.0)))
    assert not any("matched" in name for name in legend())


@pytest.mark.parametrize("out, words", [
    ((0, 0, 0, 0), "at no step"), ((1, 1, 1, 1), "at every step, even untrained"), ((0, 0, 1, 1), "from step 64 on"),
    ((1, 0, 1, 1), "at 3 of 4 steps"), ((0, 1, 1, 0), "at 2 of 4 steps, not at the last")])
def test_the_steps_at_which_something_holds_in_words(out, words):
    assert activations.when(np.array([0, 8, 64, 512]), np.array(out, dtype=bool)) == words
    assert activations.when([8, 64], [True, True]) == "at every step"


def test_dimensions_in_words():
    rows = table(*({"where": where, "statistic": name, **match} for where, match in (("rare", GOOD), ("all", POOR))
                   for name in ("effective dimension", "whole components")))
    said = activations.dimensions(activations.usable(rows), pd.DataFrame())
    assert "the rare group has **0.800** and random groups have 0.900. (In whole components" in said
    assert "- Difference at rare positions: -0.100 against random groups (-" in said
    assert "-0.050 against matched groups (-0.200 to +0.000; none of 1,000 matched groups is as far out).\n" in said
    assert "matched groups cannot be used.\n\n The level depends" in said
    assert "107 rare positions (from 9 documents) and at 1,011 of all positions (from 132)" in activations.behind_it(
        activations.account(rows.assign(tokens=[107, 107, 1011, 1011], documents=[9, 9, 132, 132])))


def test_titles_say_where_the_rare_group_lies(ax):
    rows = activations.usable(table(GOOD, {"group": "head"}, {"where": "all", "value": 1.0, "high": 1.1}))
    activations.dimension(ax, rows, "rare", "effective dimension")
    assert ax.get_title(loc="left") == ("Rare positions:\nlower dimension than random, lower dimension than matched "
                                        "groups")
    ax.clear()
    activations.dimension(ax, rows, "all", "effective dimension")
    assert ax.get_title(loc="left").startswith("All positions:\nhigher dimension than random")
    ax.clear()
    activations.variance(ax, activations.usable(table(POOR, POOR)).assign(components=[1, 2]), "rare")
    assert ax.get_title(loc="left") == "Rare positions: one component holds 80 %\n(random groups 90 %)"


# ---- along the activation scale


def test_windows_stand_at_their_scale_and_the_group_beside_them(ax):
    rows = pd.DataFrame({"statistic": "effective dimension", "window": range(5), "size": 27, "where": "rare",
                         "scale": np.log([4.0, 2, 1, 0.5, 0.1]), "value": [0.7, 0.80, 0.82, 0.84, 0.90]})
    activations.windows(ax, rows)
    others, group = ax.lines
    assert others.get_xdata() == pytest.approx([2, 1, 0.5, 0.1]) and group.get_xdata() == pytest.approx([4])
    assert group.get_ydata() == pytest.approx([0.7]) and group.get_color() == plots.COLORS["rare"]
    assert ax.get_title(loc="left") == "Rare positions: the rare group is\nbelow the 3 loudest windows"
    said = activations.along_the_scale(rows)
    assert said.startswith("*Exploratory.* The activation scale of the rare group is 2.0 times that of the loudest "
                           "window")
    assert "Its effective dimension over group size is 0.700. The 3 loudest windows have 0.800 to 0.840." in said
    assert "a rank correlation of -1.00" in said
    assert "Its mean |r| is 0.700" in activations.along_the_scale(rows.assign(statistic="mean absolute"))
    assert "within that of the windows" in activations.along_the_scale(rows.assign(scale=[0.5, 1, 0.8, 0.2, 0.1]))


# ---- pairs of neurons


def test_flipping_gated_neurons_turns_signed_correlations_and_leaves_their_size():
    rng = np.random.default_rng(0)
    signs = np.where(rng.random(8) < 0.5, -1.0, 1.0)
    values = (rng.normal(size=(400, 1)) + rng.normal(size=(400, 8))) * signs
    block = np.corrcoef(values.T)
    found = activations.flips(block)
    plain, one = found.loc["as they are"], found.loc["one of the most correlated pair flipped"]
    assert one["r of the pair"] == -plain["r of the pair"] and one["mean r"] != pytest.approx(plain["mean r"])
    for name in ("|r| of the pair", "mean |r|"):
        assert found[name].to_numpy() == pytest.approx(plain[name])
    i, j = np.unravel_index(np.abs(block - np.eye(8)).argmax(), block.shape)
    assert plain["r of the pair"] == block[i, j]
    assert found["mean r"].max() == found["mean r"].iloc[-1] == pytest.approx(plain["mean |r|"],
                                                                              abs=1e-6)  # all are alike
    flipped = values * np.where(np.arange(8) % 2, -1, 1)
    assert found.loc["every second one flipped",
                     "mean r"] == pytest.approx(activations.geometry.mean_pair(np.corrcoef(flipped.T)))


def pair_table(gated):
    rows = [{"where": where, "group": "rare", "relation": relation, "measure": measure, "statistic": statistic,
             "value": 0.1 + 0.2 * (statistic == "mean absolute") + 0.01 * (where == "all"), "gated": gated,
             "side": "two-sided"} for where in ("rare", "all") for relation in ("within", "between")
            for measure in ("correlation", "cosine") for statistic in ("mean", "mean absolute", "negative share")]
    signed = [rows[0] | {"group": name, "relation": relation, "size": 10} for name, relation in (
        ("boost 10", "within"), ("suppress 10", "within"), ("boost and suppress 10", "between"))]
    return activations.usable(table(*rows, *signed * (not gated)))


def test_a_gated_model_is_told_by_what_has_no_sign():
    gated, plain = pair_table(True), pair_table(False)
    assert activations.statistics_of(gated) == ("mean absolute",) and activations.statistics_of(plain)[0] == "mean"
    said = activations.co_activate(gated)
    assert "**Within** the group, at rare positions: **0.3** (" in said
    assert "Within, at all positions: **0.31** (" in said
    assert "**Between** the group and the others: cannot be tested" in said and "**0.1" not in said
    assert "- Mean size of the uncentred cosine within: **0.3** (" in activations.beyond_the_mean(gated)
    said = activations.co_activate(plain)
    assert "**Within** the group, at rare positions: **0.1** (" in said
    assert "**Between** it and the others, at rare positions: **0.1** (" in said
    assert "At all positions: **0.11** (" in said
    said = activations.beyond_the_mean(plain)
    assert "- Negative pairs within: 10 % (90 % in random groups, 85 % in matched ones)" in said
    assert activations.panels_of(gated) == [("within", "mean absolute")]
    assert activations.panels_of(plain) == [("within", "mean"), ("within", "mean absolute"), ("between", "mean")]
    shown = activations.listed_pairs(plain[(plain["where"] == "rare") & (plain["group"] == "rare")])
    assert shown["statistic"].iloc[:3].tolist() == ["mean of r", "mean size of r", "share below 0 of r"]
    assert set(shown.index) == {"Inside the group", "With other neurons"}


def test_pairs_are_spread_over_usable_controls_and_told_by_their_mean(ax, legend):
    bins = pd.DataFrame([{"where": "rare", "relation": "within", "measure": "correlation", "set": name, "left": left,
                          "share": 0.5, "low": 0.4, "high": 0.6, "pairs": 351} for name in ("rare", "random", "matched")
                         for left in (-0.5, 0.0)])
    for imbalance, known in ((GOOD, 2), (POOR, 1)):
        ax.clear()
        one = row(relation="within", measure="correlation", statistic="mean absolute", value=1.0, **imbalance)
        activations.spread(ax, bins, activations.usable(pd.DataFrame([one])).iloc[0])
        assert sum("mean" in name for name in legend()) == known
        assert ax.get_title(loc="left").startswith("Inside the group: higher mean |r| than")


def test_each_sign_is_drawn_in_its_colour_and_told_in_a_line(ax):
    rows = pair_table(False)
    lines = activations.of_signs(rows).splitlines()
    assert len(lines) == 3 and lines[0].startswith("- boost, top 10, within: mean r **0.1** (")
    assert lines[2].startswith("- boost and suppress, top 10, between")
    rows = rows[rows["group"].str.contains("boost|suppress")].assign(value=[0.01, -0.02, 0.01], low=-0.1)
    activations.signs(ax, rows)
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [dot.get_color() for dot in dots] == [plots.COLORS[name] for name in ("boost", "suppress", "all")]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["top 10\nboost", "top 10\nsuppress",
                                                                    "top 10\nboost with\nsuppress"]
    assert ax.get_title(loc="left") == "Above random groups: none"
    ax.clear()
    activations.signs(ax, rows.assign(value=2.0, high=2.1))
    assert ax.get_title(loc="left").startswith("Above random groups: top 10 boost, top 10\nsuppress, top 10 boost and")
    ax.clear()
    activations.signs(ax, rows[rows["relation"] == "between"])
    assert ax.get_title(loc="left").startswith("Lower mean r than\nrandom")


def test_maps_are_of_the_groups_and_without_signs_where_these_are_arbitrary():
    block = np.array([[1.0, -0.4, 0.0], [-0.4, 1.0, 0.0], [0.0, 0.0, 1.0]])
    for gated, words in ((True, "Rare group:\nmean |r| 0.133"), (False, "Rare group:\nmean r -0.133, mean |r| 0.133")):
        figure, panels = plots.panels(2, 2)
        activations.heat_maps(figure, panels, {"rare": block, "random": block}, gated)
        assert panels[0, 0].get_title(loc="left") == words
        assert np.asarray(panels[1, 0].collections[0].get_array()).min() == (0 if gated else -0.4)
