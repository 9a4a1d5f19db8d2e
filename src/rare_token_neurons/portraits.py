"""Tables of notebook 10: what single neurons write, where they are active, which predictions they help.

The top neurons are chosen on half A of the documents; all that is said of them is measured on half B. When a neuron
counts as on is said in `traits`.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
import torch

from rare_token_neurons import ablation, influences, passes, tables, traits
from rare_token_neurons.ablation import Capture
from rare_token_neurons.subjects import Subject

TOP = 10  # neurons portrayed
LISTED = 12  # tokens a list
CONTEXTS = 4  # each from another document
LOGITS = 4e8  # positions x vocabulary of the loss changes by target
EDGES = np.arange(-6, 15.5, 0.5)  # bins of the histograms, in standard deviations
RANDOM = 200  # neurons behind the grey histogram
MEMORY_GB = 1.0  # working memory of the ablation


@dataclass(frozen=True)
class Activity:
    """Half B of one checkpoint's capture, every scored position. On is above 0, on the side of the longer tail."""

    subject: Subject
    capture: Capture
    rows: np.ndarray  # int64 (n, 2), (block, t)
    documents: np.ndarray  # int64 (n,)
    sign: np.ndarray  # int (neurons,), that side
    sd: np.ndarray  # (neurons,), of the activation about its mean
    kurtosis: np.ndarray  # (neurons,), in excess of a normal one; NaN for a constant neuron
    active: np.ndarray  # float32 (n, neurons), standard deviations beyond the mean; 0 for a constant neuron


def _stage(settings, name, compute):
    return tables.stage(settings, name, compute, reads=("steps", "ablation", *tables.POSITION_PARAMETERS),
                        inputs=passes.model_inputs(settings), modules=["portraits"])


def _influence(settings):
    """The influence table of the last of the settings' checkpoints."""
    table, revision = influences.influence(settings), passes.revisions(settings)[-1]
    return table[table["revision"] == (revision or "")]


def top(settings):
    """The ten most influential neurons for rare tokens by half A, int (10,); fewer where the rare group is smaller."""
    return influences.rare_group(_influence(settings))[:TOP]


@lru_cache(maxsize=1)
def _activity(settings):
    revision = passes.revisions(settings)[-1]
    subject, kept = passes.captured(settings, revision)
    active, documents = passes.activations(settings, revision, "all", half="B")
    rows = kept.positions.cpu().numpy()
    rows = rows[np.isin(kept.documents.cpu().numpy()[rows[:, 0]], documents)]
    active -= kept.means.float().cpu().numpy()
    second, third, fourth = traits.moments(active)
    sign, sd = traits.tail_side(third), np.sqrt(second)
    active *= np.divide(sign, sd, out=np.zeros_like(sd), where=sd > 0).astype(np.float32)
    kurtosis = np.divide(fourth, second**2, out=np.full_like(sd, np.nan), where=sd > 0) - 3
    return Activity(subject, kept, rows, documents, sign, sd, kurtosis, active)


def _at(settings, activity, group):
    """(n, neurons) activity at the settings' rare or common positions of half B."""
    chosen = tables.positions(settings)
    wanted, _ = tables.group_positions(chosen[chosen["half"] == "B"], group)
    place = {row: at for at, row in enumerate(map(tuple, activity.rows.tolist()))}
    return activity.active[[place[row] for row in map(tuple, wanted.tolist())]]


def _read_and_target(settings, rows):
    tokens = np.stack(tables.blocks(settings)["tokens"].to_numpy())
    return tokens[rows[:, 0], rows[:, 1]], tokens[rows[:, 0], rows[:, 1] + 1]


def _seen(settings, n_vocab):
    """The tokens that occur in the text: rows of the token table, and bool (vocabulary,)."""
    vocabulary = tables.tokens(settings)
    occurs = vocabulary["count_text"].to_numpy() > 0
    return vocabulary[occurs].reset_index(drop=True), np.pad(occurs, (0, n_vocab - len(occurs)))


def _losses(settings):
    """Effects on the loss and the unigram projection on half B, by group of targets, with standard errors."""
    revision, halves, found = passes.revisions(settings)[-1], tables.positions(settings).groupby("document")["half"].first(), {}
    for group in ("rare", "common"):
        sums = influences.influence_sums(settings, revision, group)
        inside = halves.loc[sums.documents.numpy()].eq("B").to_numpy()
        parts = {group: sums.abs_sum, f"change_{group}": sums.change_sum, f"unigram_{group}": sums.unigram_sum}
        for name, part in parts.items():
            found[name], found[f"{name}_error"] = traits.over_documents(part.double().numpy()[inside],
                                                                        sums.n.double().numpy()[inside])
    return found


def portraits(settings):
    """One row a neuron: its effects, its output, where it is active.

    Returns
    -------
    DataFrame with neuron, rank, rank_common (by influence on rare and on common targets, half A), top (whether portrayed);
    on half B: rare, common (mean |loss change|, nats), change_rare, change_common (mean loss change), unigram_rare,
    unigram_common (mean change of the logits' projection on the log-unigram direction), each with _error (standard error
    over documents); share (rare / (rare + common)); sign, sd, kurtosis (excess) of the activation; at_rare, at_common (mean
    activity there, in SD); correlation, promoted, suppressed (see `traits.frequency_of`, when on); word_read, word_target,
    rare_target, common_target (shares of the strongest 1 % of the positions), each with _base (of all positions);
    positions, documents
    """

    def compute():
        activity = _activity(settings)
        neurons, (read, target) = np.arange(len(activity.sign)), _read_and_target(settings, activity.rows)
        word, group = (tables.tokens(settings)[name].to_numpy() for name in ("word", "group"))
        marks = {"word_read": word[read], "word_target": word[target], "rare_target": group[target] == "rare",
                 "common_target": group[target] == "common"}
        seen, occurs = _seen(settings, activity.subject.n_vocab)
        parts = [traits.frequency_of(traits.output_effects(activity.subject, some, occurs) * activity.sign[some],
                                     seen["count_text"].to_numpy())
                 for some in np.array_split(neurons, -(-len(neurons) // traits.CHUNK))]
        influence = _influence(settings).pivot(index="neuron", columns="group", values="mean_abs_a")
        ranks = influence.rank(ascending=False, method="first", na_option="bottom").astype(int).reset_index(drop=True)
        table = pd.DataFrame({"neuron": neurons, "rank": ranks["rare"], "rank_common": ranks["common"],
                              "top": np.isin(neurons, top(settings))} | _losses(settings))
        table = table.assign(share=table["rare"] / (table["rare"] + table["common"]),
                             sign=activity.sign, sd=activity.sd, kurtosis=activity.kurtosis,
                             **{f"at_{name}": _at(settings, activity, name).mean(axis=0) for name in ("rare", "common")},
                             **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
                             **traits.strongest(activity.active, marks),
                             **{f"{name}_base": mark.mean() for name, mark in marks.items()})
        table = table.astype({name: np.float32 for name in table.select_dtypes(np.float64)})
        return table.assign(positions=len(read), documents=len(np.unique(activity.documents)))

    return _stage(settings, "portraits", compute)


def promoted(settings):
    """The tokens that each top neuron raises and lowers most, among those that occur in the text.

    Returns
    -------
    DataFrame, one row (neuron, side, place): side ("promoted" or "suppressed", when on), place (from 1), token_id, token,
    group, count_text, effect (change of the logit, less the mean token's, by one SD of activity at the mean scale of the
    final norm)
    """

    def compute():
        activity, neurons = _activity(settings), top(settings)
        seen, occurs = _seen(settings, activity.subject.n_vocab)
        c = activity.capture.residual.flatten(0, 1).double()
        c = c - c.mean(-1, keepdim=True) if activity.subject.norm == "layer" else c
        scale = (c.square().mean(-1) + activity.subject.norm_eps).rsqrt().mean().item()
        unit = scale * activity.sign[neurons] * activity.sd[neurons]
        effects, rows = traits.output_effects(activity.subject, neurons, occurs) * unit, []
        for neuron, column in zip(neurons, effects.T):
            order = np.argsort(-column, kind="stable")
            for side, places in (("promoted", order[:LISTED]), ("suppressed", order[::-1][:LISTED])):
                some = seen.loc[places, ["token_id", "token", "group", "count_text"]].reset_index(drop=True)
                rows.append(some.assign(neuron=neuron, side=side, place=some.index + 1, effect=column[places]))
        return pd.concat(rows, ignore_index=True)

    return _stage(settings, "portrait_tokens", compute)


def contexts(settings):
    """Where each top neuron is most active on half B, one place a document.

    Returns
    -------
    DataFrame, one row (neuron, place): place (from 1), active (SD beyond the mean), document, block, t, and the text
    before, token (the one read), target (the one predicted), after
    """

    def compute():
        activity, tokens, rows = _activity(settings), np.stack(tables.blocks(settings)["tokens"].to_numpy()), []
        tokenizer = activity.subject.tokenizer
        for neuron in top(settings):
            found = traits.one_each(activity.active[:, neuron], activity.documents, CONTEXTS)
            for place, at in enumerate(found, 1):
                block, t = activity.rows[at]
                words = traits.context(lambda ids: tokenizer.decode(ids, clean_up_tokenization_spaces=False), tokens[block], t)
                rows.append({"neuron": neuron, "place": place, "active": activity.active[at, neuron],
                             "document": activity.documents[at], "block": block, "t": t} | words)
        return pd.DataFrame(rows)

    return _stage(settings, "portrait_contexts", compute)


def targets(settings):
    """The targets whose loss each top neuron changes most, over evenly spaced positions of half B.

    Returns
    -------
    DataFrame, one row (neuron, side, place): side ("rises" or "falls" without the neuron), place (from 1), token_id,
    token, group, change (mean, nats), n (positions of this target), documents; for the neuron: overall (mean change over all
    positions), overall_error, positions
    """

    def compute():
        activity, neurons, vocabulary = _activity(settings), top(settings), tables.tokens(settings)
        n = min(len(activity.rows), int(LOGITS / activity.subject.n_vocab))
        kept = np.linspace(0, len(activity.rows) - 1, n).round().astype(int)
        changes = ablation.loss_changes(activity.subject, activity.capture, torch.from_numpy(activity.rows[kept]),
                                        ablation=settings.ablation, seed=settings.seed, memory_gb=MEMORY_GB,
                                        neurons=torch.from_numpy(neurons)).double().cpu().numpy()
        documents, (_, target) = activity.documents[kept], _read_and_target(settings, activity.rows[kept])
        places = np.unique(documents, return_inverse=True)[1]
        sums = np.stack([np.bincount(places, column) for column in changes.T], axis=1)
        overall, error = traits.over_documents(sums, np.bincount(places).astype(float))
        rows = []
        for at, neuron in enumerate(neurons):
            table = traits.by_target(changes[:, at], target, documents)
            rises, falls = table[table["change"] > 0], table[table["change"] < 0][::-1]
            for side, some in (("rises", rises.head(LISTED)), ("falls", falls.head(LISTED))):
                rows.append(some.assign(neuron=neuron, side=side, place=np.arange(1, len(some) + 1), overall=overall[at],
                                        overall_error=error[at]))
        made = pd.concat(rows, ignore_index=True).rename(columns={"target": "token_id"}).assign(positions=n)
        return made.join(vocabulary.set_index("token_id")[["token", "group"]], on="token_id")

    return _stage(settings, "portrait_targets", compute)


def histograms(settings):
    """Histograms of the activity of each top neuron on half B, and of 200 other neurons.

    Returns
    -------
    DataFrame, one row (neuron, low): low, high (the bin, in SD beyond the mean, on is above 0; the outermost hold what
    lies beyond); shares of the positions: all, rare, common (targets), and over the other neurons random (median),
    random_low, random_high (5 to 95 %)
    """

    def compute():
        activity, neurons = _activity(settings), top(settings)
        others = np.setdiff1d(np.flatnonzero(activity.sd > 0), neurons)
        drawn = np.random.default_rng(settings.seed).permutation(others)[:RANDOM]
        band = np.quantile(traits.shares(activity.active[:, drawn], EDGES), [0.05, 0.5, 0.95], axis=1)  # (3, bins)
        found = {"all": activity.active, "rare": _at(settings, activity, "rare"), "common": _at(settings, activity, "common")}
        found = {name: traits.shares(values[:, neurons], EDGES) for name, values in found.items()}  # (bins, top)
        bins = {"low": EDGES[:-1], "high": EDGES[1:]} | dict(zip(("random_low", "random", "random_high"), band))
        return pd.concat([pd.DataFrame({"neuron": neuron} | bins | {name: part[:, at] for name, part in found.items()})
                          for at, neuron in enumerate(neurons)], ignore_index=True)

    return _stage(settings, "portrait_histograms", compute)
