"""Drawing spectra, Hill plots, groups beside their controls and whole layers (notebook 07), and words on them."""

import numpy as np
import pandas as pd

from rare_token_neurons.figures import axes
from rare_token_neurons.figures.activations import matches, usable  # usable for the notebook, as title is
from rare_token_neurons.figures.axes import GREY, title
from rare_token_neurons.figures.words import by_control, by_draws
from rare_token_neurons.statistics import controls, spectra
from rare_token_neurons.statistics.claims import MOST_MISSING, SIGNIFICANT
from rare_token_neurons.tables.claims import hill as of_claim

MATRICES = {"in": "$W_{in}$", "gate": "$W_{in}$ gate", "up": "$W_{in}$ up", "out": "$W_{out}$"}
STATISTICS = {"alpha_hill": "Hill exponent", "alpha_hill_half": "Hill, k = m/2", "alpha": r"weightwatcher's $\alpha$",
              "stable_rank": "stable rank", "entropy": "spectral entropy"}
LOOKS = {"random": {"color": GREY, "alpha": 0.35, "label": "random groups"},
         "matched": {"color": axes.DARK, "histtype": "step", "linestyle": "--", "linewidth": 0.9,
                     "label": "matched groups (by row norm)"},
         "shuffled": {"color": GREY, "histtype": "step", "linestyle": ":", "linewidth": 1.2,
                      "label": "rare group, shuffled"},
         "rare": {"color": axes.COLORS["rare"], "histtype": "step", "linewidth": 1.2}}
CONTROLS = controls.KINDS
UNDER_TRAINED = 6  # weightwatcher's bound on alpha
DASHES = ("--", ":", "-")


def spectrum(ax, rows, edges):
    """Density of the eigenvalues in logarithm, with the law of independent weights; ticks: each of the rare group's.

    rows : `weight_eigenvalues` of one revision and matrix, after `in_use` ; edges : of the bins, in log10 of
    `relative`.
    """
    q = rows["rank"].max() / rows["columns"].iloc[0]
    for kind, look in LOOKS.items():
        values = np.log10(rows.loc[rows["kind"] == kind, "relative"])
        if not len(values):
            continue
        label = look.get("label", f"rare group (m = {rows['rank'].max()})")
        ax.hist(values, edges, density=True, **look | {"label": label})
    ax.plot(values, np.full(len(values), -0.06), "|", color=axes.COLORS["rare"], markersize=5, markeredgewidth=0.8,
            clip_on=False)
    law = np.linspace(*spectra.mp_edges(q), 400)
    density = law * np.log(10) * spectra.mp_density(law, q)  # per decade
    ax.plot(np.log10(law), density, color=axes.COLORS["all"], linewidth=0.9, label=f"Marchenko-Pastur, m/d = {q:.3f}")
    ax.set_ylim(bottom=-0.12)
    ax.set_xlabel("log10 eigenvalue\n(0: mean of random groups)")


def hill(ax, rows):
    """Hill's exponent over the tail size; a diamond at the k of the fix-finger rule, the first checkpoint dashed.

    rows : `weight_hill_curves` of one matrix, after `in_use`.
    """
    names, color = list(dict.fromkeys(rows["revision"])), axes.COLORS["rare"]
    if len(names) > 1:
        early = rows[rows["revision"] == names[0]]
        ax.plot(early["k"], early["value"], color=color, linestyle="--", label=f"rare group at {names[0]}")
    now = rows[rows["revision"] == names[-1]]
    ax.plot(now["k"], now["value"], color=axes.COLORS["rare"], label="rare "
                                                                     f"group{' at ' if names[-1] else ''}{names[-1]}")
    axes.band(ax, now["k"], now["random_low"], now["random_high"], label=axes.LABELS["random"], alpha=0.35)
    if now["matched_low"].notna().any():
        axes.edges(ax, now["k"], now["matched_low"], now["matched_high"], color=axes.DARK, label=axes.LABELS["matched"])
    ax.plot(now["k"], now["shuffled_mean"], color=GREY, linestyle=":")
    at = now[now["k"] == now["chosen"]]
    ax.plot(at["k"], at["value"], "D", color=color, markersize=4.5, label="k by the fix-finger rule")
    ax.set(xlabel="tail size k", yscale="log")
    axes.tick_at(ax, (0.5, 1, 2, 5, 10, 20, 50, 100))


def below_bands(now):
    """For which share of the tail sizes the rare group lies below the bands of its controls, in three lines for a title.

    now : `weight_hill_curves` of one revision and matrix, after `in_use`.
    """
    said = [f"{(now['value'] < now[f'{kind}_low']).mean():.0%} ({kind})" for kind in CONTROLS
            if now[f"{kind}_low"].notna().any()]
    return "Below the controls' band\nfor, of all k,\n" + ", ".join(said)


def _of_rare(groups):
    """A row a matrix of the rare group, its rows as they are."""
    return groups[(groups["group"] == "rare") & (groups["rows"] == "raw")].drop_duplicates("matrix")


def in_use(rows, groups):
    """Spectra or Hill curves without the matched groups of a matrix where they cannot be used.

    rows : `weight_eigenvalues` or `weight_hill_curves` ; groups : `weight_groups`.
    """
    good = [row["matrix"] for _, row in _of_rare(groups).iterrows() if matches(row)]
    poor = ~rows["matrix"].isin(good)
    if "kind" in rows:
        return rows[~(poor & rows["kind"].eq("matched"))]
    return rows.assign(**{name: rows[name].mask(poor) for name in rows if name.startswith("matched")})


def lower(rows):
    """Whether a statistic lies below that of random groups, and of matched ones where these can be used: bool, by row.

    rows : `weight_groups`, after `usable`; p below 0.05, on one side, before any correction for the number of tests.
    """
    return (rows["p_random"] < SIGNIFICANT) & ((rows["p_matched"] < SIGNIFICANT) | rows["p_matched"].isna())


def places(table):
    """A row for each group and matrix: the table with y, and the rows' names and places."""
    cases = table[["matrix", "group", "rows"]].drop_duplicates().reset_index(drop=True)
    matrices = list(dict.fromkeys(cases["matrix"]))
    block = len(cases) / len(matrices) + 0.7
    cases["y"] = -(cases["matrix"].map(matrices.index) * block + cases.groupby("matrix").cumcount())
    rows = cases["rows"].map({"raw": "", "standardised": ", stand."})
    cases["name"] = cases["matrix"].map(MATRICES) + " " + cases["group"] + rows
    return table.merge(cases, on=["matrix", "group", "rows"]), cases


def groups(ax, rows):
    """Groups as dots with intervals over the bars of random (upper) and matched (lower) groups.

    rows : one statistic of `weight_groups`, after `usable` and `places`.
    """
    for shift, name in ((0.17, "random"), (-0.17, "matched")):
        if rows[f"{name}_mean"].isna().all():
            continue
        ax.hlines(rows["y"] + shift, rows[f"{name}_low"], rows[f"{name}_high"], color=axes.COLORS[name], linewidth=3.5,
                  alpha=0.45, label=axes.LABELS[name])
        ax.plot(rows[f"{name}_mean"], rows["y"] + shift, "|", color=axes.DARK, markersize=4)
    for group in dict.fromkeys(rows["group"]):
        part = rows[rows["group"] == group]
        ax.hlines(part["y"], part["low"], part["high"], color=axes.COLORS[group], linewidth=1.2,
                  label=f"{group} group (m = {part['size'].iloc[0]}), 95 % over documents")
        ax.plot(part["value"], part["y"], "o", color=axes.COLORS[group], markersize=3.5)


def over_steps(ax, rows):
    """The rare group of each checkpoint and the last one's followed back, over the band of random groups.

    rows : one matrix and statistic of `weights_over_training`.
    """
    own, back = rows[rows["kind"] == "own"], rows[rows["kind"] == "last"]
    axes.band(ax, own["step"], own["random_low"], own["random_high"], label=axes.LABELS["random"], alpha=0.35)
    axes.over_steps(ax, own["step"], own["value"], low=own["low"], high=own["high"], color=axes.COLORS["rare"],
                    markersize=2.5, label="rare group of the checkpoint (band: 95 % over documents)")
    axes.over_steps(ax, back["step"], back["value"], color=axes.COLORS["all"], linewidth=0.9, markersize=0,
                    linestyle="--", label="rare group of the last one")
    powers = 10.0 ** np.arange(12)
    ax.set_xticks([0, *powers[(powers > 4 * own.loc[own["step"] > 0, "step"].min()) & (powers <= own["step"].max())]])


def _dashes(mlp):
    """A line style for each matrix of the MLP, solid for the last."""
    return dict(zip(mlp[::-1], DASHES[::-1]))


def by_layer(ax, rows, column):
    """A metric of whole matrices by layer, those of the MLP in black, of attention in grey; dots: the last layer.

    rows : `weight_layers` of one checkpoint.
    """
    inside = rows[rows["layer"] >= 0]
    mlp = [matrix for matrix in dict.fromkeys(inside["matrix"]) if matrix.startswith("mlp.")]
    others = [matrix for matrix in dict.fromkeys(inside["matrix"]) if matrix not in mlp]
    for matrix in (*others, *mlp):
        part = inside[inside["matrix"] == matrix].sort_values("layer")
        if matrix in mlp:
            look = {"color": axes.COLORS["all"], "linestyle": _dashes(mlp)[matrix], "zorder": 3, "label": matrix}
        else:
            look = {"color": GREY, "alpha": 0.5, "linewidth": 0.9}
            look["label"] = "attention" if matrix == others[0] else None
        ax.plot(part["layer"], part[column], **look)
        ax.plot(part["layer"].iloc[-1], part[column].iloc[-1], "o", color=look["color"], markersize=3.5)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("layer (dot: the last)")


def layers_over_steps(ax, rows, column):
    """A metric of the MLP's whole matrices over training, the last layer's in black.

    rows : `weight_layers`.
    """
    mlp = [matrix for matrix in dict.fromkeys(rows["matrix"]) if matrix.startswith("mlp.")]
    for (layer, matrix), part in rows[rows["matrix"].isin(mlp)].groupby(["layer", "matrix"]):
        last = layer == rows["layer"].max()
        axes.over_steps(ax, part["step"], part[column], color=axes.COLORS["all"] if last else GREY, markersize=2,
                        linestyle=_dashes(mlp)[matrix], zorder=3 if last else 2)
    ax.set_xlabel("training step (black: the last layer)")


def special(fits, column="alpha"):
    """The last layer's place among the layers of one checkpoint, matrix by matrix.

    Parameters
    ----------
    fits : rows of `weight_layers` of one checkpoint ; column : a metric.

    Returns
    -------
    DataFrame, one row a matrix: last (the last layer's value), median, lowest and highest of the other layers, below
    (how many of them lie lower), others, p (two-sided: the share of the layers that would be as extreme; NaN where the
    last layer's fit failed)
    """
    rows = {}
    for matrix, part in fits[fits["layer"] >= 0].groupby("matrix", sort=False):
        values = part.sort_values("layer")[column]
        last, others = values.iloc[-1], values.iloc[:-1].dropna()
        below = int((others < last).sum())
        p = min(1.0, 2 * (min(below, len(others) - below) + 1) / (len(others) + 1))
        rows[matrix] = {"last": last, "median": others.median(), "lowest": others.min(), "highest": others.max(),
                        "below": below, "others": len(others), "p": p if np.isfinite(last) else np.nan}
    return pd.DataFrame.from_dict(rows, orient="index")


# ---- in words


def matching(groups):
    """How well matched groups match, matrix by matrix, in Markdown. groups : `weight_groups`"""
    said = ", ".join(f"{abs(row['imbalance_norm']):.2f} SD in {MATRICES[row['matrix']]}"
                     f"{'' if matches(row) else ' (**cannot be used there**)'}"
                     for _, row in _of_rare(groups).iterrows())
    return (f"In the norm of their rows matched groups miss the rare group by {said}; the limit is "
            f"{controls.POOR_MATCH} SD. Where it is passed they are left out, and the claim is judged on random groups "
            "alone, as partly reproduced at most.")


def failures(table):
    """How many of weightwatcher's fits failed, a line a matrix, in Markdown.

    table : `weight_groups`
    """
    fits = table[(table["group"] == "rare") & (table["rows"] == "raw") & (table["statistic"] == "alpha")]
    lines = [f"- {MATRICES[row.matrix]}: {row.missing:.1%} of weightwatcher's fits failed"
             + (" (**above 20 %: cannot be tested**)" if row.missing > MOST_MISSING else "")
             + f"; {row.under_trained:.0%} of the random groups are called under-trained." for row in fits.itertuples()]
    log = "; ".join(sorted(set(table["log"]) - {""}))
    return "\n".join(lines + ([f"- Its words on failures: {log}."] if log else []))


def summary(rare, share, training, fitted, model):
    """What the spectra say, matrix by matrix, in Markdown.

    Parameters
    ----------
    rare : the rare group's rows of `weight_groups` by statistic and matrix, after `usable`.
    share : of the sum in one direction, by kind and matrix.
    training : `weights_over_training`, without rows where there is none ; fitted : `weight_layers` ; model : its name.
    """
    lines = [f"- {MATRICES[matrix]}{' (beside the claim)' if matrix == 'out' else ''}: Hill exponent "
             f"**{row.value:.2f}** [{row.low:.2f}, {row.high:.2f}]; {_controls(row)}, own elements shuffled "
             f"{row.shuffled_mean:.2f}. {of_claim(rare.reset_index(), matrix).detail} One direction holds "
             f"{share['rare', matrix]:.0%} of the sum (random groups {share['random', matrix]:.0%})."
             for matrix, row in rare.loc["alpha_hill"].iterrows()]
    if len(training):
        own = training[training["kind"] == "own"].groupby(["statistic", "matrix"], sort=False)["difference"]
        gaps = own.agg(["first", "last"])
        lines += [f"- {MATRICES[matrix]} over training: the distance to random groups goes from {hill['first']:+.2f} "
                  f"to {hill['last']:+.2f}; with k = m/2 for all from {half['first']:+.2f} to {half['last']:+.2f}."
                  for matrix in training["matrix"].unique()
                  for hill, half in [[gaps.loc[(name, matrix)] for name in ("alpha_hill", "alpha_hill_half")]]]
    lines += ["", f"weightwatcher's fit of whole layers failed in {fitted['alpha'].isna().mean():.1%} of the matrices."]
    quantised = (" The weights of this model were stored with 4 bits and made floating point again: the rounding adds "
                 "noise of its own.")
    return "\n".join(lines) + quantised * (model == "smollm2")


def _controls(row):
    """A statistic's controls in words: "random groups 3.00 (p = 0.010), matched 3.10 (p = 0.20)"."""
    return by_control(row, lambda kind: f"{kind} groups {row[f'{kind}_mean']:.2f} "
                                        f"({by_draws(row[f'p_{kind}'], row[f'{kind}_draws'], kind)})", "p_{}", ", ")
