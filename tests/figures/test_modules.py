"""Drawings and sentences of notebook 08 show what the tables say."""

import networkx as nx
import numpy as np
import pandas as pd
import pytest

from rare_token_neurons.figures import modules


def test_the_group_is_the_top_of_half_a_for_rare_targets(ax):
    rare, common = np.geomspace(1, 1e-3, 60), np.geomspace(1e-3, 1, 60)
    rows = pd.concat([pd.DataFrame({"neuron": range(60), "group": name, "mean_abs_a": a, "mean_abs_b": b})
                      for name, a, b in (("rare", rare, rare * 0.9), ("common", common, common * 0.9))])
    agreement = pd.DataFrame({"correlation": [0.5, 0.9], "low": [0.4, 0.8], "high": [0.6, 1.0]},
                             index=pd.MultiIndex.from_tuples([("rare", "common"), ("rare", "rare")]))
    modules.rankings(ax, rows.sample(frac=1, random_state=0), 3, agreement)
    assert ax.get_title(loc="left") == "Rankings for rare and common differ\n(r = 0.50; for rare twice 0.90)"
    group = ax.lines[-1]
    assert group.get_xdata() == pytest.approx(rare[:3]) and group.get_ydata() == pytest.approx(0.9 * common[:3])
    assert group.get_label() == "of these the rare group (n = 3)"


def test_communities_are_framed_largest_first(ax):
    pairs = [(i, j) for i in range(3) for j in range(3)]
    rows = pd.DataFrame(pairs, columns=["i", "j"]).assign(correlation=lambda one: np.where(one["i"] == one["j"], 1.0,
                                                                                           0.2),
                                                          community=lambda one: np.where(one["i"] == 1, 2, 1))
    modules.communities(ax, rows.assign(group="random"), module_row())
    assert ax.get_title(loc="left") == "Random group:\nQ = 0.05"
    assert [(line.get_xdata()[0], line.get_xdata()[1]) for line in ax.lines] == [(0, 2), (2, 3)]


def test_absolute_correlations_have_no_sign(ax):
    rows = pd.DataFrame({"i": [0, 0, 1, 1], "j": [0, 1, 0, 1], "correlation": [1.0, -0.2, -0.2, 1.0], "community": 1})
    modules.communities(ax, rows.assign(group="rare"), module_row(), absolute=True)
    assert set(np.ravel(ax.collections[0].get_array()).tolist()) == {0.2, 1.0}


def module_row(**changed):
    row = {"where": "rare", "weights": "positive", "resolution": 1.0, "main": True, "gated": False, "value": 0.1,
           "low": 0.08, "high": 0.12, "communities": 4, "size": 27, "positions": 1000, "documents": 120,
           "imbalance_scale": 0.1, "imbalance_norm": 0.0}
    for kind, mean in (("random", 0.05), ("matched", 0.06)):
        row |= {kind: mean, f"{kind}_low": mean - 0.01, f"{kind}_high": mean + 0.01, f"p_{kind}": 2 / 201,
                f"less_{kind}": 0.1 - mean, f"less_{kind}_low": 0.0, f"less_{kind}_high": 0.07}
    return pd.Series(row | changed)


def test_modularity_is_drawn_and_told_beside_the_controls_that_can_be_used(ax, legend):
    rows = pd.DataFrame([module_row(), module_row(weights="absolute", main=False),
                         module_row(resolution=1.2, main=False)])
    modules.modularity(ax, modules.usable(rows))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["rare*\nr > 0", "rare\n|r|"]
    assert any("matched" in name for name in legend())
    assert len(modules.listed_modules(modules.usable(rows))) == 3
    rows = rows.iloc[:2]
    ax.clear()
    modules.modularity(ax, modules.usable(rows.assign(imbalance_scale=0.6)))
    assert not any("matched" in name for name in legend())
    assert ax.get_title(loc="left") == "Higher modularity than\nrandom groups"
    said = modules.of_modules(module_row())
    assert said.startswith("With positive correlations as edges the rare group has a modularity of **0.100**, in 4 "
                           "communities (random groups 0.050, a difference of +0.050 (+0.000 to +0.070); matched "
                           "groups 0.060, a difference of +0.040")
    assert said.endswith("of half B.")
    poor = modules.usable(rows.assign(imbalance_scale=0.6)).iloc[1]
    said = modules.of_modules(poor)
    assert "absolute correlations" in said and "; matched groups cannot be used). Behind it: 27" in said
    assert said.endswith("a claim of absence cannot be tested.")


def test_layers_do_without_matched_groups_that_cannot_be_used(ax):
    rows = pd.DataFrame({"layer": [0, 1], "value": 0.1, "low": 0.08, "high": 0.12, "random_low": 0.05,
                         "random_high": 0.2,
                         "matched_low": np.nan, "matched_high": np.nan})
    modules.layers(ax, rows, 27)
    assert len(ax.get_legend().get_texts()) == 2 and ax.get_ylim()[1] == pytest.approx(0.3)
    assert ax.get_title(loc="left") == "Heads of no layer move the group\nmore than random groups"
    modules.layers(ax, rows.assign(random_high=[0.08, 0.2]), 27)
    assert ax.get_title(loc="left").startswith("Heads of 1 of 2 layers move")


def test_a_group_does_more_than_its_sum_where_its_interval_is_above_it_and_above_random_groups():
    rows = pd.DataFrame({"group": ["rare", "random", "random"], "ratio": [1.2, 0.98, 1.02], "ratio_low": [1.1, 0, 0],
                         "ratio_high": [1.3, 0, 0]})
    assert modules.as_the_sum(rows) == "more than their sum"
    assert modules.as_the_sum(rows.assign(ratio_low=1.01)) == "what their sum says"
    rows = rows.assign(ratio=rows["ratio"] - 0.5, ratio_low=0.3, ratio_high=0.4)
    assert modules.as_the_sum(rows) == "less than their sum"


def test_the_text_tells_of_the_top_50_where_the_table_has_them():
    pairs = ("rare", "common"), ("rare", "rare"), ("common", "common")
    rows = pd.DataFrame([{"first": first, "second": second, "k": k, "shared": k // 2 + (first == second),
                          "jaccard": 0.3, "null_jaccard": 0.25, "low": 0.2, "high": 0.4, "group": k == 27}
                         for first, second in pairs for k in (27, 50)])
    said = modules.of_tops(rows)
    assert said.startswith("Of their top 50 neurons rare and common tokens share **25**. Two halves of the text "
                           "share 26")
    assert said.endswith("Unrelated rankings would share 20.0.")  # 2 k J / (1 + J)
    assert "top 27 neurons" in modules.of_tops(rows[rows["k"] == 27])
    assert modules.listed_overlap(rows).index.tolist() == [27] * 3 + [50] * 3


def test_a_small_graph_shows_its_communities(ax):
    graph = nx.barbell_graph(4, 0)
    ties = nx.to_numpy_array(graph)
    parts = modules.geometry.communities(ties)
    assert sorted(map(sorted, parts)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    modules.network(ax, graph, parts, modules.geometry.modularity(ties))
    assert ax.get_title(loc="left") == "2 communities:\nmodularity Q = 0.42"  # 2 (6 / 13 - 1 / 4), by hand


def test_sentences_take_each_number_from_its_table():
    route = {"heads": 9, "tokens": 2000, "rare_positions": 50, "common_positions": 60, "documents": 40, "leaning": 1,
             "correlation": 0.9, "low": 0.8, "high": 0.95, "null": 0.7, "null_low": 0.6, "null_high": 0.75, "p": 0.5}
    said = modules.of_heads(route)
    assert "9 heads was ablated on 2,000 tokens of 40 documents. There are 50 rare and 60 common targets" in said
    assert "**0.90** (95 % over documents 0.80 to 0.95). With shuffled labels it has 0.60 to 0.75, p = 0.50" in said
    assert said.endswith(": 1.")
    module = module_row(p_matched=0.2)
    group = pd.DataFrame({"second": ["rare", "common"], "k": 10, "shared": [8, 4]}).set_index("second")
    whole = {"joint": 0.5, "ratio": 1.5, "ratio_low": 1.2, "ratio_high": 1.8}
    said = modules.summary(module, group, 200, route, whole)
    for words in ("it is **0.100**; random groups have 0.050 (none of 200 random groups is as far out); matched groups "
                  "have 0.060 (p = 0.20).\n- **Other neurons?** Rare and common",
                  "**4 of 10** top neurons (chance 0.5; two halves of the text share 8 for rare tokens)",
                  "agrees with 0.90; shuffled labels give 0.70", "by 0.500 nats, **1.50 times** (1.20 to 1.80)"):
        assert words in said
    poor = modules.usable(module_row(weights="absolute", imbalance_norm=0.3).to_frame().T.infer_objects()).iloc[0]
    said = modules.summary(poor, group, 200, route, whole)
    assert "it is **0.100** on absolute correlations; random" in said
    assert "; matched groups cannot be used.\n- **Other" in said
