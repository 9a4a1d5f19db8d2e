"""A planted training: three checkpoints of 1,024 neurons, homogeneous at first, a shelf above its law in the end."""

import numpy as np

from rare_token_neurons import settings as parameters
from rare_token_neurons.curve import calibration
from rare_token_neurons.tables import checkpoints as passes, emergence, stage

STEPS, NEURONS, SIZE = (0, 16, 64), 1024, 18  # the top 1.7 % of 1,024, rounded up
RANKS = np.arange(1, NEURONS + 1) - 0.5
SHELF, RAISED = 25, 1.0  # neurons; e-folds above the law
CURVE = 0.01 * calibration.shelf(RANKS, SHELF, RAISED)
ROUNDED = 0.01 * calibration.law(np.maximum(RANKS, 30))


def checkpoints(seed=0):
    """(step, group) to per-document sums and counts; and which of the 60 documents are half A.

    Rare: all alike at step 0; at 16 neuron i has rank i of a curve with a shelf above its law; at 64 the neurons have
    moved on by half of the top group. Common: a curve with a rounded head, from the other end, at every step.
    """
    rng = np.random.default_rng(seed)
    truth = {"rare": (np.full(NEURONS, 0.01), CURVE, np.roll(CURVE, SIZE // 2)), "common": (ROUNDED[::-1],) * 3}
    found = {(step, group): calibration.measured(values, rng, documents=60, noise=0.3)
             for group, of_group in truth.items() for step, values in zip(STEPS, of_group)}
    return found, np.arange(60) % 2 == 0


def tell(monkeypatch, seed=0):
    """Let the tables of emergence read the planted training instead of a model and store nothing; returns settings."""
    monkeypatch.setattr(emergence, "sums_over_training", lambda settings, planted=checkpoints(seed): planted)
    monkeypatch.setattr(passes.Checkpoints, "inputs", lambda self, settings: {})
    monkeypatch.setattr(stage, "table_at", lambda path, key, compute, recompute: compute())
    emergence.halves_over_training.cache_clear()
    emergence._fits.cache_clear()
    return parameters.Settings(model="planted", seed=seed)
