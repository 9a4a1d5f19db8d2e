"""The top group over training: tables of who belonged to it, where its members stood, and how far rankings agree.

Every checkpoint reads the same blocks and is measured at the same positions, so documents are drawn in common.
"""

from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import stats

from rare_token_neurons import checkpoints, controls, documents, influences, networks, passes, prominence, tables, trajectories

GROUPS = ("rare", "common")
RANDOM_GROUPS = 1_000
READS = ("steps", "ablation", "aggregate", "ranking", *tables.POSITION_PARAMETERS)
MODULES = ["emergence"]


def stage(settings, name, compute):
    """The table emergence_`name`; compute: settings -> DataFrame, or its rows."""
    return tables.stage(settings, f"emergence_{name}", lambda: pd.DataFrame(compute(settings)), reads=READS,
                        inputs=passes.model_inputs(settings, "all"), modules=MODULES)


@lru_cache(maxsize=1)
def sums(settings):
    """Per-document sums of every checkpoint, on one list of documents.

    Returns
    -------
    dict of (step, group) to sums (documents, neurons), counts (documents,); and in_a, bool (documents,)
    """
    half = tables.positions(settings).groupby("document")["half"].first().sort_index()
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
def halves(settings):
    """Influence on the two halves of the documents, and on draws from each half (the same documents everywhere).

    Returns
    -------
    dict of (step, group) to (2, 1 + draws, neurons); size of the top group
    """
    found, in_a = sums(settings)
    weights = trajectories.halves(in_a, trajectories.DRAWS, settings.seed)
    values = {place: documents.influence(*pair, weights) for place, pair in found.items()}
    return values, int(np.ceil(influences.GROUP_SHARE * values[next(iter(values))].shape[-1]))


def ratios(settings, step, group):
    """Of the top group of a step, chosen on half A: its influence over the median neuron's on half B, (1 + draws,)."""
    values, size = halves(settings)
    half_a, half_b = values[step, group]
    return trajectories.over_median(half_b, networks.top(half_a[0], size))


def top_groups(settings):
    """The top 1.7 % at every checkpoint, chosen on half A and measured on half B.

    Returns
    -------
    DataFrame with step, group, chosen ("then": at that step; "today": at the last one), size; ratio (mean influence of
    the group over that of the median neuron) and median_rank, each with _low and _high (95 % over documents) and
    random_*_low, random_*_high (95 % of 1,000 random groups of the same size); random_ratio (their mean), p (of ratio);
    ranked (the ratio of ranked half-normal numbers, `prominence.ranked_null`), p_ranked
    """

    def compute(settings):
        (values, size), (measured, in_a) = halves(settings), sums(settings)
        last = max(step for step, _ in values)
        for (step, group), (half_a, half_b) in values.items():
            random = controls.random_groups(half_b.shape[-1], size, RANDOM_GROUPS, settings.seed)
            nulls = {"ratio": trajectories.over_median(half_b[0], random),
                     "median_rank": trajectories.median_rank(half_b[0], random)}
            ranked = prominence.ranked_null(*measured[step, group], in_a, size, seed=settings.seed)
            for chosen, chooser in (("then", half_a), ("today", values[last, group][0])):
                members = networks.top(chooser[0], size)
                found = {"ratio": trajectories.over_median(half_b, members),
                         "median_rank": trajectories.median_rank(half_b, members)}
                row = {"step": step, "group": group, "chosen": chosen, "size": size}
                for name, samples in found.items():
                    row[name] = samples[0]
                    row[f"{name}_low"], row[f"{name}_high"] = trajectories.percentile(samples[1:])
                    row[f"random_{name}_low"], row[f"random_{name}_high"] = trajectories.percentile(nulls[name])
                yield row | {"random_ratio": nulls["ratio"].mean(), "ranked": ranked.mean()} | {
                    name: controls.empirical_p(row["ratio"], null, "greater")
                    for name, null in (("p", nulls["ratio"]), ("p_ranked", ranked))}

    return stage(settings, "top_groups", compute)


def ancestry(settings):
    """Where today's top neurons stood.

    Returns
    -------
    DataFrame with group, neuron, place (today, by half A, from 1), step, rank (then, by half B, from 1), neurons (all)
    """

    def compute(settings):
        values, size = halves(settings)
        last = max(step for step, _ in values)
        for (step, group), (_, half_b) in values.items():
            members = networks.top(values[last, group][0][0], size)
            ranks = stats.rankdata(-half_b[0], method="ordinal")[members]
            yield from ({"group": group, "neuron": neuron, "place": place, "step": step, "rank": rank,
                         "neurons": half_b.shape[-1]} for place, (neuron, rank) in enumerate(zip(members, ranks), 1))

    return stage(settings, "ancestry", compute)


def rankings(settings):
    """How far the neurons' rankings agree, between checkpoints and between rare and common targets.

    No document serves both rankings of a pair: half A of one, half B of the other, both ways, averaged. A pair of
    one with itself is the ceiling that noise leaves.

    Returns
    -------
    DataFrame with first_group, first_step, second_group, second_step; correlation (Spearman, all neurons), jaccard (of
    the top 1.7 %), each with _low and _high (95 % over documents); random_jaccard, random_jaccard_high (mean and 97.5 %
    of two random groups)
    """

    def compute(settings):
        values, size = halves(settings)
        ranked = {place: trajectories.ranking(found, size) for place, found in values.items()}
        chance = stats.hypergeom(next(iter(values.values())).shape[-1], size, size)
        shared = np.arange(size + 1)
        null = {"random_jaccard": chance.pmf(shared) @ (shared / (2 * size - shared)),
                "random_jaccard_high": chance.ppf(0.975) / (2 * size - chance.ppf(0.975))}
        pairs = [(one, two) for one in ranked for two in ranked
                 if (one[1] == two[1] and one[0] <= two[0]) or (one[0] == two[0] and one[1] > two[1])]
        for one, two in pairs:
            row = {"first_group": one[1], "first_step": one[0], "second_group": two[1], "second_step": two[0]}
            for name, found, least in zip(("correlation", "jaccard"), trajectories.agreement(ranked[one], ranked[two]),
                                          (-1.0, 0.0)):
                row[name] = found[0]
                row[f"{name}_low"], row[f"{name}_high"] = trajectories.centred(found, least, 1.0)
            yield row | null

    return stage(settings, "rankings", compute)
