"""The table of one training seed, and the heads of curves that are stored without their documents."""

import numpy as np
import pandas as pd
import pytest

from rare_token_neurons import files, paths, settings as parameters
from rare_token_neurons.curve import calibration, heads, stored
from rare_token_neurons.embedded.mini_pythia import seeds
from rare_token_neurons.models import checkpoints
from rare_token_neurons.tables import influence as influences

FOLDER = "data/cache/mini-pythia-seed1-steps1536"


def test_the_folder_names_seed_and_steps():
    assert seeds.name_of(FOLDER) == (1, 1536)
    with pytest.raises(ValueError, match="ends in seed<S>-steps<N>"):
        seeds.name_of("data/mini-pythia")


def plant():
    """A law with a shelf of 30 neurons, raised by an e-fold: sums and counts of its documents."""
    rng = np.random.default_rng(0)
    return calibration.measured(calibration.shelf(rng.uniform(0, 600, 600), 30, 1.0), rng)


def test_the_table_holds_curve_and_heads(monkeypatch):
    found = influences.fit(*plant(), parameters.check({"model": "mini-pythia"}))
    monkeypatch.setattr(checkpoints, "revisions", lambda _: ["step0", "step1536"])
    monkeypatch.setattr(influences, "fitted", lambda *_: found)
    made = seeds.table(FOLDER)
    assert set(made["group"]) == {"rare", "common"} and (made["seed"] == 1).all() and (made["steps"] == 1536).all()
    rare, measured = made[made["group"] == "rare"], found[0]
    assert rare["rank"].is_unique and rare["influence"].iloc[0] == measured.curve[0]
    assert (rare["low"] <= rare["high"]).all()
    row = rare.iloc[0]
    assert (row["delta"], row["kappa"]) == (measured.own["fixed"].delta[0], measured.own["fixed"].kappa[0])
    assert (row["fitted_delta"], row["fitted_head"]) == (measured.own["fitted"].delta[0],
                                                         measured.own["fitted"].size[0])
    assert (row["delta_low"], row["delta_high"]) == measured.interval("fixed", "delta")
    assert row["fitted_word"] == found[1]["fitted"].word == "plateau" and row["fitted_delta_low"] > 0
    assert row["ratio"] == pytest.approx(measured.curve[:11].mean() / np.median(measured.curve))
    assert stored.completed(made) is made


def test_a_stored_curve_gives_the_heads_back_without_intervals_and_words():
    curve = heads.measure(*plant(), draws=2).curve
    ranks = np.unique(np.geomspace(1, 600, 100).round().astype(int))
    again = stored.interpolated(ranks, curve[ranks - 1], 600)
    assert again[ranks - 1] == pytest.approx(curve[ranks - 1]) and np.abs(np.log(again / curve)).mean() < 0.05
    old = pd.DataFrame({name: 1 for name in stored.KEPT} | {"rank": ranks, "influence": curve[ranks - 1],
                                                            "neurons": 600, "group": "rare", "departure": -9.0})
    made = stored.completed(old)
    assert "departure" not in made and made["word"].eq("").all()
    assert made[["delta_low", "fitted_delta_high"]].isna().all(axis=None)
    for head, prefix in stored.HEADS.items():
        assert made[f"{prefix}delta"].unique() == pytest.approx(heads.find(curve, head).delta, abs=0.05)
    assert len(stored.completed(old.iloc[:0])) == 0


def test_the_committed_tables_have_a_delta_each():
    for path in sorted(paths.MINI_PYTHIA_SEEDS.glob("seed*.parquet")):
        made = stored.completed(files.read_table(path))
        one = made.groupby("group")[["delta", "fitted_delta", "kappa", "ratio"]].agg(["nunique", "first"])
        assert len(one) == 2 and np.isfinite(one.to_numpy()).all()
        assert (one.xs("nunique", axis=1, level=1) == 1).all(axis=None)
