"""Drawings and sentences of notebook 08 show what the tables say."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from rare_token_neurons.figures import axes as plots, modules


@pytest.fixture
def ax():
    figure, axes = plots.panels()
    yield axes
    plt.close(figure)


def test_the_group_is_the_top_of_half_a_for_rare_targets(ax):
    rare, common = np.geomspace(1, 1e-3, 60), np.geomspace(1e-3, 1, 60)
    rows = pd.concat([pd.DataFrame({"neuron": range(60), "group": name, "mean_abs_a": a, "mean_abs_b": b})
                      for name, a, b in (("rare", rare, rare * 0.9), ("common", common, common * 0.9))])
    modules.rankings(ax, rows.sample(frac=1, random_state=0), 3)
    group = ax.lines[-1]
    assert group.get_xdata() == pytest.approx(rare[:3]) and group.get_ydata() == pytest.approx(0.9 * common[:3])
    assert group.get_label() == "of these the rare group (n = 3)"


def test_communities_are_framed_largest_first(ax):
    pairs = [(i, j) for i in range(3) for j in range(3)]
    rows = pd.DataFrame(pairs, columns=["i", "j"]).assign(correlation=lambda one: np.where(one["i"] == one["j"], 1.0, 0.2),
                                                          community=lambda one: np.where(one["i"] == 1, 2, 1))
    modules.communities(ax, rows)
    assert [(line.get_xdata()[0], line.get_xdata()[1]) for line in ax.lines] == [(0, 2), (2, 3)]


def test_sentences_take_each_number_from_its_table():
    route = {"heads": 9, "tokens": 2000, "rare_positions": 50, "common_positions": 60, "documents": 40, "leaning": 1,
             "correlation": 0.9, "low": 0.8, "high": 0.95, "null": 0.7, "null_low": 0.6, "null_high": 0.75, "p": 0.5}
    said = modules.of_heads(route)
    assert "9 heads was ablated on 2,000 tokens: 50 rare and 60 common targets in 40 documents" in said
    assert "**0.90** (95 % over documents 0.80 to 0.95; shuffled labels 0.60 to 0.75, p = 0.50" in said
    assert said.endswith(": 1.")
    module = {"value": 0.1, "random": 0.05, "matched": 0.06, "p_random": 0.01, "p_matched": np.nan}
    group = pd.DataFrame({"second": ["rare", "common"], "k": 10, "shared": [8, 4]}).set_index("second")
    whole = {"joint": 0.5, "ratio": 1.5, "ratio_low": 1.2, "ratio_high": 1.8}
    said = modules.summary(module, group, 200, route, whole)
    for words in ("**0.100** against 0.050 (p = 0.010) for random and 0.060 (no p value) for matched groups",
                  "**4 of 10** top neurons (chance 0.5; rare words on two halves of the text 8)",
                  "agrees with 0.90, where shuffled labels give 0.70", "by 0.500 nats, **1.50 times** (1.20 to 1.80)"):
        assert words in said
