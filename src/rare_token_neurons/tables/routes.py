"""The tables of attention heads (notebook 08): do rare and common tokens use the same ones?

Heads are ablated on short windows of half B that end at rare targets; rare and common targets of the same windows are
compared, and the rare group's activations with those of control groups.
"""

from functools import lru_cache

import numpy as np
import torch

from rare_token_neurons import keys
from rare_token_neurons.ablation import layers
from rare_token_neurons.models import checkpoints
from rare_token_neurons.statistics import claims, controls, documents as over_documents, rankings
from rare_token_neurons.statistics.documents import interval
from rare_token_neurons.tables import activations, checkpoints as passes, influence as influences, rare_tokens, stage
from rare_token_neurons.tables.stage import table
from rare_token_neurons.text import rarity

WIDTH = 32  # tokens a window
MOST_TOKENS = 2000  # in all windows
WORK = 1.5e13  # floating-point operations for all heads: some two minutes on two cores
SHUFFLES = 10_000  # of the labels rare and common


def _windows(settings, subject):
    """Short windows of half B: tokens (w, WIDTH), the rare and common positions (k, 2) in them, and of each whether it is
    rare, and its document."""
    sample, vocabulary = rare_tokens.blocks(settings), rare_tokens.tokens(settings)
    sample = sample[sample["document"].isin(rare_tokens.documents_in(settings, "B"))]
    tokens, documents = rare_tokens.token_tensor(sample), torch.tensor(sample["document"].to_numpy())
    found = [rarity.candidate_positions(tokens.numpy(), vocabulary["group"].eq(group).to_numpy(), vocabulary,
                                      rare_of=settings.rare_of, words_only=settings.words_only,
                                      decode=rare_tokens.decoder(settings))
             for group in stage.GROUPS]
    rare = torch.tensor([True, False]).repeat_interleave(torch.tensor([len(part) for part in found]))
    places = torch.from_numpy(np.concatenate(found))
    windows, positions, rows = choose_windows(tokens, documents, places, width=WIDTH, seed=settings.seed, ends=rare,
                                             budget=affordable(subject, WIDTH))
    return windows, positions, rare[rows], documents[places[rows, 0]]


@lru_cache(maxsize=1)
def _effects(settings, revision):
    """Every head ablated, kept in the cache: a dict of arrays.

    layer, head: (h,); changes: (h, n) loss changes in nats; moved: (layers, r, neurons) mean |activation change| over a
    layer's heads at the rare positions; rare: (n,) bool; documents: (n,); tokens: how many were run.
    """
    subject = passes.subject(settings, revision)
    windows, positions, rare, documents = _windows(settings, subject)
    how = "zero" if settings.ablation == "zero" else "mean"
    content = {"model": checkpoints.model_hash(settings.model, revision), "first": rarity.FIRST,
               "tokens": keys.array_hash([windows.numpy(), positions.numpy(), rare.numpy()])}

    def compute():
        with stage.clock("forward"):
            made = layers.effects(subject, windows, positions, torch.arange(subject.n_neurons), first=rarity.FIRST,
                                  ablation=how)
        return {"layer": made.layer, "head": made.head, "changes": made.loss_changes.cpu(), "moved": made.moved(rare).cpu()}

    key = keys.key({"ablation": how}, content, ["ablation.layers", "models.checkpoints"])
    kept = stage.tensors(settings.slug, key, compute, recompute=settings.recompute)
    kept = {name: values.numpy() for name, values in kept.items()}
    return kept | {"changes": kept["changes"].astype(np.float64), "rare": rare.numpy(), "documents": documents.numpy(),
                   "tokens": windows.numel()}


def _account(found):
    """What stands behind the effects: numbers of positions, documents and tokens."""
    return {"rare_positions": int(found["rare"].sum()), "common_positions": int((~found["rare"]).sum()),
            "documents": len(np.unique(found["documents"])), "tokens": found["tokens"]}


@table(passes.LAST, reads=influences.EFFECTS, per=("revision",))
def heads(settings, revision):
    """Every attention head ablated, at every position of windows of 32 tokens: what the losses do.

    Returns
    -------
    DataFrame, one row (revision, step, layer, head): in nats rare and common, mean |loss change| at targets of that kind,
    each with _low and _high (95 % over documents), _signed (mean change) and _shuffled (after one shuffling of the labels
    rare and common within documents); lean, the log of the head's share of the
    effect on rare targets over its share of that on common ones, p_lean (labels shuffled within documents), q_lean
    (Benjamini-Hochberg over heads); rare_positions, common_positions, documents, tokens (run for each head)
    """
    found = _effects(settings, revision)
    changes, rare, documents = found["changes"], found["rare"], found["documents"]
    lean, _ = leaning(changes, rare, documents, settings.seed)
    one = shuffled(rare, documents, 1, settings.seed)[0]
    effect = {name: means(np.abs(changes[:, mask]), documents[mask], settings.seed)
             for name, mask in (("rare", rare), ("common", ~rare))}
    for at, (layer, head) in enumerate(zip(found["layer"].tolist(), found["head"].tolist())):
        row = {"layer": layer, "head": head}
        for name, mask, other in (("rare", rare, one), ("common", ~rare, ~one)):
            value, *drawn = effect[name][:, at]
            low, high = interval(value, drawn, "centred", within=(0, np.inf))
            row |= {name: value, f"{name}_low": low, f"{name}_high": high, f"{name}_signed": changes[at, mask].mean(),
                    f"{name}_shuffled": np.abs(changes[at, other]).mean()}
        yield row | {name: values[at] for name, values in lean.items()} | _account(found)


@table(passes.LAST, reads=influences.EFFECTS, per=("revision",))
def routes(settings, revision):
    """Do the heads matter in the same order for rare and for common targets?

    Returns
    -------
    DataFrame, one row (revision, step): correlation (Spearman's over heads, of the mean |loss changes|) with low, high
    (95 % over documents); null, null_low, null_high: the same with the labels rare and common shuffled within documents;
    p (as low as observed or lower); heads, leaning (heads with q_lean below 0.05), rare_positions, common_positions,
    documents, tokens
    """
    found = _effects(settings, revision)
    changes, rare, documents = found["changes"], found["rare"], found["documents"]
    lean, null = leaning(changes, rare, documents, settings.seed)
    of_kind = [means(np.abs(changes[:, mask]), documents[mask], settings.seed) for mask in (rare, ~rare)]
    values = rankings.rank_correlation(*of_kind)
    low, high = interval(values[0], values[1:], "centred", within=(-1, 1))
    return [{"correlation": values[0], "low": low, "high": high,
             **dict(zip(("null", "null_low", "null_high", "p"), controls.among(values[0], null, "less"))),
             "heads": len(changes), "leaning": int((lean["q_lean"] < 0.05).sum())} | _account(found)]


@table(passes.LAST, reads=influences.CURVE, per=("revision",))
def head_layers(settings, revision):
    """What ablating a head does to the rare group's activations at rare targets, on average over the heads of a layer.

    Returns
    -------
    DataFrame, one row (revision, step, layer): value, mean |activation change| over the group's neurons in units of each
    neuron's standard deviation, with low, high (95 % over documents); random and matched (means of 1,000 control groups),
    each with _low, _high (95 % of them) and p_ ("greater"); heads, positions, documents
    """
    found, (sample, group, nulls) = _effects(settings, revision), activations.rare_and_controls(settings, revision, "all")
    documents = found["documents"][found["rare"]]
    scale = np.where(np.isin(np.arange(sample.values.shape[1]), sample.living), sample.values.std(axis=0), np.inf)
    for layer, moved in zip(np.unique(found["layer"]).tolist(), found["moved"] / scale):  # (r, neurons)
        values = means(moved[:, group].mean(axis=1)[None], documents, settings.seed)[:, 0]
        null = {kind: moved.mean(axis=0)[groups].mean(axis=1)[:, None] for kind, groups in nulls.items()}
        row, = controls.beside({"": "greater"}, values[:1], values[1:, None], null, {})
        kept = [name for name in row if not name.startswith(("less_", "statistic", "side"))]
        yield {"layer": layer} | {name: row[name] for name in kept} | {
            "heads": int((found["layer"] == layer).sum()), "positions": len(documents),
            "documents": len(np.unique(documents))}


# ---- statistics of heads


def means(values, documents, seed):
    """Means over positions and their resamples over documents: (h, n) -> (1 + draws, h)."""
    sums, counts = over_documents.by_document(values.T, documents)
    return over_documents.means(sums, counts, over_documents.resamples(len(counts), controls.RESAMPLES, seed))


def shuffled(rare, documents, draws, seed=0):
    """Labels (n,) bool shuffled within each document: (draws, n) bool."""
    place = np.unique(documents, return_inverse=True)[1]
    order = np.argsort(place + np.random.default_rng(seed).random((draws, len(rare))), axis=1)  # by document, then chance
    labels = np.empty((draws, len(rare)), dtype=bool)
    np.put_along_axis(labels, order, np.broadcast_to(rare[np.argsort(place, kind="stable")], order.shape), axis=1)
    return labels


def leaning(changes, rare, documents, seed):
    """Do single heads serve one kind of target?

    Parameters
    ----------
    changes : (h, n) loss changes ; rare : (n,) bool ; documents : (n,) int.

    Returns
    -------
    lean : dict of (h,): lean, p_lean, q_lean (see `heads`), NaN for a head without effect.
    null : (1000,) rank correlations over heads of rare and common effects after shuffling the labels.
    """
    values = np.abs(changes)  # (h, n)
    labels = np.concatenate([rare[None], shuffled(rare, documents, SHUFFLES, seed)]).astype(np.float64)
    effect = [weights @ values.T / weights.sum(axis=1, keepdims=True) for weights in (labels, 1 - labels)]  # (1 + draws, h)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = [np.log(part / part.sum(axis=1, keepdims=True)) for part in effect]
        lean = shares[0] - shares[1]
    lean[~np.isfinite(lean)] = np.nan
    p = np.array([controls.empirical_p(value, null) for value, null in zip(lean[0], lean[1:].T)])
    null = rankings.rank_correlation(effect[0][1:1001], effect[1][1:1001])
    return {"lean": lean[0], "p_lean": p, "q_lean": claims.adjust(p)}, null


# ---- the choice of windows


def affordable(subject, width):
    """How many tokens every head can be ablated on for `WORK`, int: a head costs its own layer and those above it.

    width : the number is a multiple of it, at least one, and at most `MOST_TOKENS`.
    """
    stack = layers.layers_of(subject)
    sizes = [sum(weight.numel() for weight in layer.parameters()) for layer in stack]
    rerun = subject.model.config.num_attention_heads * sum((at + 1) * size for at, size in enumerate(sizes))
    return width * max(1, int(min(MOST_TOKENS, WORK / (2 * rerun)) // width))


def choose_windows(tokens, documents, positions, *, width, budget, ends, seed=0):
    """Short stretches of text that end at chosen positions, so that few tokens reach many documents.

    Positions are taken in random order, one for each document before any document has a second, until `budget`
    tokens are full. Whatever other positions a window holds in its second half are measured too.

    Parameters
    ----------
    tokens : int64 (blocks, length) ; documents : (blocks,) int ; positions : int64 (n, 2) rows (block, t).
    width : tokens a window, at most the length of a block.
    budget : tokens in all.
    ends : bool (n,), the positions at which a window may end.

    Returns
    -------
    tokens : int64 (w, width), the windows.
    positions : int64 (k, 2) rows (window, t), without repeats of a position.
    rows : int64 (k,) which of the positions given each is (its document and group stay known by it).
    """
    length, count = tokens.shape[1], budget // width
    if not 4 <= width <= length or count < 1:
        raise ValueError(f"Windows are 4 to {length} tokens wide and at most the budget, not {width} of {budget}.")
    order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(seed))
    order = order[ends[order]]
    owners = torch.as_tensor(documents)[positions[order, 0].cpu()]
    turn = torch.zeros(len(order), dtype=torch.int64)  # how many positions of its document come before
    seen = {}
    for place, owner in enumerate(owners.tolist()):
        turn[place] = seen[owner] = seen.get(owner, -1) + 1
    order = order[turn.argsort(stable=True)]

    made, kept, rows, taken = [], [], [], set()
    for row in order.tolist():
        if len(made) == count:
            break
        if row in taken:
            continue
        block, t = positions[row].tolist()
        start = min(max(0, t + 2 - width), length - width)
        inside = (positions[:, 0] == block) & (positions[:, 1] >= start) & (positions[:, 1] <= start + width - 2)
        inside &= (positions[:, 1] - start >= width // 2) | (torch.arange(len(positions), device=positions.device) == row)
        for other in inside.nonzero()[:, 0].tolist():
            if other not in taken:
                taken.add(other)
                kept.append((len(made), int(positions[other, 1]) - start))
                rows.append(other)
        made.append(tokens[block, start: start + width])
    return torch.stack(made), torch.tensor(kept), torch.tensor(rows)
