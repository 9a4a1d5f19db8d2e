"""Figures: repeatable bytes, whole files only, fixed colours, nothing lost on log axes; groups over their controls."""

import dataclasses
import shutil
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.font_manager
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from rare_token_neurons.curve import phases
from rare_token_neurons.figures import axes as plots


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def three_phases(n=1000):
    ranks = np.arange(1, n + 1)
    return np.maximum(ranks, 20) ** -0.7 * np.exp(-np.maximum(ranks - 150, 0) / 150)


def draw():
    figure, ax = plots.panels(width=plots.COLUMN)
    values = three_phases()
    plots.rank_curve(ax, values, phases.fit(values), label="rare", null=(values * 0.5, values * 2))
    plots.title(ax, "Three phases")
    ax.legend()
    return figure


def test_bytes_repeat(tmp_path):
    first = [path.read_bytes() for path in plots.save(draw(), tmp_path / "a", "fig1_test")]
    second = [path.read_bytes() for path in plots.save(draw(), tmp_path / "b", "fig1_test")]
    assert first == second
    assert b"CreationDate" not in first[1] and b"/Type3" not in first[1]
    assert b"/FontFile2" in first[1]                       # fonttype 42: text stays text


def test_letters_come_from_matplotlibs_own_files_whatever_the_machine_has(tmp_path, monkeypatch):
    fonts = matplotlib.font_manager.fontManager
    monkeypatch.setattr(fonts, "ttflist", list(fonts.ttflist))
    bundled = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    for name in ("DejaVuSans.ttf", "Arial.ttf"):
        fonts.addfont(shutil.copy(bundled, tmp_path / name))
    fonts.ttflist[:0] = [fonts.ttflist.pop(), fonts.ttflist.pop()]
    fonts.ttflist[0] = dataclasses.replace(fonts.ttflist[0], name="Arial")
    figure, ax = plots.panels()
    for weight in ("normal", "bold"):
        found = matplotlib.font_manager.findfont(ax.set_title("x", fontweight=weight).get_fontproperties())
        assert Path(found).parent == bundled.parent, found


def test_different_figures_have_different_bytes(tmp_path):
    figure = draw()
    one = plots.save(figure, tmp_path, "one")[0].read_bytes()
    figure.axes[0].set_title("another finding")
    assert plots.save(figure, tmp_path, "two")[0].read_bytes() != one


def test_save_leaves_png_and_pdf_only(tmp_path):
    paths = plots.save(draw(), tmp_path / "new" / "folder", "fig2_test")
    assert [path.name for path in paths] == ["fig2_test.png", "fig2_test.pdf"]
    assert sorted(tmp_path.glob("new/folder/*")) == sorted(paths)
    height, width, _ = plt.imread(paths[0]).shape
    assert width == pytest.approx(200 * plots.COLUMN, abs=2)


def test_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    old = plots.save(draw(), tmp_path, "fig3_test")[0].read_bytes()
    figure = draw()

    def half(path, **_):
        path.write_bytes(b"half a figure")
        raise RuntimeError("disk full")

    monkeypatch.setattr(figure, "savefig", half)
    with pytest.raises(RuntimeError):
        plots.save(figure, tmp_path, "fig3_test")
    assert (tmp_path / "fig3_test.png").read_bytes() == old
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["", "a/b", "fig.png"])
def test_bad_names_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="figure's name"):
        plots.save(draw(), tmp_path, name)


def test_phases_and_groups_have_their_own_colours():
    wanted = ["rare", "common", "all", "null", "plateau", "power law", "decay"]
    assert len({to_hex(plots.COLORS[name]) for name in wanted}) == len(wanted)
    assert plots.COLORS["random"] == plots.COLORS["null"] == plots.GREY


def test_rank_curve_draws_falling_and_skips_the_dead():
    figure, ax = plots.panels()
    values = np.random.default_rng(0).permutation(np.append(three_phases(), np.zeros(7)))
    plots.rank_curve(ax, values, label="rare")
    curve = ax.lines[0].get_ydata()
    assert np.all(np.diff(curve[:1000]) <= 0) and np.isnan(curve[1000:]).all()
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert to_hex(ax.lines[0].get_color()) == plots.COLORS["rare"]


def test_shading_covers_every_rank_and_drops_empty_phases():
    figure, ax = plots.panels()
    plots.shade_phases(ax, (17, 200), 1000)
    spans = sorted(patch.get_extents().x0 for patch in ax.patches)
    assert len(spans) == 3 and [text.get_text().split("\n")[1] for text in ax.texts] == ["1.7 %", "18.3 %", "80.0 %"]
    figure, ax = plots.panels()
    plots.shade_phases(ax, (0, 1000), 1000)
    assert [text.get_text() for text in ax.texts] == ["power law\n100.0 %"]


def test_zipf_counts_the_rare_band():
    figure, ax = plots.panels()
    plots.zipf(ax, [100, 50, 2, 2, 0], rare_at=2)
    labels = [patch.get_label() for patch in ax.patches]
    assert labels == ["rare: 50 % of types, 2.6 % of uses"]


def test_steps_have_a_place_for_zero():
    figure, ax = plots.panels()
    plots.over_steps(ax, [0, 16, 64, 1024], [1, 2, 3, 4], low=[0, 1, 2, 3], high=[2, 3, 4, 5], label="rare")
    assert np.isfinite(ax.transData.transform((0, 1))).all()
    assert ax.get_xlabel() == "training step"


def test_heat_map_draws():
    figure, ax = plots.panels()
    plots.heat_map(ax, [[1, -0.5], [-0.5, 1]], label="cosine similarity")
    assert ax.collections[0].get_clim() == (-1, 1)


def test_a_clustering_puts_alike_neurons_side_by_side():
    figure, (above, ax) = plots.panels(2, 1)
    block = np.array([[1, 0.1, 0.9, 0.1], [0.1, 1, 0.1, 0.8], [0.9, 0.1, 1, 0.1], [0.1, 0.8, 0.1, 1]])
    plots.clustered(above, ax, block, "two pairs")
    drawn = np.asarray(ax.collections[0].get_array()).reshape(4, 4)
    assert sorted([drawn[0, 1], drawn[2, 3]]) == [0.8, 0.9] and above.get_title(loc="left") == "two pairs"


# ---- a group over its controls


@pytest.fixture
def ax():
    return plots.panels()[1]


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


@pytest.mark.parametrize("p, words", [(0.0009, "p = 0.001"), (0.034, "p = 0.034"), (0.5, "p = 0.50"),
                                      (np.nan, "no p value")])
def test_p_in_words(p, words):
    assert plots.level(p) == words


@pytest.mark.parametrize("value, words", [(1.0, "below random, like matched groups"),
                                          (2.3, "like random, above matched groups"),
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
