"""Phases of planted curves, of a pure power law, and of bad input."""

import numpy as np
import pytest

from rare_token_neurons.curve import phases
from rare_token_neurons.statistics import rankings

N, HEAD, TAIL = 2048, 35, 240         # the shares the paper reports: 1.7 %, 10 %, the rest


def planted(n=N, head=HEAD, tail=TAIL, slopes=(0.0, 0.7, 3.0)):
    """Influence by rank, (n,): three straight stretches on the log-log plot."""
    x = np.log(np.arange(1, n + 1))
    return np.exp(-slopes[0] * np.minimum(x, np.log(head))
                  - slopes[1] * np.clip(x - np.log(head), 0, np.log(tail / head))
                  - slopes[2] * np.maximum(x - np.log(tail), 0))


def within_efolds(found, planted_rank, efolds=0.5):
    return abs(np.log(found / planted_rank)) < efolds


@pytest.mark.parametrize("slopes", [(0.0, 0.7, 3.0), (0.15, 0.7, 3.0), (0.1, 1.2, 6.0)])
def test_planted_phases_are_found(slopes):
    result = phases.fit(planted(slopes=slopes))
    assert within_efolds(result.boundaries[0], HEAD) and within_efolds(result.boundaries[1], TAIL)
    assert result.kappa == pytest.approx(slopes[1], rel=0.05)
    assert result.r2 > 0.99
    ranks = np.array([60, 100, 150])
    np.testing.assert_allclose(result.line(ranks), planted(slopes=slopes)[ranks - 1], rtol=0.05)


def test_noisy_plateau_with_exponential_decay_is_found():
    rng = np.random.default_rng(0)
    ranks = np.arange(1, N + 1)
    for _ in range(10):
        curve = np.maximum(ranks, HEAD) ** -0.7 * np.exp(-np.maximum(ranks - TAIL, 0) / 300)
        result = phases.fit(curve * np.exp(0.05 * rng.standard_normal(N)))
        assert within_efolds(result.boundaries[0], HEAD, 0.7)
        assert within_efolds(result.boundaries[1], TAIL, 0.8)
        assert result.kappa == pytest.approx(0.7, rel=0.15)


def test_phases_are_a_partition_in_order_of_influence():
    influence = np.random.default_rng(1).permutation(planted())
    result = phases.fit(influence)
    together = np.concatenate([result.plateau, result.power_law, result.decay])
    np.testing.assert_array_equal(together, result.order)
    np.testing.assert_array_equal(np.sort(together), np.arange(N))
    assert sum(result.shares) == pytest.approx(1.0)
    assert influence[result.plateau].min() >= influence[result.power_law].max()
    assert influence[result.power_law].min() >= influence[result.decay].max()


@pytest.mark.parametrize("kappa", [0.2, 0.8, 2.0])
def test_pure_power_law_has_neither_plateau_nor_decay(kappa):
    result = phases.fit(3.0 * np.arange(1, N + 1) ** -kappa)
    assert result.kappa == pytest.approx(kappa, rel=1e-9)
    assert result.beta == pytest.approx(np.log(3.0), abs=1e-9)
    assert result.r2 == pytest.approx(1.0)
    assert len(result.plateau) == len(result.decay) == 0
    assert len(result.power_law) == N and result.boundaries == (0, N)


def test_plateau_without_decay_and_decay_without_plateau():
    no_decay = phases.fit(planted(slopes=(0.0, 0.7, 0.7)))
    assert within_efolds(no_decay.boundaries[0], HEAD) and len(no_decay.decay) == 0
    no_plateau = phases.fit(planted(slopes=(0.7, 0.7, 4.0)))
    assert len(no_plateau.plateau) == 0 and within_efolds(no_plateau.boundaries[1], TAIL)


def test_a_head_above_the_line_is_no_plateau():
    curve = np.arange(1, N + 1) ** -0.7
    curve[:5] *= 20
    result = phases.fit(curve)
    assert len(result.plateau) == 0
    assert set(range(5)) <= set(result.power_law)


def test_tail_flatter_than_the_middle_is_no_decay():
    assert len(phases.fit(planted(head=300, tail=400, slopes=(1.0, 1.0, 0.2))).decay) == 0


def test_neurons_may_come_in_any_order():
    rng = np.random.default_rng(2)
    influence = planted() * np.exp(0.05 * rng.standard_normal(N))
    mixed = rng.permutation(N)
    one, other = phases.fit(influence), phases.fit(influence[mixed])
    assert one.boundaries == other.boundaries and one.kappa == other.kappa
    np.testing.assert_array_equal(mixed[other.plateau], one.plateau)


@pytest.mark.parametrize("scale, power", [(1e-6, 1.0), (1e4, 1.0), (1.0, 2.0), (5.0, 0.5)])
def test_units_and_powers_leave_the_phases_alone(scale, power):
    rng = np.random.default_rng(3)
    influence = planted(slopes=(0.1, 0.7, 3.0)) * np.exp(0.05 * rng.standard_normal(N))
    one, other = phases.fit(influence), phases.fit(scale * influence**power)
    assert one.boundaries == other.boundaries
    assert other.kappa == pytest.approx(power * one.kappa)
    assert other.beta == pytest.approx(power * one.beta + np.log(scale))


def test_dead_neurons_are_decay_and_change_nothing_else():
    alive = phases.fit(planted())
    result = phases.fit(np.concatenate([np.zeros(100), planted()]))
    assert result.kappa == pytest.approx(alive.kappa) and result.boundaries == alive.boundaries
    assert set(range(100)) <= set(result.decay)


def test_equal_influences_are_one_flat_line():
    result = phases.fit(np.full(100, 0.3))
    assert result.kappa == pytest.approx(0.0, abs=1e-9) and len(result.power_law) == 100


def test_rank_curve_and_resampling():
    order, values = rankings.rank_curve([0.1, 0.4, 0.4, 0.2])
    assert order.tolist() == [1, 2, 3, 0] and values.tolist() == [0.4, 0.4, 0.2, 0.1]
    x, y = phases.resample(np.arange(1, 513) ** -0.5)
    assert x[0] == 0 and x[-1] == pytest.approx(np.log(512)) and len(x) == phases.POINTS
    np.testing.assert_allclose(np.diff(x), x[1])
    np.testing.assert_allclose(y, -0.5 * x, atol=1e-12)


@pytest.mark.parametrize("bad, word", [
    (np.ones(19), "at least 20"),
    (np.zeros(500), "above zero"),
    (np.append(planted(), np.nan), "not finite"),
    (np.append(planted(), -0.1), "negative"),
    (planted().reshape(2, -1), "one value per neuron"),
])
def test_bad_influence_is_one_clear_sentence(bad, word):
    with pytest.raises(ValueError, match=word) as error:
        phases.fit(bad)
    assert "\n" not in str(error.value)
