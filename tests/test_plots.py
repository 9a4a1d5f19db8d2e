"""Figures: repeatable bytes, whole files only, fixed colours, nothing lost on log axes."""

import shutil
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.font_manager
import matplotlib.pyplot as plt
import numpy as np
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
    monkeypatch.setattr(fonts.ttflist[0], "name", "Arial")
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


def test_style_block_leaves_no_trace():
    before = dict(matplotlib.rcParams)
    with plots.style():
        assert matplotlib.rcParams["pdf.fonttype"] == 42
    assert dict(matplotlib.rcParams) == before
