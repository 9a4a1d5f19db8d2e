"""Nulls of the head and power-law tests (notebook 09), and token-frequency neurons (notebook 13).

Drawn numbers (order statistics of three families, and the law itself), an untrained model, shuffled labels, matched common
positions: every null is measured as the model is, with the documents' noise and the same ranking, and goes through the same
steps (`curve.heads`). `promises` says how often these tests answer rightly where the answer is known, and the command
`calibrate` counts it in full. What is measured position by position uses the robustness grid's default cell.
"""

import argparse
import signal
from functools import lru_cache, partial
from multiprocessing import Pool

import numpy as np
import pandas as pd
import torch

from rare_token_neurons import files, keys, paths
from rare_token_neurons.ablation import neurons as ablation
from rare_token_neurons.curve import calibration, heads, nulls
from rare_token_neurons.models import checkpoints
from rare_token_neurons.statistics import controls, documents, powerlaws, rankings
from rare_token_neurons.tables import checkpoints as passes, influence as influences, robustness, stage
from rare_token_neurons.tables.stage import table

DRAWS = 200
CANDIDATES = 4_000  # common positions among which those with the rare ones' losses are sought
SHOWN = 100  # ranks of a curve that a figure needs
RUNS, QUICK, FEW = 40, 10, 1_000  # planted samples; so many where fewer positions than FEW are asked for
FULL = 1_000  # of `calibrate`


# ---- curves


def resampled(sums, counts, ranking, rng):
    """Null curves of other positions or of another model: (DRAWS, neurons), documents drawn anew inside the halves.

    Documents drawn anew inside a half add their noise to that of the half, so that the measured curve's own noise is counted
    too: the tests compare positions that are alike, and count how often their heads are told apart.
    """
    return documents.curves_drawn(*heads.shared((sums, counts))[0], DRAWS, rng, ranking=ranking)


def relabelled(effects, owners, size, ranking, rng):
    """Null curves with the labels shuffled over positions: (DRAWS, neurons).

    effects : (n, neurons) at rare and common positions together ; owners : (n,) documents ; size : how many a draw calls
    rare.
    """
    labels = nulls.shuffled(np.arange(len(effects)) < size, DRAWS, rng).astype(float)  # (draws, n)
    names, place = np.unique(owners, return_inverse=True)
    parts = documents.parts(len(names), documents.PARTS[ranking], DRAWS, rng)[..., place] * labels
    effects, ones = heads.shared((effects, np.ones(len(effects))))[0]
    return documents.ranked(documents.influence(effects, ones, parts))


# ---- the nulls of the head


def _untrained(settings):
    """The checkpoint before training, where there is one: its name in a list."""
    known = checkpoints.revisions(settings.model, settings.stage)[:1]
    return [name for name in known if checkpoints.step_of(name) == 0 and name != passes.revisions(settings)[-1]
            and not checkpoints.lacking(settings.model, name)]


class LastAndFirst:
    """What the nulls are made from: the last checkpoint, and the one before training where there is one."""

    @staticmethod
    def inputs(settings):
        """Hashes of the text and of the checkpoints."""
        first = {name: checkpoints.model_hash(settings.model, name) for name in _untrained(settings)}
        return passes.LAST.inputs(settings) | first


def matched(settings, rare):
    """Common positions with the losses of the rare ones: int64 (n, 2), mean loss of the rare and of the matched ones."""
    subject, kept = passes.captured(settings, passes.revisions(settings)[-1])
    common = robustness.candidates(settings, robustness.default(settings))["common"][:CANDIDATES]
    losses = [ablation.losses(subject, kept, torch.from_numpy(rows).to(subject.device),
                              memory_gb=passes.MEMORY_GB).cpu().numpy() for rows in (rare, common)]
    chosen = nulls.matched(*losses)
    return common[chosen], float(losses[0].mean()), float(losses[1][chosen].mean())


def _of_positions(settings, rng):
    """Nulls that need loss changes position by position: yields name, note, the measured heads, null curves."""
    cell = robustness.default(settings)
    _, pools = robustness.pools_of(settings)
    rows = robustness.positions(settings, cell)
    owners = {name: robustness.owners_of(settings, part) for name, part in rows.items()}
    effects = {name: influences.effects(pools[cell.ablation][part], settings.aggregate) for name, part in rows.items()}
    ranking, measured = settings.ranking, documents.by_document(effects["rare"], owners["rare"])
    if not heads.testable(measured):
        return
    own = heads.measure(*measured, ranking=ranking, seed=settings.seed)
    both = (np.concatenate(list(part.values())) for part in (effects, owners))
    yield "shuffled labels", "", own, relabelled(*both, len(rows["rare"]), ranking, rng)
    others = documents.by_document(effects["common"], owners["common"])
    yield "common, same number", "", own, resampled(*others, ranking, rng)
    alike, loss, found = matched(settings, rows["rare"])
    changes = influences.effects(robustness.changes(settings, alike, cell.ablation)[alike], settings.aggregate)
    others = documents.by_document(changes, robustness.owners_of(settings, alike))
    note = f"mean loss {found:.2f} nats, of the rare ones {loss:.2f}"
    yield "common, same loss", note, own, resampled(*others, ranking, rng)


def _of_model(settings, rng):
    """Nulls of the full measurement: drawn numbers, and the model before training where there is a checkpoint."""
    own, _, made = influences.fitted(settings, passes.revisions(settings)[-1], "rare")
    if not own:
        return
    values = documents.influence(own.sums, own.counts, np.ones((1, len(own.counts))))[0]
    for family in nulls.FAMILIES:
        drawn = made.get((family, heads.DECIDES))
        if drawn is None:
            truth = nulls.sample(values, family, DRAWS, rng)
            drawn = nulls.remeasure(truth, own.sums, own.counts, rng, ranking=settings.ranking)
        yield family, f"log likelihood {nulls.distribution(values, family).logpdf(values).sum():.0f}", own, drawn
    law = own.own[heads.DECIDES]
    yield "law", f"kappa {law.kappa[0]:.2f}, to rank {law.end[0]:.0f}", own, made["law", heads.DECIDES]
    for name in _untrained(settings):
        sums, counts, _ = influences.sums(settings, name, "rare")
        yield "untrained model", "step 0", own, resampled(sums, counts, settings.ranking, rng)


@lru_cache(maxsize=1)
def _all(settings):
    """Every null: (name, note, heads.Measured, null curves (draws, neurons)); none of a curve that cannot be tested."""
    rng = np.random.default_rng(settings.seed)
    return [one for source in (_of_model, _of_positions) for one in source(settings, rng)]


@table(LastAndFirst, reads=influences.CURVE)
def null_heads(settings):
    """The measured head, the one that decides (`heads.DECIDES`), against every null.

    Returns
    -------
    DataFrame, one row a null: delta (mean height of the measured head above its law, e-folds of influence), score (delta in
    units of its spread, see `heads.score`), null_median, null_low, null_high (of the null curves' own scores; 5 % lie above
    the last), p (one-sided: a null curve scores as high), p_floor (the smallest that the draws can give), head (its
    neurons), positions, documents, note
    """
    for name, note, own, curves in _all(settings):
        found, null = own.own[heads.DECIDES], heads.find(curves)
        low, median, high = np.quantile(null.score, [0.05, 0.5, 0.95])
        yield {"null": name, "delta": found.delta[0], "score": found.score[0], "null_median": median, "null_low": low,
               "null_high": high, "p": controls.empirical_p(found.score[0], null.score, "greater"),
               "p_floor": 1 / (1 + len(curves)), "head": found.size[0], "positions": int(own.counts.sum()),
               "documents": len(own.counts), "note": note}


@table(LastAndFirst, reads=influences.CURVE)
def null_bands(settings):
    """The measured curves and the null curves by rank.

    Returns
    -------
    DataFrame, one row (null, rank): influence (the measured one beside it, nats), low, high (95 % of the null curves)
    """
    for name, _, own, curves in _all(settings):
        n = min(len(own.living), curves.shape[1])
        ranks = np.unique(np.geomspace(1, n, SHOWN).round().astype(int))
        low, high = np.quantile(curves[:, ranks - 1], [0.025, 0.975], axis=0)
        yield pd.DataFrame({"null": name, "rank": ranks, "influence": own.curve[ranks - 1], "low": low, "high": high})


# ---- is it a power law?


@table(passes.LAST, reads=influences.CURVE)
def power_laws(settings):
    """Power-law tests of the influences: of the stretch that is the law (`influence.law_test`), and of the upper tail.

    Returns
    -------
    DataFrame, one row (group, part): part ("middle" or "upper tail"), alpha (exponent of the density), kappa (of the rank
    curve), low, high (range, nats), n (neurons in it), ks, p_fit (goodness of fit), ratio and p_ratio (log-likelihood ratio
    to the best lognormal in the range), ratio_whole and p_whole (to the whole sample's lognormal), verdict; a curve with too
    few neurons or documents has an upper tail alone
    """
    rows = []
    for group in stage.GROUPS:
        sums, counts, _ = influences.sums(settings, passes.revisions(settings)[-1], group)
        testable = heads.testable((sums, counts))
        parts = {"middle": influences.law_test(sums, counts, settings.seed)} if testable else {}
        parts["upper tail"] = powerlaws.tail(np.abs(sums.sum(axis=0)) / counts.sum(), draws=DRAWS, seed=settings.seed)
        rows += [{"group": group, "part": name} | vars(found) | {"kappa": found.kappa, "verdict": found.verdict}
                 for name, found in parts.items()]
    return pd.DataFrame(rows).replace(np.inf, np.nan)


# ---- do these tests keep their promises?


def _runs(settings):
    return RUNS if settings.positions >= FEW else QUICK


class Runs:
    """What the promises are made from: the number of planted samples alone."""

    @staticmethod
    def inputs(settings):
        """The number."""
        return {"runs": _runs(settings)}


@table(Runs, reads=("seed",))
def promises(settings):
    """How often the methods answer rightly on planted curves and known samples (`curve.calibration`); no model in it.

    Returns
    -------
    DataFrame, one row a promise: promise, kept, runs, wanted (of 100), holds
    """
    return ({"promise": one.name, "kept": one.kept, "runs": one.runs, "wanted": one.wanted, "holds": one.holds}
            for one in calibration.promises(_runs(settings), seed=settings.seed))


# the full counts: a table's name -> (what counts, its samples)
COUNTED = {"calibration": (calibration.heads_told, (*calibration.SIZES, *calibration.SHELVES, *calibration.OTHERS)),
           "calibration_contrasts": (calibration.contrasts_told, tuple(calibration.PAIRS))}


def calibrate(argv=None):
    """`python -m rare_token_neurons calibrate`: the full counts of the calibration; a second call goes on."""
    parser = argparse.ArgumentParser(
        prog="python -m rare_token_neurons calibrate",
        description="Count on planted samples how often the tests of heads and of contrasts answer rightly, and write "
        "data/results/calibration.parquet and calibration_contrasts.parquet. What is finished is kept, sample by sample.")
    parser.add_argument("--runs", type=int, default=FULL, help=f"planted samples of each kind (default: {FULL:,})")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once (default: 1)")
    arguments = parser.parse_args(argv)
    if min(arguments.runs, arguments.jobs) < 1:
        parser.error("runs and jobs must be at least 1")
    with Pool(arguments.jobs, signal.signal, (signal.SIGINT, signal.SIG_DFL)) as pool:
        for name, (_, samples) in COUNTED.items():
            parts = []
            for sample, part in zip(samples, pool.imap(partial(_counted, name, arguments.runs), samples)):
                print(f"{name}: {sample}", flush=True)
                parts.append(part)
            files.write_table(paths.RESULTS / f"{name}.parquet", pd.concat(parts, ignore_index=True))
    return 0


def _counted(name, runs, sample):
    """The counts of one sample, kept in the cache."""
    key = keys.key({"runs": runs}, {"sample": sample}, ["curve.calibration"])
    path = paths.CACHE / "calibration" / f"{name}-{COUNTED[name][1].index(sample)}.parquet"
    return stage.table_at(path, key, lambda: pd.DataFrame(COUNTED[name][0](runs, names=[sample])))


# ---- token-frequency neurons

EXACT = 50  # the most influential neurons, whose KL is not expanded


def share(effect, frozen):
    """Share of mean |effect| that vanishes with a component frozen, at most 1; NaN where there is no effect."""
    effect, frozen = np.asarray(effect, dtype=float), np.asarray(frozen, dtype=float)
    return 1 - np.divide(frozen, effect, out=np.full_like(effect, np.nan), where=effect > 0)


@table(passes.LAST, reads=influences.CURVE)
def frequency_neurons(settings):
    """One row a neuron of the last checkpoint, measured at up to 500 rare positions.

    Returns
    -------
    DataFrame with neuron, influence, mean (|change| and change of the loss, nats), side ("boost": the loss rises without the
    neuron, "suppress": it falls), unigram_share, scale_share (of the influence that vanishes when the unigram direction, the
    norm's scale is frozen), kl, entropy (mean changes, nats), unigram (mean change of the logits' projection on the
    direction), rare (whether in the rare group, chosen on half A of all positions), positions
    """
    revision = passes.revisions(settings)[-1]
    subject, kept = passes.captured(settings, revision)
    rows = torch.from_numpy(robustness.positions(settings, robustness.default(settings))["rare"]).to(subject.device)
    options = {"ablation": settings.ablation, "seed": settings.seed, "memory_gb": passes.MEMORY_GB}
    with stage.clock("ablation"):
        whole = ablation.influence(subject, kept, rows, entropy=True, **options)
        frozen = {name: ablation.influence(subject, kept, rows, freeze=name, entropy=False, **options)
                  for name in ("unigram", "scale")}
        entropy, exact = whole.entropy_sum.sum(0) / len(rows), whole.mean_abs.argsort(descending=True)[:EXACT]
        kl = ablation.divergences(subject, kept, rows, entropy, exact=exact, **options)
    group = influences.rare_group(passes.of(influences.influence(settings), revision))
    found = {"influence": whole.mean_abs, "mean": whole.mean, "entropy": entropy,
             "unigram": whole.unigram_sum.sum(0) / len(rows), "kl": kl}
    found = {name: part.double().cpu().numpy() for name, part in found.items()}
    for name, part in frozen.items():
        found[f"{name}_share"] = share(found["influence"], part.mean_abs.cpu().numpy())
    made = pd.DataFrame({"neuron": np.arange(subject.n_neurons), **found})
    side = np.where(made["mean"] >= 0, *rankings.SIDES)
    return made.assign(side=side, rare=made["neuron"].isin(group), positions=len(rows))
