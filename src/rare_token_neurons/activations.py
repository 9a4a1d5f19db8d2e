"""Tables of how many dimensions groups of final-layer neurons span (notebook 05), and of groups over training (05, 06).

The rare group is chosen on half A of the documents; all that is said of it here is measured on half B.
"""

from functools import lru_cache, partial

import numpy as np
import pandas as pd

from rare_token_neurons import checkpoints, comparisons, controls, curves, geometry, influences, passes, tables

WHERE = ("rare", "all")  # positions: those of rare targets, and every scored one
MOST_TOKENS = 10_000  # of all scored positions, evenly spaced
LEAST_PLATEAU = 20  # neurons
PHASE_SAMPLES = 20  # groups drawn from the power-law and the decay phase
FEW = 200  # draws of documents, over training


# ---- what is measured, and which neurons


@lru_cache(maxsize=2)
def sample(settings, revision, where):
    """The `comparisons.Sample` of one checkpoint at rare or at all positions of half B."""
    values, documents = passes.activations(settings, revision, where)
    kept = np.linspace(0, len(values) - 1, min(len(values), MOST_TOKENS)).round().astype(int)
    w_out = passes.captured(settings, revision)[0].w_out.cpu().numpy()
    return comparisons.sample(values[kept], documents[kept], w_out)


def groups(influence_rows, ends, living, seed=0):
    """The groups of neurons of one checkpoint, constant neurons left out.

    Neurons are ranked by influence on rare targets on half A of the documents.

    Parameters
    ----------
    influence_rows : rows of `influences.influence` of one revision.
    ends : (2,) last rank of the plateau and of the power law, found by change points (`curves.phase_fits`).
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
    """Last ranks of plateau and power law at one checkpoint: a row of `curves.phase_fits` -> (2,) int."""
    row = fits[(fits["revision"] == (revision or "")) & (fits["group"] == "rare")].iloc[0]
    return row[["bp_plateau_end", "bp_law_end"]].to_numpy(dtype=int)


def account(measured, group, nulls):
    """Columns that say what is behind a row."""
    return {"size": group.shape[-1], "tokens": len(measured.values), "documents": len(np.unique(measured.documents)),
            "living": len(measured.living), "constant": measured.values.shape[1] - len(measured.living),
            **controls.missed(measured.features, group, nulls.get("matched"))}


def compared(settings, relations):
    """Rows of `relations(measured, name, group, nulls)` for every checkpoint, kind of position and group."""
    influence, fits, rows = influences.influence(settings), curves.phase_fits(settings), []
    for revision in passes.revisions(settings):
        of_step = influence[influence["revision"] == (revision or "")]
        for where in WHERE:
            measured = sample(settings, revision, where)
            for name, group in groups(of_step, phase_ends(fits, revision), measured.living, settings.seed).items():
                nulls = comparisons.control_groups(measured, group if group.ndim == 1 else group[0], seed=settings.seed)
                nulls = nulls if group.ndim == 1 else {"random": nulls["random"]}
                labels = {"revision": revision or "", "step": checkpoints.step_of(revision), "where": where, "group": name}
                rows += [labels | account(measured, group, nulls) | row for row in relations(measured, name, group, nulls)]
    return pd.DataFrame(rows).astype({"step": "Int64"})


def stage(settings, name, compute, default="last", module="activations"):
    """One table of notebook 05 or 06; module, where it is computed."""
    return tables.stage(settings, name, compute, reads=curves.READS, inputs=passes.model_inputs(settings, default),
                        modules=[module])


# ---- notebook 05


def dimensions(settings):
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
        return comparisons.within(measured, group, nulls, comparisons.DIMENSIONS,
                                  partial(comparisons.dimensions, tokens=len(measured.values)),
                                  baselines=comparisons.BASELINES if name == "rare" else 0, seed=settings.seed)

    return stage(settings, "activation_dimension", lambda: compared(settings, relations))


def variance(settings):
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
        found = comparisons.within(measured, group, nulls, steps, geometry.cumulative_variance, seed=settings.seed)
        kept = ("value", "low", "high", *(kind + end for kind in ("random", "matched") for end in ("", "_low", "_high")))
        return [{"components": row["statistic"]} | {name: row[name] for name in kept} for row in found]

    def compute():
        table = compared(settings, relations)
        return table.drop(columns=["living", "constant", "imbalance_scale", "imbalance_norm"])

    return stage(settings, "activation_variance", compute)


# ---- notebooks 05 and 06, over training


def over_training(settings):
    """Dimensions and co-activation at every checkpoint, for the group of that checkpoint ("rare") and for the last
    checkpoint's group followed back ("last rare", without controls); "between" at rare positions only.

    Returns
    -------
    DataFrame with the columns of `coactivations.coactivation` less those of the differences (relation "within" and
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
                    nulls = comparisons.control_groups(measured, group, seed=settings.seed) if label == "rare" else {}
                    labels = {"revision": name, "step": checkpoints.step_of(name), "where": where, "group": label}
                    rows += [labels | account(measured, group, nulls) | row
                             for row in _at_a_step(measured, group, nulls, where == "rare", settings.seed)]
        table = pd.DataFrame(rows).astype({"step": "Int64"})
        return table.drop(columns=[name for name in table.columns if name.startswith("less_")])

    return stage(settings, "activations_over_training", compute, "all")


def _at_a_step(measured, group, nulls, outside, seed):
    dimensions = partial(comparisons.dimensions, tokens=len(measured.values))
    found = comparisons.within(measured, group, nulls, comparisons.DIMENSIONS, dimensions, resamples=FEW, seed=seed)
    return ([{"relation": "within", "measure": "correlation"} | row for row in found]
            + comparisons.relations(measured, group, nulls, outside=outside, resamples=FEW, seed=seed))
