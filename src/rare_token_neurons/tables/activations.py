"""The tables of activations: how many dimensions groups of final-layer neurons span (notebook 05), how far the neurons of a
group co-activate (notebook 06), and both over training.

The rare group is chosen on half A of the documents; all that is said of it here is measured on half B.
"""

from functools import lru_cache, partial

import numpy as np
import pandas as pd

from rare_token_neurons.statistics import controls, geometry
from rare_token_neurons.tables import checkpoints as passes, influence as influences
from rare_token_neurons.tables.stage import table

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


@lru_cache(maxsize=4)
def _read(made, settings):
    return made(settings)  # once: each call hashes the weights of all checkpoints


def rows_at(made, settings, revision):
    """The rows of one checkpoint in a table of them, such as `influence.influence`."""
    rows = _read(made, settings)
    return rows[rows["revision"] == (revision or "")]


def rare_group(settings, revision, default="last"):
    """The rare group of one checkpoint, chosen on half A: (m,) int, most influential first.

    default : "last" or "all", which checkpoints it is one of (see `checkpoints.revisions`).
    """
    more = default == "all" and passes.revisions(settings, "all") != passes.revisions(settings)
    made = influences.influence_over_training if more else influences.influence
    return influences.rare_group(rows_at(made, settings, revision))


def rare_and_controls(settings, revision, where, draws=None):
    """The rare group beside its control groups.

    Returns
    -------
    controls.Sample, of half B ; (m,) int, the group without constant neurons ; dict of kind to (draws, m), the controls
    """
    measured, group = sample(settings, revision, where), rare_group(settings, revision)
    group = group[np.isin(group, measured.living)]
    return measured, group, controls.control_groups(measured, group, draws, settings.seed)


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


def phase_ends(fits):
    """Last ranks of plateau and power law on rare targets: the rows of `influence.phases` of one revision -> (2,) int."""
    return fits[fits["group"] == "rare"].iloc[0][["bp_plateau_end", "bp_law_end"]].to_numpy(dtype=int)


def account(measured, group, nulls):
    """Columns that say what is behind a row."""
    return {"size": group.shape[-1], "tokens": len(measured.values), "documents": len(np.unique(measured.documents)),
            "living": len(measured.living), "constant": measured.values.shape[1] - len(measured.living),
            **controls.missed(measured.features, group, nulls.get("matched"))}


def compared(settings, revision, relations):
    """Rows of `relations(measured, name, group, nulls)` for every kind of position and group of one checkpoint."""
    influence, fits = (rows_at(made, settings, revision) for made in (influences.influence, influences.phases))
    for where in WHERE:
        measured = sample(settings, revision, where)
        for name, group in groups(influence, phase_ends(fits), measured.living, settings.seed).items():
            nulls = controls.control_groups(measured, group if group.ndim == 1 else group[0], seed=settings.seed)
            nulls = nulls if group.ndim == 1 else {"random": nulls["random"]}
            labels = {"where": where, "group": name, **account(measured, group, nulls)}
            yield from (labels | row for row in relations(measured, name, group, nulls))


# ---- notebook 05


@table(passes.LAST, reads=influences.CURVE, per=("revision",))
def activation_dimension(settings, revision):
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

    return compared(settings, revision, relations)


@table(passes.LAST, reads=influences.CURVE, per=("revision",))
def activation_variance(settings, revision):
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

    made = pd.DataFrame(compared(settings, revision, relations))
    return made.drop(columns=["living", "constant", "imbalance_scale", "imbalance_norm"])


# ---- notebooks 05 and 06, over training


@table(passes.EVERY, reads=influences.EFFECTS, per=("revision",))
def activations_over_training(settings, revision):
    """Dimensions and co-activation at every checkpoint, for the group of that checkpoint ("rare") and for the last
    checkpoint's group followed back ("last rare", without controls); "between" at rare positions only.

    Returns
    -------
    DataFrame with the columns of `coactivation` less those of the differences (relation "within" and
    measure "correlation" for the dimensions); without rows for a model that has one checkpoint only
    """
    names, rows = passes.revisions(settings, "all"), []
    if len(names) < 2:
        return []
    own, last = (rare_group(settings, name, "all") for name in (revision, names[-1]))
    for where in WHERE:
        measured = sample(settings, revision, where)
        for label, chosen in (("rare", own), ("last rare", last)):
            group = chosen[np.isin(chosen, measured.living)]
            nulls = controls.control_groups(measured, group, seed=settings.seed) if label == "rare" else {}
            labels = {"where": where, "group": label, **account(measured, group, nulls)}
            rows += [labels | row for row in _at_a_step(measured, group, nulls, where == "rare", settings.seed)]
    return pd.DataFrame(rows).filter(regex="^(?!less_)")


def _at_a_step(measured, group, nulls, outside, seed):
    dimensions = partial(controls.dimensions, tokens=len(measured.values))
    found = controls.within(measured, group, nulls, controls.DIMENSIONS, dimensions, resamples=FEW, seed=seed)
    return ([{"relation": "within", "measure": "correlation"} | row for row in found]
            + controls.relations(measured, group, nulls, outside=outside, resamples=FEW, seed=seed))


# ---- co-activation (notebook 06)

BINS = 50  # of correlations and cosines, from -1 to 1
EDGES = np.linspace(-1, 1, BINS + 1)


@table(passes.LAST, reads=influences.CURVE, per=("revision",))
def coactivation(settings, revision):
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

    return compared(settings, revision, relations)


@table(passes.LAST, reads=influences.EFFECTS, per=("revision",))
def coactivation_distribution(settings, revision):
    """How correlations and cosines are spread over pairs of neurons.

    Returns
    -------
    DataFrame, one row (revision, step, where, relation, measure, set, left): left edge of a bin, share of the set's
    pairs in it, low and high (95 % of the control groups; NaN for "rare"); relation: "within" (pairs inside the group) or
    "between" (group with all other living neurons); set: "rare", "random", "matched"; pairs in one group
    """
    for where in WHERE:
        measured, rare, nulls = rare_and_controls(settings, revision, where)
        for measure, matrix in measured.matrices.items():
            for kind, made in ({"rare": rare[None]} | nulls).items():
                for relation, share, pairs in spread(matrix, measured.living, made):
                    low, high = np.quantile(share, [0.025, 0.975], axis=0) if kind != "rare" else (np.nan, np.nan)
                    yield pd.DataFrame({"where": where, "relation": relation, "measure": measure, "set": kind,
                                        "left": EDGES[:-1], "share": share.mean(axis=0), "low": low, "high": high,
                                        "pairs": pairs})


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


@table(passes.LAST, reads=influences.EFFECTS, per=("revision",))
def coactivation_matrix(settings, revision):
    """The correlations inside the rare group and inside a typical random and matched group: that of median mean.

    Returns
    -------
    DataFrame, one row (revision, step, where, group, i, j): neurons i and j, correlation, cosine
    """
    for where in WHERE:
        measured, rare, nulls = rare_and_controls(settings, revision, where)
        for name, group in ({"rare": rare} | {kind: _typical(measured, made) for kind, made in nulls.items()}).items():
            first, second = np.repeat(group, len(group)), np.tile(group, len(group))
            yield pd.DataFrame({"where": where, "group": name, "i": first, "j": second} |
                               {measure: matrix[first, second] for measure, matrix in measured.matrices.items()})


def _typical(measured, made):
    """Of many groups (draws, m) the one whose mean correlation is the median."""
    means = geometry.mean_pair(geometry.within(measured.matrices["correlation"], made))
    return made[np.argsort(means, kind="stable")[len(means) // 2]]
