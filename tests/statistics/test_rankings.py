"""Overlap and agreement of rankings: known answers, shuffled ones, noise; scores that are no more than influence."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rare_token_neurons.statistics import rankings

NEURONS, TOP = 512, 16


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_equal_influences_stand_in_order_of_number():
    values = np.array([[2.0, 3.0, 0.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    assert rankings.order_of(values).tolist() == [[1, 4, 0, 3, 2], [0, 1, 2, 3, 4]]
    assert rankings.top(values, 2).tolist() == [[1, 4], [0, 1]]
    order, curve = rankings.rank_curve(values[0])
    assert order.tolist() == [1, 4, 0, 3, 2] and curve.tolist() == [3, 3, 2, 2, 0]


def test_a_near_tie_that_swaps_moves_two_neighbours_and_hardly_a_statistic(rng):
    values = np.exp(rng.standard_normal(NEURONS))
    order = rankings.order_of(values)
    first, second = order[TOP - 1:TOP + 1]  # on either side of the top group's edge
    values[first] = values[second] * (1 + 1e-7)
    swapped = values.copy()
    swapped[[first, second]] = values[[second, first]]
    assert np.flatnonzero(rankings.order_of(swapped) != rankings.order_of(values)).tolist() == [TOP - 1, TOP]
    assert rankings.rank_curve(swapped)[1] == pytest.approx(rankings.rank_curve(values)[1], rel=2e-7)
    assert rankings.shared(values, swapped, TOP) == TOP - 1
    assert rankings.rank_correlation(values, swapped) > 1 - 1e-6
    for members in (order[:TOP], order[TOP // 2:NEURONS // 2]):
        assert rankings.over_median(swapped, members) == pytest.approx(rankings.over_median(values, members), rel=2e-7)
        assert abs(rankings.median_rank(swapped, members) - rankings.median_rank(values, members)) <= 1


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


# ---- influence beside scores


def scored(n=200, seed=0, **scores):
    """Neurons whose share through the unigram direction is their influence, their other scores of no size or given."""
    rng = np.random.default_rng(seed)
    influence = rng.lognormal(size=n)
    made = {"neuron": np.arange(n), "influence": influence, "kl": rng.normal(size=n), "entropy": rng.normal(size=n),
            "unigram_share": influence / influence.max(), "scale_share": rng.random(n),
            "side": np.where(np.arange(n) % 4, "boost", "suppress"), "rare": influence >= np.sort(influence)[-10]}
    return pd.DataFrame(made | {name: score(influence, rng) for name, score in scores.items()})


def in_proportion(influence, rng):
    """A score that says nothing but how large the neuron's effect is, up to 5 %."""
    return -influence * np.exp(0.05 * rng.normal(size=len(influence)))


def test_overlap_is_whole_where_share_is_influence_and_chance_where_not():
    found = rankings.overlaps(scored()).set_index(["score", "side"])
    assert (found.loc["unigram_share", "shared"] == found.loc["unigram_share", "k"]).all()
    assert found.loc[("unigram_share", "all"), "correlation"] == pytest.approx(1)
    assert found.loc[("unigram_share", "all"), "p"] < 1e-6 and found.loc[("scale_share", "all"), "p"] > 0.01
    assert found.loc[("entropy", "all"), "chance"] == pytest.approx(0.5)
    assert found.loc[("kl", "boost"), "neurons"] == 150 and found.loc[("kl", "all"), "k"] == 10
    assert found.loc[("kl", "boost"), "k"] + found.loc[("kl", "suppress"), "k"] == 10
    for share in ("unigram_share", "scale_share"):
        assert (found.loc[share, "relative"] == found.loc[share, "shared"]).all()


def test_scores_that_only_grow_with_influence_share_all_and_test_nothing():
    runs = [rankings.overlaps(scored(seed=seed, kl=in_proportion)).set_index(["score", "side"]).loc[("kl", "all")]
            for seed in range(40)]
    shared, relative, p = (np.array([run[name] for run in runs]) for name in ("shared", "relative", "p"))
    assert (shared >= runs[0]["k"] - 3).all()
    assert relative.mean() == pytest.approx(runs[0]["chance"], abs=0.4) and np.mean(p < 0.05) <= 0.1


def test_scores_beyond_their_influence_are_found_with_their_sign():
    def more(influence, rng):
        return in_proportion(influence, rng) * np.where(influence >= np.sort(influence)[-10], 2, 1)

    row = rankings.overlaps(scored(kl=more)).set_index(["score", "side"]).loc[("kl", "all")]
    assert row["relative"] == row["k"] == 10 and row["p"] < 1e-6
    assert row["group"] == pytest.approx(-2, abs=0.1) and row["others"] == pytest.approx(-1, abs=0.1)


def test_neurons_without_influence_have_no_score_per_nat():
    silent = scored(kl=in_proportion)
    silent.loc[silent["influence"].nsmallest(50).index, ["influence", "kl", "entropy"]] = 0.0
    found = rankings.overlaps(silent)
    assert rankings.per_nat(silent, "kl").isna().sum() == 50
    assert found.loc[found["side"] == "all", ["group", "others"]].notna().all(axis=None)
