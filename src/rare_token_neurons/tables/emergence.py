"""Over training (notebook 04): the top group, where its members stood, how far rankings agree; the ranked curve, its head.

Every checkpoint reads the same blocks and is measured at the same positions, so documents are drawn in common: a gain
between two checkpoints has an interval of its own, which `emergence_statistics` hands to the claims.
"""

from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import stats

from rare_token_neurons.curve import nulls
from rare_token_neurons.models import checkpoints
from rare_token_neurons.statistics import controls, documents, rankings
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
    half = rare_tokens.halves(settings)
    found = {(checkpoints.step_of(name), group): influences.placed(*influences.sums(settings, name, group), half.index)
             for name in passes.revisions(settings, "all") for group in GROUPS}
    return found, half.eq("A").to_numpy()


@lru_cache(maxsize=1)
def halves_over_training(settings):
    """Influence on the two halves of the documents, and on draws from each half (the same documents everywhere).

    Returns
    -------
    dict of (step, group) to (2, 1 + draws, neurons); size of the top group
    """
    found, in_a = sums_over_training(settings)
    weights = documents.halves(in_a, influences.DRAWS, settings.seed)
    values = {place: documents.influence(*pair, weights) for place, pair in found.items()}
    return values, influences.group_size(values[next(iter(values))].shape[-1])


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
    mean, _, high = rankings.jaccard_by_chance(next(iter(values.values())).shape[-1], size)
    pairs = [(one, two) for one in ranked for two in ranked
             if (one[1] == two[1] and one[0] <= two[0]) or (one[0] == two[0] and one[1] > two[1])]
    for one, two in pairs:
        row = {"first_group": one[1], "first_step": one[0], "second_group": two[1], "second_step": two[0]}
        for name, found, least in zip(("correlation", "jaccard"), rankings.agreement(ranked[one], ranked[two]), (-1.0, 0.0)):
            row[name] = found[0]
            row[f"{name}_low"], row[f"{name}_high"] = documents.interval(found[0], found[1:], "centred", within=(least, 1))
        yield row | {"random_jaccard": mean, "random_jaccard_high": high}


# ---- the head over training

RANKS = 100  # places of a stored curve, even in log rank
TOLD = 0.95  # share of the draws that have a decay
LINE = ("kappa", "beta")  # of the fixed head's law


@lru_cache(maxsize=1)
def _fits(settings):
    """Of each (step, group): rows of the curve, rows of its phases, and LINE in the fit and in every draw.

    Each curve is fitted once; nothing as large as its null curves is kept.
    """
    made = {}
    for place, (sums, counts) in sums_over_training(settings)[0].items():
        sums, counts, neurons = sums[counts > 0], counts[counts > 0], sums.shape[1]
        found, verdicts, curves = influences.fit(sums, counts, settings)
        rank = np.unique(np.geomspace(1, neurons, RANKS).round().astype(int))
        law = influences.law_test(sums, counts, settings.seed).verdict if found else influences.UNTESTED
        about = {"law": law, "told_power_law": law == "not rejected",
                 "reliability": documents.reliability(sums, counts, seed=settings.seed) if found else np.nan,
                 "positions": int(counts.sum()), "documents": len(counts)}
        rows = [row | {"told_head": row["word"] == "plateau", "told_decay": row["decay_draws"] >= TOLD} | about
                for row in influences.head_rows(found, verdicts, neurons)]
        law_line = {name: np.append(*(getattr(one["fixed"], name) for one in (found.own, found.drawn))) if found
                    else np.full(1 + influences.DRAWS, np.nan) for name in LINE}
        made[place] = influences.bands(found, curves, neurons).iloc[rank - 1], rows, law_line
    return made


@table(passes.EVERY, reads=influences.CURVE)
def emergence_curves(settings):
    """Influence by rank, at places even in log rank.

    Returns
    -------
    DataFrame with step, group, rank; influence, low, high (nats; 95 % over documents), lognormal_low, lognormal_high,
    half_normal_low, half_normal_high, law_low, law_high (95 % of null curves, as in `rank_curves`)
    """
    for (step, group), (curve, _, _) in _fits(settings).items():
        yield pd.DataFrame({"step": step, "group": group}, index=curve.index).join(curve)


@table(passes.EVERY, reads=influences.CURVE)
def emergence_phases(settings):
    """The phases at every checkpoint, by both heads: one row (step, group, rule).

    Returns
    -------
    DataFrame with step, group, rule ("fitted head", "fixed head") and the columns of `influence.phases` of the pooled curve,
    but for `detectable`; told_head (the word is plateau), told_decay (95 % of the draws have one), told_power_law (the
    truncated power-law test says "not rejected"), law (its words)
    """
    rows = [{"step": step, "group": group} | row for (step, group), (_, both, _) in _fits(settings).items() for row in both]
    return pd.DataFrame(rows).astype({"head": "Int64"})


@table(passes.EVERY, reads=influences.CURVE)
def emergence_statistics(settings):
    """What the claims are judged by: each statistic at the first and the last step, and its gain between them.

    Returns
    -------
    DataFrame with part ("first", "last", "gain": last less first, of a ratio last over first), step (missing for a gain),
    group, rule ("fixed head"; "" for the ratio), statistic (delta, kappa, beta, ratio), value, low, high (95 % over
    documents, drawn in common for a gain), null; of the ratio p_random; of delta word, p_lognormal, p_half_normal, p_law,
    p_floor, null_sd (see `influence.phases`), of its gain p_laws (chance of as much between two laws, one-sided) and null_sd
    (of such gains); positions, documents
    """
    found = pd.DataFrame([*_head_statistics(settings), *_ratio_statistics(settings)]).fillna({"word": ""})
    found = found.astype({"step": "Int64", "null": float, "low": float, "high": float})
    size = emergence_phases(settings).groupby("group")[["positions", "documents"]].first().reset_index()
    return found.merge(size, on="group")


def _head_statistics(settings):
    measured, fits = sums_over_training(settings)[0], _fits(settings)
    steps = {part: at(step for step, _ in fits) for part, at in (("first", min), ("last", max))}
    for group in GROUPS:
        place = {"group": group, "rule": "fixed head"}
        for part, step in steps.items():
            row = next(row for row in fits[step, group][1] if row["rule"] == place["rule"])
            yield {"part": part, "step": step, **place, **influences.valued("delta", row, "delta"), "null": 0.0,
                   **{name: row[name] for name in influences.WORDED}}
            yield from ({"part": part, "step": step, **place, **influences.valued(name, row, name)} for name in LINE)
        gain = {"part": "gain", **place}
        pair = [measured[steps[part], group] for part in ("last", "first")]
        yield gain | {"statistic": "delta"} | influences.contrast(*pair, settings)
        for name in LINE:
            drawn = fits[steps["last"], group][2][name] - fits[steps["first"], group][2][name]
            low, high = documents.percentile(drawn[1:])
            yield gain | {"statistic": name, "value": drawn[0], "low": low, "high": high, "null": 0.0}


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
