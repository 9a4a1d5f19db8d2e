"""Drawing spectra, Hill plots, groups beside their controls and whole layers (notebook 07), and words on them."""

from textwrap import fill

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from rare_token_neurons.figures import axes
from rare_token_neurons.figures.activations import matches, usable  # usable for the notebook, as spectra is
from rare_token_neurons.figures.axes import GREY, title
from rare_token_neurons.figures.words import among, between, by_control, by_draws, percent, texts, when
from rare_token_neurons.statistics import controls, spectra
from rare_token_neurons.statistics.claims import MOST_MISSING, SIGNIFICANT
from rare_token_neurons.tables.claims import hill as of_claim

MATRICES = {"in": "$W_{in}$", "gate": "$W_{in}$ gate", "up": "$W_{in}$ up", "out": "$W_{out}$"}
WORDS = {"in": "W_in", "gate": "W_in, gate", "up": "W_in, up", "out": "W_out"}  # in tables
MAIN = {"alpha_hill": "Hill exponent", "stable_rank": "stable rank"}  # smaller: heavier, fewer directions
STATISTICS = MAIN | {"alpha_hill_half": "Hill exponent, k = m/2", "alpha": "weightwatcher's alpha",
                     "entropy": "spectral entropy", "spikes": "spikes (eigenvalues)",
                     "mp_distance": "distance from noise", "spectral_norm": "largest eigenvalue"}
LOOKS = {"random": {"color": GREY, "alpha": 0.35, "label": "random groups"},
         "matched": {"color": axes.DARK, "histtype": "step", "linestyle": "--", "linewidth": 0.9,
                     "label": "matched groups (by row norm)"},
         "shuffled": {"color": GREY, "histtype": "step", "linestyle": ":", "linewidth": 1.2,
                      "label": "rare group, shuffled"},
         "rare": {"color": axes.COLORS["rare"], "histtype": "step", "linewidth": 1.2}}
CONTROLS = controls.KINDS
UNDER_TRAINED = 6  # weightwatcher's bound on alpha
DASHES = ("--", ":", "-")


# ---- by hand


def judged(sets):
    """What Hill's exponent and the stable rank say of spectra whose answer is known, a row a set.

    sets : (draws, m) eigenvalues, largest first, by name.
    """
    rows = {}
    for name, values in sets.items():
        found = spectra.hill(values, share=0.5)[0]
        low, middle, high = np.quantile(found, (0.05, 0.5, 0.95))
        rows[name] = {"Hill exponent (median)": round(middle, 1), "5 to 95 % of the draws": f"{low:.1f} to {high:.1f}",
                      "stable rank (median)": round(np.median(spectra.stable_rank(values)), 1)}
    return pd.DataFrame.from_dict(rows, orient="index")


def ranked(ax, sets):
    """The median spectrum of each set, in units of its mean, over the eigenvalue's rank; takes what `judged` takes."""
    for (name, values), line in zip(sets.items(), ("-", "--", ":")):
        relative = np.median(values / values.mean(axis=1, keepdims=True), axis=0)
        ax.plot(np.arange(1, len(relative) + 1), relative, line, color=axes.COLORS["all"], label=name)
    ax.set(xlabel="rank of the eigenvalue", ylabel="eigenvalue / mean eigenvalue", yscale="log")
    axes.plain_ticks(ax.yaxis)
    title(ax, "Noise is flat, a shared direction is one step,\na heavy tail is a slope")
    ax.legend(loc="upper right")


# ---- one spectrum


def shares(rows):
    """The largest eigenvalue's share of the sum, mean over the draws: Series by kind and matrix.

    rows : `weight_eigenvalues` of one revision, after `in_use`.
    """
    first = rows.groupby(["kind", "matrix", "draw"])["relative"].agg(lambda values: values.max() / values.sum())
    return first.groupby(["kind", "matrix"]).mean()


def one_direction(share):
    """How much of each matrix's spectrum one direction holds, a line a matrix, in Markdown. share : from `shares`"""
    told = share.unstack("kind").reindex(columns=["rare", *CONTROLS])
    told = told.loc[[matrix for matrix in MATRICES if matrix in told.index]]
    return "\n".join(f"- {MATRICES[matrix]}: one direction holds **{percent(row['rare'])}** of the rare group's "
                     f"spectrum ({among(row, percent)})." for matrix, row in told.iterrows())


def spectrum(ax, rows, edges):
    """Density of the eigenvalues in logarithm, with the law of independent weights; ticks: each of the rare group's.

    rows : `weight_eigenvalues` of one revision and matrix, after `in_use` ; edges : of the bins, in log10 of
    `relative`.
    """
    share = shares(rows).droplevel("matrix")
    title(ax, f"{MATRICES[rows['matrix'].iloc[0]]}: one direction\nholds {percent(share['rare'])} "
              f"(random {percent(share['random'])})")
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
    ax.set(xlabel="log10 eigenvalue\n(0: mean of random groups)", ylabel="density per decade")


def hill(ax, rows):
    """Hill's exponent over the tail size; a diamond at the k of the fix-finger rule, the first checkpoint dashed.

    rows : `weight_hill_curves` of one matrix, after `in_use`.
    """
    names, color = list(dict.fromkeys(rows["revision"])), axes.COLORS["rare"]
    if len(names) > 1:
        early = rows[rows["revision"] == names[0]]
        ax.plot(early["k"], early["value"], color=color, linestyle="--", label=f"rare group at {names[0]}")
    now = rows[rows["revision"] == names[-1]]
    ax.plot(now["k"], now["value"], color=axes.COLORS["rare"], label=f"rare group{' at ' if names[-1] else ''}{names[-1]}")
    axes.band(ax, now["k"], now["random_low"], now["random_high"], label=axes.LABELS["random"], alpha=0.35)
    if now["matched_low"].notna().any():
        axes.edges(ax, now["k"], now["matched_low"], now["matched_high"], color=axes.DARK, label=axes.LABELS["matched"])
    ax.plot(now["k"], now["shuffled_mean"], color=GREY, linestyle=":")
    at = now[now["k"] == now["chosen"]]
    ax.plot(at["k"], at["value"], "D", color=color, markersize=4.5, label="k by the fix-finger rule")
    ax.set(xlabel="tail size k (eigenvalues)", ylabel="Hill exponent\n(smaller: heavier)", yscale="log")
    axes.tick_at(ax, (0.5, 1, 2, 5, 10, 20, 50, 100))
    title(ax, f"Heavier tail than random\nat {percent((now['value'] < now['random_low']).mean())} of the tail sizes")


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


def listed(rows):
    """The main statistics as a reader sees them, a row each and matrix: words as names of columns, two digits.

    rows : `weight_groups` of the rare group, its rows as they are, after `usable`.
    """
    rows = rows[rows["statistic"].isin(list(MAIN))]
    shown = pd.DataFrame({"statistic": rows["statistic"].map(MAIN), "matrix": rows["matrix"].map(WORDS),
                          "rare group": texts(rows["value"], ".2f")})
    shown["95 % over documents"] = [between(row) for _, row in rows.iterrows()]
    for kind in CONTROLS:
        if rows[f"{kind}_mean"].notna().any():
            shown[f"{kind} groups"] = texts(rows[f"{kind}_mean"], ".2f")
            shown[f"p ({kind})"] = texts(rows[f"p_{kind}"], ".3f")
    return shown.set_index("statistic").sort_index(kind="stable")


def others(rows):
    """The measures for experts beside random groups, a row each, a column a matrix; takes what `listed` takes."""
    rows = rows[rows["statistic"].isin(set(STATISTICS) - set(MAIN))]
    told = rows["value"].map("{:.3g}".format) + " (" + rows["random_mean"].map("{:.3g}".format) + ")"
    shown = pd.DataFrame({"rare group (random groups)": rows["statistic"].map(STATISTICS), "told": told,
                          "matrix": rows["matrix"].map(WORDS)})
    return shown.pivot(index="rare group (random groups)", columns="matrix", values="told").rename_axis(columns=None)


def agreeing(groups):
    """In how many matrices each group lies below its controls, by some of the measures; takes what `lower` takes."""
    case = groups["group"] + groups["rows"].map({"raw": "", "standardised": ", rows standardised"})
    counts = lower(groups).groupby([case, groups["statistic"].map(STATISTICS)], sort=False).sum().unstack()
    counts = counts[list(STATISTICS.values())[:5]]
    return counts.rename_axis(index=f"of {groups['matrix'].nunique()} matrices", columns=None)


def laws(table):
    """The test of a power law as a reader sees it, a row a matrix, with the share of noise that earns the same verdict.

    table : `weight_power_laws` of one revision.
    """
    own = table[table["kind"] == "rare"].set_index("matrix")
    shown = pd.DataFrame({"eigenvalues in the tail": own["n"], "exponent of the density": own["alpha"].round(1),
                          "p of the fit": own["p_fit"].round(2), "verdict": own["verdict"]})
    for kind, name in (("random", "random groups"), ("shuffled", "shuffled weights")):
        part = table[table["kind"] == kind].set_index("matrix")
        same = part["verdict"].eq(part.index.map(own["verdict"])).groupby(level=0).mean()
        shown[f"same verdict: {name}"] = same.map(percent)
    return shown.rename(index=WORDS)


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
    rare = rows[(rows["group"] == "rare") & (rows["rows"] == "raw")]
    there = [MATRICES[matrix] for matrix in rare.loc[lower(rare), "matrix"]]
    where = "every matrix" if len(there) == len(rare) > 1 else " and ".join(there) or "no matrix"
    name = STATISTICS[rows["statistic"].iloc[0]]
    title(ax, f"Rare group: smaller {name} than\nits controls in {where}")
    ax.set_xlabel(f"{name} (smaller: {'heavier tail' if 'Hill' in name else 'fewer directions'})")
    for group in dict.fromkeys(rows["group"]):
        part = rows[rows["group"] == group]
        ax.hlines(part["y"], part["low"], part["high"], color=axes.COLORS[group], linewidth=1.2,
                  label=f"{group} group (m = {part['size'].iloc[0]}), 95 % over documents")
        ax.plot(part["value"], part["y"], "o", color=axes.COLORS[group], markersize=3.5)


def over_steps(ax, rows):
    """The rare group of each checkpoint and the last one's followed back, over the band of random groups.

    rows : one matrix and statistic of `weights_over_training`.
    """
    own, back = (rows[rows["kind"] == kind].sort_values("step") for kind in ("own", "last"))
    axes.band(ax, own["step"], own["random_low"], own["random_high"], label=axes.LABELS["random"], alpha=0.35)
    axes.over_steps(ax, own["step"], own["value"], low=own["low"], high=own["high"], color=axes.COLORS["rare"],
                    markersize=2.5, label="rare group of the checkpoint (band: 95 % over documents)")
    axes.over_steps(ax, back["step"], back["value"], color=axes.COLORS["all"], linewidth=0.9, markersize=0,
                    linestyle="--", label="last rare group, followed back")
    name = MAIN[rows["statistic"].iloc[0]]
    course = when(own["step"], own["value"] < own["random_low"])
    title(ax, fill(f"{MATRICES[rows['matrix'].iloc[0]]}: smaller {name} than random groups {course}", 44))
    ax.set(ylabel=name, xlabel="training step" if ax.get_subplotspec().is_last_row() else "")
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
        ax.plot(part["layer"] + 1, part[column], **look)
        ax.plot(part["layer"].iloc[-1] + 1, part[column].iloc[-1], "o", color=look["color"], markersize=3.5)
    ax.xaxis.get_major_locator().set_params(integer=True)
    last = inside["layer"].max() + 1  # the table counts from 0
    ax.set(xlim=(0.4, last + 0.6), xlabel=f"layer, 1 to {last} (dot: the last)", ylabel=STATISTICS[column])
    place = special(rows, column)
    extreme = int((place["below"].isin([0]) | (place["below"] == place["others"])).sum())
    chance = 2 / (place["others"].max() + 1)
    out = binomtest(extreme, len(place), min(chance, 1), "greater").pvalue < SIGNIFICANT
    title(ax, f"The last layer {'stands out' if out else 'does not stand out'}:\nextreme in {extreme} of {len(place)} "
              f"matrices ({len(place) * chance:.1f} by chance)")


def layers_over_steps(ax, rows, column):
    """A metric of the MLP's whole matrices over training, the last layer's in black.

    rows : `weight_layers`.
    """
    mlp = [matrix for matrix in dict.fromkeys(rows["matrix"]) if matrix.startswith("mlp.")]
    for (layer, matrix), part in rows[rows["matrix"].isin(mlp)].groupby(["layer", "matrix"]):
        last = layer == rows["layer"].max()
        axes.over_steps(ax, part["step"], part[column], color=axes.COLORS["all"] if last else GREY, markersize=2,
                        linestyle=_dashes(mlp)[matrix], zorder=3 if last else 2)
    ax.set(xlabel="training step (black: the last layer)", ylabel=STATISTICS[column])
    last = rows[(rows["matrix"] == mlp[-1]) & (rows["layer"] == rows["layer"].max())].sort_values("step")[column]
    course = "falls" if last.iloc[-1] < last.iloc[0] else "does not fall"
    title(ax, f"Output weights of the last layer:\n{column} {course} in training")


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


def listed_layers(fits):
    """The last layer's alpha among the other layers as a reader sees it, a row a matrix; takes what `special` takes."""
    found = special(fits)
    found["below"] = found["below"].astype(str) + " of " + found["others"].astype(str)
    columns = {"last": "alpha of the last layer", "median": "median of the others", "lowest": "lowest",
               "highest": "highest", "below": "others below it", "p": "p (place by chance)"}
    return found[list(columns)].rename(columns=columns).rename_axis("matrix").round(2)


# ---- in words


def matching(groups):
    """How well matched groups match, matrix by matrix, in Markdown. groups : `weight_groups`"""
    said = ", ".join(f"{abs(row['imbalance_norm']):.2f} SD in {MATRICES[row['matrix']]}"
                     f"{'' if matches(row) else ' (**cannot be used there**)'}"
                     for _, row in _of_rare(groups).iterrows())
    return (f"In the norm of their rows matched groups miss the rare group by {said}. The limit is "
            f"{controls.POOR_MATCH} SD. Beyond it they are left out, and the claim rests on random groups alone: it "
            "counts as partly reproduced at most.")


def failures(table):
    """How many of weightwatcher's fits failed, a line a matrix, in Markdown.

    table : `weight_groups`
    """
    fits = table[(table["group"] == "rare") & (table["rows"] == "raw") & (table["statistic"] == "alpha")]
    lines = [f"- {MATRICES[row.matrix]}: {percent(row.missing, 1)} of weightwatcher's fits failed"
             + (" (**above 20 %: cannot be tested**)" if row.missing > MOST_MISSING else "")
             + f". It calls {percent(row.under_trained)} of the random groups under-trained."
             for row in fits.itertuples()]
    log = "; ".join(sorted(set(table["log"]) - {""}))
    return "\n".join(lines + ([f"- Its words on failures: {log}."] if log else []))


def summary(rare, model):
    """What the spectra say, matrix by matrix, in Markdown.

    rare : the rare group's rows of `weight_groups` by statistic and matrix, after `usable` ; model : its name.
    """
    lines = [f"- **{MATRICES[matrix]}**{' (beside the claim)' if matrix == 'out' else ''}: Hill exponent "
             f"**{row.value:.2f}** [{row.low:.2f}, {row.high:.2f}]; {_controls(row)}, own elements shuffled "
             f"{row.shuffled_mean:.2f}. Stable rank **{rank.value:.2f}**; {_controls(rank)}. "
             f"{of_claim(rare.reset_index(), matrix).detail}"
             for (matrix, row), (_, rank) in zip(*(rare.loc[name].iterrows() for name in MAIN))]
    quantised = ("\n\nThe weights of this model were stored with 4 bits and made floating point again: the rounding "
                 "adds noise of its own.")
    return "\n".join(lines) + quantised * (model == "smollm2")


def course(training):
    """How the distance to random groups changes over training, a line a matrix, in Markdown; "" without checkpoints.

    training : `weights_over_training`, or a table without rows.
    """
    if not len(training):
        return ""
    own = training[(training["kind"] == "own") & training["statistic"].isin(list(MAIN))].sort_values("step")
    gaps = own.groupby(["matrix", "statistic"], sort=False)["difference"].agg(["first", "last"]).unstack("statistic")
    lines = [f"- {MATRICES[matrix]}: the distance to random groups goes from {row['first', 'alpha_hill']:+.2f} to "
             f"{row['last', 'alpha_hill']:+.2f} in the Hill exponent, and from {row['first', 'stable_rank']:+.1f} to "
             f"{row['last', 'stable_rank']:+.1f} in the stable rank." for matrix, row in gaps.iterrows()]
    early = own.loc[own["step"] == own["step"].min(), "p_random"]
    lines.append(f"- At the first checkpoint the smallest of the {len(early)} p values is {early.min():.2f}.")
    return "\n".join(lines)


def _controls(row):
    """A statistic's controls in words: "random groups 3.00 (p = 0.010), matched 3.10 (p = 0.20)"."""
    return by_control(row, lambda kind: f"{kind} groups {row[f'{kind}_mean']:.2f} "
                                        f"({by_draws(row[f'p_{kind}'], row[f'{kind}_draws'], kind)})", "p_{}", ", ")
