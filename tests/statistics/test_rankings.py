"""Overlap and agreement of rankings: known answers, shuffled ones, noise."""

import numpy as np
import pytest
from scipy import stats

from rare_token_neurons.statistics import rankings

NEURONS, TOP = 512, 16


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_top_and_overlap_by_hand():
    first, second = np.array([5.0, 4, 3, 2, 1]), np.array([5.0, 1, 4, 2, 3])
    assert rankings.top(first, 2).tolist() == [0, 1] and rankings.top(second, 3).tolist() == [0, 2, 4]
    assert rankings.shared(first, second, 2) == 1 and rankings.jaccard(first, second, 2) == pytest.approx(1 / 3)
    assert rankings.jaccard(first, first, 3) == 1 and rankings.jaccard(first, -first, 2) == 0
    assert rankings.jaccard(np.stack([first, first]), np.stack([first, second]), 2) == pytest.approx([1, 1 / 3])


def test_the_null_of_the_overlap_is_that_of_shuffled_rankings(rng):
    values = rng.random(60)
    table = rankings.jaccard_table(values, rng.permutation(values), [5, 20])
    shuffled = np.stack([rng.permutation(values) for _ in range(4000)])
    for k, expected, low, high in zip(table.k, table.null_jaccard, table.null_low, table.null_high):
        null = rankings.jaccard(np.broadcast_to(values, shuffled.shape), shuffled, k)
        assert null.mean() == pytest.approx(expected, rel=0.05)
        assert np.mean((null >= low) & (null <= high)) >= 0.94
    same = rankings.jaccard_table(values, values, [5])
    assert same.p[0] == pytest.approx(1 / 5461512)  # 60 over 5


def test_rank_correlation_is_spearmans_with_ties(rng):
    first, second = rng.integers(0, 9, size=(2, 4, 50))
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(first, second)]
    assert rankings.rank_correlation(first, second) == pytest.approx(expected)
    assert rankings.rank_correlation(np.arange(5), np.arange(5) ** 3) == pytest.approx(1)
    assert np.isnan(rankings.rank_correlation(np.ones(5), np.arange(5)))


def test_more_than_all_neurons_are_no_top():
    with pytest.raises(ValueError, match="top"):
        rankings.top(np.arange(3), 4)


# ---- rankings on document halves


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
