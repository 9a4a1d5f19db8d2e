"""Hill's exponent, the Marchenko-Pastur law, group spectra, weightwatcher's metrics: known answers,
contained failures."""

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from scipy import integrate
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from rare_token_neurons.statistics import controls, powerlaws, spectra


def gaussian(rows, columns, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, columns))


def planted(rows, columns, exponent, seed=0):
    """A matrix whose eigenvalues are the quantiles of a Pareto law: P(lambda > x) = x^-exponent."""
    rng = np.random.default_rng(seed)
    values = (1 - (np.arange(rows) + 0.5) / rows) ** (-1 / exponent)
    left, right = np.linalg.qr(rng.normal(size=(rows, rows)))[0], np.linalg.qr(rng.normal(size=(columns, rows)))[0]
    return left @ np.diag(np.sqrt(values * columns)) @ right.T


def test_eigenvalues_are_those_of_the_gram_matrix_over_d():
    weights = gaussian(7, 30)
    found = spectra.eigenvalues(weights)
    assert found == pytest.approx(np.linalg.svd(weights, compute_uv=False) ** 2 / 30)
    assert found == pytest.approx(np.sort(np.linalg.eigvalsh(weights @ weights.T / 30))[::-1])
    assert np.sort(np.linalg.eigvalsh(np.corrcoef(weights)))[::-1] == pytest.approx(
        spectra.eigenvalues(spectra.standardised(3 + 2 * weights)))
    assert spectra.eigenvalues(np.stack([weights, weights])).shape == (2, 7)


@pytest.mark.parametrize("exponent", [0.8, 1.5, 3.0])
def test_a_pareto_sample_gives_its_exponent_back(exponent):
    sample = np.sort(np.random.default_rng(0).pareto(exponent, size=4000) + 1)[::-1]
    for share in (0.1, 0.125, None):
        assert spectra.hill(sample, share)[0] == pytest.approx(exponent, rel=0.15)


def test_hill_by_hand_and_the_plot_over_k():
    values = np.array([8.0, 4.0, 2.0, 1.0])
    log = np.log(2)
    assert spectra.hill_plot(values) == pytest.approx([1 / log, 2 / (3 * log), 3 / (6 * log)])
    assert spectra.hill(values, 0.5)[0] == pytest.approx(2 / (3 * log))
    assert np.isnan(spectra.hill_plot(np.array([1.0, 1.0, 0.0]))).all()  # equal values, then a zero
    assert spectra.hill_plot(np.ones((2, 3, 5))).shape == (2, 3, 4)


def test_hill_of_small_gaussian_groups_as_the_literature_has_it():
    values = np.stack([spectra.eigenvalues(spectra.standardised(gaussian(50, 512, seed))) for seed in range(300)])
    low, median, high = np.quantile(spectra.hill(values, 0.1)[0], [0.05, 0.5, 0.95])
    assert (low, median) == pytest.approx((9.6, 12.6), abs=1.0) and high == pytest.approx(16.7, abs=1.5)


def test_the_tail_begins_at_the_peak():
    rng = np.random.default_rng(0)
    body = rng.lognormal(0.0, 0.1, size=3000)
    tail = rng.pareto(2.0, size=1000) + 1
    values = np.sort(np.concatenate([body[body < 1], tail]))[::-1]
    k = spectra.tail_size(values)
    assert 0.9 < values[k] < 1.5
    assert spectra.hill(values)[0] == pytest.approx(2.0, abs=0.3)
    assert 5 <= spectra.tail_size(spectra.eigenvalues(gaussian(10, 40))) <= 9


def test_the_law_is_a_density_and_its_distribution_its_integral():
    for q, variance in [(0.05, 1.0), (0.375, 2.5), (1.0, 1.0)]:
        low, high = spectra.mp_edges(q, variance)
        for x in np.linspace(low, high, 7)[1:]:
            mass = integrate.quad(spectra.mp_density, low / variance, x / variance, args=(q,), limit=200)[0]
            assert spectra.mp_distribution(x, q, variance) == pytest.approx(mass, abs=1e-4)
        assert spectra.mp_distribution(high, q, variance) == pytest.approx(1)
        assert spectra.mp_density([low - 1, high + 1], q).sum() == 0


def test_a_gaussian_matrix_has_the_laws_edges_and_no_spikes():
    values = spectra.eigenvalues(1.7 * gaussian(576, 1536))
    assert (values[-1], values[0]) == pytest.approx(spectra.mp_edges(576 / 1536, 1.7**2), rel=0.05)
    spikes, distance = spectra.bulk(values, 1536)
    assert spikes == 0 and distance < 0.01
    assert spectra.bulk(values, 576)[1] > 0.2  # the authors' aspect ratio of 1 is far off


def test_spikes_are_counted_and_noise_has_one_in_a_hundred():
    weights = gaussian(40, 400)
    left, right = (np.linalg.qr(gaussian(size, 3, seed=1))[0] for size in (40, 400))
    weights += left @ np.diag([60, 45, 30]) @ right.T
    assert spectra.bulk(spectra.eigenvalues(weights), 400)[0] == 3
    noise = [spectra.bulk(spectra.eigenvalues(gaussian(26, 576, seed)), 576)[0] for seed in range(300)]
    assert np.mean(np.array(noise) > 0) < 0.03


def test_shuffles_keep_the_elements_and_lose_the_tail():
    heavy = planted(30, 200, exponent=1.0)
    mixed = spectra.shuffles(heavy, 2, seed=3)
    assert all(np.array_equal(np.sort(one, axis=None), np.sort(heavy, axis=None)) for one in mixed)
    exponent, *others = spectra.hill(spectra.eigenvalues(np.stack([heavy, *mixed])), 0.5)[0]
    assert min(others) > 2 * exponent and others[0] != others[1]
    assert np.array_equal(mixed[1], spectra.shuffles(heavy, 1, seed=4)[0])


# ---- how heavy groups are, beside their controls


compare = partial(controls.compare, sides=spectra.SIDES, fitted=spectra.FITTED)


def compared(matrix, group):
    """`compare` of a group with 99 random groups of other neurons and with its own shuffles;
    its choice nearly certain."""
    others = controls.random_groups(np.setdiff1d(np.arange(400), group), len(group), 99)
    anew = np.stack([np.r_[group[1:], other] for other in range(50, 60)])  # one member replaced
    nulls = {"random": spectra.measure(matrix[others]),
             "shuffled": spectra.measure(spectra.shuffles(matrix[group], 99), 20)}
    return compare(spectra.measure(matrix[group][None]), spectra.measure(matrix[anew]), nulls).set_index("statistic")


def test_a_planted_heavy_tailed_group_is_told_from_random_groups_and_from_its_shuffles():
    table = compared(np.concatenate([planted(27, 120, 1.0, seed=1), gaussian(373, 120)]), np.arange(27))
    for statistic in ("alpha_hill", "alpha", "stable_rank", "entropy", "spikes", "mp_distance", "spectral_norm"):
        assert table.p_random[statistic] == pytest.approx(0.01), statistic
    assert (table.p_shuffled[["alpha_hill", "stable_rank", "entropy", "mp_distance"]] <= 0.03).all()
    assert table.value["alpha_hill"] == pytest.approx(1.0, abs=0.35)
    assert table.value["alpha"] == pytest.approx(2, abs=0.3)
    assert table.high["alpha_hill"] < table.random_low["alpha_hill"] and (table.low <= table.high).all()
    assert np.allclose(table.difference, table.value - table.random_mean) and table.difference_high["alpha_hill"] < 0
    assert np.allclose(table.difference_high - table.difference_low, table.high - table.low)
    assert (table.missing == 0).all() and table.random_draws["alpha_hill"] == 99 and table.shuffled_draws["alpha"] == 20


def test_a_random_group_is_not_heavier_than_others():
    group = np.random.default_rng(3).permutation(400)[:27]
    table = compared(gaussian(400, 120, seed=2), group)
    heavier = table.loc[table.side != "two-sided", "p_random"].drop("spikes")
    assert (heavier > 0.01).all() and (heavier > 0.05).sum() >= 4
    assert table.value["spikes"] <= 1


def test_measure_is_one_group_at_a_time_and_in_units_of_xi():
    matrices = gaussian(400, 120)[controls.random_groups(400, 27, 4)]
    table = spectra.measure(matrices, fits=2)
    for row, matrix in enumerate(matrices):
        values = spectra.eigenvalues(matrix)
        assert table.alpha_hill[row] == pytest.approx(spectra.hill(values)[0])
        assert table.alpha_hill_half[row] == pytest.approx(1 / np.mean(np.log(values[:13] / values[13])))
        assert table.k[row] == spectra.tail_size(values)
        assert (table.spikes[row], table.mp_distance[row]) == spectra.bulk(values, 120)
    found = spectra.metrics(matrices[:2])
    assert np.allclose(table.alpha[:2], found.alpha) and np.allclose(table.xmin[:2], found.xmin / 120)
    assert np.allclose(table.spectral_norm[:2], [spectra.eigenvalues(matrix)[0] for matrix in matrices[:2]], rtol=1e-4)
    assert np.allclose(table.stable_rank[:2], found.stable_rank, rtol=1e-4)  # the closed forms are weightwatcher's
    assert np.allclose(table.entropy[:2], found.entropy, rtol=1e-4)
    assert table.loc[2:, list(spectra.FITTED) + ["status"]].isna().all(axis=None)
    assert (table.status[:2] == "success").all()
    assert spectra.measure(matrices, fits=2).equals(table)


def test_failed_fits_are_missing_and_counted_among_the_fitted_only():
    rows = spectra.measure(gaussian(400, 120)[controls.random_groups(400, 27, 10)], fits=4)
    rows.loc[:1, ["alpha", "D"]] = np.nan
    table = compare(rows.iloc[[3]], rows.iloc[4:6], {"random": rows}).set_index("statistic")
    assert table.missing["alpha"] == pytest.approx(2 / 5) and table.missing["alpha_hill"] == 0
    assert table.random_draws["alpha"] == 2 and np.isnan(table.low["alpha"])
    lost = compare(rows.iloc[[0]], rows.iloc[4:6], {"random": rows}).set_index("statistic")
    assert np.isnan(lost.value["alpha"]) and np.isnan(lost.p_random["alpha"])
    assert np.isfinite(lost.p_random["alpha_hill"])


def test_standardised_rows_make_neurons_of_different_norm_alike():
    matrix = gaussian(30, 50)
    scaled = spectra.standardised(matrix * np.logspace(-2, 2, 30)[:, None] + 3.0)
    assert np.allclose(scaled, spectra.standardised(matrix))
    assert np.allclose(scaled.mean(axis=1), 0) and np.allclose(scaled.std(axis=1), 1)


def test_the_power_law_test_is_that_of_each_spectrum():
    rng = np.random.default_rng(4)
    law, bent = np.sort(rng.pareto(1.5, size=400) + 1)[::-1], np.sort(rng.uniform(1, 2, size=400))[::-1]
    table = spectra.power_laws(np.stack([law, bent]), seed=3)
    alone = powerlaws.tail(bent, draws=100, seed=3)
    assert table.p_fit[1] == alone.p_fit and table.verdict[1] == alone.verdict and table.n[1] == alone.n
    assert table.alpha[0] == pytest.approx(2.5, abs=0.3) and table.p_fit[0] > 0.1 and table.verdict[1] != "not rejected"
    assert np.isfinite(table.drop(columns="verdict")).all(axis=None)


# ---- weightwatcher


def single(rows, columns, seed=0):
    """`gaussian` in float32, as weights come."""
    return gaussian(rows, columns, seed).astype(np.float32)


def test_a_gaussian_matrix_has_no_spikes_and_an_alpha_above_6():
    alphas = spectra.metrics([single(576, 1536, seed) for seed in (1, 2, 3, 4)]).alpha  # from 7.5 to 15: noise
    assert (alphas > 6).all()
    row = spectra.metrics({"noise": single(576, 1536, seed=1)}).iloc[0]
    assert row.status == "success" and row.alpha == alphas[0] and row.warning == "under-trained" and row.log == ""
    assert row.Q == pytest.approx(1536 / 576) and row.num_evals == 576 and not row.small


def test_metrics_are_those_of_the_singular_values():
    matrix = single(26, 576)
    row = spectra.metrics([matrix]).iloc[0]
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False) ** 2
    shares = values / values.sum()
    assert row.spectral_norm == pytest.approx(values.max())
    assert row.stable_rank == pytest.approx(values.sum() / values.max())
    assert row.entropy == pytest.approx(-(shares * np.log(shares)).sum() / np.log(26), abs=1e-6)
    tail = values[values >= row.xmin * (1 - 1e-9)]
    assert len(tail) == row.num_pl_spikes
    assert row.alpha == pytest.approx(1 + len(tail) / np.log(tail / tail.min()).sum())


def test_failures_are_missing_values_and_say_why():
    table = spectra.metrics({"dead": np.zeros((26, 60)), "tiny": single(5, 60), "small": single(12, 60),
                             "fine": single(26, 60)})
    assert table.status.tolist() == ["failed", "skipped", "success", "success"]
    assert table.loc[:1, spectra.FIT].isna().all(axis=None)
    assert "fit failed" in table.log[0] and table.warning[0] == ""
    assert table.small.tolist() == [False, True, True, False]
    assert np.isfinite(table.loc[2:, spectra.FIT + spectra.SHAPE].to_numpy(dtype=float)).all()


@pytest.mark.parametrize("rows", [5, 12, 26])
def test_the_fit_alone_is_that_of_the_whole_analysis(rows):
    matrices = np.stack([single(rows, 60, 1), single(rows, 60, 2), np.zeros((rows, 60))])
    whole, alone = spectra.metrics(matrices), spectra.fit_tails(spectra.eigenvalues(matrices) * 60)
    assert alone[["status", "warning"]].equals(whole[["status", "warning"]])
    assert all(map(str.startswith, whole["log"], alone["log"])) and ("fit failed" in alone["log"][2]) == (rows > 5)
    fitted = list(spectra.FITTED)
    assert np.allclose(alone[fitted], whole[fitted].astype(float), rtol=1e-9, equal_nan=True)


NOISE = """
import logging, warnings, numpy as np, torch
from rare_token_neurons.statistics import spectra
before = logging.getLogger().level, logging.getLogger().handlers[:], list(warnings.filters)
spectra.metrics([np.random.default_rng(0).normal(size=(12, 60)), np.zeros((26, 60))])
assert before == (logging.getLogger().level, logging.getLogger().handlers, list(warnings.filters))
warnings.warn("still heard")
"""


def test_import_and_fits_leave_no_trace_in_a_fresh_process():
    done = subprocess.run([sys.executable, "-c", NOISE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "still heard" in done.stderr and len(done.stderr.strip().splitlines()) <= 2


def test_the_linear_layers_of_a_model():
    config = GPTNeoXConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                           vocab_size=30)
    layers = spectra.linear_layers(GPTNeoXForCausalLM(config))
    assert len(layers) == 8 and not any("embed" in name for name in layers)
    assert all(isinstance(weight, torch.Tensor) for weight in layers.values())
    assert "gpt_neox.layers.1.mlp.dense_4h_to_h" in layers


def test_bad_input_by_name():
    with pytest.raises(ValueError, match="row"):
        spectra.eigenvalues(np.zeros((5, 4)))
    with pytest.raises(ValueError, match="aspect ratio"):
        spectra.mp_edges(1.5)
    with pytest.raises(ValueError, match="tail"):
        spectra.hill(np.arange(5.0)[::-1] + 1, 1.0)
    with pytest.raises(ValueError, match="above zero"):
        spectra.tail_size(np.array([1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0]))
