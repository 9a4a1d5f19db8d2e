"""How the three phases came about: tables over all checkpoints of a model, and what claim C3 is judged by."""

from functools import lru_cache

import numpy as np
import pandas as pd

from rare_token_neurons import documents, lineage, nulls, powerlaws, trajectories
from rare_token_neurons.lineage import GROUPS, stage
from rare_token_neurons.trajectories import PHASES, QUANTITIES

RULES = {"change points": trajectories.by_change_points, "paper's rule": trajectories.by_paper_rule}
RANKS = 100  # places of a stored curve, even in log rank
NULL_DRAWS = 200


@lru_cache(maxsize=1)
def _fits(settings):
    """Of each (step, group): the fit by each rule, and the curve against the null families."""
    found = {}
    for place, (sums, counts) in lineage.sums(settings)[0].items():
        sums, counts, options = sums[counts > 0], counts[counts > 0], {"ranking": settings.ranking}
        fits = {rule: fit(sums, counts, seed=settings.seed, **(options if rule == "change points" else {}))
                for rule, fit in RULES.items()}
        found[place] = fits, nulls.families(sums, counts, draws=NULL_DRAWS, seed=settings.seed, **options)
    return found


def curves(settings):
    """Influence by rank, at places even in log rank.

    Returns
    -------
    DataFrame with step, group, rank; influence, low, high (nats; 95 % over documents), null (the family that fits this
    checkpoint best), null_low, null_high (95 % of its order statistics)
    """

    def compute(settings):
        for (step, group), (fits, families) in _fits(settings).items():
            fit, best = fits["change points"], nulls.best(families)
            null = families[best]
            rank = np.unique(np.geomspace(1, len(fit.curve), RANKS).round().astype(int))
            columns = {"influence": fit.curve, "low": fit.low, "high": fit.high, "null_low": null.low,
                       "null_high": null.high}
            yield pd.DataFrame({"step": step, "group": group, "rank": rank, "null": best} | {
                name: pd.Series(values).reindex(rank - 1).to_numpy() for name, values in columns.items()})

    return stage(settings, "curves", lambda settings: pd.concat(compute(settings), ignore_index=True))


def phases(settings):
    """The phases at every checkpoint, by change points and by the paper's rule.

    Returns
    -------
    DataFrame with step, group, rule; plateau, power_law, decay (shares of the neurons), kappa, beta, each with _low and
    _high (95 % over documents); breaks (of the line; missing by the paper's rule); drawn_plateau, drawn_decay (share of the
    draws that have it); told_plateau, told_power_law, told_decay (there in the fit and in 95 % of the draws; a power law also has to be told from a
    lognormal between its two ends); law (the words of that test); null (the family that fits best), p_head (chance of
    a head as far below the line of the middle under it), beyond_null (p_head_* at most 0.05 for lognormal and half-normal
    alike, as claim C2 asks), p_head_* and p_share_* (the same for each family, and of a share as extreme),
    null_plateau_low, null_plateau_high (95 % of that family's plateau shares); positions, documents
    """

    def compute(settings):
        for (step, group), (fits, families) in _fits(settings).items():
            sums, counts = lineage.sums(settings)[0][step, group]
            values = documents.influence(sums, counts, np.ones((1, len(counts))))[0]
            best = nulls.best(families)
            null_low, null_high = np.quantile(families[best].null_share, [0.025, 0.975])
            for rule, fit in fits.items():
                row = {"step": step, "group": group, "rule": rule, "breaks": fit.breaks}
                for name in QUANTITIES:
                    low, high = trajectories.percentile(fit.samples[name])
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

    return stage(settings, "phases", compute)


def _law(values, fit, seed):
    """Verdict of the doubly truncated power-law test; every bootstrap sample finds its own range, as the data did."""
    low, high = fit.law_range(values)
    if not 0 < low < high:
        return "cannot be tested (no range)"
    return powerlaws.middle(values, low, high, seed=seed, refit=fit.law_range).verdict


def when_told(table):
    """When each phase can first be told, and since when to the end, from the table `phases`.

    Returns
    -------
    DataFrame indexed by rule, group and phase (with "plateau beyond chance": told, and its head lies below those of
    both null families); first, since (Int64, missing where never)
    """
    found = {}
    for place, rows in table.groupby(["rule", "group"]):
        rows = rows.set_index("step").sort_index()
        told = rows[[f"told_{phase}" for phase in PHASES]].set_axis([phase.replace("_", " ") for phase in PHASES], axis=1)
        found[place] = trajectories.first_told(told.assign(**{"plateau beyond chance": told["plateau"] & rows["beyond_null"]}))
    return pd.concat(found, names=["rule", "group", "phase"])


def statistics(settings):
    """What the claims are judged by: each statistic at the first and the last step, and its gain between them.

    Returns
    -------
    DataFrame with part ("first", "last", "gain": last less first, of a ratio last over first), step (missing for a
    gain), group, rule, statistic (plateau, power_law, decay, kappa, beta, drawn_plateau, drawn_decay, ratio), value,
    low, high (95 % over documents, drawn in common for a gain; missing for shares of draws), breaks (of the line), null
    (missing where null families are it), p_random, p_head_* and p_share_* (by family), positions, documents
    """

    def compute(settings):
        table = pd.DataFrame([*_phase_statistics(settings), *_ratio_statistics(settings)])
        size = phases(settings).groupby("group")[["positions", "documents"]].first().reset_index()
        return table.astype({"step": "Int64", "breaks": "Int64", "null": float, "low": float, "high": float}).merge(size, on="group")

    return stage(settings, "statistics", compute)


def _phase_statistics(settings):
    table, fitted = phases(settings), _fits(settings)
    p_values = [name for name in table if name.startswith("p_")]
    steps = {"first": table["step"].min(), "last": table["step"].max()}
    table = table.set_index(["step", "group", "rule"])
    for group in GROUPS:
        for rule in RULES:
            place = {"group": group, "rule": rule}
            for part, step in steps.items():
                row = table.loc[(step, group, rule)]
                for name in (*QUANTITIES, "drawn_plateau", "drawn_decay"):
                    yield {"part": part, "step": step, **place, "statistic": name, "value": row[name],
                           "low": row.get(f"{name}_low"), "high": row.get(f"{name}_high"), "null": np.nan,
                           "breaks": row["breaks"],
                           **{p: row[p] for p in p_values if name == "plateau"}}
            first, last = (fitted[step, group][0][rule] for step in steps.values())
            for name in QUANTITIES:
                low, high = trajectories.percentile(last.samples[name] - first.samples[name])
                yield {"part": "gain", **place, "statistic": name, "value": last.value[name] - first.value[name],
                       "low": low, "high": high, "null": 0.0}


def _ratio_statistics(settings):
    table = lineage.top_groups(settings)
    table = table[table["chosen"] == "then"]
    names = {"ratio": "value", "ratio_low": "low", "ratio_high": "high", "random_ratio": "null", "p": "p_random"}
    for group, rows in table.groupby("group"):
        place = {"group": group, "rule": "", "statistic": "ratio"}
        for part, row in (("first", rows.iloc[0]), ("last", rows.iloc[-1])):
            yield {"part": part, "step": row["step"], **place, **row[list(names)].rename(names)}
        first, last = (lineage.ratios(settings, step, group) for step in rows["step"].iloc[[0, -1]])
        gain = last / first
        low, high = trajectories.percentile(gain[1:])
        yield {"part": "gain", **place, "value": gain[0], "low": low, "high": high, "null": 1.0}
