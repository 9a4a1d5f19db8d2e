"""The curve's tests keep their promises on planted samples (few runs here, more in the notebook,
1,000 by `calibrate`)."""

import numpy as np
import pytest
from scipy import stats

from rare_token_neurons.curve import calibration, heads


def test_a_planted_shelf_stands_above_its_law_by_what_it_says_and_is_flat():
    ranks = np.arange(1, calibration.NEURONS + 1.0)
    for size in (10, 30, 60):
        for raised in (0.5, 1.0):
            curve = np.log(calibration.shelf(ranks, size, raised))
            above = curve - np.log(calibration.law(ranks))
            assert above[:size].mean() == pytest.approx(raised, abs=0.15) and (above[size:] == 0).all()
            assert curve[0] - curve[size - 1] < 0.3


def test_measured_sums_are_unbiased_and_as_noisy_as_they_say():
    truth = calibration.law(np.arange(1, 501.0))
    sums, counts = calibration.measured(truth, np.random.default_rng(0), documents=2000)
    assert np.mean(sums.sum(axis=0) / counts.sum() / truth) == pytest.approx(1.0, abs=0.01)
    halves = [calibration.measured(truth, np.random.default_rng(seed), documents=50) for seed in range(40)]
    spread = np.std([np.log(sums.sum(axis=0) / counts.sum()) for sums, counts in halves], axis=0)
    assert spread.mean() == pytest.approx(0.05, abs=0.01)


def test_the_sample_of_a_law_is_a_power_law_up_to_its_end():
    n, tail = 100_000, 20_000
    values = calibration.law(np.random.default_rng(0).uniform(0, n, n), tail=tail)
    inside = values[values > calibration.law(tail * 1.0, tail=tail)]
    power = -1 / calibration.KAPPA
    law = stats.kstest(inside, lambda x: 1 - x**power / tail)
    assert len(inside) == pytest.approx(tail, rel=0.03) and law.pvalue > 0.01


@pytest.mark.parametrize("check", [calibration.told, calibration.laws])
def test_promises_are_kept(check):
    for promise in check(4, draws=40):
        assert promise.runs == 4
        assert promise.kept >= (4 if promise.wanted == 100 else 3 if promise.wanted else 1), promise


def test_the_middle_of_a_planted_law_is_not_rejected():
    found = calibration.middles(5, draws=20)
    assert [promise.wanted for promise in found] == [85, 0, 85, 90] and min(promise.kept for promise in found) >= 4


def test_what_is_told_of_heads_is_counted():
    rows = calibration.heads_told(2, names=("rounded", "shelf of 60, raised 1.0"), draws=40)
    assert [(row["sample"], row["head"]) for row in rows] == [
        (name, head) for name in ("shelf of 60, raised 1.0", "rounded") for head in heads.BREAKS]
    for row in rows:
        assert sum(row[word] for word in heads.WORDS) == 1 and row["runs"] == 2
    by_name = {row["sample"]: row for row in rows if row["head"] == heads.DECIDES}
    assert by_name["shelf of 60, raised 1.0"]["plateau"] == 1 and by_name["rounded"]["plateau"] == 0
    assert by_name["shelf of 60, raised 1.0"]["delta"] == pytest.approx(1.0, abs=0.3)
    assert np.isnan(by_name["rounded"]["late"]) and by_name["shelf of 60, raised 1.0"]["late"] in (0, 0.5, 1)


def test_where_a_law_ends_is_known_of_those_that_end():
    assert set(calibration.ENDS) == {name for name in (*calibration.SIZES, *calibration.SHELVES)
                                     if name.startswith("shelf") or name.endswith(("200", "600"))}


def test_contrasts_are_counted():
    rows = calibration.contrasts_told(4, names=["a shelf of 30, raised 1.0, and a law"], coupled=(0.7,), draws=40)
    assert [(row["coupled"], row["runs"]) for row in rows] == [(0.7, 4)] and rows[0]["apart"] >= 0.5
    one, two = calibration.pair(np.random.default_rng(0), calibration.law, calibration.law, 0.7)
    assert stats.spearmanr(one, two)[0] == pytest.approx(6 / np.pi * np.arcsin(0.35), abs=0.05)


def test_every_promise_is_made_once():
    made = calibration.told(1, draws=20) + calibration.laws(1, draws=5) + calibration.middles(1, draws=5)
    assert len({promise.name for promise in made}) == len(made) == 12


def test_a_promise_is_a_rate():
    assert calibration.Promise("", 18, 20, 90).holds and not calibration.Promise("", 17, 20, 90).holds
