"""Groups' spectra beside their controls: known answers, brute force, failures counted."""

import numpy as np
import pytest
import torch

from rare_token_neurons.statistics import controls, documents as over_documents, powerlaws, spectra as spectra_of
from rare_token_neurons.tables import weights


def noise(neurons=400, width=120, seed=0):
    return np.random.default_rng(seed).normal(size=(neurons, width))


def with_heavy_group(exponent=1.0, size=27):
    """Gaussian weights in which the first `size` neurons have Pareto eigenvalues: P(lambda > x) = x^-exponent."""
    rng, matrix = np.random.default_rng(1), noise()
    values = (1 - (np.arange(size) + 0.5) / size) ** (-1 / exponent)
    left, right = np.linalg.qr(rng.normal(size=(size, size)))[0], np.linalg.qr(rng.normal(size=(120, size)))[0]
    matrix[:size] = left @ np.diag(np.sqrt(values * 120)) @ right.T
    return matrix, np.arange(size)


def compared(matrix, group):
    """`compare` of a group with 99 random groups of other neurons and with its own shuffles; its choice nearly certain."""
    others = controls.random_groups(np.setdiff1d(np.arange(400), group), len(group), 99)
    anew = np.stack([np.r_[group[1:], other] for other in range(50, 60)])  # one member replaced
    nulls = {"random": spectra_of.measure(matrix[others]),
             "shuffled": spectra_of.measure(spectra_of.shuffles(matrix[group], 99), 20)}
    return controls.compare(spectra_of.measure(matrix[group][None]), spectra_of.measure(matrix[anew]), nulls).set_index("statistic")


def test_a_planted_heavy_tailed_group_is_told_from_random_groups_and_from_its_shuffles():
    table = compared(*with_heavy_group())
    for statistic in ("alpha_hill", "alpha", "stable_rank", "entropy", "spikes", "mp_distance", "spectral_norm"):
        assert table.p_random[statistic] == pytest.approx(0.01), statistic
    assert (table.p_shuffled[["alpha_hill", "stable_rank", "entropy", "mp_distance"]] <= 0.03).all()
    assert table.value["alpha_hill"] == pytest.approx(1.0, abs=0.35)
    assert table.high["alpha_hill"] < table.random_low["alpha_hill"] and (table.low <= table.high).all()
    assert np.allclose(table.difference, table.value - table.random_mean) and table.difference_high["alpha_hill"] < 0
    assert np.allclose(table.difference_high - table.difference_low, table.high - table.low)
    assert (table.missing == 0).all() and table.random_draws["alpha_hill"] == 99 and table.shuffled_draws["alpha"] == 20


def test_a_random_group_is_not_heavier_than_others():
    group = np.random.default_rng(3).permutation(400)[:27]
    table = compared(noise(seed=2), group)
    heavier = table.loc[table.side != "two-sided", "p_random"].drop("spikes")
    assert (heavier > 0.01).all() and (heavier > 0.05).sum() >= 4
    assert table.value["spikes"] <= 1


def test_measure_is_one_group_at_a_time_and_in_units_of_xi():
    matrices = noise()[controls.random_groups(400, 27, 4)]
    table = spectra_of.measure(matrices, fits=2)
    for row, matrix in enumerate(matrices):
        values = spectra_of.eigenvalues(matrix)
        assert table.alpha_hill[row] == pytest.approx(spectra_of.hill(values)[0])
        assert table.alpha_hill_half[row] == pytest.approx(1 / np.mean(np.log(values[:13] / values[13])))
    found = spectra_of.metrics(matrices[:2])
    assert np.allclose(table.alpha[:2], found.alpha) and np.allclose(table.xmin[:2], found.xmin / 120)
    assert np.allclose(table.spectral_norm[:2], [spectra_of.eigenvalues(matrix)[0] for matrix in matrices[:2]], rtol=1e-4)
    assert np.allclose(table.stable_rank[:2], found.stable_rank, rtol=1e-4)  # the closed forms are weightwatcher's
    assert np.allclose(table.entropy[:2], found.entropy, rtol=1e-4)
    assert table.loc[2:, list(spectra_of.FITTED) + ["status"]].isna().all(axis=None) and (table.status[:2] == "success").all()
    assert spectra_of.measure(matrices, fits=2).equals(table)


def test_failed_fits_are_missing_and_counted_among_the_fitted_only():
    rows = spectra_of.measure(noise()[controls.random_groups(400, 27, 10)], fits=4)
    rows.loc[:1, ["alpha", "D"]] = np.nan
    table = controls.compare(rows.iloc[[3]], rows.iloc[4:6], {"random": rows}).set_index("statistic")
    assert table.missing["alpha"] == pytest.approx(2 / 5) and table.missing["alpha_hill"] == 0
    assert table.random_draws["alpha"] == 2 and np.isnan(table.low["alpha"])
    lost = controls.compare(rows.iloc[[0]], rows.iloc[4:6], {"random": rows}).set_index("statistic")
    assert np.isnan(lost.value["alpha"]) and np.isnan(lost.p_random["alpha"]) and np.isfinite(lost.p_random["alpha_hill"])


def test_groups_chosen_anew_are_those_of_a_ranking_by_hand():
    rng = np.random.default_rng(0)
    sums, n = rng.random((12, 30)), rng.integers(1, 5, size=12)
    found = over_documents.resampled_groups(sums, n, 4, draws=20, seed=5)
    drawn = np.random.default_rng(5).multinomial(12, np.full(12, 1 / 12), size=20)
    for group, times in zip(found, drawn):
        documents = np.repeat(np.arange(12), times)
        means = sums[documents].sum(axis=0) / n[documents].sum()
        assert group.tolist() == sorted(range(30), key=lambda neuron: -means[neuron])[:4]
    certain = over_documents.resampled_groups(np.arange(30.0) * n[:, None], n, 4)
    assert (certain == [29, 28, 27, 26]).all()


def test_the_interval_holds_the_value():
    assert over_documents.percentile_interval(5.0, np.arange(100.0)) == pytest.approx((2.475, 96.525))
    assert over_documents.percentile_interval(-3.0, np.arange(100.0))[0] == -3.0
    assert over_documents.percentile_interval(200.0, np.r_[np.arange(100.0), np.nan])[1] == 200.0
    assert np.isnan(over_documents.percentile_interval(np.nan, np.arange(9.0))).all()


def test_standardised_rows_make_neurons_of_different_norm_alike():
    matrix = noise(30, 50)
    scaled = spectra_of.standardised(matrix * np.logspace(-2, 2, 30)[:, None] + 3.0)
    assert np.allclose(scaled, spectra_of.standardised(matrix))
    assert spectra_of.eigenvalues(scaled) == pytest.approx(spectra_of.eigenvalues(matrix, standardise=True))


def test_the_power_law_test_is_that_of_each_spectrum():
    rng = np.random.default_rng(4)
    law, bent = np.sort(rng.pareto(1.5, size=400) + 1)[::-1], np.sort(rng.uniform(1, 2, size=400))[::-1]
    table = spectra_of.power_laws(np.stack([law, bent]), seed=3)
    alone = powerlaws.tail(bent, draws=100, seed=3)
    assert table.p_fit[1] == alone.p_fit and table.verdict[1] == alone.verdict and table.n[1] == alone.n
    assert table.alpha[0] == pytest.approx(2.5, abs=0.3) and table.p_fit[0] > 0.1 and table.verdict[1] != "not rejected"
    assert np.isfinite(table.drop(columns="verdict")).all(axis=None)


@pytest.mark.parametrize("kind, names", [("neox-parallel", ["in", "out"]), ("llama-tied", ["gate", "up", "out"])])
def test_rows_are_neurons(tiny, kind, names):
    subject = tiny(kind)
    found = weights.rows_of(subject)
    assert list(found) == names and all(part.shape == (48, 32) for part in found.values())
    neuron, mlp = 7, (subject.model.gpt_neox if "neox" in kind else subject.model.model).layers[-1].mlp
    write, read = (mlp.dense_4h_to_h, mlp.dense_h_to_4h) if "neox" in kind else (mlp.down_proj, mlp.gate_proj)
    one = torch.zeros(48)
    one[neuron] = 1.0
    assert found["out"][neuron] == pytest.approx((write.weight @ one).numpy())
    assert found[names[0]][neuron] == pytest.approx(read.weight[neuron].numpy())
