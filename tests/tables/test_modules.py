"""Positions scattered over documents, and the communities of a planted group."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from planted import HEAD, PLANTED, values_of

from rare_token_neurons.statistics import controls, geometry
from rare_token_neurons.tables import checkpoints as passes, modules, rare_tokens


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(controls, "MODULE_DRAWS", 20)
    for name, few in (("BASELINES", 2), ("MODULE_RESAMPLES", 10), ("SEEDS", 2)):
        monkeypatch.setattr(modules, name, few)


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
    assert set(table["revision"]) == {"step1"} and set(table["group"]) == {"rare", "random", "matched"}
    rare = table[table["group"] == "rare"]
    block = rare.pivot(index="i", columns="j", values="correlation")
    assert block.index.tolist() == PLANTED[1:].tolist()  # neuron 100 is dead
    values = values_of("step1")[0][:, PLANTED[1:]].astype(np.float64)
    assert block.to_numpy() == pytest.approx(np.corrcoef(values.T), abs=1e-5)
    sizes = rare.drop_duplicates("i").groupby("community").size()
    assert sizes.is_monotonic_decreasing and sizes.sum() == len(PLANTED) - 1
    assert rare["community"].is_monotonic_increasing


@pytest.mark.parametrize("gated, edges", [(False, "positive"), (True, "absolute")])
def test_the_edges_that_decide_have_no_sign_where_the_mlp_is_gated(planted_model, quick, monkeypatch, gated, edges):
    subject = SimpleNamespace(**vars(passes.subject(planted_model, "step1")) | {"gated": gated})
    monkeypatch.setattr(passes, "subject", lambda settings, revision: subject)
    table = modules.modules(planted_model)
    assert (table["gated"] == gated).all() and table[["where", "weights", "resolution"]].duplicated().sum() == 0
    assert set(table["weights"]) == {"positive", "absolute"} and set(table["where"]) == {"rare", "all"}
    variants = table.groupby("weights")["resolution"].nunique()
    assert variants[edges] == len(geometry.RESOLUTIONS) and variants.sum() == 1 + len(geometry.RESOLUTIONS)
    main, = table[table["main"]].to_dict("records")
    assert (main["where"], main["weights"], main["resolution"]) == ("rare", edges, 1.0)
    assert np.isfinite([main[f"less_{kind}_{end}"] for kind in ("random", "matched") for end in ("low", "high")]).all()


@pytest.mark.parametrize("name", ["modules", "module_members"])
def test_no_matched_group_touches_the_head(planted_model, quick, matched, name):
    getattr(modules, name)(planted_model)
    assert matched and not np.isin(np.concatenate([groups.ravel() for _, groups in matched]), HEAD).any()
