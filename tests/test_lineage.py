"""The top group over a planted training: who is on top, where its members stood, and how far rankings agree."""

import numpy as np
import pytest
from story import NEURONS, SIZE, STEPS, tell

from rare_token_neurons.curve.calibration import planted
from rare_token_neurons.tables import emergence


@pytest.fixture(scope="module")
def settings():
    with pytest.MonkeyPatch.context() as patch:
        yield tell(patch)


def test_the_top_group_leads_where_it_was_planted(settings):
    table = emergence.emergence_top_groups(settings)
    assert (table["size"] == SIZE).all() and sorted(table["step"].unique()) == list(STEPS)
    rare = table[(table["group"] == "rare") & (table["chosen"] == "then")].set_index("step")
    assert rare.loc[0, "ratio"] < 1.1  # chosen on other documents than those it is measured on: no winner's curse
    assert rare.loc[0, "p"] > 0.05 and rare.loc[64, "p"] < 0.01
    assert rare.loc[64, "ratio"] == pytest.approx(planted(NEURONS)[:SIZE].mean() / np.median(planted(NEURONS)), rel=0.2)
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
