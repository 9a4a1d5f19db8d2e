"""The ranked curves of one model: what is drawn and said is what the tables hold."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import planted_heads as planted
import pytest

from rare_token_neurons.curve import heads
from rare_token_neurons.figures import axes, influence


PAPER = "paper's rule"


@pytest.fixture
def found():
    return planted.phases().set_index(["group", "sign", "rule"])


def test_by_hand_a_curve_stands_where_its_table_says():
    told = influence.by_hand(planted.curve(), planted.fit())
    assert told.index.tolist() == [1, 3, 10, 30, 100, 300, 1000]
    height = told["height above it (e-folds)"]
    assert height[[30, 100]].abs().max() < 1e-9 and height[300] < -1
    said = influence.of_mean(planted.curve(), planted.fit(head=planted.SHELF, delta=0.8))
    assert "over the head's 20 ranks is **+0.8" in said
    assert "The table says Δ = +0.800." in said and "in the geometric mean, 2.23 times what the line has" in said
    assert "over the head's 1 rank is" in influence.of_mean(planted.curve(), planted.fit(head=1))
    assert influence.of_mean(planted.curve(), planted.fit(head=0)).startswith("The law begins at rank 1")
    assert "cannot be tested" in influence.of_mean(planted.curve(), planted.missing(planted.fit()))


def test_the_fits_stand_side_by_side_and_the_papers_rule_is_one_row(found):
    told = influence.fits(found)
    assert told.loc["rare"].index.tolist() == ["fitted head", "fixed head", "paper's rule"]
    row = told.loc[("rare", "fitted head")]
    assert row["Δ (e-folds)"] == "0.80 [0.72, 0.88]" and row["head / law / decay (%)"] == "3.0 / 12.0 / 85.0"
    # at the next rank
    assert (row["head (neurons)"], row["cliff from rank"], row["law (ranks)"]) == (30, "21", "31 to 150")
    assert row["word"] == "plateau" and told.loc[("common", "fitted head"), "law (ranks)"] == "28 to 150"
    assert told.loc[("common", "fitted head"), "cliff from rank"] == "none"
    paper = told.loc[("rare", "paper's rule")]
    assert paper[["Δ (e-folds)", "word", "cliff from rank"]].tolist() == ["0.80", "", "none"]


def test_chances_at_their_floor_are_words(found):
    told = influence.chances(found)
    assert "paper's rule" not in told.index.get_level_values("rule")
    assert told.loc[("rare", "fitted head"), "as high: the law itself"] == "none of 200 null curves"
    assert told.loc[("common", "fitted head"), "as high: the law itself"] == "p = 0.90"
    assert told.loc[("rare", "fixed head"), "score"] == "+4.4"  # sqrt(30 / 2) 0.8 / 0.7


@pytest.mark.parametrize("word", [*heads.WORDS, ""])
def test_the_word_of_the_table_is_all_that_names_a_head(found, word):
    changed = found.copy()
    changed["word"] = word
    for said in (influence.of_heads(changed).splitlines()[0], influence.finding("Rare", changed.iloc[0])):
        assert (word or "cannot be tested") in said and not any(other in said for other in heads.WORDS if other != word)


def test_heads_are_said_with_their_numbers(found):
    rare, common = influence.of_heads(found).splitlines()
    assert rare.startswith("- **Rare tokens: plateau** (it stands above its law and is flatter). The head holds 30 "
                           "neurons, in the geometric mean at 2.23 times the line")
    assert "Δ = +0.80 e-folds (95 %: +0.72 to +0.88). Its score is 4.4; as high by chance" in rare
    assert "comes nearest: none of 200 null curves." in rare
    assert "Up to its cliff the curve falls" in rare and "Over it the curve falls" in common
    assert "in 97 % of the draws" in rare and "random numbers up to 60 % have one." in rare
    assert common.startswith("- **Common tokens: rounded**") and "p = 0.90" in common
    assert "there is no head" not in rare
    unsure = influence.of_heads(found.assign(head_low=0.0)).splitlines()[0]
    assert unsure.endswith("In some draws of documents the law begins at rank 1: there is no head, and Δ is 0.")
    said = influence.of_noise(found)
    assert "reliability of 0.80" in said and "2.0e-04 nats can be told" in said and "2,000 positions" in said


def test_titles_give_the_word_and_delta(found):
    delta = "\nΔ = +0.80 e-folds (+0.72 to +0.88)"
    assert influence.finding("Rare", found.iloc[0]) == f"Rare: plateau, 2.2 times its law{delta}"
    undecided = influence.finding("Rare", planted.fit(heads.WORDS[-1], p_lognormal=0.075))
    assert undecided == f"Rare: {heads.WORDS[-1]}, p = 0.075{delta}"
    held = influence.finding("Rare", planted.fit(heads.WORDS[-1], delta_low=-0.1))
    assert held.startswith(f"Rare: {heads.WORDS[-1]}, interval holds 0\n")
    assert influence.finding("Rare", None) == "Rare: cannot be tested"


def test_a_curve_has_its_own_legend_and_leaves_the_nulls_to_the_figures(ax, legend):
    influence.curve(ax, planted.curve(), planted.fit(), "rare", axes.COLORS["rare"])
    own = [text.get_text() for text in ax.get_legend().get_texts()]
    assert own == ["rare, 2,000 positions\n(band: 95 % over 300 documents)",
                   "line: the law, carried to rank 1 (κ = 0.70)"]
    rest = set(legend()) - set(own)
    assert rest == {"null: the law itself, 95 %", "null: lognormal, 95 %", "null: half-normal, 95 %"}


def test_signs_are_drawn_apart_and_said_where_they_cannot_be_tested(found):
    curves = pd.concat([planted.curve(sign=sign) for sign in ("pooled", "boost", "suppress")])
    figure, panels = axes.panels(1, 2)
    influence.sign_curve(panels[0], curves, found, "rare", "boost")
    influence.sign_curve(panels[1], curves, found, "common", "suppress")
    assert panels[0].get_title(loc="left").startswith("Rare, boost: plateau, ")
    assert panels[1].get_title(loc="left") == "Common, suppress: cannot be tested"
    assert "too few neurons" in panels[1].texts[0].get_text()
    plt.close(figure)
    told = influence.signs(found)
    assert told.loc[("rare", "boost")].tolist() == ["plateau", "+0.80 [+0.72, +0.88]", "+4.4",
                                                    "none of 200 null curves", "30", "1,000"]
    assert told.loc[("common", "suppress")].tolist() == ["cannot be tested", "", "", "", "", ""]
    one = found.drop(index=[("rare", "suppress", "fitted head")])
    for rows, said in ((found, "both kinds have"), (one, "only *boost* neurons have"),
                       (found.assign(word="outliers"), "neither kind has")):
        assert influence.of_signs(rows).startswith(f"On rare tokens **{said} a plateau**")


def prominence(verdict="not rejected", **contrast):
    rows = [{"group": "rare", "statistic": "ratio", "size": 10},
            {"group": "rare", "statistic": "law", "verdict": verdict},
            {"group": "rare", "statistic": "contrast", "value": 0.5, "low": 0.3, "high": 0.7, "p_laws": 1 / 201,
             "p_swap": 0.02} | contrast]
    return pd.DataFrame(rows).set_index(["group", "statistic"])


def told(found, verdict="not rejected", **changes):
    """What is said of plateau, power law and decay where the pooled curves have these values."""
    said = influence.seen(found.assign(**changes), prominence(verdict))
    return re.findall(r"\*\*(?:Plateau|power law|rapid decay): (\w+)\*\*", said)


def test_each_phase_is_seen_or_not_or_undecided(found):
    assert told(found) == ["yes", "yes", "yes"]
    assert [told(found, word=word)[0] for word in heads.WORDS] == ["yes", "undecided", "no", "undecided"]
    assert told(found, "rejected")[1] == "no" and told(found, "cannot tell it from a lognormal")[1] == "undecided"
    for share, answer in ((0.95, "yes"), (0.94, "undecided"), (0.06, "undecided"), (0.05, "no")):
        assert told(found, decay_draws=share)[2] == answer
    assert told(found, decay_null=1.0)[2] == "undecided"  # any sample has one
    assert influence.seen(found.assign(word=""), prominence()).startswith("The three phases cannot be tested")


def test_lead_and_summary_tell_the_numbers_of_their_tables(found):
    lead = pd.Series({"size": 27.0, "neurons": 1536.0, "value": 8.25, "low": 7.0, "high": 9.5, "null": 3.5,
                      "null_low": 3.25,
                      "null_high": 3.75, "p_half_normal": 1 / 1001, "matched": 2.5})
    said = influence.of_lead(lead)
    assert said.startswith("The rare group has 27 of 1,536 neurons (1.7 %, rounded up). Its influence on rare tokens is "
                           "**8.2 times** the median neuron's (95 %: 7.0 to 9.5)")
    assert "as much as here: none of 1,000 draws. For comparison" in said and said.endswith("have 2.5 times.")
    falling = np.geomspace(1, 1e-3, 1000)
    neurons = pd.concat([pd.DataFrame({"group": group, "neuron": range(1000), "mean_abs": values}) for group, values
                         in (("rare", falling), ("common", np.roll(falling, 5)))])
    said = influence.summary(found, prominence(), neurons, "mean_abs")
    for words in ("50 % are also among the 10 most influential for common ones",
                  "**3.0 / 12.0 / 85.0 %** for rare tokens",
                  "called *plateau*", "Its test: not rejected", "called *rounded*",
                  "by +0.50 e-folds (95 %: +0.30 to +0.70",
                  f"By the paper's own rule {found.loc[('rare', 'pooled', PAPER), 'head']} neurons stand above",
                  "samples of one law: none of 200 pairs", "swapped in documents: p = 0.020"):
        assert words in said
    assert "e-folds" not in influence.summary(found, prominence(value=np.nan), neurons, "mean_abs")


# ---- one neuron


def one_neuron():
    """Neuron 7 at four rare and two common positions; the model was run at the first and the last rare one."""
    return pd.DataFrame({
        "block": 0, "t": range(6), "group": ["rare"] * 4 + ["common"] * 2, "target": range(1, 7), "neuron": 7,
        "activation": 1.25, "reference": 0.5, "change": [0.4, -0.2, 0.6, 0.8, 0.1, -0.1],
        "loss_before": [5.0, np.nan, np.nan, 6.0, np.nan, np.nan],
        "loss_after": [5.4, np.nan, np.nan, 6.8, np.nan, np.nan]})


TOKENS = pd.DataFrame({"token": [" a", " b", " c", " d", " e", " f", " g"]})
BLOCKS = pd.DataFrame({"tokens": [list(range(7))]})


def test_the_places_of_one_neuron_stand_in_their_text():
    told = influence.places(influence.by_hand_at(one_neuron()), TOKENS, BLOCKS)
    assert told.index.tolist() == ["b", "e"] and told["the text that is read"].tolist() == ["… a", "… a b c d"]
    assert told["activation"].tolist() == [1.25, 1.25] and told["set to"].tolist() == [0.5, 0.5]


def test_by_hand_and_in_the_table_it_is_the_same_number_or_it_is_said_that_it_is_not():
    shown = influence.by_hand_at(one_neuron())
    before, after = shown[["loss_before", "loss_after"]].to_numpy().T
    told = influence.side_by_side(shown, TOKENS, before, after)
    assert told.loc["e"].tolist() == ["6.000", "6.800", "+0.800", "+0.800"]
    assert influence.of_hand(shown, before, after).startswith("**The same number**, to 0.001 nats, at each of the 2")
    assert "differ by 0.0100 nats" in influence.of_hand(shown, before, after + [0, 0.01])


def test_the_mean_over_all_positions_is_the_influence_of_the_table(ax):
    stored = pd.DataFrame({"group": ["rare"], "neuron": [7], "mean_abs": [0.5]})
    said = influence.of_one(one_neuron(), stored)
    assert "the loss rises at 75 % when neuron 7 is ablated" in said
    assert "mean change is +0.400 nats" in said and "is **0.500** nats. The table of all neurons has 0.500" in said
    influence.changes(ax, one_neuron())
    title = "Neuron 7 moves the loss of rare targets\n5.0 times as far as that of common ones"
    assert ax.get_title(loc="left") == title
    assert ax.lines[0].get_ydata().tolist() == [-0.2, 0.4, 0.6, 0.8]


def test_the_strongest_neurons_of_either_group_are_listed():
    rows = pd.DataFrame([{"group": group, "neuron": neuron, "mean_abs": 1 / (1 + neuron), "sem": 0.01, "positions": 100,
                          "mean": 0.1 if neuron else -0.1, "fallback": 0.0125 if group == "rare" else 0.005}
                         for group in ("common", "rare") for neuron in range(9)])
    told = influence.strongest(rows)
    assert told.index.tolist() == ["rare"] * 4 + ["common"] * 4 and told["neuron"].tolist() == [0, 1, 2, 3] * 2
    assert told["on average the loss"].tolist()[:2] == ["falls (suppress)", "rises (boost)"]
    said = influence.of_kernel(rows)
    assert said.startswith("Measured: 9 neurons at 200 positions. The exact sum was needed for 1.2 % of the pairs of a "
                           "rare")
    assert said.endswith("and for 0.5 % of those of a common one.")


def test_ranked_on_the_same_tokens_a_head_seems_larger():
    assert "seem 20.0 % more influential" in influence.of_same_tokens(planted.curve(), planted.fit())
    alike = planted.curve().assign(same_tokens=lambda rows: rows["influence"])
    assert "neither more nor less influential" in influence.of_same_tokens(alike, planted.fit())
