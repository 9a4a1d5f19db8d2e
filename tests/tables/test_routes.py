"""Labels shuffled within documents, heads that lean to one kind of target, means over documents: known answers; what
heads do to a planted group and to its look-alikes."""

import numpy as np
import pytest
import torch
from planted import HEAD, NEURONS, PLANTED

from rare_token_neurons.ablation.layers import layers_of
from rare_token_neurons.statistics import controls
from rare_token_neurons.tables import routes


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
    assert means.shape == (1 + controls.RESAMPLES, 2) and means[0] == pytest.approx(values.mean(axis=1))
    alone = [values[0, documents == document].mean() for document in (3, 8, 9, 11)]
    assert means[1:, 0].min() >= min(alone) - 1e-12 and means[1:, 0].max() <= max(alone) + 1e-12
    same = routes.means(np.ones((1, 20)), documents, seed=0)
    assert same == pytest.approx(np.ones_like(same))


def test_look_alikes_of_the_group_that_heads_move_are_none_of_the_head(planted_model, matched, monkeypatch):
    moved = np.ones((2, 30, NEURONS))
    moved[1, :, HEAD] = 3.0
    monkeypatch.setattr(routes, "_effects", lambda settings, revision: {
        "layer": np.array([0, 0, 1]), "moved": moved, "rare": np.arange(60) % 2 == 0, "documents": np.arange(60) // 3})
    table = routes.head_layers(planted_model)
    (group, groups), = matched
    assert set(group) < set(PLANTED) and not np.isin(groups, HEAD).any()
    assert table["heads"].tolist() == [2, 1] and (table["p_matched"] < 0.01).tolist() == [False, True]


# ---- which windows are run


def test_windows_end_at_positions_and_spread_over_documents():
    tokens = torch.arange(40 * 64).reshape(40, 64)
    documents = torch.arange(40) // 2
    positions = torch.cartesian_prod(torch.arange(40), torch.tensor([3, 20, 30, 33, 61]))
    anywhere = torch.ones(len(positions), dtype=bool)
    made, kept, rows = routes.choose_windows(tokens, documents, positions, width=16, budget=16 * 20, ends=anywhere)
    assert made.shape == (20, 16) and len(set(rows.tolist())) == len(rows) >= 20
    assert len(set(documents[positions[rows, 0]].tolist())) == 20
    block, t = positions[rows].unbind(1)
    assert torch.equal(made[kept[:, 0], kept[:, 1]], tokens[block, t])
    assert torch.equal(made[kept[:, 0], kept[:, 1] + 1], tokens[block, t + 1])
    again = routes.choose_windows(tokens, documents, positions, width=16, budget=16 * 20, ends=anywhere)
    assert all(torch.equal(a, b) for a, b in zip((made, kept, rows), again))
    whole = routes.choose_windows(tokens, documents, positions, width=64, budget=64, ends=anywhere)
    assert whole[0].shape == (1, 64) and set(whole[1][:, 1].tolist()) <= {3, 20, 30, 33, 61}
    with pytest.raises(ValueError, match="Windows"):
        routes.choose_windows(tokens, documents, positions, width=65, budget=2000, ends=anywhere)


def test_windows_end_where_they_may():
    tokens, documents = torch.arange(10 * 32).reshape(10, 32), torch.arange(10)
    positions = torch.cartesian_prod(torch.arange(10), torch.tensor([12, 20, 23, 28]))
    ends = positions[:, 1] == 23
    made, kept, rows = routes.choose_windows(tokens, documents, positions, width=16, budget=16 * 10, ends=ends)
    assert made.shape == (10, 16) and sorted(made[:, 15].tolist()) == [32 * block + 24 for block in range(10)]
    assert torch.unique(positions[rows, 1]).tolist() == [20, 23] and len(rows) == 20


@pytest.mark.parametrize("works, tokens", [(50, 48), (0, 8), (1e6, 2000)])
def test_what_is_affordable(tiny, monkeypatch, works, tokens):
    subject = tiny("llama-tied")
    layer = sum(weight.numel() for weight in layers_of(subject)[0].parameters())
    # a token: multiply and add, four heads a layer, two layers from the first, one from the last
    cost = 2 * 4 * 3 * layer
    monkeypatch.setattr(routes, "WORK", cost * works)
    assert routes.affordable(subject, 8) == tokens
