"""The curve's tests keep their promises on planted data (few runs here, the full count in the notebook)."""

import numpy as np
import pytest
from scipy import stats

from rare_token_neurons.curve import calibration


def test_planted_curve_has_its_corners_where_it_says():
    curve = np.log(calibration.planted(1024))
    bends = np.abs(np.diff(np.diff(curve) / np.diff(np.log(np.arange(1, 1025)))))
    assert sorted(np.argsort(-bends)[:2] + 2) == [calibration.HEAD, calibration.TAIL]


def test_measured_sums_are_unbiased():
    truth = calibration.planted(500)
    sums, counts = calibration.measured(truth, np.random.default_rng(0), documents=2000)
    assert np.mean(sums.sum(axis=0) / counts.sum() / truth) == pytest.approx(1.0, abs=0.01)


def test_the_sample_of_the_planted_curve_is_a_power_law_between_its_corners():
    n, head, tail = 100_000, 3_000, 20_000
    high, low = calibration.planted(n, head=head, tail=tail)[[head - 1, tail - 1]]
    values = calibration.sampled(n, np.random.default_rng(0), head=head, tail=tail)
    inside = values[(values > low) & (values < high)]
    power = -1 / calibration.SLOPES[1]
    law = stats.kstest(inside, lambda x: (low**power - x**power) / (low**power - high**power))
    assert len(inside) == pytest.approx(tail - head, rel=0.03) and law.pvalue > 0.01
    assert np.sum(values >= high) == pytest.approx(head, rel=0.06)


@pytest.mark.parametrize("check, runs", [(calibration.boundary, 6), (calibration.null_heads, 4), (calibration.laws, 4)])
def test_promises_are_kept(check, runs):
    for promise in check(runs, n=512, draws=40):
        assert promise.runs == runs
        assert promise.kept >= runs - (promise.wanted < 100), f"{promise.name}: {promise.kept} of {promise.runs}"


def test_the_middle_of_a_planted_law_is_not_rejected_between_its_true_ends():
    fitted, true, endless, lognormal = calibration.middles(6, n=512, draws=20)
    assert (fitted.wanted, true.wanted, endless.wanted, lognormal.wanted) == (85, 0, 85, 90)
    assert min(promise.kept for promise in (fitted, true, endless, lognormal)) >= 5


def test_every_promise_is_made_once():
    made = calibration.promises(0)
    assert len({promise.name for promise in made}) == len(made) == 11


def test_a_promise_is_a_rate():
    assert calibration.Promise("", 18, 20, 90).holds and not calibration.Promise("", 17, 20, 90).holds
