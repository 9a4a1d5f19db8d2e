"""How heavy the spectra of neuron groups are, beside control groups and with an interval.

The statistics of one group say nothing by themselves: 27 rows of pure noise have "heavy" exponents too. So each is
compared with groups of the same size; its interval comes from the choice of the group, made anew from documents that
are drawn with replacement.
"""

import numpy as np
import pandas as pd

from rare_token_neurons import controls, documents, powerlaws, spectra, watcher

FITS = 200  # groups that weightwatcher fits, and draws of the choice
SIDES = {"alpha_hill": "less", "alpha_hill_half": "less", "alpha": "less", "stable_rank": "less", "entropy": "less",
         "spikes": "greater", "mp_distance": "greater", "spectral_norm": "greater", "D": "two-sided", "xmin": "two-sided"}
FITTED = ("alpha", "D", "xmin", "spectral_norm")  # weightwatcher's; the others are closed forms of the eigenvalues


def standardised(weights):
    """Each row less its mean, over its standard deviation: neurons of different norm then count alike."""
    return (weights - weights.mean(axis=1, keepdims=True)) / weights.std(axis=1, keepdims=True)


def resampled_groups(sums, n, size, draws=FITS, seed=0):
    """The top neurons when the documents are drawn with replacement.

    Parameters
    ----------
    sums : (k, neurons) each document's sum of |loss change| ; n : (k,) its positions ; size : neurons a group.

    Returns
    -------
    (draws, size) int64, most influential first
    """
    weights = documents.resamples(len(n), draws, seed)[1:]
    means = weights @ np.asarray(sums, dtype=np.float64) / (weights @ np.asarray(n))[:, None]
    return np.argsort(-means, axis=1, kind="stable")[:, :size]


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
    matrices = np.asarray(matrices, dtype=np.float64)
    g, m, d = matrices.shape
    table, values = spectra.group_spectra(matrices.reshape(g * m, d), np.arange(g * m).reshape(g, m))
    table = table.rename(columns={"hill": "alpha_hill"}).assign(alpha_hill_half=spectra.hill(values, 0.5)[0])
    found = watcher.metrics(matrices[:fits]) if fits else pd.DataFrame(columns=[*FITTED, "status", "warning", "log"])
    found = found[[*FITTED, "status", "warning", "log"]].reindex(table.index)
    found[list(FITTED)] = found[list(FITTED)].astype(float)
    return table.assign(**found).assign(xmin=found["xmin"] / d, spectral_norm=found["spectral_norm"] / d)


def percentile_interval(value, samples):
    """95 % of the resamples, widened to hold the value: resampling lets chance members in, which pulls towards the null."""
    samples = np.asarray(samples, dtype=np.float64)
    if not (np.isfinite(value) and np.isfinite(samples).sum() > 1):
        return np.nan, np.nan
    low, high = np.nanquantile(samples, [0.025, 0.975])
    return min(low, value), max(high, value)


def compare(own, resampled, nulls):
    """A group's statistics beside those of its controls.

    Parameters
    ----------
    own : one row of `measure` ; resampled : rows for the group chosen anew ; nulls : name -> rows of control groups,
    one of them "random".

    Returns
    -------
    DataFrame, one row a statistic: statistic, side (of the tests: the heavier tail), value, low, high (95 % over
    documents), difference, difference_low, difference_high (the same three less random_mean), for each null X_mean, X_low,
    X_high (95 % of the groups), p_X, X_draws; missing (the share of failed fits in everything compared).
    """
    rows, everything = [], pd.concat([own, resampled, *nulls.values()])
    for statistic, side in SIDES.items():
        value = float(own[statistic].iloc[0])
        low, high = percentile_interval(value, resampled[statistic])
        centre = nulls["random"][statistic].mean()
        row = {"statistic": statistic, "side": side, "value": value, "low": low, "high": high, "difference": value - centre,
               "difference_low": low - centre, "difference_high": high - centre}
        for name, null in nulls.items():
            draws = null[statistic].dropna().to_numpy()
            edges = np.quantile(draws, [0.025, 0.975]) if len(draws) else (np.nan, np.nan)
            row |= {f"{name}_mean": draws.mean() if len(draws) else np.nan, f"{name}_low": edges[0],
                    f"{name}_high": edges[1], f"p_{name}": controls.empirical_p(value, draws, side), f"{name}_draws": len(draws)}
        tried = everything[everything["status"].notna()] if statistic in FITTED else everything
        rows.append(row | {"missing": tried[statistic].isna().mean() if len(tried) else np.nan})
    return pd.DataFrame(rows)


def shuffles(weights, draws, seed=0):
    """A group's elements in random places, `draws` times: (m, d) -> (draws, m, d)."""
    return np.stack([spectra.shuffled(weights, seed + draw) for draw in range(draws)])


def power_laws(values, draws=100, seed=0):
    """The power-law test of the upper tail of each spectrum (`powerlaws.tail`).

    Parameters
    ----------
    values : (g, m) eigenvalues ; draws : bootstrap samples a spectrum.

    Returns
    -------
    DataFrame, one row a spectrum: alpha (exponent of the density), low, n (eigenvalues in the tail), ks, p_fit, ratio,
    p_ratio, ratio_whole, p_whole, verdict ("rejected", "not rejected", "cannot tell it from a lognormal")
    """
    found = [powerlaws.tail(one, draws=draws, seed=seed) for one in np.atleast_2d(values)]
    return pd.DataFrame([vars(one) | {"verdict": one.verdict} for one in found]).drop(columns="high")
