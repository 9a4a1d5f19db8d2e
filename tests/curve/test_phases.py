"""Phases of planted curves, with a fixed head and by the paper's rule; of a pure power law, and of bad input."""

import numpy as np
import pytest

import rare_token_neurons
from rare_token_neurons.curve import calibration, heads, phases

N, HEAD, TAIL = 2048, 35, 240         # the shares the paper reports: 1.7 %, 10 %, the rest
RANKS = np.arange(1, N + 1)
RULES = (phases.fit, phases.by_differences)


def planted(raised=1.0, head=HEAD, tail=TAIL, kappa=0.7, decay=3.0):
    """Influence by rank, (N,): a law that ends in a decay, before it a nearly flat shelf,
    `raised` e-folds above the law."""
    x = np.log(RANKS)
    law = np.exp(-kappa * np.minimum(x, np.log(tail)) - decay * np.maximum(x - np.log(tail), 0))
    shelf = np.exp(raised - kappa * (np.log(head) - 1) - 0.05 * (np.log(RANKS / head) + 1))
    return np.where(RANKS <= head, shelf, law)


def rounded():
    """A head below its law, which no rule calls a plateau."""
    return calibration.law(np.maximum(RANKS, HEAD), tail=TAIL)


def noisy(curve, seed):
    return curve * np.exp(0.05 * np.random.default_rng(seed).standard_normal(N))


# ---- with a fixed head


def test_the_fixed_head_is_that_of_heads():
    curve = noisy(planted(), 0)
    found, same = phases.fit(curve), heads.find(-np.sort(-curve), "fixed")
    assert (found.delta, found.kappa, found.beta) == (same.delta[0], same.kappa[0], same.beta[0])
    assert found.boundaries == (heads.head_size(N), int(same.end[0])) and not hasattr(found, "word")
    assert rare_token_neurons.fit_phases is phases.fit


@pytest.mark.parametrize("raised", [0.5, 1.0])
def test_a_shelf_stands_above_its_law_and_a_rounded_head_below(raised):
    for seed in range(5):
        found = phases.fit(noisy(planted(raised), seed))
        assert found.delta == pytest.approx(raised, abs=0.3) and found.kappa == pytest.approx(0.7, abs=0.12)
        assert found.boundaries[1] == pytest.approx(TAIL, rel=0.2)
        assert phases.fit(noisy(rounded(), seed)).delta < -0.5


def test_without_a_decay_the_law_goes_to_the_last_living_neuron():
    found = phases.fit(np.append(RANKS**-0.7, np.zeros(100)))
    assert found.boundaries == (heads.head_size(N), N) and set(found.decay) == set(range(N, N + 100))
    assert found.delta == pytest.approx(0, abs=0.02) and found.kappa == pytest.approx(0.7, abs=0.01)


# ---- by the paper's rule


@pytest.mark.parametrize("raised", [1.0, 1.5])
def test_finite_differences_find_a_shelf_above_the_line(raised):
    found = phases.by_differences(planted(raised))
    assert found.boundaries[0] == pytest.approx(HEAD, rel=0.3) and found.boundaries[1] == pytest.approx(TAIL, rel=0.3)
    assert found.delta == pytest.approx(raised, abs=0.2) and found.kappa == pytest.approx(0.7, abs=0.1)
    ranks = np.array([60, 100, 150])
    np.testing.assert_allclose(found.line(ranks), planted(raised)[ranks - 1], rtol=0.15)


def test_a_head_below_the_line_counts_to_the_power_law():
    found = phases.by_differences(calibration.law(RANKS + 10, tail=TAIL))
    assert len(found.head) == 0 and found.boundaries[0] == 0 and found.delta == 0
    assert found.boundaries[1] == pytest.approx(TAIL, rel=0.3) and set(range(HEAD)) <= set(found.power_law)


def test_a_few_outliers_above_the_line_are_a_head_by_differences():
    """The rule knows no outliers: what stands above the line is the head, however steep."""
    curve = RANKS**-0.7
    curve[:5] *= 20
    found = phases.by_differences(curve)
    assert 1 <= len(found.head) <= 8 and found.delta > 1


@pytest.mark.parametrize("kappa", [0.2, 0.8, 2.0])
def test_pure_power_law_has_neither_head_nor_decay_by_differences(kappa):
    found = phases.by_differences(3.0 * RANKS**-kappa)
    assert found.kappa == pytest.approx(kappa, rel=1e-9) and found.beta == pytest.approx(np.log(3.0), abs=1e-9)
    assert len(found.head) == len(found.decay) == 0 and found.delta == 0
    assert len(found.power_law) == N and found.boundaries == (0, N)


def test_a_tail_flatter_than_the_middle_is_no_decay():
    x = np.log(RANKS)
    curve = np.exp(-np.minimum(x, np.log(400)) - 0.2 * np.maximum(x - np.log(400), 0))
    assert len(phases.by_differences(curve).decay) == 0


def test_equal_influences_are_one_flat_line():
    found = phases.by_differences(np.full(100, 0.3))
    assert found.kappa == pytest.approx(0.0, abs=1e-9) and len(found.power_law) == 100


# ---- both


@pytest.mark.parametrize("rule", RULES)
def test_phases_are_a_partition_in_order_of_influence(rule):
    influence = np.random.default_rng(1).permutation(planted())
    found = rule(influence)
    together = np.concatenate([found.head, found.power_law, found.decay])
    np.testing.assert_array_equal(together, found.order)
    np.testing.assert_array_equal(np.sort(together), np.arange(N))
    assert sum(found.shares) == pytest.approx(1.0) and found.shares[0] == len(found.head) / N > 0
    assert influence[found.head].min() >= influence[found.power_law].max()
    assert influence[found.power_law].min() >= influence[found.decay].max()


@pytest.mark.parametrize("rule", RULES)
def test_delta_is_the_mean_distance_of_the_head_from_the_line(rule):
    curve = noisy(planted(), 1)
    found = rule(curve)
    ranks = np.arange(1, len(found.head) + 1)
    by_hand = np.log(curve[found.head] / found.line(ranks)).mean()
    assert found.delta == pytest.approx(by_hand) and found.delta > 0.5


@pytest.mark.parametrize("rule", RULES)
def test_neurons_may_come_in_any_order(rule):
    influence, mixed = noisy(planted(), 2), np.random.default_rng(2).permutation(N)
    one, other = rule(influence), rule(influence[mixed])
    assert one.boundaries == other.boundaries and one.kappa == other.kappa and one.delta == other.delta
    np.testing.assert_array_equal(mixed[other.head], one.head)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("scale", [1e-6, 1e4])
def test_units_leave_the_phases_alone(rule, scale):
    one, other = rule(noisy(planted(), 3)), rule(scale * noisy(planted(), 3))
    assert one.boundaries == other.boundaries and other.kappa == pytest.approx(one.kappa)
    assert other.delta == pytest.approx(one.delta) and other.beta == pytest.approx(one.beta + np.log(scale))


@pytest.mark.parametrize("rule", RULES)
def test_dead_neurons_are_decay_and_change_nothing_else(rule):
    alive, found = rule(planted()), rule(np.concatenate([np.zeros(100), planted()]))
    assert found.kappa == pytest.approx(alive.kappa) and found.boundaries == alive.boundaries
    assert set(range(100)) <= set(found.decay)


@pytest.mark.parametrize("rule, bad, word", [
    (phases.fit, np.ones(199), "at least 200 neurons"),
    (phases.by_differences, np.ones(19), "at least 20 neurons"),
    *((rule, bad, word) for rule in RULES for bad, word in [
        (np.zeros(500), "above zero"),
        (np.append(planted(), np.nan), "not finite"),
        (np.append(planted(), -0.1), "negative"),
        (planted().reshape(2, -1), "one value per neuron"),
    ]),
])
def test_bad_influence_is_one_clear_sentence(rule, bad, word):
    with pytest.raises(ValueError, match=word) as error:
        rule(bad)
    assert "\n" not in str(error.value)
