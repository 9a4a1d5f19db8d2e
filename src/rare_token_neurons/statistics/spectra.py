"""Spectra of the weights of neuron groups: Hill's exponent, the law of Marchenko and Pastur, weightwatcher's metrics.

A group is a matrix W with one row a neuron: rows of W_in, or columns of W_out transposed. Its spectrum is that of
Xi = W W^T / d, d being the width of the residual stream. Small groups of pure noise already have "heavy" exponents:
compare a group only with groups of its own size.
"""

import contextlib
import io
import logging
import warnings
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import stats

from rare_token_neurons.statistics import powerlaws

LEAST_TAIL = 5  # eigenvalues in the tail by the fix-finger rule
TRACY_WIDOM_99 = 2.0234  # 99 % quantile of the Tracy-Widom law (beta = 1)


def eigenvalues(weights):
    """Eigenvalues of Xi = W W^T / d, largest first.

    Parameters
    ----------
    weights : (..., m, d) one row a neuron, m at most d.

    Returns
    -------
    (..., m) float64, at or above zero.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim < 2 or not 0 < weights.shape[-2] <= weights.shape[-1]:
        raise ValueError(f"A group has one row a neuron and at most as many rows as columns, not the shape {weights.shape}.")
    if not np.isfinite(weights).all():
        raise ValueError("The weights of a group hold values that are not finite.")
    gram = weights @ np.swapaxes(weights, -1, -2) / weights.shape[-1]
    return np.maximum(np.linalg.eigvalsh(gram)[..., ::-1], 0.0)


def hill_plot(values):
    """Hill's exponent for every tail size k = 1 .. n - 1.

    alpha(k) = [ (1/k) sum_{i <= k} ln(lambda_i / lambda_{k+1}) ]^-1 (Hill 1975; arXiv 2505.12822). The exponent of the
    density, which weightwatcher calls alpha, is larger by 1.

    Parameters
    ----------
    values : (..., n) eigenvalues, largest first.

    Returns
    -------
    (..., n - 1) float, NaN where the tail reaches a zero eigenvalue or its values are all equal.
    """
    values = np.asarray(values, dtype=np.float64)
    logs = np.log(np.where(values > 1e-10 * values[..., :1], values, np.nan))
    k = np.arange(1, values.shape[-1])
    mean = np.cumsum(logs[..., :-1], axis=-1) / k - logs[..., 1:]
    return np.divide(1.0, mean, out=np.full(mean.shape, np.nan), where=mean > 1e-12)


def tail_size(values):
    """The k of Hill's exponent by the fix-finger rule: the tail begins at the peak of the spectrum.

    The peak is the lower edge of the fullest bin in a histogram of log10 lambda; among the eigenvalues from 0.95 to
    1.5 times it the one whose tail is closest to a power law (Kolmogorov-Smirnov) is lambda_{k+1}. weightwatcher
    takes 100 bins, made for thousands of eigenvalues: of the 26 of a small group hardly two share a bin, and the
    "peak" is chance. Here numpy chooses their number, at most 100. (weightwatcher's `fix_fingers="xmin_peak"` besides
    compares log10 of the lower bound with lambda itself.)

    Parameters
    ----------
    values : (n,) eigenvalues, largest first.

    Returns
    -------
    int, from `LEAST_TAIL` to n - 1.
    """
    values = np.asarray(values, dtype=np.float64)
    values = values[values > 1e-10 * values[0]]
    if len(values) < LEAST_TAIL + 1:
        raise ValueError(f"A tail of {LEAST_TAIL} needs {LEAST_TAIL + 1} eigenvalues above zero, here are {len(values)}.")
    logs = np.log10(values)
    counts, edges = np.histogram(logs, min(len(np.histogram_bin_edges(logs, "auto")) - 1, 100))
    peak = 10 ** edges[counts.argmax()]
    last = len(values) - 1
    near = np.flatnonzero((values >= 0.95 * peak) & (values <= 1.5 * peak))
    near = np.unique(np.clip(near if len(near) else [np.searchsorted(-values, -peak)], LEAST_TAIL, last))
    distances = _ks_pareto(values, near, hill_plot(values)[near - 1])
    return int(near[np.where(np.isnan(distances), np.inf, distances).argmin()])


def _ks_pareto(values, sizes, alphas):
    """Largest distance between tails and P(X > x) = (start / x)^alpha, start being the value after the tail.

    values : (n,) largest first ; sizes, alphas : (k,) of the tails.
    """
    above = np.minimum(values[sizes, None] / values, 1.0) ** alphas[:, None]  # (k, n)
    place, n = np.arange(len(values)), sizes[:, None]
    gap = np.maximum(np.abs(above - place / n), np.abs(above - (place + 1) / n))
    return np.where(place < n, gap, 0.0).max(axis=1)


def hill(values, share=None):
    """Hill's exponent of each spectrum.

    Parameters
    ----------
    values : (..., n) eigenvalues, largest first.
    share : of the eigenvalues that are the tail (the authors' code takes 0.1); None: `tail_size` of each spectrum.

    Returns
    -------
    alpha : (...) float, NaN where it cannot be had ; k : (...) int
    """
    values = np.asarray(values, dtype=np.float64)
    n = values.shape[-1]
    sizes = np.array([tail_size(row) if share is None else max(1, int(share * n)) for row in values.reshape(-1, n)])
    sizes = sizes.reshape(values.shape[:-1])
    if sizes.max() > n - 1:
        raise ValueError(f"The tail of {n} eigenvalues has 1 to {n - 1} of them, not {sizes.max()}.")
    return np.take_along_axis(hill_plot(values), sizes[..., None] - 1, axis=-1)[..., 0], sizes


def stable_rank(values):
    """Sum of the eigenvalues over the largest: (..., n) -> (...)."""
    return values.sum(axis=-1) / values[..., 0]


def spectral_entropy(values):
    """Entropy of the eigenvalues' shares over log n, from 0 (one direction) to 1 (all alike): (..., n) -> (...)."""
    return stats.entropy(values, axis=-1) / np.log(values.shape[-1])


def mp_edges(q, variance=1.0):
    """Lowest and highest eigenvalue of the Marchenko-Pastur law for aspect ratio q = rows / columns (at most 1)."""
    if not 0 < q <= 1:
        raise ValueError(f"The aspect ratio is rows over columns, above 0 and at most 1, not {q}.")
    return variance * (1 - np.sqrt(q)) ** 2, variance * (1 + np.sqrt(q)) ** 2


def mp_density(x, q):
    """Density of the Marchenko-Pastur law at x: sqrt((b - x)(x - a)) / (2 pi q x) between the edges a, b."""
    low, high = mp_edges(q)
    x = np.asarray(x, dtype=np.float64)
    inside = np.maximum((high - x) * (x - low), 0.0)
    return np.sqrt(inside) / (2 * np.pi * q * np.where(inside > 0, x, 1.0))


def mp_distribution(x, q, variance=1.0):
    """Distribution function of the Marchenko-Pastur law at x, to about 1e-6."""
    low, high = mp_edges(q, variance)
    middle, radius = (low + high) / 2, (high - low) / 2
    angle = (np.arange(4000) + 0.5) * np.pi / 4000  # x = middle - radius cos(angle) makes the density smooth
    mass = radius**2 * np.sin(angle) ** 2 / (2 * np.pi * variance * q * (middle - radius * np.cos(angle)))
    total = np.concatenate([[0.0], np.cumsum(mass)])
    at = np.arccos(np.clip((middle - np.asarray(x, dtype=np.float64)) / radius, -1, 1))
    return np.interp(at, np.arange(4001) * np.pi / 4000, total / total[-1])


@lru_cache
def _mp_median(q):
    """Median of the Marchenko-Pastur law."""
    grid = np.linspace(*mp_edges(q), 4001)
    return np.interp(0.5, mp_distribution(grid, q), grid)


def bulk(values, columns):
    """A group's eigenvalues beside those of independent weights of one variance.

    The variance comes from the median of the eigenvalues, which spikes do not move (Gavish and Donoho 2014); the bound of
    the largest eigenvalue, at 99 % of the Tracy-Widom law, from Johnstone 2001.

    Parameters
    ----------
    values : (m,) eigenvalues of Xi, largest first.
    columns : d, so that the aspect ratio is m / d.

    Returns
    -------
    spikes : int, eigenvalues beyond the bound.
    distance : float, Kolmogorov-Smirnov, from the Marchenko-Pastur law with the variance of the mean.
    """
    values = np.asarray(values, dtype=np.float64)
    m, q = len(values), len(values) / columns
    variance = np.median(values) / _mp_median(q)
    n = np.sqrt(columns - 1)
    centre, scale = (n + np.sqrt(m)) ** 2, (n + np.sqrt(m)) * (1 / n + 1 / np.sqrt(m)) ** (1 / 3)
    bound = variance * (centre + TRACY_WIDOM_99 * scale) / columns
    law, steps = mp_distribution(values[::-1], q, values.mean()), np.arange(m + 1) / m
    return int((values > bound).sum()), float(max(np.abs(law - steps[:-1]).max(), np.abs(law - steps[1:]).max()))


# ---- how heavy spectra are

FITS = 200  # groups that weightwatcher fits, and draws of the choice
SIDES = {"alpha_hill": "less", "alpha_hill_half": "less", "alpha": "less", "stable_rank": "less", "entropy": "less",
         "spikes": "greater", "mp_distance": "greater", "spectral_norm": "greater", "D": "two-sided", "xmin": "two-sided"}
FITTED = ("alpha", "D", "xmin", "spectral_norm")  # weightwatcher's; the others are closed forms of the eigenvalues


def standardised(weights):
    """Each row less its mean, over its standard deviation: neurons of different norm then count alike."""
    return (weights - weights.mean(axis=1, keepdims=True)) / weights.std(axis=1, keepdims=True)


def measure(matrices, fits=FITS):
    """The spectral statistics of groups of equal size.

    Parameters
    ----------
    matrices : (g, m, d) the weights of each group, one row a neuron ; fits : how many of them weightwatcher fits.

    Returns
    -------
    DataFrame, one row a group: alpha_hill (k by the fix-finger rule), k, alpha_hill_half (k = m / 2), stable_rank,
    entropy, spikes, mp_distance; weightwatcher's alpha, D, xmin and spectral_norm (both as eigenvalues of Xi), status
    (missing where not fitted), warning, log.
    """
    values, d = eigenvalues(matrices), np.shape(matrices)[-1]
    exponent, sizes = hill(values)
    spikes, distances = zip(*(bulk(row, d) for row in values))
    fitted = fit_tails(values[:fits] * d).reindex(range(len(values)))
    fitted[["xmin", "spectral_norm"]] /= d
    return pd.DataFrame({"alpha_hill": exponent, "k": sizes, "stable_rank": stable_rank(values),
                         "entropy": spectral_entropy(values), "spikes": spikes, "mp_distance": distances,
                         "alpha_hill_half": hill(values, 0.5)[0]}).join(fitted)


def shuffles(weights, draws, seed=0):
    """The control of element-wise shuffling: a group's numbers in random places, `draws` times: (m, d) -> (draws, m, d)."""
    return np.stack([np.random.default_rng(seed + draw).permutation(np.ravel(weights)).reshape(np.shape(weights))
                     for draw in range(draws)])


def power_laws(values, seed=0):
    """The power-law test of the upper tail of each spectrum (`powerlaws.tail`).

    Parameters
    ----------
    values : (g, m) eigenvalues.

    Returns
    -------
    DataFrame, one row a spectrum: alpha (exponent of the density), low, n (eigenvalues in the tail), ks, p_fit, ratio,
    p_ratio, ratio_whole, p_whole, verdict ("rejected", "not rejected", "cannot tell it from a lognormal")
    """
    found = [powerlaws.tail(one, seed=seed) for one in np.atleast_2d(values)]
    return pd.DataFrame([vars(one) | {"verdict": one.verdict} for one in found]).drop(columns="high")


# ---- weightwatcher

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
# `fit_powerlaw`, the step of `analyze` that fits: its arguments under other names, and what it returns
FIT_POWERLAW = {name: ANALYZE[name] for name in ("xmax", "plot", "savefig", "fix_fingers", "finger_thresh", "xmin_max",
                                                 "max_fingers", "pl_package")} | {"fit_type": ANALYZE["fit"]}
TOLD = ("alpha", "Lambda", "xmin", "xmax", "D", "sigma", "num_pl_spikes", "num_fingers", "raw_alpha", "status",
        "warning")
_SKIPPED = {**dict.fromkeys(FIT + SHAPE, np.nan), "status": "skipped", "small": True, "warning": ""}


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


def fit_tails(values):
    """weightwatcher's power-law fit of each spectrum, without the rest of its analysis, which takes ten times as long.

    Parameters
    ----------
    values : (g, m) eigenvalues of W W^T, largest first.

    Returns
    -------
    DataFrame, one row a spectrum: alpha, D, xmin, spectral_norm, status, warning and log, as in `metrics`
    """
    ww, rows = _weightwatcher(), []
    with _contained():
        watcher = ww.WeightWatcher()
    for one in values:
        row = _SKIPPED
        with _contained() as notes:
            if len(one) >= ANALYZE["min_evals"]:
                told = watcher.fit_powerlaw(one[::-1], **FIT_POWERLAW)
                row = _numbers(dict(zip(TOLD, told)) | {"spectral_norm": one[0], "num_evals": len(one)})
        rows.append(row | {"log": "; ".join(dict.fromkeys(notes))})
    return pd.DataFrame(rows, columns=[*FITTED, "status", "warning", "log"]).astype(dict.fromkeys(FITTED, float))


def metrics(matrices):
    """weightwatcher's metrics of weight matrices, each wrapped as one linear layer.

    Parameters
    ----------
    matrices : dict of name to (rows, columns) array or tensor, or a sequence of them (names 0, 1, ...).

    Returns
    -------
    DataFrame, one row a matrix in the order given: name; alpha, D, sigma, xmin, num_pl_spikes (eigenvalues from xmin
    on); stable_rank, spectral_norm, entropy, num_evals, Q; status ("success", "failed", "skipped": fewer than 8
    eigenvalues), small (another estimator: fewer than 20), warning and log in weightwatcher's words. What failed is NaN.
    Its eigenvalues are those of W W^T: d times those of Xi.

    Raises
    ------
    ValueError
        A matrix that is empty, has not two dimensions, or holds values that are not finite.
    """
    import torch  # slow to load, and what draws spectra needs none
    from torch import nn

    ww, rows = _weightwatcher(), []
    for name, matrix in (matrices if isinstance(matrices, dict) else dict(enumerate(matrices))).items():
        weight = torch.as_tensor(np.asarray(matrix, dtype=np.float32))
        if weight.ndim != 2 or not weight.numel() or not torch.isfinite(weight).all():
            raise ValueError(f"The matrix {name} must have rows and columns of finite numbers; it is {tuple(weight.shape)}.")
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight.data = weight
        with _contained() as notes:
            model = nn.Sequential(layer)
            found = ww.WeightWatcher(model=model).analyze(model=model, **ANALYZE)
        row = _numbers(found.iloc[0]) if len(found) else _SKIPPED
        rows.append({"name": name, **row, "log": "; ".join(dict.fromkeys(notes))})
    return pd.DataFrame(rows)


def _numbers(row):
    """One matrix in weightwatcher's numbers, those that are there: failures, which are -1 or infinity, become NaN."""
    failed = row["status"] != "success" or not row["alpha"] > 1
    values = {name: np.nan if name in FIT and failed or not np.isfinite(row[name]) else float(row[name])
              for name in FIT + SHAPE if name in row}
    return {**values, "status": "failed" if failed else "success", "small": bool(row["num_evals"] < SMALL),
            "warning": "" if failed else row["warning"]}


def linear_layers(model):
    """Name and weight of each linear layer of a model but the unembedding, in the model's order."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return {name: module.weight for name, module in model.named_modules()
            if isinstance(module, (nn.Linear, Conv1D)) and module is not head}
