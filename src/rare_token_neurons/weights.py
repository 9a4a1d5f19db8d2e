"""The weights of neuron groups against those of random groups: the tables of notebook 07.

A group's weights are rows of W_in (for a gated MLP of the gate and of the up projection) and columns of W_out. Each
statistic of the rare group stands beside its spread over groups of the same size: random ones, ones matched on
activation scale and output-weight norm, and the group's own elements shuffled. The interval comes from the choice of
the group: documents are drawn with replacement and the top neurons chosen anew.
"""

import re

import numpy as np
import pandas as pd

from rare_token_neurons import checkpoints, controls, influences, passes, phases, spectra, tables, watcher
from rare_token_neurons.tails import FITS, compare, measure, resampled_groups, shuffles, standardised

DRAWS, SLOW = 1000, 20  # groups: closed forms (of them weightwatcher fits `tails.FITS`), its fits of bulk and shuffle
LEAST_PLATEAU = 20
READS = ("steps", "ablation", *tables.POSITION_PARAMETERS)


# ---- groups


def rows_of(subject):
    """The final MLP's weights with one row a neuron: {"in" or "gate" and "up", "out"} -> float64 (neurons, d)."""
    parts = subject.w_in | {"out": subject.w_out.T}
    return {name: part.double().cpu().numpy() for name, part in parts.items()}


def _rows(settings):
    """The influence table of every checkpoint asked for; of a model without checkpoints, of the model."""
    return influences.influence(settings, "all" if len(passes.revisions(settings, "all")) > 1 else "last")


def _at(rows, revision):
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
    rows = _at(_rows(settings), revision)
    found = {name: influences.rare_group(rows, name) for name in ("rare", "common")}
    chosen = {name: (group, _resampled(settings, revision, name, len(group))) for name, group in found.items()}
    influence = rows[rows["group"] == "rare"].sort_values("neuron")["mean_abs"].to_numpy()
    plateau = phases.fit(influence).plateau
    most = min(len(influence), passes.captured(settings, revision)[0].d_model) // 4
    if LEAST_PLATEAU <= len(plateau) <= most:
        chosen["plateau"] = plateau, _resampled(settings, revision, "rare", len(plateau), "AB")
    return chosen


def _features(settings, revision, subject):
    """What groups are matched on, from half B; a neuron that never moves counts as the least active one."""
    features = controls.matching_features(passes.activations(settings, revision)[0], subject.w_out.cpu().numpy())
    lowest = np.nanmin(np.where(np.isfinite(features), features, np.nan), axis=0)
    return np.where(np.isfinite(features), features, lowest)


# ---- tables


def _stage(settings, name, compute):
    several = settings.recompute != "never" and len(passes.revisions(settings, "all")) > 1
    return tables.stage(settings, name, compute, reads=READS, modules=["weights"],
                        inputs=passes.model_inputs(settings, "all" if several else "last"))


def _labelled(table, revision, **labels):
    return table.assign(revision=revision or "", step=pd.array([checkpoints.step_of(revision)] * len(table), dtype="Int64"),
                        **labels)


def group_statistics(settings):
    """Each group of the last checkpoint against its controls: the evidence on heavy tails.

    Returns
    -------
    DataFrame: `compare`'s columns with the nulls random, matched and shuffled; group, size, matrix ("in", or "gate" and
    "up"; "out"), rows ("raw", "standardised"), positions and documents (behind the choice), under_trained (share of
    weightwatcher's fits of random groups that it warns of so), log (its words on failures), revision, step
    """

    def compute():
        revision = passes.revisions(settings)[-1]
        subject, _ = passes.captured(settings, revision)
        features, parts = _features(settings, revision, subject), []
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
                        group=name, size=len(group), matrix=matrix, rows=rows, log="; ".join(sorted(set(log) - {""})),
                        under_trained=nulls["random"]["warning"].dropna().eq("under-trained").mean()))
        chosen = tables.positions(settings).query("group == 'rare' and half == 'A'")
        return _labelled(pd.concat(parts, ignore_index=True), revision, positions=len(chosen),
                         documents=chosen["document"].nunique())

    return _stage(settings, "weight_groups", compute)


def _ends(settings):
    """First and last checkpoint, each with its weights, rare group, and random groups."""
    every, rows = passes.revisions(settings, "all"), _rows(settings)
    for revision in dict.fromkeys((every[0], every[-1])):
        subject = checkpoints.load(settings.model, revision, device=settings.device)
        group = influences.rare_group(_at(rows, revision))
        yield revision, rows_of(subject), group, controls.random_groups(subject.n_neurons, len(group), DRAWS, settings.seed)


def eigenvalues(settings, kept=40):
    """Spectra of the rare group, of `kept` random groups and of as many shuffles, at the first and the last checkpoint.

    Returns
    -------
    DataFrame with revision, step, matrix, kind ("rare", "random", "shuffled"), draw, rank (from 1), columns (d),
    eigenvalue (of Xi = W W^T / d)
    """

    def compute():
        parts = []
        for revision, matrices, group, plain in _ends(settings):
            for matrix, weights in matrices.items():
                for kind, taken in (("rare", weights[group][None]), ("random", weights[plain[:kept]]),
                                    ("shuffled", shuffles(weights[group], kept, settings.seed))):
                    values = spectra.eigenvalues(taken)  # (draws, m)
                    draw, rank = np.indices(values.shape)
                    table = pd.DataFrame({"draw": draw.ravel(), "rank": rank.ravel() + 1, "eigenvalue": values.ravel()})
                    parts.append(_labelled(table, revision, matrix=matrix, kind=kind, columns=weights.shape[1]))
        return pd.concat(parts, ignore_index=True)

    return _stage(settings, "weight_eigenvalues", compute)


def hill_curves(settings):
    """Hill's exponent over the tail size k, first and last checkpoint.

    Returns
    -------
    DataFrame with revision, step, matrix, k, value (rare group), chosen (k by the fix-finger rule), and mean, low and
    high (95 %) of 1,000 random groups (random_) and of 200 shuffles (shuffled_)
    """

    def compute():
        parts = []
        for revision, matrices, group, plain in _ends(settings):
            for matrix, weights in matrices.items():
                own = spectra.eigenvalues(weights[group])
                table = pd.DataFrame({"k": np.arange(1, len(own)), "value": spectra.hill_plot(own)})
                for name, taken in (("random", weights[plain]), ("shuffled", shuffles(weights[group], FITS, settings.seed))):
                    curves = spectra.hill_plot(spectra.eigenvalues(taken))  # (draws, m - 1)
                    low, high = np.nanquantile(curves, [0.025, 0.975], axis=0)
                    table = table.assign(**{f"{name}_mean": np.nanmean(curves, axis=0), f"{name}_low": low, f"{name}_high": high})
                parts.append(_labelled(table, revision, matrix=matrix, chosen=spectra.tail_size(own)))
        return pd.concat(parts, ignore_index=True)

    return _stage(settings, "weight_hill_curves", compute)


def bulk_fits(settings):
    """weightwatcher's fit of the Marchenko-Pastur law and its shuffled matrix, first and last checkpoint.

    Returns
    -------
    DataFrame, one row a group (the rare one, 20 random ones) and matrix: revision, step, matrix, kind, draw, and the
    columns of `watcher.metrics` with mp_fit and randomize
    """

    def compute():
        parts = []
        for revision, matrices, group, plain in _ends(settings):
            for matrix, weights in matrices.items():
                taken = [group, *plain[:SLOW]]
                table = watcher.metrics([weights[one] for one in taken], mp_fit=True, randomize=True, seed=settings.seed)
                parts.append(_labelled(table.drop(columns="name"), revision, matrix=matrix, draw=range(len(taken)),
                                       kind=["rare"] + ["random"] * SLOW))
        return pd.concat(parts, ignore_index=True)

    return _stage(settings, "weight_bulk_fits", compute)


def over_training(settings):
    """The rare group of each checkpoint, and the last checkpoint's traced back, against random groups.

    Returns
    -------
    DataFrame: `compare`'s columns with the null random; kind ("own": chosen at this checkpoint, "last": chosen at the
    last one), matrix, revision, step. 200 groups, half of them fitted by weightwatcher; no matched groups.
    """

    def compute():
        rows, parts = _rows(settings), []
        every = passes.revisions(settings, "all")
        last = influences.rare_group(_at(rows, every[-1]))
        for revision in every:
            own = influences.rare_group(_at(rows, revision))
            anew = _resampled(settings, revision, "rare", len(own))
            plain = controls.random_groups(rows["neuron"].nunique(), len(own), FITS, settings.seed)
            for matrix, weights in rows_of(checkpoints.load(settings.model, revision, device=settings.device)).items():
                null = {"random": measure(weights[plain], FITS // 2)}
                for kind, group, again in (("own", own, anew), ("last", last, last[None])):
                    table = compare(measure(weights[group][None]), measure(weights[again], 0), null)
                    parts.append(_labelled(table, revision, kind=kind, matrix=matrix))
        return pd.concat(parts, ignore_index=True)

    return _stage(settings, "weights_over_training", compute)


def layer_of(name):
    """ "gpt_neox.layers.2.mlp.dense_h_to_4h" -> (2, "mlp.dense_h_to_4h"); (-1, name) outside the layers."""
    found = re.search(r"\.(\d+)\.(.+)$", name)
    return (int(found.group(1)), found.group(2)) if found else (-1, name)


def layers(settings):
    """weightwatcher on every linear layer of the model but the unembedding, at every checkpoint.

    Returns
    -------
    DataFrame with revision, step, layer (from 0), matrix (its name inside the layer) and the columns of `watcher.metrics`
    """

    def compute():
        parts = []
        for revision in passes.revisions(settings, "all"):
            model = checkpoints.load(settings.model, revision, device=settings.device).model
            table = watcher.metrics({name: weight.cpu() for name, weight in watcher.linear_layers(model).items()})
            found = [layer_of(name) for name in table["name"]]
            parts.append(_labelled(table.drop(columns="name"), revision, layer=[layer for layer, _ in found],
                                   matrix=[matrix for _, matrix in found]))
        return pd.concat(parts, ignore_index=True)

    return _stage(settings, "weight_layers", compute)


def special(table, matrix, column="alpha"):
    """The last layer's place among the layers of one checkpoint: its value, and how many of the others lie below it.

    Parameters
    ----------
    table : rows of `layers` of one checkpoint ; matrix : name inside the layer.

    Returns
    -------
    value : float ; below, others : int
    """
    rows = table[(table["matrix"] == matrix) & table[column].notna()].sort_values("layer")
    value, others = rows[column].iloc[-1], rows[column].iloc[:-1]
    return float(value), int((others < value).sum()), len(others)
