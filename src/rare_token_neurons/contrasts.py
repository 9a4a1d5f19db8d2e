"""The statistics of one cell of the robustness grid, as `claims.Evidence` for the claims rule.

The rare group is chosen on half A of the documents and measured on half B. Each contrast is against random and matched
groups of its size, of the two differences the one that speaks less for the claim (`differences.contrast`, as in notebook 11);
intervals draw documents anew, in the group and its controls alike.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from rare_token_neurons import breaks, cells, claims, comparisons, controls, differences, documents, influences
from rare_token_neurons import nulls, prominence, resampling, spectra, tails

DRAWS = 100  # bootstrap draws of a curve, null curves, and choices of the group
GROUPS, RESAMPLES, BASELINES = 200, 200, 10  # control groups, draws of documents, control groups with intervals
LEAST = claims.LEAST_POSITIONS
LEAN = claims.Claim("C1", "log ratio of the group's influence on rare to that on common targets, less that of control groups",
                    "greater", part="rare against common", paper_note="rare token neurons act on rare tokens")
NAMED = {claim.name: claim for claim in claims.CLAIMS}
STATISTICS = {"plateau": NAMED["C2"], "rare against common": LEAN, "effective dimension": NAMED["C4"],
              "co-activation": NAMED["C5 within"], "Hill exponent": NAMED["C6"]}


@dataclass(frozen=True)
class Measured:
    """One cell's loss changes and what goes with them; influence is |sum of `effects`| over the positions.

    effects: name of the targets ("rare", "common") -> float (n, neurons), absolute changes, or signed ones for
    |mean change|; owners: name -> (n,) documents; in_b: name -> bool (n,), positions of half B; activations: (n, neurons)
    at the rare positions; w_out: (d, neurons); rows: the input weights by matrix, each (neurons, d).
    """

    effects: dict
    owners: dict
    in_b: dict
    activations: np.ndarray
    w_out: np.ndarray
    rows: dict


def group(measured):
    """The rare group: the top 1.7 % by influence on the rare positions of half A, (m,) int."""
    values = np.abs(measured.effects["rare"][~measured.in_b["rare"]].mean(axis=0))
    return np.argsort(-values, kind="stable")[: int(np.ceil(influences.GROUP_SHARE * len(values)))]


def plateau(measured, ranking="split_half", seed=0):
    """Share of the neurons in the plateau on the rare positions, by change points; p by two null families."""
    sums, counts = cells.by_document(measured.effects["rare"], measured.owners["rare"])
    changes = breaks.bootstrap(sums, counts, ranking=ranking, draws=DRAWS, splits=10, seed=seed)
    families = nulls.families(sums, counts, draws=DRAWS, ranking=ranking, splits=10, seed=seed)
    found = prominence.plateau(changes, families, sums.shape[1])
    return claims.Evidence(found["value"], found["low"], found["high"], 0.0, (found["p_lognormal"], found["p_half_normal"]),
                           int(counts.sum()))


def lean(effects, owners, members, nulls_of, *, kinds=controls.KINDS, draws=RESAMPLES, seed=0):
    """How much more a group acts on rare than on common targets, against control groups.

    The statistic is log(influence of the group on rare / on common targets), less its mean over the control groups.

    Parameters
    ----------
    effects, owners : name of the targets -> (n, neurons), (n,), of documents that did not choose the group.
    members : (m,) ; nulls_of : kind -> (g, m) control groups.
    kinds : of the controls that the claim needs; one without groups has no p value.

    Returns
    -------
    claims.Evidence, one p value a kind
    """
    names = np.unique(np.concatenate(list(owners.values())))
    weights = documents.resamples(len(names), draws, seed)
    every, at = np.concatenate([members[None], *nulls_of.values()]), {}
    for name in ("rare", "common"):
        sums, counts = cells.by_document(effects[name], owners[name], names)
        values = np.abs(weights @ sums) / np.maximum(weights @ counts, 1)[:, None]  # (1 + draws, neurons)
        at[name] = np.stack([values[:, one].mean(axis=1) for one in every], axis=1)  # (1 + draws, 1 + groups)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(at["rare"]) - np.log(at["common"])
    p, row = [f"p_{kind}" for kind in kinds], {"documents": len(names)}
    parts = np.split(ratio[:, 1:], np.cumsum([len(one) for one in nulls_of.values()])[:-1], axis=1)
    for kind, part in zip(nulls_of, parts):
        both = np.column_stack([ratio[:, 0], part])
        row |= differences.difference(kind, resampling.against(both[0], both[1:], seed))
        row[f"p_{kind}"] = controls.empirical_p(both[0, 0], part[0], LEAN.direction)
    return differences.contrast(dict.fromkeys(p, np.nan) | row, LEAN.direction, min(map(len, owners.values())), p)


def heavy_tail(measured, members, nulls_of, seed=0):
    """Hill's exponent of the group's input weights, less that of control groups; of two matrices the less favourable."""
    sums, counts = cells.by_document(*(part["rare"][~measured.in_b["rare"]] for part in (measured.effects, measured.owners)))
    drawn = documents.resamples(len(counts), DRAWS, seed)[1:]
    again = np.argsort(-documents.influence(sums, counts, drawn), axis=1, kind="stable")[:, : len(members)]
    rows = []
    for weights in measured.rows.values():
        own, anew, *null = (spectra.hill(spectra.eigenvalues(weights[one]))[0]
                            for one in (members[None], again, *nulls_of.values()))
        low, high = tails.percentile_interval(own[0], anew)
        row = {"value": own[0], "low": low, "high": high, "positions": int(counts.sum()), "documents": len(counts),
               "missing": np.mean(~np.isfinite(np.concatenate([own, anew, *null]))), "p_random": np.nan, "p_matched": np.nan}
        for kind, values in zip(nulls_of, null):
            low, high = np.nanquantile(values, [0.025, 0.975])
            row |= {f"{kind}_mean": np.nanmean(values), f"{kind}_low": low, f"{kind}_high": high,
                    f"p_{kind}": controls.empirical_p(own[0], values, "less")}
        rows.append(row)
    return differences.lightest(rows)


def inside(sample, members, nulls_of, names, statistic, side, seed=0):
    """The first of some statistics of the correlations inside the group, less that of control groups; side: of the claim."""
    row = comparisons.within(sample, members, nulls_of, names, statistic, resamples=RESAMPLES, baselines=BASELINES, seed=seed)[0]
    return differences.contrast(row | {"documents": len(np.unique(sample.documents))}, side, len(sample.values))


def all_of(measured, ranking="split_half", seed=0):
    """Every statistic of one cell: name -> claims.Evidence; without enough rare positions only their number."""
    rare, in_b = len(measured.owners["rare"]), measured.in_b
    late = int(min(part.sum() for part in in_b.values()))  # what is left to measure the group on
    found = {name: claims.Evidence(positions=late, note="too few positions") for name in STATISTICS}
    found["plateau"] = plateau(measured, ranking, seed) if rare >= LEAST else claims.Evidence(positions=rare)
    if late < LEAST:
        return found
    values, owners = measured.activations[in_b["rare"]], measured.owners["rare"][in_b["rare"]]
    sample = comparisons.sample(values, owners, measured.w_out)
    members = group(measured)
    members = members[np.isin(members, sample.living)]
    nulls_of = comparisons.control_groups(sample, members, GROUPS, seed)
    at_b = [{name: part[name][in_b[name]] for name in in_b} for part in (measured.effects, measured.owners)]
    found["rare against common"] = lean(*at_b, members, nulls_of, seed=seed)
    dimension = partial(comparisons.dimensions, tokens=len(values))
    for name, parts, statistic in (("effective dimension", comparisons.DIMENSIONS, dimension),
                                   ("co-activation", comparisons.PAIRS, comparisons.pairs)):
        found[name] = inside(sample, members, nulls_of, parts, statistic, STATISTICS[name].direction, seed)
    found["Hill exponent"] = heavy_tail(measured, members, nulls_of, seed)
    return found
