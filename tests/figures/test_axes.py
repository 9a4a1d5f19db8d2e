"""Figures: repeatable bytes, whole files only, fixed colours, nothing lost on log axes; groups over their controls."""

import dataclasses
import shutil
from pathlib import Path

import matplotlib
import matplotlib.font_manager
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import planted_heads as planted
import pytest
from matplotlib.colors import to_hex

from rare_token_neurons.curve import heads
from rare_token_neurons.figures import axes as plots, words


def rank_curve(ax, curve=None, fit=planted.fit()):
    plots.rank_curve(ax, planted.curve() if curve is None else curve, fit, label="rare", color=plots.COLORS["rare"])


def draw():
    figure, ax = plots.panels(width=plots.COLUMN)
    rank_curve(ax)
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
    wanted = ["rare", "common", "all", "null", "head", "power law", "decay"]
    assert len({to_hex(plots.COLORS[name]) for name in wanted}) == len(wanted)
    assert plots.COLORS["random"] == plots.COLORS["null"] == plots.GREY


def lines(ax):
    return {line.get_label(): line for line in ax.lines}


def test_a_rank_curve_skips_the_dead_and_stands_over_its_nulls(ax):
    rank_curve(ax, planted.curve(np.append(planted.influence(), np.zeros(7))))
    drawn = lines(ax)["rare"]
    assert np.all(np.diff(drawn.get_ydata()[:1000]) <= 0) and np.isnan(drawn.get_ydata()[1000:]).all()
    assert ax.get_xscale() == ax.get_yscale() == "log" and to_hex(drawn.get_color()) == plots.COLORS["rare"]
    nulls = {label: line for label, line in lines(ax).items() if label.startswith("null: ")}
    assert set(nulls) == {"null: lognormal, 95 %", "null: half-normal, 95 %"}  # outlines
    assert len({line.get_linestyle() for line in nulls.values()}) == 2
    assert {to_hex(line.get_color()) for line in nulls.values()} == {plots.GREY}
    filled = [band for band in ax.collections if band.get_label() == "null: the law itself, 95 %"]
    assert len(filled) == 1 and to_hex(filled[0].get_facecolor()[0]) == plots.GREY


def test_the_laws_line_is_carried_to_rank_1_and_ends_with_the_law(ax):
    rank_curve(ax)
    (line,) = [line for label, line in lines(ax).items() if label.startswith("line: the law, carried to rank 1")]
    assert list(line.get_xdata()) == [1, planted.LAW] and "0.70" in line.get_label()
    assert line.get_ydata() == pytest.approx(np.exp(planted.BETA - planted.KAPPA * np.log([1, planted.LAW])))


def stretches(ax):
    return [text.get_text() for text in ax.texts]


def test_phases_are_shaded_as_the_fit_found_them_with_the_cliff_hatched(ax):
    plots.shade_phases(ax, planted.fit())
    assert stretches(ax) == ["shelf\n2.0 %", "cliff\n1.0 %", "power law\n12.0 %", "decay\n85.0 %"]
    (cliff,) = [patch for patch in ax.patches if patch.get_hatch()]
    assert (cliff.get_x(), cliff.get_x() + cliff.get_width()) == (planted.SHELF + 0.5, planted.HEAD + 0.5)
    ends = sorted({patch.get_x() for patch in ax.patches} | {patch.get_x() + patch.get_width() for patch in ax.patches})
    assert ends == [1, 20.5, 30.5, 150.5, 1000]


@pytest.mark.parametrize("word", heads.WORDS)
def test_a_head_with_a_cliff_has_a_shelf_whatever_its_word(word, ax):
    plots.shade_phases(ax, planted.fit(word))
    assert stretches(ax)[:2] == ["shelf\n2.0 %", "cliff\n1.0 %"]


@pytest.mark.parametrize("changes, shown", [
    ({"head": 0, "shelf": 1.0, "law_start": 1.0, "decay_share": 0.0}, ["power law\n100.0 %"]),
    ({"shelf": 30.4}, ["head\n3.0 %", "power law\n12.0 %", "decay\n85.0 %"]),  # no cliff
    ({"head": 17, "shelf": 17.0, "law_start": 40.2},  # beyond a fixed head
     ["shelf\n1.7 %", "cliff\n2.3 %", "power law\n11.0 %", "decay\n85.0 %"])])
def test_empty_stretches_are_not_drawn(ax, changes, shown):
    plots.shade_phases(ax, planted.fit(**changes))
    assert stretches(ax) == shown


def test_a_curve_that_could_not_be_fitted_is_drawn_without_phases(ax):
    row = planted.missing(planted.fit())
    rank_curve(ax, fit=row)
    assert not ax.patches and not ax.texts and words.named(row) == "cannot be tested"
    assert words.named(planted.fit("on the line")) == "on the line"


def test_a_legend_below_has_each_entry_once_and_none_of_a_panels_own():
    figure, panels = plots.panels(1, 2)
    for ax, own in zip(panels, ("a", "b")):
        line = ax.plot([1, 2], label=own)
        ax.plot([2, 1], label="both")
        ax.legend(handles=line)
    plots.legend_below(figure, panels)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["both"]


def test_zipf_counts_the_rare_band(ax):
    plots.zipf(ax, [100, 50, 2, 2, 0], rare_at=2)
    labels = [patch.get_label() for patch in ax.patches]
    assert labels == ["rare: 50 % of types, 2.6 % of uses"]


def test_steps_have_a_place_for_zero(ax):
    plots.over_steps(ax, [0, 16, 64, 1024], [1, 2, 3, 4], low=[0, 1, 2, 3], high=[2, 3, 4, 5], label="rare")
    assert np.isfinite(ax.transData.transform((0, 1))).all()
    assert ax.get_xlabel() == "training step"


def test_heat_map_draws(ax):
    plots.heat_map(ax, [[1, -0.5], [-0.5, 1]])
    assert ax.collections[0].get_clim() == (-0.6, 0.6)


def test_a_clustering_puts_alike_neurons_side_by_side():
    figure, (above, ax) = plots.panels(2, 1)
    block = np.array([[1, 0.1, 0.9, 0.1], [0.1, 1, 0.1, 0.8], [0.9, 0.1, 1, 0.1], [0.1, 0.8, 0.1, 1]])
    plots.clustered(above, ax, block, "two pairs")
    drawn = np.asarray(ax.collections[0].get_array()).reshape(4, 4)
    assert sorted([drawn[0, 1], drawn[2, 3]]) == [0.8, 0.9] and above.get_title(loc="left") == "two pairs"


# ---- a group over its controls


def rows(**columns):
    base = {"value": [1.0, 3.0], "low": [0.5, 2.0], "high": [2.0, 3.5], "random": 2.0, "random_low": 1.5,
            "random_high": 2.5,
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
    own = lines(ax)["rare group of the checkpoint"]
    assert list(own.get_xdata()) == [0, 16] and list(own.get_ydata()) == [3.0, 1.0]
    assert list(lines(ax)["last rare group, followed back"].get_ydata()) == [5.0, 6.0]
    assert ax.get_xscale() == "symlog"


@pytest.mark.parametrize("given, said", [
    ((0.0009,), "p = 0.001"), ((0.034,), "p = 0.034"), ((0.5,), "p = 0.50"), ((np.nan,), "no p value"),
    ((1 / 201, 1 / 201), "none of 200 null curves"), ((1 / 1001, 1 / 1001, "draws"),
                                                      "none of 1,000 draws"),  # at its floor
    ((2 / 201, 1 / 201), "p = 0.010"), ((np.nan, 1 / 201), "no p value")])
def test_p_in_words(given, said):
    assert words.level(*given) == said


@pytest.mark.parametrize("value, said", [(1.0, "below random, like matched groups"),
                                         (2.3, "like random, above matched groups"),
                                         (2.0, "like random, like matched groups")])
def test_place_against_the_bands_in_words(value, said):
    row = {"value": value, "random_low": 1.5, "random_high": 2.5, "matched_low": 0.9, "matched_high": 2.2}
    assert words.against(row) == said
    assert words.against(row | {"matched_low": np.nan, "matched_high": np.nan}) == said.split(",")[0] + " groups"


def test_intervals_and_shares_in_words():
    row = {"low": 0.701, "high": 0.899, "delta_low": -0.1, "delta_high": 0.25}
    assert words.between(row) == "0.70 to 0.90" and words.between(row, "delta", "+.1f") == "-0.1 to +0.2"
    assert words.stretches(planted.fit()) == "3.0 / 12.0 / 85.0"


def test_histograms_have_a_right_edge_and_the_groups_colour(ax):
    bins = pd.DataFrame({"left": [-1.0, 0.0], "share": [0.25, 0.75], "low": [0.1, 0.5], "high": [0.4, 0.9]})
    plots.of_pairs(ax, {"rare": bins, "random": bins.set_axis([2, 3])})
    rare = lines(ax)["rare group"]
    assert list(rare.get_xdata()) == [-1, 0, 1] and list(rare.get_ydata()) == [0.25, 0.75, 0.75]
    assert rare.get_color() == plots.COLORS["rare"] and "matched groups, mean" not in lines(ax)


def test_empty_bins_at_the_ends_are_out_of_reach():
    bins = pd.DataFrame({"left": np.tile(np.arange(-10, 10) / 10, 2), "share": 0.0})
    bins.loc[[7, 20 + 12], "share"] = 0.5  # -0.3 in one set, 0.2 in the other
    bins.loc[0, "share"] = 0.0005
    assert plots.reach(bins) == pytest.approx((-0.3, 0.3))
