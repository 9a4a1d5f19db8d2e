"""One cell's statistics on planted effects: what is there is found, what is not is not."""

import numpy as np
import pytest

from rare_token_neurons import claims, contrasts, controls

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
    return contrasts.Measured(effects, owners, {name: part % 2 == 1 for name, part in owners.items()}, active.astype(np.float32),
                              rng.normal(size=(16, NEURONS)), {"in": rng.normal(size=(NEURONS, 16))})


def test_the_group_is_the_top_of_half_a():
    made = measured()
    assert set(contrasts.group(made)) == set(range(SPECIAL))
    late = made.in_b["rare"]
    made.effects["rare"][np.ix_(late, range(100, 106))] = 1e6  # half B has no say
    assert set(contrasts.group(made)) == set(range(SPECIAL))


@pytest.mark.parametrize("boost, there", [(2.0, True), (1.0, False)])
def test_a_lean_to_rare_targets_is_found_where_it_is(boost, there):
    made = measured(boost=boost)
    nulls = {"random": controls.random_groups(NEURONS, SPECIAL, 200),
             "matched": controls.random_groups(np.arange(50, 200), SPECIAL, 200)}
    found = contrasts.lean(made.effects, made.owners, np.arange(SPECIAL), nulls)
    assert found.value == pytest.approx(np.log(boost), abs=0.1)
    assert (found.low > 0 and max(found.p) < 0.05) == there and found.low < found.value < found.high
    assert found.positions == 400


def test_all_statistics_and_planted_co_activation():
    found, plain = contrasts.all_of(measured(boost=2.0, together=2.0)), contrasts.all_of(measured(boost=2.0))
    assert set(found) == set(contrasts.STATISTICS)
    assert found["co-activation"].value > 0.5 and found["co-activation"].low > 0 and max(found["co-activation"].p) < 0.05
    assert found["effective dimension"].high < 0 and plain["effective dimension"].high > 0
    assert abs(plain["co-activation"].value) < 0.1 and plain["Hill exponent"].low < 0 < plain["Hill exponent"].high
    for name, item in found.items():
        claim = contrasts.STATISTICS[name]
        assert len(item.p) == len(claim.controls) and np.isfinite([item.value, item.low, item.high]).all()
        assert item.positions == (400 if name == "plateau" else pytest.approx(200, abs=40))


def test_few_positions_are_counted_and_not_judged():
    found = contrasts.all_of(measured(n=90))
    for name, item in found.items():
        verdict, reason = claims.verdict(contrasts.STATISTICS[name], item, np.full(2, np.nan))
        assert verdict == claims.UNTESTED and item.positions < 100 and str(item.positions) in reason
