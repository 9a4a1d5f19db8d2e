"""Lines with breaks: the search is exact, a bent line gives itself back, phases follow from slopes."""

import itertools

import numpy as np
import pytest

from rare_token_neurons.curve import piecewise


def test_search_is_exact_against_brute_force():
    rng = np.random.default_rng(0)
    x = np.linspace(0, 5, 16)
    y = rng.standard_normal((3, 16)).cumsum(axis=1)
    places = np.linspace(0, 5, piecewise.KNOTS_PER_POINT * 16)
    for number in (1, 2):
        line = piecewise.fit(x, y, number)
        for curve, rss in zip(y, np.square(y - line.fitted).sum(axis=1), strict=True):
            best = np.inf
            for knots in itertools.combinations(places, number):
                pieces = np.array([np.sum(np.searchsorted(x, knots) <= i) for i in range(16)])
                if min(np.bincount(pieces, minlength=number + 1)) < piecewise.LEAST_POINTS:
                    continue
                design = np.column_stack([np.ones(16), x] + [np.maximum(x - knot, 0) for knot in knots])
                best = min(best, np.linalg.lstsq(design, curve, rcond=None)[1][0])
            assert rss == pytest.approx(best, rel=1e-9)


def test_fit_of_a_bent_line_is_the_line():
    x = np.linspace(0, 7, 61)
    places = np.linspace(0, 7, piecewise.KNOTS_PER_POINT * 61)
    knots = places[[30, 80]]
    y = 2 - 0.1 * x - 0.6 * np.maximum(x - knots[0], 0) - 2 * np.maximum(x - knots[1], 0)
    line = piecewise.fit(x, y, 2)
    np.testing.assert_allclose(line.knots, knots)
    np.testing.assert_allclose(line.slopes, [-0.1, -0.7, -2.7], atol=1e-9)
    np.testing.assert_allclose(line.fitted, y, atol=1e-9)


def test_bins_hold_every_rank_once_and_keep_a_power_law_straight():
    starts, x = piecewise.bins(2048)
    sizes = np.diff(np.append(starts, 2048))
    assert starts[0] == 0 and sizes.sum() == 2048 and sizes.min() == 1
    y = piecewise.in_bins(np.arange(1, 2049) ** -0.7, starts)
    np.testing.assert_allclose(y, -0.7 * x, atol=5e-3)


def test_many_curves_are_fitted_as_one_by_one():
    rng = np.random.default_rng(1)
    x, y = np.linspace(0, 6, 40), rng.standard_normal((450, 40)).cumsum(axis=1)
    together = piecewise.fit(x, y, 2)
    for place in (0, 200, 449):
        alone = piecewise.fit(x, y[place], 2)
        np.testing.assert_array_equal(together.knots[place], alone.knots)
        np.testing.assert_allclose(together.fitted[place], alone.fitted, atol=1e-9)


@pytest.mark.parametrize("slopes, expected", [
    ((-0.1, -0.7, -3.0), (10, 100, 0.7)),
    ((-2.0, -0.7, -3.0), (0, 100, 0.7)),        # a steep head is made of outliers
])
def test_phases_of_two_breaks(slopes, expected):
    line = piecewise.Line(np.log([10, 100]), np.array(slopes), np.zeros(3))
    assert [float(value) for value in piecewise.boundaries(line, 1000)] == pytest.approx(expected)


@pytest.mark.parametrize("slopes, n, law, expected", [
    ((-0.1, -0.7, -0.2), 500, 1, (10, 500, 0.7)),     # a short flat tail: no decay, the law is the middle
    ((-0.3, -1.7, -0.7), 5000, 2, (0, 5000, 0.7)),    # a step between two levels: the head lies above the long law
    ((-0.05, -0.72, -0.7), 5000, 2, (10, 5000, 0.7)), # a bend in the law itself: the head lies below it all the same
    ((-0.05, -0.7, -0.72), 5000, 1, (10, 100, 0.7)),
])
def test_a_tail_flatter_than_the_middle_is_no_decay_and_may_be_the_law(slopes, n, law, expected):
    line = piecewise.Line(np.log([10, 100]), np.array(slopes), np.zeros(3))
    assert piecewise.law(line, n) == law
    assert [float(value) for value in piecewise.boundaries(line, n)] == pytest.approx(expected)
    start, end = [(np.log(10), np.log(100)), (np.log(100), np.log(n))][law - 1]
    np.testing.assert_allclose(piecewise.windows(line, n), [np.log(10), start, end])


def test_the_sign_of_the_head_is_that_of_its_mean_distance_to_the_law():
    """By hand over 400 random lines: fitted values against the law's line carried back to the first rank."""
    rng = np.random.default_rng(0)
    knots = np.sort(rng.uniform(1, 7.5, (400, 2)), axis=1)
    slopes = -rng.uniform(0, 2, (400, 3))
    line = piecewise.Line(knots, slopes, np.zeros((400, 9)))
    plateau, x = piecewise.boundaries(line, 3000)[0], np.linspace(0, np.log(3000), 20_001)
    for place, law in enumerate(piecewise.law(line, 3000)):
        bends = np.diff(slopes[place])
        y = slopes[place, 0] * x + sum(bend * np.maximum(x - knot, 0) for bend, knot in zip(bends, knots[place]))
        carried = np.interp(knots[place, law - 1], x, y) + slopes[place, law] * (x - knots[place, law - 1])
        head = x <= knots[place, 0]
        assert (plateau[place] > 0) == ((y - carried)[head].mean() < 0)
    assert 0 < np.mean(piecewise.law(line, 3000) == 2) < 1


def test_law_range_of_a_step_is_the_long_stretch_after_it():
    x = np.log(np.arange(1, 1025))
    curve = np.exp(-1.7 * np.clip(x - np.log(20), 0, np.log(3)) - 0.7 * np.maximum(x - np.log(60), 0))
    low, high = piecewise.law_range(curve)
    whole = 1024 / 60  # of the stretch in ranks, a tenth in the logarithm is left out at either end
    assert low == pytest.approx(3 ** -1.7 * whole ** (-0.7 * 0.9), rel=0.1)
    assert high == pytest.approx(3 ** -1.7 * whole ** (-0.7 * 0.1), rel=0.1)


def test_one_break_belongs_to_the_shorter_stretch():
    early = piecewise.Line(np.log([10]), np.array([-0.1, -0.7]), np.zeros(3))
    late = piecewise.Line(np.log([100]), np.array([-0.7, -3.0]), np.zeros(3))
    assert [float(value) for value in piecewise.boundaries(early, 1000)] == pytest.approx([10, 1000, 0.7])
    assert [float(value) for value in piecewise.boundaries(late, 1000)] == pytest.approx([0, 100, 0.7])


def test_law_range_is_the_influence_between_the_breaks():
    x = np.log(np.arange(1, 1025))
    curve = np.exp(-0.7 * np.clip(x - np.log(30), 0, np.log(200 / 30)) - 3 * np.maximum(x - np.log(200), 0))
    low, high = piecewise.law_range(np.append(np.random.default_rng(0).permutation(curve), np.zeros(9)))
    whole = (200 / 30) ** -0.7  # of the stretch, a tenth is left out at either end
    assert high == pytest.approx(whole**0.1, rel=0.05) and low == pytest.approx(whole**0.9, rel=0.05)
    straight = np.arange(1, 1025) ** -0.7
    assert piecewise.law_range(straight, breaks=0) == (straight[511], straight[1])  # 2^9 and 2^1 of 2^10 ranks


def test_the_last_neurons_fall_off_a_law_without_bending_it():
    curve = np.arange(1, 1025) ** -0.7 * np.append(np.ones(994), np.geomspace(1, 1e-3, 30))
    assert piecewise.law_range(curve, breaks=0)[0] == curve[511]


def test_dead_bins_take_the_smallest_mean():
    y = piecewise.in_bins(np.array([4.0, 2.0, 0.0, 0.0]), np.array([0, 1, 2]))
    np.testing.assert_allclose(np.exp(y), [4, 2, 2])


def test_bad_numbers_of_breaks_are_named():
    with pytest.raises(ValueError, match="0, 1 or 2"):
        piecewise.fit(np.arange(30.0), np.arange(30.0), 3)
    with pytest.raises(ValueError, match="too short"):
        piecewise.fit(np.arange(9.0), np.arange(9.0), 2)
