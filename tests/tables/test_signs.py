"""A neuron of a gated MLP has no sign of its own: flips change no prediction, and in the tables only what is signed."""

import numpy as np
import pandas as pd
import pytest
import torch
from planted import phase_rows
from tiny_models import LENGTH, NEURONS, VOCABULARY

from rare_token_neurons import settings as parameters
from rare_token_neurons.ablation import capture as captures, neurons as ablation
from rare_token_neurons.statistics import controls
from rare_token_neurons.tables import (activations, checkpoints as passes, influence as influences, modules,
                                       rare_tokens, stage, weights)

BLOCKS, FIRST = 40, 3
FLIPPED = torch.randperm(NEURONS, generator=torch.Generator().manual_seed(3))[: NEURONS // 2]
SIGNED = ["mean", "negative share"]  # statistics of co-activation


@pytest.fixture
def made(tiny, computed, monkeypatch):
    """A function from whether neurons are flipped to the tables of a small gated model with a group of ten neurons."""
    settings = parameters.check({"model": "mini-pythia"})
    tokens = torch.randint(0, VOCABULARY, (BLOCKS, LENGTH), generator=torch.Generator().manual_seed(1))
    places = torch.cartesian_prod(torch.arange(BLOCKS), torch.arange(FIRST, LENGTH - 1))
    block, t = places.unbind(1)
    chosen = pd.DataFrame({"block": block, "t": t, "document": block, "half": np.where(block % 2, "B", "A"),
                           "group": np.where((block + t) % 2, "rare", "common")})
    monkeypatch.setattr(rare_tokens, "positions", lambda settings: chosen)
    monkeypatch.setattr(rare_tokens, "blocks", lambda settings: None)
    monkeypatch.setattr(passes, "pass_inputs", lambda *arguments: {})
    monkeypatch.setattr(stage, "tensors", lambda name, key, compute, **options: compute())
    monkeypatch.setattr(passes, "revisions", lambda settings, default="last": ["step1"])
    heads = phase_rows(["step1"]).assign(neurons=NEURONS, head=20, law_end=40)
    monkeypatch.setattr(influences, "phases", lambda settings: heads)
    monkeypatch.setattr(influences, "GROUP_SHARE", 0.2)
    monkeypatch.setattr(activations, "LEAST_HEAD", 5)
    for module, name, few in ((controls, "DRAWS", 40), (controls, "BASELINES", 3), (controls, "MODULE_DRAWS", 20),
                              (modules, "MODULE_RESAMPLES", 10), (modules, "SEEDS", 2), (weights, "DRAWS", 9),
                              (weights, "FITS", 9)):
        monkeypatch.setattr(module, name, few)

    def of(flipped):
        subject = tiny("llama-tied")
        if flipped:
            subject.w_in["up"][FLIPPED] *= -1
            subject.w_out[:, FLIPPED] *= -1
        kept = captures.capture(subject, tokens, first=FIRST)

        def sums(settings, revision, group):
            rows = places[torch.tensor(chosen["group"].eq(group).tolist())]
            return ablation.influence(subject, kept, rows, rows[:, 0], entropy=False)

        monkeypatch.setattr(passes, "subject", lambda settings, revision=None: subject)
        monkeypatch.setattr(passes, "captured", lambda settings, revision=None: (subject, kept))
        monkeypatch.setattr(influences, "influence_sums", sums)
        for cached in (activations.sample, activations._read):
            cached.cache_clear()
        found = {table.__name__: table(settings) for table in (
            influences.influence, activations.activation_dimension, activations.activation_variance,
            activations.activation_windows, activations.coactivation, activations.coactivation_matrix, modules.modules,
            modules.module_members, weights.weight_groups)}
        return found | {"losses": pd.DataFrame({"loss": ablation.losses(subject, kept)})}

    yield of
    for cached in (activations.sample, activations._read):
        cached.cache_clear()


def same(one, other, **tolerance):
    """Two tables hold the same, numbers up to rounding."""
    pd.testing.assert_frame_equal(one.reset_index(drop=True), other.reset_index(drop=True), check_exact=False,
                                  **tolerance)


def test_flips_move_signed_statistics_and_nothing_else(made):
    before, after = made(False), made(True)
    signed = before["coactivation"]["statistic"].isin(SIGNED)
    moved = before["coactivation"].loc[signed, "value"] - after["coactivation"].loc[signed, "value"]
    assert moved.abs().max() > 0.1 and before["coactivation"]["gated"].all()
    positive = before["modules"]["weights"] == "positive"
    assert (before["modules"].loc[positive, "value"] - after["modules"].loc[positive, "value"]).abs().min() > 1e-3
    assert set(before["modules"].loc[before["modules"]["main"], "weights"]) == {"absolute"}

    for found in (before, after):
        found["coactivation"] = found["coactivation"][~signed]
        found["modules"] = found["modules"][~positive]
        for name in ("coactivation_matrix", "module_members"):
            columns = [column for column in ("correlation", "cosine") if column in found[name]]
            found[name] = found[name].assign(**found[name][columns].abs())
    for name in before:
        same(before[name], after[name], rtol=1e-4, atol=1e-6)
