"""Tables of the ranked influence curve: the curve with its interval and null, and its phases by both rules."""

from functools import lru_cache

import numpy as np
import pandas as pd

from rare_token_neurons import breaks, checkpoints, documents, influences, nulls, passes, phases, tables

DRAWS = 200  # bootstrap draws over documents, and null curves
READS = ("steps", "ablation", "aggregate", "ranking", *tables.POSITION_PARAMETERS)
ENDS = {name: name for name in ("plateau_end", "law_end", "kappa", "plateau_share", "law_share", "decay_share", "slope_1",
                                "slope_2", "slope_3")} | {"head_end": "break_1"}  # columns with an interval -> its name in Breaks
MODULES = ["ablation", "breaks", "checkpoints", "curves", "nulls", "phases", "text"]


def _stage(settings, name, rows, default):
    """One table over revisions and target groups."""

    def compute():
        return pd.concat([rows(settings, revision, group).assign(revision=revision or "", group=group)
                          for revision in passes.revisions(settings, default) for group in ("rare", "common")],
                         ignore_index=True)

    return tables.stage(settings, name, compute, reads=READS, inputs=passes.model_inputs(settings, default), modules=MODULES)


@lru_cache(maxsize=4)
def fitted(settings, revision, group):
    """Phases by the paper's rule, change points with document bootstraps, and fitted null families of one curve.

    Returns
    -------
    phases.Phases, breaks.Breaks, dict of nulls.Comparison by family, documents.Influence-like (sums, counts)
    """
    found = influences.influence_sums(settings, revision, group)
    sums = (found.abs_sum if settings.aggregate == "mean_abs" else found.change_sum).double().numpy()
    counts = found.n.double().numpy()
    rule = phases.fit(np.abs(sums.sum(0)) / counts.sum())
    changes = breaks.bootstrap(sums, counts, ranking=settings.ranking, draws=DRAWS, seed=settings.seed)
    families = nulls.families(sums, counts, ranking=settings.ranking, draws=DRAWS, seed=settings.seed)
    return rule, changes, families, (sums, counts)


def rank_curves(settings, default="last"):
    """The ranked curve: one row (revision, group, rank).

    Returns
    -------
    DataFrame with rank, influence (by `ranking`), low, high (95 % over documents), same_tokens (ranked and measured on
    the same documents), null_low, null_high (95 % of order statistics of the family that fits best), null (its name)
    """

    def rows(settings, revision, group):
        _, changes, families, (sums, counts) = fitted(settings, revision, group)
        best = nulls.best(families)
        n, pad = len(changes.curve), len(changes.curve) - len(families[best].low)
        same = np.sort(np.abs(sums.sum(0)) / counts.sum())[::-1]
        return pd.DataFrame({"rank": np.arange(1, n + 1), "influence": changes.curve, "low": changes.low,
                             "high": changes.high, "same_tokens": same, "null": best,
                             "null_low": np.pad(families[best].low, (0, pad)),
                             "null_high": np.pad(families[best].high, (0, pad))})

    return _stage(settings, "rank_curves", rows, default)


def phase_fits(settings, default="last"):
    """The phases of each curve by both rules: one row (revision, group).

    Returns
    -------
    DataFrame with, by the paper's rule, plateau, power_law, decay (shares of neurons), kappa, beta, r2, first and last
    (ranks of the boundaries); by change points, breaks (their number), bp_head_end (the first of them), bp_plateau_end (0 where
    the head lies above the law's line), bp_law_end, bp_kappa, bp_plateau_share, bp_law_share, bp_decay_share, bp_slope_1 to
    bp_slope_3 (of all stretches), each with _low and _high (95 % over documents), plateau_draws, decay_draws (shares of the
    draws with that phase); against the null family that fits best, null, departure (of the head from the law's line,
    e-folds of rank; below 0: a plateau), p_plateau, p_outliers, p_share; reliability (split halves), detectable (median
    smallest mean change, nats, that can be told from 0), positions, documents
    """

    def rows(settings, revision, group):
        rule, changes, families, (sums, counts) = fitted(settings, revision, group)
        best = families[nulls.best(families)]
        signed = influences.influence_sums(settings, revision, group).change_sum.double().numpy()
        row = dict(zip(("plateau", "power_law", "decay"), rule.shares))
        row |= {"kappa": rule.kappa, "beta": rule.beta, "r2": rule.r2, "first": rule.boundaries[0], "last": rule.boundaries[1],
                "breaks": changes.breaks, "bp_head_end": changes.ranks[0] if changes.breaks else np.nan,
                "bp_plateau_end": changes.boundaries[0], "bp_law_end": changes.boundaries[1], "bp_kappa": changes.kappa}
        first, last = (end / len(changes.curve) for end in changes.boundaries)
        row |= {"bp_plateau_share": first, "bp_law_share": last - first, "bp_decay_share": 1 - last}
        slopes = np.pad(changes.slopes, (0, 2 - changes.breaks), constant_values=np.nan)
        row |= {f"bp_slope_{place}": slope for place, slope in enumerate(slopes, 1)}
        for column, name in ENDS.items():
            row[f"bp_{column}_low"], row[f"bp_{column}_high"] = changes.intervals.get(name, (np.nan, np.nan))
        row |= {"plateau_draws": changes.plateau_draws, "decay_draws": changes.decay_draws, "null": nulls.best(families),
                "departure": best.departure, "p_plateau": best.p_plateau, "p_outliers": best.p_outliers,
                "p_share": best.p_share, "reliability": documents.reliability(sums, counts, seed=settings.seed),
                "detectable": float(np.median(documents.detectable(signed, counts))), "positions": int(counts.sum()),
                "documents": len(counts), "step": checkpoints.step_of(revision)}
        return pd.DataFrame([row]).astype({"step": "Int64"})

    return _stage(settings, "phases", rows, default)
