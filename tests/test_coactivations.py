"""The tables of notebook 06 on planted activations without a model; histograms against brute force."""

import numpy as np
import pytest
from planted import NEURONS, PLANTED, SIZE, settings, values_of  # noqa: F401

from rare_token_neurons.statistics import geometry
from rare_token_neurons.tables import activations


def test_planted_group_co_activates(settings):  # noqa: F811
    table = activations.coactivation(settings).set_index(["where", "group", "relation", "measure", "statistic"]).sort_index()
    row = table.loc[("rare", "rare", "within", "correlation", "mean")]
    assert row["value"] == pytest.approx(0.5, abs=0.1) and row["p_random"] < 0.01 and row["less_matched_low"] > 0
    assert ("rare", "power law", "between", "correlation", "mean") not in table.index
    outside = table.loc[("rare", "rare", "between", "correlation", "mean")]
    assert abs(outside["value"]) < 0.02 and outside["less_random_low"] < outside["less_random"] < outside["less_random_high"]


def test_histograms_count_each_pair_once():
    rng = np.random.default_rng(0)
    values, living = rng.normal(size=(30, 40)), np.setdiff1d(np.arange(40), [3, 17])
    values[:, 3] = 1.0  # constant
    matrix, groups = geometry.correlation(values), np.array([[0, 5, 9, 30], [39, 2, 1, 8]])
    (_, inside, pairs), (_, outside, crossed) = activations.spread(matrix, living, groups)
    assert pairs == 6 and crossed == 4 * 34
    for group, shares in zip(groups, zip(inside, outside), strict=True):
        others = np.setdiff1d(living, group)
        for share, part in zip(shares, (geometry.pairs(geometry.within(matrix, group)), matrix[np.ix_(group, others)]), strict=True):
            assert share == pytest.approx(np.histogram(part, activations.EDGES)[0] / part.size)


def test_distributions_sum_to_one_and_show_the_planted_group(settings):  # noqa: F811
    table = activations.coactivation_distribution(settings)
    assert table.groupby(["where", "relation", "measure", "set"])["share"].sum().to_numpy() == pytest.approx(1)
    pairs = table.groupby(["set", "relation"])["pairs"].first()
    assert pairs["rare", "within"] == 16 * 15 / 2 and pairs["random", "between"] == 16 * (NEURONS - SIZE)
    right = table[(table["left"] > 0.3) & (table["measure"] == "correlation") & (table["where"] == "all")]
    share = right.groupby(["set", "relation"])["share"].sum()
    assert share["rare", "within"] > 0.9 and share["rare", "between"] < 0.01 and share["random", "within"] < 0.01
    assert table.loc[table["set"] == "rare", ["low", "high"]].isna().all(axis=None)
    null = table[table["set"] == "matched"]
    assert (null["low"] <= null["high"]).all() and (null["high"] > 0).any()


def test_matrices_hold_every_pair(settings):  # noqa: F811
    matrix = activations.coactivation_matrix(settings).query("where == 'all' and group == 'rare'")
    block = matrix.pivot(index="i", columns="j", values="correlation").to_numpy()
    assert block.shape == (16, 16) and np.allclose(block, block.T) and np.allclose(block.diagonal(), 1)
    values = values_of("step1")[0][:, np.sort(PLANTED[1:])].astype(np.float64)
    assert block == pytest.approx(np.corrcoef(values.T), abs=1e-5)
