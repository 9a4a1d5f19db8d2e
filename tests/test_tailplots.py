"""Drawing of spectra: what is drawn is what the tables hold."""

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
                           "random_low": 1.0, "random_high": 3.0, "random_mean": 2.0, "matched_low": 1.0, "matched_high": 3.0,
                           "matched_mean": 2.0} for matrix in ("gate", "out")
                          for group, rows in (("rare", "raw"), ("rare", "standardised"), ("common", "raw"))])
    placed, cases = weights.places(table)
    assert cases["y"].is_unique and placed["y"].tolist() == cases["y"].tolist() and cases["name"].is_unique
    assert cases["y"].is_monotonic_decreasing and cases["y"].diff().abs().min() >= 1
    weights.groups(ax, placed)
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [dot.get_color() for dot in dots] == [plots.COLORS["rare"], plots.COLORS["common"]]
    assert sorted(np.concatenate([dot.get_ydata() for dot in dots])) == sorted(cases["y"])


def test_the_hill_plot_marks_the_chosen_tail(ax):
    part = pd.DataFrame({"k": [1, 2, 3], "value": [3.0, 2.0, 1.5], "chosen": 2, "random_low": 2.5, "random_high": 9.0, "shuffled_mean": 5.0})
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
