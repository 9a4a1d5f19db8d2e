"""Effective dimension, correlations, clustering and communities: known answers and brute force."""

import networkx as nx
import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from rare_token_neurons.statistics import controls, geometry


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def gelu_like(rng, tokens=3000, neurons=60):
    """Activations with a shared negative offset, as GELU neurons have."""
    return np.maximum(rng.normal(size=(tokens, neurons)), -0.15).astype(np.float32) - 0.2


def test_a_matrix_of_rank_5_has_effective_dimension_5(rng, monkeypatch):
    basis = np.linalg.qr(rng.normal(size=(2000, 6)))[0][:, 1:] * np.sqrt(2000)
    directions = np.linalg.qr(rng.normal(size=(40, 5)))[0]
    noise = 1e-3 * rng.normal(size=(2000, 40))
    block = geometry.correlation(basis @ directions.T + noise)
    monkeypatch.setattr(geometry, "SHARE", 0.999)
    assert geometry.effective_dimension(block) == 5
    one_per_neuron = geometry.correlation(np.repeat(basis, 8, axis=1) + noise)  # 5 sets of 8 equal neurons
    assert geometry.effective_dimension(one_per_neuron) == 5
    assert geometry.participation_ratio(one_per_neuron) == pytest.approx(5, rel=0.01)


def test_effective_dimension_is_the_count_of_components_of_sklearn(rng, monkeypatch):
    values = rng.normal(size=(500, 12)) @ rng.normal(size=(12, 12))
    variance = PCA().fit(StandardScaler().fit_transform(values)).explained_variance_ratio_
    block = geometry.correlation(values)
    assert geometry.cumulative_variance(block) == pytest.approx(np.cumsum(variance))
    for share in (0.5, 0.8, 0.95, 0.999):
        monkeypatch.setattr(geometry, "SHARE", share)
        assert geometry.effective_dimension(block) == np.searchsorted(np.cumsum(variance), share) + 1


def test_effective_dimension_of_equal_and_of_independent_neurons():
    assert geometry.effective_dimension(np.ones((8, 8))) == 1
    assert geometry.effective_dimension(np.eye(20)) == 19  # 19/20 are exactly 95 %


def test_the_interpolated_dimension_counts_the_last_component_in_part(rng):
    assert geometry.effective_dimension(np.eye(30), interpolate=True) == pytest.approx(28.5)
    blocks = np.stack([geometry.correlation(rng.normal(size=(50, 8)) @ rng.normal(size=(8, 8))) for _ in range(20)])
    whole, part = (geometry.effective_dimension(blocks, interpolate=one) for one in (False, True))
    assert np.array_equal(np.ceil(part), whole) and len(np.unique(part)) == 20 > len(np.unique(whole))


@pytest.mark.parametrize("centred", [True, False])
def test_correlation_against_numpy(rng, centred):
    values = gelu_like(rng)
    expected = np.corrcoef(values.T)
    if not centred:
        unit = values.astype(np.float64) / np.linalg.norm(values.astype(np.float64), axis=0)
        expected = unit.T @ unit
    assert geometry.correlation(values, centred) == pytest.approx(expected, abs=1e-5)
    assert geometry.correlation(values.astype(np.float64), centred) == pytest.approx(expected, abs=1e-12)


def test_a_shared_offset_looks_like_co_activation_unless_centred(rng):
    values = gelu_like(rng)
    assert geometry.mean_pair(geometry.correlation(values, centred=False)) > 0.02
    assert abs(geometry.mean_pair(geometry.correlation(values))) < 0.005


def test_dead_and_constant_neurons_are_seen_and_refused(rng):
    values = gelu_like(rng)
    values[:, 3], values[:, 7], values[:, 9] = 0.0, -0.17, 1e-7 * values[:, 9]
    assert np.flatnonzero(~geometry.alive(values)).tolist() == [3, 7, 9]
    matrix = geometry.correlation(values)
    assert np.flatnonzero(np.isnan(matrix.diagonal())).tolist() == [3, 7]
    with pytest.raises(ValueError, match="dead or constant"):
        geometry.effective_dimension(geometry.within(matrix, [2, 3, 4]))
    with pytest.raises(ValueError, match="dead or constant"):
        geometry.participation_ratio(geometry.within(matrix, [2, 3, 4]))
    assert not geometry.alive(np.zeros((10, 2))).any()


def test_participation_ratio_correction_gives_independent_neurons_their_number(rng):
    blocks = np.stack([geometry.correlation(rng.normal(size=(60, 20))) for _ in range(400)])
    assert geometry.participation_ratio(blocks).mean() < 16
    assert geometry.participation_ratio(blocks, samples=60).mean() == pytest.approx(20, rel=0.02)
    mixing = 0.5 * rng.normal(size=(4, 20))
    mixed = lambda tokens: geometry.correlation(rng.normal(size=(tokens, 4)) @ mixing + rng.normal(size=(tokens, 20)))
    truth = geometry.participation_ratio(mixed(200_000))
    small = np.stack([mixed(80) for _ in range(400)])
    corrected = geometry.participation_ratio(small, samples=80).mean()
    assert abs(corrected - truth) < 0.2 * abs(geometry.participation_ratio(small).mean() - truth)


def test_pair_statistics_against_loops(rng):
    matrix = geometry.correlation(rng.normal(size=(50, 9)))
    group = [1, 4, 5, 8]
    values = [matrix[i, j] for a, i in enumerate(group) for j in group[a + 1:]]
    block = geometry.within(matrix, group)
    assert geometry.mean_pair(block) == pytest.approx(np.mean(values))
    assert geometry.mean_abs_pair(block) == pytest.approx(np.mean(np.abs(values)))
    assert geometry.negative_share(block) == pytest.approx(np.mean(np.array(values) < 0))
    many = geometry.within(matrix, [group, [0, 1, 2, 3]])
    assert many.shape == (2, 4, 4) and geometry.mean_pair(many)[0] == pytest.approx(np.mean(values))


def test_clustering_takes_condensed_distances(rng):
    values = np.concatenate([rng.normal(size=(1000, 1)) + 0.5 * rng.normal(size=(1000, 5)) for _ in range(3)], axis=1)
    shuffled = rng.permutation(15)
    block = geometry.correlation(values[:, shuffled])
    order, tree = geometry.cluster(block)
    families = shuffled[order] // 5
    assert np.count_nonzero(np.diff(families)) == 2  # each family stands together
    assert tree[0, 2] == pytest.approx(1 - geometry.pairs(block).max())  # a height is a distance 1 - r
    assert len(set(zip(fcluster(tree, 3, "maxclust"), shuffled // 5))) == 3


# ---- communities


def activations(rng, modules, neurons, strength, tokens=2000):
    """Groups of neurons that share a factor each."""
    factors = rng.normal(size=(tokens, modules))
    return strength * np.repeat(factors, neurons // modules, axis=1) + rng.normal(size=(tokens, neurons))


def test_planted_modules_are_found(rng):
    block = geometry.correlation(activations(rng, 3, 24, strength=1.5))
    found = geometry.communities(block)
    assert sorted(map(sorted, found)) == [list(range(8)), list(range(8, 16)), list(range(16, 24))]
    edges = np.maximum(block, 0) - np.eye(24)
    degree, total = edges.sum(axis=1), edges.sum()
    by_hand = sum(edges[8 * c: 8 * c + 8, 8 * c: 8 * c + 8].sum() / total
                  - (degree[8 * c: 8 * c + 8].sum() / total) ** 2
                  for c in range(3))
    assert geometry.modularity(block) == pytest.approx(by_hand) and by_hand > 0.5


def test_negative_correlations_are_no_edges_unless_absolute():
    block = np.array([[1.0, -0.5, 0.25], [-0.5, 1.0, 0.0], [0.25, 0.0, 1.0]])
    assert np.argwhere(geometry.edges(block)).tolist() == [[0, 2], [2, 0]]
    absolute = geometry.edges(block, weights="absolute")
    assert absolute[0, 1] == absolute[1, 0] == 0.5 and not absolute.diagonal().any()
    assert np.isnan(geometry.modularity(-np.ones((4, 4))))
    assert geometry.modularity(np.stack([block, block])).shape == (2,)


@pytest.mark.parametrize("weights", ["positive", "absolute"])
@pytest.mark.parametrize("resolution", geometry.RESOLUTIONS)
def test_many_graphs_at_once_have_the_communities_that_networkx_finds(rng, weights, resolution):
    blocks = np.stack([np.corrcoef(activations(rng, groups, 24, strength=strength, tokens=200).T)
                       for groups in (2, 4, 6) for strength in (0.1, 0.5, 2.0)])
    blocks[0, 3] = blocks[0, :, 3] = 0.0  # a silent neuron
    graphs = geometry.edges(blocks, weights)
    for graph, parts, value in zip(graphs, geometry.louvain(graphs, resolution, seed=5),
                                   geometry.modularity(blocks, resolution, [5], weights)):
        network = nx.from_numpy_array(graph)
        theirs = nx.community.louvain_communities(network, resolution=resolution, seed=5)
        assert [set(np.flatnonzero(parts == part)) for part in np.unique(parts)] == theirs
        assert value == pytest.approx(nx.community.modularity(network, theirs), abs=1e-12)


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


def test_bad_input_by_name(rng):
    with pytest.raises(ValueError, match="shape"):
        geometry.correlation(np.zeros(5))
    with pytest.raises(ValueError, match="too few"):
        geometry.participation_ratio(np.eye(10), samples=10)
    with pytest.raises(ValueError, match="not finite"):
        geometry.alive(np.array([[np.nan, 1.0], [2.0, 3.0]]))
    with pytest.raises(ValueError, match="positive or absolute"):
        geometry.edges(np.eye(2), weights="signed")
