"""The drawings and sentences of notebook 09 show what the tables say."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from rare_token_neurons import files
from rare_token_neurons.figures import nulls
from rare_token_neurons.statistics import claims, rankings
from rare_token_neurons.tables import robustness


@pytest.fixture
def ax():
    """Axes of a figure that is closed afterwards."""
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def row(**values):
    return {"factor": "default", "setting": "rarest 50 %, mean", "statistic": "co-activation", "direction": "greater",
            "value": 0.2, "low": 0.1, "high": 0.3, "null": 0.0, "q": 0.004, "positions": 250,
            "verdict": claims.REPRODUCED} | values


def test_the_grid_frames_what_is_reproduced_and_counts_where_it_cannot_say(ax):
    table = pd.DataFrame([row(), row(factor="rare_of", setting="input", verdict=claims.NOT, value=-0.05, q=0.8),
                          row(factor="layer", setting="0", verdict=claims.UNTESTED, value=np.nan, q=np.nan,
                              positions=34)])
    nulls.grid(ax, table, rows=7)
    assert ax.get_ylim() == (6.5, -0.5)
    assert [text.get_text() for text in ax.texts] == ["+0.200**", "-0.050", "34 positions"]
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["default: rarest 50 %, mean", "rare_of = input", "layer 0"]
    frames = [patch for patch in ax.patches if not patch.get_fill()]
    assert len(frames) == 1 and len(ax.patches) == 4
    warm, cold = [patch.get_facecolor() for patch in ax.patches if patch.get_fill() and patch.get_x() == -0.5][:2]
    assert warm[0] > warm[2] and cold[0] < cold[2]  # red on the paper's side
    assert [label.get_text() for label in ax.get_xticklabels()] == [nulls.SHORT["co-activation"]]  # no empty columns


def test_stars_follow_the_adjusted_p_value():
    assert [nulls.stars(q) for q in (0.005, 0.03, 0.2, np.nan)] == ["**", "*", "", ""]


def test_departures_lie_beside_their_nulls(ax):
    heads = pd.DataFrame({"null": ["lognormal", "shuffled labels"], "departure": [1.5, -2.0], "null_low": [-1, -0.5],
                          "null_high": [1, 0.5], "null_mean": [0.0, 0.0], "p_plateau": [0.9, 0.01],
                          "p_outliers": [0.02, 0.99]})
    nulls.departures(ax, heads)
    dots = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
    assert dots == [1.5, -2.0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["lognormal\np = 0.040", "shuffled labels\np = 0.020"]


def test_a_head_is_called_by_twice_the_smaller_p_value():
    heads = pd.DataFrame({"p_plateau": [0.01, 0.03, 0.99, 0.97, 0.6], "p_outliers": [0.995, 0.98, 0.02, 0.04, 0.55],
                          "departure": [-1.0, -1.0, 1.0, 1.0, -1.0]})
    assert nulls.two_sided(heads).tolist() == pytest.approx([0.02, 0.06, 0.04, 0.08, 1.0])
    assert nulls.kinds(heads).tolist() == ["plateau", "neither", "outliers", "neither", "neither"]
    assert nulls.kinds(heads.assign(departure=0.1)).tolist() == ["neither", "neither", "outliers", "neither", "neither"]


@pytest.mark.parametrize("names", [nulls.FULL[:3], nulls.FULL,
                                   ("shuffled labels", "common, same number", "common, same loss")])
def test_every_null_of_a_panel_has_its_own_line(ax, names):
    ranks = np.arange(1, 101)
    parts = [pd.DataFrame({"null": name, "rank": ranks, "influence": 1 / ranks, "low": 0.5 / ranks, "high": 2 / ranks})
             for name in names]
    nulls.beside_nulls(ax, pd.concat(parts), names, "rare")
    assert set(ax.get_legend_handles_labels()[1]) == {f"{name}, 95 %" for name in names} | {"rare"}
    drawn = [line.get_linestyle() for line in ax.lines if line.get_label().endswith("95 %")]
    assert len(set(drawn)) == len(drawn) == len(names) - 1


def test_changes_are_drawn_per_nat_of_influence_and_shares_as_they_are(ax):
    influence = np.geomspace(1e-4, 1, 40)
    table = pd.DataFrame({"influence": influence, "kl": -0.2 * influence, "unigram_share": 0.5, "side": "boost",
                          "rare": influence > 0.1})
    for score, value in (("kl", -0.2), ("unigram_share", 0.5)):
        ax.clear()
        nulls.scores(ax, table, score)
        drawn = np.concatenate([np.asarray(dots.get_offsets())[:, 1] for dots in ax.collections])
        np.testing.assert_allclose(drawn, np.full(40, value))
    assert table["kl"].min() == pytest.approx(-0.2)  # the table itself is left as it is


def test_a_true_law_runs_through_its_neurons(ax):
    values = np.random.default_rng(0).random(2000) ** -0.5  # P(X > x) = x^-2
    found = {"part": "upper tail", "alpha": 3.0, "low": 1.0, "high": np.nan, "n": 2000, "verdict": "not rejected"}
    tests = pd.DataFrame([found])
    nulls.law(ax, values, tests, "black")
    line = ax.lines[1]
    x, y = line.get_xdata(), line.get_ydata()
    assert y == pytest.approx(x**-2.0, rel=1e-6) and "not rejected" in line.get_label()


def test_the_grid_has_a_name_for_every_statistic():
    assert list(nulls.SHORT) == list(robustness.STATISTICS)


# ---- training seeds


def test_seeds_are_collected_and_said_with_what_is_missing(tmp_path):
    assert not len(nulls.collected(tmp_path / "nowhere"))
    for seed in (1, 2):
        found = {"seed": seed, "group": ["rare", "common"], "plateau_end": 10.0 * seed, "p_plateau": 0.5,
                 "kappa": float(seed), "departure": 0.1, "ratio": 30.0}
        files.write_table(tmp_path / f"seed{seed}.parquet", pd.DataFrame(found))
    both = nulls.collected(tmp_path)
    assert sorted(both["seed"].unique()) == [1, 2]
    assert nulls.spread(both).loc["kappa", ["mean", "min", "max"]].tolist() == [1.5, 1, 2]
    said = nulls.of_seeds(both)
    assert said.startswith("Seed 0 is not measured yet; `make suite SEED=0 STEPS=1536` trains it")
    assert "data/cache/mini-pythia-seed0-steps1536" in said and "last rank of the plateau 10 and 20 (0: none)" in said
    assert nulls.of_seeds(nulls.collected(tmp_path / "nowhere")).count("not measured yet") == 3


# ---- in words


def heads(**values):
    return pd.DataFrame({"null": ["lognormal", "shuffled labels", "common, same loss"], "departure": -1.0, "p_plateau": 0.01,
                         "p_outliers": 0.99, "note": "as hard"} | values)


def test_the_head_is_named_beyond_each_null():
    said = nulls.of_heads(heads())
    assert "lies **below** the power law's line by 1.00 e-folds" in said
    assert "plateau beyond 3 of the 3 nulls (lognormal, " in said
    assert "outliers beyond 0 (none)" in said and said.endswith("give another head.")
    alike = nulls.of_heads(heads(p_plateau=[0.01, 0.5, 0.5], p_outliers=[0.99, 0.5, 0.5]))
    assert "plateau beyond 1 of the 3 nulls (lognormal)" in alike and alike.endswith("give such a head too.")


def test_choices_are_counted_statistic_by_statistic():
    names = list(nulls.SHORT)
    cells = pd.DataFrame([row(statistic=name, **values) for name in names for values in (
        {}, {"factor": "rare_of", "setting": "input", "verdict": claims.NOT, "value": -0.1},
        {"factor": "halves", "setting": "1"}, {"factor": "counts", "setting": "text", "verdict": claims.UNTESTED})]
        + [row(factor="layer", setting="0", statistic=names[1], low=-0.8, high=1.2, verdict=claims.NOT)])
    said = nulls.of_choices(cells, pd.DataFrame({"layer": [0] * 12 + [1] * 12})).splitlines()
    assert said[0] == ("- **plateau**: reproduced by default; the same verdict in 1 of 2 other testable settings, on the "
                       "paper's side in 1.")
    assert len(said) == 6 and "quarter of 12 sampled neurons" in said[-1] and "in 0 of 1 earlier layers" in said[-1]
    assert f"windows of {claims.WINDOW} tokens" in said[-1]
    assert "there the interval's half-width is 1.00 in the median, 0.10 by default" in said[-1]


def test_the_summary_takes_each_number_from_its_table():
    laws = pd.DataFrame({"verdict": ["rejected"], "alpha": [2.5], "p_fit": [0.01]})
    promises = pd.DataFrame({"promise": ["the middle of a planted power law is not rejected"], "kept": [93], "runs": [100]})
    whole = pd.DataFrame({"score": list(rankings.SCORES), "side": "all", "k": 10, "relative": [1, 2, 3, 4],
                          "shared": [5, 6, 7, 8], "chance": 0.5, "group": 0.25, "others": 0.75}).set_index("score")
    cells = pd.DataFrame([row(), row(verdict=claims.NOT), row(verdict=claims.UNTESTED)])
    said = nulls.summary(heads(), laws, promises, cells, whole)
    for words in ("**plateau beyond the null** (departure -1.00, two-sided p = 0.020)",
                  "rejected in 7 of 100 planted samples", "of 2 testable cells of the robustness grid 1 reproduce", "and 1 of the 10 most influential neurons",
                  "2 among those with the largest change of KL", "3 for the entropy", "by size alone, 6 and 7)."):
        assert words in said
