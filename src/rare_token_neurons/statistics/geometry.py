"""How the activations of a group of neurons lie in space: dimensions, pairs, clusters and communities.

All statistics start from a correlation matrix, computed once for all neurons: a group's statistic needs only its
sub-matrix, so a thousand random groups cost a thousand small eigenvalue problems. Two correlations are used
throughout: centred (Pearson's r, which is also the cosine of the centred activations) and uncentred (the raw cosine,
which the shared negative offset of GELU outputs alone makes positive).
"""

from random import Random

import networkx as nx
import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

SHARE = 0.95  # of the variance, for the effective dimension
VARYING = 1e-4  # of the median standard deviation: a neuron that varies less is taken for constant


def alive(activations):
    """Neurons that do vary: dead and constant ones have no correlation and are left out of every group.

    Parameters
    ----------
    activations : (tokens, neurons) float. A neuron is out when its standard deviation is at most `VARYING` times the
        median over the neurons that vary at all.

    Returns
    -------
    (neurons,) bool
    """
    spread = np.asarray(activations, dtype=np.float64).std(axis=0)
    if not np.isfinite(spread).all():
        raise ValueError(f"The activations of {np.sum(~np.isfinite(spread))} neurons hold values that are not finite.")
    varying = spread[spread > 0]
    return spread > VARYING * np.median(varying) if len(varying) else spread > 0


def correlation(activations, centred=True):
    """Correlation of every pair of neurons over tokens.

    Parameters
    ----------
    activations : (tokens, neurons) float; the large product runs in its own precision.
    centred : True, Pearson's r; False, the raw cosine similarity.

    Returns
    -------
    (neurons, neurons) float64, NaN in the rows and columns of constant (uncentred: all-zero) neurons.
    """
    values = np.asarray(activations)
    values = values if np.issubdtype(values.dtype, np.floating) else values.astype(np.float64)
    if values.ndim != 2 or len(values) < 3:
        raise ValueError("Correlations need activations of shape (tokens, neurons) with 3 tokens or more, "
                         f"not {values.shape}.")
    means = values.mean(axis=0, dtype=np.float64)
    offset = means if centred else np.zeros_like(means)
    values = values - offset.astype(values.dtype)
    norms = np.sqrt(np.einsum("ti,ti->i", values, values, dtype=np.float64))
    silent = norms <= 1e-6 * np.sqrt(len(values)) * np.abs(means) if centred else norms == 0
    values /= np.where(silent, 1.0, norms).astype(values.dtype)
    result = (values.T @ values).astype(np.float64)
    result[silent] = result[:, silent] = np.nan
    living = np.flatnonzero(~silent)
    result[living, living] = 1.0
    return result


def within(matrix, groups):
    """The correlations inside groups: (..., m) neuron indices -> (..., m, m)."""
    groups = np.asarray(groups)
    return matrix[groups[..., :, None], groups[..., None, :]]


def pairs(block):
    """Each pair inside a group once: (..., m, m) -> (..., m (m - 1) / 2)."""
    first, second = np.triu_indices(block.shape[-1], k=1)
    return block[..., first, second]


def mean_pair(block):
    """Mean correlation of the pairs inside a group: (..., m, m) -> (...)."""
    return pairs(block).mean(axis=-1)


def mean_abs_pair(block):
    """Mean absolute correlation of the pairs inside a group: (..., m, m) -> (...)."""
    return np.abs(pairs(block)).mean(axis=-1)


def negative_share(block):
    """Share of the pairs inside a group with a negative correlation: (..., m, m) -> (...)."""
    return (pairs(block) < 0).mean(axis=-1)


def spectrum(block):
    """Eigenvalues of correlation matrices, largest first, none below zero: (..., m, m) -> (..., m)."""
    if not np.isfinite(block).all():
        raise ValueError("The group holds a dead or constant neuron: leave it out (geometry.alive).")
    return np.maximum(np.linalg.eigvalsh(block)[..., ::-1], 0.0)


def cumulative_variance(block):
    """Share of the standardised activations' variance in the first 1, 2, ... principal components: (..., m)."""
    values = spectrum(block)
    return np.cumsum(values, axis=-1) / values.sum(axis=-1, keepdims=True)


def effective_dimension(block, interpolate=False):
    """The smallest number of principal components that reach `SHARE` of the variance.

    The components are those of the STANDARDISED token-by-neuron activations, so their variances are the
    eigenvalues of the correlation matrix. Divide by the group's size to compare groups (arXiv 2505.12822).

    Parameters
    ----------
    block : (..., m, m) correlation matrices.
    interpolate : count the last component by the part of it that is needed. Whole numbers tie half of the groups
        of 26 neurons with each other, which makes p values and intervals coarse.

    Returns
    -------
    (...) int, from 1 to m; with `interpolate` float, above that number less 1 and at most that number.
    """
    reached = cumulative_variance(block)
    count = (reached < SHARE - 1e-9).sum(axis=-1) + 1
    if not interpolate:
        return count
    reached = np.concatenate([np.zeros_like(reached[..., :1]), reached], axis=-1)  # after 0, 1, ... components
    before, after = (np.take_along_axis(reached, (count + step)[..., None], axis=-1)[..., 0] for step in (-1, 0))
    return count - 1 + np.clip((SHARE - before) / (after - before), 0.0, 1.0)


def participation_ratio(block, samples=None):
    """The participation ratio (sum lambda)^2 / sum lambda^2 = m^2 / (m + sum of all r^2 off the diagonal).

    A finite sample makes every r^2 too large, by the sampling variance (1 - r^2)^2 / samples of r to first order,
    and the ratio too small. With `samples` each r^2 is lowered by (1 - r^2)^2 / (samples - 3), which takes it off to
    second order where the neurons are independent: those give m on average, and a value may lie above m. The tokens
    of a document are not independent: their number corrects too little, and the interval over documents is what
    says how sure the value is.

    Parameters
    ----------
    block : (..., m, m) correlation matrices (centred).
    samples : None (no correction), or the number of tokens behind the matrix.

    Returns
    -------
    (...) float
    """
    if not np.isfinite(block).all():
        raise ValueError("The group holds a dead or constant neuron: leave it out (geometry.alive).")
    m = block.shape[-1]
    squares = pairs(block) ** 2
    if samples is not None:
        if samples < m + 3:
            raise ValueError(f"{samples} tokens are too few to correct the participation ratio of {m} neurons.")
        squares = squares - (1.0 - squares) ** 2 / (samples - 3)
    return m**2 / (m + 2.0 * squares.sum(axis=-1))


def cluster(block):
    """Hierarchical clustering of a group's neurons by average linkage, distance 1 - r.

    Parameters
    ----------
    block : (m, m) correlation matrix.

    Returns
    -------
    order : (m,) int, the leaves from left to right.
    tree : (m - 1, 4) scipy linkage, for seaborn's `row_linkage` and `col_linkage`.
    """
    distances = np.maximum(1.0 - (block + block.T) / 2, 0.0)
    np.fill_diagonal(distances, 0.0)
    # condensed: scipy would take the rows of a distance matrix for points
    tree = linkage(squareform(distances, checks=False), method="average", optimal_ordering=True)
    return leaves_list(tree), tree


# ---- communities

RESOLUTIONS = (0.9, 1.0, 1.2)
GAIN = 1e-7  # of modularity, below which no further level is tried


def edges(block, weights="positive"):
    """The weights of a group's correlation graph, in which neurons are joined by their correlation.

    Parameters
    ----------
    block : (..., m, m) correlation matrices.
    weights : "positive" (negative correlations are no edge: Louvain's null model needs weights of one sign) or
        "absolute".

    Returns
    -------
    (..., m, m) float, symmetric, 0 on the diagonal
    """
    if weights not in ("positive", "absolute"):
        raise ValueError(f"Weights are positive or absolute, not {weights!r}.")
    found = np.abs(block) if weights == "absolute" else np.maximum(block, 0.0)
    return (found + found.swapaxes(-1, -2)) / 2 * (1 - np.eye(block.shape[-1]))


def communities(block, resolution=1.0, seed=0, weights="positive"):
    """Louvain's communities of a group's correlation graph: a list of sets of positions in the group."""
    network = nx.from_numpy_array(edges(block, weights))
    return nx.community.louvain_communities(network, weight="weight", resolution=resolution, seed=seed)


def modularity(block, resolution=1.0, seeds=5, weights="positive"):
    """Modularity Q of the communities that Louvain finds, averaged over its seeds.

    The partition maximises Q at `resolution`; the value given is Newman's Q (resolution 1) of that partition, so that
    values compare over resolutions and with the literature. Q of the best partition of pure noise is above 0:
    compare it with groups of the same size, never with 0.

    Parameters
    ----------
    block : (..., m, m) correlation matrices.
    resolution : above 1 finds smaller communities.
    seeds : the runs' seeds, or their number (from 0 on).

    Returns
    -------
    (...) float, NaN where the graph has no edge.
    """
    seeds = range(seeds) if np.ndim(seeds) == 0 else seeds
    found = edges(np.asarray(block), weights)
    flat = found.reshape(-1, *found.shape[-2:])
    values = np.mean([quality(merged(flat, louvain(flat, resolution, seed))) for seed in seeds], axis=0)
    return values.reshape(found.shape[:-2])[()]


def louvain(weights, resolution=1.0, seed=0):
    """Louvain's communities of many graphs at once: those of `networkx.community.louvain_communities`, ten times as fast.

    Parameters
    ----------
    weights : (g, m, m) float, symmetric, at or above 0, 0 on the diagonal.

    Returns
    -------
    (g, m) int, the community of each node
    """
    count, m = weights.shape[:2]
    found, going = np.tile(np.arange(m), (count, 1)), np.arange(count)
    shuffles, sizes = [Random(seed) for _ in going], np.full(count, m)
    value = quality(weights, resolution)
    while len(going):
        order = np.full((len(going), m), -1)  # nodes in random order; -1 behind them
        for row, size, at in zip(order, sizes, going):
            nodes = list(range(size))
            shuffles[at].shuffle(nodes)
            row[:size] = nodes
        parts = _moved(weights, order, resolution)
        used = np.zeros(parts.shape, dtype=bool)
        np.put_along_axis(used, np.where(np.arange(m) < sizes[:, None], parts, parts[:, :1]), True, axis=1)
        parts = np.take_along_axis(used.cumsum(axis=1) - 1, parts, axis=1)
        found[going] = np.take_along_axis(parts, found[going], axis=1)
        weights, before = merged(weights, parts), value
        value, fewer = quality(weights, resolution), used.sum(axis=1) < sizes
        kept = fewer & (value - before > GAIN)
        weights, value, going, sizes = weights[kept], value[kept], going[kept], used.sum(axis=1)[kept]
    return found


def _moved(weights, order, resolution):
    """One level of `louvain`: each node in turn joins the neighbouring community that gains most, until none moves.

    weights : (g, m, m), a node's own counted twice ; order : (g, m) nodes, -1 behind them ; returns communities (g, m).
    """
    count, m = order.shape
    row, part, degree = np.arange(count), np.tile(np.arange(m), (count, 1)), weights.sum(axis=2)
    total, all_of = degree.sum(axis=1) / 2, degree.copy()  # of the communities
    moved = True
    while moved:
        moved = False
        for node in order.T:
            own, its = part[row, node], np.where(node < 0, 0.0, degree[row, node])[:, None]
            links = weights[row, node]
            links[row, node] = 0.0
            links = np.bincount((row[:, None] * m + part).ravel(), links.ravel(), count * m).reshape(count, m)
            all_of[row, own] -= its[:, 0]
            with np.errstate(invalid="ignore", divide="ignore"):  # a graph without edges
                gain = links / total[:, None] - resolution * all_of * its / (2 * total[:, None] ** 2)
            gain -= gain[row, own][:, None]
            gain[~(links > 0)] = gain[row, own] = 0.0
            best = np.where((gain.max(axis=1) > 0) & (node >= 0), gain.argmax(axis=1), own)
            all_of[row, best] += its[:, 0]
            part[row, node] = best
            moved |= bool((best != own).any())
    return part


def merged(weights, parts):
    """Graphs (g, m, m) with the nodes of a community made one; parts (g, m): the community of each node."""
    member = (parts[:, :, None] == np.arange(parts.shape[1])).astype(np.float64)  # (g, node, community)
    return member.swapaxes(1, 2) @ weights @ member


def quality(weights, resolution=1.0):
    """Modularity of graphs whose nodes are the communities: (g, m, m), a node's own weight counted twice -> (g,)."""
    degree = weights.sum(axis=2)
    with np.errstate(invalid="ignore", divide="ignore"):  # a graph without edges: NaN
        share = degree / degree.sum(axis=1, keepdims=True)
        return np.einsum("gii->g", weights) / degree.sum(axis=1) - resolution * (share**2).sum(axis=1)
