"""Tables of notebook 08, first part: do the same neurons matter for rare and for common tokens?

Neurons are ranked on half A of the documents for one kind of token and on half B for the other, so that no document is
in both; how far two rankings for the SAME kind of token agree across the halves is the most that can be expected.
"""

from functools import lru_cache

import numpy as np
import pandas as pd

from rare_token_neurons import checkpoints, comparisons, documents, influences, networks, passes, tables

SIZES = (5, 10, 20, 50, 100, 200, 500)  # top-k sets, beside the rare group's own size
PAIRS = (("rare", "common"), ("rare", "rare"), ("common", "common"))  # half A, half B
RESAMPLES = 500  # draws of documents
READS = ("steps", "ablation", *tables.POSITION_PARAMETERS)


def stage(settings, name, compute, module):
    """A table of the settings' checkpoints, with the key of everything that this notebook's tables depend on."""
    return tables.stage(settings, name, compute, reads=READS, inputs=passes.model_inputs(settings), modules=[module])


def each_revision(settings, rows):
    """The dicts that `rows(revision)` gives for every checkpoint asked for, as one table with revision and step."""
    found = [{"revision": name or "", "step": checkpoints.step_of(name)} | row
             for name in passes.revisions(settings) for row in rows(name)]
    return pd.DataFrame(found).astype({"step": "Int64"})


def rare_group(settings, revision):
    """The rare group of one checkpoint, chosen on half A: (m,) int, most influential first."""
    influence = influences.influence(settings)
    return influences.rare_group(influence[influence["revision"] == (revision or "")])


@lru_cache(maxsize=1)
def _rankings(settings, revision):
    """Influence of every neuron by (group, half): (1 + RESAMPLES, neurons), first with every document once."""
    halves, rankings = tables.positions(settings).groupby("document")["half"].first(), {}
    for group in ("rare", "common"):
        sums = influences.influence_sums(settings, revision, group)
        for half in "AB":
            inside = halves[sums.documents.numpy()].eq(half).to_numpy()
            n, changes = sums.n.numpy()[inside], sums.abs_sum.double().numpy()[inside]
            weights = documents.resamples(len(n), RESAMPLES, [settings.seed, *f"{group}{half}".encode()])
            rankings[group, half] = weights @ changes / (weights @ n)[:, None]
    return rankings


def overlap(settings):
    """How many of the top k neurons two rankings share: rare targets on half A against common or rare ones on half B.

    Returns
    -------
    DataFrame, one row (revision, step, first, second, k): shared, jaccard with low, high (95 % over documents); what
    unrelated rankings would give: null_jaccard, null_low, null_high (95 %), p (hypergeometric); group, whether k is the
    rare group's size
    """

    def rows(revision):
        rankings = _rankings(settings, revision)
        neurons, size = rankings["rare", "A"].shape[1], len(rare_group(settings, revision))
        sizes = sorted({k for k in SIZES if k <= neurons // 2} | {size})
        for first, second in PAIRS:
            one, other = rankings[first, "A"], rankings[second, "B"]
            for row in networks.jaccard_table(one[0], other[0], sizes).to_dict("records"):
                low, high = comparisons.spread(row["jaccard"], networks.jaccard(one[1:], other[1:], row["k"]))
                yield {"first": first, "second": second} | row | {"low": max(low, 0.0), "high": min(high, 1.0),
                                                                  "group": row["k"] == size}

    return stage(settings, "overlap", lambda: each_revision(settings, rows), "overlaps")


def rankings(settings):
    """Spearman's correlation of the influence of all neurons, half A against half B.

    Returns
    -------
    DataFrame, one row (revision, step, first, second): correlation, low, high (95 % over documents); corrected: that of
    rare and common over the geometric mean of their own agreement between the halves (1: the kinds differ by noise alone)
    """

    def rows(revision):
        made = _rankings(settings, revision)
        found = {pair: networks.rank_correlation(made[pair[0], "A"], made[pair[1], "B"]) for pair in PAIRS}
        corrected = found["rare", "common"] / np.sqrt(found["rare", "rare"] * found["common", "common"])
        for pair, values in (*found.items(), (("rare", "common corrected"), corrected)):
            low, high = comparisons.spread(values[0], values[1:])
            yield {"first": pair[0], "second": pair[1], "correlation": values[0], "low": low, "high": high}

    return stage(settings, "rankings", lambda: each_revision(settings, rows), "overlaps")
