"""The tables of activations: how many dimensions groups of final-layer neurons span (notebook 05), how far the neurons of a
group co-activate (notebook 06), and both over training.

The rare group is chosen on half A of the documents; all that is said of it here is measured on half B. Matched groups hold
no neuron of the rare group nor, where the head of the ranked curve is raised, of the fitted head. In a gated MLP the sign of
a neuron is arbitrary: flipping its row of the up projection and its output column leaves the function unchanged. There a
mean correlation or a share of negative ones tells nothing; |r|, dimensions and variance shares do not depend on signs.
"""

from functools import lru_cache, partial

import numpy as np
import pandas as pd

from rare_token_neurons.curve import heads
from rare_token_neurons.models import checkpoints as models
from rare_token_neurons.statistics import controls, geometry, rankings
from rare_token_neurons.tables import checkpoints as passes, emergence, influence as influences
from rare_token_neurons.tables.stage import table

WHERE = ("rare", "all")  # positions: those of rare targets, and every scored one
LEAST_HEAD = 20  # neurons
PHASE_SAMPLES = 20  # groups drawn from the power-law and the decay phase
SIGNED, MOST_SIGNED = (10, 50, 100), 0.05  # top neurons of one sign, and the largest share of that sign's neurons
FEW = 200  # draws of documents, over training


# ---- what is measured, and which neurons


@lru_cache(maxsize=2)
def sample(settings, revision, where):
    """The `controls.Sample` of one checkpoint at rare or at all positions of half B."""
    at = passes.spread(settings, revision) if where == "all" else passes.activations(settings, revision, where)
    return controls.sample(*at, passes.subject(settings, revision).w_out.cpu().numpy())


@lru_cache(maxsize=4)
def _read(made, settings):
    return made(settings)  # once: each call hashes the weights of all checkpoints


def rows_at(made, settings, revision):
    """The rows of one checkpoint in a table of them, such as `influence.influence`."""
    return passes.of(_read(made, settings), revision)


def _more(settings, default):
    """Whether these are other checkpoints than the settings' own."""
    return default == "all" and passes.revisions(settings, "all") != passes.revisions(settings)


def influence_at(settings, revision, default="last"):
    """Every neuron's influence at one checkpoint: rows of `influence.influence`.

    default : "last" or "all", which checkpoints it is one of (see `checkpoints.revisions`).
    """
    made = influences.influence_over_training if _more(settings, default) else influences.influence
    return rows_at(made, settings, revision)


def phases_at(settings, revision, default="last"):
    """The phases of one checkpoint's curves: rows of `influence.phases`, or of those over training."""
    if not _more(settings, default):
        return rows_at(influences.phases, settings, revision)
    rows = _read(emergence.emergence_phases, settings)
    return rows[rows["step"] == models.step_of(revision)]


def rare_group(settings, revision, default="last"):
    """The rare group of one checkpoint, chosen on half A: (m,) int, most influential first."""
    return influences.rare_group(influence_at(settings, revision, default))


def leaders(settings, revision, default="last"):
    """The neurons of one checkpoint that no matched group holds: the rare group and, where it is raised, the fitted head."""
    rows, fit = influence_at(settings, revision, default), fitted(phases_at(settings, revision, default))
    rare = influences.rare_group(rows)
    return np.union1d(rare, split(rows, fit)["head"]) if fit["raised"] else np.sort(rare)


def rare_and_controls(settings, revision, where, draws=None):
    """The rare group beside its control groups.

    Returns
    -------
    controls.Sample, of half B ; (m,) int, the group without constant neurons ; dict of kind to (draws, m), the controls
    """
    measured, group = sample(settings, revision, where), rare_group(settings, revision)
    group = group[np.isin(group, measured.living)]
    nulls = controls.control_groups(measured, group, draws, settings.seed, apart=leaders(settings, revision))
    return measured, group, nulls


# ---- groups of neurons, by influence on rare targets on half A


def fitted(fits):
    """The fitted head of a curve on rare targets, and whether a head is raised there (by the head that decides).

    Parameters
    ----------
    fits : rows of `influence.phases` of one revision.

    Returns
    -------
    dict with head and law_end, last ranks (of a curve that cannot be tested all neurons, so that none is in a later phase),
    and raised, bool
    """
    rows = fits[fits["group"] == "rare"]
    rows = (rows[rows["sign"] == "pooled"] if "sign" in rows else rows).set_index("rule")
    row, word = rows.loc["fitted head"], rows.loc[f"{heads.DECIDES} head", "word"]
    ends = row[["head", "law_end"]].fillna(row["neurons"]).astype(float)
    return {name: int(end + 1e-6) for name, end in ends.items()} | {"raised": word in influences.RAISED}


def ranked(influence_rows):
    """Rows of `influence.influence` of one revision, rare targets, most influential first."""
    rows = influence_rows[influence_rows["group"] == "rare"].sort_values("neuron")
    return rows.iloc[rankings.order_of(rows["mean_abs_a"].to_numpy())]


def split(influence_rows, fit):
    """All neurons by phase, most influential first: dict with "head", "power law", "decay"; fit: from `fitted`."""
    order = ranked(influence_rows)["neuron"].to_numpy()
    return dict(zip(("head", "power law", "decay"), np.split(order, [fit["head"], fit["law_end"]])))


def groups(influence_rows, fit, living, seed=0):
    """The groups of neurons of one checkpoint, constant neurons left out.

    Parameters
    ----------
    influence_rows : rows of `influence.influence` of one revision.
    fit : from `fitted`.
    living : (p,) neurons that vary.

    Returns
    -------
    dict: "rare" (m,), the top 1.7 %; "head" (., the fitted head, where it is raised and has 20 neurons); "power law" and
    "decay": (20, m), samples of the rare group's size from the phase less the rare group, where it has more neurons.
    """
    rare = influences.rare_group(influence_rows)
    phases = {name: part[np.isin(part, living)] for name, part in split(influence_rows, fit).items()}
    made = {"rare": rare[np.isin(rare, living)]}
    head = phases.pop("head")
    if fit["raised"] and len(head) >= LEAST_HEAD:
        made["head"] = head
    for name, part in phases.items():
        part = np.setdiff1d(part, rare)
        if len(part) > len(rare):
            made[name] = controls.random_groups(part, len(made["rare"]), PHASE_SAMPLES, seed)
    return made


def by_sign(influence_rows, living):
    """The top neurons of each sign, as the authors rank them.

    Parameters
    ----------
    influence_rows : rows of `influence.influence` of one revision ; living : (p,) neurons that vary.

    Returns
    -------
    dict of (sign, size) to (size,) int, most influential first: "boost" (the mean change of the loss on half A is above 0)
    and "suppress" (below), the top 10, 50 and 100 where these are at most 5 % of the living neurons of that sign
    """
    rows = ranked(influence_rows)
    rows = rows[rows["neuron"].isin(living)]
    found = {"boost": rows.loc[rows["mean_a"] > 0, "neuron"], "suppress": rows.loc[rows["mean_a"] < 0, "neuron"]}
    return {(sign, size): part.to_numpy()[:size] for sign, part in found.items()
            for size in SIGNED if size <= MOST_SIGNED * len(part)}


def account(measured, group, nulls):
    """Columns that say what is behind a row."""
    return {"size": group.shape[-1], "tokens": len(measured.values), "documents": len(np.unique(measured.documents)),
            "living": len(measured.living), "constant": measured.values.shape[1] - len(measured.living),
            **controls.missed(measured.features, group, nulls.get("matched"))}


def compared(settings, revision, relations):
    """Rows of `relations(measured, name, group, nulls)` for every kind of position and group of one checkpoint."""
    rows, fit = influence_at(settings, revision), fitted(phases_at(settings, revision))
    apart = leaders(settings, revision)
    for where in WHERE:
        measured = sample(settings, revision, where)
        for name, group in groups(rows, fit, measured.living, settings.seed).items():
            one = group if group.ndim == 1 else group[0]
            nulls = controls.control_groups(measured, one, seed=settings.seed, apart=apart)
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
    matched with _low and _high; size, tokens, documents; only the rare group and the head
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


# ---- notebooks 05 and 06: along the activation scale, and over training


@table(passes.LAST, reads=influences.CURVE, per=("revision",))
def activation_windows(settings, revision):
    """Statistics against activation scale: where the rare group is louder than all other neurons, no group matches it.

    The neurons outside the rare group and outside a raised head are sorted by activation scale, the loudest first, and cut
    into windows of the rare group's size. Exploratory: the eye extends their course to the group's scale.

    Returns
    -------
    DataFrame, one row (revision, step, where, statistic, window): statistic ("effective dimension", over the group's size,
    or "mean absolute", of the correlations); window, from 1, the loudest first, 0: the rare group itself; scale (mean log
    standard deviation of the window's activations), value; size, left_out (living neurons of rare group and head
    together), tokens, documents
    """
    apart = leaders(settings, revision)
    for where in WHERE:
        measured, group = sample(settings, revision, where), rare_group(settings, revision)
        group, scale = group[np.isin(group, measured.living)], measured.features[:, 0]
        outside = np.setdiff1d(measured.living, apart)
        made = np.concatenate([group[None], controls.windows(scale, outside, len(group))])
        block = geometry.within(measured.matrices["correlation"], made)
        found = {"effective dimension": geometry.effective_dimension(block, interpolate=True) / len(group),
                 "mean absolute": geometry.mean_abs_pair(block)}
        for statistic, values in found.items():
            yield pd.DataFrame({"where": where, "statistic": statistic, "window": range(len(made)),
                                "scale": scale[made].mean(axis=1), "value": values, "size": len(group),
                                "left_out": len(measured.living) - len(outside), "tokens": len(measured.values),
                                "documents": len(np.unique(measured.documents))})


@table(passes.EVERY, reads=influences.CURVE, per=("revision",))
def activations_over_training(settings, revision):
    """Dimensions and co-activation at every checkpoint, for the group of that checkpoint ("rare") and for the last
    checkpoint's group followed back ("last rare", without controls); "between" at rare positions only.

    Returns
    -------
    DataFrame with the columns of `coactivation` less those of the differences (relation "within" and measure "correlation"
    for the dimensions); matched groups hold no neuron of the head at that checkpoint; without rows for a model that has one
    checkpoint only
    """
    names, rows = passes.revisions(settings, "all"), []
    if len(names) < 2:
        return []
    own, last = (rare_group(settings, name, "all") for name in (revision, names[-1]))
    gated, apart = passes.subject(settings, revision).gated, leaders(settings, revision, "all")
    for where in WHERE:
        measured = sample(settings, revision, where)
        for label, chosen in (("rare", own), ("last rare", last)):
            group = chosen[np.isin(chosen, measured.living)]
            nulls = controls.control_groups(measured, group, seed=settings.seed, apart=apart) if label == "rare" else {}
            labels = {"where": where, "group": label, "gated": gated, **account(measured, group, nulls)}
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
    `activation_dimension`. relation: "within", or "between" (rare group and head, with all neurons outside); measure:
    "correlation" (centred) or "cosine" (uncentred); statistic: "mean", "mean absolute", "negative share" of the pairs;
    gated: whether the MLP is, so that of these the mean absolute alone has a meaning. Where it is not, also the groups
    "boost 10", "suppress 10" ... (`by_sign`; "within"), and "boost and suppress 10", the pairs of one with the other
    ("between"; their size is that of each of the two)
    """

    def relations(measured, name, group, nulls):
        return controls.relations(measured, group, nulls, outside=group.ndim == 1, seed=settings.seed,
                                  baselines=controls.BASELINES if name == "rare" else 0)

    gated, rows = passes.subject(settings, revision).gated, [*compared(settings, revision, relations)]
    rows += [] if gated else _of_signs(settings, revision)
    return pd.DataFrame(rows).assign(gated=gated)


def _of_signs(settings, revision):
    """Rows of `coactivation` for the neurons of each sign."""
    apart, options = leaders(settings, revision), {"seed": settings.seed}
    for where in WHERE:
        measured = sample(settings, revision, where)
        signed = by_sign(influence_at(settings, revision), measured.living)
        for (sign, size), group in signed.items():
            nulls = controls.control_groups(measured, group, apart=apart, **options)
            labels = {"where": where, "group": f"{sign} {size}", **account(measured, group, nulls)}
            yield from (labels | row for row in controls.relations(measured, group, nulls, outside=False, **options))
            if sign == "boost" and ("suppress", size) in signed:
                both = np.concatenate([group, signed["suppress", size]])
                nulls = controls.control_groups(measured, both, apart=apart, **options)
                labels = {"where": where, "group": f"boost and suppress {size}", **account(measured, both, nulls),
                          "size": size, "relation": "between"}
                yield from (labels | {"measure": measure} | row for measure, centred in controls.MEASURES.items()
                            for row in controls.across(measured, *np.split(both, 2), nulls, centred=centred, **options))


@table(passes.LAST, reads=influences.CURVE, per=("revision",))
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


@table(passes.LAST, reads=influences.CURVE, per=("revision",))
def coactivation_matrix(settings, revision):
    """The correlations inside the rare group and inside a typical random and matched group: that of median mean (in a gated
    MLP of |r|).

    Returns
    -------
    DataFrame, one row (revision, step, where, group, i, j): neurons i and j, correlation, cosine
    """
    mean = geometry.mean_abs_pair if passes.subject(settings, revision).gated else geometry.mean_pair
    for where in WHERE:
        measured, rare, nulls = rare_and_controls(settings, revision, where)
        typical = {kind: _typical(measured, made, mean) for kind, made in nulls.items()}
        for name, group in ({"rare": rare} | typical).items():
            first, second = np.repeat(group, len(group)), np.tile(group, len(group))
            yield pd.DataFrame({"where": where, "group": name, "i": first, "j": second} |
                               {measure: matrix[first, second] for measure, matrix in measured.matrices.items()})


def _typical(measured, made, mean):
    """Of many groups (draws, m) the one whose mean correlation is the median."""
    means = mean(geometry.within(measured.matrices["correlation"], made))
    return made[np.argsort(means, kind="stable")[len(means) // 2]]
