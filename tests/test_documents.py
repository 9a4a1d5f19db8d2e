"""Document halves and draws: nothing shared, nothing lost, no winner's curse."""

import numpy as np
import pytest

from rare_token_neurons.statistics import documents as over_documents


def test_parts_share_no_document_and_lose_none():
    weights = over_documents.parts(50, 3, 100, np.random.default_rng(0))       # (3, 100, 50)
    assert (weights.sum(axis=0) == 1).all()
    assert set(weights.sum(axis=-1).ravel()) <= {16, 17}
    assert len(np.unique(weights[0], axis=0)) > 90                         # a new cut every draw


def test_documents_are_drawn_after_the_split():
    weights = over_documents.parts(51, 2, 200, np.random.default_rng(0))
    drawn = over_documents.redraw(weights, np.random.default_rng(1))
    assert ((drawn > 0) <= (weights > 0)).all()                            # never from the other half
    np.testing.assert_array_equal(drawn.sum(axis=-1), weights.sum(axis=-1))
    assert drawn.max() > 1


def test_resamples_are_multinomial_draws_below_every_document_once():
    found = over_documents.resamples(12, 40, [3, 1])
    assert found.shape == (41, 12) and (found[0] == 1).all()
    np.testing.assert_array_equal(found[1:], np.random.default_rng([3, 1]).multinomial(12, np.full(12, 1 / 12), size=40))


def test_split_half_curve_has_no_winners_curse():
    rng = np.random.default_rng(1)
    sums = np.exp(rng.standard_normal((40, 500)))               # 500 equal neurons: all spread is noise
    counts = np.ones(40)
    same = over_documents.curves_drawn(sums, counts, 10, rng, ranking="same_tokens", resample=False).mean(axis=0)
    split = over_documents.curves_drawn(sums, counts, 10, rng, ranking="split_half", resample=False).mean(axis=0)
    assert same[0] / same.mean() > 1.5
    assert split[:20].mean() / split.mean() == pytest.approx(1.0, abs=0.1)


def test_split_half_by_hand():
    first, second = np.array([[3.0, 1.0, 2.0]]), np.array([[10.0, 30.0, 20.0]])
    # by the first: neurons 0, 2, 1 -> 10, 20, 30 on the second; by the second: 1, 2, 0 -> 1, 2, 3
    np.testing.assert_allclose(over_documents.split_half(first, second), [[5.5, 11.0, 16.5]])


def test_influence_is_the_ratio_of_sums():
    sums, counts = np.array([[2.0, -6.0], [4.0, 1.0]]), np.array([2.0, 1.0])
    np.testing.assert_allclose(over_documents.influence(sums, counts, np.array([[1.0, 1], [2, 0]])), [[2, 5 / 3], [1, 3]])


def test_reliability_is_high_with_signal_and_low_without():
    rng = np.random.default_rng(0)
    true = np.exp(rng.standard_normal(500))
    assert over_documents.reliability(true * np.exp(0.3 * rng.standard_normal((40, 500))), np.ones(40)) > 0.95
    assert abs(over_documents.reliability(np.exp(rng.standard_normal((40, 500))), np.ones(40))) < 0.25


def test_detectable_change_is_two_standard_errors():
    rng = np.random.default_rng(0)
    found = over_documents.detectable(rng.standard_normal((400, 300)) * 0.5, np.ones(400))
    assert found.mean() == pytest.approx(1.96 * 0.5 / 20, rel=0.05)


@pytest.mark.parametrize("sums, counts, word", [
    (np.ones((5, 100)), np.ones(5), "at least 6 documents"),
    (np.ones((50, 100)), np.ones(49), "sums must be"),
    (np.full((50, 100), np.nan), np.ones(50), "finite"),
    (np.ones((50, 100)), np.zeros(50), "position"),
])
def test_bad_input_is_one_sentence(sums, counts, word):
    with pytest.raises(ValueError, match=word) as error:
        over_documents.check(sums, counts)
    assert "\n" not in str(error.value)


def test_bad_ranking_is_named():
    with pytest.raises(ValueError, match="ranking"):
        over_documents.curves_drawn(np.ones((9, 30)), np.ones(9), 2, np.random.default_rng(0), ranking="best")
