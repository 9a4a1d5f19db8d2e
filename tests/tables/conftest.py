"""Tables without files, and a planted model without weights."""

from types import SimpleNamespace

import pandas as pd
import planted
import pytest
import torch

from rare_token_neurons import settings as parameters
from rare_token_neurons.statistics import controls
from rare_token_neurons.tables import (activations, checkpoints as passes, emergence, influence as influences,
                                       rare_tokens, stage)


@pytest.fixture
def computed(monkeypatch):
    """Declared tables compute each time they are asked for: nothing is stored, and no text or weights are hashed."""
    monkeypatch.setattr(stage, "table_at", lambda path, key, compute, recompute: compute())
    monkeypatch.setattr(passes.Checkpoints, "inputs", lambda self, settings: {})
    for source in (rare_tokens.Text, passes.Weights):
        monkeypatch.setattr(source, "inputs", lambda settings: {})


@pytest.fixture
def matched(monkeypatch):
    """Every matched control that is drawn, as (group, groups)."""
    drawn, plain = [], controls.matched_groups

    def noted(features, group, *rest, **options):
        drawn.append((group, plain(features, group, *rest, **options)))
        return drawn[-1][1]

    monkeypatch.setattr(controls, "matched_groups", noted)
    return drawn


@pytest.fixture
def planted_model(computed, monkeypatch):
    """Settings of two checkpoints without weights: a rare group that shares a signal at the last one (see
    `planted`)."""
    known = {"last": ["step1"], "all": ["step0", "step1"]}
    monkeypatch.setattr(passes, "revisions", lambda settings, default="last": known[default])
    monkeypatch.setattr(passes, "activations", lambda settings, revision, where: planted.values_of(revision))
    monkeypatch.setattr(passes, "spread", lambda settings, revision: planted.values_of(revision))
    weights = torch.randn(16, planted.NEURONS, generator=torch.Generator().manual_seed(0))
    subject = SimpleNamespace(w_out=weights, gated=False)
    monkeypatch.setattr(passes, "subject", lambda settings, revision: subject)
    for name, default in (("influence", "last"), ("influence_over_training", "all")):
        monkeypatch.setattr(influences, name, lambda settings, default=default: pd.concat(
            [planted.influence_rows(revision) for revision in passes.revisions(settings, default)], ignore_index=True))
    monkeypatch.setattr(influences, "phases", lambda settings: planted.phase_rows(passes.revisions(settings)))
    over_training = planted.phase_rows(known["all"]).query("sign == 'pooled'").drop(columns=["revision", "sign"])
    monkeypatch.setattr(emergence, "emergence_phases", lambda settings: over_training)
    activations.sample.cache_clear()
    yield parameters.check({"model": "mini-pythia"})
    activations.sample.cache_clear()
