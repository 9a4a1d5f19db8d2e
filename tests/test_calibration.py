"""The curve's tests keep their promises on planted data (few runs here, the full count in the notebook)."""

import numpy as np
import pytest

from rare_token_neurons import calibration


def test_planted_curve_has_its_corners_where_it_says():
    curve = np.log(calibration.planted(1024))
    bends = np.abs(np.diff(np.diff(curve) / np.diff(np.log(np.arange(1, 1025)))))
    assert sorted(np.argsort(-bends)[:2] + 2) == [calibration.HEAD, calibration.TAIL]


def test_measured_sums_are_unbiased():
    truth = calibration.planted(500)
    sums, counts = calibration.measured(truth, np.random.default_rng(0), documents=2000)
    assert np.mean(sums.sum(axis=0) / counts.sum() / truth) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("check, runs", [(calibration.boundary, 6), (calibration.null_heads, 4), (calibration.laws, 4)])
def test_promises_are_kept(check, runs):
    for promise in check(runs, n=512, draws=40):
        assert promise.runs == runs
        assert promise.kept >= runs - 1, f"{promise.name}: {promise.kept} of {promise.runs}"


def test_a_promise_is_a_rate():
    assert calibration.Promise("", 18, 20, 90).holds and not calibration.Promise("", 17, 20, 90).holds
