"""Hill's exponent, the Marchenko-Pastur law and group spectra: known answers."""

import numpy as np
import pytest
from scipy import integrate

from rare_token_neurons.statistics import controls, spectra as spectra_of


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
    found = spectra_of.eigenvalues(weights)
    assert found == pytest.approx(np.linalg.svd(weights, compute_uv=False) ** 2 / 30)
    assert found == pytest.approx(np.sort(np.linalg.eigvalsh(weights @ weights.T / 30))[::-1])
    assert np.sort(np.linalg.eigvalsh(np.corrcoef(weights)))[::-1] == pytest.approx(
        spectra_of.eigenvalues(3 + 2 * weights, standardise=True))
    assert spectra_of.eigenvalues(np.stack([weights, weights])).shape == (2, 7)


@pytest.mark.parametrize("exponent", [0.8, 1.5, 3.0])
def test_a_pareto_sample_gives_its_exponent_back(exponent):
    sample = np.sort(np.random.default_rng(0).pareto(exponent, size=4000) + 1)[::-1]
    for k in (0.1, 500, "peak"):
        assert spectra_of.hill(sample, k)[0] == pytest.approx(exponent, rel=0.15)


def test_hill_by_hand_and_the_plot_over_k():
    values = np.array([8.0, 4.0, 2.0, 1.0])
    log = np.log(2)
    assert spectra_of.hill_plot(values) == pytest.approx([1 / log, 2 / (3 * log), 3 / (6 * log)])
    assert spectra_of.hill(values, 2)[0] == pytest.approx(2 / (3 * log))
    assert np.isnan(spectra_of.hill_plot(np.array([1.0, 1.0, 0.0]))).all()  # equal values, then a zero
    assert spectra_of.hill_plot(np.ones((2, 3, 5))).shape == (2, 3, 4)


def test_hill_of_small_gaussian_groups_as_the_literature_has_it():
    values = np.stack([spectra_of.eigenvalues(gaussian(50, 512, seed), standardise=True) for seed in range(300)])
    low, median, high = np.quantile(spectra_of.hill(values, 0.1)[0], [0.05, 0.5, 0.95])
    assert median == pytest.approx(12.6, abs=1.0) and low == pytest.approx(9.6, abs=1.0) and high == pytest.approx(16.7, abs=1.5)


def test_the_tail_begins_at_the_peak():
    rng = np.random.default_rng(0)
    body = rng.lognormal(0.0, 0.1, size=3000)
    tail = rng.pareto(2.0, size=1000) + 1
    values = np.sort(np.concatenate([body[body < 1], tail]))[::-1]
    k = spectra_of.tail_size(values, bins=100)
    assert 0.9 < values[k] < 1.5
    assert spectra_of.hill(values)[0] == pytest.approx(2.0, abs=0.3)
    assert 5 <= spectra_of.tail_size(spectra_of.eigenvalues(gaussian(10, 40))) <= 9


def test_the_law_is_a_density_and_its_distribution_its_integral():
    for q, variance in [(0.05, 1.0), (0.375, 2.5), (1.0, 1.0)]:
        low, high = spectra_of.mp_edges(q, variance)
        for x in np.linspace(low, high, 7)[1:]:
            mass = integrate.quad(spectra_of.mp_density, low, x, args=(q, variance), limit=200)[0]
            assert spectra_of.mp_distribution(x, q, variance) == pytest.approx(mass, abs=1e-4)
        assert spectra_of.mp_distribution(high, q, variance) == pytest.approx(1) and spectra_of.mp_density([low - 1, high + 1], q).sum() == 0


def test_a_gaussian_matrix_has_the_laws_edges_and_no_spikes():
    values = spectra_of.eigenvalues(1.7 * gaussian(576, 1536))
    found = spectra_of.bulk(values, 1536)
    q = 576 / 1536
    assert found.spikes == 0 and found.variance == pytest.approx(1.7**2, rel=0.01)
    assert (found.low, found.high) == pytest.approx(spectra_of.mp_edges(q, 1.7**2), rel=0.01)
    assert (values[-1], values[0]) == pytest.approx((found.low, found.high), rel=0.05)
    assert found.distance < 0.01
    assert spectra_of.bulk(values, 576).distance > 0.2  # the authors' aspect ratio of 1 is far off


def test_spikes_are_counted_and_noise_has_one_in_a_hundred():
    weights = gaussian(40, 400)
    left, right = (np.linalg.qr(gaussian(size, 3, seed=1))[0] for size in (40, 400))
    weights += left @ np.diag([60, 45, 30]) @ right.T
    assert spectra_of.bulk(spectra_of.eigenvalues(weights), 400).spikes == 3
    noise = [spectra_of.bulk(spectra_of.eigenvalues(gaussian(26, 576, seed)), 576).spikes for seed in range(300)]
    assert np.mean(np.array(noise) > 0) < 0.03


def test_a_planted_heavy_tailed_group_is_told_from_random_ones():
    weights = gaussian(600, 200)
    heavy = np.arange(300, 330)
    weights[heavy] = planted(30, 200, exponent=1.0)
    groups = controls.random_groups(np.setdiff1d(np.arange(600), heavy), 30, draws=199)
    table, values = spectra_of.group_spectra(weights, np.concatenate([[heavy], groups]))
    assert values.shape == (200, 30)
    for column, side in [("hill", "less"), ("stable_rank", "less"), ("entropy", "less"), ("mp_distance", "greater")]:
        assert controls.empirical_p(table[column][0], table[column][1:], side) == pytest.approx(0.005), column
    shuffled = spectra_of.shuffled(weights[heavy], seed=3)
    assert np.array_equal(np.sort(shuffled, axis=None), np.sort(weights[heavy], axis=None))
    mixed = spectra_of.hill(spectra_of.eigenvalues(shuffled), 0.5)[0]
    assert mixed > 2 * spectra_of.hill(values[0], 0.5)[0]
    assert np.array_equal(shuffled, spectra_of.shuffled(weights[heavy], seed=3))


def test_table_of_groups_against_one_group():
    weights = gaussian(100, 40)
    table, _ = spectra_of.group_spectra(weights, [[1, 2, 3, 4, 5, 6, 7, 8], [11, 12, 13, 14, 15, 16, 17, 18]], k=3)
    values = np.linalg.svd(weights[11:19], compute_uv=False) ** 2 / 40
    assert table.hill[1] == pytest.approx(1 / np.mean(np.log(values[:3] / values[3]))) and table.k[1] == 3
    assert table.stable_rank[1] == pytest.approx(values.sum() / values[0])
    shares = values / values.sum()
    assert table.entropy[1] == pytest.approx(-(shares * np.log(shares)).sum() / np.log(8))


def test_bad_input_by_name():
    with pytest.raises(ValueError, match="row"):
        spectra_of.eigenvalues(np.zeros((5, 4)))
    with pytest.raises(ValueError, match="aspect ratio"):
        spectra_of.mp_edges(1.5)
    with pytest.raises(ValueError, match="tail"):
        spectra_of.hill(np.arange(5.0)[::-1] + 1, 5)
    with pytest.raises(ValueError, match="above zero"):
        spectra_of.tail_size(np.array([1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0]))
