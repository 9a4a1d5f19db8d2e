"""The robustness grid as judged: the claims rule over all cells at once; layers that are measured."""

import numpy as np
import pytest

from rare_token_neurons.statistics import claims
from rare_token_neurons.tables import robustness


def test_the_claims_rule_with_p_values_adjusted_over_the_whole_grid():
    claim = robustness.STATISTICS["co-activation"]
    items = [(claim, claims.Evidence(0.2, 0.1, 0.3, 0.0, (0.01, 0.02), 200)),
             (claim, claims.Evidence(0.2, 0.1, 0.3, 0.0, (0.04, 0.9), 200)),
             (claim, claims.Evidence(-0.2, -0.3, -0.1, 0.0, (1.0, 1.0), 200)), (claim, claims.Evidence(positions=34)),
             (robustness.LAYER_CLAIM, claims.Evidence(0.2, 0.1, 0.3, 0.0, (0.001,), 150))]
    found = robustness.judged(items)
    assert found["verdict"].tolist() == [claims.REPRODUCED, claims.PARTLY, claims.NOT, claims.UNTESTED, claims.REPRODUCED]
    every = claims.adjust([0.01, 0.02, 0.04, 0.9, 1.0, 1.0, 0.001])
    assert found["q"].iloc[[0, 1, 4]].tolist() == pytest.approx([every[:2].max(), every[2:4].max(), every[6]])
    assert np.isnan(found["q"].iloc[3]) and "34" in found["reason"].iloc[3]


@pytest.mark.parametrize("layers, neurons", [(1, 32), (3, 32), (24, 15), (30, 12), (100, 12)])
def test_deep_models_have_fewer_sampled_neurons_a_layer(layers, neurons):
    assert robustness.sampled(layers) == neurons


@pytest.mark.parametrize("layers, found", [(1, [0]), (2, [0]), (4, [0, 1, 2])])
def test_the_last_layer_is_left_to_the_default_where_there_are_others(layers, found):
    assert list(robustness.earlier(layers)) == found


def test_a_layer_leans_where_its_strong_neurons_do():
    rng = np.random.default_rng(0)
    rare, owners = np.arange(600) < 300, rng.integers(0, 50, 600)
    effects = np.abs(rng.normal(size=(600, 16))) * np.where(np.arange(16) < 4, 10, 1)
    effects[:300, :4] *= 2.0
    found = robustness._layer(effects, rare, owners, owners % 2 == 1, 0)
    assert len(found) == 16 and found["value"].iloc[0] > 0.2 and found["p"].iloc[0] < 0.05
    assert found["positions"].nunique() == 1 and found["rare"].iloc[:4].min() > found["rare"].iloc[4:].max()


def test_a_layer_with_few_positions_cannot_be_tested():
    rng = np.random.default_rng(0)
    rare, owners = np.arange(400) < 60, rng.integers(0, 50, 400)
    found = robustness._layer(np.abs(rng.normal(size=(400, 16))), rare, owners, owners % 2 == 1, 0)
    positions = int(found["positions"].iloc[0])
    assert found[["value", "low", "high", "p"]].isna().all(axis=None) and found[["rare", "common"]].notna().all(axis=None)
    assert positions == min(sum(rare & (owners % 2 == half)) for half in (0, 1))
    item = (robustness.LAYER_CLAIM, claims.Evidence(p=(np.nan,), positions=positions))
    assert robustness.judged([item])["verdict"].tolist() == [claims.UNTESTED]
