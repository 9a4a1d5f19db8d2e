"""Drawing of spectra: what is drawn is what the tables hold; the last layer's place; sentences."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from rare_token_neurons.figures import axes as plots, weights


@pytest.fixture
def ax():
    figure, axes = plots.panels()
    yield axes
    plt.close(figure)


def test_groups_have_places_of_their_own(ax):
    table = pd.DataFrame([{"matrix": matrix, "group": group, "rows": rows, "size": 27, "value": 1.0, "low": 0.5, "high": 1.5,
                           "random_low": 1.0, "random_high": 3.0, "random_mean": 2.0, "matched_low": 1.0,
                           "matched_high": 3.0, "matched_mean": 2.0} for matrix in ("gate", "out")
                          for group, rows in (("rare", "raw"), ("rare", "standardised"), ("common", "raw"))])
    placed, cases = weights.places(table)
    assert cases["y"].is_unique and placed["y"].tolist() == cases["y"].tolist() and cases["name"].is_unique
    assert cases["y"].is_monotonic_decreasing and cases["y"].diff().abs().min() >= 1
    weights.groups(ax, placed)
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [dot.get_color() for dot in dots] == [plots.COLORS["rare"], plots.COLORS["common"]]
    assert sorted(np.concatenate([dot.get_ydata() for dot in dots])) == sorted(cases["y"])


def test_the_hill_plot_marks_the_chosen_tail(ax):
    part = pd.DataFrame({"k": [1, 2, 3], "value": [3.0, 2.0, 1.5], "chosen": 2, "random_low": 2.5, "random_high": 9.0,
                         "shuffled_mean": 5.0})
    weights.hill(ax, pd.concat([part.assign(revision="step0", value=[8.0, 7.0, 6.0]), part.assign(revision="step9")]))
    mark = next(line for line in ax.lines if line.get_marker() == "D")
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (2, 2.0)
    assert {"rare group at step0", "rare group at step9"} <= set(ax.get_legend_handles_labels()[1])


def test_the_law_is_drawn_at_the_groups_aspect_ratio(ax):
    rank = np.arange(1, 21)
    rows = pd.DataFrame({"rank": np.tile(rank, 3), "columns": 80, "kind": np.repeat(["rare", "random", "shuffled"], 20),
                         "relative": np.tile(np.linspace(2, 0.3, 20), 3)})
    weights.spectrum(ax, rows, np.linspace(-1, 1, 10))
    law = next(line for line in ax.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 400)
    assert 10 ** law.get_xdata()[[0, -1]] == pytest.approx([0.25, 2.25])  # (1 -+ sqrt(1/4))^2
    x, y = law.get_xdata(), law.get_ydata()
    assert np.trapezoid(y, x) == pytest.approx(1, abs=0.02)
    ticks = next(line for line in ax.lines if line.get_marker() == "|")
    assert len(ticks.get_xdata()) == 20


# ---- layer by layer


def test_the_last_layers_place_among_the_others():
    table = pd.DataFrame({"matrix": ["a"] * 5 + ["b"] * 3 + ["embed"], "layer": [3, 0, 1, 2, 4, 0, 1, 2, -1],
                          "alpha": [2.0, 1.0, np.nan, 5.0, 2.5, 4.0, 3.0, np.nan, 9.0]})
    found = weights.special(table)
    assert list(found.index) == ["a", "b"]
    assert found.loc["a", ["last", "median", "lowest", "highest", "below", "others"]].tolist() == [2.5, 2.0, 1.0, 5.0, 2, 3]
    assert found.loc["a", "p"] == 1.0 and np.isnan(found.loc["b", ["last", "p"]].astype(float)).all()


def test_an_outlier_among_many_layers_has_a_small_p():
    table = pd.DataFrame({"matrix": "a", "layer": range(40), "alpha": [*np.linspace(2, 3, 39), 9.0]})
    assert weights.special(table)["p"].item() == pytest.approx(2 / 40)


# ---- in words


def test_failed_fits_are_told_matrix_by_matrix_and_too_many_are_marked():
    table = pd.DataFrame({"group": ["rare", "rare", "rare", "common"], "rows": ["raw", "raw", "standardised", "raw"],
                          "matrix": ["in", "out", "in", "in"], "statistic": "alpha", "missing": [0.05, 0.5, 0.9, 0.9],
                          "under_trained": 0.25, "log": ["", "odd", "", "odd"]})
    first, second, last = weights.failures(table).splitlines()
    assert "5.0% of" in first and "**" not in first and first.endswith("25% of the random groups are called under-trained.")
    assert "50.0% of weightwatcher's fits failed (**above 20 %" in second and last == "- Its words on failures: odd."


def test_the_summary_tells_heavier_groups_and_the_course_of_training():
    rare = pd.DataFrame({"statistic": "alpha_hill", "matrix": ["in", "out"], "value": 2.0, "low": 1.5, "high": 2.5,
                         "random_mean": 3.0, "p_random": [0.01, 0.2], "matched_mean": 3.0, "p_matched": [0.01, 0.01],
                         "shuffled_mean": 9.0}).set_index(["statistic", "matrix"])
    share = pd.Series(0.25, index=pd.MultiIndex.from_product([["rare", "random"], ["in", "out"]]))
    fitted = pd.DataFrame({"alpha": [2.0, np.nan]})
    training = pd.DataFrame([{"kind": "own", "statistic": name, "matrix": matrix, "difference": value}
                             for matrix in ("in", "out") for name in ("alpha_hill", "alpha_hill_half")
                             for value in (0.0, -1.0)])
    said = weights.summary(rare, share, training, fitted, "mini-pythia").splitlines()
    assert "heavier than random and than matched groups. One direction holds 25%" in said[0]
    assert "heavier than matched groups, not than random ones" in said[1] and len(said) == 6
    assert said[2].endswith("goes from +0.00 to -1.00; with k = m/2 for all from +0.00 to -1.00.") and "50.0%" in said[-1]
    assert weights.summary(rare, share, pd.DataFrame(), fitted, "smollm2").splitlines()[-1].endswith("noise of its own.")
