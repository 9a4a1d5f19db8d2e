"""Positions scattered over documents, and the communities of a planted group."""

import numpy as np
import pandas as pd
import pytest
from planted import PLANTED, values_of

from rare_token_neurons.tables import modules, rare_tokens


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


def test_members_hold_every_pair_with_its_community(planted_model):
    table = modules.module_members(planted_model)
    assert set(table["revision"]) == {"step1"} and set(table["group"]) == {"rare", "random"}
    rare = table[table["group"] == "rare"]
    block = rare.pivot(index="i", columns="j", values="correlation")
    assert block.index.tolist() == PLANTED[1:].tolist()  # neuron 100 is dead
    values = values_of("step1")[0][:, PLANTED[1:]].astype(np.float64)
    assert block.to_numpy() == pytest.approx(np.corrcoef(values.T), abs=1e-5)
    sizes = rare.drop_duplicates("i").groupby("community").size()
    assert sizes.is_monotonic_decreasing and sizes.sum() == len(PLANTED) - 1 and rare["community"].is_monotonic_increasing
