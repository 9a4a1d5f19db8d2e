"""What the drawings of comparisons put into their axes."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from rare_token_neurons.figures import axes as plots


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def rows(**columns):
    base = {"value": [1.0, 3.0], "low": [0.5, 2.0], "high": [2.0, 3.5], "random": 2.0, "random_low": 1.5, "random_high": 2.5,
            "matched": [1.8, np.nan], "matched_low": [1.4, np.nan], "matched_high": [2.2, np.nan], "size": [27, 27]}
    return pd.DataFrame(base | columns)


def test_groups_stand_at_their_values_with_their_interval(ax):
    plots.of_groups(ax, rows(group=["rare", "decay"]))
    dots = [container.lines[0] for container in ax.containers]
    assert [(*dot.get_xdata(), *dot.get_ydata()) for dot in dots] == [(0, 1.0), (1, 3.0)]
    assert dots[0].get_color() != dots[1].get_color()
    ends = ax.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert list(ends) == [0.5, 2.0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["rare group\n(n = 27)", "decay\n(n = 27)"]


def test_steps_show_the_group_of_each_checkpoint_and_the_last_one(ax):
    table = pd.concat([rows(group="rare", step=[16, 0]), rows(group="last rare", step=[0, 16], value=[5.0, 6.0])])
    plots.group_over_steps(ax, table.astype({"step": "Int64"}))
    lines = {line.get_label(): line for line in ax.lines}
    own = lines["rare group of the checkpoint"]
    assert list(own.get_xdata()) == [0, 16] and list(own.get_ydata()) == [3.0, 1.0]
    assert list(lines["rare group of the last one"].get_ydata()) == [5.0, 6.0]
    assert ax.get_xscale() == "symlog"


@pytest.mark.parametrize("p, words", [(0.0009, "p = 0.001"), (0.034, "p = 0.034"), (0.5, "p = 0.50"), (np.nan, "no p value")])
def test_p_in_words(p, words):
    assert plots.level(p) == words


@pytest.mark.parametrize("value, words", [(1.0, "below random, like matched groups"), (2.3, "like random, above matched groups"),
                                          (2.0, "like random, like matched groups")])
def test_place_against_the_bands_in_words(value, words):
    row = {"value": value, "random_low": 1.5, "random_high": 2.5, "matched_low": 0.9, "matched_high": 2.2}
    assert plots.against(row) == words
    alone = row | {"matched_low": np.nan, "matched_high": np.nan}
    assert plots.against(alone) == words.split(",")[0] + " groups"


def test_histograms_have_a_right_edge_and_the_groups_colour(ax):
    bins = pd.DataFrame({"left": [-1.0, 0.0], "share": [0.25, 0.75], "low": [0.1, 0.5], "high": [0.4, 0.9]})
    plots.of_pairs(ax, {"rare": bins, "random": bins.set_axis([2, 3])})
    lines = {line.get_label(): line for line in ax.lines}
    rare = lines["rare group"]
    assert list(rare.get_xdata()) == [-1, 0, 1] and list(rare.get_ydata()) == [0.25, 0.75, 0.75]
    assert rare.get_color() == plots.COLORS["rare"] and "matched groups, mean" not in lines


def test_empty_bins_at_the_ends_are_out_of_reach():
    bins = pd.DataFrame({"left": np.tile(np.arange(-10, 10) / 10, 2), "share": 0.0})
    bins.loc[[7, 20 + 12], "share"] = 0.5  # -0.3 in one set, 0.2 in the other
    bins.loc[0, "share"] = 0.0005
    assert plots.reach(bins) == pytest.approx((-0.3, 0.3))
