"""Lines with breaks: the search is exact, and a bent line gives itself back."""

import itertools

import numpy as np
import pytest

from rare_token_neurons.curve import piecewise


def residual(x, curve, knots):
    """Sum of squares that a continuous line with these breaks leaves, by numpy."""
    design = np.column_stack([np.ones(len(x)), x] + [np.maximum(x - knot, 0) for knot in knots])
    return np.linalg.lstsq(design, curve, rcond=None)[1][0]


def test_search_is_exact_against_brute_force():
    rng = np.random.default_rng(0)
    x = np.linspace(0, 5, 16)
    y = rng.standard_normal((3, 16)).cumsum(axis=1)
    for number in (0, 1, 2, 3):
        places = np.linspace(0, 5, piecewise.PLACES[number] * 16)
        line = piecewise.fit(x, y, number)
        for curve, found in zip(y, line.knots, strict=True):
            rss, best = residual(x, curve, found), np.inf
            for knots in itertools.combinations(places, number):
                pieces = np.array([np.sum(np.searchsorted(x, knots) <= i) for i in range(16)])
                if min(np.bincount(pieces, minlength=number + 1)) < piecewise.LEAST_POINTS:
                    continue
                best = min(best, residual(x, curve, knots))
            assert rss == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("at", [(), (40,), (30, 80), (12, 25, 40)])
def test_fit_of_a_bent_line_is_the_line(at):
    x = np.linspace(0, 7, 61)
    knots = np.linspace(0, 7, piecewise.PLACES[len(at)] * 61)[list(at)]
    bends = np.array([-0.6, -2.0, 1.5])[: len(at)]  # a shelf, a cliff, the law after it
    y = 2 - 0.1 * x + np.maximum(x[:, None] - knots, 0) @ bends
    line = piecewise.fit(x, y, len(at))
    np.testing.assert_allclose(line.knots, knots)
    np.testing.assert_allclose(line.slopes, -0.1 + np.append(0, np.cumsum(bends)), atol=1e-9)


def test_a_cliff_needs_three_breaks():
    """A shelf, a cliff, the law, a decay: two breaks draw one line through cliff and law, or through law and decay."""
    x = np.linspace(0, np.log(1024), 61)
    shelf, cliff, end = np.log([20, 40, 300])
    y = -2.0 * np.clip(x - shelf, 0, cliff - shelf) - 0.6 * np.maximum(x - cliff, 0) - 2.4 * np.maximum(x - end, 0)
    errors = [residual(x, y, piecewise.fit(x, y, number).knots) for number in range(4)]
    assert errors == sorted(errors, reverse=True) and errors[3] < 0.05 * errors[2]
    assert np.exp(piecewise.fit(x, y, 3).knots) == pytest.approx([20, 40, 300], rel=0.12)


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
        np.testing.assert_allclose(together.slopes[place], alone.slopes, atol=1e-9)


def test_dead_bins_take_the_smallest_mean():
    y = piecewise.in_bins(np.array([4.0, 2.0, 0.0, 0.0]), np.array([0, 1, 2]))
    np.testing.assert_allclose(np.exp(y), [4, 2, 2])


@pytest.mark.parametrize("number", [-1, 4])
def test_other_numbers_of_breaks_are_named(number):
    with pytest.raises(ValueError, match=f"0, 1, 2 or 3, not {number}"):
        piecewise.fit(np.arange(30.0), np.arange(30.0), number)


def test_a_short_curve_is_named():
    with pytest.raises(ValueError, match="a curve of 9 bins is too short for 2 breaks"):
        piecewise.fit(np.arange(9.0), np.arange(9.0), 2)
