"""Change points of planted curves: found where they are, with intervals, and not found where none is."""

import numpy as np
import pytest

from rare_token_neurons.curve import changepoints

N, HEAD, TAIL = 1024, 30, 200


def documents(seed, *, n=N, count=100, slopes=(0.0, 0.7, 3.0), noise=1.0):
    """Per-document sums (documents, neurons) and positions around a planted curve."""
    rng = np.random.default_rng(seed)
    x = np.log(np.arange(1, n + 1))
    true = np.exp(-slopes[0] * np.minimum(x, np.log(HEAD)) - slopes[2] * np.maximum(x - np.log(TAIL), 0)
                  - slopes[1] * np.clip(x - np.log(HEAD), 0, np.log(TAIL / HEAD)))
    counts = rng.integers(3, 12, size=count).astype(float)
    return true * counts[:, None] * np.exp(noise * rng.standard_normal((count, n)) - noise**2 / 2), counts


def test_planted_phases_are_found_with_their_intervals():
    hits = 0
    for seed in range(10):
        found = changepoints.bootstrap(*documents(seed), draws=100, splits=10, seed=seed)
        assert found.breaks == 2 and found.has_plateau and found.has_decay
        low, high = found.intervals["plateau_end"]
        hits += low <= HEAD <= high
        assert found.kappa == pytest.approx(0.7, rel=0.25)
        assert found.boundaries[1] == pytest.approx(TAIL, rel=0.15)
    assert hits >= 8


def test_a_power_law_needs_no_break():
    found = changepoints.bootstrap(*documents(0, slopes=(0.7, 0.7, 0.7), noise=0.3), draws=50)
    assert found.breaks == 0 and found.boundaries == (0, N)
    assert not found.has_plateau and not found.has_decay
    low, high = found.intervals["kappa"]
    assert low < 0.7 < high


def test_one_break_is_decay_or_plateau_by_the_longer_stretch():
    decay = changepoints.bootstrap(*documents(0, slopes=(0.7, 0.7, 3.0)), draws=50, breaks=1)
    assert decay.boundaries[0] == 0 and decay.boundaries[1] == pytest.approx(TAIL, rel=0.15)
    plateau = changepoints.bootstrap(*documents(0, slopes=(0.0, 0.7, 0.7), n=4096), draws=50, breaks=1)
    assert plateau.boundaries[0] == pytest.approx(HEAD, rel=0.3) and plateau.boundaries[1] == 4096


def test_steep_head_is_no_plateau_and_flat_tail_no_decay():
    found = changepoints.bootstrap(*documents(0, slopes=(2.0, 0.7, 0.1)), draws=50, breaks=2)
    assert found.boundaries == (0, N) and found.plateau_draws == found.decay_draws == 0


def test_dead_neurons_are_counted_to_the_decay():
    sums, counts = documents(0)
    alive = changepoints.bootstrap(sums, counts, draws=30)
    both = changepoints.bootstrap(np.hstack([np.zeros((len(sums), 200)), sums]), counts, draws=30)
    assert both.boundaries == alive.boundaries and len(both.curve) == N + 200
    assert both.intervals["plateau_share"][0] == pytest.approx(alive.intervals["plateau_share"][0] * N / (N + 200))


def test_order_of_neurons_and_unit_do_not_matter():
    sums, counts = documents(3)
    one = changepoints.bootstrap(sums, counts, draws=30)
    other = changepoints.bootstrap(7e-5 * sums[:, ::-1], counts, draws=30)
    assert one.boundaries == other.boundaries
    assert one.intervals["kappa"] == pytest.approx(other.intervals["kappa"])


def test_too_few_neurons_or_documents_is_one_sentence():
    with pytest.raises(ValueError, match="at least 20 neurons"):
        changepoints.bootstrap(np.ones((50, 10)), np.ones(50))
    with pytest.raises(ValueError, match="at least 6 documents"):
        changepoints.bootstrap(np.ones((5, 100)), np.ones(5))
