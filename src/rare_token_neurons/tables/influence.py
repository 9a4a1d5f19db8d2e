"""Every neuron's influence at each checkpoint, the rare group chosen by it, the ranked curve and its head (notebook 03)."""

from functools import lru_cache

import numpy as np
import pandas as pd
import torch

from rare_token_neurons import keys
from rare_token_neurons.ablation import neurons as ablation
from rare_token_neurons.curve import heads, nulls, phases as paper_rule
from rare_token_neurons.statistics import controls, documents, geometry, powerlaws, rankings
from rare_token_neurons.tables import checkpoints as passes, rare_tokens, stage
from rare_token_neurons.tables.stage import table

GROUP_SHARE = heads.SHARE  # of the neurons: the rare group (the paper's plateau)
RAISED = heads.WORDS[:2]  # plateau, outliers
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
    key = keys.key({"ablation": settings.ablation, "seed": settings.seed}, content,
                   ["ablation.neurons", "models.checkpoints"])

    def compute():
        subject = passes.subject(settings, revision)
        if settings.ablation == "resample":  # which draws from everywhere
            kept, rows = passes.captured(settings, revision)[1], found.to(subject.device)
        else:
            kept, rows = passes.captured_at(settings, revision, group), None
        with stage.clock("ablation"):
            made = ablation.influence(subject, kept, rows, torch.tensor(owners), ablation=settings.ablation,
                                      seed=settings.seed, memory_gb=passes.MEMORY_GB,
                                      entropy=False)  # the entropy's change would cost as much again
        parts = {name: value.cpu().contiguous() for name, value in vars(made).items() if isinstance(value, torch.Tensor)}
        return parts | {"fallback": torch.tensor(made.fallback, dtype=torch.float64)}

    parts = stage.tensors(settings.slug, key, compute, recompute=settings.recompute)
    return ablation.Influence(**parts | {"entropy_sum": None, "fallback": parts["fallback"].item()})


def sums(settings, revision, group):
    """Per-document sums of every neuron's effect, as `aggregate` asks for it: absolute changes, or the changes themselves.

    Returns
    -------
    sums : float64 (documents, neurons), nats ; counts : float64 (documents,), positions ; documents : int64 (documents,),
        sorted
    """
    found = influence_sums(settings, revision, group)
    made = found.abs_sum if settings.aggregate == "mean_abs" else found.change_sum
    return made.double().numpy(), found.n.double().numpy(), found.documents.numpy()


def effects(changes, aggregate):
    """Loss changes (n, neurons) as float64, as `aggregate` asks for them: absolute changes, or the changes themselves."""
    changes = np.asarray(changes, dtype=np.float64)
    return np.abs(changes) if aggregate == "mean_abs" else changes


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
    found = influence_sums(settings, revision, group)
    columns = {"mean_abs": found.mean_abs, "mean": found.mean, "abs_mean": found.mean.abs(), "sem": found.sem}
    for name in "AB":
        rows = torch.tensor(rare_tokens.in_half(settings, found.documents.numpy(), name))
        n = found.n[rows].sum()
        columns[f"mean_abs_{name.lower()}"] = found.abs_sum[rows].sum(0) / n
        columns[f"mean_{name.lower()}"] = found.change_sum[rows].sum(0) / n
        columns[f"abs_mean_{name.lower()}"] = columns[f"mean_{name.lower()}"].abs()
    columns["unigram"] = found.unigram_sum.sum(0) / found.n.sum()
    values = {name: part.double().numpy() for name, part in columns.items()}
    made = pd.DataFrame({"neuron": range(found.abs_sum.shape[1])} | values)
    return made.assign(positions=int(found.n.sum()), documents=len(found.n), fallback=found.fallback)


def group_size(neurons):
    """How many neurons the rare group of so many has, int."""
    return int(np.ceil(GROUP_SHARE * neurons))


def rare_group(influence_rows, group="rare", size=None):
    """The top 1.7 % of the neurons by influence on half A of the documents, most influential first.

    Always by mean |change|, also where the parameter `aggregate` is abs_mean: that one decides how curves, phases and
    ratios are measured, not who is in the group.

    Parameters
    ----------
    influence_rows : rows of `influence` of one revision; what is said of the group is measured on half B.
    group : "rare" or "common", the targets ; size : how many neurons, where other than 1.7 %.

    Returns
    -------
    int64 (m,)
    """
    rows = influence_rows[influence_rows["group"] == group].sort_values("neuron")
    return rankings.order_of(rows["mean_abs_a"].to_numpy())[: size or group_size(len(rows))]


# ---- the ranked curve and its head

DRAWS = heads.DRAWS  # of documents, and null curves
LAW_DRAWS = 100  # samples of the power-law test
SIGNS = ("pooled", *rankings.SIDES)
RULES = {"fitted head": "fitted", "fixed head": "fixed"}  # in tables -> in `heads`
NULLS = {name: name.replace("-", "_") for name in (*heads.FAMILIES, "law")}  # in `heads` -> in columns
QUANTITIES = ("head", "shelf", "law_start", "law_end", "head_share", "law_share", "decay_share",
              "delta", "kappa", "beta", "slope")  # of a fit and of each draw
WORDED = ("word", *(f"p_{name}" for name in NULLS.values()), "p_flat", "p_floor", "null_sd")  # what judges a head
FITTED = (*(f"{name}{end}" for name in QUANTITIES for end in ("", "_low", "_high")), "decay_draws", "decay_null", *WORDED,
          "null_delta_law_low", "null_delta_law_high")
MISSING = dict.fromkeys(FITTED, np.nan) | {"word": ""}
UNTESTED = "cannot be tested (too few neurons or documents)"
BANDS = ["influence", "low", "high", *(f"{name}_{end}" for name in NULLS.values() for end in ("low", "high"))]


def fit(sums, counts, settings):
    """The head of a curve (see `heads`): measured, judged, and the null curves that judge it.

    Returns
    -------
    heads.Measured, {head: heads.Verdict}, {(null, head): (draws, living)}; None and two empty dicts where the neurons with
    influence or the documents are too few, and the curve cannot be tested
    """
    if not heads.testable((sums, counts)):
        return None, {}, {}
    options = {"ranking": settings.ranking, "draws": DRAWS}
    found = heads.measure(sums, counts, seed=settings.seed, **options)
    curves = heads.null_curves(found, seed=settings.seed + 1, **options)
    return found, heads.judge(found, curves), curves


def _part(settings, revision, group, sign):
    """Per-document sums (documents, neurons), counts, and sums of the signed changes of the neurons of one sign."""
    made, counts, owners = sums(settings, revision, group)
    change = influence_sums(settings, revision, group).change_sum.double().numpy()
    if sign == "pooled":
        return made, counts, change
    in_b = rare_tokens.in_half(settings, owners, "B")
    mean = change[~in_b].sum(axis=0)
    chosen = mean > 0 if sign == "boost" else mean < 0
    return made[in_b][:, chosen], counts[in_b], change[in_b][:, chosen]


@lru_cache(maxsize=6)
def _fitted(settings, revision, group, sign):
    return fit(*_part(settings, revision, group, sign)[:2], settings)


def fitted(settings, revision, group, sign="pooled"):
    """The head of one curve, as `fit` gives it; the last six are kept.

    sign : "pooled"; "boost" or "suppress", the neurons whose mean change on half A of the documents is above or below 0,
        measured on those of half B.
    """
    return _fitted(settings, revision, group, sign)


def _curves(settings, revision, group):
    """The curves that tables show, (sign, its `_part`, its `fitted`): pooled always, a sign's where it can be tested."""
    for sign in SIGNS:
        found = fitted(settings, revision, group, sign)
        if sign == "pooled" or found[0]:
            yield sign, _part(settings, revision, group, sign), found


def bands(found, curves, neurons):
    """The curve of a `fit` beside 95 % of its nulls (the law: of the head that decides), a row a rank: the columns of
    `rank_curves` from rank on; dead neurons have 0."""
    made = pd.DataFrame(np.nan, index=range(neurons), columns=["rank", *BANDS]).assign(rank=np.arange(1, neurons + 1))
    if found:
        drawn = [np.quantile(curves[null, heads.DECIDES], [0.025, 0.975], axis=0) for null in NULLS]
        drawn = np.pad(np.concatenate(drawn), ((0, 0), (0, neurons - found.sums.shape[1])))
        made[BANDS] = np.column_stack([found.curve, found.low, found.high, *drawn])
    return made


def _quantities(found, living, neurons):
    """QUANTITIES of heads.Heads: name -> (curves,)."""
    last = np.where(found.decay, np.floor(found.end), living)  # dead neurons are decay, as in `curve.phases`
    return dict(zip(QUANTITIES, (found.size, found.shelf, found.start, found.end, found.size / neurons,
                                 (last - found.size) / neurons, 1 - last / neurons, found.delta, found.kappa, found.beta,
                                 found.slope)))


def head_rows(found, verdicts, neurons):
    """The columns of `phases` from rule on, of both heads of a `fit`: two dicts. Without a fit they have no word."""
    for rule, head in RULES.items():
        row = {"rule": rule, "neurons": neurons} | MISSING
        if found:
            living, verdict = found.sums.shape[1], verdicts[head]
            drawn = _quantities(found.drawn[head], living, neurons)
            for name, value in _quantities(found.own[head], living, neurons).items():
                row[name] = value[0]
                row[f"{name}_low"], row[f"{name}_high"] = documents.percentile(drawn[name])
            of_law = verdict.delta["law"]
            low, high = documents.percentile(of_law)
            row |= {"decay_draws": found.drawn[head].decay.mean(), "decay_null": max(verdict.decay.values()),
                    "word": verdict.word, "p_flat": verdict.flat, "p_floor": verdict.floor, "null_sd": heads.spread(of_law),
                    "null_delta_law_low": low, "null_delta_law_high": high}
            row |= {f"p_{name}": verdict.p[null] for null, name in NULLS.items()}
        yield row


def _paper_row(sums, counts):
    """The same columns by the paper's rule, as far as it has them."""
    found = paper_rule.by_differences(np.abs(sums.sum(axis=0)) / counts.sum())
    first, last = found.boundaries
    return {"rule": "paper's rule", "neurons": sums.shape[1]} | MISSING | {
        "head": first, "law_start": first + 1, "law_end": last, "delta": found.delta, "kappa": found.kappa,
        "beta": found.beta, **dict(zip(("head_share", "law_share", "decay_share"), found.shares))}


def law_test(sums, counts, seed):
    """Is the stretch that is the law a power law?  powerlaws.PowerLaw, each of its samples finding its own stretch."""
    values = documents.influence(sums, counts, np.ones((1, len(counts))))[0]
    return powerlaws.middle(values, *heads.law_range(values), draws=LAW_DRAWS, seed=seed, refit=heads.law_range)


@table(passes.LAST, reads=CURVE, per=("revision", "group"))
def rank_curves(settings, revision, group):
    """The ranked curves: one row (revision, group, sign, rank).

    Returns
    -------
    DataFrame with sign ("pooled", all neurons; "boost", "suppress": those whose mean change on half A is above or below 0,
    on half B, where 200 of them can be measured), rank, influence (by `ranking`), low, high (95 % over documents),
    lognormal_low, lognormal_high, half_normal_low, half_normal_high, law_low, law_high (95 % of null curves: ranked draws
    from the families, and from the law itself carried to rank 1), all missing where the curve cannot be tested; same_tokens
    (ranked and measured on the same documents)
    """
    for sign, (made, counts, _), (found, _, curves) in _curves(settings, revision, group):
        same = -np.sort(-np.abs(made.sum(axis=0)) / counts.sum())
        rows = bands(found, curves, len(same)).assign(same_tokens=same)
        rows.insert(0, "sign", sign)
        yield rows


@table(passes.LAST, reads=CURVE, per=("revision", "group"))
def phases(settings, revision, group):
    """The phases of each curve: one row (revision, group, sign, rule).

    Returns
    -------
    DataFrame with sign (see `rank_curves`), rule ("fitted head", "fixed head" (see `curve.heads`), of the pooled curve also
    "paper's rule"), neurons; head (neurons of it), shelf (its last rank before a cliff), law_start, law_end (ranks),
    head_share, law_share, decay_share (of the neurons, together 1: what lies between a fixed head and the law counts to the
    law, dead neurons to the decay), delta (mean of log influence less the law's line over the head, e-folds), kappa, beta
    (of the law), slope (of the head's shelf, as kappa is), each with _low and _high (95 % over documents; missing by the paper's
    rule); decay_draws (share of the draws with a steeper stretch after the law), decay_null (of null curves, the largest);
    word (plateau, outliers, rounded, on the line; "" by the paper's rule, and where the curve cannot be tested),
    p_lognormal, p_half_normal, p_law (chance of a head as far above its law), p_flat (of the law's samples to be as flat
    over the ranks of the shelf), p_floor (the smallest p that the draws can give), null_sd, null_delta_law_low,
    null_delta_law_high (of Delta of the law's null curves: standard deviation, 95 %); reliability (split halves), detectable
    (median smallest mean change, nats, that can be told from 0), positions, documents
    """
    rows = []
    for sign, (made, counts, signed), (found, verdicts, _) in _curves(settings, revision, group):
        about = {"reliability": np.nan, "detectable": np.nan, "positions": int(counts.sum()), "documents": len(counts)}
        if found:
            about["reliability"] = documents.reliability(made, counts, seed=settings.seed)
            about["detectable"] = float(np.median(documents.detectable(signed, counts)))
        paper = [_paper_row(made, counts)] if sign == "pooled" else []
        rows += [{"sign": sign} | row | about for row in (*head_rows(found, verdicts, made.shape[1]), *paper)]
    return pd.DataFrame(rows).astype({"head": "Int64"})


# ---- how far the head stands out


def ratio(sums, counts, members, groups, *, seed):
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
    values = documents.influence(sums, counts, documents.resamples(len(counts), documents.DRAWS, seed))  # (1 + draws, neurons)
    found = rankings.over_median(values, members)
    low, high = documents.interval(found[0], found[1:], "basic")
    means = {kind: float(rankings.over_median(values[0], made).mean()) for kind, made in groups.items()}
    return {"value": float(found[0]), "low": float(low), "high": float(high)} | means


def contrast(first, second, settings):
    """Delta (fixed head) of the first of two curves less the second's (see `heads.contrast`), as columns.

    first, second : (sums, counts) of the same documents; both without a value where they cannot be tested.
    """
    row = {"null": 0.0} | dict.fromkeys(("value", "low", "high", "p_laws", "null_sd"), np.nan)
    if heads.testable(first, second):
        found = heads.contrast(first, second, ranking=settings.ranking, draws=DRAWS, seed=settings.seed)
        row |= {"value": found.value, "low": found.low, "high": found.high, "p_laws": found.p, "null_sd": heads.spread(found.null)}
    return row


def placed(found, counts, owners, names):
    """Sums and counts of documents `owners` among all documents `names` (both sorted), 0 for those that are not there."""
    at = np.searchsorted(names, owners)
    total, n = np.zeros((len(names), found.shape[1])), np.zeros(len(names))
    total[at], n[at] = found, counts
    return total, n


def _controls(settings, revision, rows):
    """The rare group's living neurons, and random and matched groups of their number, as notebooks 05 and 06 draw them: none
    that is matched holds a neuron of the group, or of the fitted head where a head is raised."""
    values, owners = passes.activations(settings, revision)
    living = np.flatnonzero(geometry.alive(values))
    w_out = passes.subject(settings, revision).w_out.cpu().numpy()
    sample = controls.Sample(values, owners, living, controls.matching_features(values, w_out), {})
    members, (found, verdicts, _) = rare_group(rows), fitted(settings, revision, "rare")
    raised = found and verdicts[heads.DECIDES].word in RAISED
    apart = rare_group(rows, size=int(found.own["fitted"].size[0])) if raised else ()
    members = members[np.isin(members, living)]
    return members, controls.control_groups(sample, members, seed=settings.seed, apart=apart)


def _ratio_of(settings, revision, rows):
    members, groups = _controls(settings, revision, rows)
    made, counts, owners = sums(settings, revision, "rare")
    in_b = rare_tokens.in_half(settings, owners, "B")
    row = ratio(made[in_b], counts[in_b], members, groups, seed=settings.seed)
    null = nulls.ranked_null(made, counts, ~in_b, len(members), seed=settings.seed)
    beside = zip(("null", "null_low", "null_high", "p_half_normal"), controls.among(row["value"], null, "greater"))
    return {"statistic": "ratio"} | row | dict(beside) | {
        "size": len(members), "positions": int(counts[in_b].sum()), "documents": int(in_b.sum())}


def _of_head(settings, revision, group):
    """Rows of `prominence` on the head, the law and the decay of one curve."""
    made, counts, _ = sums(settings, revision, group)
    found, verdicts, _ = fitted(settings, revision, group)
    rows = {RULES[row["rule"]]: row for row in head_rows(found, verdicts, made.shape[1])}
    decides, about = rows[heads.DECIDES], {"positions": int(counts.sum()), "documents": len(counts)}
    for statistic, row in (("head", decides), ("head fixed", rows["fixed"])):
        judged = {"null": 0.0, "size": row["head"]} | {name: row[name] for name in WORDED}
        yield about | valued(statistic, row, "delta") | judged
    law = law_test(made, counts, settings.seed) if found else None
    tested = {name: getattr(law, name, np.nan) for name in ("p_fit", "ratio", "p_ratio")}
    yield about | valued("law", decides, "kappa") | {"verdict": law.verdict if law else UNTESTED} | tested
    yield about | {"statistic": "decay", "value": decides["decay_draws"], "null": decides["decay_null"]}


def valued(statistic, row, name):
    """A column of `phases` with its interval, as a statistic's."""
    return {"statistic": statistic, "value": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"]}


def _contrast_of(settings, revision):
    """The row of `prominence` that sets rare beside common targets, documents in common."""
    parts = [sums(settings, revision, group) for group in stage.GROUPS]
    names = np.union1d(*(owners for *_, owners in parts))
    pair = [placed(*part, names) for part in parts]
    common, row = heads.shared(*pair), contrast(*pair, settings) | {"p_swap": np.nan}
    if heads.testable(*pair):
        row["p_swap"] = heads.swapped(*pair, ranking=settings.ranking, draws=DRAWS, seed=settings.seed)
    counts = [counts for _, counts in common]
    return {"statistic": "contrast"} | row | {"positions": int(min(map(np.sum, counts))), "documents": len(counts[0])}


@table(passes.LAST, reads=CURVE)
def prominence(settings):
    """How far the head stands out at the last of the settings' checkpoints: one row (group, statistic).

    Returns
    -------
    DataFrame with revision, group (targets), statistic, value, low, high (95 % over documents), null, neurons, positions,
    documents; of statistic
    "ratio" (the rare group to the median neuron, half B): null (mean of `ranked_null`), null_low, null_high (95 % of it),
    p_half_normal (ranking alone gives as much), random and matched (mean ratio of such groups), size (of the group);
    "head" (Delta of the head that decides, e-folds above its law), "head fixed" (of the fixed head): word, p_lognormal,
    p_half_normal, p_law, p_floor, null_sd (see `phases`), size (of the head);
    "law" (kappa): verdict, p_fit, ratio, p_ratio (of the truncated power-law test);
    "decay" (share of the draws with a steeper stretch after the law): null (the largest share of null curves);
    "contrast" (Delta of the fixed head on rare targets less that on common ones, documents in common): p_laws (chance of as
    much between two laws, one-sided), null_sd (of such differences), p_swap (labels swapped in documents, two-sided)
    """
    revision = passes.revisions(settings)[-1]
    rows = passes.of(influence(settings), revision)
    found = [{"group": "rare"} | _ratio_of(settings, revision, rows)]
    for group in stage.GROUPS:
        found += [{"group": group} | row for row in _of_head(settings, revision, group)]
    found.append({"group": "rare"} | _contrast_of(settings, revision))
    made = pd.DataFrame(found).assign(neurons=rows["neuron"].nunique()).fillna({"word": "", "verdict": ""})
    made.insert(0, "revision", revision or "")
    return made.astype({"size": "Int64"})
