"""Do the findings hold under other choices (notebook 12)? The robustness grid, judged by the claims rule; earlier layers.

A cell of the grid is the default's setting with one choice changed, or another rarity and ablation. All cells take their
positions from the default's blocks and are measured at the last checkpoint. A cell has up to 500 rare positions, fewer draws
and fewer control groups than notebooks 03 to 07: the default cell's values differ from theirs.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from rare_token_neurons import keys
from rare_token_neurons.ablation import layers, neurons as ablation
from rare_token_neurons.ablation.capture import ABLATIONS
from rare_token_neurons.curve import heads
from rare_token_neurons.statistics import claims, controls, documents, geometry, rankings, spectra
from rare_token_neurons.tables import checkpoints as passes, influence as influences, rare_tokens, stage, weights
from rare_token_neurons.tables.stage import table
from rare_token_neurons.text import rarity

# ---- cells of the grid

MOST = 500  # rare positions a cell, and as many common ones
PERCENTILES = (5.0, 15.0, 25.0, 50.0)
SPLITS = (1, 2, 3)  # other random halves of the documents


@dataclass(frozen=True)
class Cell:
    """One setting: a factor and its value, and all that decides the cell's content; split 0 is the default's halves."""

    factor: str
    value: str
    rare_percentile: float
    ablation: str
    rare_of: str
    words_only: bool
    counts: str
    aggregate: str
    split: int = 0


def default(settings):
    """The cell of the settings themselves."""
    return Cell("default", f"rarest {settings.rare_percentile:g} %, {settings.ablation}", settings.rare_percentile,
                settings.ablation, settings.rare_of, settings.words_only, settings.counts_name, settings.aggregate)


def grid(settings):
    """All cells: the default, one factor at a time around it, and rare_percentile x ablation in full (with the default)."""
    base = default(settings)
    other = {"rare_of": "input" if base.rare_of == "target" else "target", "words_only": not base.words_only,
             "counts": "text" if base.counts == "wordfreq" else "wordfreq",
             "aggregate": "abs_mean" if base.aggregate == "mean_abs" else "mean_abs"}
    made = [base]
    for name, value in other.items():
        changed, said = {name: value}, str(value).lower()
        if name == "words_only" and not value and base.counts != "text":  # general English knows words alone
            changed["counts"], said = "text", f"{said}, counts = text"
        if name != "counts" or base.words_only:
            made.append(replace(base, factor=name, value=said, **changed))
    made += [replace(base, factor="halves", value=f"drawn anew ({split})", split=split) for split in SPLITS]
    percentiles = sorted({*PERCENTILES, base.rare_percentile})
    return made + [replace(base, factor=f"rarest {percentile:g} %", value=name, rare_percentile=percentile, ablation=name)
                   for percentile in percentiles for name in ABLATIONS
                   if (percentile, name) != (base.rare_percentile, base.ablation)]


# ---- positions


def counts(settings, cell):
    """The counts that decide rarity in a cell, int64 (tokens,)."""
    vocabulary = rare_tokens.tokens(settings)
    column = {"wordfreq": "count_wordfreq", settings.counts_name: "count"}.get(cell.counts)
    return vocabulary[column].to_numpy() if column else rare_tokens.text_counts(settings, len(vocabulary))


def candidates(settings, cell):
    """All of a cell's positions in the default's blocks.

    Returns
    -------
    dict "rare" and "common" -> int64 (n, 2), rows (block, t), in the random order that all cells share
    """
    vocabulary = rare_tokens.tokens(settings)
    tokens = np.stack(rare_tokens.blocks(settings)["tokens"].to_numpy())
    word = vocabulary["word"].to_numpy() if cell.words_only else np.ones(len(vocabulary), dtype=bool)
    chosen = rarity.rare_tokens(counts(settings, cell), word, cell.rare_percentile)[:2]
    found = [rarity.candidate_positions(tokens, one, vocabulary, rare_of=cell.rare_of, words_only=cell.words_only,
                                        decode=rare_tokens.decoder(settings))
             for one in chosen]
    turn = np.random.default_rng(settings.seed).permutation(tokens.size).reshape(tokens.shape)
    return {name: one[np.argsort(turn[one[:, 0], one[:, 1]])] for name, one in zip(stage.GROUPS, found)}


def positions(settings, cell):
    """The first of `candidates`, equally many of each group and at most 500."""
    found = candidates(settings, cell)
    return {name: rows[: min(MOST, settings.positions, *map(len, found.values()))] for name, rows in found.items()}


def owners_of(settings, rows):
    """The document of each position, int64 (n,)."""
    return rare_tokens.blocks(settings)["document"].to_numpy()[rows[:, 0]]


def halves(settings, split=0):
    """The half of each document, a Series "A" or "B"; split 0 keeps the halves of the default's positions."""
    names = np.sort(rare_tokens.blocks(settings)["document"].unique())
    turn = np.random.default_rng([settings.seed, split]).permutation(len(names))
    drawn = pd.Series(np.where(turn % 2, "B", "A"), index=names)
    return drawn if split else rare_tokens.halves(settings).reindex(names).fillna(drawn)


# ---- loss changes


class Pool:
    """Loss changes at positions, looked up by (block, t): `pool[rows]` is float32 (n, neurons)."""

    def __init__(self, rows, changes):
        self.changes, self.place = changes, {row: at for at, row in enumerate(map(tuple, rows.tolist()))}

    def __getitem__(self, rows):
        return self.changes[[self.place[row] for row in map(tuple, rows.tolist())]].numpy()


def changes(settings, rows, how):
    """Every neuron's loss change at positions of the last checkpoint, kept in the cache.

    Parameters
    ----------
    rows : int64 (n, 2) ; how : the ablation.

    Returns
    -------
    Pool
    """
    rows, revision = np.unique(rows, axis=0), passes.revisions(settings)[-1]
    content = passes.pass_inputs(settings, revision, rare_tokens.blocks(settings)) | {"rows": keys.array_hash([rows])}

    def compute():
        subject, kept = passes.captured(settings, revision)
        with stage.clock("ablation"):
            made = ablation.loss_changes(subject, kept, torch.from_numpy(rows).to(subject.device), ablation=how,
                                         seed=settings.seed, memory_gb=passes.MEMORY_GB)
        return {"changes": made.float().cpu().contiguous()}

    key = keys.key({"ablation": how, "seed": settings.seed}, content, ["ablation.neurons", "models.checkpoints"])
    return Pool(rows, stage.tensors(settings.slug, key, compute, recompute=settings.recompute)["changes"])


def pools_of(settings):
    """The positions of every cell, and one Pool an ablation with those of all cells that use it.

    Returns
    -------
    dict Cell -> its positions (see `positions`) ; dict ablation -> Pool
    """
    found = {cell: positions(settings, cell) for cell in grid(settings)}
    wanted = {how: np.concatenate([rows for cell, part in found.items() if cell.ablation == how for rows in part.values()])
              for how in dict.fromkeys(cell.ablation for cell in found)}
    return found, {how: changes(settings, rows, how) for how, rows in wanted.items()}


# ---- a cell's statistics, as evidence

DRAWS = 100  # bootstrap draws of a curve, null curves, and choices of the group
GROUPS, RESAMPLES, BASELINES = 200, 200, 10  # control groups, draws of documents, control groups with intervals
LEAN = claims.Claim(
    "C1", "log ratio of the group's influence on rare to that on common targets, less that of control groups", "greater",
    part="rare against common", paper_note="rare token neurons act on rare tokens")


def statistics(gated):
    """The grid's statistics: name -> the claim by which it is judged."""
    named = {claim.name: claim for claim in claims.of_mlp(gated)}
    return {"head": named["C2 head"], "rare against common": LEAN, "effective dimension": named["C4"],
            "co-activation": named["C5 within"], "Hill exponent": named["C6 gate" if gated else "C6 W_in"]}


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

    @property
    def gated(self):
        """Whether the MLP is, so that the sign of a correlation is arbitrary."""
        return "gate" in self.rows


def ranked(measured):
    """All neurons by falling influence on the rare positions of half A, (neurons,) int: the top 1.7 % are the rare group."""
    return rankings.order_of(np.abs(measured.effects["rare"][~measured.in_b["rare"]].mean(axis=0)))


def head(measured, ranking, seed):
    """Height of the head (the one that decides) above its law on the rare positions.

    Returns
    -------
    claims.Evidence ; float, last rank of its shelf, NaN where it cannot be tested ; neurons of the fitted head where a head
    is raised, else 0
    """
    sums, counts = documents.by_document(measured.effects["rare"], measured.owners["rare"])
    if not heads.testable((sums, counts)):
        return claims.Evidence(positions=int(counts.sum()), note="too few neurons or documents"), np.nan, 0
    options = {"ranking": ranking, "draws": DRAWS, "seed": seed}
    found = heads.measure(sums, counts, **options)
    judged = heads.judge(found, heads.null_curves(found, heads=(heads.DECIDES,), **options))[heads.DECIDES]
    own, p = found.own[heads.DECIDES], tuple(judged.p[name] for name in (*heads.FAMILIES, "law"))
    evidence = claims.Evidence(own.delta[0], *found.interval(heads.DECIDES, "delta"), 0.0, p, int(counts.sum()),
                               word=judged.word, floor=judged.floor)
    return evidence, own.shelf[0], int(found.own["fitted"].size[0]) if judged.word in influences.RAISED else 0


def lean(effects, owners, members, nulls_of, *, kinds=controls.KINDS, missed=None, seed):
    """How much more a group acts on rare than on common targets, against control groups.

    The statistic is log(influence of the group on rare / on common targets), less its mean over the control groups.

    Parameters
    ----------
    effects, owners : name of the targets -> (n, neurons), (n,), of documents that did not choose the group.
    members : (m,) ; nulls_of : kind -> (g, m) control groups.
    kinds : of the controls that the claim needs; one without groups has no p value.
    missed : what matching missed, from `controls.missed`.

    Returns
    -------
    claims.Evidence, one p value a kind
    """
    names = np.unique(np.concatenate(list(owners.values())))
    weights = documents.resamples(len(names), RESAMPLES, seed)
    every, at = np.concatenate([members[None], *nulls_of.values()]), {}
    for name in stage.GROUPS:
        sums, counts = documents.by_document(effects[name], owners[name], names)
        values = np.abs(weights @ sums) / np.maximum(weights @ counts, 1)[:, None]  # (1 + draws, neurons)
        at[name] = np.stack([values[:, one].mean(axis=1) for one in every], axis=1)  # (1 + draws, 1 + groups)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(at["rare"]) - np.log(at["common"])
    p, row = [f"p_{kind}" for kind in kinds], {"documents": len(names)} | (missed or {})
    parts = np.split(ratio[:, 1:], np.cumsum([len(one) for one in nulls_of.values()])[:-1], axis=1)
    for kind, part in zip(nulls_of, parts):
        mean, *_, row[f"p_{kind}"] = controls.among(ratio[0, 0], part[0], LEAN.direction)
        row |= controls.less(kind, documents.against(ratio[0, 0], ratio[1:, 0], mean, part[1:].T, "basic", seed))
    return claims.contrast(dict.fromkeys(p, np.nan) | row, LEAN.direction, min(map(len, owners.values())), p)


def heavy_tail(measured, members, random, apart, seed):
    """Hill's exponent of the group's input weights, less that of control groups; of two matrices the less favourable.

    members : (m,) ; random : (g, m) control groups; matched ones have the row norms of the group (`weights.matched`).
    apart : neurons that no matched group holds.
    """
    sums, counts = documents.by_document(*(part["rare"][~measured.in_b["rare"]] for part in (measured.effects, measured.owners)))
    again, rows = documents.resampled_groups(sums, counts, len(members), DRAWS, seed), []
    for matrix in measured.rows.values():
        nulls_of = {"random": random, "matched": weights.matched(matrix, members, apart, len(random), seed)}
        own, anew, *null = (spectra.hill(spectra.eigenvalues(matrix[one]))[0]
                            for one in (members[None], again, *nulls_of.values()))
        low, high = documents.interval(own[0], anew, "held")
        rows.append({"value": own[0], "low": low, "high": high, "positions": int(counts.sum()), "documents": len(counts),
                     "missing": np.mean(~np.isfinite(np.concatenate([own, anew, *null]))),
                     **controls.bands(own[0], dict(zip(nulls_of, null)), "less"),
                     **controls.missed(weights.norms(matrix), members, nulls_of["matched"])})
    return claims.lightest(rows)


def all_of(measured, ranking, seed):
    """Every statistic of one cell, without enough rare positions only their number.

    Returns
    -------
    dict of name to claims.Evidence ; float, last rank of the head's shelf
    """
    rare, in_b, judged_by = len(measured.owners["rare"]), measured.in_b, statistics(measured.gated)
    late = int(min(part.sum() for part in in_b.values()))  # what is left to measure the group on
    found = {name: claims.Evidence(positions=late, note="too few positions") for name in judged_by}
    few = rare < claims.LEAST_POSITIONS
    found["head"], shelf, raised = (claims.Evidence(positions=rare), np.nan, 0) if few else head(measured, ranking, seed)
    if late < claims.LEAST_POSITIONS:
        return found, shelf
    values, owners = measured.activations[in_b["rare"]], measured.owners["rare"][in_b["rare"]]
    sample, order = controls.sample(values, owners, measured.w_out), ranked(measured)
    size = influences.group_size(len(order))
    members, apart = order[:size], np.sort(order[: max(size, raised)])
    members = members[np.isin(members, sample.living)]
    nulls_of = controls.control_groups(sample, members, GROUPS, seed, apart=apart)
    missed = controls.missed(sample.features, members, nulls_of.get("matched"))
    at_b = [{name: part[name][in_b[name]] for name in in_b} for part in (measured.effects, measured.owners)]
    found["rare against common"] = lean(*at_b, members, nulls_of, missed=missed, seed=seed)
    pair = geometry.mean_abs_pair if measured.gated else geometry.mean_pair

    def statistic(block):
        return np.stack([geometry.effective_dimension(block, interpolate=True) / len(members), pair(block)], axis=-1)

    named = {name: judged_by[name].direction for name in ("effective dimension", "co-activation")}
    for row in controls.within(sample, members, nulls_of, named, statistic, resamples=RESAMPLES, baselines=BASELINES,
                               seed=seed):
        row |= missed | {"documents": len(np.unique(owners))}
        found[row["statistic"]] = claims.contrast(row, row["side"], len(values))
    found["Hill exponent"] = heavy_tail(measured, members, nulls_of["random"], apart, seed)
    return found, shelf


def measured(settings, cell, rows, pool):
    """The `Measured` of one cell.

    rows : name of the targets -> int64 (n, 2) positions ; pool : `Pool` of the cell's ablation.
    """
    subject, kept = passes.captured(settings, passes.revisions(settings)[-1])
    half, owners = halves(settings, cell.split), {name: owners_of(settings, part) for name, part in rows.items()}
    effects = {name: influences.effects(pool[part], cell.aggregate) for name, part in rows.items()}
    inward = {name: part for name, part in weights.rows_of(subject).items() if name != "out"}
    block, t = rows["rare"].T
    return Measured(effects, owners, {name: half[part].eq("B").to_numpy() for name, part in owners.items()},
                    kept.activations[block, t - kept.first].cpu().numpy(), subject.w_out.cpu().numpy(), inward)


# ---- earlier layers

LAYER_POSITIONS = 250  # rare ones, and as many common ones, of which those of half B are run
NEURONS = (12, 32)  # sampled a layer: at least, at most
BUDGET = 360  # sampled neurons in all layers together, between these bounds
TOP = 0.25  # of the sampled neurons: the group of a layer
LAYER_CLAIM = claims.Claim("C1", LEAN.statistic, "greater", part="in a layer", controls=("random groups",))


def sampled(n_layers):
    """How many neurons of each layer are measured, int."""
    return int(np.clip(BUDGET // n_layers, *NEURONS))


def earlier(n_layers):
    """The layers whose neurons are sampled: all but the last, which the default cell measures whole; a single one itself."""
    return range(max(1, n_layers - 1))


def windows(settings):
    """Short windows before the default cell's targets: int64 (n, WINDOW + 1), bool (n,) rare, (n,) documents.

    Rare targets choose a layer's group on half A; common ones only stand beside it on half B, so no others are taken.
    """
    found, half = candidates(settings, default(settings)), halves(settings)
    tokens, parts = np.stack(rare_tokens.blocks(settings)["tokens"].to_numpy()), []
    for name, rows in found.items():
        rows = rows[rows[:, 1] + 1 >= claims.WINDOW][:LAYER_POSITIONS]
        owners = owners_of(settings, rows)
        wanted = half[owners].eq("B").to_numpy() | (name == "rare")
        made = tokens[rows[wanted, :1], rows[wanted, 1:] + np.arange(-claims.WINDOW + 1, 2)]
        parts.append((made, np.full(len(made), name == "rare"), owners[wanted]))
    return tuple(map(np.concatenate, zip(*parts)))


@table(passes.LAST, reads=influences.CURVE)
def layers_sampled(settings):
    """Loss changes of neurons sampled from every layer in `earlier`, by exact recomputation of the layers above.

    Returns
    -------
    DataFrame, one row (layer, neuron): layer (from 0), neuron, rare, common (mean |change| on half B, nats), value, low,
    high (lean of the layer's top quarter, chosen on half A, over that of random quarters), p, positions (rare ones of half
    B), documents: the same in all rows of a layer; fewer than 100 positions leave value, low, high, p empty
    """
    subject = passes.subject(settings, passes.revisions(settings)[-1])
    made, rare, owners = windows(settings)
    in_b = halves(settings)[owners].eq("B").to_numpy()
    how = "zero" if settings.ablation == "zero" else "mean"
    with stage.clock("ablation"):
        kept = layers.record_windows(subject, torch.from_numpy(made))
        generator, size = np.random.default_rng(settings.seed), sampled(subject.n_layers)
        for layer in earlier(subject.n_layers):
            neurons = np.sort(generator.choice(len(kept.means[layer]), size, replace=False))
            effects = np.abs(layers.neuron_changes(kept, layer, neurons, ablation=how).double().cpu().numpy())
            yield _layer(effects, rare, owners, in_b, settings.seed).assign(layer=layer, neuron=neurons)


def _layer(effects, rare, owners, in_b, seed):
    """One layer's rows: effects (n, m) absolute changes."""
    m, parts = effects.shape[1], {"rare": rare & in_b, "common": ~rare & in_b}
    fewest = int(min(part.sum() for part in (rare & ~in_b, *parts.values())))
    found = claims.Evidence(p=(np.nan,), positions=fewest)
    of_b, owners_b = ({name: values[one] for name, one in parts.items()} for values in (effects, owners))
    if fewest >= claims.LEAST_POSITIONS:
        members = rankings.top(effects[rare & ~in_b].mean(axis=0), int(np.ceil(TOP * m)))
        random = controls.random_groups(m, len(members), GROUPS, seed)
        found = lean(of_b, owners_b, members, {"random": random}, kinds=("random",), seed=seed)
    return pd.DataFrame({name: values.sum(axis=0) / max(1, len(values)) for name, values in of_b.items()}).assign(
        value=found.value, low=found.low, high=found.high, p=found.p[0], positions=found.positions,
        documents=len(np.unique(owners[in_b])))


# ---- the grid


@table(passes.LAST, reads=influences.CURVE)
def robustness(settings):
    """The grid: each cell's statistics and whether the claims rule calls them reproduced.

    Returns
    -------
    DataFrame, one row (factor, setting, statistic): statistic ("head": mean height above its law of the head that decides;
    "rare against common", "effective dimension", "co-activation" (of a gated MLP the mean absolute correlation), "Hill
    exponent"); documents, shelf (of the head, its last rank); claim, direction, value, low, high (95 % over documents; of a
    contrast, from the control groups that speak less for the claim, from random ones where matched ones match too poorly),
    null, p and q (the less favourable control's, raw and after Benjamini-Hochberg over the whole table), p_floor (of a head,
    the smallest p that the draws can give), positions, word (what the head is called), verdict, reason
    """
    (found, pools), rows, items = pools_of(settings), [], []
    for cell, part in found.items():
        made = measured(settings, cell, part, pools[cell.ablation])
        evidence, shelf = all_of(made, settings.ranking, settings.seed + cell.split)
        for name, claim in statistics(made.gated).items():
            rows.append({"factor": cell.factor, "setting": cell.value, "statistic": name,
                         "documents": len(np.unique(made.owners["rare"])), "shelf": shelf if name == "head" else np.nan})
            items.append((claim, evidence[name]))
    for layer, part in layers_sampled(settings).groupby("layer"):
        one = part.iloc[0]
        rows.append({"factor": "layer", "setting": str(layer), "statistic": "rare against common",
                     "documents": one["documents"], "shelf": np.nan})
        evidence = claims.Evidence(*one[["value", "low", "high"]], 0.0, (one["p"],), int(one["positions"]))
        items.append((LAYER_CLAIM, evidence))
    return pd.concat([pd.DataFrame(rows), judged(items)], axis=1)


def judged(items):
    """The claims rule on many (Claim, Evidence) pairs, p values adjusted over all of them: one row a pair."""
    rows = []
    for (claim, item), p, q in zip(items, *claims.adjusted(*zip(*items))):
        verdict, reason = claims.verdict(claim, item, q)
        rows.append({"claim": claim.name, "direction": claim.direction, "value": item.value, "low": item.low, "high": item.high,
                     "null": item.null, "p": claims.largest(p), "q": claims.largest(q), "p_floor": item.floor,
                     "positions": item.positions, "word": item.word, "verdict": verdict, "reason": reason})
    return pd.DataFrame(rows)
