"""The drawings and sentences of notebook 09 show what the tables say."""

import numpy as np
import pandas as pd
import pytest

from rare_token_neurons import files, paths
from rare_token_neurons.curve import heads as plateaus
from rare_token_neurons.figures import nulls
from rare_token_neurons.statistics import rankings


def test_drawn_numbers_have_their_head_below_their_law_and_a_planted_shelf_above(ax):
    ranked = np.sort(np.random.default_rng(0).lognormal(size=2048))[::-1]
    nulls.drawn(ax, ranked)
    assert ax.get_title(loc="left").endswith(f"{abs(plateaus.find(ranked, 'fixed').delta[0]):.2f} e-folds below its "
                                             f"law")
    curve, line = ax.lines
    assert curve.get_ydata()[0] < line.get_ydata()[0] and line.get_xdata()[0] == 1  # the law is carried to rank 1
    shelf = np.where(np.arange(2048) < plateaus.head_size(2048), 3 * ranked, ranked)
    ax.clear()
    nulls.drawn(ax, shelf)
    assert ax.get_title(loc="left").endswith("above its law")


def heads(**values):
    return pd.DataFrame({"null": ["lognormal", "law", "shuffled labels", "common, same loss"],
                         "delta": [1.5, 1.5, 1.2, 1.2],
                         "score": [7.5, 7.5, 6.0, 0.5], "null_low": -1.0, "null_high": 1.0, "null_median": 0.0,
                         "p": [1 / 201, 0.02, 1 / 201, 0.4],
                         "p_floor": 1 / 201,
                         "positions": [900, 900, 250, 250], "note": "as hard"} | values)


def test_scores_lie_beside_their_nulls(ax):
    nulls.by_null(ax, heads())
    assert [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"] == [7.5, 7.5, 6.0, 0.5]
    assert ax.get_xlabel().startswith("score of the head")  # of which p is the chance
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "lognormal\nnone of 200 curves", "the law itself\np = 0.020", "shuffled labels\nnone of 200 curves",
                                                                    "common, same loss\np = 0.40"]
    assert nulls.finding(heads()) == "The head stands +1.50 e-folds above its law: more than chance by 3 of 4 nulls"


def test_each_null_has_its_own_place_and_all_places_the_same_ends():
    ranks = np.arange(1, 101)
    bands = pd.concat([pd.DataFrame({"null": name, "rank": ranks, "influence": 1 / ranks, "low": 0.5 / ranks,
                                     "high": 2 / ranks})
                       for name in heads()["null"]])
    figure, places = nulls.frames(heads())
    assert list(places) == ["scores", *heads()["null"]]
    limits = nulls.ends(bands)
    for row in heads().to_dict("records"):
        nulls.beside_null(places[row["null"]], bands, row, limits)
    nulls.finish(figure, places, heads())
    assert limits["xlim"] == (1, 100) and limits["ylim"][0] < 0.01 and limits["ylim"][1] > 2
    assert {places[name].get_ylim() for name in heads()["null"]} == {limits["ylim"]}
    titles = [places[name].get_title(loc="left") for name in heads()["null"]]
    assert titles == ["lognormal:\nhigher", "the law itself:\nhigher", "shuffled labels:\nhigher",
                      "common, same loss:\nnot higher"]
    assert [bool(places[name].get_xlabel()) for name in heads()["null"]] == [False, True, True, True]
    assert figure.get_suptitle() == nulls.finding(heads())


def test_nulls_and_laws_are_shown_in_words():
    shown = nulls.listed(heads())
    assert shown.index.tolist() == ["lognormal", "the law itself", "shuffled labels", "common, same loss"]
    assert shown["5 % to 95 %"].tolist() == ["-1.0 to +1.0"] * 4 and shown["its score"].tolist() == [7.5, 7.5, 6.0, 0.5]
    assert shown["as high by chance"].tolist()[:2] == ["none of 200 curves", "p = 0.020"]
    laws = pd.DataFrame({"group": "rare", "part": ["middle", "upper tail"], "n": [600, 900], "alpha": 2.799,
                         "low": 0.00632, "high": [0.02301, np.nan], "p_fit": 0.069, "ratio": -0.59,
                         "verdict": ["rejected", "not rejected"]})
    shown = nulls.tests(laws)
    assert shown["to (nats)"].tolist() == ["0.023", "the end"] and shown["from (nats)"].tolist() == ["0.0063"] * 2
    assert nulls.of_middle(laws) == "Rare targets: the middle\nis rejected as a power law"
    assert nulls.of_middle(laws.assign(verdict="cannot be tested (few)")).endswith("cannot be tested (few)")


def test_a_true_law_runs_through_its_neurons(ax):
    values = np.random.default_rng(0).random(2000) ** -0.5  # P(X > x) = x^-2
    found = {"part": "upper tail", "alpha": 3.0, "low": 1.0, "high": np.nan, "n": 2000, "verdict": "not rejected"}
    tests = pd.DataFrame([found])
    nulls.law(ax, values, tests, "black")
    line = ax.lines[1]
    x, y = line.get_xdata(), line.get_ydata()
    assert y == pytest.approx(x**-2.0, rel=1e-6) and "not rejected" in line.get_label()


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
    assert fixed.startswith("- **The fixed head.**") and fitted.startswith("- **The fitted head, which decides.**")
    assert "raised in at most 6.0 % of 1,000 samples (a law). A test of 5 % gives up to 6.4 % in so many." in fitted
    assert "a plateau in 80 %" in fitted
    assert "A rounded head is called one in 0.0 %. The decay is taken for the law in at most 3.0 %." in fitted
    assert "in 90 % to 97 %" in fitted
    assert "at most 5.0 % of 1,000 pairs (two samples of one law)." in contrasts
    assert "A shelf and a law are told apart in 70 % to 70 %." in contrasts


def test_of_the_calibration_the_samples_that_matter_are_shown():
    shown = nulls.counts(told(raised=0.9))
    assert shown.index.tolist() == ["a law", "lognormal", "a shelf", "rounded"]  # of size the worst first
    assert shown["called raised (%)"].tolist() == [6, 4, 90, 0] and (shown["samples"] == 1000).all()
    assert nulls.pairs(apart()).loc["a shelf of 30 and a law"].tolist() == [70, 70]
    assert nulls.pairs(apart()).columns[1] == "told apart (%), ranks coupled by 0.7"


def test_without_the_calibration_its_command_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    assert nulls.calibrated() == [None, None]
    files.write_table(tmp_path / "calibration.parquet", told())
    found = nulls.calibrated()
    assert len(found[0]) == 8 and "`python -m rare_token_neurons calibrate` makes them" in nulls.of_calibration(*found)


# ---- in words


def test_the_head_is_set_beside_each_null():
    said = nulls.of_heads(heads())
    assert "At all positions the head stands +1.50 e-folds above its law" in said
    assert "in **3 of the 4 nulls**, but not in: common, same loss." in said
    assert "smaller part of the text Δ is +1.20." in said
    assert "same loss: as hard. As high a head there: p = 0.40." in said
    assert said.endswith("So positions that are not rare have as high a head: common, same loss.")
    assert nulls.of_heads(heads(p=1 / 201)).endswith("So positions that are not rare have no head as high.")
    assert nulls.of_heads(heads().iloc[:2]).endswith("**2 of the 2 nulls**.")
    assert "cannot be tested" in nulls.of_heads(heads().iloc[:0])


def test_promises_are_counted():
    rows = pd.DataFrame({"promise": ["a", "b", "c"], "kept": [10, 7, 5], "runs": 10, "wanted": [85, 85, 0],
                         "holds": [True, False, True]})
    assert nulls.of_promises(rows) == (
        "**1 of 2** promises hold. Each is tried on 10 planted samples. The test that errs most often answers rightly "
        "in 7 of them. Not kept: b, 7 of 10, wanted 85 %.")
    assert nulls.answers(rows).index.tolist() == ["a", "b"]  # of c nothing was promised


def test_the_summary_takes_each_number_from_its_table():
    laws = pd.DataFrame({"verdict": ["rejected"], "alpha": [2.5], "p_fit": [0.01]})
    promises = pd.DataFrame({"promise": ["the middle of a planted power law is not rejected"], "kept": [93],
                             "runs": [100]})
    head = pd.Series({"word": "outliers", "value": 0.9, "low": 0.7, "high": 1.1, "p_law": 1 / 201,
                      "p_lognormal": 1 / 201, "p_half_normal": 1 / 201, "p_floor": 1 / 201})
    said = nulls.summary(head, laws, promises)
    for words in ("called **outliers**. It stands +0.90 e-folds above its law (95 %: +0.70 to +1.10).",
                  "as high a head is: none of 200 null curves.", "**rejected** (α = 2.50, goodness of fit p = 0.010)",
                  "rejects a true power law in 7 of 100 planted samples"):
        assert words in said


@pytest.mark.parametrize("score", rankings.SCORES)
def test_a_title_counts_the_dots_beyond_the_dotted_lines(ax, score):
    rng, n = np.random.default_rng(0), 300
    table = pd.DataFrame({"influence": np.sort(rng.exponential(size=n))[::-1] + 0.1, "rare": np.arange(n) % 2 * (np.arange(n) < 60) > 0,
                          "side": rng.choice(rankings.SIDES, n)} | {one: rng.normal(size=n) for one in rankings.SCORES})
    nulls.scores(ax, table, score)
    cut = max(line.get_ydata()[0] for line in ax.lines)
    dots = np.concatenate([dots.get_offsets()[:, 1] for dots in ax.collections if "rare group" in dots.get_label()])
    counted = (dots >= cut).sum() + (0 if score.endswith("share") else (dots <= -cut).sum())
    found = rankings.overlaps(table).query("side == 'all'").set_index("score", drop=False).loc[score]
    assert nulls.of_score(found).startswith(f"{counted} of 30 ")
