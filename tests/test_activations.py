"""The tables of notebook 05, and those over training, on planted activations without a model."""

import numpy as np
import pytest
from planted import ENDS, NEURONS, ORDER, PLANTED, SIZE, TOKENS, influence_rows, phase_rows, settings  # noqa: F401

from rare_token_neurons.tables import activations, checkpoints as passes

LIVING = np.setdiff1d(np.arange(NEURONS), [100])


def test_groups_are_slices_of_the_ranking_without_constant_neurons():
    made = activations.groups(influence_rows(), ENDS, LIVING)
    assert list(made["rare"]) == list(PLANTED[1:])
    assert set(made["plateau"]) == set(ORDER[: ENDS[0]]) - {100}
    for name, part in (("power law", ORDER[ENDS[0]: ENDS[1]]), ("decay", ORDER[ENDS[1]:])):
        assert made[name].shape == (activations.PHASE_SAMPLES, SIZE - 1) and np.isin(made[name], part).all()
        assert len(np.unique(made[name])) > 10 * SIZE


def test_empty_and_small_phases_are_left_out_and_the_rare_group_is_no_sample_of_a_phase():
    made = activations.groups(influence_rows(), (0, NEURONS), LIVING)
    assert set(made) == {"rare", "power law"} and not np.isin(made["power law"], PLANTED).any()
    assert "plateau" not in activations.groups(influence_rows(), (activations.LEAST_PLATEAU, NEURONS), LIVING)  # one is dead
    assert "plateau" in activations.groups(influence_rows(), (activations.LEAST_PLATEAU + 1, NEURONS), LIVING)


def test_phases_end_where_the_change_points_on_rare_targets_say():
    assert tuple(activations.phase_ends(phase_rows(["step0", "step1"]), "step1")) == ENDS
    assert tuple(activations.phase_ends(phase_rows([""]), None)) == ENDS


def test_planted_group_has_fewer_dimensions(settings):  # noqa: F811
    table = activations.activation_dimension(settings)
    assert set(table["where"]) == {"rare", "all"} and set(table["constant"]) == {1}
    rare = table[(table["group"] == "rare") & (table["statistic"] == "effective dimension")]
    assert (rare["size"] == SIZE - 1).all() and (rare["tokens"] == TOKENS).all() and (rare["documents"] == 20).all()
    for kind in ("random", "matched"):
        assert (rare[f"p_{kind}"] < 0.01).all() and (rare[f"less_{kind}_high"] < 0).all()
    phase = table[table["group"] == "decay"]
    assert phase["p_random"].isna().all() and phase["matched"].isna().all() and phase["value"].notna().all()
    assert phase["value"].between(phase["random_low"], phase["random_high"]).all()


def test_variance_curves_end_at_one_and_lie_above_random(settings):  # noqa: F811
    table = activations.activation_variance(settings)
    assert set(table["group"]) == {"rare", "plateau"}
    rare = table[(table["group"] == "rare") & (table["where"] == "all")]
    assert list(rare["components"]) == list(range(1, SIZE)) and rare["value"].iloc[-1] == pytest.approx(1)
    assert (rare["value"].iloc[:8] > rare["random_high"].iloc[:8]).all()


def test_over_training_follows_the_groups(settings, monkeypatch):  # noqa: F811
    table = activations.activations_over_training(settings)
    mean = table.query("relation == 'within' and measure == 'correlation' and statistic == 'mean' and where == 'rare'")
    value = mean.set_index(["step", "group"])["value"]
    assert value[(1, "rare")] > 0.3 and abs(value[(0, "rare")]) < 0.05 and abs(value[(0, "last rare")]) < 0.05
    assert not [name for name in table.columns if name.startswith("less_")]
    assert set(table.loc[table["relation"] == "between", "where"]) == {"rare"}
    monkeypatch.setattr(passes, "revisions", lambda settings, default="last": [None])
    assert activations.activations_over_training(settings).empty
