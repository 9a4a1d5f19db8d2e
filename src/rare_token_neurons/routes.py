"""Tables of notebook 08, second part: do rare and common tokens use the same attention heads?

Heads are ablated on short windows of half B that end at rare targets; rare and common targets of the same windows are
compared, and the rare group's activations with those of control groups.
"""

from functools import lru_cache

import numpy as np
import torch
from scipy import stats

from rare_token_neurons import activations, checkpoints, comparisons, controls, heads, networks, overlaps, passes, store
from rare_token_neurons import tables, text
from rare_token_neurons.documents import resamples

WIDTH = 32  # tokens a window
SHUFFLES = 10_000  # of the labels rare and common
RESAMPLES = 500  # draws of documents


def _windows(settings, subject):
    """Short windows of half B: tokens (w, WIDTH), the rare and common positions (k, 2) in them, and of each whether it is
    rare, and its document."""
    sample, vocabulary, chosen = tables.blocks(settings), tables.tokens(settings), tables.positions(settings)
    sample = sample[sample["document"].isin(chosen.loc[chosen["half"] == "B", "document"])]
    tokens, documents = tables.token_tensor(sample), torch.tensor(sample["document"].to_numpy())
    found = [text.candidate_positions(tokens.numpy(), vocabulary["group"].eq(group).to_numpy(), vocabulary,
                                      rare_of=settings.rare_of, words_only=settings.words_only)
             for group in ("rare", "common")]
    rare = torch.tensor([True, False]).repeat_interleave(torch.tensor([len(part) for part in found]))
    places = torch.from_numpy(np.concatenate(found))
    windows, positions, rows = heads.windows(tokens, documents, places, width=WIDTH, seed=settings.seed, ends=rare,
                                             budget=heads.affordable(subject, WIDTH))
    return windows, positions, rare[rows], documents[places[rows, 0]]


@lru_cache(maxsize=1)
def _effects(settings, revision):
    """Every head ablated, kept in the cache: a dict of arrays.

    layer, head: (h,); changes: (h, n) loss changes in nats; moved: (layers, r, neurons) mean |activation change| over a
    layer's heads at the rare positions; rare: (n,) bool; documents: (n,); tokens: how many were run.
    """
    subject, _ = passes.captured(settings, revision)
    windows, positions, rare, documents = _windows(settings, subject)
    how = "zero" if settings.ablation == "zero" else "mean"
    content = {"model": checkpoints.model_hash(settings.model, revision), "first": text.FIRST,
               "tokens": store.array_hash([windows.numpy(), positions.numpy(), rare.numpy()])}

    def compute():
        with store.clock("forward"):
            made = heads.effects(subject, windows, positions, torch.arange(subject.n_neurons), first=text.FIRST, ablation=how)
        return {"layer": made.layer, "head": made.head, "changes": made.loss_changes.cpu(), "moved": made.moved(rare).cpu()}

    key = store.key({"ablation": how}, content, ["heads", "checkpoints"])
    kept = store.tensors(settings.slug, key, compute, recompute=settings.recompute)
    kept = {name: values.numpy() for name, values in kept.items()}
    return kept | {"changes": kept["changes"].astype(np.float64), "rare": rare.numpy(), "documents": documents.numpy(),
                   "tokens": windows.numel()}


def _account(found):
    """What stands behind the effects: numbers of positions, documents and tokens."""
    return {"rare_positions": int(found["rare"].sum()), "common_positions": int((~found["rare"]).sum()),
            "documents": len(np.unique(found["documents"])), "tokens": found["tokens"]}


def head_effects(settings):
    """Every attention head ablated, at every position of windows of 32 tokens: what the losses do.

    Returns
    -------
    DataFrame, one row (revision, step, layer, head): in nats rare and common, mean |loss change| at targets of that kind,
    each with _low and _high (95 % over documents), _signed (mean change) and _shuffled (after one shuffling of the labels
    rare and common within documents); lean, the log of the head's share of the
    effect on rare targets over its share of that on common ones, p_lean (labels shuffled within documents), q_lean
    (Benjamini-Hochberg over heads); rare_positions, common_positions, documents, tokens (run for each head)
    """

    def rows(revision):
        found = _effects(settings, revision)
        changes, rare, documents = found["changes"], found["rare"], found["documents"]
        lean, _ = leaning(changes, rare, documents, settings.seed)
        one = shuffled(rare, documents, 1, settings.seed)[0]
        effect = {name: means(np.abs(changes[:, mask]), documents[mask], settings.seed)
                 for name, mask in (("rare", rare), ("common", ~rare))}
        for at, (layer, head) in enumerate(zip(found["layer"].tolist(), found["head"].tolist())):
            row = {"layer": layer, "head": head}
            for name, mask, other in (("rare", rare, one), ("common", ~rare, ~one)):
                low, high = comparisons.spread(effect[name][0, at], effect[name][1:, at])
                row |= {name: effect[name][0, at], f"{name}_low": max(low, 0.0), f"{name}_high": high,
                        f"{name}_signed": changes[at, mask].mean(), f"{name}_shuffled": np.abs(changes[at, other]).mean()}
            yield row | {name: values[at] for name, values in lean.items()} | _account(found)

    return overlaps.stage(settings, "heads", lambda: overlaps.each_revision(settings, rows), "routes")


def routes(settings):
    """Do the heads matter in the same order for rare and for common targets?

    Returns
    -------
    DataFrame, one row (revision, step): correlation (Spearman's over heads, of the mean |loss changes|) with low, high
    (95 % over documents); null, null_low, null_high: the same with the labels rare and common shuffled within documents;
    p (as low as observed or lower); heads, leaning (heads with q_lean below 0.05), rare_positions, common_positions,
    documents, tokens
    """

    def rows(revision):
        found = _effects(settings, revision)
        changes, rare, documents = found["changes"], found["rare"], found["documents"]
        lean, null = leaning(changes, rare, documents, settings.seed)
        of_kind = [means(np.abs(changes[:, mask]), documents[mask], settings.seed) for mask in (rare, ~rare)]
        values = networks.rank_correlation(*of_kind)
        low, high = comparisons.spread(values[0], values[1:])
        yield {"correlation": values[0], "low": low, "high": min(high, 1.0), "null": null.mean(),
               "null_low": np.quantile(null, 0.025), "null_high": np.quantile(null, 0.975),
               "p": controls.empirical_p(values[0], null, "less"), "heads": len(changes),
               "leaning": int((lean["q_lean"] < 0.05).sum())} | _account(found)

    return overlaps.stage(settings, "routes", lambda: overlaps.each_revision(settings, rows), "routes")


def head_layers(settings):
    """What ablating a head does to the rare group's activations at rare targets, on average over the heads of a layer.

    Returns
    -------
    DataFrame, one row (revision, step, layer): value, mean |activation change| over the group's neurons in units of each
    neuron's standard deviation, with low, high (95 % over documents); random and matched (means of 1,000 control groups),
    each with _low, _high (95 % of them) and p_ ("greater"); heads, positions, documents
    """

    def rows(revision):
        found, sample = _effects(settings, revision), activations.sample(settings, revision, "all")
        documents, group = found["documents"][found["rare"]], overlaps.rare_group(settings, revision)
        group = group[np.isin(group, sample.living)]
        nulls = comparisons.control_groups(sample, group, seed=settings.seed)
        scale = np.where(np.isin(np.arange(sample.values.shape[1]), sample.living), sample.values.std(axis=0), np.inf)
        for layer, moved in zip(np.unique(found["layer"]).tolist(), found["moved"] / scale):  # (r, neurons)
            values = means(moved[:, group].mean(axis=1)[None], documents, settings.seed)[:, 0]
            null = {kind: moved.mean(axis=0)[groups].mean(axis=1)[:, None] for kind, groups in nulls.items()}
            row = comparisons.summaries({"": "greater"}, values[:1], values[1:, None], null, {})[0]
            kept = [name for name in row if not name.startswith(("less_", "statistic", "side"))]
            yield {"layer": layer} | {name: row[name] for name in kept} | {
                "heads": int((found["layer"] == layer).sum()), "positions": len(documents),
                "documents": len(np.unique(documents))}

    return overlaps.stage(settings, "head_layers", lambda: overlaps.each_revision(settings, rows), "routes")


def means(values, documents, seed):
    """Means over positions and their resamples over documents: (h, n) -> (1 + RESAMPLES, h)."""
    ids, place = np.unique(documents, return_inverse=True)
    member = np.equal(place[:, None], np.arange(len(ids))).astype(np.float64)  # (n, D)
    weights = resamples(len(ids), RESAMPLES, seed)
    return weights @ (values @ member).T / (weights @ member.sum(axis=0))[:, None]


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
    lean : dict of (h,): lean, p_lean, q_lean (see `head_effects`), NaN for a head without effect.
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
    null = networks.rank_correlation(effect[0][1:1001], effect[1][1:1001])
    q = np.full(len(p), np.nan)
    q[np.isfinite(p)] = stats.false_discovery_control(p[np.isfinite(p)])
    return {"lean": lean[0], "p_lean": p, "q_lean": q}, null
