"""Tables of how many dimensions groups of final-layer neurons span (notebook 05), and of groups over training (05, 06).

The rare group is chosen on half A of the documents; all that is said of it here is measured on half B.
"""

from functools import lru_cache, partial

import numpy as np
import pandas as pd

from rare_token_neurons.models import checkpoints
from rare_token_neurons.statistics import controls, geometry
from rare_token_neurons.tables import checkpoints as passes, influence as influences, stage

WHERE = ("rare", "all")  # positions: those of rare targets, and every scored one
MOST_TOKENS = 10_000  # of all scored positions, evenly spaced
LEAST_PLATEAU = 20  # neurons
PHASE_SAMPLES = 20  # groups drawn from the power-law and the decay phase
FEW = 200  # draws of documents, over training


# ---- what is measured, and which neurons


@lru_cache(maxsize=2)
def sample(settings, revision, where):
    """The `controls.Sample` of one checkpoint at rare or at all positions of half B."""
    values, documents = passes.activations(settings, revision, where)
    kept = np.linspace(0, len(values) - 1, min(len(values), MOST_TOKENS)).round().astype(int)
    w_out = passes.captured(settings, revision)[0].w_out.cpu().numpy()
    return controls.sample(values[kept], documents[kept], w_out)


def groups(influence_rows, ends, living, seed=0):
    """The groups of neurons of one checkpoint, constant neurons left out.

    Neurons are ranked by influence on rare targets on half A of the documents.

    Parameters
    ----------
    influence_rows : rows of `influence.influence` of one revision.
    ends : (2,) last rank of the plateau and of the power law, found by change points (`influence.phases`).
    living : (p,) neurons that vary.

    Returns
    -------
    dict: "rare" (m,), the top 1.7 %; "plateau" (., where it has 20 neurons); "power law" and "decay": (20, m), samples of
    the rare group's size from the phase less the rare group, where it has as many neurons.
    """
    rare = influences.rare_group(influence_rows)
    rows = influence_rows[influence_rows["group"] == "rare"].sort_values("neuron")
    ranked = np.argsort(-rows["mean_abs_a"].to_numpy(), kind="stable")
    plateau, law, decay = (part[np.isin(part, living)] for part in np.split(ranked, np.asarray(ends, dtype=int)))
    made = {"rare": rare[np.isin(rare, living)]}
    if len(plateau) >= LEAST_PLATEAU:
        made["plateau"] = plateau
    for name, part in (("power law", law), ("decay", decay)):
        part = np.setdiff1d(part, rare)
        if len(part) > len(rare):
            made[name] = controls.random_groups(part, len(made["rare"]), PHASE_SAMPLES, seed)
    return made


def phase_ends(fits, revision):
    """Last ranks of plateau and power law at one checkpoint: a row of `influence.phases` -> (2,) int."""
    row = fits[(fits["revision"] == (revision or "")) & (fits["group"] == "rare")].iloc[0]
    return row[["bp_plateau_end", "bp_law_end"]].to_numpy(dtype=int)


def account(measured, group, nulls):
    """Columns that say what is behind a row."""
    return {"size": group.shape[-1], "tokens": len(measured.values), "documents": len(np.unique(measured.documents)),
            "living": len(measured.living), "constant": measured.values.shape[1] - len(measured.living),
            **controls.missed(measured.features, group, nulls.get("matched"))}


def compared(settings, relations):
    """Rows of `relations(measured, name, group, nulls)` for every checkpoint, kind of position and group."""
    influence, fits, rows = influences.influence(settings), influences.phases(settings), []
    for revision in passes.revisions(settings):
        of_step = influence[influence["revision"] == (revision or "")]
        for where in WHERE:
            measured = sample(settings, revision, where)
            for name, group in groups(of_step, phase_ends(fits, revision), measured.living, settings.seed).items():
                nulls = controls.control_groups(measured, group if group.ndim == 1 else group[0], seed=settings.seed)
                nulls = nulls if group.ndim == 1 else {"random": nulls["random"]}
                labels = {"revision": revision or "", "step": checkpoints.step_of(revision), "where": where, "group": name}
                rows += [labels | account(measured, group, nulls) | row for row in relations(measured, name, group, nulls)]
    return pd.DataFrame(rows).astype({"step": "Int64"})


def activation_stage(settings, name, compute, default="last", module="activations"):
    """One table of notebook 05 or 06; module, where it is computed."""
    return stage.staged(settings, name, compute, reads=influences.READS, inputs=passes.model_inputs(settings, default),
                        modules=[module])


# ---- notebook 05


def activation_dimension(settings):
    """Effective dimension (95 % of the variance) and participation ratio, each over the group's size.

    Returns
    -------
    DataFrame, one row (revision, step, where, group, statistic): value, low, high (95 % over documents); random and
    matched (means of the control groups), each with _low and _high (95 % of them), p_ (empirical, on `side`, the side of
    the paper's claim; "" and NaN for samples of a phase), less_ (value less the controls' mean) with its interval over
    documents and over the choice of a control group (rare group only); size, tokens, documents, living and constant
    neurons (the latter are left out), imbalance_scale and imbalance_norm (what matching missed, in standard deviations)
    """

    def relations(measured, name, group, nulls):
        return controls.within(measured, group, nulls, controls.DIMENSIONS,
                                  partial(controls.dimensions, tokens=len(measured.values)),
                                  baselines=controls.BASELINES if name == "rare" else 0, seed=settings.seed)

    return activation_stage(settings, "activation_dimension", lambda: compared(settings, relations))


def activation_variance(settings):
    """Share of the standardised activations' variance in the first 1, 2, ... principal components.

    Returns
    -------
    DataFrame, one row (revision, step, where, group, components): value, low, high (95 % over documents), random and
    matched with _low and _high; size, tokens, documents; only the rare group and the plateau
    """

    def relations(measured, name, group, nulls):
        if group.ndim == 2:
            return []
        steps = dict.fromkeys(range(1, len(group) + 1), "")
        found = controls.within(measured, group, nulls, steps, geometry.cumulative_variance, seed=settings.seed)
        kept = ("value", "low", "high", *(kind + end for kind in ("random", "matched") for end in ("", "_low", "_high")))
        return [{"components": row["statistic"]} | {name: row[name] for name in kept} for row in found]

    def compute():
        table = compared(settings, relations)
        return table.drop(columns=["living", "constant", "imbalance_scale", "imbalance_norm"])

    return activation_stage(settings, "activation_variance", compute)


# ---- notebooks 05 and 06, over training


def activations_over_training(settings):
    """Dimensions and co-activation at every checkpoint, for the group of that checkpoint ("rare") and for the last
    checkpoint's group followed back ("last rare", without controls); "between" at rare positions only.

    Returns
    -------
    DataFrame with the columns of `coactivation` less those of the differences (relation "within" and
    measure "correlation" for the dimensions); without rows for a model that has one checkpoint only
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
                    nulls = controls.control_groups(measured, group, seed=settings.seed) if label == "rare" else {}
                    labels = {"revision": name, "step": checkpoints.step_of(name), "where": where, "group": label}
                    rows += [labels | account(measured, group, nulls) | row
                             for row in _at_a_step(measured, group, nulls, where == "rare", settings.seed)]
        table = pd.DataFrame(rows).astype({"step": "Int64"})
        return table.drop(columns=[name for name in table.columns if name.startswith("less_")])

    return activation_stage(settings, "activations_over_training", compute, "all")


def _at_a_step(measured, group, nulls, outside, seed):
    dimensions = partial(controls.dimensions, tokens=len(measured.values))
    found = controls.within(measured, group, nulls, controls.DIMENSIONS, dimensions, resamples=FEW, seed=seed)
    return ([{"relation": "within", "measure": "correlation"} | row for row in found]
            + controls.relations(measured, group, nulls, outside=outside, resamples=FEW, seed=seed))


# ---- co-activation (notebook 06)

BINS = 50  # of correlations and cosines, from -1 to 1
EDGES = np.linspace(-1, 1, BINS + 1)


def _stage(settings, name, compute):
    return activation_stage(settings, name, compute, module="coactivations")


def coactivation(settings):
    """Correlation and cosine of activations inside the groups, and between them and all other neurons.

    Returns
    -------
    DataFrame, one row (revision, step, where, group, relation, measure, statistic) and the columns of
    `activation_dimension`. relation: "within", or "between" (rare group and plateau); measure: "correlation" (centred)
    or "cosine" (uncentred); statistic: "mean", "mean absolute", "negative share" of the pairs
    """

    def relations(measured, name, group, nulls):
        return controls.relations(measured, group, nulls, outside=group.ndim == 1, seed=settings.seed,
                                     baselines=controls.BASELINES if name == "rare" else 0)

    return _stage(settings, "coactivation", lambda: compared(settings, relations))


def coactivation_distribution(settings):
    """How correlations and cosines are spread over pairs of neurons.

    Returns
    -------
    DataFrame, one row (revision, step, where, relation, measure, set, left): left edge of a bin, share of the set's
    pairs in it, low and high (95 % of the control groups; NaN for "rare"); relation: "within" (pairs inside the group) or
    "between" (group with all other living neurons); set: "rare", "random", "matched"; pairs in one group
    """

    def rows(measured, rare, nulls):
        for measure, matrix in measured.matrices.items():
            for kind, made in ({"rare": rare[None]} | nulls).items():
                for relation, share, pairs in spread(matrix, measured.living, made):
                    low, high = np.quantile(share, [0.025, 0.975], axis=0) if kind != "rare" else (np.nan, np.nan)
                    yield pd.DataFrame({"relation": relation, "measure": measure, "set": kind, "left": EDGES[:-1],
                                        "share": share.mean(axis=0), "low": low, "high": high, "pairs": pairs})

    return _stage(settings, "coactivation_distribution", lambda: _of_rare_groups(settings, rows))


def spread(matrix, living, groups):
    """How the pairs of each group are spread over the bins, inside it and with the living neurons outside it.

    Parameters
    ----------
    matrix : (neurons, neurons) correlations ; living : (p,) int ; groups : (g, m) int, of living neurons.

    Returns
    -------
    ("within", share (g, bins), pairs a group), ("between", share (g, bins), pairs a group)
    """
    m, p = groups.shape[1], len(living)
    place = np.clip(np.digitize(matrix[np.ix_(living, living)], EDGES) - 1, 0, BINS - 1)  # (p, p)
    of_neuron = np.stack([np.bincount(row, minlength=BINS) for row in place])  # (p, bins), itself included
    columns = np.searchsorted(living, groups)  # (g, m)
    blocks = geometry.within(place, columns).reshape(len(groups), -1)  # (g, m * m), each pair twice
    inside = np.stack([np.bincount(block, minlength=BINS) for block in blocks])
    outside = of_neuron[columns].sum(axis=1) - inside
    inside[:, -1] -= m  # of each neuron with itself
    return ("within", inside / (m * (m - 1)), m * (m - 1) // 2), ("between", outside / (m * (p - m)), m * (p - m))


def coactivation_matrix(settings):
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
        rare = influences.rare_group(influence[influence["revision"] == (revision or "")])
        for where in WHERE:
            measured = sample(settings, revision, where)
            living = rare[np.isin(rare, measured.living)]
            for part in rows(measured, living, controls.control_groups(measured, living, seed=settings.seed)):
                made.append(part.assign(revision=revision or "", step=checkpoints.step_of(revision), where=where))
    return pd.concat(made, ignore_index=True).astype({"step": "Int64"})
