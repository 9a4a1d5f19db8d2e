"""The robustness grid as judged: the claims rule over all cells at once; layers that are measured."""

import numpy as np
import pytest

from rare_token_neurons import claims, contrasts, robustness


def test_the_claims_rule_with_p_values_adjusted_over_the_whole_grid():
    claim = contrasts.STATISTICS["co-activation"]
    items = [(claim, claims.Evidence(0.2, 0.1, 0.3, 0.0, (0.01, 0.02), 200)),
             (claim, claims.Evidence(0.2, 0.1, 0.3, 0.0, (0.04, 0.9), 200)),
             (claim, claims.Evidence(-0.2, -0.3, -0.1, 0.0, (1.0, 1.0), 200)), (claim, claims.Evidence(positions=34)),
             (robustness.LAYER_CLAIM, claims.Evidence(0.2, 0.1, 0.3, 0.0, (0.001,), 150))]
    found = robustness.judged(items)
    assert found["verdict"].tolist() == [claims.REPRODUCED, claims.PARTLY, claims.NOT, claims.UNTESTED, claims.REPRODUCED]
    every = claims.adjust([0.01, 0.02, 0.04, 0.9, 1.0, 1.0, 0.001])
    assert found["q"].iloc[[0, 1, 4]].tolist() == pytest.approx([every[:2].max(), every[2:4].max(), every[6]])
    assert np.isnan(found["q"].iloc[3]) and "34" in found["reason"].iloc[3]


@pytest.mark.parametrize("count, layers, neurons", [(3, 3, 32), (30, 6, 16), (1, 1, 32)])
def test_layers_are_spread_and_hold_both_ends(count, layers, neurons):
    found, size = robustness.sampled_layers(count)
    assert len(found) == layers and found[0] == 0 and found[-1] == count - 1 and size == neurons
    assert np.ptp(np.diff(found)) <= 1 if layers > 1 else True


def test_a_layer_leans_where_its_strong_neurons_do():
    rng = np.random.default_rng(0)
    rare, owners = np.arange(400) < 200, rng.integers(0, 50, 400)
    effects = np.abs(rng.normal(size=(400, 16))) * np.where(np.arange(16) < 4, 10, 1)
    effects[:200, :4] *= 2.0
    found = robustness._layer(effects, rare, owners, owners % 2 == 1, 0)
    assert len(found) == 16 and found["value"].iloc[0] > 0.2 and found["p"].iloc[0] < 0.05
    assert found["positions"].nunique() == 1 and found["rare"].iloc[:4].min() > found["rare"].iloc[4:].max()
