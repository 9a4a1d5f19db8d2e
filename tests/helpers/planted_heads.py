"""Rows of tables on ranked curves, planted: what drawings and sentences are given, without a model behind it."""

import numpy as np
import pandas as pd

NEURONS, SHELF, HEAD, LAW = 1000, 20, 30, 150  # last ranks of shelf, head (with its cliff) and law
KAPPA, BETA = 0.7, -1.0


def fit(word="plateau", **changes):
    """One row of the table `phases`: a shelf, a cliff, a law and a decay, Delta = 0.8;
    intervals of a tenth to either side."""
    row = {"head": HEAD, "shelf": SHELF + 0.4, "law_start": HEAD + 0.4, "law_end": LAW + 0.4,
           "head_share": HEAD / NEURONS, "law_share": (LAW - HEAD) / NEURONS, "decay_share": 1 - LAW / NEURONS,
           "delta": 0.8, "kappa": KAPPA, "beta": BETA, "slope": 0.1}
    ends = {f"{name}_{end}": value * by for name, value in row.items() for end, by in (("low", 0.9), ("high", 1.1))}
    return row | ends | {
        "neurons": NEURONS, "decay_draws": 0.97, "decay_null": 0.6, "word": word, "p_lognormal": 1 / 201,
        "p_half_normal": 1 / 201, "p_law": 1 / 201, "p_flat": 1 / 201, "p_floor": 1 / 201, "null_sd": 0.25,
        "null_delta_law_low": -0.5, "null_delta_law_high": 0.45, "reliability": 0.8, "detectable": 2e-4,
        "positions": 2_000, "documents": 300} | changes


def missing(row):
    """A row of `phases` of a curve that cannot be tested."""
    kept = ("neurons", "positions", "documents")
    return {name: value if name in kept else "" if name == "word" else np.nan
            for name, value in row.items()} | {"head": pd.NA}


def phases():
    """The table `phases` of one revision: rare is a plateau, common rounded; common suppress neurons are too few."""
    rounded = {"delta": -0.4, "delta_low": -0.5, "delta_high": -0.3, "p_law": 0.9, "head": 27, "shelf": 27.3,
               "law_start": 27.3}
    rows = []
    for group, changes in (("rare", {}), ("common", {"word": "rounded"} | rounded)):
        for sign, rules in (("pooled", ("fitted head", "fixed head", "paper's rule")),
                            ("boost", ("fitted head", "fixed head")), ("suppress", ("fitted head", "fixed head"))):
            if (group, sign) != ("common", "suppress"):
                rows += [{"revision": "", "group": group, "sign": sign, "rule": rule} | fit(**changes)
                         for rule in rules]
    made = pd.DataFrame(rows).astype({"head": "Int64"})
    paper = made["rule"] == "paper's rule"
    made.loc[paper, "word"] = ""
    made.loc[paper, ["delta_low", "delta_high", "kappa_low", "slope", "slope_low", "p_law", "shelf"]] = np.nan
    return made


def influence():
    """Influence by rank of the curve that `fit` describes: (neurons,)."""
    ranks = np.arange(1, NEURONS + 1)
    law = np.exp(BETA - KAPPA * np.log(np.minimum(ranks, LAW))) * (np.maximum(ranks, LAW) / LAW) ** -3.0
    return np.where(ranks <= SHELF, np.exp(BETA - KAPPA * np.log(SHELF / np.e) + 0.8), law)


def curve(values=None, **columns):
    """One curve's rows of the table `rank_curves`."""
    values = influence() if values is None else np.asarray(values, dtype=float)
    nulls = {f"{name}_{end}": values * by for name in ("lognormal", "half_normal", "law")
             for end, by in (("low", 0.5), ("high", 2))}
    return pd.DataFrame({"revision": "", "group": "rare", "sign": "pooled", "rank": np.arange(1, len(values) + 1),
                         "influence": values, "low": 0.9 * values, "high": 1.1 * values, **nulls,
                         "same_tokens": 1.2 * values} | columns)
