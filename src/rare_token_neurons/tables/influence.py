"""Every neuron's influence at each checkpoint, and the rare group chosen by it (notebook 03)."""

from functools import lru_cache

import numpy as np
import pandas as pd
import torch

from rare_token_neurons import keys
from rare_token_neurons.ablation import neurons as ablation
from rare_token_neurons.curve import changepoints, nulls, phases as paper_rule
from rare_token_neurons.statistics import controls, documents, geometry, rankings
from rare_token_neurons.tables import checkpoints as passes, rare_tokens, stage
from rare_token_neurons.tables.stage import table

MEMORY_GB = 1.0  # working memory of the ablation
GROUP_SHARE = 0.017  # of the neurons: the rare group (the paper's plateau)
EFFECTS = ("steps", "ablation", *rare_tokens.POSITIONS)  # parameters that decide what an ablation does
CURVE = (*EFFECTS, "aggregate", "ranking")  # and the ranked curve


def influence_sums(settings, revision, group):
    """Per-document sums of every neuron's effect at one checkpoint, kept in the cache.

    Returns
    -------
    ablation.Influence (on the CPU)
    """
    found, owners = rare_tokens.group_positions(rare_tokens.positions(settings), group)
    content = passes.pass_inputs(settings, revision, rare_tokens.blocks(settings)) | {
        "positions": keys.array_hash([found.numpy(), owners]), "group": group,
        "unigram": keys.array_hash([rare_tokens.tokens(settings)["count_text"].to_numpy()])}
    key = keys.key({"ablation": settings.ablation, "seed": settings.seed}, content, ["ablation.neurons", "models.checkpoints"])

    def compute():
        subject, kept = passes.captured(settings, revision)
        with stage.clock("ablation"):
            made = ablation.influence(subject, kept, found.to(subject.device), torch.tensor(owners),
                                      ablation=settings.ablation, seed=settings.seed, memory_gb=MEMORY_GB,
                                      entropy=False)  # the entropy's change would cost as much again
        parts = {name: value.cpu().contiguous() for name, value in vars(made).items() if isinstance(value, torch.Tensor)}
        return parts | {"fallback": torch.tensor(made.fallback, dtype=torch.float64)}

    parts = stage.tensors(settings.slug, key, compute, recompute=settings.recompute)
    return ablation.Influence(**parts | {"entropy_sum": None, "fallback": parts["fallback"].item()})


@table(passes.LAST, reads=EFFECTS, per=("revision", "group"))
def influence(settings, revision, group):
    """Every neuron's influence, one row (revision, step, group, neuron).

    Returns
    -------
    DataFrame with revision, step, group ("rare" or "common", by target), neuron; in nats: mean_abs (mean |change| over the
    positions), mean, abs_mean (|mean change|), sem (of mean_abs, over documents), mean_abs_a, mean_a,
    abs_mean_a, and _b (the same on the document halves A and B), unigram (mean change of the logits' projection on the
    centred log-unigram direction); positions, documents, fallback (share of pairs taken exactly)
    """
    return _influence(settings, revision, group)


@table(passes.EVERY, reads=EFFECTS, per=("revision", "group"))
def influence_over_training(settings, revision, group):
    """`influence` at every checkpoint."""
    return _influence(settings, revision, group)


def _influence(settings, revision, group):
    sums, halves = influence_sums(settings, revision, group), rare_tokens.positions(settings).groupby("document")["half"].first()
    in_half = {name: torch.tensor(halves[sums.documents.numpy()].eq(name).to_numpy()) for name in "AB"}
    columns = {"mean_abs": sums.mean_abs, "mean": sums.mean, "abs_mean": sums.mean.abs(), "sem": sums.sem}
    for name, rows in in_half.items():
        n = sums.n[rows].sum()
        columns[f"mean_abs_{name.lower()}"] = sums.abs_sum[rows].sum(0) / n
        columns[f"mean_{name.lower()}"] = sums.change_sum[rows].sum(0) / n
        columns[f"abs_mean_{name.lower()}"] = columns[f"mean_{name.lower()}"].abs()
    columns["unigram"] = sums.unigram_sum.sum(0) / sums.n.sum()
    made = pd.DataFrame({"neuron": range(sums.abs_sum.shape[1])} | {name: part.double().numpy() for name, part in columns.items()})
    return made.assign(positions=int(sums.n.sum()), documents=len(sums.n), fallback=sums.fallback)


def rare_group(influence_rows, group="rare"):
    """The top 1.7 % of the neurons by influence on half A of the documents, most influential first.

    Always by mean |change|, also where the parameter `aggregate` is abs_mean: that one decides how curves, phases and
    ratios are measured, not who is in the group.

    Parameters
    ----------
    influence_rows : rows of `influence` of one revision; what is said of the group is measured on half B.
    group : "rare" or "common", the targets.

    Returns
    -------
    int64 (m,)
    """
    rows = influence_rows[influence_rows["group"] == group].sort_values("neuron")
    size = int(np.ceil(GROUP_SHARE * len(rows)))
    return np.argsort(-rows["mean_abs_a"].to_numpy(), kind="stable")[:size]


# ---- the ranked curve and its phases

DRAWS = 200  # bootstrap draws over documents, and null curves
ENDS = {name: name for name in ("plateau_end", "law_end", "kappa", "plateau_share", "law_share", "decay_share", "slope_1",
                                "slope_2", "slope_3")} | {"head_end": "break_1"}  # columns with an interval -> its name in Breaks


@lru_cache(maxsize=4)
def fitted(settings, revision, group):
    """Phases by the paper's rule, change points with document bootstraps, and fitted null families of one curve.

    Returns
    -------
    phases.Phases, breaks.Breaks, dict of nulls.Comparison by family, documents.Influence-like (sums, counts)
    """
    found = influence_sums(settings, revision, group)
    sums = (found.abs_sum if settings.aggregate == "mean_abs" else found.change_sum).double().numpy()
    counts = found.n.double().numpy()
    rule = paper_rule.fit(np.abs(sums.sum(0)) / counts.sum())
    changes = changepoints.bootstrap(sums, counts, ranking=settings.ranking, draws=DRAWS, seed=settings.seed)
    families = nulls.families(sums, counts, ranking=settings.ranking, draws=DRAWS, seed=settings.seed)
    return rule, changes, families, (sums, counts)


@table(passes.LAST, reads=CURVE, per=("revision", "group"))
def rank_curves(settings, revision, group):
    """The ranked curve: one row (revision, group, rank).

    Returns
    -------
    DataFrame with rank, influence (by `ranking`), low, high (95 % over documents), same_tokens (ranked and measured on
    the same documents), null_low, null_high (95 % of order statistics of the family that fits best), null (its name)
    """
    _, changes, families, (sums, counts) = fitted(settings, revision, group)
    best = nulls.best(families)
    n, pad = len(changes.curve), len(changes.curve) - len(families[best].low)
    same = np.sort(np.abs(sums.sum(0)) / counts.sum())[::-1]
    return pd.DataFrame({"rank": np.arange(1, n + 1), "influence": changes.curve, "low": changes.low,
                         "high": changes.high, "same_tokens": same, "null": best,
                         "null_low": np.pad(families[best].low, (0, pad)),
                         "null_high": np.pad(families[best].high, (0, pad))})


@table(passes.LAST, reads=CURVE, per=("revision", "group"))
def phases(settings, revision, group):
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

    rule, changes, families, (sums, counts) = fitted(settings, revision, group)
    best = families[nulls.best(families)]
    signed = influence_sums(settings, revision, group).change_sum.double().numpy()
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
            "documents": len(counts)}
    return [row]


# ---- how far the head stands out

RATIO_DRAWS = 1000  # of documents, and of the null


def ratio(sums, counts, members, groups, *, draws=RATIO_DRAWS, seed=0):
    """Influence of a group over the median neuron's.

    Parameters
    ----------
    sums : (documents, neurons) per-document sums, counts : (documents,) positions, of documents that did not choose
        the group.
    members : (m,) the group ; groups : kind -> (g, m) control groups.

    Returns
    -------
    dict with value, low, high (95 % over documents), and for each kind its mean ratio (no p value: a group that was chosen
    for its influence has more than other groups, whatever the neurons are)
    """
    counts = np.asarray(counts, dtype=float)
    values = documents.influence(sums, counts, documents.resamples(len(counts), draws, seed))  # (1 + draws, neurons)
    found = rankings.over_median(values, members)
    low, high = documents.interval(found[0], found[1:])
    means = {kind: float(rankings.over_median(values[0], made).mean()) for kind, made in groups.items()}
    return {"value": float(found[0]), "low": float(low), "high": float(high)} | means


def plateau(changes, families, neurons):
    """Share of the neurons in the plateau, breaks of the line; p: chance of a head as far below the law's line, by family.

    Parameters
    ----------
    changes : breaks.Breaks ; families : dict of nulls.Comparison ; neurons : all of them.
    """
    low, high = changes.intervals["plateau_end"]
    row = {"breaks": changes.breaks, "value": changes.boundaries[0] / neurons, "low": low / neurons, "high": high / neurons,
           "null": 0.0}
    return row | {f"p_{name.replace('-', '_')}": found.p_plateau for name, found in families.items()}


def _controls(settings, revision, members):
    """The living members of a group, and random and matched groups of their number, as notebooks 05 and 06 draw them."""
    values, owners = passes.activations(settings, revision)
    living = np.flatnonzero(geometry.alive(values))
    w_out = passes.captured(settings, revision)[0].w_out.cpu().numpy()
    sample = controls.Sample(values, owners, living, controls.matching_features(values, w_out), {})
    members = members[np.isin(members, living)]
    return members, controls.control_groups(sample, members, seed=settings.seed)


def _ratio_of(settings, revision, rows):
    members, groups = _controls(settings, revision, rare_group(rows))
    found = influence_sums(settings, revision, "rare")
    half = rare_tokens.positions(settings).groupby("document")["half"].first()
    in_b = half.loc[found.documents.numpy()].eq("B").to_numpy()
    sums = (found.abs_sum if settings.aggregate == "mean_abs" else found.change_sum).double().numpy()
    counts = found.n.double().numpy()
    row = ratio(sums[in_b], counts[in_b], members, groups, seed=settings.seed)
    null = nulls.ranked_null(sums, counts, ~in_b, len(members), seed=settings.seed)
    row |= dict(zip(("null_low", "null_high"), np.quantile(null, [0.025, 0.975]))) | {"null": null.mean()}
    return row | {"p_half_normal": controls.empirical_p(row["value"], null, "greater"), "size": len(members),
                  "positions": int(counts[in_b].sum()), "documents": int(in_b.sum())}


@table(passes.LAST, reads=CURVE)
def prominence(settings):
    """How far the head stands out at the last of the settings' checkpoints.

    Returns
    -------
    DataFrame with revision, group (targets), statistic ("ratio" of the rare group to the median neuron, half B;
    "plateau": share of the neurons), value, low, high (95 % over documents), null (of a ratio the mean of `ranked_null`, with
    null_low and null_high, 95 % of it); random and matched (mean ratio of such groups); p_half_normal (of a ratio: ranking
    alone gives as much), for a plateau breaks (of the line), p_lognormal, p_half_normal, p_exponential (head as far below
    the line); neurons, size (of the group), positions, documents
    """
    revision, every = passes.revisions(settings)[-1], influence(settings)
    rows = every[every["revision"] == (revision or "")]
    found = [{"group": "rare", "statistic": "ratio"} | _ratio_of(settings, revision, rows)]
    for group, part in rows.groupby("group", sort=False):
        _, changes, families, (_, counts) = fitted(settings, revision, group)
        found.append({"group": group, "statistic": "plateau", **plateau(changes, families, len(part)),
                      "positions": int(counts.sum()), "documents": len(counts)})
    made = pd.DataFrame(found).assign(neurons=rows["neuron"].nunique())
    made.insert(0, "revision", revision or "")
    return made.astype({"size": "Int64", "breaks": "Int64"})
