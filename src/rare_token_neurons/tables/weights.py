"""The tables of weights (notebook 07): neuron groups against random ones, their spectra, and whole layers.

A group's weights are rows of W_in (for a gated MLP of the gate and of the up projection) and columns of W_out. Each
statistic of the rare group stands beside its spread over groups of the same size: random ones, ones matched on the norm
of their rows of the same matrix (a few large rows alone make a spectrum heavy), and the group's own elements shuffled.
Weights have no sampling error of their own: the interval comes from the choice of the group. Documents are drawn with
replacement and the top neurons chosen anew; the interval is the range of the statistic over these choices, widened to hold
the value.
"""

import re
from functools import lru_cache

import numpy as np
import pandas as pd

from rare_token_neurons.statistics import controls, spectra
from rare_token_neurons.statistics.controls import compare
from rare_token_neurons.statistics.documents import resampled_groups
from rare_token_neurons.statistics.spectra import FITS, measure, shuffles, standardised
from rare_token_neurons.tables import activations, checkpoints as passes, influence as influences, rare_tokens
from rare_token_neurons.tables.stage import GROUPS, table

DRAWS = 1000  # groups: for the closed forms; of them weightwatcher fits `spectra.FITS`


# ---- groups


def rows_of(subject):
    """The final MLP's weights with one row a neuron: {"in" or "gate" and "up", "out"} -> float64 (neurons, d).

    In a gated MLP the sign of a row of up and of out is arbitrary: each is given with its largest entry above 0, or shuffled
    elements would depend on it. (Up and out are to be looked at apart, as spectra do.)
    """
    parts = {name: part.double().cpu().numpy() for name, part in (subject.w_in | {"out": subject.w_out.T}).items()}
    return parts | {name: _turned(parts[name]) for name in ("up", "out") if subject.gated}


def _turned(rows):
    """Rows (neurons, d) times 1 or -1, so that the largest entry of each is above 0."""
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)
    return rows * np.where(largest < 0, -1.0, 1.0)


def _resampled(settings, revision, target, size):
    """`resampled_groups` of one checkpoint from the documents of half A."""
    sums = influences.influence_sums(settings, revision, target)
    kept = rare_tokens.in_half(settings, sums.documents.numpy(), "A")
    return resampled_groups(sums.abs_sum.numpy()[kept], sums.n.numpy()[kept], size, FITS, settings.seed)


def chosen_groups(settings, revision, width):
    """The groups of one checkpoint, chosen on half A: name -> (group (m,), the group chosen anew (draws, m)).

    "rare" and "common": the top 1.7 % by influence on these targets; "head": the fitted head on rare targets, where it is
    raised and has 20 neurons and at most a quarter of the width.
    """
    rows, fit = activations.influence_at(settings, revision), activations.fitted(activations.phases_at(settings, revision))
    found = {name: influences.rare_group(rows, name) for name in GROUPS}
    if fit["raised"] and activations.LEAST_HEAD <= fit["head"] <= width // 4:
        found["head"] = activations.split(rows, fit)["head"]
    return {name: (group, _resampled(settings, revision, "common" if name == "common" else "rare", len(group)))
            for name, group in found.items()}


def _behind(settings, name):
    """Positions and documents behind the choice of a group."""
    _, owners = rare_tokens.group_positions(rare_tokens.positions(settings), "common" if name == "common" else "rare", "A")
    return {"positions": len(owners), "documents": len(np.unique(owners))}


def norms(rows):
    """What groups are matched on: log norm of each neuron's row (neurons, d) -> (neurons, 1)."""
    return np.log(np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def matched(rows, group, apart, draws, seed):
    """Groups (draws, m) whose rows (neurons, d) have nearly the norms of the group's; no neuron of `apart` is in them."""
    return controls.matched_groups(norms(rows), group, np.setdiff1d(np.arange(len(rows)), apart), draws=draws, seed=seed)


# ---- groups and their controls


@table(passes.LAST, reads=influences.CURVE)
def weight_groups(settings):
    """Each group of the last checkpoint against its controls: the evidence on heavy tails (claim C6).

    Returns
    -------
    DataFrame, one row (group, rows, matrix, statistic): `compare`'s columns with the nulls random, matched (on the norm of
    the rows of this matrix; no neuron of the rare group or of a raised head) and shuffled; group ("rare", "common", "head"),
    size, matrix ("in", or "gate" and "up"; "out"), weights ("W_in", "W_out"), rows ("raw", "standardised"), positions and
    documents (behind the choice of the group), under_trained (share of weightwatcher's fits of random groups that it warns
    of so), log (its words on failures), imbalance_norm (what matching missed, in standard deviations of the log norm),
    revision, step
    """
    revision, parts = passes.revisions(settings)[-1], []
    subject, apart = passes.subject(settings, revision), activations.leaders(settings, revision)
    for name, (group, anew) in chosen_groups(settings, revision, subject.d_model).items():
        for rows in ("raw", "standardised") if name == "rare" else ("raw",):
            draws = DRAWS if name == "rare" and rows == "raw" else FITS
            plain = controls.random_groups(subject.n_neurons, len(group), draws, settings.seed)
            for matrix, weights in rows_of(subject).items():
                alike, features = matched(weights, group, apart, draws, settings.seed), norms(weights)
                weights = standardised(weights) if rows == "standardised" else weights
                nulls = {"random": measure(weights[plain]), "matched": measure(weights[alike]),
                         "shuffled": measure(shuffles(weights[group], FITS, settings.seed), FITS // 4)}
                own, resampled = measure(weights[group][None]), measure(weights[anew])
                log = pd.concat([own, resampled, *nulls.values()])["log"].dropna()
                parts.append(compare(own, resampled, nulls, spectra.SIDES, spectra.FITTED).assign(
                    group=name, size=len(group), matrix=matrix, weights="W_out" if matrix == "out" else "W_in", rows=rows,
                    log="; ".join(sorted(set(log) - {""})), **_behind(settings, name),
                    **controls.missed(features, group, alike),
                    under_trained=nulls["random"]["warning"].dropna().eq("under-trained").mean()))
    return passes.labelled(pd.concat(parts, ignore_index=True), revision)


@table(passes.EVERY, reads=influences.EFFECTS, per=("revision",))
def weights_over_training(settings, revision):
    """The rare group of each checkpoint, and the last checkpoint's traced back, against random groups.

    Returns
    -------
    DataFrame, one row (revision, step, kind, matrix, statistic): `compare`'s columns with the null random; kind ("own":
    chosen at this checkpoint, "last": chosen at the last one), matrix. 200 groups, half of them fitted by weightwatcher;
    no matched groups.
    """
    subject = passes.load(settings, revision)
    own, last = (activations.rare_group(settings, name, "all") for name in (revision, passes.revisions(settings, "all")[-1]))
    anew = _resampled(settings, revision, "rare", len(own))
    plain = controls.random_groups(subject.n_neurons, len(own), FITS, settings.seed)
    for matrix, weights in rows_of(subject).items():
        null = {"random": measure(weights[plain], FITS // 2)}
        for kind, group, again in (("own", own, anew), ("last", last, last[None])):
            found = compare(measure(weights[group][None]), measure(weights[again], 0), null, spectra.SIDES, spectra.FITTED)
            yield found.assign(kind=kind, matrix=matrix)


# ---- eigenvalues, first and last checkpoint

SPECTRA = 40  # random groups, and shuffles, whose spectra are kept
TESTED = 99  # random groups, and shuffles, that the power-law test is given


class Ends(passes.Checkpoints):
    """The first and the last of all checkpoints."""

    def walk(self, settings):
        """(revision, its labels) of the two; of one where there is no other."""
        first, *others = super().walk(settings)
        return [first, *others[-1:]]


ENDS = Ends("all")


@lru_cache(maxsize=2)
def rare_and_random(settings, revision):
    """One checkpoint's weights, matrix by matrix, its rare group (m,), and random groups (DRAWS, m)."""
    subject, group = passes.load(settings, revision), activations.rare_group(settings, revision, "all")
    return rows_of(subject), group, controls.random_groups(subject.n_neurons, len(group), DRAWS, settings.seed)


@lru_cache(maxsize=2)
def look_alikes(settings, revision):
    """One checkpoint's matched groups of the rare group: matrix -> (DRAWS, m)."""
    matrices, group, _ = rare_and_random(settings, revision)
    apart = activations.leaders(settings, revision, "all")
    return {matrix: matched(part, group, apart, DRAWS, settings.seed) for matrix, part in matrices.items()}


def _kinds(settings, revision, draws):
    """(matrix, kind, weights (g, m, d)) of the rare group, of random groups and of shuffles."""
    matrices, group, plain = rare_and_random(settings, revision)
    for matrix, part in matrices.items():
        yield matrix, "rare", part[group][None]
        yield matrix, "random", part[plain[:draws]]
        yield matrix, "shuffled", shuffles(part[group], draws, settings.seed)


@table(ENDS, reads=influences.CURVE, per=("revision",))
def weight_eigenvalues(settings, revision):
    """Spectra of the rare group, of 40 random and 40 matched groups and of as many shuffles, first and last checkpoint.

    Returns
    -------
    DataFrame with revision, step, matrix, kind ("rare", "random", "shuffled", "matched"), draw, rank (from 1), columns (d),
    eigenvalue (of Xi = W W^T / d), relative (over the mean eigenvalue of the random groups)
    """
    parts, matrices, alike = [], rare_and_random(settings, revision)[0], look_alikes(settings, revision)
    alike = [(matrix, "matched", part[alike[matrix][:SPECTRA]]) for matrix, part in matrices.items()]
    for matrix, kind, taken in (*_kinds(settings, revision, SPECTRA), *alike):
        values = spectra.eigenvalues(taken)  # (draws, m)
        draw, rank = np.indices(values.shape)
        parts.append(pd.DataFrame({"matrix": matrix, "kind": kind, "draw": draw.ravel(), "rank": rank.ravel() + 1,
                                   "columns": taken.shape[-1], "eigenvalue": values.ravel()}))
    made = pd.concat(parts, ignore_index=True)
    unit = made["eigenvalue"].where(made["kind"].eq("random")).groupby(made["matrix"])
    return made.assign(relative=made["eigenvalue"] / unit.transform("mean"))


@table(ENDS, reads=influences.EFFECTS, per=("revision",))
def weight_power_laws(settings, revision):
    """The power-law test of the groups' spectra (Clauset et al. 2009), first and last checkpoint.

    Returns
    -------
    DataFrame, one row a group (the rare one, 99 random ones, 99 shuffles of the rare one) and matrix: revision, step,
    matrix, kind, draw, and the columns of `spectra.power_laws`
    """
    for matrix, kind, taken in _kinds(settings, revision, TESTED):
        tests = spectra.power_laws(spectra.eigenvalues(taken), seed=settings.seed)
        yield tests.assign(matrix=matrix, kind=kind, draw=range(len(tests)))


@table(ENDS, reads=influences.CURVE, per=("revision",))
def weight_hill_curves(settings, revision):
    """Hill's exponent over the tail size k, first and last checkpoint.

    Returns
    -------
    DataFrame with revision, step, matrix, k, value (rare group), chosen (k by the fix-finger rule), and mean, low and
    high (95 %) of 1,000 random and 1,000 matched groups (random_, matched_) and of 200 shuffles (shuffled_)
    """
    matrices, group, plain = rare_and_random(settings, revision)
    for matrix, part in matrices.items():
        own = spectra.eigenvalues(part[group])
        columns = {"matrix": matrix, "k": np.arange(1, len(own)), "value": spectra.hill_plot(own),
                   "chosen": spectra.tail_size(own)}
        nulls = {"random": part[plain], "matched": part[look_alikes(settings, revision)[matrix]],
                 "shuffled": shuffles(part[group], FITS, settings.seed)}
        for name, taken in nulls.items():
            curves = spectra.hill_plot(spectra.eigenvalues(taken))  # (draws, m - 1)
            low, high = np.nanquantile(curves, [0.025, 0.975], axis=0)
            columns |= {f"{name}_mean": np.nanmean(curves, axis=0), f"{name}_low": low, f"{name}_high": high}
        yield pd.DataFrame(columns)


# ---- weightwatcher, layer by layer


def layer_of(name):
    """ "gpt_neox.layers.2.mlp.dense_h_to_4h" -> (2, "mlp.dense_h_to_4h"); (-1, name) outside the layers."""
    found = re.search(r"\.(\d+)\.(.+)$", name)
    return (int(found.group(1)), found.group(2)) if found else (-1, name)


@table(passes.Checkpoints("all", text=False), reads=("steps",), per=("revision",))
def weight_layers(settings, revision):
    """weightwatcher's metrics of every linear layer of the model but the unembedding, at every checkpoint.

    Returns
    -------
    DataFrame with revision, step, layer (from 0), matrix (its name inside the layer) and the columns of `spectra.metrics`
    """
    layers = spectra.linear_layers(passes.load(settings, revision).model)
    metrics = spectra.metrics({name: weight.cpu() for name, weight in layers.items()})
    place = pd.DataFrame([layer_of(name) for name in metrics["name"]], columns=["layer", "matrix"])
    return place.join(metrics.drop(columns="name"))
