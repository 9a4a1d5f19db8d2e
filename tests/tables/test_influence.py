"""How far the head stands out: the ratio to the median neuron and its null, the plateau's share."""

from types import SimpleNamespace

import numpy as np
import pytest

from rare_token_neurons.curve import nulls
from rare_token_neurons.statistics import controls
from rare_token_neurons.tables import influence as influences

NEURONS, DOCUMENTS = 600, 120
IN_A = np.arange(DOCUMENTS) % 2 == 0


@pytest.fixture
def planted():
    """Ten neurons with ten times the others' influence, documents of four positions."""
    rng = np.random.default_rng(0)
    true = np.where(np.arange(NEURONS) < 10, 10.0, 1.0)
    return rng.gamma(4, true / 4, size=(DOCUMENTS, 4, NEURONS)).sum(axis=1), np.full(DOCUMENTS, 4)


def groups(members):
    pool = np.setdiff1d(np.arange(NEURONS), members)
    return {"random": controls.random_groups(NEURONS, len(members), 200), "matched": controls.random_groups(pool, len(members), 200)}


def test_the_ratio_of_a_planted_group(planted):
    members = np.arange(10)
    row = influences.ratio(*planted, members, groups(members), draws=300)
    assert row["value"] == pytest.approx(10, rel=0.05) and row["low"] < row["value"] < row["high"]
    assert row["low"] > nulls.ranked_null(*planted, IN_A, 10, draws=200).max()
    assert row["random"] == pytest.approx(1 + 9 * 10 / NEURONS, rel=0.1) and row["matched"] == pytest.approx(1, rel=0.02)


def test_a_group_like_the_others_has_the_median_influence(planted):
    members = np.arange(300, 310)
    row = influences.ratio(*planted, members, groups(members), draws=300)
    assert row["value"] == pytest.approx(1, abs=0.05) and row["high"] < nulls.ranked_null(*planted, IN_A, 10, draws=200).min()


def test_documents_of_unlike_length_count_by_their_positions():
    sums, counts = np.array([[9.0, 1, 1], [3.0, 1, 1]]), np.array([3.0, 1])
    row = influences.ratio(sums, counts, np.array([0]), {}, draws=50)
    assert row["value"] == pytest.approx((12 / 4) / (2 / 4))


def test_ranking_alone_lifts_the_top_to_four_times_the_median():
    # mean of |z| beyond its 98.24 % quantile is 2 phi(q) / 0.0176 with q = 2.374; the median is 0.6745
    sums = np.tile(np.abs(np.random.default_rng(0).normal(size=1536)), (40, 1))  # every document alike: no noise
    null = nulls.ranked_null(sums, np.ones(40), np.arange(40) < 20, 27, draws=300)
    assert null.mean() == pytest.approx(2 * 0.02383 / 0.01758 / 0.6745, rel=0.02)
    other = nulls.ranked_null(sums, np.ones(40), np.arange(40) < 20, 27, draws=300, seed=1)
    assert null.shape == (300,) and other.mean() != null.mean()
    dead = np.pad(sums, ((0, 0), (0, 400)))
    assert nulls.ranked_null(dead, np.ones(40), np.arange(40) < 20, 27, draws=300).mean() > 1.2 * null.mean()


def test_half_normal_neurons_do_not_stand_out():
    """Chosen on half A, measured on half B, with the documents' noise: p is uniform, whatever the network's size."""
    p, rng = [], np.random.default_rng(0)
    for _ in range(40):
        true = np.abs(rng.normal(size=NEURONS))
        sums, counts = rng.gamma(2, true / 2, size=(60, NEURONS)), np.ones(60)
        in_a = np.arange(60) % 2 == 0
        members = np.argsort(-sums[in_a].sum(0))[:10]
        value = influences.ratio(sums[~in_a], counts[~in_a], members, {}, draws=20)["value"]
        p.append(controls.empirical_p(value, nulls.ranked_null(sums, counts, in_a, 10, draws=200), "greater"))
    assert np.mean(np.array(p) < 0.05) <= 0.15 and 0.25 < np.mean(p) < 0.75


def test_the_share_of_the_plateau_and_its_p_values():
    changes = SimpleNamespace(breaks=2, boundaries=(34, 1200), intervals={"plateau_end": (30.0, 41.0)})
    families = {name: SimpleNamespace(p_plateau=p) for name, p in (("lognormal", 0.01), ("half-normal", 0.2))}
    row = influences.plateau(changes, families, 1700)
    assert row == {"breaks": 2, "value": 0.02, "low": 30 / 1700, "high": 41 / 1700, "null": 0.0, "p_lognormal": 0.01, "p_half_normal": 0.2}
