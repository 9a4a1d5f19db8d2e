"""Curves and rankings over checkpoints: planted phases, groups with known shares, rankings with known agreement."""

import numpy as np
import pandas as pd
import pytest

from rare_token_neurons.curve import calibration, changepoints, piecewise
from rare_token_neurons.statistics import documents as over_documents, rankings
from rare_token_neurons.tables import emergence

NEURONS, TOP = 512, 16


@pytest.fixture(scope="module")
def planted():
    """Sums and counts of 60 documents around a planted plateau, power law and decay."""
    return calibration.measured(calibration.planted(1024), np.random.default_rng(0), documents=60)


def flat(seed=1):
    """Sums and counts of 60 documents around a homogeneous state: all neurons alike but for the documents' noise."""
    return calibration.measured(np.full(1024, 0.01), np.random.default_rng(seed), documents=60)


def test_change_points_are_those_of_breaks_with_the_draws_kept(planted):
    fit, reference = changepoints.by_change_points(*planted, draws=40, seed=3), changepoints.bootstrap(*planted, draws=40, seed=3)
    assert np.allclose(fit.edges, reference.boundaries, atol=0.5) and fit.value["kappa"] == reference.kappa
    assert over_documents.percentile(fit.samples["kappa"]) == pytest.approx(reference.intervals["kappa"])
    assert (fit.drawn("plateau"), fit.drawn("decay")) == (reference.plateau_draws, reference.decay_draws)
    for name in ("curve", "low", "high"):
        assert np.array_equal(getattr(fit, name), getattr(reference, name))


@pytest.mark.parametrize("rule", [changepoints.by_change_points, changepoints.by_paper_rule])
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
    first, again = (changepoints.by_change_points(*planted, draws=20, seed=5) for _ in range(2))
    other = changepoints.by_change_points(*planted, draws=20, seed=6)
    twice = changepoints.by_change_points(2 * planted[0], planted[1], draws=20, seed=5)
    assert np.array_equal(first.samples["beta"], again.samples["beta"])
    assert not np.array_equal(first.samples["beta"], other.samples["beta"])
    assert twice.samples["beta"] - first.samples["beta"] == pytest.approx(np.full(20, np.log(2)))


def test_a_homogeneous_state_has_hardly_a_slope():
    assert abs(changepoints.by_change_points(*flat(), draws=20).value["kappa"]) < 0.05


def test_dead_neurons_are_the_end_of_the_decay(planted):
    sums, counts = planted
    dead = np.concatenate([sums, np.zeros((len(sums), 256))], axis=1)
    alone, padded = (changepoints.by_change_points(part, counts, draws=20) for part in (sums, dead))
    assert padded.value["plateau"] == pytest.approx(alone.value["plateau"] * 1024 / 1280)
    assert padded.value["decay"] == pytest.approx((alone.value["decay"] * 1024 + 256) / 1280)
    assert len(padded.curve) == 1280 and not padded.curve[1024:].any()


def test_a_phase_is_told_first_and_for_good():
    table = pd.DataFrame({"plateau": [False, True, False, True, True], "power_law": [False] * 5, "decay": [True] * 5},
                         index=[0, 16, 32, 64, 128])
    found = emergence.first_told(table)
    assert found.loc["plateau"].tolist() == [16, 64] and found.loc["decay"].tolist() == [0, 0]
    assert found.loc["power_law"].isna().all()


def test_halves_hold_each_document_on_one_side_and_draw_from_it():
    in_a = np.array([True, False, True, True, False, False, True])
    weights = over_documents.halves(in_a, 50, seed=2)
    assert weights.shape == (2, 51, 7) and np.array_equal(weights[:, 0], [in_a, ~in_a])
    assert not weights[0][:, ~in_a].any() and not weights[1][:, in_a].any()
    assert (weights.sum(axis=-1) == [[4], [3]]).all() and weights[0].max() > 1


def test_a_group_over_the_median_neuron():
    values = np.array([[1.0, 2.0, 3.0, 10.0, 20.0], [2.0, 2.0, 2.0, 2.0, 2.0]])
    assert rankings.over_median(values, np.array([3, 4])) == pytest.approx([5, 1])
    assert rankings.over_median(values[0], np.array([[3, 4], [0, 1], [0, 4]])) == pytest.approx([5, 0.5, 3.5])
    assert rankings.median_rank(values[0], np.array([[3, 4], [0, 1]])) == pytest.approx([1.5, 4.5])


def ranked(seed, shared, noise):
    """Rankings (2 halves, 1 + 20 draws) of `shared` influences seen through independent noise."""
    rng = np.random.default_rng(seed)
    return rankings.ranking(np.exp(shared + noise * rng.standard_normal((2, 21, NEURONS))), TOP)


def test_rankings_agree_where_they_are_the_same_and_not_where_they_are_unrelated():
    one, two = np.random.default_rng(0).standard_normal((2, NEURONS))
    correlation, jaccard = rankings.agreement(ranked(1, one, 0), ranked(2, one, 0))
    assert correlation == pytest.approx(np.ones(21)) and (jaccard == 1).all()
    correlation, jaccard = rankings.agreement(ranked(1, one, 0.1), ranked(2, two, 0.1))
    assert np.abs(correlation).max() < 0.2 and jaccard.max() < 0.2


def test_a_ranking_meets_itself_on_the_other_half_only():
    """Against itself a ranking is as noisy as against another one of the same neurons: the ceiling is no 1."""
    shared = np.random.default_rng(0).standard_normal(NEURONS)
    one, two = ranked(1, shared, 0.7), ranked(2, shared, 0.7)
    own, other = (rankings.agreement(one, rival)[0] for rival in (one, two))
    assert own.mean() == pytest.approx(other.mean(), abs=0.02) and own.max() < 0.85


def test_top_groups_with_half_their_members_in_common():
    values = np.tile(np.arange(NEURONS, dtype=float), (2, 1, 1))
    moved = np.where(values >= NEURONS - TOP // 2, -1.0, values)  # half of the top has fallen to the end
    jaccard = rankings.agreement(rankings.ranking(values, TOP), rankings.ranking(moved, TOP))[1]
    assert jaccard == pytest.approx([8 / 24])


def test_the_centred_interval_keeps_the_estimate_and_the_draws_spread():
    draws = np.random.default_rng(0).normal(0.5, 0.01, 2000)
    low, high = over_documents.centred(np.concatenate([[0.8], draws]))
    assert low < 0.8 < high and high - low == pytest.approx(2 * 1.96 * 0.01, rel=0.1)
    assert over_documents.centred(np.concatenate([[0.999], draws]), 0.0, 1.0)[1] == 1.0
