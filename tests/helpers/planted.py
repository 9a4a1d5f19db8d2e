"""Activations of a model without weights: a rare group that shares a signal at the last of two checkpoints."""

import numpy as np
import pandas as pd

TOKENS, NEURONS = 400, 1000
SIZE = 17  # 1.7 % of the neurons
PLANTED = np.arange(100, 100 + SIZE)
ENDS = (30, 600)  # last ranks of the plateau and of the power law
ORDER = np.concatenate([PLANTED, np.setdiff1d(np.arange(NEURONS), PLANTED)])  # of falling influence


def influence_rows(revision="step1"):
    """Influence falling as a power law; the planted neurons lead."""
    values = np.empty(NEURONS)
    values[ORDER] = np.arange(1, NEURONS + 1, dtype=float) ** -0.8
    rows = pd.DataFrame({"revision": revision, "group": "rare", "neuron": np.arange(NEURONS), "mean_abs": values,
                         "mean_abs_a": values})
    return pd.concat([rows, rows.assign(group="common")], ignore_index=True)


def phase_rows(revisions):
    """What `influence.phases` says: phases end at ENDS on rare targets."""
    rows = pd.DataFrame({"revision": revisions, "group": "rare", "bp_plateau_end": ENDS[0], "bp_law_end": ENDS[1]})
    return pd.concat([rows.assign(group="common", bp_plateau_end=0), rows], ignore_index=True)


def values_of(revision):
    """Activations in which the planted neurons share a signal, at "step1" only; neuron 100 is dead."""
    rng = np.random.default_rng(1 if revision == "step1" else 0)
    values = rng.normal(size=(TOKENS, NEURONS)) - 0.3
    if revision == "step1":
        values[:, PLANTED] += rng.normal(size=(TOKENS, 1))
    values[:, 100] = -0.17
    return values.astype(np.float32), np.arange(TOKENS) // 20
