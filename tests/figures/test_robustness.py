"""The drawings and sentences of notebook 12 show what the tables say."""

import numpy as np
import pandas as pd
import pytest

from rare_token_neurons import files, paths
from rare_token_neurons.curve import stored
from rare_token_neurons.figures import axes, robustness
from rare_token_neurons.statistics import claims
from rare_token_neurons.tables import robustness as tables


def row(**values):
    return {"factor": "default", "setting": "rarest 50 %, mean", "statistic": "co-activation", "direction": "greater",
            "value": 0.2, "low": 0.1, "high": 0.3, "null": 0.0, "positions": 250, "word": "",
            "verdict": claims.REPRODUCED} | values


def test_the_grid_frames_what_is_reproduced_and_counts_where_it_cannot_say(ax):
    table = pd.DataFrame([row(), row(factor="rare_of", setting="input", verdict=claims.NOT, value=-0.05),
                          row(factor="rarest 5 %", setting="zero", verdict=claims.UNTESTED, value=np.nan, positions=34),
                          row(statistic=robustness.LEAN)])
    robustness.grid(ax, table)
    assert [text.get_text() for text in ax.texts] == ["+0.20", "-0.05", "34 positions"]  # the lean is no claim
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["default: rarest 50 %, mean", "rare: the token that is read", "rarest 5 %, zero"]
    frames = [patch for patch in ax.patches if not patch.get_fill()]
    assert len(frames) == 1 and len(ax.patches) == 4
    warm, cold = [patch.get_facecolor() for patch in ax.patches if patch.get_fill()][:2]
    assert warm[0] > warm[2] and cold[0] < cold[2]  # red on the paper's side
    assert [label.get_text() for label in ax.get_xticklabels()] == list(robustness.SHORT.values())


def test_a_head_of_the_grid_has_its_word_and_the_title_counts_the_cells(ax):
    table = pd.DataFrame([row(), row(statistic="head", word="plateau", verdict=claims.PARTLY),
                          row(statistic="head", setting="a", verdict=claims.NOT),
                          row(statistic="head", setting="b", verdict=claims.UNTESTED, value=np.nan)])
    robustness.grid(ax, table)
    assert [text.get_text() for text in ax.texts] == ["+0.20", "+0.20\nplateau", "+0.20", "250 positions"]
    assert robustness.kept(table) == "Reproduced in 1 of 3 testable cells, partly in 1"
    assert robustness.kept(pd.concat([table, table.assign(statistic=robustness.LEAN)])) == robustness.kept(table)
    assert robustness.tally(table).loc["head"].tolist() == [0, 1, 1, 1]
    assert robustness.tally(table).loc[robustness.LEAN].tolist() == [0, 0, 0, 0]


def test_the_lean_stands_in_the_rows_of_the_grid(ax):
    table = pd.DataFrame([row(), row(statistic=robustness.LEAN, value=0.2),
                          row(factor="rare_of", setting="input", statistic=robustness.LEAN, value=0.1),
                          row(factor="rarest 5 %", setting="zero", statistic=robustness.LEAN, verdict=claims.UNTESTED)])
    robustness.leans(ax, table)
    dots = ax.containers[0].lines[0]
    assert dots.get_xdata().tolist() == [0.2, 0.1] and dots.get_ydata().tolist() == [0, 1]
    assert ax.get_ylim() == (2.5, -0.5)


def test_all_marks_of_the_grid_are_explained():
    figure, (ax, right) = axes.panels(1, 2)
    robustness.explain(figure, [ax, right])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "reproduced", "partly", "cannot be tested (fewer than 100 positions)"]
    assert "half-widths" in figure.axes[-1].get_xlabel()


def test_the_last_layer_stands_behind_the_earlier_ones(ax):
    table = pd.DataFrame([row(statistic=robustness.LEAN, value=0.3)] + [
        row(factor="layer", setting=str(layer), statistic=robustness.LEAN, verdict=verdict)
        for layer, verdict in enumerate((claims.NOT, claims.REPRODUCED))])
    robustness.layers(ax, table)
    deep, last = (container.lines[0] for container in ax.containers)
    assert deep.get_xdata().tolist() == [1, 2]
    assert (last.get_xdata().tolist(), last.get_ydata().tolist()) == ([3], [0.3])
    assert ax.get_xlabel().startswith("layer, 1 to 3")
    assert ax.get_title(loc="left").startswith("In 1 of 2 earlier layers")


def test_the_grid_has_a_name_for_every_statistic():
    assert {*robustness.SHORT, robustness.LEAN} == set(tables.statistics(gated=False))


def test_choices_are_counted_statistic_by_statistic():
    names = [*robustness.SHORT, robustness.LEAN]
    cells = pd.DataFrame([row(statistic=name, word="plateau" if name == "head" else "", **values) for name in names
                          for values in (
        {}, {"factor": "rare_of", "setting": "input", "verdict": claims.NOT, "value": -0.1},
        {"factor": "halves", "setting": "1"}, {"factor": "counts", "setting": "text", "verdict": claims.UNTESTED})]
        + [row(factor="layer", setting="0", statistic=robustness.LEAN, low=-0.8, high=1.2, verdict=claims.NOT)])
    said = robustness.of_choices(cells, pd.DataFrame({"layer": [0] * 12 + [1] * 12})).splitlines()
    assert said[0] == ("- **head**: reproduced by default. Other testable settings: 2, with the same verdict: 1, on "
                       "the paper's side: 1 (called plateau 2).")
    assert len(said) == 6 and "quarter of 12 sampled neurons" in said[-1] and "in none of 1 earlier layers" in said[-1]
    assert f"windows of {claims.WINDOW} tokens" in said[-1]
    assert "half of one is 1.00 in the median, by default 0.10" in said[-1]


def test_the_summary_counts_cells_and_names_what_holds_most_and_least_often():
    cells = pd.DataFrame([row(), row(verdict=claims.PARTLY), row(statistic="head", verdict=claims.NOT),
                          row(statistic="head", verdict=claims.UNTESTED), row(statistic=robustness.LEAN)])
    said = robustness.summary(cells)
    assert "Here 3 cells of the grid can be tested" in said and "calls 1 of them reproduced and 1 partly" in said
    assert "is co-activation (100 %" in said and "least often is head (0 %)" in said


# ---- training seeds


def seed_table(seed, words=("plateau", "rounded")):
    made = pd.DataFrame({"seed": seed, "group": ["rare", "common"], "delta": [0.5 * seed, -0.5], "kappa": float(seed),
                         "ratio": 30.0,
                         "fitted_delta": 0.2, "word": words, "delta_low": [0.4 * seed, -0.6],
                         "delta_high": [0.6 * seed, -0.4]})
    return made.assign(**{name: 1 for name in stored.KEPT if name not in made})


@pytest.fixture
def suites(tmp_path, monkeypatch):
    """The folder of the seeds' tables, empty."""
    monkeypatch.setattr(paths, "MINI_PYTHIA_SEEDS", tmp_path)
    return tmp_path


def test_seeds_are_collected_and_said_with_what_is_missing(suites):
    assert not len(robustness.collected())
    assert robustness.of_seeds(robustness.collected()).count("not measured yet") == 3
    for seed in (1, 2):
        files.write_table(suites / f"seed{seed}.parquet", seed_table(seed, ("plateau" if seed == 1 else "", "rounded")))
    both = robustness.collected()
    rare = both[both["group"] == "rare"]
    assert sorted(both["seed"].unique()) == [1, 2]
    assert robustness.spread(rare).loc["kappa", ["mean", "min", "max"]].tolist() == [1.5, 1, 2]
    said = robustness.of_seeds(rare)
    assert said.startswith("Seed 0 is not measured yet; `make suite SEED=0 STEPS=1536` trains it")
    assert "data/cache/mini-pythia-seed0-steps1536" in said
    assert "first 1.7 % is +0.50 to +1.00 e-folds, that of the fitted head +0.20 to" in said
    assert said.endswith("are called: plateau (seed 1).")
    assert robustness.of_seeds(rare.assign(word="")).endswith("No head has a word, for want of the documents.")
    assert robustness.of_lead(rare) == "mini-pythia, 2 training seeds:\ntop 1.7 % over median 30.0 to 30.0"
    assert robustness.of_heights(rare) == "Rare targets: Δ of the first 1.7 %\nis +0.50 to +1.00 (plateau 1)"


def test_a_seeds_head_without_a_word_is_open(ax):
    robustness.seed_heights(ax, pd.concat([seed_table(1), seed_table(2, ("", "rounded"))]))
    dots = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata())]
    drawn = {(round(float(dot.get_xdata()[0]), 2), float(dot.get_ydata()[0])): dot.get_markerfacecolor() != "white"
             for dot in dots}
    assert drawn == {(0.12, -0.5): True, (1.12, -0.5): True, (-0.12, 0.5): True, (0.88, 1.0): False}
    assert [0.4, 0.6] in [list(line.get_ydata()) for line in ax.lines]  # seed 1's interval
    assert [label.get_text() for label in ax.get_xticklabels()] == ["seed 1", "seed 2"]


def test_a_seeds_curve_without_documents_is_completed(suites):
    ranks = np.unique(np.geomspace(1, 1536, 100).round().astype(int))
    curve = {"rank": ranks, "influence": ranks**-0.7, "low": 0.9 * ranks**-0.7, "high": 1.1 * ranks**-0.7}
    bare = pd.DataFrame(curve | {"seed": 0, "steps": 1536, "group": "rare", "neurons": 1536, "ratio": 9.0,
                                 "positions": 9, "documents": 9})
    files.write_table(suites / "seed0.parquet", bare)
    made = robustness.collected()
    assert made["delta"].iloc[0] == pytest.approx(0, abs=0.02) and made["delta_low"].isna().all()
    assert (made["word"] == "").all()
