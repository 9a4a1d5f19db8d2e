"""The table of one training seed, and their spread."""


import numpy as np

import pytest

from rare_token_neurons import files
from rare_token_neurons.curve import calibration, changepoints, nulls
from rare_token_neurons.embedded.mini_pythia import seeds
from rare_token_neurons.models import checkpoints
from rare_token_neurons.tables import influence as influences, nulls as null_tables

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
