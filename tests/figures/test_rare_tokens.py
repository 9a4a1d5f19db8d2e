"""Which tokens are rare: what is drawn and said is what the tables hold."""

import numpy as np
import pandas as pd
import pytest

from rare_token_neurons.figures import rare_tokens

TOKENS = pd.DataFrame({"token": [" the", " whale", "ing", " krill", " quoll"], "word": [True, True, False, True, True],
                       "count": [900, 60, 500, 30, 10], "count_text": [90, 1, 50, 9, 0],
                       "group": ["common", "common", "", "rare", "rare"]})
BLOCKS = pd.DataFrame({"tokens": [np.array([0, 1, 2, 3, 4])]})
POSITIONS = pd.DataFrame({"block": 0, "t": [2, 3, 0], "group": ["rare", "rare", "common"], "target": [3, 4, 1],
                          "document": [5, 6, 5], "half": ["A", "B", "A"]})


def test_a_position_stands_in_its_text_with_the_target_in_bold():
    said = rare_tokens.of_contexts(POSITIONS, TOKENS, BLOCKS).splitlines()
    assert said == ["- … the whaleing **krill**", "- … the whaleing krill **quoll**", "- … the **whale**"]
    assert rare_tokens.context(POSITIONS.iloc[1], TOKENS, BLOCKS, before=2)[0] == "… ing krill"


@pytest.mark.parametrize(("at", "words"), [
    (3, "has a count of 30 (uses per billion words of general English). The threshold is 30. The count lies at or "
        "below"),
    (1, "The count lies above it, so the token is **common**"), (2, "neither rare nor common")])
def test_one_token_is_judged_by_the_threshold(at, words):
    assert words in rare_tokens.of_rule(TOKENS.loc[at], 30, "wordfreq")


def test_a_position_is_judged_by_its_target_or_by_what_is_read():
    found = {rare_of: rare_tokens.deciding(POSITIONS.head(1), TOKENS, BLOCKS, rare_of)["token"] for rare_of in
             ("target", "input")}
    assert found == {"target": " krill", "input": "ing"}


def test_tables_have_words_for_columns():
    drawn = rare_tokens.some(TOKENS, "wordfreq", 0, n=3)
    assert list(drawn) == ["uses per billion words of general English", "uses in the text", "group"] and len(drawn) == 3
    assert list(rare_tokens.some(TOKENS, "text", 0, n=2)) == ["uses in the text", "group"]
    held = rare_tokens.held(POSITIONS)
    assert held.loc["rare", ("half A", "positions")] == held.loc["rare", ("half B", "documents")] == 1


def test_sentences_count_tokens_and_positions():
    said = rare_tokens.of_tokens(TOKENS, 50, 0)
    assert "5 tokens. 4 of them are words, and 4 of these have a count" in said
    assert "6.0 % of all tokens are rare" in said
    assert "too few to test any claim" in rare_tokens.of_positions(POSITIONS, BLOCKS)
    many = pd.concat([POSITIONS] * 600)
    assert "**1,200 rare positions from 2 documents**" in rare_tokens.of_positions(many, BLOCKS)
    assert "That is enough." in rare_tokens.of_positions(many, BLOCKS)
    assert "Here there are 1,200, 10 times as many" in rare_tokens.summary(TOKENS, many)


def test_the_figure_tells_shares_and_draws_the_correlation_that_it_names(ax):
    rare_tokens.zipf(ax, TOKENS, "wordfreq")
    assert ax.get_title(loc="left") == "50 % of the word tokens are rare,\nand only 4.0 % of the uses"
    ax.clear()
    rare_tokens.agreement(ax, TOKENS, "wordfreq")
    drawn = {tuple(line.get_xdata()): tuple(line.get_ydata()) for line in ax.lines if len(line.get_xdata())}
    assert drawn == {(900, 60): (90, 1), (30, 10): (9, 0)}  # every word that was counted, those not in the text too
    assert ax.get_title(loc="left") == "The text follows these counts loosely:\nrank correlation 0.80"
