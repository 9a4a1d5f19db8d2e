"""One cell's statistics on planted effects: what is there is found, what is not is not."""

import numpy as np
import pandas as pd
import pytest

from rare_token_neurons.statistics import claims, controls
from rare_token_neurons.tables import claims as claim_tables, robustness

NEURONS, SPECIAL = 300, 6


def measured(n=400, boost=1.0, together=0.0, seed=0):
    """Effects of 300 neurons of which 0 to 5 are the most influential: `boost` times as much on rare as on common targets,
    with activations that share a part `together`."""
    rng = np.random.default_rng(seed)
    size = rng.lognormal(0, 0.5, NEURONS)
    size[:SPECIAL] = 20
    owners = {name: rng.integers(0, 60, n) for name in ("rare", "common")}
    effects = {name: size * np.abs(rng.normal(size=(n, NEURONS))) for name in owners}
    effects["rare"][:, :SPECIAL] *= boost
    active = rng.normal(size=(n, NEURONS))
    active[:, :SPECIAL] += together * rng.normal(size=(n, 1))
    return robustness.Measured(effects, owners, {name: part % 2 == 1 for name, part in owners.items()}, active.astype(np.float32),
                              rng.normal(size=(16, NEURONS)), {"in": rng.normal(size=(NEURONS, 16))})


def test_the_group_is_the_top_of_half_a():
    made = measured()
    assert set(robustness.group(made)) == set(range(SPECIAL))
    late = made.in_b["rare"]
    made.effects["rare"][np.ix_(late, range(100, 106))] = 1e6  # half B has no say
    assert set(robustness.group(made)) == set(range(SPECIAL))


@pytest.mark.parametrize("boost, there", [(2.0, True), (1.0, False)])
def test_a_lean_to_rare_targets_is_found_where_it_is(boost, there):
    made = measured(boost=boost)
    nulls = {"random": controls.random_groups(NEURONS, SPECIAL, 200),
             "matched": controls.random_groups(np.arange(50, 200), SPECIAL, 200)}
    found = robustness.lean(made.effects, made.owners, np.arange(SPECIAL), nulls)
    assert found.value == pytest.approx(np.log(boost), abs=0.1)
    assert (found.low > 0 and max(found.p) < 0.05) == there and found.low < found.value < found.high
    assert found.positions == 400


def test_all_statistics_and_planted_co_activation():
    found, plain = robustness.all_of(measured(boost=2.0, together=2.0)), robustness.all_of(measured(boost=2.0))
    assert set(found) == set(robustness.STATISTICS)
    assert found["co-activation"].value > 0.5 and found["co-activation"].low > 0 and max(found["co-activation"].p) < 0.05
    assert found["effective dimension"].high < 0 and plain["effective dimension"].high > 0
    assert abs(plain["co-activation"].value) < 0.1 and plain["Hill exponent"].low < 0 < plain["Hill exponent"].high
    for name, item in found.items():
        claim = robustness.STATISTICS[name]
        assert len(item.p) == len(claim.controls) and np.isfinite([item.value, item.low, item.high]).all()
        assert item.positions == (400 if name == "plateau" else pytest.approx(200, abs=40))


# ---- random and matched groups: the one that speaks less


def alike(made, many=30):
    """The first neurons, the group among them, are louder than others and share a part: matched groups do so too."""
    made.activations[:, :many] += 2.0 * np.random.default_rng(1).normal(size=(len(made.activations), 1)).astype(np.float32)
    return made


def row_inside(made, members):
    late = made.in_b["rare"]
    sample = controls.sample(made.activations[late], made.owners["rare"][late], made.w_out)
    nulls = controls.control_groups(sample, members, robustness.GROUPS)
    return controls.within(sample, members, nulls, controls.PAIRS, controls.pairs, resamples=robustness.RESAMPLES,
                              baselines=robustness.BASELINES)[0] | {"tokens": late.sum(), "documents": 30}


def test_what_matched_groups_show_too_is_no_finding():
    made = alike(measured())
    row, found = row_inside(made, robustness.group(made)), robustness.all_of(made)["co-activation"]
    assert row["less_random"] > 0.5 and row["less_random_low"] > 0 and abs(row["less_matched"]) < 0.1
    assert (found.value, found.low, found.high) == tuple(row[name] for name in claims.difference("matched", (0, 0, 0)))
    assert claims.verdict(robustness.STATISTICS["co-activation"], found, np.array(found.p))[0] == claims.NOT


@pytest.mark.parametrize("plant", [alike, lambda made: made])
def test_the_grid_and_the_claims_table_choose_alike(plant):
    made = plant(measured())
    row = row_inside(made, robustness.group(made))
    table = pd.DataFrame([row | {"where": "rare", "group": "rare", "relation": "within", "measure": "correlation"}])
    in_table, in_grid = claim_tables.within(table), robustness.all_of(made)["co-activation"]
    assert (in_table.value, in_table.low, in_table.high, in_table.p) == (in_grid.value, in_grid.low, in_grid.high, in_grid.p)


def test_of_two_matrices_the_grid_takes_what_the_claims_table_takes(monkeypatch):
    made, rows = measured(), []
    made.rows.update(up=made.rows["in"].copy())
    made.rows["up"][:30] *= np.linspace(1, 20, 16)  # heavy tails, but those of look-alikes are as heavy
    choose = claims.lightest
    monkeypatch.setattr(claims, "lightest", lambda given: choose(rows.extend(given) or rows))
    random, matched = (controls.random_groups(np.arange(*ends), SPECIAL, 200) for ends in ((100, 300), (6, 30)))
    found = robustness.heavy_tail(made, np.arange(SPECIAL), {"random": random, "matched": matched})
    table = pd.DataFrame(rows).assign(matrix=list(made.rows), group="rare", rows="raw", statistic="alpha_hill")
    assert found == claim_tables.hill(table) and len(table) == 2
    each = [choose([row]) for row in rows]
    assert found.high == max(one.high for one in each)
    up = table.iloc[1]
    assert each[1].value == pytest.approx(up["value"] - up["matched_mean"])
    assert up["value"] - up["random_mean"] < up["value"] - up["matched_mean"]


def test_a_lean_that_matched_groups_have_too_is_no_finding():
    made = measured(boost=2.0)
    made.effects["rare"][:, 50:200] *= 2.0
    random, matched = (controls.random_groups(np.arange(*ends), SPECIAL, 200) for ends in ((200, 300), (50, 200)))
    found = robustness.lean(made.effects, made.owners, np.arange(SPECIAL), {"random": random, "matched": matched})
    plain = robustness.lean(made.effects, made.owners, np.arange(SPECIAL), {"random": random}, kinds=("random",))
    assert plain.value == pytest.approx(np.log(2), abs=0.1) and plain.low > 0 and len(plain.p) == 1
    assert abs(found.value) < 0.1 and found.low < 0 < found.high and found.p[0] == plain.p[0] < 0.05 < found.p[1]


def test_without_matched_groups_a_contrast_cannot_be_tested():
    made = measured(boost=2.0)
    nulls, members = {"random": controls.random_groups(NEURONS, SPECIAL, 200)}, np.arange(SPECIAL)
    for claim, found in ((robustness.LEAN, robustness.lean(made.effects, made.owners, members, nulls)),
                         (robustness.STATISTICS["Hill exponent"], robustness.heavy_tail(made, members, nulls))):
        assert np.isfinite([found.value, found.low, found.high]).all() and np.isnan(found.p[1])
        assert claims.verdict(claim, found, np.array(found.p)) == (claims.UNTESTED, "no p value against matched groups")


def test_few_positions_are_counted_and_not_judged():
    found = robustness.all_of(measured(n=90))
    for name, item in found.items():
        verdict, reason = claims.verdict(robustness.STATISTICS[name], item, np.full(2, np.nan))
        assert verdict == claims.UNTESTED and item.positions < 100 and str(item.positions) in reason
