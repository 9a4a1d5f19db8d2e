"""weightwatcher's metrics of groups: its noise contained, its failures missing, its answers known."""

import inspect
import logging
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from rare_token_neurons.statistics import spectra as spectra_of


def gaussian(rows, columns, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def test_every_argument_of_analyze_is_given_by_name():
    signature = inspect.signature(spectra_of._weightwatcher().WeightWatcher.analyze)
    assert set(spectra_of.ANALYZE) == set(signature.parameters) - {"self", "model"}


def test_a_gaussian_matrix_has_no_spikes_and_an_alpha_above_6():
    alphas = spectra_of.metrics([gaussian(576, 1536, seed) for seed in (1, 2, 3, 4)]).alpha  # from 7.5 to 15: noise
    assert (alphas > 6).all()
    row = spectra_of.metrics({"noise": gaussian(576, 1536, seed=1)}, mp_fit=True, randomize=True).iloc[0]
    assert row.status == "success" and row.alpha == alphas[0] and row.warning == "under-trained" and row.log == ""
    assert row.num_spikes == 0 and row.num_traps == 0
    q = 576 / 1536
    assert row.bulk_max / 1536 == pytest.approx((1 + q**0.5) ** 2, rel=0.05)
    assert row.bulk_min / 1536 == pytest.approx((1 - q**0.5) ** 2, rel=0.05)
    assert row.Q == pytest.approx(1 / q) and row.num_evals == 576 and not row.small


def test_metrics_are_those_of_the_singular_values():
    matrix = gaussian(26, 576)
    row = spectra_of.metrics([matrix]).iloc[0]
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False) ** 2
    shares = values / values.sum()
    assert row.spectral_norm == pytest.approx(values.max())
    assert row.stable_rank == pytest.approx(values.sum() / values.max())
    assert row.entropy == pytest.approx(-(shares * np.log(shares)).sum() / np.log(26), abs=1e-6)
    tail = values[values >= row.xmin * (1 - 1e-9)]
    assert len(tail) == row.num_pl_spikes
    assert row.alpha == pytest.approx(1 + len(tail) / np.log(tail / tail.min()).sum())


def test_a_planted_heavy_tail_has_a_smaller_alpha_than_every_random_group():
    rng = np.random.default_rng(1)
    left = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    right = np.linalg.qr(rng.normal(size=(200, 30)))[0]
    heavy = left @ np.diag(np.sqrt(1 / (1 - (np.arange(30) + 0.5) / 30))) @ right.T  # eigenvalues: Pareto, alpha = 2
    table = spectra_of.metrics([heavy, *(gaussian(30, 200, seed) for seed in range(30))])
    assert table.alpha[0] == pytest.approx(2, abs=0.3) and table.alpha[0] < table.alpha[1:].min()
    assert table.stable_rank[0] < table.stable_rank[1:].min() and table.entropy[0] < table.entropy[1:].min()


def test_failures_are_missing_values_and_say_why():
    table = spectra_of.metrics({"dead": np.zeros((26, 60)), "tiny": gaussian(5, 60), "small": gaussian(12, 60),
                             "fine": gaussian(26, 60)}, mp_fit=True)
    assert table.status.tolist() == ["failed", "skipped", "success", "success"]
    assert table.loc[:1, spectra_of.FIT + spectra_of.BULK].isna().all(axis=None)
    assert "fit failed" in table.log[0] and table.warning[0] == ""
    assert table.small.tolist() == [False, True, True, False]
    assert np.isfinite(table.loc[2:, spectra_of.FIT + spectra_of.SHAPE + spectra_of.BULK].to_numpy(dtype=float)).all()


def test_one_seed_gives_one_answer_and_leaves_the_global_generator_alone():
    matrices = [gaussian(26, 80)]
    np.random.seed(7)
    expected = np.random.random(3)
    np.random.seed(7)
    first = spectra_of.metrics(matrices, randomize=True, seed=5)
    assert np.array_equal(np.random.random(3), expected)
    assert first.equals(spectra_of.metrics(matrices, randomize=True, seed=5))
    assert first.max_rand_eval[0] != spectra_of.metrics(matrices, randomize=True, seed=6).max_rand_eval[0]


NOISE = """
import logging, warnings, numpy as np
from rare_token_neurons import watcher
before = logging.getLogger().level, logging.getLogger().handlers[:], list(warnings.filters)
watcher.metrics([np.random.default_rng(0).normal(size=(12, 60)), np.zeros((26, 60))], mp_fit=True, randomize=True)
assert before == (logging.getLogger().level, logging.getLogger().handlers, list(warnings.filters))
warnings.warn("still heard")
"""


def test_import_and_fits_leave_no_trace_in_a_fresh_process():
    done = subprocess.run([sys.executable, "-c", NOISE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "still heard" in done.stderr and len(done.stderr.strip().splitlines()) <= 2


def test_loggers_and_warnings_here_are_as_before():
    root = logging.getLogger()
    before = root.level, list(root.handlers), list(warnings.filters)
    spectra_of.metrics([gaussian(26, 60)])
    assert before == (root.level, list(root.handlers), list(warnings.filters))


def test_the_linear_layers_of_a_model():
    config = GPTNeoXConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=30)
    layers = spectra_of.linear_layers(GPTNeoXForCausalLM(config))
    assert len(layers) == 8 and not any("embed" in name for name in layers)
    assert all(isinstance(weight, torch.Tensor) for weight in layers.values())
    assert "gpt_neox.layers.1.mlp.dense_4h_to_h" in layers
