"""Overlap of rankings and communities of correlations: known answers."""

import networkx as nx
import numpy as np
import pytest
from scipy import stats

from rare_token_neurons.statistics import controls, geometry, rankings


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def activations(rng, modules, neurons, strength, tokens=2000):
    """Groups of neurons that share a factor each."""
    factors = rng.normal(size=(tokens, modules))
    return strength * np.repeat(factors, neurons // modules, axis=1) + rng.normal(size=(tokens, neurons))


def test_top_and_overlap_by_hand():
    first, second = np.array([5.0, 4, 3, 2, 1]), np.array([5.0, 1, 4, 2, 3])
    assert rankings.top(first, 2).tolist() == [0, 1] and rankings.top(second, 3).tolist() == [0, 2, 4]
    assert rankings.shared(first, second, 2) == 1 and rankings.jaccard(first, second, 2) == pytest.approx(1 / 3)
    assert rankings.jaccard(first, first, 3) == 1 and rankings.jaccard(first, -first, 2) == 0
    assert rankings.jaccard(np.stack([first, first]), np.stack([first, second]), 2) == pytest.approx([1, 1 / 3])


def test_the_null_of_the_overlap_is_that_of_shuffled_rankings(rng):
    values = rng.random(60)
    table = rankings.jaccard_table(values, rng.permutation(values), [5, 20])
    shuffled = np.stack([rng.permutation(values) for _ in range(4000)])
    for k, expected, low, high in zip(table.k, table.null_jaccard, table.null_low, table.null_high):
        null = rankings.jaccard(np.broadcast_to(values, shuffled.shape), shuffled, k)
        assert null.mean() == pytest.approx(expected, rel=0.05)
        assert np.mean((null >= low) & (null <= high)) >= 0.94
    same = rankings.jaccard_table(values, values, [5])
    assert same.p[0] == pytest.approx(1 / 5461512)  # 60 over 5


def test_rank_correlation_is_spearmans_with_ties(rng):
    first, second = rng.integers(0, 9, size=(2, 4, 50))
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(first, second)]
    assert rankings.rank_correlation(first, second) == pytest.approx(expected)
    assert rankings.rank_correlation(np.arange(5), np.arange(5) ** 3) == pytest.approx(1)
    assert np.isnan(rankings.rank_correlation(np.ones(5), np.arange(5)))


def test_planted_modules_are_found(rng):
    block = geometry.correlation(activations(rng, 3, 24, strength=1.5))
    found = geometry.communities(block)
    assert sorted(map(sorted, found)) == [list(range(8)), list(range(8, 16)), list(range(16, 24))]
    edges = np.maximum(block, 0) - np.eye(24)
    degree, total = edges.sum(axis=1), edges.sum()
    by_hand = sum(edges[8 * c: 8 * c + 8, 8 * c: 8 * c + 8].sum() / total - (degree[8 * c: 8 * c + 8].sum() / total) ** 2
                  for c in range(3))
    assert geometry.modularity(block) == pytest.approx(by_hand) and by_hand > 0.5


def test_negative_correlations_are_no_edges_unless_absolute():
    block = np.array([[1.0, -0.5, 0.25], [-0.5, 1.0, 0.0], [0.25, 0.0, 1.0]])
    assert sorted(geometry.graph(block).edges) == [(0, 2)]
    absolute = geometry.graph(block, weights="absolute")
    assert absolute[0][1]["weight"] == 0.5 and not list(nx.selfloop_edges(absolute))
    assert np.isnan(geometry.modularity(-np.ones((4, 4))))
    assert geometry.modularity(np.stack([block, block])).shape == (2,)


def test_a_modular_group_stands_out_and_a_plain_one_does_not(rng):
    values = rng.normal(size=(1500, 200))
    values[:, :20] = activations(rng, 4, 20, strength=1.0, tokens=1500)
    matrix = geometry.correlation(values)
    null = geometry.modularity(geometry.within(matrix, controls.random_groups(200, 20, draws=60, seed=2)), 1.0, 2)
    for resolution in geometry.RESOLUTIONS:
        modular = geometry.modularity(matrix[:20, :20], resolution, 2)
        assert modular > null.mean() + 4 * null.std() and controls.empirical_p(modular, null) < 0.04
    plain = geometry.modularity(matrix[100:120, 100:120], 1.0, 2)
    assert abs(plain - null.mean()) < 3 * null.std() and null.min() < plain < null.max()
    seeded = [geometry.modularity(matrix[100:120, 100:120], 1.0, [seed]) for seed in (0, 1)]
    assert plain == pytest.approx(np.mean(seeded))


def test_bad_input_by_name():
    with pytest.raises(ValueError, match="top"):
        rankings.top(np.arange(3), 4)
    with pytest.raises(ValueError, match="positive or absolute"):
        geometry.graph(np.eye(2), weights="signed")
