"""Which weights are a neuron's; spectra at the ends of training, where a planted heavy tail appears and noise shows
nothing; names of layers."""

import numpy as np
import pandas as pd
import pytest
import torch

from rare_token_neurons import settings as parameters
from rare_token_neurons.statistics import controls, spectra as spectra_of
from rare_token_neurons.tables import checkpoints as passes, weights


@pytest.mark.parametrize("kind, names", [("neox-parallel", ["in", "out"]), ("llama-tied", ["gate", "up", "out"])])
def test_rows_are_neurons(tiny, kind, names):
    subject = tiny(kind)
    found = weights.rows_of(subject)
    assert list(found) == names and all(part.shape == (48, 32) for part in found.values())
    neuron, mlp = 7, (subject.model.gpt_neox if "neox" in kind else subject.model.model).layers[-1].mlp
    write, read = (mlp.dense_4h_to_h, mlp.dense_h_to_4h) if "neox" in kind else (mlp.down_proj, mlp.gate_proj)
    one = torch.zeros(48)
    one[neuron] = 1.0
    assert found["out"][neuron] == pytest.approx((write.weight @ one).numpy())
    assert found[names[0]][neuron] == pytest.approx(read.weight[neuron].numpy())


# ---- first and last checkpoint


@pytest.fixture
def planted(computed, monkeypatch):
    """Gaussian weights at "step0"; at "step9" the rare group's eigenvalues are Pareto."""
    rng = np.random.default_rng(0)
    first, group = rng.normal(size=(300, 90)), np.arange(24)
    plain = controls.random_groups(np.arange(24, 300), 24, 120)
    last = first.copy()
    left, right = np.linalg.qr(rng.normal(size=(24, 24)))[0], np.linalg.qr(rng.normal(size=(90, 24)))[0]
    last[:24] = left @ np.diag(np.sqrt(90 / (1 - (np.arange(24) + 0.5) / 24))) @ right.T
    found = {"step0": ({"in": first}, group, plain), "step9": ({"in": last}, group, plain)}
    monkeypatch.setattr(weights, "rare_and_random", lambda settings, revision: found[revision])
    monkeypatch.setattr(passes, "revisions", lambda settings, default: ["step0", "step4", "step9"])
    return found


SETTINGS = parameters.check({"model": "mini-pythia"})


def test_the_ends_of_training_are_one_where_there_is_one_checkpoint(monkeypatch):
    for every, ends in ((["step0", "step4", "step9"], ["step0", "step9"]), (["step3"], ["step3"]), ([None], [None])):
        monkeypatch.setattr(passes, "revisions", lambda settings, default: every)
        assert [revision for revision, _ in weights.ENDS.walk(SETTINGS)] == ends


def test_eigenvalues_are_relative_to_those_of_random_groups(planted, monkeypatch):
    monkeypatch.setattr(weights, "SPECTRA", 10)
    table = weights.weight_eigenvalues(SETTINGS)
    random = table[table["kind"] == "random"]
    assert random.groupby("revision")["relative"].mean().to_numpy() == pytest.approx(1)
    assert table.groupby(["revision", "kind"])["draw"].nunique().to_dict() == {
        (step, kind): 1 if kind == "rare" else 10 for step in ("step0", "step9") for kind in ("rare", "random", "shuffled")}
    rare = table[(table["kind"] == "rare") & (table["revision"] == "step9")]
    assert rare["eigenvalue"].to_numpy() == pytest.approx(spectra_of.eigenvalues(planted["step9"][0]["in"][:24]))
    assert (rare["columns"] == 90).all() and set(table["step"]) == {0, 9}


def test_the_hill_plot_leaves_the_band_only_where_a_tail_was_planted(planted):
    table = weights.weight_hill_curves(SETTINGS).set_index("revision")
    below = table["value"] < table["random_low"]
    assert below[table["k"] <= 16].loc["step9"].all() and below.loc["step0"].mean() < 0.2
    own = spectra_of.eigenvalues(planted["step9"][0]["in"][:24])
    assert (table.loc["step9", "chosen"] == spectra_of.tail_size(own)).all() and len(table.loc["step9"]) == 23
    assert (table["random_low"] <= table["random_mean"]).all() and (table["shuffled_mean"] <= table["shuffled_high"]).all()


def test_the_power_law_test_sees_random_groups_and_shuffles_too(planted):
    table = weights.weight_power_laws(SETTINGS)
    counts = table.groupby(["revision", "kind"]).size()
    assert counts["step9", "rare"] == 1 and counts["step9", "random"] == counts["step9", "shuffled"] == weights.TESTED
    rare = table[(table["kind"] == "rare") & (table["revision"] == "step9")].iloc[0]
    assert rare["alpha"] == pytest.approx(2, abs=0.4) and rare["p_fit"] > 0.1 and rare["verdict"] != "rejected"


def test_weightwatcher_counts_the_planted_spikes(planted, monkeypatch):
    monkeypatch.setattr(weights, "SLOW", 2)
    table = weights.weight_bulk_fits(SETTINGS).set_index(["revision", "kind"])
    assert len(table) == 6 and isinstance(table, pd.DataFrame)
    assert table.loc[("step9", "rare"), "num_spikes"].item() > table.loc[("step9", "random"), "num_spikes"].max()
    assert table.loc[("step9", "rare"), "rand_distance"].item() > table.loc[("step9", "random"), "rand_distance"].max()
    assert (table["num_traps"] == 0).all()


# ---- layer by layer


def test_layers_by_name():
    assert weights.layer_of("gpt_neox.layers.2.mlp.dense_h_to_4h") == (2, "mlp.dense_h_to_4h")
    assert weights.layer_of("model.layers.29.self_attn.q_proj") == (29, "self_attn.q_proj")
    assert weights.layer_of("embed_out") == (-1, "embed_out")
