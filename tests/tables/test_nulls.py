"""Null curves of positions, and the measured head against them; shares of token-frequency neurons; the table of one training
seed."""

import numpy as np
import pytest

from rare_token_neurons import keys, settings as parameters
from rare_token_neurons.curve import calibration, changepoints, nulls
from rare_token_neurons.embedded.mini_pythia import seeds
from rare_token_neurons.models import checkpoints
from rare_token_neurons.statistics import documents as over_documents
from rare_token_neurons.tables import checkpoints as passes, influence as influences, nulls as null_tables
from rare_token_neurons.tables import rare_tokens, stage


def effects(n=300, neurons=200, documents=40, seed=0, truth=None):
    """Absolute changes (n, neurons) around a lognormal (or given) influence, and documents (n,)."""
    rng = np.random.default_rng(seed)
    truth = np.exp(rng.standard_normal(neurons)) if truth is None else truth
    return truth * rng.lognormal(-0.5, 1.0, (n, neurons)), rng.integers(0, documents, n)


def test_shuffled_labels_take_so_many_positions_from_both_kinds():
    values, owners = effects()
    values[:] = np.arange(len(values))[:, None] >= 150  # 1 where the position is common
    rng = np.random.default_rng(0)
    curves = null_tables.relabelled(values, owners, 150, "same_tokens", rng)
    assert curves.shape == (null_tables.DRAWS, 200) and curves.mean() == pytest.approx(0.5, abs=0.02)
    assert curves.mean(axis=1).std() > 0.01  # another draw each time
    assert (np.diff(curves, axis=1) <= 0).all()


def test_alike_positions_give_no_verdict_and_a_planted_plateau_does():
    truth = calibration.planted(400)
    rare, owners = effects(400, 400, truth=truth)
    same, others = effects(400, 400, truth=truth, seed=1)
    rng = np.random.default_rng(0)
    x, y, curve = null_tables.measured(*over_documents.by_document(rare, owners), "split_half", rng)
    alike = nulls.compare(x, y, null_tables.resampled(*over_documents.by_document(same, others), "split_half", rng))
    assert alike.p_plateau > 0.05 and alike.p_outliers > 0.05
    told = 0
    for seed in range(2, 14, 2):
        (one, mine), (other, theirs) = (effects(400, 400, truth=truth, seed=seed + part) for part in (0, 1))
        measured = null_tables.measured(*over_documents.by_document(one, mine), "split_half", rng)[:2]
        sums = over_documents.by_document(other, theirs)
        found = nulls.compare(*measured, null_tables.resampled(*sums, "split_half", rng))
        told += 2 * min(found.p_plateau, found.p_outliers) < 0.05
    assert told <= 1
    straight = np.arange(1, 401.0) ** -0.7
    law = over_documents.by_document(*effects(400, 400, truth=straight, seed=2))
    lawful = nulls.compare(x, y, null_tables.resampled(*law, "split_half", rng))
    assert lawful.p_plateau < 0.05
    assert np.corrcoef(np.log(curve), np.log(truth))[0, 1] > 0.98


@pytest.fixture
def keyed(monkeypatch):
    """What decides each table that is asked for; none is made."""
    found = []
    monkeypatch.setattr(keys, "key", lambda decide, inputs, modules: found.append((decide, inputs)))
    monkeypatch.setattr(stage, "table_at", lambda *arguments, **options: None)
    return found


@pytest.mark.parametrize("known, expected", [(["step0", "step9"], {"step9", "step0"}), (["step9"], {"step9"}),
                                             (["step0"], {"step0"}), ([], {""})])
def test_the_untrained_checkpoint_decides_the_nulls_where_there_is_one(monkeypatch, keyed, known, expected):
    asked = []
    monkeypatch.setattr(checkpoints, "revisions", lambda model: asked.append(model) or known)
    monkeypatch.setattr(checkpoints, "model_hash", lambda model, revision: f"{model} at {revision}")
    monkeypatch.setattr(rare_tokens.Text, "inputs", lambda settings: {"corpus": "text"})
    monkeypatch.setattr(passes, "revisions", lambda settings, default="last": known[-1:] or [None])
    for function in (null_tables.null_heads, null_tables.null_bands):
        function(parameters.check({"model": "smollm2"}))
        asked.clear()
        function(parameters.check({"model": "smollm2", "recompute": "never"}))  # tables are read, no model is asked for
        assert not asked
    made = {"corpus": "text"} | {name: f"smollm2 at {name or None}" for name in expected}
    assert [inputs for _, inputs in keyed] == [made, {}, made, {}]


def test_the_promises_depend_on_their_number_and_the_seed_alone(keyed):
    for values in ({}, {"model": "mini-pythia"}, {"positions": 1_000, "ablation": "zero"}, {"positions": 999}, {"seed": 1}):
        null_tables.promises(parameters.check({"model": "smollm2"} | values))
    usual = ({"seed": 0}, {"runs": 100})
    assert keyed == [usual] * 3 + [({"seed": 0}, {"runs": 10}), ({"seed": 1}, {"runs": 100})]


# ---- token-frequency neurons


def test_shares_say_what_vanishes():
    found = null_tables.share([2.0, 2.0, 1.0, 0.0], [0.5, 2.0, 1.5, 0.0])
    assert found == pytest.approx([0.75, 0.0, -0.5, np.nan], nan_ok=True)


# ---- training seeds

FOLDER = "data/cache/mini-pythia-seed1-steps1536"


def test_the_folder_names_seed_and_steps():
    assert seeds.name_of(FOLDER) == (1, 1536)
    with pytest.raises(ValueError, match="ends in seed<S>-steps<N>"):
        seeds.name_of("data/mini-pythia")


def test_the_table_holds_curve_and_phases(monkeypatch):
    sums, counts = calibration.measured(calibration.planted(400), np.random.default_rng(0))
    changes = changepoints.bootstrap(sums, counts, draws=40, splits=5)
    families = nulls.families(sums, counts, draws=40, splits=5)
    monkeypatch.setattr(checkpoints, "revisions", lambda _: ["step0", "step1536"])
    monkeypatch.setattr(influences, "fitted", lambda *_: (None, changes, families, (sums, counts)))
    made = seeds.table(FOLDER)
    assert set(made["group"]) == {"rare", "common"} and (made["seed"] == 1).all() and (made["steps"] == 1536).all()
    rare = made[made["group"] == "rare"]
    assert rare["rank"].is_unique and rare["influence"].iloc[0] == pytest.approx(changes.curve[0])
    assert rare["plateau_end"].iloc[0] == changes.boundaries[0] and (rare["low"] <= rare["high"]).all()
