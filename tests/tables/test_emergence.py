"""A planted training: heads are told when they are there and judged by their gain; who is on top,
and where they stood."""

import numpy as np
import pytest
from story import CURVE, NEURONS, RAISED, SHELF, SIZE, STEPS, checkpoints, tell

from rare_token_neurons.curve import calibration
from rare_token_neurons.tables import emergence, influence as influences


@pytest.fixture(scope="module")
def settings():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(influences, "DRAWS", 40)
        patch.setattr(influences, "LAW_DRAWS", 10)
        yield tell(patch)


@pytest.fixture(scope="module")
def phases(settings):
    return emergence.emergence_phases(settings)


def test_a_planted_shelf_is_told_from_the_step_at_which_it_comes(phases):
    rare, common = (phases[phases["group"] == group].set_index(["step", "rule"]) for group in ("rare", "common"))
    assert len(phases) == 2 * 2 * len(STEPS) and {"told_head", "told_power_law", "told_decay", "law"} < set(phases)
    assert set(influences.FITTED) < set(phases)
    assert not rare.loc[0, "told_head"].any() and rare.loc[[16, 64], ["told_head", "told_decay"]].all(axis=None)
    assert not common["told_head"].any() and (common.xs("fixed head", level="rule")["word"] == "rounded").all()
    last = rare.loc[64, "fitted head"]
    assert last["shelf"] == pytest.approx(SHELF, rel=0.25) and last["head"] >= last["shelf"]
    assert last["delta"] == pytest.approx(RAISED, abs=0.25)
    assert last["kappa"] == pytest.approx(calibration.KAPPA, abs=0.05)
    assert abs(rare.loc[0, "kappa"]).max() < 0.1
    assert np.allclose(phases[["head_share", "law_share", "decay_share"]].sum(axis=1), 1)
    assert phases["told_power_law"].equals(phases["law"] == "not rejected")


def test_a_checkpoint_has_the_numbers_that_its_own_fit_gives(settings, phases):
    sums, counts = checkpoints()[0][64, "rare"]
    found, verdicts, _ = influences.fit(sums, counts, settings)
    for row in phases[(phases["group"] == "rare") & (phases["step"] == 64)].to_dict("records"):
        head = influences.RULES[row["rule"]]
        assert (row["delta"], row["word"]) == (found.own[head].delta[0], verdicts[head].word)
        assert (row["delta_low"], row["delta_high"]) == found.interval(head, "delta")


def test_curves_are_ranked_influence_with_nulls_beside_it(settings):
    rows = emergence.emergence_curves(settings)
    assert list(rows) == ["step", "group", "rank", *influences.BANDS]
    last = rows[(rows["group"] == "rare") & (rows["step"] == STEPS[-1])].set_index("rank")
    assert last.index[0] == 1 and last.index[-1] == NEURONS
    assert np.log(last["influence"] / CURVE[last.index - 1]).abs().median() < 0.1
    assert (last["low"] <= last["high"]).all() and (last["law_low"] <= last["law_high"]).all()
    assert last.loc[SHELF - 5:SHELF, "influence"].gt(last["law_high"], axis=0).any()


def test_the_gain_is_last_less_first(settings, phases):
    found = emergence.emergence_statistics(settings)
    rows = found.set_index(["group", "statistic", "part"])
    assert rows.index.is_unique and set(found["rule"]) == {"fixed head", ""}
    values = rows["value"]
    for group in ("rare", "common"):
        for name in ("delta", "kappa", "beta"):
            gain = values[group, name, "last"] - values[group, name, "first"]
            assert values[group, name, "gain"] == pytest.approx(gain)
        ratio = values[group, "ratio", "last"] / values[group, "ratio", "first"]
        assert values[group, "ratio", "gain"] == pytest.approx(ratio)
    first, last, gain = (rows.loc["rare", "delta", part] for part in ("first", "last", "gain"))
    fixed = phases[(phases["group"] == "rare") & (phases["rule"] == "fixed head")].set_index("step")
    for row, step in ((first, 0), (last, 64)):
        assert row["step"] == step and row[["value", "word", "p_law", "null_sd"]].tolist() == fixed.loc[
            step, ["delta", "word", "p_law", "null_sd"]].tolist()
    assert gain["low"] > 0 and gain["p_laws"] == pytest.approx(1 / 41) and gain["null_sd"] > 0.1 and gain["null"] == 0
    assert rows.loc[("common", "delta", "gain"), "p_laws"] > 0.05
    assert last["word"] == "plateau" != first["word"] and (found["word"][found["statistic"] != "delta"] == "").all()


def test_where_the_neurons_are_too_few_there_are_rows_without_a_word(settings, monkeypatch):
    planted, in_a = checkpoints()
    few = {place: (sums[:, :150], counts) for place, (sums, counts) in planted.items()}
    monkeypatch.setattr(emergence, "sums_over_training", lambda settings: (few, in_a))
    for function in (emergence.halves_over_training, emergence._fits):
        function.cache_clear()
    phases, found = emergence.emergence_phases(settings), emergence.emergence_statistics(settings)
    assert (phases["word"] == "").all() and phases["delta"].isna().all() and set(phases["law"]) == {influences.UNTESTED}
    assert not phases[["told_head", "told_power_law", "told_decay"]].any(axis=None)
    assert found["value"].isna().equals(found["statistic"] != "ratio")
    for function in (emergence.halves_over_training, emergence._fits):
        function.cache_clear()


# ---- the top group


def test_the_top_group_leads_where_it_was_planted(settings):
    table = emergence.emergence_top_groups(settings)
    assert (table["size"] == SIZE).all() and sorted(table["step"].unique()) == list(STEPS)
    rare = table[(table["group"] == "rare") & (table["chosen"] == "then")].set_index("step")
    assert rare.loc[0, "ratio"] < 1.1  # chosen on other documents than those it is measured on: no winner's curse
    assert rare.loc[0, "p"] > 0.05 and rare.loc[64, "p"] < 0.01
    assert rare.loc[64, "ratio"] == pytest.approx(CURVE[:SIZE].mean() / np.median(CURVE), rel=0.2)
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
    places = ["first_group", "first_step", "second_group", "second_step"]
    table = emergence.emergence_rankings(settings).set_index(places)["correlation"]
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
