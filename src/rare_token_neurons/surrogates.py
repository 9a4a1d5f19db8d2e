"""Null curves beside the measured one, and power-law tests of it: the first tables of notebook 09.

Drawn numbers (order statistics of three families), an untrained model, shuffled labels, matched common positions: every
null is measured as the model is, with the documents' noise and the same ranking.
"""

from functools import lru_cache

import numpy as np
import pandas as pd
import torch

from rare_token_neurons import ablation, calibration, cells, checkpoints, curves, documents, influences, lines, nulls, passes
from rare_token_neurons import powerlaws, tables
from rare_token_neurons.robustness import stage

DRAWS = 200
CANDIDATES = 4_000  # common positions among which those with the rare ones' losses are sought
SHOWN = 100  # ranks of a curve that a figure needs
RUNS, QUICK, FEW = 100, 10, 1_000  # planted samples; so many where fewer positions than FEW are asked for


# ---- curves


def resampled(sums, counts, ranking, rng):
    """Null curves of other positions or of another model: (DRAWS, neurons), documents drawn anew inside the halves.

    Documents drawn anew inside a half add their noise to that of the half, so that the measured curve's own noise is counted
    too: the tests compare positions that are alike, and count how often their heads are told apart.
    """
    return documents.curves_drawn(sums, counts, DRAWS, rng, ranking=ranking)


def relabelled(effects, owners, size, ranking, rng):
    """Null curves with the labels shuffled over positions: (DRAWS, neurons).

    effects : (n, neurons) at rare and common positions together ; owners : (n,) documents ; size : how many a draw calls
    rare.
    """
    labels = nulls.shuffled(np.arange(len(effects)) < size, DRAWS, rng).astype(float)  # (draws, n)
    names, place = np.unique(owners, return_inverse=True)
    parts = documents.parts(len(names), 2 if ranking == "split_half" else 1, DRAWS, rng)[..., place] * labels
    values = documents.influence(effects, np.ones(len(effects)), parts)  # (halves, draws, neurons)
    return documents.split_half(*values) if ranking == "split_half" else -np.sort(-values[0], axis=-1)


def measured(sums, counts, ranking, rng, splits=20):
    """The measured curve, mean over random halves of the documents: x, y in bins, and (neurons,) by rank."""
    drawn = documents.curves_drawn(sums, counts, splits, rng, ranking=ranking, resample=False)
    starts, x = lines.bins(drawn.shape[1])
    return x, lines.in_bins(drawn, starts).mean(axis=0), drawn.mean(axis=0)


# ---- the nulls of the head


def _absolute(settings, values):
    return np.abs(values) if settings.aggregate == "mean_abs" else values


def _sums(settings, revision):
    """Per-document sums and positions of the default's rare targets, by one checkpoint."""
    found = influences.influence_sums(settings, revision, "rare")
    sums = found.abs_sum if settings.aggregate == "mean_abs" else found.change_sum
    return sums.double().numpy(), found.n.double().numpy()


def matched(settings, rare):
    """Common positions with the losses of the rare ones: int64 (n, 2), mean loss of the rare and of the matched ones."""
    subject, kept = passes.captured(settings, passes.revisions(settings)[-1])
    common = cells.candidates(settings, cells.default(settings))["common"][:CANDIDATES]
    losses = [ablation.losses(subject, kept, torch.from_numpy(rows).to(subject.device), memory_gb=cells.MEMORY_GB).cpu().numpy()
              for rows in (rare, common)]
    chosen = nulls.matched(*losses)
    return common[chosen], float(losses[0].mean()), float(losses[1][chosen].mean())


def _of_positions(settings, rng):
    """Nulls that need loss changes position by position: yields name, note, sums, counts of the measured, null curves."""
    cell = cells.default(settings)
    _, pools = cells.pools(settings)
    rows = cells.positions(settings, cell)
    owners = {name: cells.owners(settings, part) for name, part in rows.items()}
    effects = {name: _absolute(settings, pools[cell.ablation][part].astype(np.float64)) for name, part in rows.items()}
    own, ranking = cells.by_document(effects["rare"], owners["rare"]), settings.ranking
    both = (np.concatenate(list(part.values())) for part in (effects, owners))
    yield "shuffled labels", "", own, relabelled(*both, len(rows["rare"]), ranking, rng)
    yield "common, same number", "", own, resampled(*cells.by_document(effects["common"], owners["common"]), ranking, rng)
    alike, loss, found = matched(settings, rows["rare"])
    changes = _absolute(settings, cells.changes(settings, alike, cell.ablation)[alike].astype(np.float64))
    note = f"mean loss {found:.2f} nats, of the rare ones {loss:.2f}"
    yield "common, same loss", note, own, resampled(*cells.by_document(changes, cells.owners(settings, alike)), ranking, rng)


def _untrained(settings):
    """The checkpoint before training, where there is one: its name in a list; none where the tables are only read."""
    known = [] if settings.recompute == "never" else checkpoints.revisions(settings.model)[:1]
    return [name for name in known if checkpoints.step_of(name) == 0 and name != passes.revisions(settings)[-1]]


def _of_model(settings, rng):
    """Nulls of the full measurement: drawn numbers, and the model before training where there is a checkpoint."""
    revision = passes.revisions(settings)[-1]
    own = _sums(settings, revision)
    values = documents.influence(*own, np.ones((1, len(own[1]))))[0]
    living = own[0][:, values > 0]
    for family in nulls.FAMILIES:
        truth = nulls.sample(values, family, DRAWS, rng)
        likelihood = nulls.distribution(values, family).logpdf(values[values > 0]).sum()
        yield family, f"log likelihood {likelihood:.0f}", (living, own[1]), nulls.remeasure(truth, living, own[1], rng,
                                                                                            ranking=settings.ranking)
    for name in _untrained(settings):
        yield "untrained model", "step 0", own, resampled(*_sums(settings, name), settings.ranking, rng)


@lru_cache(maxsize=1)
def _all(settings):
    """Every null: (name, note, (sums, counts) of the measured curve, this curve by rank, nulls.Comparison)."""
    rng, found = np.random.default_rng(settings.seed), []
    for source in (_of_model, _of_positions):
        for name, note, own, drawn in source(settings, rng):
            x, y, curve = measured(*own, settings.ranking, rng)
            found.append((name, note, own, curve, nulls.compare(x, y, drawn)))
    return found


def heads(settings):
    """The measured head against every null.

    Returns
    -------
    DataFrame, one row a null: departure (of the head from the middle's line, e-folds of rank; below 0: a plateau), null_mean,
    null_low, null_high (the null curves' own at the same ranks, 95 %), share (of the neurons before the first break),
    share_low, share_high (of the null curves), p_plateau, p_outliers, p_share, verdict, positions, documents, note
    """

    def compute():
        rows = []
        for name, note, (sums, counts), _, found in _all(settings):
            low, high = np.quantile(found.null_departure, [0.025, 0.975])
            shares = np.quantile(found.null_share, [0.025, 0.975])
            rows.append({"null": name, "departure": found.departure, "null_mean": found.null_departure.mean(), "null_low": low,
                         "null_high": high, "share": found.share, "share_low": shares[0], "share_high": shares[1],
                         "p_plateau": found.p_plateau, "p_outliers": found.p_outliers, "p_share": found.p_share,
                         "verdict": found.verdict(), "positions": int(counts.sum()), "documents": len(counts), "note": note})
        return pd.DataFrame(rows)

    return stage(settings, "null_heads", compute, "surrogates", _untrained(settings))


def bands(settings):
    """The measured curves and the null curves by rank.

    Returns
    -------
    DataFrame, one row (null, rank): influence (the measured one beside it, nats), low, high (95 % of the null curves)
    """

    def compute():
        parts = []
        for name, _, _, curve, found in _all(settings):
            ranks = np.unique(np.geomspace(1, len(curve), SHOWN).round().astype(int))
            parts.append(pd.DataFrame({"null": name, "rank": ranks, "influence": curve[ranks - 1], "low": found.low[ranks - 1],
                                       "high": found.high[ranks - 1]}))
        return pd.concat(parts, ignore_index=True)

    return stage(settings, "null_bands", compute, "surrogates", _untrained(settings))


# ---- is it a power law?


def power_laws(settings):
    """Power-law tests of the influences: of the stretch that is the law (`lines.law_range`, found anew in every draw), and
    of the upper tail.

    Returns
    -------
    DataFrame, one row (group, part): part ("middle" or "upper tail"), alpha (exponent of the density), kappa (of the rank
    curve), low, high (range, nats), n (neurons in it), ks, p_fit (goodness of fit), ratio and p_ratio (log-likelihood ratio to
    the best lognormal in the range), ratio_whole and p_whole (to the whole sample's lognormal), verdict
    """

    def compute():
        rows = []
        for group in ("rare", "common"):
            _, _, _, (sums, counts) = curves.fitted(settings, passes.revisions(settings)[-1], group)
            values = np.abs(sums.sum(axis=0)) / counts.sum()
            parts = {"middle": powerlaws.middle(values, *lines.law_range(values), draws=DRAWS, seed=settings.seed,
                                                refit=lines.law_range),
                     "upper tail": powerlaws.tail(values, draws=DRAWS, seed=settings.seed)}
            rows += [{"group": group, "part": name} | vars(found) | {"kappa": found.kappa, "verdict": found.verdict}
                     for name, found in parts.items()]
        return pd.DataFrame(rows).replace(np.inf, np.nan)

    return stage(settings, "power_laws", compute, "surrogates")


# ---- do these tests keep their promises?


def promises(settings):
    """How often the methods answer rightly on planted curves and known samples (`calibration`); no model in it.

    Returns
    -------
    DataFrame, one row a promise: promise, kept, runs, wanted (of 100), holds
    """
    runs = RUNS if settings.positions >= FEW else QUICK

    def compute():
        return pd.DataFrame([{"promise": one.name, "kept": one.kept, "runs": one.runs, "wanted": one.wanted, "holds": one.holds}
                             for one in calibration.promises(runs, seed=settings.seed)])

    return tables.stage(settings, "promises", compute, reads=("seed",), inputs={"runs": runs}, modules=["calibration"])
