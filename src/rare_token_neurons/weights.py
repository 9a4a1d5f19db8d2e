"""The weights of neuron groups against those of random groups: the tables of notebook 07.

A group's weights are rows of W_in (for a gated MLP of the gate and of the up projection) and columns of W_out. Each
statistic of the rare group stands beside its spread over groups of the same size: random ones, ones matched on
activation scale and output-weight norm, and the group's own elements shuffled. Weights have no sampling error of
their own: the interval comes from the choice of the group. Documents are drawn with replacement and the top neurons
chosen anew; the interval is the range of the statistic over these choices, widened to hold the value.
"""

import numpy as np
import pandas as pd

from rare_token_neurons import checkpoints, controls, influences, passes, phases, tables
from rare_token_neurons.tails import FITS, compare, measure, resampled_groups, shuffles, standardised

DRAWS = 1000  # groups: for the closed forms; of them weightwatcher fits `tails.FITS`
LEAST_PLATEAU = 20
READS = ("steps", "ablation", *tables.POSITION_PARAMETERS)


# ---- groups


def rows_of(subject):
    """The final MLP's weights with one row a neuron: {"in" or "gate" and "up", "out"} -> float64 (neurons, d)."""
    parts = subject.w_in | {"out": subject.w_out.T}
    return {name: part.double().cpu().numpy() for name, part in parts.items()}


def influence_rows(settings):
    """The influence table of every checkpoint asked for; of a model without checkpoints, of the model."""
    return influences.influence(settings, "all" if len(passes.revisions(settings, "all")) > 1 else "last")


def at(rows, revision):
    """The rows of one checkpoint."""
    return rows[rows["revision"] == (revision or "")]


def _resampled(settings, revision, target, size, halves="A"):
    """`resampled_groups` of one checkpoint from the documents of one half or of both ("AB")."""
    sums = influences.influence_sums(settings, revision, target)
    half = tables.positions(settings).groupby("document")["half"].first()
    kept = half.loc[sums.documents.numpy()].isin(list(halves)).to_numpy()
    return resampled_groups(sums.abs_sum.numpy()[kept], sums.n.numpy()[kept], size, seed=settings.seed)


def groups(settings, revision):
    """The groups of one checkpoint: name -> (group (m,), the group chosen anew (draws, m)).

    "rare" and "common": the top 1.7 % by influence on these targets, chosen on half A; "plateau": what the paper's rule
    calls so, from both halves, where it has 20 neurons and at most a quarter of the width and of the neurons.
    """
    rows = at(influence_rows(settings), revision)
    found = {name: influences.rare_group(rows, name) for name in ("rare", "common")}
    chosen = {name: (group, _resampled(settings, revision, name, len(group))) for name, group in found.items()}
    influence = rows[rows["group"] == "rare"].sort_values("neuron")["mean_abs"].to_numpy()
    plateau = phases.fit(influence).plateau
    most = min(len(influence), passes.captured(settings, revision)[0].d_model) // 4
    if LEAST_PLATEAU <= len(plateau) <= most:
        chosen["plateau"] = plateau, _resampled(settings, revision, "rare", len(plateau), "AB")
    return chosen


def _behind(settings, name):
    """Positions and documents behind the choice of a group."""
    chosen = tables.positions(settings)
    chosen = chosen[chosen["group"].eq("common" if name == "common" else "rare")]
    chosen = chosen if name == "plateau" else chosen[chosen["half"].eq("A")]
    return {"positions": len(chosen), "documents": chosen["document"].nunique()}


def _features(settings, revision, subject):
    """What groups are matched on, from half B; a neuron that never moves counts as the least active one."""
    features = controls.matching_features(passes.activations(settings, revision)[0], subject.w_out.cpu().numpy())
    lowest = np.nanmin(np.where(np.isfinite(features), features, np.nan), axis=0)
    return np.where(np.isfinite(features), features, lowest)


# ---- tables


def stage(settings, name, compute, modules=("weights",)):
    """`tables.stage` with what every table of this notebook depends on."""
    several = settings.recompute != "never" and len(passes.revisions(settings, "all")) > 1
    return tables.stage(settings, name, compute, reads=READS, modules=list(modules),
                        inputs=passes.model_inputs(settings, "all" if several else "last"))


def labelled(table, revision, **labels):
    """A table with revision, step and `labels` as columns."""
    return table.assign(revision=revision or "", step=pd.array([checkpoints.step_of(revision)] * len(table), dtype="Int64"),
                        **labels)


def group_statistics(settings):
    """Each group of the last checkpoint against its controls: the evidence on heavy tails (claim C6).

    Returns
    -------
    DataFrame, one row (group, rows, matrix, statistic): `compare`'s columns with the nulls random, matched and shuffled;
    group ("rare", "common", "plateau"), size, matrix ("in", or "gate" and "up"; "out"), weights ("W_in", "W_out"),
    rows ("raw", "standardised"), positions and documents (behind the choice of the group), under_trained (share of
    weightwatcher's fits of random groups that it warns of so), log (its words on failures), imbalance_scale and
    imbalance_norm (what matching missed, in standard deviations), revision, step
    """

    def compute():
        revision, parts = passes.revisions(settings)[-1], []
        subject, _ = passes.captured(settings, revision)
        features = _features(settings, revision, subject)
        for name, (group, anew) in groups(settings, revision).items():
            for rows in ("raw", "standardised") if name == "rare" else ("raw",):
                draws = DRAWS if name == "rare" and rows == "raw" else FITS
                plain = controls.random_groups(subject.n_neurons, len(group), draws, settings.seed)
                alike = controls.matched_groups(features, group, draws=draws, seed=settings.seed)
                for matrix, weights in rows_of(subject).items():
                    weights = standardised(weights) if rows == "standardised" else weights
                    nulls = {"random": measure(weights[plain]), "matched": measure(weights[alike]),
                             "shuffled": measure(shuffles(weights[group], FITS, settings.seed), FITS // 4)}
                    own, resampled = measure(weights[group][None]), measure(weights[anew])
                    log = pd.concat([own, resampled, *nulls.values()])["log"].dropna()
                    parts.append(compare(own, resampled, nulls).assign(
                        group=name, size=len(group), matrix=matrix, weights="W_out" if matrix == "out" else "W_in", rows=rows,
                        log="; ".join(sorted(set(log) - {""})), **_behind(settings, name),
                        **controls.missed(features, group, alike),
                        under_trained=nulls["random"]["warning"].dropna().eq("under-trained").mean()))
        return labelled(pd.concat(parts, ignore_index=True), revision)

    return stage(settings, "weight_groups", compute)


def over_training(settings):
    """The rare group of each checkpoint, and the last checkpoint's traced back, against random groups.

    Returns
    -------
    DataFrame: `compare`'s columns with the null random; kind ("own": chosen at this checkpoint, "last": chosen at the
    last one), matrix, revision, step. 200 groups, half of them fitted by weightwatcher; no matched groups.
    """

    def compute():
        rows, parts = influence_rows(settings), []
        every = passes.revisions(settings, "all")
        last = influences.rare_group(at(rows, every[-1]))
        for revision in every:
            own = influences.rare_group(at(rows, revision))
            anew = _resampled(settings, revision, "rare", len(own))
            plain = controls.random_groups(rows["neuron"].nunique(), len(own), FITS, settings.seed)
            for matrix, weights in rows_of(passes.load(settings, revision)).items():
                null = {"random": measure(weights[plain], FITS // 2)}
                for kind, group, again in (("own", own, anew), ("last", last, last[None])):
                    table = compare(measure(weights[group][None]), measure(weights[again], 0), null)
                    parts.append(labelled(table, revision, kind=kind, matrix=matrix))
        return pd.concat(parts, ignore_index=True)

    return stage(settings, "weights_over_training", compute)
