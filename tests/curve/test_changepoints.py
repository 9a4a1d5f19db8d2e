"""Change points of planted curves: found where they are, with intervals, and not where none is; draws of documents."""

import numpy as np
import pytest

from rare_token_neurons.curve import calibration, changepoints, piecewise
from rare_token_neurons.statistics import documents

N, HEAD, TAIL = 1024, 30, 200


def measured(seed, *, n=N, count=100, slopes=(0.0, 0.7, 3.0), noise=1.0):
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
        found = changepoints.bootstrap(*measured(seed), draws=100, splits=10, seed=seed)
        assert found.breaks == 2 and found.told("plateau") and found.told("decay")
        low, high = found.intervals["plateau_end"]
        hits += low <= HEAD <= high
        assert found.kappa == pytest.approx(0.7, rel=0.25)
        assert found.boundaries[1] == pytest.approx(TAIL, rel=0.15)
    assert hits >= 8


def test_a_power_law_needs_no_break():
    found = changepoints.bootstrap(*measured(0, slopes=(0.7, 0.7, 0.7), noise=0.3), draws=50)
    assert found.breaks == 0 and found.boundaries == (0, N)
    assert not found.told("plateau") and not found.told("decay")
    low, high = found.intervals["kappa"]
    assert low < 0.7 < high


def test_one_break_is_decay_or_plateau_by_the_longer_stretch():
    decay = changepoints.bootstrap(*measured(0, slopes=(0.7, 0.7, 3.0)), draws=50, breaks=1)
    assert decay.boundaries[0] == 0 and decay.boundaries[1] == pytest.approx(TAIL, rel=0.15)
    plateau = changepoints.bootstrap(*measured(0, slopes=(0.0, 0.7, 0.7), n=4096), draws=50, breaks=1)
    assert plateau.boundaries[0] == pytest.approx(HEAD, rel=0.3) and plateau.boundaries[1] == 4096


def test_steep_head_is_no_plateau_and_flat_tail_no_decay():
    found = changepoints.bootstrap(*measured(0, slopes=(2.0, 0.7, 0.1)), draws=50, breaks=2)
    assert found.boundaries == (0, N) and found.plateau_draws == found.decay_draws == 0


def test_dead_neurons_are_counted_to_the_decay():
    sums, counts = measured(0)
    alive = changepoints.bootstrap(sums, counts, draws=30)
    both = changepoints.bootstrap(np.hstack([np.zeros((len(sums), 200)), sums]), counts, draws=30)
    assert both.boundaries == alive.boundaries and len(both.curve) == N + 200
    assert both.intervals["plateau_share"][0] == pytest.approx(alive.intervals["plateau_share"][0] * N / (N + 200))


def test_order_of_neurons_and_unit_do_not_matter():
    sums, counts = measured(3)
    one = changepoints.bootstrap(sums, counts, draws=30)
    other = changepoints.bootstrap(7e-5 * sums[:, ::-1], counts, draws=30)
    assert one.boundaries == other.boundaries
    assert one.intervals["kappa"] == pytest.approx(other.intervals["kappa"])


def test_too_few_neurons_or_documents_is_one_sentence():
    with pytest.raises(ValueError, match="at least 20 neurons"):
        changepoints.bootstrap(np.ones((50, 10)), np.ones(50))
    with pytest.raises(ValueError, match="at least 6 documents"):
        changepoints.bootstrap(np.ones((5, 100)), np.ones(5))


# ---- what draws of documents leave of the phases, by both rules


@pytest.fixture(scope="module")
def planted():
    """Sums and counts of 60 documents around a planted plateau, power law and decay."""
    return calibration.measured(calibration.planted(1024), np.random.default_rng(0), documents=60)


def flat(seed=1):
    """Sums and counts of 60 documents around a homogeneous state: all neurons alike but for the documents' noise."""
    return calibration.measured(np.full(1024, 0.01), np.random.default_rng(seed), documents=60)


def test_intervals_and_shares_of_draws_are_those_of_the_draws(planted):
    found = changepoints.bootstrap(*planted, draws=40, seed=3)
    assert documents.percentile(found.samples["kappa"]) == pytest.approx(found.intervals["kappa"])
    assert (found.drawn("plateau"), found.drawn("decay")) == (found.plateau_draws, found.decay_draws)
    assert found.value["plateau"] == found.edges[0] / 1024 and found.boundaries == tuple(round(edge) for edge in found.edges)


@pytest.mark.parametrize("rule", [changepoints.bootstrap, changepoints.by_paper_rule])
def test_planted_phases_are_told_with_their_slope_and_height(rule):
    rng = np.random.default_rng(0)
    fit = rule(*calibration.measured(calibration.planted(1024), rng, documents=60, noise=0.1), draws=40)
    head, tail, slopes = calibration.HEAD, calibration.TAIL, calibration.SLOPES
    beta = (slopes[1] - slopes[0]) * np.log(head)  # of the middle, carried to rank 1
    assert all(fit.told(phase) for phase in changepoints.PHASES)
    assert sum(fit.value[phase] for phase in changepoints.PHASES) == pytest.approx(1)
    assert np.log(fit.edges) == pytest.approx(np.log([head, tail]), abs=0.4)
    assert fit.value["kappa"] == pytest.approx(slopes[1], abs=0.1) and fit.value["beta"] == pytest.approx(beta, abs=0.5)


@pytest.mark.parametrize("slopes", [(-0.5,), (-0.1, -1.0), (-0.2, -0.7, -3.0)])
def test_beta_is_the_height_of_the_law_at_rank_one(slopes):
    n = 1024
    x = piecewise.bins(n)[1]
    knots = np.log([30, 200])[: len(slopes) - 1]
    y = -4 + slopes[0] * x + sum((b - a) * np.maximum(x - k, 0) for a, b, k in zip(slopes, slopes[1:], knots))
    line = piecewise.fit(x, np.stack([y, y + 1]), len(slopes) - 1)
    law = min(1, len(slopes) - 1)
    height = -4 - sum((b - a) * k for a, b, k in zip(slopes[:law + 1], slopes[1:law + 1], knots))
    assert changepoints.intercept(line, x, n) == pytest.approx([height, height + 1], abs=0.1)


def test_equal_seeds_draw_equal_documents_at_every_checkpoint(planted):
    first, again = (changepoints.bootstrap(*planted, draws=20, seed=5) for _ in range(2))
    other = changepoints.bootstrap(*planted, draws=20, seed=6)
    twice = changepoints.bootstrap(2 * planted[0], planted[1], draws=20, seed=5)
    assert np.array_equal(first.samples["beta"], again.samples["beta"])
    assert not np.array_equal(first.samples["beta"], other.samples["beta"])
    assert twice.samples["beta"] - first.samples["beta"] == pytest.approx(np.full(20, np.log(2)))


def test_a_homogeneous_state_has_hardly_a_slope():
    assert abs(changepoints.bootstrap(*flat(), draws=20).value["kappa"]) < 0.05


def test_dead_neurons_are_the_end_of_the_decay(planted):
    sums, counts = planted
    dead = np.concatenate([sums, np.zeros((len(sums), 256))], axis=1)
    alone, padded = (changepoints.bootstrap(part, counts, draws=20) for part in (sums, dead))
    assert padded.value["plateau"] == pytest.approx(alone.value["plateau"] * 1024 / 1280)
    assert padded.value["decay"] == pytest.approx((alone.value["decay"] * 1024 + 256) / 1280)
    assert len(padded.curve) == 1280 and not padded.curve[1024:].any()
