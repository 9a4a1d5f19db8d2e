"""Activations of a model without weights: a rare group that shares a signal at the last of two checkpoints."""

import numpy as np
import pandas as pd

TOKENS, NEURONS = 400, 1000
SIZE = 17  # 1.7 % of the neurons
PLANTED = np.arange(100, 100 + SIZE)
ENDS = (30, 600)  # last ranks of the head and of the power law
ORDER = np.concatenate([PLANTED, np.setdiff1d(np.arange(NEURONS), PLANTED)])  # of falling influence
HEAD = ORDER[: ENDS[0]]


def influence_rows(revision="step1"):
    """Influence falling as a power law, the planted neurons first; ablated, even neurons raise the loss,
    odd ones lower it."""
    values = np.empty(NEURONS)
    values[ORDER] = np.arange(1, NEURONS + 1, dtype=float) ** -0.8
    rows = pd.DataFrame({"revision": revision, "group": "rare", "neuron": np.arange(NEURONS), "mean_abs": values,
                         "mean_abs_a": values, "mean_a": values * np.where(np.arange(NEURONS) % 2, -0.5, 0.5)})
    return pd.concat([rows, rows.assign(group="common")], ignore_index=True)


def phase_rows(revisions, word="plateau"):
    """What `influence.phases` says: on rare targets phases end at ENDS, and the fitted head is raised;
    no other head is."""
    rare = {"head": ENDS[0], "law_start": ENDS[0] + 0.4, "law_end": ENDS[1] + 0.4, "word": word}
    other = {"head": SIZE, "law_start": SIZE + 0.4, "law_end": 400.0, "word": "on the line"}
    return pd.DataFrame([
        {"revision": revision, "step": int(revision[4:] or 0), "group": group, "sign": sign, "rule": rule,
         "neurons": NEURONS, **(rare if (group, sign, rule) == ("rare", "pooled", "fitted head") else other)}
        for revision in revisions for group in ("common", "rare") for sign in ("boost", "pooled", "suppress")
        for rule in ("fixed head", "fitted head", "paper's rule")])


def values_of(revision):
    """Activations in which the planted neurons share a signal, at "step1" only; there the rest of the head is as loud.

    Neuron 100 is dead.
    """
    rng = np.random.default_rng(1 if revision == "step1" else 0)
    values = rng.normal(size=(TOKENS, NEURONS)) - 0.3
    if revision == "step1":
        values[:, PLANTED] += rng.normal(size=(TOKENS, 1))
        values[:, HEAD[SIZE:]] *= np.sqrt(2)
    values[:, 100] = -0.17
    return values.astype(np.float32), np.arange(TOKENS) // 20
