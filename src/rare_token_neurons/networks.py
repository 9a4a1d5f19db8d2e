"""Do the same neurons matter twice, and do they form modules: rankings compared, and communities of correlations."""

import networkx as nx
import numpy as np
import pandas as pd
from scipy import stats

RESOLUTIONS = (0.9, 1.0, 1.2)


def top(influence, k):
    """The k most influential neurons: (..., neurons) -> (..., k) int, most influential first."""
    influence = np.asarray(influence)
    if not 1 <= k <= influence.shape[-1]:
        raise ValueError(f"The top of {influence.shape[-1]} neurons has 1 to {influence.shape[-1]} of them, not {k}.")
    return np.argsort(-influence, axis=-1, kind="stable")[..., :k]


def shared(first, second, k):
    """How many neurons are among the top k of both: two (..., neurons) influences -> (...) int."""
    members = np.zeros(np.shape(first), dtype=bool)
    np.put_along_axis(members, top(first, k), True, axis=-1)
    return np.take_along_axis(members, top(second, k), axis=-1).sum(axis=-1)


def jaccard(first, second, k):
    """Jaccard index of the two top-k sets, |both| / |either|: two (..., neurons) influences -> (...) float."""
    both = shared(first, second, k)
    return both / (2 * k - both)


def jaccard_table(first, second, sizes, level=0.95):
    """Overlap of the top k for several k, beside what two unrelated rankings would give.

    Two random sets of k among n neurons share a hypergeometric number; the null's mean, its interval and the p value
    (chance of as many or more in common) are exact.

    Parameters
    ----------
    first, second : (neurons,) influences, higher is more.
    sizes : values of k.

    Returns
    -------
    DataFrame with k, shared, jaccard, null_jaccard, null_low, null_high, p.
    """
    n, rows = len(first), []
    for k in sizes:
        both = int(shared(first, second, k))
        null = stats.hypergeom(n, k, k)
        counts = np.arange(k + 1)
        low, high = null.ppf([(1 - level) / 2, (1 + level) / 2])
        rows.append({"k": k, "shared": both, "jaccard": both / (2 * k - both),
                     "null_jaccard": float(null.pmf(counts) @ (counts / (2 * k - counts))),
                     "null_low": low / (2 * k - low), "null_high": high / (2 * k - high), "p": float(null.sf(both - 1))})
    return pd.DataFrame(rows)


def rank_correlation(first, second):
    """Spearman's rank correlation of two rankings: two (..., neurons) influences -> (...) float."""
    ranks = [stats.rankdata(values, axis=-1) for values in (first, second)]
    ranks = [values - values.mean(axis=-1, keepdims=True) for values in ranks]
    norms = [np.sqrt((values**2).sum(axis=-1)) for values in ranks]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (ranks[0] * ranks[1]).sum(axis=-1) / (norms[0] * norms[1])


def graph(block, weights="positive"):
    """The correlation graph of a group: neurons joined by their correlation.

    Parameters
    ----------
    block : (m, m) correlation matrix.
    weights : "positive" (negative correlations are no edge: Louvain's null model needs weights of one sign) or
        "absolute".

    Returns
    -------
    networkx.Graph with m nodes and an edge attribute "weight".
    """
    if weights not in ("positive", "absolute"):
        raise ValueError(f"Weights are positive or absolute, not {weights!r}.")
    edges = np.abs(block) if weights == "absolute" else np.maximum(block, 0.0)
    edges = (edges + edges.T) / 2
    np.fill_diagonal(edges, 0.0)
    return nx.from_numpy_array(edges)


def communities(block, resolution=1.0, seed=0, weights="positive"):
    """Louvain's communities of a group's correlation graph: a list of sets of positions in the group."""
    return nx.community.louvain_communities(graph(block, weights), weight="weight", resolution=resolution, seed=seed)


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
    block = np.asarray(block)
    seeds = range(seeds) if np.ndim(seeds) == 0 else seeds
    flat = block.reshape(-1, *block.shape[-2:])
    values = np.array([_modularity(graph(one, weights), resolution, seeds) for one in flat])
    return values.reshape(block.shape[:-2])[()]


def _modularity(network, resolution, seeds):
    if not network.size(weight="weight") > 0:
        return np.nan
    partitions = [nx.community.louvain_communities(network, weight="weight", resolution=resolution, seed=seed)
                  for seed in seeds]
    return float(np.mean([nx.community.modularity(network, one, weight="weight", resolution=1.0) for one in partitions]))
