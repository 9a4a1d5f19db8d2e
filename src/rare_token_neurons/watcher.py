"""weightwatcher's metrics of neuron groups and of whole models, with its noise kept inside.

Importing weightwatcher 0.7.7 sets the root logger to INFO and gives it a handler, switches Python's warnings off for
the whole process and logs a line about its SVD; its fits print and log. All of that is contained here, and what it
had to say about a matrix is returned with the matrix.
"""

import contextlib
import io
import logging
import warnings
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

# weightwatcher 0.7.7 takes the decisions below by default or by version: each argument of `analyze` has its name here.
ANALYZE = dict(layers=[], min_evals=8, max_evals=15000, min_size=None, max_size=None, max_N=100_000, glorot_fix=False,
               plot=False, randomize=False, savefig=False, mp_fit=False, conv2d_norm=True, ww2x=False, pool=True,
               conv2d_fft=False, fft=False, deltas=False, intra=False, vectors=False, channels=None, stacked=False,
               fix_fingers=False, xmin_max=None, max_fingers=10, finger_thresh=1.0, fit="PL", sparsify=True, detX=False,
               ERG=False, svd_method="accurate", tolerance=1e-6, start_ids=0, pl_package="ww", xmax=None,
               base_model=None, peft=False, inverse=False)
SMALL = 20  # below as many eigenvalues weightwatcher changes to a bias-corrected estimator
FIT = ["alpha", "D", "sigma", "xmin", "num_pl_spikes"]
SHAPE = ["stable_rank", "spectral_norm", "entropy", "num_evals", "Q"]
BULK = ["num_spikes", "sigma_mp", "mp_softrank", "bulk_min", "bulk_max"]
SHUFFLED = ["max_rand_eval", "num_traps", "rand_distance", "ww_softrank"]


@contextlib.contextmanager
def _contained():
    """Keep weightwatcher's prints, log lines, log settings and warnings inside; yields the list they go to."""
    root, own, plots = logging.getLogger(), logging.getLogger("weightwatcher"), logging.getLogger("matplotlib")
    before = root.level, list(root.handlers), own.propagate, plots.level
    notes = []
    keeper = logging.Handler(logging.WARNING)
    keeper.emit = lambda record: notes.append(record.getMessage())
    own.propagate = False
    own.addHandler(keeper)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield notes
            notes += [str(one.message) for one in caught if issubclass(one.category, RuntimeWarning)]  # of the numbers
    finally:
        own.removeHandler(keeper)
        root.setLevel(before[0])
        root.handlers[:], own.propagate = before[1], before[2]
        plots.setLevel(before[3])


@lru_cache(maxsize=1)
def _weightwatcher():
    """The package, imported without what its import does to logging, warnings and the output."""
    with _contained():
        import weightwatcher
    return weightwatcher


def metrics(matrices, *, mp_fit=False, randomize=False, seed=0):
    """weightwatcher's metrics of weight matrices, each wrapped as one linear layer.

    Parameters
    ----------
    matrices : dict of name to (rows, columns) array or tensor, or a sequence of them (names 0, 1, ...).
    mp_fit, randomize : also fit the Marchenko-Pastur law, also shuffle the elements (about a second a matrix).
    seed : of the shuffling.

    Returns
    -------
    DataFrame, one row a matrix in the order given: name; alpha, D, sigma, xmin, num_pl_spikes (eigenvalues from xmin
    on); stable_rank, spectral_norm, entropy, num_evals, Q; with `mp_fit` num_spikes (beyond the bulk), sigma_mp,
    mp_softrank, bulk_min, bulk_max; with `randomize` max_rand_eval, num_traps, rand_distance, ww_softrank; status
    ("success", "failed", "skipped": fewer than 8 eigenvalues), small (another estimator: fewer than 20), warning
    and log in weightwatcher's words. What failed is NaN. Its eigenvalues are those of W W^T: d times those of Xi.

    Raises
    ------
    ValueError
        A matrix that is empty, has not two dimensions, or holds values that are not finite.
    """
    ww, named = _weightwatcher(), matrices if isinstance(matrices, dict) else dict(enumerate(matrices))
    wanted = FIT + SHAPE + BULK * mp_fit + SHUFFLED * randomize
    state, rows = np.random.get_state(), []
    np.random.seed(seed)  # weightwatcher shuffles with numpy's global generator
    try:
        for name, matrix in named.items():
            weight = torch.as_tensor(np.asarray(matrix, dtype=np.float32))
            if weight.ndim != 2 or not weight.numel() or not torch.isfinite(weight).all():
                raise ValueError(f"The matrix {name} must have rows and columns of finite numbers; it is {tuple(weight.shape)}.")
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            layer.weight.data = weight
            with _contained() as notes:
                model = nn.Sequential(layer)
                found = ww.WeightWatcher(model=model).analyze(
                    model=model, **{**ANALYZE, "mp_fit": mp_fit, "randomize": randomize})
            rows.append({"name": name, **_numbers(found, wanted), "log": "; ".join(dict.fromkeys(notes))})
    finally:
        np.random.set_state(state)
    return pd.DataFrame(rows)


def _numbers(found, wanted):
    """One row of numbers from weightwatcher's table: failures, which it writes as -1 or infinity, become NaN."""
    if not len(found):
        return {**dict.fromkeys(wanted, np.nan), "status": "skipped", "small": True, "warning": ""}
    row = found.iloc[0]
    values = {name: float(row[name]) for name in wanted}
    failed = row["status"] != "success" or not values["alpha"] > 1
    lost = set(FIT if failed else []) | set(BULK if values.get("sigma_mp") == -1 else [])
    lost |= {"num_traps"} if values.get("num_traps") == -1 else set()
    values = {name: value if np.isfinite(value) and name not in lost else np.nan for name, value in values.items()}
    return {**values, "status": "failed" if failed else "success", "small": bool(row["num_evals"] < SMALL),
            "warning": "" if failed else row["warning"]}


def linear_layers(model):
    """Name and weight of each linear layer of a model but the unembedding, in the model's order."""
    head = model.get_output_embeddings()
    return {name: module.weight for name, module in model.named_modules()
            if isinstance(module, (nn.Linear, Conv1D)) and module is not head}
