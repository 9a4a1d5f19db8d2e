"""Labels shuffled within documents, heads that lean to one kind of target, means over documents: known answers."""

import numpy as np
import pandas as pd
import pytest

from rare_token_neurons.tables import modules, rare_tokens, routes


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_labels_are_shuffled_within_documents(rng):
    documents = np.array([4, 4, 4, 1, 1, 7, 4, 1])
    rare = np.array([True, False, False, True, False, True, False, False])
    drawn = routes.shuffled(rare, documents, 400, seed=1)
    for document in (1, 4, 7):
        inside = documents == document
        assert (drawn[:, inside].sum(axis=1) == rare[inside].sum()).all()
        assert drawn[:, inside].mean(axis=0) == pytest.approx(np.full(inside.sum(), rare[inside].mean()), abs=0.08)
    assert np.array_equal(drawn, routes.shuffled(rare, documents, 400, seed=1))


def test_a_head_that_serves_rare_targets_is_found_and_others_are_not(rng):
    documents, rare = np.repeat(np.arange(30), 4), np.tile([True, False, False, False], 30)
    changes = rng.normal(size=(12, 120)) * np.linspace(1, 3, 12)[:, None]
    lean, null = routes.leaning(changes, rare, documents, seed=0)
    assert (lean["q_lean"] > 0.05).all() and abs(lean["lean"]).max() < 0.6
    changes[4, rare] *= 4
    lean, null = routes.leaning(changes, rare, documents, seed=0)
    found = np.flatnonzero((lean["q_lean"] < 0.05) & (lean["lean"] > 0))  # its share takes from that of the others
    assert found.tolist() == [4] and lean["lean"][4] == lean["lean"].max() > 0.8
    assert len(null) == 1000 and np.mean(null) > 0.8


def test_rankings_that_differ_agree_less_than_shuffled_labels(rng):
    documents, rare = np.repeat(np.arange(30), 4), np.tile([True, False, False, False], 30)
    scales = np.where(rare, np.linspace(1, 3, 12)[:, None], np.linspace(3, 1, 12)[:, None])
    _, null = routes.leaning(rng.normal(size=(12, 120)) * scales, rare, documents, seed=0)
    assert np.quantile(null, 0.01) > -0.6  # the observed one is near -1


def test_a_head_without_any_effect_has_no_lean(rng):
    documents, rare = np.repeat(np.arange(10), 3), np.tile([True, False, False], 10)
    changes = rng.normal(size=(3, 30))
    changes[1] = 0
    lean, null = routes.leaning(changes, rare, documents, seed=0)
    assert np.isnan(lean["lean"][1]) and np.isnan(lean["q_lean"][1]) and np.isfinite(lean["q_lean"][[0, 2]]).all()
    assert np.isfinite(null).all()


def test_means_and_their_resamples_over_documents(rng):
    documents = np.repeat([3, 8, 9, 11], [5, 1, 2, 12])
    values = rng.normal(size=(2, 20)) + np.array([[0.0], [5.0]])
    means = routes.means(values, documents, seed=0)
    assert means.shape == (1 + routes.RESAMPLES, 2) and means[0] == pytest.approx(values.mean(axis=1))
    alone = [values[0, documents == document].mean() for document in (3, 8, 9, 11)]
    assert means[1:, 0].min() >= min(alone) - 1e-12 and means[1:, 0].max() <= max(alone) + 1e-12
    same = routes.means(np.ones((1, 20)), documents, seed=0)
    assert same == pytest.approx(np.ones_like(same))


def test_positions_reach_every_document_before_one_has_a_second(monkeypatch):
    table = pd.DataFrame({"block": np.arange(60) // 6, "t": np.arange(60) % 6, "group": np.tile(["rare", "common"], 30),
                          "document": np.arange(60) // 12, "half": np.where(np.arange(60) // 12 == 2, "A", "B")})
    monkeypatch.setattr(rare_tokens, "positions", lambda settings: table)
    settings = type("Settings", (), {"seed": 0})
    chosen, documents = modules.scattered(settings, "B", 10)
    assert sorted(np.unique(documents, return_counts=True)[1]) == [2, 2, 3, 3]
    assert set(documents) == {0, 1, 3, 4} and len({tuple(row) for row in chosen.tolist()}) == 10
    assert all(table.set_index(["block", "t"]).loc[tuple(row), "group"] == "rare" for row in chosen.tolist())
    everything, _ = modules.scattered(settings, "A", 100)
    assert len(everything) == 6
