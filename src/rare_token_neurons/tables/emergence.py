"""Over training (notebook 04): the top group, where its members stood, how far rankings agree; the ranked curve, its phases.

Every checkpoint reads the same blocks and is measured at the same positions, so documents are drawn in common: a gain
between two checkpoints has an interval of its own, which `emergence_statistics` hands to the claims.
"""

from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import stats

from rare_token_neurons.curve import changepoints, nulls
from rare_token_neurons.curve.changepoints import PHASES, QUANTITIES
from rare_token_neurons.models import checkpoints
from rare_token_neurons.statistics import controls, documents, powerlaws, rankings
from rare_token_neurons.tables import checkpoints as passes, influence as influences, rare_tokens
from rare_token_neurons.tables.stage import GROUPS, table

RANDOM_GROUPS = 1_000


@lru_cache(maxsize=1)
def sums_over_training(settings):
    """Per-document sums of every checkpoint, on one list of documents.

    Returns
    -------
    dict of (step, group) to sums (documents, neurons), counts (documents,); and in_a, bool (documents,)
    """
    half = rare_tokens.positions(settings).groupby("document")["half"].first().sort_index()
    found = {}
    for revision in passes.revisions(settings, "all"):
        for group in GROUPS:
            kept = influences.influence_sums(settings, revision, group)
            part = (kept.abs_sum if settings.aggregate == "mean_abs" else kept.change_sum).numpy()
            place = half.index.get_indexer(kept.documents.numpy())
            total, counts = np.zeros((len(half), part.shape[1])), np.zeros(len(half))
            total[place], counts[place] = part, kept.n.numpy()
            found[checkpoints.step_of(revision), group] = total, counts
    return found, half.eq("A").to_numpy()


@lru_cache(maxsize=1)
def halves_over_training(settings):
    """Influence on the two halves of the documents, and on draws from each half (the same documents everywhere).

    Returns
    -------
    dict of (step, group) to (2, 1 + draws, neurons); size of the top group
    """
    found, in_a = sums_over_training(settings)
    weights = documents.halves(in_a, changepoints.DRAWS, settings.seed)
    values = {place: documents.influence(*pair, weights) for place, pair in found.items()}
    return values, int(np.ceil(influences.GROUP_SHARE * values[next(iter(values))].shape[-1]))


def ratios(settings, step, group):
    """Of the top group of a step, chosen on half A: its influence over the median neuron's on half B, (1 + draws,)."""
    values, size = halves_over_training(settings)
    half_a, half_b = values[step, group]
    return rankings.over_median(half_b, rankings.top(half_a[0], size))


@table(passes.EVERY, reads=influences.CURVE)
def emergence_top_groups(settings):
    """The top 1.7 % at every checkpoint, chosen on half A and measured on half B.

    Returns
    -------
    DataFrame with step, group, chosen ("then": at that step; "today": at the last one), size; ratio (mean influence of
    the group over that of the median neuron) and median_rank, each with _low and _high (95 % over documents) and
    random_*_low, random_*_high (95 % of 1,000 random groups of the same size); random_ratio (their mean), p (of ratio);
    ranked (the ratio of ranked half-normal numbers, `nulls.ranked_null`), p_ranked
    """
    (values, size), (measured, in_a) = halves_over_training(settings), sums_over_training(settings)
    last = max(step for step, _ in values)
    for (step, group), (half_a, half_b) in values.items():
        random = controls.random_groups(half_b.shape[-1], size, RANDOM_GROUPS, settings.seed)
        of_random = {"ratio": rankings.over_median(half_b[0], random),
                     "median_rank": rankings.median_rank(half_b[0], random)}
        ranked = nulls.ranked_null(*measured[step, group], in_a, size, seed=settings.seed)
        for chosen, chooser in (("then", half_a), ("today", values[last, group][0])):
            members = rankings.top(chooser[0], size)
            found = {"ratio": rankings.over_median(half_b, members), "median_rank": rankings.median_rank(half_b, members)}
            row = {"step": step, "group": group, "chosen": chosen, "size": size}
            for name, samples in found.items():
                row[name] = samples[0]
                row[f"{name}_low"], row[f"{name}_high"] = documents.percentile(samples[1:])
                row[f"random_{name}_low"], row[f"random_{name}_high"] = documents.percentile(of_random[name])
            yield row | {"random_ratio": of_random["ratio"].mean(), "ranked": ranked.mean()} | {
                name: controls.empirical_p(row["ratio"], null, "greater")
                for name, null in (("p", of_random["ratio"]), ("p_ranked", ranked))}


@table(passes.EVERY, reads=influences.CURVE)
def emergence_ancestry(settings):
    """Where today's top neurons stood.

    Returns
    -------
    DataFrame with group, neuron, place (today, by half A, from 1), step, rank (then, by half B, from 1), neurons (all)
    """
    values, size = halves_over_training(settings)
    last = max(step for step, _ in values)
    for (step, group), (_, half_b) in values.items():
        members = rankings.top(values[last, group][0][0], size)
        ranks = stats.rankdata(-half_b[0], method="ordinal")[members]
        yield from ({"group": group, "neuron": neuron, "place": place, "step": step, "rank": rank,
                     "neurons": half_b.shape[-1]} for place, (neuron, rank) in enumerate(zip(members, ranks), 1))


@table(passes.EVERY, reads=influences.CURVE)
def emergence_rankings(settings):
    """How far the neurons' rankings agree, between checkpoints and between rare and common targets.

    No document serves both rankings of a pair: half A of one, half B of the other, both ways, averaged. A pair of
    one with itself is the ceiling that noise leaves.

    Returns
    -------
    DataFrame with first_group, first_step, second_group, second_step; correlation (Spearman, all neurons), jaccard (of
    the top 1.7 %), each with _low and _high (95 % over documents); random_jaccard, random_jaccard_high (mean and 97.5 %
    of two random groups)
    """
    values, size = halves_over_training(settings)
    ranked = {place: rankings.ranking(found, size) for place, found in values.items()}
    chance = stats.hypergeom(next(iter(values.values())).shape[-1], size, size)
    shared = np.arange(size + 1)
    null = {"random_jaccard": chance.pmf(shared) @ (shared / (2 * size - shared)),
            "random_jaccard_high": chance.ppf(0.975) / (2 * size - chance.ppf(0.975))}
    pairs = [(one, two) for one in ranked for two in ranked
             if (one[1] == two[1] and one[0] <= two[0]) or (one[0] == two[0] and one[1] > two[1])]
    for one, two in pairs:
        row = {"first_group": one[1], "first_step": one[0], "second_group": two[1], "second_step": two[0]}
        for name, found, least in zip(("correlation", "jaccard"), rankings.agreement(ranked[one], ranked[two]), (-1.0, 0.0)):
            row[name] = found[0]
            row[f"{name}_low"], row[f"{name}_high"] = documents.centred(found, least, 1.0)
        yield row | null


# ---- the phases over training

RULES = {"change points": changepoints.bootstrap, "paper's rule": changepoints.by_paper_rule}
RANKS = 100  # places of a stored curve, even in log rank
NULL_DRAWS = 200


@lru_cache(maxsize=1)
def _fits(settings):
    """Of each (step, group): the fit by each rule, and the curve against the null families."""
    found = {}
    for place, (sums, counts) in sums_over_training(settings)[0].items():
        sums, counts, options = sums[counts > 0], counts[counts > 0], {"ranking": settings.ranking}
        fits = {rule: fit(sums, counts, seed=settings.seed, **(options if rule == "change points" else {}))
                for rule, fit in RULES.items()}
        found[place] = fits, nulls.families(sums, counts, draws=NULL_DRAWS, seed=settings.seed, **options)
    return found


@table(passes.EVERY, reads=influences.CURVE)
def emergence_curves(settings):
    """Influence by rank, at places even in log rank.

    Returns
    -------
    DataFrame with step, group, rank; influence, low, high (nats; 95 % over documents), null (the family that fits this
    checkpoint best), null_low, null_high (95 % of its order statistics)
    """
    for (step, group), (fits, families) in _fits(settings).items():
        fit, best = fits["change points"], nulls.best(families)
        null = families[best]
        rank = np.unique(np.geomspace(1, len(fit.curve), RANKS).round().astype(int))
        columns = {"influence": fit.curve, "low": fit.low, "high": fit.high, "null_low": null.low, "null_high": null.high}
        yield pd.DataFrame({"step": step, "group": group, "rank": rank, "null": best} | {
            name: pd.Series(values).reindex(rank - 1).to_numpy() for name, values in columns.items()})


@table(passes.EVERY, reads=influences.CURVE)
def emergence_phases(settings):
    """The phases at every checkpoint, by change points and by the paper's rule.

    Returns
    -------
    DataFrame with step, group, rule; plateau, power_law, decay (shares of the neurons), kappa, beta, each with _low and
    _high (95 % over documents); breaks (of the line; missing by the paper's rule); drawn_plateau, drawn_decay (share of the
    draws that have it); told_plateau, told_power_law, told_decay (there in the fit and in 95 % of the draws; a power law
    also has to be told from a lognormal between its two ends); law (the words of that test); null (the family that fits
    best), p_head (chance of a head as far below the line of the middle under it), beyond_null (p_head_* at most 0.05 for
    lognormal and half-normal alike, as claim C2 asks), p_head_* and p_share_* (the same for each family, and of a share as
    extreme), null_plateau_low, null_plateau_high (95 % of that family's plateau shares); positions, documents
    """
    for (step, group), (fits, families) in _fits(settings).items():
        sums, counts = sums_over_training(settings)[0][step, group]
        values = documents.influence(sums, counts, np.ones((1, len(counts))))[0]
        best = nulls.best(families)
        null_low, null_high = np.quantile(families[best].null_share, [0.025, 0.975])
        for rule, fit in fits.items():
            row = {"step": step, "group": group, "rule": rule, "breaks": fit.breaks}
            for name in QUANTITIES:
                low, high = documents.percentile(fit.samples[name])
                row |= {name: fit.value[name], f"{name}_low": low, f"{name}_high": high}
            law = _law(values, fit, settings.seed)
            row |= {"drawn_plateau": fit.drawn("plateau"), "drawn_decay": fit.drawn("decay")}
            row |= {f"told_{phase}": fit.told(phase) for phase in PHASES}
            row |= {"told_power_law": row["told_power_law"] and law == "not rejected", "law": law, "null": best,
                    "p_head": families[best].p_plateau,
                    "beyond_null": all(families[name].p_plateau <= 0.05 for name in nulls.FAMILIES[:2])}
            for family in nulls.FAMILIES[:2]:
                row[f"p_head_{family.replace('-', '_')}"] = families[family].p_plateau
                row[f"p_share_{family.replace('-', '_')}"] = families[family].p_share
            yield row | {"null_plateau_low": null_low, "null_plateau_high": null_high,
                         "positions": int(counts.sum()), "documents": int((counts > 0).sum())}


def _law(values, fit, seed):
    """Verdict of the doubly truncated power-law test; every bootstrap sample finds its own range, as the data did."""
    low, high = fit.law_range(values)
    if not 0 < low < high:
        return "cannot be tested (no range)"
    return powerlaws.middle(values, low, high, seed=seed, refit=fit.law_range).verdict


@table(passes.EVERY, reads=influences.CURVE)
def emergence_statistics(settings):
    """What the claims are judged by: each statistic at the first and the last step, and its gain between them.

    Returns
    -------
    DataFrame with part ("first", "last", "gain": last less first, of a ratio last over first), step (missing for a
    gain), group, rule, statistic (plateau, power_law, decay, kappa, beta, drawn_plateau, drawn_decay, ratio), value,
    low, high (95 % over documents, drawn in common for a gain; missing for shares of draws), breaks (of the line), null
    (missing where null families are it), p_random, p_head_* and p_share_* (by family), positions, documents
    """
    found = pd.DataFrame([*_phase_statistics(settings), *_ratio_statistics(settings)])
    found = found.astype({"step": "Int64", "breaks": "Int64", "null": float, "low": float, "high": float})
    size = emergence_phases(settings).groupby("group")[["positions", "documents"]].first().reset_index()
    return found.merge(size, on="group")


def _phase_statistics(settings):
    phases, fitted = emergence_phases(settings), _fits(settings)
    p_values = [name for name in phases if name.startswith("p_")]
    steps = {"first": phases["step"].min(), "last": phases["step"].max()}
    phases = phases.set_index(["step", "group", "rule"])
    for group in GROUPS:
        for rule in RULES:
            place = {"group": group, "rule": rule}
            for part, step in steps.items():
                row = phases.loc[(step, group, rule)]
                for name in (*QUANTITIES, "drawn_plateau", "drawn_decay"):
                    yield {"part": part, "step": step, **place, "statistic": name, "value": row[name],
                           "low": row.get(f"{name}_low"), "high": row.get(f"{name}_high"), "null": np.nan,
                           "breaks": row["breaks"], **{p: row[p] for p in p_values if name == "plateau"}}
            first, last = (fitted[step, group][0][rule] for step in steps.values())
            for name in QUANTITIES:
                low, high = documents.percentile(last.samples[name] - first.samples[name])
                yield {"part": "gain", **place, "statistic": name, "value": last.value[name] - first.value[name],
                       "low": low, "high": high, "null": 0.0}


def _ratio_statistics(settings):
    top = emergence_top_groups(settings)
    names = {"ratio": "value", "ratio_low": "low", "ratio_high": "high", "random_ratio": "null", "p": "p_random"}
    for group, rows in top[top["chosen"] == "then"].groupby("group"):
        place = {"group": group, "rule": "", "statistic": "ratio"}
        for part, row in (("first", rows.iloc[0]), ("last", rows.iloc[-1])):
            yield {"part": part, "step": row["step"], **place, **row[list(names)].rename(names)}
        first, last = (ratios(settings, step, group) for step in rows["step"].iloc[[0, -1]])
        gain = last / first
        low, high = documents.percentile(gain[1:])
        yield {"part": "gain", **place, "value": gain[0], "low": low, "high": high, "null": 1.0}
