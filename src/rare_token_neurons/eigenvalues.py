"""The eigenvalues of the rare group's weights at the first and the last checkpoint: tables of notebook 07.

Beside them those of random groups of the same size and of the group's own elements in random places.
"""

from functools import lru_cache

import numpy as np
import pandas as pd

from rare_token_neurons import controls, influences, passes, spectra, tails, watcher, weights
from rare_token_neurons.tails import FITS, shuffles

SLOW = 20  # random groups that weightwatcher fits the bulk of: a second each
TESTED = 99  # random groups, and shuffles, that the power-law test is given


@lru_cache(maxsize=1)
def ends(settings):
    """First and last checkpoint, each with its weights, rare group, and random groups."""
    every, rows, found = passes.revisions(settings, "all"), weights.influence_rows(settings), []
    for revision in dict.fromkeys((every[0], every[-1])):
        subject = passes.load(settings, revision)
        group = influences.rare_group(weights.at(rows, revision))
        plain = controls.random_groups(subject.n_neurons, len(group), weights.DRAWS, settings.seed)
        found.append((revision, weights.rows_of(subject), group, plain))
    return found


def _kinds(settings, draws):
    """(revision, matrix, kind, weights (g, m, d)) of the rare group, random groups and shuffles, first and last checkpoint."""
    for revision, matrices, group, plain in ends(settings):
        for matrix, part in matrices.items():
            yield revision, matrix, "rare", part[group][None]
            yield revision, matrix, "random", part[plain[:draws]]
            yield revision, matrix, "shuffled", shuffles(part[group], draws, settings.seed)


def groups(settings, kept=40):
    """Spectra of the rare group, of `kept` random groups and of as many shuffles, at the first and the last checkpoint.

    Returns
    -------
    DataFrame with revision, step, matrix, kind ("rare", "random", "shuffled"), draw, rank (from 1), columns (d),
    eigenvalue (of Xi = W W^T / d), relative (over the mean eigenvalue of the random groups)
    """

    def compute():
        parts = []
        for revision, matrix, kind, taken in _kinds(settings, kept):
            values = spectra.eigenvalues(taken)  # (draws, m)
            draw, rank = np.indices(values.shape)
            table = pd.DataFrame({"draw": draw.ravel(), "rank": rank.ravel() + 1, "eigenvalue": values.ravel()})
            parts.append(weights.labelled(table, revision, matrix=matrix, kind=kind, columns=taken.shape[-1]))
        table = pd.concat(parts, ignore_index=True)
        unit = table["eigenvalue"].where(table["kind"].eq("random")).groupby([table["revision"], table["matrix"]])
        return table.assign(relative=table["eigenvalue"] / unit.transform("mean"))

    return weights.stage(settings, "weight_eigenvalues", compute, modules=["eigenvalues"])


def power_laws(settings):
    """The power-law test of the groups' spectra (Clauset et al. 2009), first and last checkpoint.

    Returns
    -------
    DataFrame, one row a group (the rare one, 99 random ones, 99 shuffles of the rare one) and matrix: revision, step,
    matrix, kind, draw, and the columns of `tails.power_laws`
    """

    def compute():
        parts = []
        for revision, matrix, kind, taken in _kinds(settings, TESTED):
            table = tails.power_laws(spectra.eigenvalues(taken), seed=settings.seed)
            parts.append(weights.labelled(table, revision, matrix=matrix, kind=kind, draw=range(len(table))))
        return pd.concat(parts, ignore_index=True)

    return weights.stage(settings, "weight_power_laws", compute, modules=["eigenvalues"])


def hill_curves(settings):
    """Hill's exponent over the tail size k, first and last checkpoint.

    Returns
    -------
    DataFrame with revision, step, matrix, k, value (rare group), chosen (k by the fix-finger rule), and mean, low and
    high (95 %) of 1,000 random groups (random_) and of 200 shuffles (shuffled_)
    """

    def compute():
        parts = []
        for revision, matrices, group, plain in ends(settings):
            for matrix, part in matrices.items():
                own = spectra.eigenvalues(part[group])
                table = pd.DataFrame({"k": np.arange(1, len(own)), "value": spectra.hill_plot(own)})
                for name, taken in (("random", part[plain]), ("shuffled", shuffles(part[group], FITS, settings.seed))):
                    curves = spectra.hill_plot(spectra.eigenvalues(taken))  # (draws, m - 1)
                    low, high = np.nanquantile(curves, [0.025, 0.975], axis=0)
                    table = table.assign(**{f"{name}_mean": np.nanmean(curves, axis=0), f"{name}_low": low, f"{name}_high": high})
                parts.append(weights.labelled(table, revision, matrix=matrix, chosen=spectra.tail_size(own)))
        return pd.concat(parts, ignore_index=True)

    return weights.stage(settings, "weight_hill_curves", compute, modules=["eigenvalues"])


def bulk_fits(settings):
    """weightwatcher's fit of the Marchenko-Pastur law and its shuffled matrix, first and last checkpoint.

    Returns
    -------
    DataFrame, one row a group (the rare one, 20 random ones) and matrix: revision, step, matrix, kind, draw, and the
    columns of `watcher.metrics` with mp_fit and randomize
    """

    def compute():
        parts = []
        for revision, matrices, group, plain in ends(settings):
            for matrix, part in matrices.items():
                taken = [group, *plain[:SLOW]]
                table = watcher.metrics([part[one] for one in taken], mp_fit=True, randomize=True, seed=settings.seed)
                parts.append(weights.labelled(table.drop(columns="name"), revision, matrix=matrix, draw=range(len(taken)),
                                               kind=["rare"] + ["random"] * SLOW))
        return pd.concat(parts, ignore_index=True)

    return weights.stage(settings, "weight_bulk_fits", compute, modules=["eigenvalues"])
