"""Tables of notebook 10: what single neurons write, where they are active, which predictions they help; and, exploratory,
what the head of the ranked curve is made of.

The top neurons are chosen on half A of the documents, or named by the parameter `neurons`; all that is said of them is
measured on half B. A neuron counts as on where its activation lies beyond its mean on the side of its longer tail.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
import torch

from rare_token_neurons.ablation import neurons as ablation, readout as readouts
from rare_token_neurons.ablation.capture import Capture, ingredients
from rare_token_neurons.models.subject import Subject
from rare_token_neurons.statistics import controls, documents as over_documents
from rare_token_neurons.tables import activations, checkpoints as passes, influence as influences, rare_tokens
from rare_token_neurons.tables.stage import GROUPS, table
from rare_token_neurons.text import rarity

TOP = 10  # neurons portrayed, where none is named
READS = (*influences.EFFECTS, "neurons")
LISTED = 12  # tokens a list
CONTEXTS = 4  # each from another document
LOGITS = 4e8  # positions x vocabulary of the loss changes by target
EDGES = np.arange(-6, 15.5, 0.5)  # bins of the histograms, in standard deviations
RANDOM = 200  # neurons behind the grey histogram


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


def _influence(settings):
    """The influence table of the last of the settings' checkpoints."""
    return passes.of(influences.influence(settings), passes.revisions(settings)[-1])


def top(settings):
    """The neurons portrayed: those named, or the ten most influential for rare tokens by half A (fewer where the rare group
    is smaller), int (.,)."""
    return np.array(settings.neurons) if settings.neurons else influences.rare_group(_influence(settings))[:TOP]


def _check(settings, revision):
    """Refuse numbers that are no neurons, before the forward pass."""
    n = passes.load(settings, revision).n_neurons if settings.neurons else 0
    if strange := [str(neuron) for neuron in settings.neurons if neuron >= n]:
        raise ValueError(f"{settings.model} has no neuron {', '.join(strange)} in its last layer: they go from 0 to {n - 1:,}.")


@lru_cache(maxsize=1)
def _activity(settings):
    revision = passes.revisions(settings)[-1]
    _check(settings, revision)
    subject, kept = passes.captured(settings, revision)
    active, documents = passes.activations(settings, revision, "all", half="B")
    rows = kept.positions.cpu().numpy()
    rows = rows[np.isin(kept.documents.cpu().numpy()[rows[:, 0]], documents)]
    active -= kept.means.float().cpu().numpy()
    second, third, fourth = moments(active)
    sign, sd = tail_side(third), np.sqrt(second)
    active *= np.divide(sign, sd, out=np.zeros_like(sd), where=sd > 0).astype(np.float32)
    kurtosis = np.divide(fourth, second**2, out=np.full_like(sd, np.nan), where=sd > 0) - 3
    return Activity(subject, kept, rows, documents, sign, sd, kurtosis, active)


def _at(settings, activity, group):
    """(n, neurons) activity at the settings' rare or common positions of half B."""
    wanted, _ = rare_tokens.group_positions(rare_tokens.positions(settings), group, "B")
    place = {row: at for at, row in enumerate(map(tuple, activity.rows.tolist()))}
    return activity.active[[place[row] for row in map(tuple, wanted.tolist())]]


def _read_and_target(settings, rows):
    tokens = np.stack(rare_tokens.blocks(settings)["tokens"].to_numpy())
    return tokens[rows[:, 0], rows[:, 1]], tokens[rows[:, 0], rows[:, 1] + 1]


def _seen(settings, n_vocab):
    """The tokens that occur in the text: rows of the token table, and bool (vocabulary,)."""
    vocabulary = rare_tokens.tokens(settings)
    occurs = vocabulary["count_text"].to_numpy() > 0
    occurs &= np.arange(len(occurs)) < n_vocab
    return vocabulary[occurs].reset_index(drop=True), rarity.fitted(occurs, n_vocab)


def _losses(settings):
    """Effects on the loss and the unigram projection on half B, by group of targets, with standard errors."""
    found = {}
    for group in GROUPS:
        sums = influences.influence_sums(settings, passes.revisions(settings)[-1], group)
        inside = rare_tokens.in_half(settings, sums.documents.numpy(), "B")
        parts = {group: sums.abs_sum, f"change_{group}": sums.change_sum, f"unigram_{group}": sums.unigram_sum}
        n = sums.n.double().numpy()[inside]
        for name, part in parts.items():
            found[name], found[f"{name}_error"] = over_documents.mean_and_error(part.double().numpy()[inside], n)
    return found


@table(passes.LAST, reads=READS)
def portraits(settings):
    """One row a neuron: its effects, its output, where it is active.

    Returns
    -------
    DataFrame with neuron, rank, rank_common (by influence on rare and on common targets, half A), top (whether portrayed);
    on half B: rare, common (mean |loss change|, nats), change_rare, change_common (mean loss change), unigram_rare,
    unigram_common (mean change of the logits' projection on the log-unigram direction), each with _error (standard error
    over documents); share (rare / (rare + common)); sign, sd, kurtosis (excess) of the activation; at_rare, at_common (mean
    activity there, in SD); correlation, promoted, suppressed (see `frequency_of`, when on); word_read, word_target,
    rare_target, common_target (shares of the strongest 1 % of the positions), each with _base (of all positions);
    positions, documents
    """
    activity = _activity(settings)
    neurons, (read, target) = np.arange(len(activity.sign)), _read_and_target(settings, activity.rows)
    word, group = (rare_tokens.tokens(settings)[name].to_numpy() for name in ("word", "group"))
    marks = {"word_read": word[read], "word_target": word[target], "rare_target": group[target] == "rare",
             "common_target": group[target] == "common"}
    seen, occurs = _seen(settings, activity.subject.n_vocab)
    counts = seen["count_text"].to_numpy()
    parts = [frequency_of(output_effects(activity.subject, some, occurs) * activity.sign[some], counts)
             for some in np.array_split(neurons, -(-len(neurons) // CHUNK))]
    influence = _influence(settings).pivot(index="neuron", columns="group", values="mean_abs_a")
    ranks = influence.rank(ascending=False, method="first", na_option="bottom").astype(int).reset_index(drop=True)
    made = pd.DataFrame({"neuron": neurons, "rank": ranks["rare"], "rank_common": ranks["common"],
                         "top": np.isin(neurons, top(settings))} | _losses(settings))
    made = made.assign(share=made["rare"] / (made["rare"] + made["common"]),
                       sign=activity.sign, sd=activity.sd, kurtosis=activity.kurtosis,
                       **{f"at_{name}": _at(settings, activity, name).mean(axis=0) for name in GROUPS},
                       **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
                       **strongest(activity.active, marks),
                       **{f"{name}_base": mark.mean() for name, mark in marks.items()})
    made = made.astype({name: np.float32 for name in made.select_dtypes(np.float64)})
    return made.assign(positions=len(read), documents=len(np.unique(activity.documents)))


@table(passes.LAST, reads=READS)
def portrait_tokens(settings):
    """The tokens that each top neuron raises and lowers most, among those that occur in the text.

    Returns
    -------
    DataFrame, one row (neuron, side, place): side ("promoted" or "suppressed", when on), place (from 1), token_id, token,
    group, count_text, effect (change of the logit, less the mean token's, by one SD of activity at the mean scale of the
    norms behind the MLP)
    """
    activity, neurons = _activity(settings), top(settings)
    seen, occurs = _seen(settings, activity.subject.n_vocab)
    scale = readouts.mean_scale(readouts.readout_of(activity.subject), activity.subject, activity.capture)
    unit = scale * activity.sign[neurons] * activity.sd[neurons]
    effects = output_effects(activity.subject, neurons, occurs) * unit
    for neuron, column in zip(neurons, effects.T):
        order = np.argsort(-column, kind="stable")
        for side, places in (("promoted", order[:LISTED]), ("suppressed", order[::-1][:LISTED])):
            some = seen.loc[places, ["token_id", "token", "group", "count_text"]].reset_index(drop=True)
            yield some.assign(neuron=neuron, side=side, place=some.index + 1, effect=column[places])


@table(passes.LAST, reads=READS)
def portrait_contexts(settings):
    """Where each top neuron is most active on half B, one place a document.

    Returns
    -------
    DataFrame, one row (neuron, place): place (from 1), active (SD beyond the mean), document, block, t, and the text
    before, token (the one read), target (the one predicted), after
    """
    activity, tokens = _activity(settings), np.stack(rare_tokens.blocks(settings)["tokens"].to_numpy())
    tokenizer = activity.subject.tokenizer
    for neuron in top(settings):
        found = one_each(activity.active[:, neuron], activity.documents, CONTEXTS)
        for place, at in enumerate(found, 1):
            block, t = activity.rows[at]
            words = context(lambda ids: tokenizer.decode(ids, clean_up_tokenization_spaces=False), tokens[block], t)
            yield {"neuron": neuron, "place": place, "active": activity.active[at, neuron],
                   "document": activity.documents[at], "block": block, "t": t} | words


@table(passes.LAST, reads=READS)
def portrait_targets(settings):
    """The targets whose loss each top neuron changes most, over evenly spaced positions of half B.

    Returns
    -------
    DataFrame, one row (neuron, side, place): side ("rises" or "falls" without the neuron), place (from 1), token_id,
    token, group, change (mean, nats), n (positions of this target), documents; for the neuron: overall (mean change over all
    positions), overall_error, positions
    """
    activity, neurons, vocabulary = _activity(settings), top(settings), rare_tokens.tokens(settings)
    n = min(len(activity.rows), int(LOGITS / activity.subject.n_vocab))
    kept = np.linspace(0, len(activity.rows) - 1, n).round().astype(int)
    changes = ablation.loss_changes(activity.subject, activity.capture, torch.from_numpy(activity.rows[kept]),
                                    ablation=settings.ablation, seed=settings.seed, memory_gb=passes.MEMORY_GB,
                                    neurons=torch.from_numpy(neurons)).double().cpu().numpy()
    documents, (_, target) = activity.documents[kept], _read_and_target(settings, activity.rows[kept])
    places = np.unique(documents, return_inverse=True)[1]
    sums = np.stack([np.bincount(places, column) for column in changes.T], axis=1)
    overall, error = over_documents.mean_and_error(sums, np.bincount(places).astype(float))
    rows = []
    for at, neuron in enumerate(neurons):
        counted = by_target(changes[:, at], target, documents)
        rises, falls = counted[counted["change"] > 0], counted[counted["change"] < 0][::-1]
        for side, some in (("rises", rises.head(LISTED)), ("falls", falls.head(LISTED))):
            rows.append(some.assign(neuron=neuron, side=side, place=np.arange(1, len(some) + 1), overall=overall[at],
                                    overall_error=error[at]))
    made = pd.concat(rows, ignore_index=True).rename(columns={"target": "token_id"}).assign(positions=n)
    return made.join(vocabulary.set_index("token_id")[["token", "group"]], on="token_id")


@table(passes.LAST, reads=READS)
def portrait_histograms(settings):
    """Histograms of the activity of each top neuron on half B, and of 200 other neurons.

    Returns
    -------
    DataFrame, one row (neuron, low): low, high (the bin, in SD beyond the mean, on is above 0; the outermost hold what
    lies beyond); shares of the positions: all, rare, common (targets), and over the other neurons random (median),
    random_low, random_high (5 to 95 %)
    """
    activity, neurons = _activity(settings), top(settings)
    others = np.setdiff1d(np.flatnonzero(activity.sd > 0), neurons)
    drawn = controls.random_groups(others, min(RANDOM, len(others)), 1, settings.seed)[0]
    band = np.quantile(shares(activity.active[:, drawn], EDGES), [0.05, 0.5, 0.95], axis=1)  # (3, bins)
    found = {"all": activity.active} | {name: _at(settings, activity, name) for name in GROUPS}
    found = {name: shares(values[:, neurons], EDGES) for name, values in found.items()}  # (bins, top)
    bins = {"low": EDGES[:-1], "high": EDGES[1:]} | dict(zip(("random_low", "random", "random_high"), band))
    for at, neuron in enumerate(neurons):
        yield pd.DataFrame({"neuron": neuron} | bins | {name: part[:, at] for name, part in found.items()})


# ---- what is the head made of? (exploratory)

DRAWS = 200  # random groups beside the head


@table(passes.LAST, reads=influences.CURVE, per=("revision",))
def linearity(settings, revision):
    """Is a neuron a linear map that is always on?  One row (revision, step, group, neuron). Exploratory.

    Returns
    -------
    DataFrame with group ("rare" or "common", by target: the positions of half B that the row is measured at), neuron, rank
    (by influence on rare targets, half A), in_head (of the fitted head on rare targets, where it is raised); openness (share
    of the positions at which its gate, in a plain MLP its pre-activation, is above 0), cv (that gate's coefficient of
    variation), r2 (of its activation on its linear input: on the up projection, in a plain MLP on the pre-activation;
    missing for a neuron that never moves); gated (whether the MLP is); positions, documents; of the head, or without one of
    the rare group: size, and direction, the share of the largest eigenvalue in the sum, of its rows of the gate (W_in),
    beside random groups of that size: random_direction (mean), random_low, random_high (95 %)
    """
    return _linearity(settings, revision, "last")


@table(passes.EVERY, reads=influences.CURVE, per=("revision",))
def linearity_over_training(settings, revision):
    """`linearity` at every checkpoint, each with its own ranking and head.

    Returns
    -------
    DataFrame with the columns of `linearity`; without rows for a model that has one checkpoint only
    """
    return _linearity(settings, revision, "all") if len(passes.revisions(settings, "all")) > 1 else []


def _linearity(settings, revision, default):
    rows = activations.influence_at(settings, revision, default)
    fit = activations.fitted(activations.phases_at(settings, revision, default))
    order, rare = activations.ranked(rows)["neuron"].to_numpy(), influences.rare_group(rows)
    head = order[: fit["head"] * fit["raised"]]
    subject = passes.subject(settings, revision)
    weights = subject.w_in["gate" if subject.gated else "in"].double().cpu().numpy()
    of_head = {"size": len(head) or len(rare), **direction(weights, head if len(head) else rare, settings.seed)}
    for group in GROUPS:
        kept = passes.captured_at(settings, revision, group, "B")
        traits = linear_traits({name: part.cpu().numpy() for name, part in ingredients(subject, kept).items()})
        named = {"group": group, "neuron": np.arange(len(order)), "rank": np.argsort(order) + 1,
                 "in_head": np.isin(np.arange(len(order)), head)}
        told = pd.DataFrame(traits | of_head).astype(np.float32).astype({"size": int})
        yield pd.DataFrame(named).join(told).assign(gated=subject.gated, positions=len(kept.tokens),
                                                   documents=len(kept.documents.unique()))


def linear_traits(parts):
    """How far neurons are linear maps that are always on.

    parts : name -> (n, neurons), from `capture.ingredients` ; returns openness, cv and r2 (see `linearity`), (neurons,) each
    """
    gate, line = (parts[name].astype(np.float64) for name in (("gate", "up") if "gate" in parts else ("in", "in")))
    activation, mean = parts["activation"].astype(np.float64), gate.mean(axis=0)
    one, other = (part - part.mean(axis=0) for part in (activation, line))
    common, size = (one * other).sum(axis=0) ** 2, (one**2).sum(axis=0) * (other**2).sum(axis=0)
    cv = np.divide(gate.std(axis=0), np.abs(mean), out=np.full_like(mean, np.nan), where=mean != 0)
    r2 = np.divide(common, size, out=np.full_like(mean, np.nan), where=size > 0)
    return {"openness": (gate > 0).mean(axis=0), "cv": cv, "r2": r2}


def direction(weights, group, seed=0):
    """The share of the largest eigenvalue of a group's rows of weights (neurons, d), beside random groups of its size."""
    def share(rows):
        values = np.linalg.eigvalsh(rows @ rows.T)
        return values[-1] / values.sum()

    value, random = share(weights[group]), controls.random_groups(len(weights), len(group), DRAWS, seed)
    mean, low, high, _ = controls.among(value, [share(weights[one]) for one in random])
    return {"direction": value, "random_direction": mean, "random_low": low, "random_high": high}


# ---- traits of single neurons

EXTREMES = 50  # tokens at either end of a neuron's output whose frequency is averaged
STRONGEST = 0.01  # share of the positions
LEAST = 5  # positions of a target that is listed, from 3 documents or more
WINDOW = (14, 5)  # tokens shown before the one read, and after the target
CHUNK = 128  # neurons at a time


def moments(deviations):
    """Second, third and fourth moment of each neuron: float64 (3, neurons).

    deviations : (n, neurons), activations less their mean
    """
    columns = (column.astype(np.float64) for column in deviations.T)
    return np.array([((square := x * x).mean(), square @ x / len(x), square @ square / len(x)) for x in columns]).T


def tail_side(third):
    """The side of the longer tail of each neuron, +1 or -1, by its third moment; int (neurons,)"""
    return np.where(np.asarray(third) < 0, -1, 1)


def output_effects(subject, neurons, kept):
    """What neurons add to the logits for one unit of activation and of the norms' scale, which stays.

    Parameters
    ----------
    subject : Subject ; neurons : int (m,) ; kept : bool (vocabulary,), the tokens wanted.

    Returns
    -------
    float64 (tokens kept, m), less the mean over these tokens: a shift of all logits changes no prediction
    """
    readout = readouts.readout_of(subject)
    u = readout.outward(subject.w_out[:, torch.as_tensor(neurons)])  # (d, m)
    effects = (subject.unembedding[torch.as_tensor(kept)] @ readout.directions(u)).double().cpu().numpy()
    return effects - effects.mean(axis=0)


def frequency_of(effects, counts):
    """Whether neurons raise rare or common tokens.

    Parameters
    ----------
    effects : (tokens, m), from `output_effects` ; counts : (tokens,), above 0.

    Returns
    -------
    dict of (m,): correlation with log frequency (NaN without any effect); promoted and suppressed, the mean frequency
    rank (0 the rarest token, 1 the most common one) of the tokens raised and lowered most
    """
    logs = np.log(counts) - np.log(counts).mean()
    place = (pd.Series(counts).rank().to_numpy() - 1) / max(1, len(counts) - 1)
    size = min(EXTREMES, len(counts) // 2)
    order = np.argpartition(effects, (size, len(counts) - size), axis=0)
    norms = np.linalg.norm(effects - effects.mean(axis=0), axis=0) * np.linalg.norm(logs)
    return {"correlation": logs @ effects / np.where(norms > 0, norms, np.nan),
            "promoted": place[order[-size:]].mean(axis=0), "suppressed": place[order[:size]].mean(axis=0)}


def strongest(active, marks):
    """How often marks hold where each neuron is most active.

    Parameters
    ----------
    active : (n, neurons) ; marks : name -> bool (n,).

    Returns
    -------
    dict of name -> (neurons,) share of each neuron's strongest positions
    """
    size = max(1, int(np.ceil(STRONGEST * len(active))))
    rows = np.stack([np.argpartition(column, len(column) - size)[-size:] for column in active.T], axis=1)  # (size, neurons)
    return {name: mark[rows].mean(axis=0) for name, mark in marks.items()}


def one_each(active, documents, n):
    """The n positions where a neuron is most active, one a document, the strongest first.

    active : (positions,) ; documents : (positions,) ; returns int (n,), or as many as there are documents
    """
    order = np.argsort(-active, kind="stable")
    return order[np.sort(np.unique(documents[order], return_index=True)[1])][:n]


def by_target(changes, targets, documents):
    """Mean change of the loss of each target with enough positions.

    Parameters
    ----------
    changes : (n,) nats ; targets, documents : int (n,).

    Returns
    -------
    DataFrame with target, change, n, documents, by falling change
    """
    found = pd.DataFrame({"target": targets, "change": changes, "document": documents}).groupby("target")
    found = found.agg(change=("change", "mean"), n=("change", "size"), documents=("document", "nunique"))
    found = found[(found["n"] >= LEAST) & (found["documents"] >= min(LEAST, 3))]
    return found.sort_values("change", ascending=False, kind="stable").reset_index()


def context(decode, tokens, t):
    """The text around position t of a block: before, token (the one read), target, after.

    decode : from token ids to text; a token that is half a character reads as the replacement character.
    """
    before, after = WINDOW
    return {"before": decode(tokens[max(0, t - before) : t]), "token": decode(tokens[t : t + 1]),
            "target": decode(tokens[t + 1 : t + 2]), "after": decode(tokens[t + 2 : t + 2 + after])}


def shares(values, edges):
    """Share of the values in each bin; what lies outside counts in the outermost ones. (n, ...) -> (bins, ...)"""
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    return np.stack([(place == bin).mean(axis=0) for bin in range(len(edges) - 1)])
