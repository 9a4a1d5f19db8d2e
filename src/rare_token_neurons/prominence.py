"""How far the head of the ranked curve stands out: the table behind claims C1, C2 and C7.

The ratio of the rare group's influence to the median neuron's, chosen on half A of the documents and measured on half
B, and the share of the neurons in the plateau that change points find.
"""

import numpy as np
import pandas as pd

from rare_token_neurons import comparisons, controls, curves, documents, geometry, influences, networks, nulls, passes
from rare_token_neurons import resampling, tables, trajectories

DRAWS = 1000  # of documents, and of the null
READS = curves.READS
MODULES = ["prominence"]


def ranked_null(sums, counts, in_a, size, *, draws=DRAWS, seed=0):
    """The ratio that ranking alone gives: half-normal numbers in place of the influences, measured as these are.

    The influence of neurons that all do the same kind of thing, to random extents, is about half-normal: of 1,536 such
    neurons the top 1.7 % have four times the median's influence. "Far more than the rest" has to be more than that. The
    number of rank r has the noise of the neuron of rank r; half A of the documents chooses the top, half B measures it.

    Parameters
    ----------
    sums : (documents, neurons) per-document sums ; counts : (documents,) positions ; in_a : bool (documents,).
    size : neurons of the group.

    Returns
    -------
    (draws,) float
    """
    every = documents.influence(sums, counts, np.ones((1, len(counts))))[0]
    living, rng = every > 0, np.random.default_rng(seed)
    truth = nulls.sample(every, "half-normal", draws, rng)  # (draws, living), falling
    plain, *drawn = np.moveaxis(documents.influence(sums[:, living], counts, trajectories.halves(in_a, draws, seed)), 1, 0)
    noise = np.divide(drawn, plain, out=np.ones_like(drawn), where=plain > 0)[..., documents.order_of(every[living])]
    first, second = np.moveaxis(truth[:, None] * noise, 1, 0)  # (draws, living) of half A, of half B
    top = np.take_along_axis(second, networks.top(first, size), -1).mean(-1)
    return top / np.median(np.pad(second, ((0, 0), (0, int((~living).sum())))), -1)


def ratio(sums, counts, members, groups, *, draws=DRAWS, seed=0):
    """Influence of a group over the median neuron's.

    Parameters
    ----------
    sums : (documents, neurons) per-document sums, counts : (documents,) positions, of documents that did not choose
        the group.
    members : (m,) the group ; groups : kind -> (g, m) control groups.

    Returns
    -------
    dict with value, low, high (95 % over documents), and for each kind its mean ratio (no p value: a group that was chosen
    for its influence has more than other groups, whatever the neurons are)
    """
    counts = np.asarray(counts, dtype=float)
    values = documents.influence(sums, counts, documents.resamples(len(counts), draws, seed))  # (1 + draws, neurons)
    found = trajectories.over_median(values, members)
    low, high = resampling.interval(found[0], found[1:])
    means = {kind: float(trajectories.over_median(values[0], made).mean()) for kind, made in groups.items()}
    return {"value": float(found[0]), "low": float(low), "high": float(high)} | means


def plateau(changes, families, neurons):
    """Share of the neurons in the plateau, breaks of the line; p: chance of a head as far below the law's line, by family.

    Parameters
    ----------
    changes : breaks.Breaks ; families : dict of nulls.Comparison ; neurons : all of them.
    """
    low, high = changes.intervals["plateau_end"]
    row = {"breaks": changes.breaks, "value": changes.boundaries[0] / neurons, "low": low / neurons, "high": high / neurons,
           "null": 0.0}
    return row | {f"p_{name.replace('-', '_')}": found.p_plateau for name, found in families.items()}


def _controls(settings, revision, members):
    """The living members of a group, and random and matched groups of their number, as notebooks 05 and 06 draw them."""
    values, owners = passes.activations(settings, revision)
    living = np.flatnonzero(geometry.alive(values))
    w_out = passes.captured(settings, revision)[0].w_out.cpu().numpy()
    sample = comparisons.Sample(values, owners, living, controls.matching_features(values, w_out), {})
    members = members[np.isin(members, living)]
    return members, comparisons.control_groups(sample, members, seed=settings.seed)


def _ratio_of(settings, revision, rows):
    members, groups = _controls(settings, revision, influences.rare_group(rows))
    found = influences.influence_sums(settings, revision, "rare")
    half = tables.positions(settings).groupby("document")["half"].first()
    in_b = half.loc[found.documents.numpy()].eq("B").to_numpy()
    sums = (found.abs_sum if settings.aggregate == "mean_abs" else found.change_sum).double().numpy()
    counts = found.n.double().numpy()
    row = ratio(sums[in_b], counts[in_b], members, groups, seed=settings.seed)
    null = ranked_null(sums, counts, ~in_b, len(members), seed=settings.seed)
    row |= dict(zip(("null_low", "null_high"), np.quantile(null, [0.025, 0.975]))) | {"null": null.mean()}
    return row | {"p_half_normal": controls.empirical_p(row["value"], null, "greater"), "size": len(members),
                  "positions": int(counts[in_b].sum()), "documents": int(in_b.sum())}


def prominence(settings):
    """How far the head stands out at the last of the settings' checkpoints.

    Returns
    -------
    DataFrame with revision, group (targets), statistic ("ratio" of the rare group to the median neuron, half B;
    "plateau": share of the neurons), value, low, high (95 % over documents), null (of a ratio the mean of `ranked_null`, with
    null_low and null_high, 95 % of it); random and matched (mean ratio of such groups); p_half_normal (of a ratio: ranking
    alone gives as much), for a plateau breaks (of the line), p_lognormal, p_half_normal, p_exponential (head as far below
    the line); neurons, size (of the group), positions, documents
    """

    def compute():
        revision, table = passes.revisions(settings)[-1], influences.influence(settings)
        rows = table[table["revision"] == (revision or "")]
        found = [{"group": "rare", "statistic": "ratio"} | _ratio_of(settings, revision, rows)]
        for group, part in rows.groupby("group", sort=False):
            _, changes, families, (_, counts) = curves.fitted(settings, revision, group)
            found.append({"group": group, "statistic": "plateau", **plateau(changes, families, len(part)),
                          "positions": int(counts.sum()), "documents": len(counts)})
        made = pd.DataFrame(found).assign(neurons=rows["neuron"].nunique())
        made.insert(0, "revision", revision or "")
        return made.astype({"size": "Int64", "breaks": "Int64"})

    return tables.stage(settings, "prominence", compute, reads=READS, inputs=passes.model_inputs(settings), modules=MODULES)
