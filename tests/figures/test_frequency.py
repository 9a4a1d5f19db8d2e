"""The drawings and sentences of notebook 13 show what the tables say."""

import numpy as np
import pandas as pd
import pytest

from rare_token_neurons.figures import nulls as frequency
from rare_token_neurons.statistics import rankings


def overlap():
    """Of four scores, boost and suppress neurons together and apart."""
    scores = {"score": list(rankings.SCORES), "k": 10, "relative": [1, 2, 3, 4], "shared": [5, 6, 7, 8], "chance": 0.5,
              "p": 0.01, "group": 0.25, "others": 0.004}
    return pd.concat([pd.DataFrame(scores).assign(side=side) for side in ("all", *rankings.SIDES)])


def test_changes_are_drawn_per_nat_of_influence_and_shares_as_they_are(ax):
    influence = np.geomspace(1e-4, 1, 40)
    table = pd.DataFrame({"influence": influence, "kl": -0.2 * influence, "unigram_share": 0.5, "side": "boost",
                          "rare": influence > 0.1})
    for score, value in (("kl", -0.2), ("unigram_share", 0.5)):
        ax.clear()
        frequency.scores(ax, table, score)
        drawn = np.concatenate([np.asarray(dots.get_offsets())[:, 1] for dots in ax.collections])
        np.testing.assert_allclose(drawn, np.full(39, value))  # less the weakest 2 %
    assert table["kl"].min() == pytest.approx(-0.2)  # the table itself is left as it is


def test_only_the_rare_group_is_coloured(ax):
    influence = np.geomspace(1e-4, 1, 40)
    table = pd.DataFrame({"influence": influence, "unigram_share": 0.5, "side": "boost", "rare": influence > 0.1})
    frequency.scores(ax, table, "unigram_share")
    labels = [dots.get_label() for dots in ax.collections if not dots.get_label().startswith("_")]
    assert labels == [f"boost, rare group (n = {sum(influence > 0.1)})", "suppress, rare group (n = 0)"]


def test_titles_table_and_sentences_take_each_number_from_the_overlaps():
    row = overlap().iloc[0]
    assert frequency.of_score(row) == "1 of 10 act through\ntoken frequency (chance 0.5)"
    shown = frequency.by_score(overlap())
    assert shown.index[0] == "share through the unigram direction" and shown["of the rare group"].tolist() == [1, 2, 3, 4]
    assert shown["median, the others"].tolist() == ["0.004"] * 4
    said = frequency.of_sides(overlap())
    assert "1 of the rare group's 10 boost neurons (chance 0.5) and 1 of the rare group's 10 suppress neurons" in said
    said = frequency.of_frequency(overlap())
    for words in ("**1 of the 10** neurons of the rare group", "Chance gives 0.5.", "that share is 25 % of their effect",
                  "of the other neurons it is 0.4 %", "influence 2 of 10 stand out, by that of the entropy 3",
                  "In nats it would be 6 and 7, by size alone"):
        assert words in said
