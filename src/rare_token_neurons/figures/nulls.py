"""Drawing nulls, power-law tests and the robustness grid (notebook 09), what they say in words, and the training seeds."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from rare_token_neurons import files, paths
from rare_token_neurons.figures import axes
from rare_token_neurons.figures.axes import COLORS, COLUMN, level, title  # the notebook needs them too
from rare_token_neurons.statistics import claims
from rare_token_neurons.statistics.rankings import SCORES, SIDES, overlaps, per_nat

FULL = ("lognormal", "half-normal", "exponential", "untrained model")  # nulls of the measurement at all positions
MOST = 3.0  # half-widths of the interval at which the colours end
EDGES = {"half-normal": "--", "exponential": ":", "untrained model": "-.", "common, same number": "--",
         "common, same loss": ":"}
MAP = sns.color_palette("vlag", as_cmap=True)
STARS = ((0.01, "**"), (0.05, "*"))
NAMES = {"unigram_share": "share through the unigram direction",
         "kl": "change of KL to unigram\n(nats per nat of influence)",
         "entropy": "change of entropy\n(nats per nat of influence)", "scale_share": "share through the norm's scale"}
HEADS = {"plateau": "plateau beyond the null", "outliers": "outliers, no plateau", "neither": "no plateau beyond the null"}
LEVEL = 0.05
SHORT = {  # the grid's statistics
    "plateau": "plateau share", "rare against common": "rare against\ncommon (log)",
    "effective dimension": "effective\ndimension", "co-activation": "co-activation (r)", "Hill exponent": "Hill exponent"}


def two_sided(heads):
    """(rows,) p value of a head on either side of the null: twice the smaller of p_plateau and p_outliers, at most 1."""
    return (2 * heads[["p_plateau", "p_outliers"]].min(axis=1)).clip(upper=1)


def kinds(heads):
    """(rows,) what the head is beyond each null, two-sided: "plateau" (below the law's line, and below the null's heads),
    "outliers" or "neither"."""
    side = heads[["p_plateau", "p_outliers"]].idxmin(axis=1).str.removeprefix("p_")
    return side.where((two_sided(heads) < LEVEL) & side.eq("plateau").eq(heads["departure"] < 0), "neither")


def beside_nulls(ax, bands, names, label):
    """The measured curve over the edges of the null curves' 95 % bands, in grey.

    bands : from `null_bands` ; names : the nulls to show, the first one filled.
    """
    axes.log_log(ax, "rank of the neuron", "influence (nats)")
    for place, name in enumerate(names):
        rows = bands[bands["null"] == name]
        if place == 0:
            axes.band(ax, rows["rank"], rows["low"], rows["high"], label=f"{name}, 95 %", alpha=0.35)
            continue
        for end in ("low", "high"):
            ax.plot(rows["rank"], rows[end], color=axes.GREY, linewidth=0.8, linestyle=EDGES[name],
                    label=f"{name}, 95 %" if end == "low" else None)
    rows = bands[bands["null"] == names[0]]
    ax.plot(rows["rank"], rows["influence"], color=COLORS["rare"], label=label, zorder=4)
    ax.set_xlim(1, rows["rank"].max())
    highest = bands.loc[bands["null"].isin(names), ["influence", "high"]].to_numpy().max()
    ax.set_ylim(rows["influence"].iloc[-3] / 3, highest * 2)


def departures(ax, heads):
    """The head's signed departure beside that of each null (95 %, grey), a row a null with its two-sided p value."""
    for place, row in enumerate(heads.to_dict("records")):
        ax.plot([row["null_low"], row["null_high"]], [place] * 2, color=axes.GREY, linewidth=5, alpha=0.45,
                solid_capstyle="butt", label="null curves, 95 %" if place == 0 else None)
        ax.plot(row["null_mean"], place, "|", color=axes.GREY, markersize=7)
        ax.plot(row["departure"], place, "o", color=COLORS["rare"], markersize=4, label=None if place else "measured")
    ax.axvline(0, color=COLORS["all"], linewidth=0.6)
    names = [f"{name}\np = {p:.3f}" for name, p in zip(heads["null"], two_sided(heads))]
    ax.set_yticks(range(len(heads)), names, fontsize=6)
    ax.set_ylim(len(heads) - 0.4, -0.6)
    ax.set_xlabel("head's departure $D$\n(e-folds of rank)")


def law(ax, values, tests, color):
    """Share of the neurons above each influence, with the fitted power laws of the middle and of the upper tail in grey.

    values : (neurons,) ; tests : rows of `power_laws` of one group.
    """
    falling = np.sort(np.asarray(values, dtype=float))[::-1]
    falling = falling[falling > 0]
    n = len(falling)
    axes.log_log(ax, "influence (nats)", "share of the neurons above")
    ax.plot(falling, np.arange(1, n + 1) / n, ".", color=color, markersize=2.5, label=f"{n:,} neurons", zorder=2)
    for row, line in zip(tests.to_dict("records"), ("-", "--")):
        if not np.isfinite(row["alpha"]):
            continue
        high = row["high"] if np.isfinite(row["high"]) else falling[0]
        x, a = np.geomspace(row["low"], high, 50), row["alpha"] - 1
        survival, end = (x / row["low"]) ** -a, (row["high"] / row["low"]) ** -a if np.isfinite(row["high"]) else 0.0
        above = np.sum(falling > row["high"]) if np.isfinite(row["high"]) else 0
        ax.plot(x, (above + row["n"] * (survival - end) / (1 - end)) / n, color=COLORS["all"], linestyle=line, zorder=3,
                label=f"{row['part']}: α = {row['alpha']:.1f}, n = {row['n']:,}\n{row['verdict']}")
    ax.set_ylim(0.5 / n, 1.5)
    ax.set_xlim(falling[int(0.99 * n)] / 2, falling[0] * 1.5)
    ax.legend(loc="lower left")


def label(row):
    """A row of the grid in words: "rarest 5 %, mean", "rare_of = input"."""
    factor = row["factor"]
    joint = {"default": ": ", "layer": " ", "halves": ", "}.get(factor, ", " if factor.startswith("rarest") else " = ")
    return f"{factor}{joint}{row['setting']}"


def stars(q):
    """Stars of an adjusted p value."""
    return next((mark for level, mark in STARS if q < level), "")


def grid(ax, table, rows=0):
    """The robustness grid: a row a setting, a column a statistic of the table.

    Colour: distance from the null in half-widths of the 95 % interval, red where it lies on the paper's side. A frame marks
    what the claims rule calls reproduced, a dashed one partly; grey cells cannot be tested.

    table : from `robustness`, or some of its rows ; rows : height of the axes in rows, at least.
    """
    names = list(dict.fromkeys(table.apply(label, axis=1)))
    columns = [name for name in SHORT if name in set(table["statistic"])]
    scale = Normalize(-MOST, MOST)
    for row in table.to_dict("records"):
        x, y = columns.index(row["statistic"]), names.index(label(row))
        untested = row["verdict"] == claims.UNTESTED
        half, sign = (row["high"] - row["low"]) / 2, 1 if row["direction"] == "greater" else -1
        z = sign * (row["value"] - row["null"]) / half if half > 0 else 0.0
        colour = "#eeeeee" if untested else MAP(scale(np.clip(z, -MOST, MOST)))
        ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=0.8))
        text = f"{row['positions']:,} positions" if untested else f"{row['value']:+.3f}{stars(row['q'])}"
        ax.text(x, y, text, ha="center", va="center", fontsize=5.5 if untested else 6.5,
                color=axes.GREY if untested else "white" if abs(z) > 2 else "black")
        if row["verdict"] in (claims.REPRODUCED, claims.PARTLY):
            ax.add_patch(Rectangle((x - 0.47, y - 0.44), 0.94, 0.88, fill=False, edgecolor="black", linewidth=1.2,
                                   linestyle="-" if row["verdict"] == claims.REPRODUCED else (0, (2, 1.5)), zorder=3))
    ax.set_xticks(range(len(columns)), [SHORT[name] for name in columns])
    ax.set_yticks(range(len(names)), names)
    ax.set(xlim=(-0.5, len(columns) - 0.5), ylim=(max(len(names), rows) - 0.5, -0.5))
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def scores(ax, table, score):
    """Influence against one token-frequency score, a dot a neuron, boost and suppress in colour.

    The changes of KL and entropy grow with any effect; they are drawn per nat of influence.

    table : from `frequency_neurons`.
    """
    table = table.assign(**{score: per_nat(table, score)})
    others = table.loc[~table["rare"], score].dropna()
    ax.axhspan(*np.quantile(others, [0.025, 0.975]), color=axes.GREY, alpha=0.3, linewidth=0,
               label="all other neurons, 95 %")
    for side in SIDES:
        part = table[table["side"] == side]
        for rare, marker, size in ((False, ".", 3), (True, "o", 14)):
            rows = part[part["rare"] == rare]
            ax.scatter(rows["influence"], rows[score], s=size, marker=marker, color=COLORS[side], linewidths=0,
                       alpha=0.9 if rare else 0.4, zorder=3 if rare else 2,
                       label=f"{side}, rare group (n = {len(rows)})" if rare else None)
    ax.set_xscale("log")
    floor = table["influence"][table["influence"] > 0].quantile(0.02)
    ax.set_xlim(floor, table["influence"].max() * 1.5)
    if score.endswith("share"):
        ax.set_ylim(-1, 1.02)
    else:
        ax.set_yscale("symlog", linthresh=float(others.abs().quantile(0.9)) or 1.0)
        ax.set_ylim(1.6 * min(0, table[score].min()), 1.6 * max(0, table[score].max()))
    ax.set(xlabel="influence on rare tokens (nats)", ylabel=NAMES[score])


def seed_curves(ax, table):
    """The main curve of each training seed with its interval.

    table : from `collected`, one group of targets.
    """
    axes.log_log(ax, "rank of the neuron", "influence (nats)")
    for (seed, rows), line in zip(table.groupby("seed"), ("-", "--", ":")):
        axes.band(ax, rows["rank"], rows["low"], rows["high"], label="95 % over documents" if line == "-" else None)
        ax.plot(rows["rank"], rows["influence"], color=COLORS["rare"], linestyle=line,
                label=f"seed {seed} ({rows['steps'].iloc[0]:,} steps, n = {rows['positions'].iloc[0]:,})")
    ax.set_xlim(1, table["rank"].max())


# ---- training seeds

SEEDS, STEPS = (0, 1, 2), 1_536


def commands(seed):
    """What trains one seed's suite, and what makes its table, in Markdown."""
    folder = f"data/cache/mini-pythia-seed{seed}-steps{STEPS}"
    return (f"`make suite SEED={seed} STEPS={STEPS}` trains it, "
            f"`python -m rare_token_neurons.embedded.mini_pythia.seeds {folder}` makes its table")


def collected(folder=paths.MINI_PYTHIA_SEEDS):
    """The tables of all seeds that are there, one below the other; without rows where there is none."""
    found = [files.read_table(path) for path in sorted(folder.glob("seed*.parquet"))]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["seed"])


def spread(rows):
    """Each quantity over the seeds of one group of targets: mean, standard deviation, lowest, highest."""
    by_seed = rows.groupby("seed")[["plateau_end", "p_plateau", "kappa", "departure", "ratio"]].first()
    return by_seed.agg(["mean", "std", "min", "max"]).T


def of_seeds(table):
    """What the training seeds span, and which are missing, in words.

    table : from `collected`, one group of targets.
    """
    missing = [seed for seed in SEEDS if seed not in set(table["seed"])]
    said = "".join(f"Seed {seed} is not measured yet; {commands(seed)}. " for seed in missing) or "All three seeds are here."
    if not len(table):
        return said
    low, high = (spread(table)[end] for end in ("min", "max"))
    return (f"{said} Lowest and highest: top 1.7 % over the median neuron {low['ratio']:.1f} and {high['ratio']:.1f}; last "
            f"rank of the plateau {low['plateau_end']:.0f} and {high['plateau_end']:.0f} (0: none), with p from "
            f"{low['p_plateau']:.2f} to {high['p_plateau']:.2f} for a head so far below the law's line by chance; kappa of "
            f"the stretch that is the law {low['kappa']:.2f} and {high['kappa']:.2f} (where the breaks lie elsewhere, it is "
            "another stretch).")


# ---- in words


def of_heads(heads):
    """Beyond which nulls the head is what, in words.

    heads : table `null_heads`.
    """
    rest = heads[~heads["null"].isin(FULL)]
    below, above = (heads.loc[kinds(heads) == kind, "null"] for kind in ("plateau", "outliers"))
    departure = heads["departure"].iloc[0]
    return (
        f"The measured head lies **{'below' if departure < 0 else 'above'}** the power law's line by {abs(departure):.2f} "
        f"e-folds of rank. It is a plateau beyond {len(below)} of the {len(heads)} nulls ({', '.join(below) or 'none'}) and "
        f"has outliers beyond {len(above)} ({', '.join(above) or 'none'}). Loss-matched common positions: "
        f"{rest['note'].iloc[-1]}; against these {level(rest['p_plateau'].iloc[-1])} for a plateau, "
        f"{level(rest['p_outliers'].iloc[-1])} for outliers. Other positions of the same text give "
        f"{'such a head too' if (kinds(rest) == 'neither').all() else 'another head'}.")


def of_choices(cells, sampled):
    """What the choices of the grid change, a line a statistic and one on the layers, in Markdown.

    cells : table `robustness` ; sampled : table `layers_sampled`.
    """
    default, deep = cells[cells["factor"] == "default"].set_index("statistic"), cells[cells["factor"] == "layer"]
    others = cells[(cells["verdict"] != claims.UNTESTED) & ~cells["factor"].isin(["layer", "default"])]
    lines = []
    for name in SHORT:
        rows, usual = others[others["statistic"] == name], default.loc[name, "verdict"]
        sign = (rows["value"] * (1 - 2 * (rows["direction"] == "less")) > 0).sum()
        lines.append(f"- **{name}**: {usual} by default; the same verdict in {sum(rows['verdict'] == usual)} of {len(rows)} "
                     f"other testable settings, on the paper's side in {sign}.")
    usual, wide = (((rows["high"] - rows["low"]) / 2).median() for rows in (default.loc[["rare against common"]], deep))
    lines.append(f"- **layers**: the strongest quarter of {sampled.groupby('layer').size().max()} sampled neurons leans to "
                 f"rare targets beyond random quarters in {sum(deep['verdict'] == claims.REPRODUCED)} of {len(deep)} "
                 f"earlier layers, in windows of {claims.WINDOW} tokens; there the interval's half-width is {wide:.2f} in "
                 f"the median, {usual:.2f} by default: a weak lean would be missed.")
    return "\n".join(lines)


def summary(heads, laws, promises, cells, whole):
    """Paper and here, in Markdown.

    heads, laws, promises, cells : tables `null_heads`, `power_laws`, `promises`, `robustness` ; whole : the rows of
    `overlaps` on boost and suppress neurons together, by score.
    """
    middle, top, kl, entropy = laws.iloc[0], *(whole.loc[score] for score in ("unigram_share", "kl", "entropy"))
    known = promises[promises["promise"].str.startswith("the middle of a planted power law")].iloc[0]
    verdicts = cells.loc[cells["verdict"] != claims.UNTESTED, "verdict"]
    return (
        "The paper shows a plateau, a power law and a decay, with boundaries partly set by hand, and no null. Here the "
        f"head, against lognormal numbers, is **{HEADS[kinds(heads).iloc[0]]}** "
        f"(departure {heads['departure'].iloc[0]:+.2f}, two-sided {level(two_sided(heads).iloc[0])}); the middle as a power "
        f"law is **{middle['verdict']}** (α = {middle['alpha']:.2f}, goodness of fit {level(middle['p_fit'])}; a true law "
        f"with fitted ends is rejected in {known['runs'] - known['kept']} of {known['runs']} planted samples); "
        f"of {len(verdicts)} testable cells of the robustness grid {sum(verdicts == claims.REPRODUCED)} reproduce the "
        f"paper's side by the rule; and {top['relative']} of the {top['k']} most influential neurons are among the "
        f"{top['k']} with the largest share through the unigram direction (chance {top['chance']:.1f}; median share "
        f"{top['group']:.2f}, others {top['others']:.2f}), {kl['relative']} among those with the largest change of KL per "
        f"nat of influence and {entropy['relative']} for the entropy (chance the same; in nats, by size alone, "
        f"{kl['shared']} and {entropy['shared']}).")
