"""Drawing over training steps: what is drawn is what the tables hold."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from rare_token_neurons.figures import axes as plots, emergence

STEPS = [0, 16, 64, 256]


@pytest.fixture
def ax():
    figure, axes = plots.panels()
    yield axes
    plt.close(figure)


def lines(ax, label):
    return [line for line in ax.lines if line.get_label() == label]


def test_the_first_and_the_last_checkpoint_are_named():
    assert emergence.marks([0, 16, 64, 256]) == [0, 16, 256] and emergence.marks([0, 16, 64]) == [0, 64]
    assert emergence.marks([64]) == [64] and emergence.marks([256, 0]) == [0, 256]


def test_colours_darken_with_the_step_and_zero_has_one():
    colours = emergence.shade(STEPS)
    light = [np.dot(colours.to_rgba(step)[:3], [0.3, 0.6, 0.1]) for step in STEPS]
    assert light == sorted(light, reverse=True) and len(set(light)) == 4 and light[0] < 0.85
    assert np.isfinite(emergence.shade([0]).to_rgba(0)).all()


def test_a_curve_a_checkpoint_and_the_null_of_the_last(ax):
    rank = np.array([1, 10, 100])
    rows = pd.concat([pd.DataFrame({"step": step, "rank": rank, "influence": (step + 1.0) / rank, "low": 0.5 / rank,
                                    "high": 300 / rank, "null": family, "null_low": 1 / rank, "null_high": 9.0 / rank})
                      for step, family in zip(STEPS, ("exponential", "lognormal", "lognormal", "half-normal"))])
    emergence.rank_curves(ax, rows, emergence.shade(STEPS))
    assert [line.get_ydata()[0] for line in ax.lines] == [1, 17, 65, 257]
    assert [line.get_linestyle() for line in ax.lines] == ["--", "-", "-", "-"]
    assert ax.get_legend_handles_labels()[1][:2] == ["step 0", "step 256 (95 % over documents)"]
    assert "ranked half-normal draws (95 %)" in ax.get_legend_handles_labels()[1]


def test_what_cannot_be_told_is_open(ax):
    rows = pd.DataFrame({"step": STEPS, "null_plateau_low": 0.0, "null_plateau_high": 0.1})
    for phase, value in (("plateau", 0.02), ("power_law", 0.1), ("decay", 0.88)):
        rows = rows.assign(**{phase: value, f"{phase}_low": value, f"{phase}_high": value,
                              f"told_{phase}": rows["step"] > 16})
    emergence.shares(ax, rows)
    (filled,) = lines(ax, "plateau")
    assert filled.get_ydata() == pytest.approx(np.full(4, 2.0))
    opened = [line for line in ax.lines if line.get_markerfacecolor() == "white" and len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in opened] == [[0, 16]] * 3


def rankings():
    """Correlation: ten times the first step's place plus the second's, in hundredths; common lower by 0.5."""
    return pd.DataFrame([{"first_group": group, "second_group": group, "first_step": one, "second_step": two,
                          "correlation": value, "correlation_low": value, "correlation_high": value,
                          "random_jaccard_high": 0.1}
                         for group, less in (("rare", 0), ("common", 0.5)) for place, one in enumerate(STEPS)
                         for other, two in enumerate(STEPS[place:], place)
                         for value in [0.5 + (10 * place + other) / 100 - less]])


def test_neighbours_are_pairs_of_checkpoints_side_by_side():
    table = emergence.neighbours(rankings())
    rare = table[table["first_group"] == "rare"]
    assert list(zip(rare["first_step"], rare["second_step"])) == [(0, 16), (16, 64), (64, 256)]
    itself = emergence.neighbours(rankings(), 0)
    assert (itself["first_step"] == itself["second_step"]).all() and len(itself) == 8


def test_stability_is_drawn_at_the_later_checkpoint(ax):
    emergence.stability(ax, rankings(), "correlation")
    (line,) = lines(ax, "rare, with the checkpoint before")
    assert list(line.get_xdata()) == STEPS[1:] and line.get_ydata() == pytest.approx([0.51, 0.62, 0.73])
    (ceiling,) = lines(ax, "common, with itself (ceiling)")
    assert list(ceiling.get_xdata()) == STEPS and ceiling.get_ydata() == pytest.approx([0, 0.11, 0.22, 0.33])


def test_the_heat_map_has_a_row_a_neuron_by_place(ax):
    table = pd.DataFrame([{"group": "rare", "place": place, "step": step, "rank": 10 * place + at, "neurons": 100}
                          for place in (2, 1, 3) for at, step in enumerate(STEPS)])
    emergence.ranks(ax, table, "rare")
    drawn = ax.collections[0].get_array().reshape(3, 4)
    assert drawn[:, 0].tolist() == [10, 20, 30] and drawn[0].tolist() == [10, 11, 12, 13]
