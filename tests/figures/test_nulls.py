"""The drawings and sentences of notebook 09 show what the tables say."""

import numpy as np
import pandas as pd
import pytest

from rare_token_neurons import files, paths
from rare_token_neurons.curve import heads as plateaus, stored
from rare_token_neurons.figures import nulls
from rare_token_neurons.statistics import claims, rankings
from rare_token_neurons.tables import robustness


def row(**values):
    return {"factor": "default", "setting": "rarest 50 %, mean", "statistic": "co-activation", "direction": "greater",
            "value": 0.2, "low": 0.1, "high": 0.3, "null": 0.0, "q": 0.004, "positions": 250, "word": "",
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


def test_a_head_of_the_grid_has_its_word_and_the_title_counts_the_cells(ax):
    table = pd.DataFrame([row(), row(statistic="head", word="plateau"), row(statistic="head", setting="a",
                                                                            verdict=claims.NOT),
                          row(statistic="head", setting="b", verdict=claims.UNTESTED, value=np.nan)])
    nulls.grid(ax, table)
    assert [text.get_text() for text in ax.texts] == ["+0.200**", "+0.200**\nplateau", "+0.200**", "250 positions"]
    assert nulls.kept(table) == "Reproduced in 2 of 3 testable cells (most often: head, 1 of 2)"
    assert nulls.kept(table.assign(verdict=claims.NOT)) == "Reproduced in 0 of 4 testable cells (none in any setting)"


def test_stars_follow_the_adjusted_p_value():
    assert [nulls.stars(q) for q in (0.005, 0.03, 0.2, np.nan)] == ["**", "*", "", ""]


def heads(**values):
    return pd.DataFrame({"null": ["lognormal", "law", "shuffled labels", "common, same loss"],
                         "delta": [1.5, 1.5, 1.2, 1.2],
                         "null_low": -1.0, "null_high": 1.0, "null_mean": 0.0, "p": [1 / 201, 0.02, 1 / 201, 0.4],
                         "p_floor": 1 / 201,
                         "positions": [900, 900, 250, 250], "note": "as hard"} | values)


def test_heights_lie_beside_their_nulls(ax):
    nulls.heights(ax, heads())
    assert [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"] == [1.5, 1.5, 1.2, 1.2]
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "lognormal\nnone of 200 curves", "the law itself\np = 0.020", "shuffled labels\nnone of 200 curves",
                                                                    "common, same loss\np = 0.40"]
    assert nulls.count(heads()) == "Higher than chance\nby 3 of 4 nulls"
    assert nulls.height(heads()) == "The head stands +1.50\ne-folds above its law"


@pytest.mark.parametrize("names, filled", [(nulls.FULL[:3], "lognormal"), (nulls.FULL, "the law itself"),
                                           (("shuffled labels", "common, same number", "common, same loss"),
                                            "shuffled labels")])
def test_every_null_of_a_panel_has_its_own_line(ax, names, filled, legend):
    ranks = np.arange(1, 101)
    parts = [pd.DataFrame({"null": name, "rank": ranks, "influence": 1 / ranks, "low": 0.5 / ranks, "high": 2 / ranks})
             for name in names]
    nulls.beside_nulls(ax, pd.concat(parts), pd.DataFrame({"null": names, "positions": 2_000}))
    assert set(legend()) == {f"{nulls.said(name)}, 95 %" for name in names} | {"rare (n = 2,000)"}
    assert [band.get_label() for band in ax.collections] == [f"{filled}, 95 %"]
    lines = [line for line in ax.lines if line.get_label().endswith("95 %")]
    assert len({str(line._unscaled_dash_pattern) for line in lines}) == len(lines) == len(names) - 1


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
    assert list(nulls.SHORT) == list(robustness.statistics(gated=False))


# ---- calibration


def told(**shelf):
    rows = [{"sample": "lognormal", "kind": "size", "raised": 0.04, "plateau": 0.01, "covered": 0.9, "late": np.nan},
            {"sample": "a law", "kind": "size", "raised": 0.06, "plateau": 0.02, "covered": 0.97, "late": 0.03},
            {"sample": "a shelf", "kind": "power", "raised": 0.9, "plateau": 0.8, "covered": 0.95, "late": 0.01}
            | shelf,
            {"sample": "rounded", "kind": "other", "raised": 0.0, "plateau": 0.0, "covered": 0.95, "late": np.nan}]
    return pd.concat([pd.DataFrame(rows).assign(head=head, runs=1000) for head in plateaus.BREAKS])


def apart():
    return pd.DataFrame([{"sample": name, "coupled": coupled, "runs": 1000, "apart": share} for name, share in
                         (("two samples of one law", 0.05), ("a shelf of 30 and a law", 0.7)) for coupled
                         in (0.0, 0.7)])


def test_the_calibration_is_said_with_its_worst_cases():
    fixed, fitted, contrasts = nulls.of_calibration(told(), apart()).splitlines()
    assert fixed.startswith("- **The fixed head**") and fitted.startswith("- **The fitted head, which decides**")
    assert "raised in at most 6.0% of 1,000 samples (a law; a test of 5% gives up to 6.4% in so many)" in fitted
    assert "a plateau in 80%" in fitted
    assert "a rounded head in 0.0%. The decay is taken for the law in at most 3.0%." in fitted
    assert "in 90% to 97%" in fitted
    assert "at most 5.0% of 1,000 pairs (two samples of one law); a shelf and a law in 70% to 70%" in contrasts


def test_the_calibration_is_shown_a_row_a_sample():
    shown = nulls.counts(told())
    assert shown.index.tolist() == [("size", "lognormal", 1000), ("size", "a law", 1000), ("power", "a shelf", 1000),
                                    ("other", "rounded", 1000)]
    assert shown[("fitted", "plateau")].tolist() == ["1.0", "2.0", "80.0", "0.0"]
    assert shown[("fixed", "late")].tolist() == ["", "3.0", "1.0", ""]
    assert nulls.pairs(apart()).loc["a shelf of 30 and a law"].tolist() == [70, 70]


def test_without_the_calibration_its_command_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    assert nulls.calibrated() == [None, None]
    files.write_table(tmp_path / "calibration.parquet", told())
    found = nulls.calibrated()
    assert len(found[0]) == 8 and "`python -m rare_token_neurons calibrate` makes them" in nulls.of_calibration(*found)


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
    assert not len(nulls.collected()) and nulls.of_seeds(nulls.collected()).count("not measured yet") == 3
    for seed in (1, 2):
        files.write_table(suites / f"seed{seed}.parquet", seed_table(seed, ("plateau" if seed == 1 else "", "rounded")))
    both = nulls.collected()
    rare = both[both["group"] == "rare"]
    assert sorted(both["seed"].unique()) == [1, 2]
    assert nulls.spread(rare).loc["kappa", ["mean", "min", "max"]].tolist() == [1.5, 1, 2]
    said = nulls.of_seeds(rare)
    assert said.startswith("Seed 0 is not measured yet; `make suite SEED=0 STEPS=1536` trains it")
    assert "data/cache/mini-pythia-seed0-steps1536" in said
    assert "first 1.7 % +0.50 and +1.00 e-folds, of the fitted head +0.20" in said
    assert said.endswith("are called: plateau (seed 1); no word, for want of the documents (seed 2).")
    assert nulls.of_lead(rare) == "mini-pythia, 2 training seeds:\ntop 1.7 % over median 30.0 to 30.0"
    assert nulls.of_words(rare) == "Rare: Δ from +0.50 to +1.00\n(plateau 1)"


def test_a_seeds_head_without_a_word_is_open(ax):
    nulls.seed_heights(ax, pd.concat([seed_table(1), seed_table(2, ("", "rounded"))]))
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
    made = nulls.collected()
    assert made["delta"].iloc[0] == pytest.approx(0, abs=0.02) and made["delta_low"].isna().all()
    assert (made["word"] == "").all()


# ---- in words


def test_the_head_is_set_beside_each_null():
    said = nulls.of_heads(heads())
    assert "stands +1.50 e-folds above its law" in said
    assert "by **3 of the 4 nulls**; not by: common, same loss." in said
    assert ("position by position Δ is +1.20. Loss-matched common positions: as hard; as high a head there: p = "
            "0.40.") in said
    assert said.endswith("As high a head comes from positions that are not rare: common, same loss.")
    assert nulls.of_heads(heads(p=1 / 201)).endswith("Positions that are not rare have no head as high.")
    assert nulls.of_heads(heads().iloc[:2]).endswith("**2 of the 2 nulls**.")
    assert "cannot be tested" in nulls.of_heads(heads().iloc[:0])


def test_promises_are_counted():
    rows = pd.DataFrame({"promise": ["a", "b", "c"], "kept": [10, 7, 5], "runs": 10, "wanted": [85, 85, 0],
                         "holds": [True, False, True]})
    assert nulls.of_promises(rows) == ("**1 of 2** promises hold, on 10 planted samples each; the test that errs most "
                                       "often answers rightly in 7 of them. Not kept: b, 7 of 10, wanted 85 in 100.")


def test_choices_are_counted_statistic_by_statistic():
    names = list(nulls.SHORT)
    cells = pd.DataFrame([row(statistic=name, word="plateau" if name == "head" else "", **values) for name in names
                          for values in (
        {}, {"factor": "rare_of", "setting": "input", "verdict": claims.NOT, "value": -0.1},
        {"factor": "halves", "setting": "1"}, {"factor": "counts", "setting": "text", "verdict": claims.UNTESTED})]
        + [row(factor="layer", setting="0", statistic=names[1], low=-0.8, high=1.2, verdict=claims.NOT)])
    said = nulls.of_choices(cells, pd.DataFrame({"layer": [0] * 12 + [1] * 12})).splitlines()
    assert said[0] == ("- **head**: reproduced by default; the same verdict in 1 of 2 other testable settings, on the "
                       "paper's side in 1; called plateau 2.")
    assert len(said) == 6 and "quarter of 12 sampled neurons" in said[-1] and "in 0 of 1 earlier layers" in said[-1]
    assert f"windows of {claims.WINDOW} tokens" in said[-1]
    assert "there the interval's half-width is 1.00 in the median, 0.10 by default" in said[-1]


def test_the_summary_takes_each_number_from_its_table():
    laws = pd.DataFrame({"verdict": ["rejected"], "alpha": [2.5], "p_fit": [0.01]})
    promises = pd.DataFrame({"promise": ["the middle of a planted power law is not rejected"], "kept": [93],
                             "runs": [100]})
    whole = pd.DataFrame({"score": list(rankings.SCORES), "side": "all", "k": 10, "relative": [1, 2, 3, 4],
                          "shared": [5, 6, 7, 8], "chance": 0.5, "group": 0.25, "others": 0.75}).set_index("score")
    cells = pd.DataFrame([row(), row(verdict=claims.NOT), row(verdict=claims.UNTESTED)])
    head = pd.Series({"word": "outliers", "value": 0.9, "low": 0.7, "high": 1.1, "p_law": 1 / 201,
                      "p_lognormal": 1 / 201,
                      "p_half_normal": 1 / 201, "p_floor": 1 / 201})
    said = nulls.summary(head, laws, promises, cells, whole)
    for words in ("called **outliers** (Δ = +0.90, 95 %: +0.70 to +1.10; as high by the null for which it is easiest: "
                  "none of 200 null curves)",
                  "rejected in 7 of 100 planted samples", "of 2 testable cells of the robustness grid 1 reproduce",
                  "and 1 of the 10 most influential neurons",
                  "2 among those with the largest change of KL", "3 for the entropy", "by size alone, 6 and 7)."):
        assert words in said
