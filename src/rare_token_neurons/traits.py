"""Traits of single neurons: the tail of their activation, the tokens that they raise, where they are active.

Arrays in, arrays out. A neuron is ON where its activation lies beyond its mean on the side of its longer tail: a gated
neuron (act(gate) * up) takes both signs, and its output reverses with the sign.
"""

import numpy as np
import pandas as pd
import torch

from rare_token_neurons import predictions

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
    """What neurons add to the logits for one unit of activation and of the norm's scale.

    Parameters
    ----------
    subject : Subject ; neurons : int (m,) ; kept : bool (vocabulary,), the tokens wanted.

    Returns
    -------
    float64 (tokens kept, m), less the mean over these tokens: a shift of all logits changes no prediction
    """
    readout = predictions.readout_of(subject)
    u = readout.centred(subject.w_out[:, torch.as_tensor(neurons)].T).T  # (d, m)
    effects = (subject.unembedding[torch.as_tensor(kept)] @ readout.directions(u)).double().cpu().numpy()
    return effects - effects.mean(axis=0)


def frequency_of(effects, counts, extremes=EXTREMES):
    """Whether neurons raise rare or common tokens.

    Parameters
    ----------
    effects : (tokens, m), from `output_effects` ; counts : (tokens,), above 0.
    extremes : tokens averaged at either end, at most half of all.

    Returns
    -------
    dict of (m,): correlation with log frequency (NaN without any effect); promoted and suppressed, the mean frequency
    rank (0 the rarest token, 1 the most common one) of the tokens raised and lowered most
    """
    logs = np.log(counts) - np.log(counts).mean()
    place = (pd.Series(counts).rank().to_numpy() - 1) / max(1, len(counts) - 1)
    size = min(extremes, len(counts) // 2)
    order = np.argpartition(effects, (size, len(counts) - size), axis=0)
    norms = np.linalg.norm(effects - effects.mean(axis=0), axis=0) * np.linalg.norm(logs)
    return {"correlation": logs @ effects / np.where(norms > 0, norms, np.nan),
            "promoted": place[order[-size:]].mean(axis=0), "suppressed": place[order[:size]].mean(axis=0)}


def over_documents(sums, n):
    """Mean over positions and its standard error, with documents as the unit.

    Parameters
    ----------
    sums : (documents, neurons) per-document sums ; n : (documents,) positions.

    Returns
    -------
    mean, error : (neurons,); the error is NaN for a single document
    """
    k, mean = len(n), sums.sum(axis=0) / n.sum()
    squares = np.square(sums - np.outer(n, mean)).sum(axis=0)
    return mean, np.sqrt(squares * (k / (k - 1) if k > 1 else np.nan)) / n.sum()


def strongest(active, marks, share=STRONGEST):
    """How often marks hold where each neuron is most active.

    Parameters
    ----------
    active : (n, neurons) ; marks : name -> bool (n,) ; share : of the positions.

    Returns
    -------
    dict of name -> (neurons,) share of each neuron's strongest positions
    """
    size = max(1, int(np.ceil(share * len(active))))
    rows = np.stack([np.argpartition(column, len(column) - size)[-size:] for column in active.T], axis=1)  # (size, neurons)
    return {name: mark[rows].mean(axis=0) for name, mark in marks.items()}


def one_each(active, documents, n):
    """The n positions where a neuron is most active, one a document, the strongest first.

    active : (positions,) ; documents : (positions,) ; returns int (n,), or as many as there are documents
    """
    order = np.argsort(-active, kind="stable")
    return order[np.sort(np.unique(documents[order], return_index=True)[1])][:n]


def by_target(changes, targets, documents, least=LEAST):
    """Mean change of the loss of each target with enough positions.

    Parameters
    ----------
    changes : (n,) nats ; targets, documents : int (n,) ; least : positions of a target.

    Returns
    -------
    DataFrame with target, change, n, documents, by falling change
    """
    table = pd.DataFrame({"target": targets, "change": changes, "document": documents}).groupby("target")
    table = table.agg(change=("change", "mean"), n=("change", "size"), documents=("document", "nunique"))
    table = table[(table["n"] >= least) & (table["documents"] >= min(least, 3))]
    return table.sort_values("change", ascending=False, kind="stable").reset_index()


def context(decode, tokens, t, window=WINDOW):
    """The text around position t of a block: before, token (the one read), target, after.

    decode : from token ids to text; a token that is half a character reads as the replacement character.
    """
    before, after = window
    return {"before": decode(tokens[max(0, t - before) : t]), "token": decode(tokens[t : t + 1]),
            "target": decode(tokens[t + 1 : t + 2]), "after": decode(tokens[t + 2 : t + 2 + after])}


def shares(values, edges):
    """Share of the values in each bin; what lies outside counts in the outermost ones. (n, ...) -> (bins, ...)"""
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    return np.stack([(place == bin).mean(axis=0) for bin in range(len(edges) - 1)])
