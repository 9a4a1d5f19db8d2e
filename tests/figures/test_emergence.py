"""Drawing over training steps: what is drawn is what the tables hold."""

import numpy as np
import pandas as pd
import planted_heads as planted
import pytest
from matplotlib.colors import to_hex

from rare_token_neurons.figures import axes as plots, emergence

STEPS = [0, 16, 64, 256]


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


def test_a_curve_a_checkpoint_and_the_nulls_of_the_last(ax, legend):
    rows = pd.concat([planted.curve(planted.influence() * (step + 1), step=step) for step in STEPS])
    emergence.rank_curves(ax, rows, emergence.shade(STEPS), 2_000)
    assert ax.get_xlabel() == "rank of the neuron (rare: n = 2,000 positions)"
    curves = [line for line in ax.lines if not line.get_label().startswith("null") and line.get_color() != plots.GREY]
    assert [line.get_ydata()[-1] / planted.influence()[-1] for line in curves] == pytest.approx([1, 17, 65, 257])
    assert [line.get_linestyle() for line in curves] == ["--", "-", "-", "-"]
    labels = legend()
    assert labels[:2] == ["step 0", "step 256 (95 % over documents)"] and "null: the law itself, 95 %" in labels


def phases(words=("rounded", "rounded", "on the line", "plateau")):
    """The table `emergence_phases` of four steps: Delta rises from -0.4 by 0.4, words as given; common is rounded."""
    rows = []
    for place, (step, word) in enumerate(zip(STEPS, words)):
        for group, called, delta in (("rare", word, 0.4 * (place - 1)), ("common", "rounded", -0.4)):
            for rule in ("fitted head", "fixed head"):
                height = {"delta": delta, "delta_low": delta - 0.1, "delta_high": delta + 0.1,
                          "p_law": 1 / 201 if delta > 0.5 else 0.3}
                rows.append({"step": step, "group": group, "rule": rule} | planted.fit(called, **height) | {
                    "told_head": called == "plateau", "told_power_law": step > 16, "told_decay": True})
    return pd.DataFrame(rows)


def of(table, group, rule):
    return table[(table["group"] == group) & (table["rule"] == rule)]


def test_delta_has_a_marker_by_its_word_over_the_laws_samples(ax, legend):
    emergence.heights(ax, of(phases(), "rare", "fixed head"))
    drawn = {(line.get_marker(), to_hex(line.get_markerfacecolor())): list(line.get_xdata())
             for line in ax.lines if line.get_linestyle() == "None" and len(line.get_xdata())}
    assert drawn == {("v", "#ffffff"): [0, 16], ("s", "#ffffff"): [64], ("o", plots.COLORS["rare"]): [256]}
    labels = legend()
    assert labels == ["95 % of the law's\nown samples", "on the line", "plateau", "rounded"]  # those that occur


def test_what_is_not_told_is_open(ax):
    emergence.shares(ax, of(phases(), "rare", "fitted head"))
    (filled,) = lines(ax, "head")
    assert filled.get_ydata() == pytest.approx(np.full(4, 3.0))
    opened = [list(line.get_xdata()) for line in ax.lines if line.get_markerfacecolor() == "white"
              and len(line.get_xdata())]
    assert opened == [[0, 16, 64], [0, 16]]


def test_kappa_is_drawn_of_both_laws_and_a_row_has_its_legend_beside_it():
    _, panels = plots.panels(1, 3)
    for ax in panels[:2]:
        emergence.parameter(ax, phases(), "kappa")
        assert [line.get_label() for line in ax.lines] == ["rare targets", "common targets"]
    emergence.legend_beside(panels[2], panels[:2])
    assert [text.get_text() for text in panels[2].get_legend().get_texts()] == ["rare targets", "common targets"]


@pytest.mark.parametrize(("words", "said"), [
    (("rounded", "rounded", "on the line", "plateau"), "a plateau from step 256 on"),
    (("rounded", "plateau", "on the line", "on the line"), "a plateau at step 16, not at last"),
    (("rounded", "rounded", "on the line", "outliers"), "no plateau at any step"),
    (("", "", "", ""), "cannot be tested")])
def test_a_title_tells_when_there_is_a_plateau(words, said):
    rows = of(phases(words), "rare", "fixed head")
    assert emergence.finding(rows) == f"Rare: {said}\n(Δ = +0.80 at step 256)"
    assert emergence.finding(rows.assign(delta=np.nan)) == f"Rare: {said}"


def test_titles_tell_the_first_and_the_last_step():
    rows = of(phases(), "rare", "fixed head")
    assert emergence.of_shares(rows) == "Rare: the head ends at 3.0 %\nof the neurons (the paper: 1.7 %)"
    assert emergence.of_parameter(phases(), "kappa", "Slope κ") == "Slope κ: rare 0.70 to 0.70,\ncommon 0.70 to 0.70"
    ratio = pd.Series([2.0, 9.0, 5.0, 4.0], index=STEPS)
    assert emergence.of_ratio(ratio, "rare") == "Rare: the top 1.7 % lead more,\nfrom 2.0 to 4.0 times the median"
    assert emergence.of_best(ratio) == "Rare: 9.0 times the median at best\n(step 16), 4.0 at step 256"
    on_top = pd.Series([1, 2, 20, 27], index=STEPS)
    assert emergence.of_ancestors(on_top, 27, 1536) == "1 of 27 were on top at step 0\n(chance 0.5), 20 at step 64"
    said = emergence.of_parting(pd.Series([0.9, 0.5], index=[0, 256]))
    assert "by 0.90 at step 0 and by **0.50** at step 256. The lowest value is 0.50 (step 256)" in said


@pytest.mark.parametrize(("last", "way"), [(0.5, "part"), (0.99, "draw together"), (0.88, "keep their distance")])
def test_rankings_part_only_beyond_the_interval(last, way):
    rows = [{"first_group": "rare", "second_group": second, "first_step": step, "second_step": step,
             "correlation": value, "correlation_low": value - 0.02, "correlation_high": value + 0.02}
            for second, values in (("common", (0.9, last)), ("rare", (0.9, 0.8)))
            for step, value in zip((0, 256), values)]
    said = f"Rare and common rankings {way}:\n0.90 at step 0, {last:.2f} at 256 (ceiling 0.80)"
    assert emergence.of_agreement(pd.DataFrame(rows)) == said


def test_the_last_two_checkpoints_are_beside_the_last_one_with_itself():
    assert emergence.of_stability(rankings(), "correlation", "Ranking") == "Ranking: 0.73 alike\n(with itself: 0.83)"


def test_the_middle_of_the_ranking_is_followed():
    curves = pd.concat([planted.curve(np.linspace(2, 0, 1000) * size, step=step)
                        for step, size in zip(STEPS, (3, 1, 2, 4))])
    said = emergence.of_course(curves)
    assert "of 3.0030 nats at step 0. It falls to 1.0010 at step 16. At step 256 it has 4.0040." in said
    assert "falls" not in emergence.of_course(curves[curves["step"] != 0])


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


# ---- in words


def test_the_course_has_a_row_a_step_with_the_words_of_the_table():
    told = emergence.course(phases())
    assert told.index.tolist() == STEPS
    assert told["rare", "word"].tolist() == ["rounded", "rounded", "on the line", "plateau"]
    assert told["rare", "Δ (e-folds)"].iloc[-1] == "+0.80 [+0.70, +0.90]" and told["common", "word"].eq("rounded").all()
    assert told["rare", "as high by chance"].tolist() == ["p = 0.30"] * 3 + ["none of 200 null curves"]


def test_a_phase_is_told_first_and_since():
    when = emergence.when_told(phases())
    assert when.loc[("fixed head", "rare", "plateau")].tolist() == [256, 256]
    assert when.loc[("fitted head", "rare", "power law")].tolist() == [64, 64]
    assert when.loc[("fixed head", "rare", "decay")].tolist() == [0, 0]
    assert when.loc[("fixed head", "common", "plateau")].isna().all()


def statistics(**gain):
    rows = [{"part": "first", "step": 0, "value": -0.4, "word": "rounded"},
            {"part": "last", "step": 256, "value": 0.8, "word": "plateau"},
            {"part": "gain", "value": 1.2, "low": 1.0, "high": 1.4, "word": "", "p_laws": 1 / 201, "null_sd": 0.25}
            | gain]
    table = pd.concat([pd.DataFrame(rows).assign(group=group, rule="fixed head", statistic="delta") for group
                       in ("rare", "common")]
                      + [pd.DataFrame([{"part": "gain", "group": "rare", "rule": "", "statistic": "ratio",
                                        "value": 5.0, "low": 4.0,
                                        "high": 6.0}])])
    return table.astype({"step": "Int64"}).set_index(["group", "rule", "statistic", "part"]).sort_index()


def test_the_gain_is_said_beside_two_laws():
    said = emergence.of_gain(statistics()).splitlines()
    assert len(said) == 2 and said[0] == (
        "- **Rare targets**: Δ is -0.40 (rounded) at step 0 and +0.80 (plateau) at step 256. The gain is **+1.20** "
        "e-folds (95 %: +1.00 to +1.40). Two laws alone differ with a standard deviation of 0.25. As much between two "
        "laws: none of 200 pairs.")
    assert "As much between two laws: p = 0.20" in emergence.of_gain(statistics(p_laws=0.2))


def test_the_rows_that_are_judged_have_words_for_columns():
    table = statistics().assign(p_law=0.5, positions=2_000, documents=300)
    made = emergence.judged(table)
    assert made["step"].tolist() == ["0", "256", ""] and made.loc["gain", "Δ (e-folds)"] == "+1.20 [+1.00, +1.40]"
    assert made["as much between two laws"].tolist() == ["", "", "0.005"]


@pytest.mark.parametrize("low, high, way", [(1.0, 1.4, "rises"), (-1.4, -1.0, "sinks"),
                                            (-1.0, 1.0, "neither rises nor sinks")])
def test_the_summary_takes_each_number_from_its_table(low, high, way):
    rare = pd.DataFrame({"ratio": [2.0, 9.0], "ranked": [4.0, 4.0]}, index=[0, 256])
    said = emergence.summary(phases(), statistics(low=low, high=high), rare)
    for words in ("3.0 / 12.0 / 85.0 % at step 0 (the head: *rounded*)", "at step 256 (the head: *plateau*)",
                  f"their law *{way}", "+1.20 e-folds",
                  "grows 5.0 times (95 %: 4.0 to 6.0), to 9.0. Ranking half-normal numbers alone gives 4.0"):
        assert words in said
