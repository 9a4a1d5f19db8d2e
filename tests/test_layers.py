"""Whole models layer by layer: names, and the last layer's place."""

import numpy as np
import pandas as pd
import pytest

from rare_token_neurons.tables import weights


def test_layers_by_name():
    assert weights.layer_of("gpt_neox.layers.2.mlp.dense_h_to_4h") == (2, "mlp.dense_h_to_4h")
    assert weights.layer_of("model.layers.29.self_attn.q_proj") == (29, "self_attn.q_proj")
    assert weights.layer_of("embed_out") == (-1, "embed_out")


def test_the_last_layers_place_among_the_others():
    table = pd.DataFrame({"matrix": ["a"] * 5 + ["b"] * 3 + ["embed"], "layer": [3, 0, 1, 2, 4, 0, 1, 2, -1],
                          "alpha": [2.0, 1.0, np.nan, 5.0, 2.5, 4.0, 3.0, np.nan, 9.0]})
    found = weights.special(table)
    assert list(found.index) == ["a", "b"]
    assert found.loc["a", ["last", "median", "lowest", "highest", "below", "others"]].tolist() == [2.5, 2.0, 1.0, 5.0, 2, 3]
    assert found.loc["a", "p"] == 1.0 and np.isnan(found.loc["b", ["last", "p"]].astype(float)).all()


def test_an_outlier_among_many_layers_has_a_small_p():
    table = pd.DataFrame({"matrix": "a", "layer": range(40), "alpha": [*np.linspace(2, 3, 39), 9.0]})
    assert weights.special(table)["p"].item() == pytest.approx(2 / 40)
