"""The ranked curves of one model: what is drawn and said is what the tables hold."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import planted_heads as planted
import pytest

from rare_token_neurons.curve import heads
from rare_token_neurons.figures import axes, influence


@pytest.fixture
def found():
    return planted.phases().set_index(["group", "sign", "rule"])


def test_by_hand_a_curve_stands_where_its_table_says():
    told = influence.by_hand(planted.curve(), planted.fit())
    assert told.index.tolist() == [1, 3, 10, 30, 100, 300, 1000]
    assert told.loc[[30, 100], "delta (e-folds)"].abs().max() < 1e-9 and told.loc[300, "delta (e-folds)"] < -1
    said = influence.of_mean(planted.curve(), planted.fit(head=planted.SHELF, delta=0.8))
    assert "over the head's 20 ranks is **+0.8" in said and "the table says +0.800. So the head has 2.23 times" in said
    assert influence.of_mean(planted.curve(), planted.fit(head=0)).startswith("The law begins at rank 1")
    assert "cannot be tested" in influence.of_mean(planted.curve(), planted.missing(planted.fit()))


def test_the_fits_stand_side_by_side_and_the_papers_rule_is_one_row(found):
    told = influence.fits(found)
    assert told.loc["rare"].index.tolist() == ["fitted head", "fixed head", "paper's rule"]
    row = told.loc[("rare", "fitted head")]
    assert row["Δ (e-folds)"] == "0.80 [0.72, 0.88]" and row["head / law / decay (%)"] == "3.0 / 12.0 / 85.0"
    assert row["law (ranks)"] == "30 to 150" and row["cliff from rank"] == "20" and row["word"] == "plateau"
    assert told.loc[("common", "fitted head"), "cliff from rank"] == "none"
    assert told.loc[("rare", "paper's rule"), ["Δ (e-folds)", "word", "cliff from rank"]].tolist() == ["0.80", "",
                                                                                                       "none"]


def test_chances_at_their_floor_are_words(found):
    told = influence.chances(found)
    assert "paper's rule" not in told.index.get_level_values("rule")
    assert told.loc[("rare", "fitted head"), "as high: the law itself"] == "none of 200 null curves"
    assert told.loc[("common", "fitted head"), "as high: the law itself"] == "p = 0.90"
    assert told.loc[("rare", "fixed head"), "Δ of the law's samples, 95 %"] == "-0.50 to +0.45"


@pytest.mark.parametrize("word", [*heads.WORDS, ""])
def test_the_word_of_the_table_is_all_that_names_a_head(found, word):
    changed = found.copy()
    changed["word"] = word
    for said in (influence.of_heads(changed).splitlines()[0], influence.finding("Rare", changed.iloc[0])):
        assert (word or "cannot be tested") in said and not any(other in said for other in heads.WORDS if other != word)


def test_heads_are_said_with_their_numbers(found):
    rare, common = influence.of_heads(found).splitlines()
    assert rare.startswith("- **Rare tokens: plateau** (it stands above its law and is flatter). The head has 30 "
                           "neurons and Δ = +0.80")
    assert "(+0.72 to +0.88): 2.23 times what the law gives" in rare and "easiest: none of 200 null curves." in rare
    assert "in 97% of the draws" in rare and "in 60% of its curves." in rare
    assert common.startswith("- **Common tokens: rounded**") and "p = 0.90" in common
    assert "there is no head" not in rare
    unsure = influence.of_heads(found.assign(head_low=0.0)).splitlines()[0]
    assert unsure.endswith("In some draws of documents the law begins at rank 1: there is no head, and Δ is 0.")
    said = influence.of_noise(found)
    assert "reliability of the influence 0.80" in said and "2.0e-04 nats (2,000 positions" in said


def test_titles_give_the_word_and_delta(found):
    assert influence.finding("Rare", found.iloc[0]) == "Rare: plateau\nΔ = +0.80 e-folds (+0.72 to +0.88)"
    assert influence.finding("Rare", None) == "Rare: cannot be tested"


def test_a_curve_has_its_own_legend_and_leaves_the_nulls_to_the_figures(ax, legend):
    influence.curve(ax, planted.curve(), planted.fit(), "rare", axes.COLORS["rare"])
    own = [text.get_text() for text in ax.get_legend().get_texts()]
    assert own == ["rare (n = 2,000, 300 documents; 95 %)", "line: the law, carried to rank 1 (κ = 0.70)"]
    rest = set(legend()) - set(own)
    assert rest == {"null: the law itself, 95 %", "null: lognormal, 95 %", "null: half-normal, 95 %",
                    "ranked on the same tokens"}


def test_signs_are_drawn_apart_and_said_where_they_cannot_be_tested(found):
    curves = pd.concat([planted.curve(sign=sign) for sign in ("pooled", "boost", "suppress")])
    figure, panels = axes.panels(1, 2)
    influence.sign_curve(panels[0], curves, found, "rare", "boost")
    influence.sign_curve(panels[1], curves, found, "common", "suppress")
    assert panels[0].get_title(loc="left").startswith("Boost: plateau\n")
    assert panels[1].get_title(loc="left") == "Suppress: cannot be tested"
    assert "too few neurons" in panels[1].texts[0].get_text()
    plt.close(figure)
    lines = influence.of_signs(found).splitlines()
    assert lines[0].startswith("- **Rare tokens, boost: plateau**, Δ = +0.80 (+0.72 to +0.88), head of 30 of 1,000 "
                               "neurons; none of 200")
    assert lines[3] == "- **Common tokens, suppress: cannot be tested** (too few neurons or documents)."


def prominence(**contrast):
    rows = [{"group": "rare", "statistic": "law", "verdict": "not rejected"},
            {"group": "rare", "statistic": "contrast", "value": 0.5, "low": 0.3, "high": 0.7, "p_laws": 1 / 201,
             "p_swap": 0.02} | contrast]
    return pd.DataFrame(rows).set_index(["group", "statistic"])


def test_lead_and_summary_tell_the_numbers_of_their_tables(found):
    lead = pd.Series({"size": 26.0, "neurons": 1536.0, "value": 8.25, "low": 7.0, "high": 9.5, "null": 3.5,
                      "null_low": 3.25,
                      "null_high": 3.75, "p_half_normal": 1 / 1001, "matched": 2.5})
    said = influence.of_lead(lead, 0.0125)
    assert said.startswith("The rare group (26 of 1,536 neurons) has **8.2 times** (7.0 to 9.5) the influence of the "
                           "median neuron")
    assert ("as much: none of 1,000 draws), groups alike in activation scale and output-weight norm have 2.5. 1.2% of "
            "the (position") in said
    falling = np.geomspace(1, 1e-3, 1000)
    neurons = {"rare": falling, "common": np.roll(falling, 5)}
    said = influence.summary(found, prominence(), neurons, 10)
    for words in ("50% are also among the 10 most influential for common ones",
                  "**3.0 / 12.0 / 85.0 %** for rare tokens",
                  "called *plateau*", "the test of the law says: not rejected", "called *rounded*",
                  "common tokens is +0.50 e-folds (+0.30 to +0.70",
                  "two laws: none of 200 pairs", "swapped in documents: p = 0.020"):
        assert words in said
    assert "e-folds" not in influence.summary(found, prominence(value=np.nan), neurons, 10)
