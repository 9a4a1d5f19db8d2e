"""Heads of planted curves: found where they are, told by their word, set beside each other; laws that are laws."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from rare_token_neurons.curve import calibration, heads
from rare_token_neurons.statistics import documents

N, TAIL, KAPPA = 1024, calibration.TAIL, calibration.KAPPA
RANKS = np.arange(1, N + 1) - 0.5
LAW = calibration.law(RANKS)
SHELF = calibration.shelf(RANKS, 30, 1.0)
ROUNDED = calibration.law(np.maximum(RANKS, 30))
OUTLIERS = np.append(LAW[:5] * np.exp(1.5), LAW[5:])


def measured(truth, seed=0, count=60, noise=0.3):
    return calibration.measured(truth, np.random.default_rng(seed), documents=count, noise=noise)


def judged(truth, seed=0, draws=40):
    """Of a measured curve: the heads, and what they are."""
    found = heads.measure(*measured(truth, seed), draws=draws, seed=seed)
    return found, heads.judge(found, heads.null_curves(found, draws=draws, seed=seed + 1))


# ---- where the head and the law are


@pytest.mark.parametrize("head", heads.BREAKS)
def test_a_shelf_is_found_with_its_height_and_its_law(head):
    found = heads.find(SHELF, head)
    assert found.kappa[0] == pytest.approx(KAPPA, abs=0.03) and found.end[0] == pytest.approx(TAIL, rel=0.1)
    assert found.decay[0]
    size, line = found.size[0], found.beta[0] - found.kappa[0] * np.log(np.arange(1, N + 1))
    assert found.delta[0] == pytest.approx((np.log(SHELF) - line)[:size].mean())  # the definition, by hand
    assert found.score[0] == pytest.approx(np.sqrt(size / 2) * found.delta[0] / found.kappa[0])
    assert found.slope[0] < 0.5 * KAPPA


def test_the_two_heads_have_the_sizes_that_they_are_defined_by():
    assert heads.head_size(1000) == 17 and heads.head_size(1001) == 18
    fitted, fixed = (heads.find(SHELF, head) for head in ("fitted", "fixed"))
    assert fixed.size[0] == heads.head_size(N) and 22 < fitted.shelf[0] < 34
    assert fitted.size[0] == int(fitted.start[0]) and 30 <= fitted.size[0] < 60  # the cliff belongs to the head


def test_a_pure_law_that_ends_in_a_decay_has_a_head_on_its_line():
    for kappa in (0.3, 0.7, 1.2):
        for head in heads.BREAKS:
            found = heads.find(calibration.law(RANKS + 0.5, kappa), head)
            assert abs(found.delta[0]) < 0.02 * max(1, kappa) and found.kappa[0] == pytest.approx(kappa, rel=0.05)
            assert found.end[0] == pytest.approx(TAIL, rel=0.15) and found.decay[0]


def test_a_decay_as_long_as_the_law_is_not_taken_for_it():
    """The paper's own shape, law from ln rank 3.5 to 5.5 of 7.6, in samples of 2,000 neurons."""
    rng, n, tail = np.random.default_rng(0), 2000, 245
    ranks = np.sort(rng.uniform(0, n, (40, n)), axis=1)
    curves = calibration.shelf(ranks, 33, 0.5, tail=tail) * np.exp(0.03 * rng.standard_normal((40, n)))
    for head in heads.BREAKS:
        found = heads.find(curves, head)
        assert np.mean(found.end > calibration.LONGEST * tail) <= 0.05
        assert np.median(found.kappa) == pytest.approx(KAPPA, abs=0.12)


def test_without_a_decay_the_law_reaches_the_end():
    """Neither a shelf nor a part of it, before the cliff, is the law; at exact ranks and in samples."""
    ranks = np.append(RANKS[None], np.sort(np.random.default_rng(0).uniform(0, N, (40, N)), axis=1), axis=0)
    found = heads.find(calibration.shelf(ranks, 30, 1.0, tail=N), "fitted")
    assert not found.decay[0] and found.end[0] == pytest.approx(N) and found.delta[0] > 0.5
    assert np.mean(found.start < 30) < 0.1 and np.mean(found.delta > 0.3) > 0.9


def test_a_law_that_begins_late_after_a_cliff_is_a_law_and_no_decay():
    ranks = np.sort(np.random.default_rng(0).uniform(0, N, (40, N)), axis=1)
    found = heads.find(calibration.shelf(ranks, 40, 0.5, tail=N, cliff=3), "fitted")
    assert (found.start > heads.LATEST * N).any() and np.mean(found.delta > 0.2) > 0.8
    assert np.median(found.kappa) == pytest.approx(KAPPA, abs=0.12)


def test_many_curves_are_found_as_one_by_one_and_units_do_not_matter():
    curves = np.stack([SHELF, 7e-5 * SHELF, ROUNDED])
    for head in heads.BREAKS:
        together = heads.find(curves, head)
        for place, curve in enumerate(curves):
            alone = [part[0] for part in vars(heads.find(curve, head)).values()]
            assert [part[place] for part in vars(together).values()] == pytest.approx(alone)
        assert together.delta[0] == pytest.approx(together.delta[1]) and together.size[0] == together.size[1]
        assert together.beta[1] - together.beta[0] == pytest.approx(np.log(7e-5))


def test_the_range_of_the_law_lies_between_its_ends():
    values = np.append(np.random.default_rng(0).permutation(SHELF), np.zeros(9))
    low, high = heads.law_range(values)
    start, end = (np.log(getattr(heads.find(SHELF), name)[0]) for name in ("start", "end"))
    margin = heads.INSIDE * (end - start)
    ranks = np.exp([end - margin, start + margin]).round().astype(int)
    assert (low, high) == pytest.approx(tuple(SHELF[ranks - 1]))
    assert SHELF[TAIL] < low < high < SHELF[29]


# ---- what the head is called


@pytest.mark.parametrize("truth, fitted, fixed", [
    (SHELF, "plateau", "plateau"),
    (ROUNDED, None, "rounded"),
    (OUTLIERS, "outliers", None),
    (LAW, "on the line", None),
])
def test_planted_heads_are_called_what_they_are(truth, fitted, fixed):
    _, verdicts = judged(truth)
    for head, expected in (("fitted", fitted), ("fixed", fixed)):
        assert verdicts[head].word in heads.WORDS
        if expected:
            assert verdicts[head].word == expected
        else:
            assert (verdicts[head].word == "plateau") == (truth is SHELF)
        assert verdicts[head].floor == 1 / 41 and set(verdicts[head].p) == {"lognormal", "half-normal", "law"}


def test_a_sample_of_a_law_is_not_raised_but_beside_families_alone_it_would_be():
    """Independent draws from a law with a decay: the law's own null keeps the size."""
    beyond_families = raised = 0
    for seed in range(6):
        truth = np.maximum(calibration.SIZES["law, kappa 0.7, to rank 200"](np.random.default_rng(seed)), 1e-12)
        _, verdicts = judged(-np.sort(-truth), seed)
        p = verdicts["fixed"].p
        beyond_families += max(p[name] for name in heads.FAMILIES) < heads.LEVEL
        raised += max(p.values()) < heads.LEVEL
    assert raised <= 1 < beyond_families


@pytest.mark.parametrize("low, high, flat, p, expected", [
    (0.2, 0.9, 0.01, 0.01, "plateau"),
    (0.2, 0.9, 0.05, 0.01, "outliers"),
    (0.2, 0.9, 0.01, 0.05, "on the line"),      # no better than one of the nulls
    (-0.1, 0.9, 0.01, 0.01, "on the line"),
    (-0.9, -0.2, 0.01, 0.99, "rounded"),
])
def test_the_word_follows_from_interval_p_and_flatness(low, high, flat, p, expected):
    found = SimpleNamespace(interval=lambda head, name: (low, high))
    assert heads.word(found, "fitted", {"lognormal": 0.001, "law": p}, flat) == expected


def test_the_slope_of_a_head_is_that_of_its_shelf_and_not_of_the_cliff():
    ranks = np.arange(1, N + 1) - 0.5
    cliff, step = (calibration.shelf(ranks, 30, 1.0, tail=TAIL, cliff=cliff) for cliff in (2.0, 1.0))
    found = heads.find(cliff)
    assert 25 < found.shelf[0] < 35 < found.size[0]
    assert found.slope == pytest.approx(heads.find(step).slope, abs=0.02) and found.slope[0] < 0.15
    assert heads.slopes(cliff[None], found.size)[0] > 0.3


def test_the_measured_curve_holds_the_truth_and_its_draws_their_documents():
    sums, counts = measured(SHELF)
    found = heads.measure(np.hstack([np.zeros((60, 50)), sums[:, ::-1]]), counts, draws=40, seed=3)
    assert found.sums.shape[1] == N and len(found.curve) == N + 50 and (found.curve[N:] == 0).all()
    assert np.abs(np.log(found.curve[:N] / SHELF)).max() < 0.25
    low, high = found.interval("fixed", "delta")
    assert low < heads.find(SHELF, "fixed").delta[0] < high and len(found.drawn["fixed"].delta) == 40
    again, other = (heads.measure(sums[:, ::-1], counts, draws=40, seed=seed) for seed in (3, 4))
    assert np.array_equal(again.drawn["fixed"].delta, found.drawn["fixed"].delta)
    assert not np.array_equal(other.drawn["fixed"].delta, found.drawn["fixed"].delta)
    twice = heads.measure(2 * sums[:, ::-1], counts, draws=40, seed=3)
    np.testing.assert_allclose(twice.drawn["fitted"].beta - again.drawn["fitted"].beta, np.log(2))


def test_samples_of_the_law_are_the_law_and_the_measured_rest():
    found, curve = heads.find(SHELF), -np.sort(-SHELF)
    drawn, end = heads.law_curves(found, curve, 200, np.random.default_rng(0)), round(found.end[0])
    assert drawn.shape == (200, N) and (np.diff(drawn, axis=1) <= 0).all()
    lowest = np.exp(found.beta[0] - found.kappa[0] * np.log(end))
    excess = np.log(drawn[:, :end] / lowest)  # exponential, with mean kappa
    above = excess[excess > 0.01]
    assert stats.kstest(above[::20] - 0.01, stats.expon(scale=found.kappa[0]).cdf).pvalue > 0.001
    assert np.isin(curve[end + 40:], drawn[0]).all()


# ---- two curves


def test_of_two_curves_the_higher_head_is_told():
    one, two = measured(SHELF), measured(LAW, seed=1)
    found = heads.contrast(one, two, draws=40)
    apart = [heads.measure(*part, draws=2, seed=0).own["fixed"].delta[0] for part in (one, two)]
    assert found.value == pytest.approx(apart[0] - apart[1]) and found.low < found.value < found.high
    assert found.low > 0 and found.p == 1 / 41 and 0.1 < found.null.std() < 0.5 and abs(found.null.mean()) < 0.2
    back = heads.contrast(two, one, draws=40)
    assert back.value == pytest.approx(-found.value) and back.p > 0.9


def test_a_curve_is_not_told_from_its_like_by_noise_alone():
    one, two = measured(SHELF), measured(SHELF, seed=1)
    assert heads.contrast(one, two, draws=40).p > 0.05 and heads.swapped(one, two, draws=40) > 0.05


def test_documents_and_neurons_without_anything_are_left_out_of_a_contrast():
    (one, n_one), (two, n_two) = measured(SHELF), measured(LAW, seed=1)
    alone = heads.contrast((one, n_one), (two, n_two), draws=10), heads.swapped((one, n_one), (two, n_two), draws=10)
    wider = [(np.vstack([np.pad(sums, ((0, 0), (0, 5))), np.full((1, N + 5), fill)]), np.append(counts, fill))
             for sums, counts, fill in ((one, n_one, 7.0), (two, n_two, 0.0))]
    assert [part.shape for part in heads.shared(*wider)[0]] == [(60, N), (60,)]
    assert heads.contrast(*wider, draws=10).value == pytest.approx(alone[0].value)
    assert heads.swapped(*wider, draws=10) == alone[1]


def test_swapped_labels_tell_what_differs_and_their_p_is_honest():
    assert heads.swapped(measured(SHELF), measured(LAW, seed=1), draws=40) == pytest.approx(2 / 41)
    truth, p = calibration.shelf(np.arange(1, 301) - 0.5, 10, 0.5, tail=100), []
    for seed in range(20):
        one, two = (measured(truth, 2 * seed + part, count=20, noise=0.5) for part in (0, 1))
        p.append(heads.swapped(one, two, draws=19, seed=seed))
    assert np.mean(np.array(p) <= 0.1) <= 0.3 and 0.25 < np.mean(p) < 0.8


def test_a_swapped_document_takes_its_positions_along(monkeypatch):
    (one, n_one), (two, n_two), seen = measured(SHELF, count=8), measured(LAW, seed=1, count=8), []
    monkeypatch.setattr(documents, "curves_drawn", lambda sums, counts, *_, **__: seen.append((sums, counts))
                        or sums[:3])
    heads.swapped((one, n_one), (two, n_two), draws=5)
    assert len(seen) == 2 * 6 and np.array_equal(seen[0][0], one) and np.array_equal(seen[1][0], two)
    moved = 0
    for (first, n_first), (second, n_second) in zip(seen[2::2], seen[3::2]):
        swap = (first == two).all(axis=1)
        assert np.array_equal(n_first, np.where(swap, n_two, n_one))
        assert np.array_equal(n_second, np.where(swap, n_one, n_two))
        assert np.array_equal(second, np.where(swap[:, None], one, two))
        moved += swap.sum()
    assert 0 < moved < 40


# ---- too little


def test_too_few_neurons_or_documents_are_one_sentence_and_can_be_asked_before():
    sums, counts = measured(SHELF)
    assert heads.testable((sums, counts)) and heads.testable((sums, counts), (sums, counts))
    few, short = (sums[:, :199], counts), (sums[:5], counts[:5])
    with pytest.raises(ValueError, match="at least 200 neurons with influence, here are 199"):
        heads.measure(*few)
    with pytest.raises(ValueError, match="at least 6 documents"):
        heads.measure(*short)
    assert not heads.testable(few) and not heads.testable(short)
    dead = np.where(np.arange(N) < 199, sums, 0.0)
    assert not heads.testable((dead, counts)) and not heads.testable((sums, counts), (dead, counts))
    assert not heads.testable((sums, counts), (sums, np.where(np.arange(60) < 5, counts, 0.0)))
    assert documents.LEAST_DOCUMENTS == 6 and heads.testable((sums[:6, :200], counts[:6]))
