"""Tables of how the final layer's activations lie in space and go together: notebooks 05 and 06.

The rare group is chosen on half A of the documents; all that is said of it here is measured on half B.
"""

from functools import lru_cache, partial

import numpy as np
import pandas as pd

from rare_token_neurons import checkpoints, comparisons, controls, geometry, influences, passes, phases, tables

WHERE = ("rare", "all")  # positions: those of rare targets, and every scored one
MOST_TOKENS = 10_000  # of all scored positions, evenly spaced
LEAST_PLATEAU = 20  # neurons
PHASE_SAMPLES = 20  # groups drawn from the power-law and the decay phase
FEW = 200  # draws of documents, over training
READS = ("steps", "ablation", *tables.POSITION_PARAMETERS)


# ---- what is measured, and which neurons


@lru_cache(maxsize=2)
def sample(settings, revision, where):
    """The `comparisons.Sample` of one checkpoint at rare or at all positions of half B."""
    values, documents = passes.activations(settings, revision, where)
    kept = np.linspace(0, len(values) - 1, min(len(values), MOST_TOKENS)).round().astype(int)
    w_out = passes.captured(settings, revision)[0].w_out.cpu().numpy()
    return comparisons.sample(values[kept], documents[kept], w_out)


def groups(influence_rows, living, seed=0):
    """The groups of neurons of one checkpoint, constant neurons left out.

    Parameters
    ----------
    influence_rows : rows of `influences.influence` of one revision; living : (p,) neurons that vary.

    Returns
    -------
    dict: "rare" (m,); "plateau" (., where the fitted one has 20 neurons); "power law" and "decay": (20, m), samples of
    the rare group's size, where the phase has as many neurons.
    """
    rare = influences.rare_group(influence_rows)
    rare = rare[np.isin(rare, living)]
    rows = influence_rows[influence_rows["group"] == "rare"].sort_values("neuron")
    fit = phases.fit(rows["mean_abs"].to_numpy())
    made = {"rare": rare}
    plateau = fit.plateau[np.isin(fit.plateau, living)]
    if len(plateau) >= LEAST_PLATEAU:
        made["plateau"] = plateau
    for name, part in (("power law", fit.power_law), ("decay", fit.decay)):
        part = part[np.isin(part, living)]
        if len(part) > len(rare):
            made[name] = controls.random_groups(part, len(rare), PHASE_SAMPLES, seed)
    return made


def _rows(found, **labels):
    return [labels | row for row in found]


def _account(measured, group, nulls):
    """Columns that say what is behind a row."""
    missed = controls.imbalance(measured.features, group, nulls["matched"]) if "matched" in nulls else (np.nan, np.nan)
    return {"size": group.shape[-1], "tokens": len(measured.values), "documents": len(np.unique(measured.documents)),
            "living": len(measured.living), "constant": measured.values.shape[1] - len(measured.living),
            "imbalance_scale": float(missed[0]), "imbalance_norm": float(missed[1])}


def _compared(settings, relations, default="last"):
    """Rows of `relations(measured, name, group, nulls)` for every checkpoint, kind of position and group."""
    influence, rows = influences.influence(settings, default), []
    for revision in passes.revisions(settings, default):
        of_step = influence[influence["revision"] == (revision or "")]
        for where in WHERE:
            measured = sample(settings, revision, where)
            for name, group in groups(of_step, measured.living, settings.seed).items():
                nulls = comparisons.control_groups(measured, group if group.ndim == 1 else group[0], seed=settings.seed)
                nulls = nulls if group.ndim == 1 else {"random": nulls["random"]}
                labels = {"revision": revision or "", "step": checkpoints.step_of(revision), "where": where, "group": name}
                rows += _rows(relations(measured, name, group, nulls), **labels, **_account(measured, group, nulls))
    return pd.DataFrame(rows).astype({"step": "Int64"})


def _stage(settings, name, compute, default="last"):
    return tables.stage(settings, name, compute, reads=READS, inputs=passes.model_inputs(settings, default),
                        modules=["activations"])


# ---- notebook 05


def dimensions(settings):
    """Effective dimension (95 % of the variance) and participation ratio, each over the group's size.

    Returns
    -------
    DataFrame, one row (revision, step, where, group, statistic): value, low, high (95 % over documents); random and
    matched (means of the control groups), each with _low and _high (95 % of them), p_ (empirical, on `side`, the side of
    the paper's claim; "" and NaN for samples of a phase), less_ (value less the controls' mean) with its interval over
    documents (rare group only); size, tokens, documents, living and constant neurons (the latter are left out),
    imbalance_scale and imbalance_norm (what matching missed, in standard deviations)
    """

    def relations(measured, name, group, nulls):
        return comparisons.within(measured, group, nulls, comparisons.DIMENSIONS,
                                  partial(comparisons.dimensions, tokens=len(measured.values)),
                                  baselines=comparisons.BASELINES if name == "rare" else 0, seed=settings.seed)

    return _stage(settings, "activation_dimension", lambda: _compared(settings, relations))


def variance(settings):
    """Share of the standardised activations' variance in the first 1, 2, ... principal components.

    Returns
    -------
    DataFrame, one row (revision, step, where, group, components): value, low, high (95 % over documents), random and
    matched with _low and _high; only the rare group and the plateau
    """

    def relations(measured, name, group, nulls):
        if group.ndim == 2:
            return []
        steps = dict.fromkeys(range(1, len(group) + 1), "")
        found = comparisons.within(measured, group, nulls, steps, geometry.cumulative_variance, seed=settings.seed)
        kept = ("value", "low", "high", *(kind + end for kind in ("random", "matched") for end in ("", "_low", "_high")))
        return [{"components": row["statistic"]} | {name: row[name] for name in kept} for row in found]

    def compute():
        table = _compared(settings, relations)
        return table.drop(columns=["living", "constant", "imbalance_scale", "imbalance_norm"])

    return _stage(settings, "activation_variance", compute)


# ---- notebook 06


def coactivation(settings):
    """Correlation and cosine of activations inside the groups, and between them and all other neurons.

    Returns
    -------
    DataFrame, one row (revision, step, where, group, relation, measure, statistic) and the columns of `dimensions`.
    relation: "within", or "between" (rare group and plateau); measure: "correlation" (centred) or "cosine" (uncentred);
    statistic: "mean", "mean absolute", "negative share" of the pairs
    """

    def relations(measured, name, group, nulls):
        return _pairs(measured, group, nulls, outside=group.ndim == 1, seed=settings.seed,
                      baselines=comparisons.BASELINES if name == "rare" else 0)

    return _stage(settings, "coactivation", lambda: _compared(settings, relations))


def _pairs(measured, group, nulls, *, outside, **options):
    """Rows of the pairs within a group and, where `outside`, of those between it and the other neurons."""
    rows = []
    for measure, centred in comparisons.MEASURES.items():
        found = comparisons.within(measured, group, nulls, comparisons.PAIRS, comparisons.pairs, centred=centred, **options)
        rows += _rows(found, relation="within", measure=measure)
        if outside:
            found = comparisons.between(measured, group, nulls, centred=centred, **options)
            rows += _rows(found, relation="between", measure=measure)
    return rows


def distributions(settings, bins=100):
    """How correlations and cosines are spread over pairs of neurons.

    Returns
    -------
    DataFrame, one row (revision, step, where, measure, set, left): left edge of a bin in -1 .. 1, share of the set's
    pairs in it; sets: "rare" (pairs inside the group), "between" (group with all others), "random", "matched" (pairs
    inside all control groups); pairs, their number
    """
    edges = np.linspace(-1, 1, bins + 1)

    def rows(measured, rare, nulls):
        for measure, matrix in measured.matrices.items():
            sets = {"rare": geometry.pairs(geometry.within(matrix, rare)),
                    "between": matrix[np.ix_(rare, np.setdiff1d(measured.living, rare))]}
            sets |= {kind: geometry.pairs(geometry.within(matrix, made)) for kind, made in nulls.items()}
            for name, values in sets.items():
                share = np.histogram(np.clip(values, -1, 1), edges)[0] / values.size
                yield pd.DataFrame({"measure": measure, "set": name, "left": edges[:-1], "share": share, "pairs": values.size})

    return _stage(settings, "coactivation_distribution", lambda: _of_rare_groups(settings, rows))


def matrices(settings):
    """The correlations inside the rare group and inside a typical random and matched group: that of median mean.

    Returns
    -------
    DataFrame, one row (revision, step, where, group, i, j): neurons i and j, correlation, cosine
    """

    def rows(measured, rare, nulls):
        chosen = {"rare": rare} | {kind: _typical(measured, made) for kind, made in nulls.items()}
        for name, group in chosen.items():
            first, second = np.repeat(group, len(group)), np.tile(group, len(group))
            yield pd.DataFrame({"group": name, "i": first, "j": second} |
                               {measure: matrix[first, second] for measure, matrix in measured.matrices.items()})

    return _stage(settings, "coactivation_matrix", lambda: _of_rare_groups(settings, rows))


def _typical(measured, made):
    """Of many groups (draws, m) the one whose mean correlation is the median."""
    means = geometry.mean_pair(geometry.within(measured.matrices["correlation"], made))
    return made[np.argsort(means, kind="stable")[len(means) // 2]]


def _of_rare_groups(settings, rows):
    """The tables that `rows(measured, rare, nulls)` yields for each checkpoint and kind of position, as one."""
    influence, made = influences.influence(settings), []
    for revision in passes.revisions(settings):
        for where in WHERE:
            measured = sample(settings, revision, where)
            rare = groups(influence[influence["revision"] == (revision or "")], measured.living)["rare"]
            for part in rows(measured, rare, comparisons.control_groups(measured, rare, seed=settings.seed)):
                made.append(part.assign(revision=revision or "", step=checkpoints.step_of(revision), where=where))
    return pd.concat(made, ignore_index=True).astype({"step": "Int64"})


# ---- both, over training


def over_training(settings):
    """Dimensions and co-activation at every checkpoint, for the group of that checkpoint ("rare") and for the last
    checkpoint's group followed back ("last rare", without controls); "between" at rare positions only.

    Returns
    -------
    DataFrame with the columns of `coactivation` less those of the differences (relation "within" and measure
    "correlation" for the dimensions); without rows for a model that has one checkpoint only
    """

    def compute():
        names = passes.revisions(settings, "all")
        if len(names) < 2:
            return pd.DataFrame({"step": pd.array([], dtype="Int64")})
        influence, rows = influences.influence(settings, "all"), []
        last = influences.rare_group(influence[influence["revision"] == names[-1]])
        for name in names:
            of_step = influence[influence["revision"] == name]
            for where in WHERE:
                measured = sample(settings, name, where)
                for label, chosen in (("rare", influences.rare_group(of_step)), ("last rare", last)):
                    group = chosen[np.isin(chosen, measured.living)]
                    nulls = comparisons.control_groups(measured, group, seed=settings.seed) if label == "rare" else {}
                    found = _over_training(measured, group, nulls, where == "rare", settings.seed)
                    rows += _rows(found, revision=name, step=checkpoints.step_of(name), where=where, group=label,
                                  **_account(measured, group, nulls))
        table = pd.DataFrame(rows).astype({"step": "Int64"})
        return table.drop(columns=[name for name in table.columns if name.startswith("less_")])

    return _stage(settings, "activations_over_training", compute, "all")


def _over_training(measured, group, nulls, outside, seed):
    dimensions = partial(comparisons.dimensions, tokens=len(measured.values))
    found = comparisons.within(measured, group, nulls, comparisons.DIMENSIONS, dimensions, resamples=FEW, seed=seed)
    return (_rows(found, relation="within", measure="correlation")
            + _pairs(measured, group, nulls, outside=outside, resamples=FEW, seed=seed))
