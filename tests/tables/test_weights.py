"""Which weights are a neuron's; groups and what they are matched on; spectra at the ends of training, where a planted
heavy tail appears and noise shows nothing; names of layers."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from planted import HEAD, NEURONS, phase_rows

from rare_token_neurons import settings as parameters
from rare_token_neurons.statistics import controls, spectra as spectra_of
from rare_token_neurons.tables import checkpoints as passes, influence as influences, rare_tokens, weights


@pytest.mark.parametrize("kind, names", [("neox-parallel", ["in", "out"]), ("llama-tied", ["gate", "up", "out"])])
def test_rows_are_neurons(tiny, kind, names):
    subject = tiny(kind)
    found = weights.rows_of(subject)
    assert list(found) == names and all(part.shape == (48, 32) for part in found.values())
    neuron, mlp = 7, (subject.model.gpt_neox if "neox" in kind else subject.model.model).layers[-1].mlp
    write, read = (mlp.dense_4h_to_h, mlp.dense_h_to_4h) if "neox" in kind else (mlp.down_proj, mlp.gate_proj)
    one = torch.zeros(48)
    one[neuron] = 1.0
    assert np.abs(found["out"][neuron]) == pytest.approx(np.abs((write.weight @ one).numpy()))
    assert found[names[0]][neuron] == pytest.approx(read.weight[neuron].numpy())


def test_rows_of_a_gated_neuron_do_not_depend_on_its_sign(tiny):
    subject = tiny("llama-tied")
    before = weights.rows_of(subject)
    subject.w_in["up"][::2] *= -1
    subject.w_out[:, ::2] *= -1
    after = weights.rows_of(subject)
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    raw = subject.w_in["up"].numpy()
    assert (np.abs(after["up"] - raw).max(axis=1) == 0).any() and (np.abs(after["up"] + raw).max(axis=1) == 0).any()


# ---- groups and what they are matched on


@pytest.fixture
def grouped(planted_model, monkeypatch):
    """The planted model with input weights, and documents of which all are half A."""
    rng = np.random.default_rng(0)
    subject = SimpleNamespace(**vars(passes.subject(planted_model, "step1")), n_neurons=NEURONS, d_model=120,
                              w_in={"in": torch.from_numpy(rng.normal(size=(NEURONS, 120)))})
    subject.w_in["in"][HEAD] *= 1.5
    subject.w_out = torch.from_numpy(rng.normal(size=(120, NEURONS)) * rng.uniform(1, 3, NEURONS))
    monkeypatch.setattr(passes, "subject", lambda settings, revision: subject)
    monkeypatch.setattr(passes, "load", lambda settings, revision: subject)
    places = pd.DataFrame({"block": range(40), "t": 3, "document": range(40), "half": ["A", "B"] * 20,
                           "group": np.repeat(["rare", "common"], 20)})
    monkeypatch.setattr(rare_tokens, "positions", lambda settings: places)
    sums = SimpleNamespace(documents=torch.arange(40), n=torch.ones(40),
                           abs_sum=torch.from_numpy(rng.random((40, NEURONS))))
    monkeypatch.setattr(influences, "influence_sums", lambda settings, revision, group: sums)
    for name, few in (("DRAWS", 40), ("FITS", 9), ("SPECTRA", 5)):
        monkeypatch.setattr(weights, name, few)
    weights.rare_and_random.cache_clear()
    weights.look_alikes.cache_clear()
    yield planted_model
    weights.rare_and_random.cache_clear()
    weights.look_alikes.cache_clear()


def test_the_head_is_a_group_where_it_is_raised_and_neither_small_nor_large(grouped, monkeypatch):
    assert set(weights.chosen_groups(grouped, "step1", 120)) == {"rare", "common", "head"}
    group, anew = weights.chosen_groups(grouped, "step1", 120)["head"]
    assert group.tolist() == HEAD.tolist() and anew.shape == (9, 30)
    assert set(weights.chosen_groups(grouped, "step1", 119)) == {"rare", "common"}
    monkeypatch.setattr(influences, "phases", lambda settings: phase_rows(["step1"], "rounded"))
    assert set(weights.chosen_groups(grouped, "step1", 120)) == {"rare", "common"}


def test_groups_are_matched_on_the_norms_of_their_own_matrix_and_never_touch_the_head(grouped, matched):
    table = weights.weight_groups(grouped)
    assert set(table["group"]) == {"rare", "common", "head"} and set(table["matrix"]) == {"in", "out"}
    assert "imbalance_scale" not in table and table["imbalance_norm"].notna().all()
    assert table.loc[table["group"] == "rare", "positions"].eq(10).all()
    rows = weights.rows_of(passes.load(grouped, ""))
    norm = {name: np.log(np.linalg.norm(part, axis=1)) for name, part in rows.items()}
    assert len(matched) == 8  # four of groups and rows, two matrices each
    for (group, groups), name in zip(matched, ["in", "out"] * 4):
        assert not np.isin(groups, np.union1d(HEAD, group)).any()
        missed = norm[name][group].mean() - norm[name][groups].mean()
        found = table[(table["matrix"] == name) & (table["size"] == len(group))]["imbalance_norm"]
        assert np.isclose(found, missed / norm[name].std()).any()
    rare = table[(table["group"] == "rare") & (table["statistic"]
                                               == "alpha_hill")].set_index("matrix")["imbalance_norm"]
    assert (rare["in"] > controls.POOR_MATCH).all()  # the head has the largest rows of W_in
    assert (rare["out"].abs() < 0.1).all()


def test_spectra_over_training_have_matched_groups_without_the_head(grouped, matched):
    table = weights.weight_eigenvalues(grouped)
    draws = table.groupby(["step", "kind"])["draw"].nunique()
    assert (draws[:, "matched"] == 5).all() and draws[:, "matched"].index.tolist() == [0, 1]
    curves = weights.weight_hill_curves(grouped)
    assert (curves["matched_low"] <= curves["matched_high"]).all() and curves["matched_mean"].notna().all()
    assert len(matched) == 4 and not any(np.isin(groups, HEAD).any() for _, groups in matched)


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
    monkeypatch.setattr(weights, "look_alikes", lambda settings, revision: {"in": found[revision][2][::-1]})
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
        (step, kind): 1 if kind == "rare" else 10
        for step in ("step0", "step9") for kind in ("rare", "random", "shuffled", "matched")}
    rare = table[(table["kind"] == "rare") & (table["revision"] == "step9")]
    assert rare["eigenvalue"].to_numpy() == pytest.approx(spectra_of.eigenvalues(planted["step9"][0]["in"][:24]))
    assert (rare["columns"] == 90).all() and set(table["step"]) == {0, 9}


def test_the_hill_plot_leaves_the_band_only_where_a_tail_was_planted(planted):
    table = weights.weight_hill_curves(SETTINGS).set_index("revision")
    below = table["value"] < table["random_low"]
    assert below[table["k"] <= 16].loc["step9"].all() and below.loc["step0"].mean() < 0.2
    own = spectra_of.eigenvalues(planted["step9"][0]["in"][:24])
    assert (table.loc["step9", "chosen"] == spectra_of.tail_size(own)).all() and len(table.loc["step9"]) == 23
    assert (table["random_low"] <= table["random_mean"]).all()
    assert (table["shuffled_mean"] <= table["shuffled_high"]).all()


def test_the_power_law_test_sees_random_groups_and_shuffles_too(planted):
    table = weights.weight_power_laws(SETTINGS)
    counts = table.groupby(["revision", "kind"]).size()
    assert counts["step9", "rare"] == 1 and counts["step9", "random"] == counts["step9", "shuffled"] == weights.TESTED
    rare = table[(table["kind"] == "rare") & (table["revision"] == "step9")].iloc[0]
    assert rare["alpha"] == pytest.approx(2, abs=0.4) and rare["p_fit"] > 0.1 and rare["verdict"] != "rejected"


# ---- layer by layer


def test_layers_by_name():
    assert weights.layer_of("gpt_neox.layers.2.mlp.dense_h_to_4h") == (2, "mlp.dense_h_to_4h")
    assert weights.layer_of("model.layers.29.self_attn.q_proj") == (29, "self_attn.q_proj")
    assert weights.layer_of("embed_out") == (-1, "embed_out")
