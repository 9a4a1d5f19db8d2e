"""weightwatcher on whole models, layer by layer: is the last layer special? (notebook 07)"""

import re

import numpy as np
import pandas as pd

from rare_token_neurons import checkpoints, passes, tables, watcher, weights


def layer_of(name):
    """ "gpt_neox.layers.2.mlp.dense_h_to_4h" -> (2, "mlp.dense_h_to_4h"); (-1, name) outside the layers."""
    found = re.search(r"\.(\d+)\.(.+)$", name)
    return (int(found.group(1)), found.group(2)) if found else (-1, name)


def fits(settings):
    """weightwatcher's metrics of every linear layer of the model but the unembedding, at every checkpoint.

    Returns
    -------
    DataFrame with revision, step, layer (from 0), matrix (its name inside the layer) and the columns of `watcher.metrics`
    """

    def compute():
        parts = []
        for revision in passes.revisions(settings, "all"):
            model = passes.load(settings, revision).model
            table = watcher.metrics({name: weight.cpu() for name, weight in watcher.linear_layers(model).items()})
            found = [layer_of(name) for name in table["name"]]
            parts.append(weights.labelled(table.drop(columns="name"), revision, layer=[layer for layer, _ in found],
                                          matrix=[matrix for _, matrix in found]))
        return pd.concat(parts, ignore_index=True)

    inputs = {} if settings.recompute == "never" else {
        name or "": checkpoints.model_hash(settings.model, name) for name in passes.revisions(settings, "all")}
    return tables.stage(settings, "weight_layers", compute, reads=("steps",), inputs=inputs, modules=["layers"])


def special(table, column="alpha"):
    """The last layer's place among the layers of one checkpoint, matrix by matrix.

    Parameters
    ----------
    table : rows of `fits` of one checkpoint ; column : a metric.

    Returns
    -------
    DataFrame, one row a matrix: last (the last layer's value), median, lowest and highest of the other layers, below (how
    many of them lie lower), others, p (two-sided: the share of the layers that would be as extreme; NaN where the last
    layer's fit failed)
    """
    rows = {}
    for matrix, part in table[table["layer"] >= 0].groupby("matrix", sort=False):
        values = part.sort_values("layer")[column]
        last, others = values.iloc[-1], values.iloc[:-1].dropna()
        below = int((others < last).sum())
        p = min(1.0, 2 * (min(below, len(others) - below) + 1) / (len(others) + 1))
        rows[matrix] = {"last": last, "median": others.median(), "lowest": others.min(), "highest": others.max(),
                        "below": below, "others": len(others), "p": p if np.isfinite(last) else np.nan}
    return pd.DataFrame.from_dict(rows, orient="index")
