"""The tables of notebooks 05 and 06 on planted activations, without a model."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from rare_token_neurons import activations, influences, parameters, passes

TOKENS, NEURONS = 400, 1000
SIZE = 17  # 1.7 % of the neurons
PLANTED = np.arange(100, 100 + SIZE)


def influence_rows(revision="step1"):
    """Influence falling as a power law; the planted neurons lead."""
    order = np.concatenate([PLANTED, np.setdiff1d(np.arange(NEURONS), PLANTED)])
    values = np.empty(NEURONS)
    values[order] = np.arange(1, NEURONS + 1, dtype=float) ** -0.8
    rows = pd.DataFrame({"revision": revision, "group": "rare", "neuron": np.arange(NEURONS), "mean_abs": values, "mean_abs_a": values})
    return pd.concat([rows, rows.assign(group="common")], ignore_index=True)


def values_of(revision):
    """Activations in which the planted neurons share a signal, at "step1" only; neuron 100 is dead."""
    rng = np.random.default_rng(1 if revision == "step1" else 0)
    values = rng.normal(size=(TOKENS, NEURONS)) - 0.3
    if revision == "step1":
        values[:, PLANTED] += rng.normal(size=(TOKENS, 1))
    values[:, 100] = -0.17
    return values.astype(np.float32), np.arange(TOKENS) // 20


@pytest.fixture
def settings(monkeypatch):
    """Settings of a planted model with two checkpoints; nothing is stored."""
    monkeypatch.setattr(passes, "revisions", lambda settings, default="last": ["step0", "step1"][-1 if default == "last" else 0:])
    monkeypatch.setattr(passes, "activations", lambda settings, revision, where: values_of(revision))
    weights = torch.randn(16, NEURONS, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(passes, "captured", lambda settings, revision: (SimpleNamespace(w_out=weights), None))
    monkeypatch.setattr(influences, "influence", lambda settings, default="last": pd.concat(
        [influence_rows(name) for name in passes.revisions(settings, default)], ignore_index=True))
    monkeypatch.setattr(passes, "model_inputs", lambda settings, default="last": {})
    monkeypatch.setattr(tables, "stage", lambda settings, name, compute, **options: compute())
    monkeypatch.setattr(activations.comparisons, "RESAMPLES", 40)
    activations.sample.cache_clear()
    yield parameters.check({"model": "mini-pythia"})
    activations.sample.cache_clear()


def test_groups_leave_constant_neurons_out():
    living = np.setdiff1d(np.arange(NEURONS), [100])
    made = activations.groups(influence_rows(), living)
    assert list(made["rare"]) == list(PLANTED[1:])
    phases = activations.phases.fit(influence_rows().query("group == 'rare'")["mean_abs"].to_numpy())
    for name, part in (("power law", phases.power_law), ("decay", phases.decay)):
        if name in made:
            assert made[name].shape == (activations.PHASE_SAMPLES, SIZE - 1) and np.isin(made[name], part).all()
            assert 100 not in made[name]
    assert "power law" in made


def test_planted_group_has_fewer_dimensions(settings):
    table = activations.dimensions(settings)
    assert set(table["where"]) == {"rare", "all"} and set(table["constant"]) == {1}
    rare = table[(table["group"] == "rare") & (table["statistic"] == "effective dimension")]
    assert (rare["size"] == SIZE - 1).all() and (rare["tokens"] == TOKENS).all() and (rare["documents"] == 20).all()
    for kind in ("random", "matched"):
        assert (rare[f"p_{kind}"] < 0.01).all() and (rare[f"less_{kind}_high"] < 0).all()
    phase = table[table["group"] == "power law"]
    assert phase["p_random"].isna().all() and phase["matched"].isna().all() and phase["value"].notna().all()


def test_variance_curves_end_at_one_and_lie_above_random(settings):
    table = activations.variance(settings)
    rare = table[(table["group"] == "rare") & (table["where"] == "all")]
    assert list(rare["components"]) == list(range(1, SIZE)) and rare["value"].iloc[-1] == pytest.approx(1)
    assert (rare["value"].iloc[:8] > rare["random_high"].iloc[:8]).all()


def test_planted_group_co_activates(settings):
    table = activations.coactivation(settings).set_index(["where", "group", "relation", "measure", "statistic"])
    row = table.loc[("rare", "rare", "within", "correlation", "mean")]
    assert row["value"] == pytest.approx(0.5, abs=0.1) and row["p_random"] < 0.01 and row["less_matched_low"] > 0
    assert ("rare", "power law", "between", "correlation", "mean") not in table.index
    assert abs(table.loc[("rare", "rare", "between", "correlation", "mean"), "value"]) < 0.02


def test_distributions_and_matrices_hold_every_pair_once(settings):
    spread = activations.distributions(settings)
    assert spread.groupby(["where", "measure", "set"])["share"].sum().to_numpy() == pytest.approx(1)
    pairs = spread.groupby("set")["pairs"].first()
    assert pairs["rare"] == 16 * 15 / 2 and pairs["between"] == 16 * (NEURONS - 17) and pairs["random"] == 1000 * 120
    matrix = activations.matrices(settings).query("where == 'all' and group == 'rare'")
    block = matrix.pivot(index="i", columns="j", values="correlation").to_numpy()
    assert block.shape == (16, 16) and np.allclose(block, block.T) and np.allclose(block.diagonal(), 1)
    values = values_of("step1")[0][:, np.sort(PLANTED[1:])].astype(np.float64)
    assert block == pytest.approx(np.corrcoef(values.T), abs=1e-5)


def test_over_training_follows_the_groups(settings, monkeypatch):
    table = activations.over_training(settings)
    mean = table.query("relation == 'within' and measure == 'correlation' and statistic == 'mean' and where == 'rare'")
    value = mean.set_index(["step", "group"])["value"]
    assert value[(1, "rare")] > 0.3 and abs(value[(0, "rare")]) < 0.05 and abs(value[(0, "last rare")]) < 0.05
    assert not [name for name in table.columns if name.startswith("less_")]
    monkeypatch.setattr(passes, "revisions", lambda settings, default="last": [None])
    assert activations.over_training(settings).empty
