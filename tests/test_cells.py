"""The robustness grid: which settings it holds, and which positions each takes from the blocks that were read."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch

from rare_token_neurons import settings as parameters
from rare_token_neurons.statistics import documents as over_documents
from rare_token_neurons.tables import rare_tokens, robustness


@pytest.fixture
def settings(monkeypatch):
    """Settings over a made-up text: 6 tokens, of which 0 to 3 are words, 4 is a mark and 5 half a word."""
    words = pd.DataFrame({"token": [" a", " b", " c", " d", ".", "x"], "word": [True] * 4 + [False] * 2,
                          "boundary": [True] * 5 + [False], "count": [1, 2, 50, 60, 0, 0], "count_text": [9, 9, 1, 1, 70, 2],
                          "count_wordfreq": [1, 2, 50, 60, 0, 0]})
    tokens = np.random.default_rng(0).integers(0, 6, (20, 24))
    blocks = pd.DataFrame({"block": np.arange(20), "document": np.arange(20) // 2 + 100, "tokens": list(tokens)})
    chosen = pd.DataFrame({"document": [100, 101, 102], "half": ["B", "B", "B"]})
    for name, table in (("tokens", words), ("blocks", blocks), ("positions", chosen)):
        monkeypatch.setattr(rare_tokens, name, lambda _, table=table: table)
    monkeypatch.setattr(rare_tokens, "text_counts", lambda *_: words["count_text"].to_numpy())
    return parameters.check({"model": "smollm2"})


def test_one_factor_at_a_time_and_rarity_times_ablation(settings):
    grid = robustness.grid(settings)
    base = asdict(grid[0])
    assert base["factor"] == "default" and len({(cell.factor, cell.value) for cell in grid}) == len(grid)
    full = [(cell.rare_percentile, cell.ablation) for cell in grid if cell.factor.startswith("rarest") or cell is grid[0]]
    assert len(full) == 12 and set(full) == {(rarest, name) for rarest in (5, 15, 25, 50) for name in ("mean", "zero", "resample")}
    for cell in grid[1:]:
        changed = {name for name, value in asdict(cell).items() if base[name] != value} - {"factor", "value"}
        allowed = {"words_only": {"words_only", "counts"}, "halves": {"split"}}.get(cell.factor, {cell.factor})
        assert changed <= (allowed if not cell.factor.startswith("rarest") else {"rare_percentile", "ablation"})
        assert changed


def test_positions_are_what_the_setting_says_and_cells_share_them(settings):
    tokens = np.stack(rare_tokens.blocks(settings)["tokens"].to_numpy())
    found = {(cell.factor, cell.value): (cell, robustness.positions(settings, cell)) for cell in robustness.grid(settings)}
    for cell, rows in found.values():
        assert len(rows["rare"]) == len(rows["common"]) <= robustness.MOST
        block, t = rows["rare"].T
        assert t.min() >= 3 and t.max() <= 22 and not {*map(tuple, rows["rare"])} & {*map(tuple, rows["common"])}
        counted = cell.words_only and cell.counts == "wordfreq" and cell.rare_percentile == 50
        if counted:  # tokens 0 and 1 are the rarer half of the words
            assert np.isin(tokens[block, t + (cell.rare_of == "target")], [0, 1]).all()
    swapped = found["counts", "text"][1]["rare"]
    assert np.isin(tokens[swapped[:, 0], swapped[:, 1] + 1], [2, 3]).all()
    by_text = found["words_only", "false, counts = text"][1]["common"]
    assert np.isin(tokens[by_text[:, 0], by_text[:, 1] + 1], 4).any()
    default, zero = found["default", "rarest 50 %, mean"], found["rarest 50 %", "zero"]
    assert (default[1]["rare"] == zero[1]["rare"]).all()


def test_halves_keep_the_defaults_and_are_drawn_anew_for_another_split(settings):
    kept, again, other = robustness.halves(settings), robustness.halves(settings), robustness.halves(settings, 2)
    assert (kept.loc[[100, 101, 102]] == "B").all() and kept.equals(again) and set(kept) == {"A", "B"}
    assert len(kept) == 10 and not kept.equals(other) and abs(other.eq("A").sum() - 5) <= 0.5


def test_sums_by_document_and_lookup_by_position():
    effects, owners = np.random.default_rng(0).normal(size=(9, 4)), np.array([5, 2, 5, 5, 7, 2, 7, 7, 5])
    sums, counts = over_documents.by_document(effects, owners)
    assert counts.tolist() == [2, 4, 3]
    assert sums == pytest.approx(pd.DataFrame(effects).groupby(owners).sum().to_numpy())
    padded, _ = over_documents.by_document(effects, owners, np.array([1, 2, 5, 7]))
    assert padded[0].tolist() == [0] * 4 and padded[1:] == pytest.approx(sums)
    rows = np.array([[0, 3], [0, 9], [4, 5]])
    pool = robustness.Pool(rows, torch.arange(6.0).view(3, 2))
    assert pool[rows[[2, 0]]].tolist() == [[4, 5], [0, 1]]
