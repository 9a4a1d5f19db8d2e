"""Null curves of positions, and the measured head against them; token-frequency neurons, and what is no more than influence;
the table of one training seed, and their spread."""

import numpy as np
import pandas as pd
import pytest

from rare_token_neurons import files, keys, settings as parameters
from rare_token_neurons.curve import calibration, changepoints, nulls
from rare_token_neurons.embedded.mini_pythia import seeds
from rare_token_neurons.models import checkpoints
from rare_token_neurons.statistics import documents as over_documents
from rare_token_neurons.tables import checkpoints as passes, influence as influences, nulls as null_tables, rare_tokens, stage


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
        found = nulls.compare(*measured, null_tables.resampled(*over_documents.by_document(other, theirs), "split_half", rng))
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
    assert null_tables.share([2.0, 2.0, 1.0, 0.0], [0.5, 2.0, 1.5, 0.0]) == pytest.approx([0.75, 0.0, -0.5, np.nan], nan_ok=True)


def scored(n=200, seed=0, **scores):
    """Neurons whose share through the unigram direction is their influence, and whose other scores are of no size or given."""
    rng = np.random.default_rng(seed)
    influence = rng.lognormal(size=n)
    made = {"neuron": np.arange(n), "influence": influence, "kl": rng.normal(size=n), "entropy": rng.normal(size=n),
            "unigram_share": influence / influence.max(), "scale_share": rng.random(n),
            "side": np.where(np.arange(n) % 4, "boost", "suppress"), "rare": influence >= np.sort(influence)[-10]}
    return pd.DataFrame(made | {name: score(influence, rng) for name, score in scores.items()})


def in_proportion(influence, rng):
    """A score that says nothing but how large the neuron's effect is, up to 5 %."""
    return -influence * np.exp(0.05 * rng.normal(size=len(influence)))


def test_overlap_is_whole_where_share_is_influence_and_chance_where_not():
    found = null_tables.overlaps(scored()).set_index(["score", "side"])
    assert (found.loc["unigram_share", "shared"] == found.loc["unigram_share", "k"]).all()
    assert found.loc[("unigram_share", "all"), "correlation"] == pytest.approx(1)
    assert found.loc[("unigram_share", "all"), "p"] < 1e-6 and found.loc[("scale_share", "all"), "p"] > 0.01
    assert found.loc[("entropy", "all"), "chance"] == pytest.approx(0.5)
    assert found.loc[("kl", "boost"), "neurons"] == 150 and found.loc[("kl", "suppress"), "k"] == 2
    for share in ("unigram_share", "scale_share"):
        assert (found.loc[share, "relative"] == found.loc[share, "shared"]).all()


def test_scores_that_only_grow_with_influence_share_all_and_test_nothing():
    runs = [null_tables.overlaps(scored(seed=seed, kl=in_proportion)).set_index(["score", "side"]).loc[("kl", "all")]
            for seed in range(40)]
    shared, relative, p = (np.array([run[name] for run in runs]) for name in ("shared", "relative", "p"))
    assert (shared >= runs[0]["k"] - 3).all()
    assert relative.mean() == pytest.approx(runs[0]["chance"], abs=0.4) and np.mean(p < 0.05) <= 0.1


def test_scores_beyond_their_influence_are_found_with_their_sign():
    def more(influence, rng):
        return in_proportion(influence, rng) * np.where(influence >= np.sort(influence)[-10], 2, 1)

    row = null_tables.overlaps(scored(kl=more)).set_index(["score", "side"]).loc[("kl", "all")]
    assert row["relative"] == row["k"] == 10 and row["p"] < 1e-6
    assert row["group"] == pytest.approx(-2, abs=0.1) and row["others"] == pytest.approx(-1, abs=0.1)


def test_neurons_without_influence_have_no_score_per_nat():
    silent = scored(kl=in_proportion)
    silent.loc[silent["influence"].nsmallest(50).index, ["influence", "kl", "entropy"]] = 0.0
    found = null_tables.overlaps(silent)
    assert null_tables.per_nat(silent, "kl").isna().sum() == 50
    assert found.loc[found["side"] == "all", ["group", "others"]].notna().all(axis=None)


# ---- training seeds

FOLDER = "data/cache/mini-pythia-seed1-steps1536"


def test_the_folder_names_seed_and_steps():
    assert seeds.name_of(FOLDER) == (1, 1536) and "SEED=1 STEPS=1536" in null_tables.commands(1) and FOLDER in null_tables.commands(1)
    with pytest.raises(ValueError, match="ends in seed<S>-steps<N>"):
        seeds.name_of("data/mini-pythia")


def test_the_table_holds_curve_and_phases_and_is_read_back(monkeypatch, tmp_path):
    sums, counts = calibration.measured(calibration.planted(400), np.random.default_rng(0))
    changes, families = changepoints.bootstrap(sums, counts, draws=40, splits=5), nulls.families(sums, counts, draws=40, splits=5)
    monkeypatch.setattr(checkpoints, "revisions", lambda _: ["step0", "step1536"])
    monkeypatch.setattr(influences, "fitted", lambda *_: (None, changes, families, (sums, counts)))
    made = seeds.table(FOLDER)
    assert set(made["group"]) == {"rare", "common"} and (made["seed"] == 1).all() and (made["steps"] == 1536).all()
    rare = made[made["group"] == "rare"]
    assert rare["rank"].is_unique and rare["influence"].iloc[0] == pytest.approx(changes.curve[0])
    assert rare["plateau_end"].iloc[0] == changes.boundaries[0] and (rare["low"] <= rare["high"]).all()
    for seed in (1, 2):
        files.write_table(tmp_path / f"seed{seed}.parquet", made.assign(seed=seed, kappa=float(seed)))
    both = null_tables.collected(tmp_path)
    assert sorted(both["seed"].unique()) == [1, 2]
    assert null_tables.spread(both).loc["kappa", ["mean", "min", "max"]].tolist() == [1.5, 1, 2]
    assert not len(null_tables.collected(tmp_path / "nowhere"))
