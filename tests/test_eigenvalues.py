"""Spectra of the rare group at the ends of training: a planted heavy tail appears, noise shows nothing."""

import numpy as np
import pandas as pd
import pytest

from rare_token_neurons.statistics import controls, spectra as spectra_of
from rare_token_neurons.tables import weights


@pytest.fixture
def planted(monkeypatch):
    """Gaussian weights at "step0"; at "step9" the rare group's eigenvalues are Pareto."""
    rng = np.random.default_rng(0)
    first, group = rng.normal(size=(300, 90)), np.arange(24)
    plain = controls.random_groups(np.arange(24, 300), 24, 120)
    last = first.copy()
    left, right = np.linalg.qr(rng.normal(size=(24, 24)))[0], np.linalg.qr(rng.normal(size=(90, 24)))[0]
    last[:24] = left @ np.diag(np.sqrt(90 / (1 - (np.arange(24) + 0.5) / 24))) @ right.T
    found = [("step0", {"in": first}, group, plain), ("step9", {"in": last}, group, plain)]
    monkeypatch.setattr(weights, "ends", lambda settings: found)
    monkeypatch.setattr(weights, "weight_stage", lambda settings, name, compute, modules: compute())
    return found


class Settings:
    seed = 0


def test_eigenvalues_are_relative_to_those_of_random_groups(planted):
    table = weights.weight_eigenvalues(Settings, kept=10)
    random = table[table["kind"] == "random"]
    assert random.groupby("revision")["relative"].mean().to_numpy() == pytest.approx(1)
    assert table.groupby(["revision", "kind"])["draw"].nunique().to_dict() == {
        (step, kind): 1 if kind == "rare" else 10 for step in ("step0", "step9") for kind in ("rare", "random", "shuffled")}
    rare = table[(table["kind"] == "rare") & (table["revision"] == "step9")]
    assert rare["eigenvalue"].to_numpy() == pytest.approx(spectra_of.eigenvalues(planted[1][1]["in"][:24]))
    assert (rare["columns"] == 90).all() and set(table["step"]) == {0, 9}


def test_the_hill_plot_leaves_the_band_only_where_a_tail_was_planted(planted):
    table = weights.weight_hill_curves(Settings).set_index("revision")
    below = table["value"] < table["random_low"]
    assert below[table["k"] <= 16].loc["step9"].all() and below.loc["step0"].mean() < 0.2
    own = spectra_of.eigenvalues(planted[1][1]["in"][:24])
    assert (table.loc["step9", "chosen"] == spectra_of.tail_size(own)).all() and len(table.loc["step9"]) == 23
    assert (table["random_low"] <= table["random_mean"]).all() and (table["shuffled_mean"] <= table["shuffled_high"]).all()


def test_the_power_law_test_sees_random_groups_and_shuffles_too(planted):
    table = weights.weight_power_laws(Settings)
    counts = table.groupby(["revision", "kind"]).size()
    assert counts["step9", "rare"] == 1 and counts["step9", "random"] == counts["step9", "shuffled"] == weights.TESTED
    rare = table[(table["kind"] == "rare") & (table["revision"] == "step9")].iloc[0]
    assert rare["alpha"] == pytest.approx(2, abs=0.4) and rare["p_fit"] > 0.1 and rare["verdict"] != "rejected"


def test_weightwatcher_counts_the_planted_spikes(planted, monkeypatch):
    monkeypatch.setattr(weights, "SLOW", 2)
    table = weights.weight_bulk_fits(Settings).set_index(["revision", "kind"])
    assert len(table) == 6 and isinstance(table, pd.DataFrame)
    assert table.loc[("step9", "rare"), "num_spikes"].item() > table.loc[("step9", "random"), "num_spikes"].max()
    assert table.loc[("step9", "rare"), "rand_distance"].item() > table.loc[("step9", "random"), "rand_distance"].max()
    assert (table["num_traps"] == 0).all()
