"""A planted training: phases are told when they are there and judged by their gain; who is on top, and where they stood."""

import numpy as np
import pandas as pd
import pytest
from story import NEURONS, SIZE, STEPS, tell

from rare_token_neurons.curve import calibration, changepoints, piecewise
from rare_token_neurons.figures.emergence import first_told, when_told
from rare_token_neurons.statistics import claims, powerlaws
from rare_token_neurons.tables import claims as claim_tables, emergence


@pytest.fixture(scope="module")
def settings():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emergence, "NULL_DRAWS", 40)
        yield tell(patch)


@pytest.fixture(scope="module")
def phases(settings):
    return emergence.emergence_phases(settings)


def test_planted_phases_are_told_from_the_step_at_which_they_come(phases):
    rare = phases[(phases["group"] == "rare") & (phases["rule"] == "change points")].set_index("step")
    assert not rare.loc[0, "told_plateau"] and rare.loc[[16, 64], ["told_plateau", "told_decay"]].all(axis=None)
    assert rare.loc[64, "plateau"] == pytest.approx(calibration.HEAD / NEURONS, rel=0.4)
    assert rare.loc[64, "kappa"] == pytest.approx(calibration.SLOPES[1], abs=0.1) and abs(rare.loc[0, "kappa"]) < 0.1
    assert (rare["p_head"] <= 0.05).equals(rare["beyond_null"]) and rare.loc[64, "beyond_null"]
    assert np.allclose(phases[["plateau", "power_law", "decay"]].sum(axis=1), 1)


def test_when_a_phase_is_told_first_and_for_good(phases):
    when = when_told(phases)
    assert when.loc[("change points", "rare", "plateau")].tolist() == [16, 16]
    assert when.loc[("change points", "rare", "plateau beyond chance")].tolist() == [16, 16]
    assert when.loc[("change points", "common", "plateau")].tolist() == [0, 0]
    shuffled = phases.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(when_told(shuffled), when)


def test_every_bootstrap_sample_of_the_law_finds_its_own_range(settings, monkeypatch):
    fit = changepoints.Fit({}, {}, (0, 0), *3 * [np.zeros(1)], breaks=2)
    values, seen = calibration.planted(NEURONS), []
    monkeypatch.setattr(piecewise, "law_range", lambda sample, breaks, real=piecewise.law_range: seen.append(breaks) or real(sample, breaks))
    assert emergence._law(values, fit, 0) in ("not rejected", "rejected", "cannot tell it from a lognormal")
    assert seen == [2] * 101  # the data and 100 samples
    ruled = changepoints.Fit({}, {}, (0, 0), *3 * [np.zeros(1)], breaks=None)
    low, high = ruled.law_range(values)
    assert np.log([low, high]) == pytest.approx(np.log(values[[calibration.TAIL - 1, calibration.HEAD]]), abs=0.4)
    monkeypatch.setattr(powerlaws, "middle", None)
    assert emergence._law(np.ones(NEURONS), fit, 0) == "cannot be tested (no range)"


def test_curves_are_ranked_influence_with_a_null_beside_it(settings):
    table = emergence.emergence_curves(settings)
    assert set(table["null"]) <= {"lognormal", "half-normal", "exponential"}
    last = table[(table["group"] == "rare") & (table["step"] == STEPS[-1])].set_index("rank")
    truth = calibration.planted(NEURONS)
    assert last.index[0] == 1 and last.index[-1] == NEURONS
    assert np.log(last["influence"] / truth[last.index - 1]).abs().median() < 0.1
    assert (last["null_low"] <= last["null_high"]).all() and (last["low"] <= last["high"]).all()


def test_the_gain_is_last_less_first_and_the_claims_can_read_it(settings):
    table = emergence.emergence_statistics(settings)
    rows = table.set_index(["group", "rule", "statistic", "part"])["value"]
    place = ("rare", "change points", "plateau")
    assert rows[*place, "gain"] == pytest.approx(rows[*place, "last"] - rows[*place, "first"])
    assert rows["rare", "", "ratio", "gain"] == pytest.approx(rows["rare", "", "ratio", "last"] / rows["rare", "", "ratio", "first"])
    found = claim_tables.collect({"emergence_statistics": table})
    emerged, before = found["C3 emergence"], found["C3 before training"]
    assert emerged.value == rows[*place, "gain"] and 0 < emerged.low <= emerged.high and max(emerged.p) <= 0.05
    assert before.value == 0 and before.positions > claims.LEAST_POSITIONS
    straight = table[(table["part"] == "first") & (table["statistic"] == "plateau") & (table["rule"] == "change points")]
    assert straight.set_index("group").loc["rare", "breaks"] == 0 and before.note == "no break can be told"


def test_a_phase_is_told_first_and_for_good():
    table = pd.DataFrame({"plateau": [False, True, False, True, True], "power_law": [False] * 5, "decay": [True] * 5},
                         index=[0, 16, 32, 64, 128])
    found = first_told(table)
    assert found.loc["plateau"].tolist() == [16, 64] and found.loc["decay"].tolist() == [0, 0]
    assert found.loc["power_law"].isna().all()


# ---- the top group


def test_the_top_group_leads_where_it_was_planted(settings):
    table = emergence.emergence_top_groups(settings)
    assert (table["size"] == SIZE).all() and sorted(table["step"].unique()) == list(STEPS)
    rare = table[(table["group"] == "rare") & (table["chosen"] == "then")].set_index("step")
    assert rare.loc[0, "ratio"] < 1.1  # chosen on other documents than those it is measured on: no winner's curse
    assert rare.loc[0, "p"] > 0.05 and rare.loc[64, "p"] < 0.01
    assert rare.loc[64, "ratio"] == pytest.approx(calibration.planted(NEURONS)[:SIZE].mean() / np.median(calibration.planted(NEURONS)), rel=0.2)
    assert rare.loc[0, "p_ranked"] > 0.9 and rare.loc[64, "ranked"] == pytest.approx(4, rel=0.25)
    assert ((rare["ratio_low"] < rare["ratio"]) & (rare["ratio"] < rare["ratio_high"])).loc[16:].all()


def test_followed_back_the_group_of_the_last_step_meets_itself_there(settings):
    table = emergence.emergence_top_groups(settings).pivot(index=["group", "step"], columns="chosen", values="ratio")
    assert table.loc[("rare", 64), "then"] == table.loc[("rare", 64), "today"]
    assert table.loc[("rare", 0), "today"] == pytest.approx(1, abs=0.1)


def test_ancestry_holds_the_planted_ranks(settings):
    table = emergence.emergence_ancestry(settings)
    assert (table["neurons"] == NEURONS).all() and (table.groupby(["group", "step"]).size() == SIZE).all()
    rare = table[table["group"] == "rare"].pivot(index="neuron", columns="step", values="rank")
    assert np.median(rare[64]) < 3 * SIZE and rare[0].median() > 200  # alike at step 0: ranks are noise
    common = table[table["group"] == "common"]
    assert (common["neuron"] > NEURONS - 40).all()  # the head of the planted curve lies at the other end
    assert common.groupby("step")["rank"].median().max() < 3 * SIZE


def test_rankings_agree_as_planted(settings):
    table = emergence.emergence_rankings(settings).set_index(["first_group", "first_step", "second_group", "second_step"])["correlation"]
    ceiling = table["rare", 64, "rare", 64]
    assert ceiling > 0.95 and table["rare", 0, "rare", 0] < 0.2  # nothing to agree on before training
    assert table["rare", 0, "rare", 64] < 0.2 and 0.9 < table["rare", 16, "rare", 64] < ceiling
    assert table["common", 0, "common", 64] > 0.95
    assert table["rare", 64, "common", 64] < -0.8  # opposite ends
    assert len(table) == 2 * 6 + 3  # each pair of steps of a group once, and the groups with each other at each step


def test_chance_is_the_jaccard_index_of_random_groups(settings):
    row = emergence.emergence_rankings(settings).iloc[0]
    rng = np.random.default_rng(0)
    drawn = [len(set(rng.permutation(NEURONS)[:SIZE]) & set(range(SIZE))) for _ in range(4000)]
    jaccard = [shared / (2 * SIZE - shared) for shared in drawn]
    assert row["random_jaccard"] == pytest.approx(np.mean(jaccard), rel=0.1)
    assert row["random_jaccard_high"] == pytest.approx(np.quantile(jaccard, 0.975))
