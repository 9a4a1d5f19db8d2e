"""Drawing nulls, power-law tests, the robustness grid and training seeds (notebook 09), and what they say in words."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from scipy import stats

from rare_token_neurons import files, paths
from rare_token_neurons.curve import heads as plateaus, stored
from rare_token_neurons.figures import axes
from rare_token_neurons.figures.axes import COLORS, title  # the notebook needs them too
from rare_token_neurons.figures.words import between, level, named
from rare_token_neurons.statistics import claims
from rare_token_neurons.statistics.rankings import SCORES, SIDES, overlaps, per_nat

FULL = ("lognormal", "half-normal", "exponential", "law", "untrained model")  # at all positions
MOST = 3.0  # half-widths of the interval at which the colours end
EDGES = {"lognormal": "--", "half-normal": ":", "exponential": "-.", "untrained model": (0, (4, 1, 1, 1, 1, 1)),
         "common, same number": "--", "common, same loss": ":"}  # the law, or the first, is filled
MAP = sns.color_palette("vlag", as_cmap=True)
STARS = ((0.01, "**"), (0.05, "*"))
NAMES = {"unigram_share": "share through the unigram direction",
         "kl": "change of KL to unigram\n(nats per nat of influence)",
         "entropy": "change of entropy\n(nats per nat of influence)", "scale_share": "share through the norm's scale"}
LEVEL = 0.05
SHORT = {  # the grid's statistics
    "head": "head's height Δ\n(e-folds)", "rare against common": "rare against\ncommon (log)",
    "effective dimension": "effective\ndimension", "co-activation": "co-activation (r)",
    "Hill exponent": "Hill exponent"}


def said(name):
    """A null in words."""
    return "the law itself" if name == "law" else name


def beyond(heads):
    """(rows,) bool: whether the measured head stands higher than the null's, p < 0.05."""
    return heads["p"] < LEVEL


def beside_nulls(ax, bands, heads):
    """The measured curve over the null curves' 95 %, in grey: the law, or the first, filled, of the others the edges.

    bands : from `null_bands` ; heads : rows of `null_heads`, of the nulls to show.
    """
    axes.log_log(ax, "rank of the neuron", "influence (nats)")
    names = heads["null"].tolist()
    filled = "law" if "law" in names else names[0]
    for name in (filled, *(one for one in names if one != filled)):
        rows = bands[bands["null"] == name]
        if name == filled:
            axes.band(ax, rows["rank"], rows["low"], rows["high"], label=f"{said(name)}, 95 %", alpha=0.4)
            ax.plot(rows["rank"], rows["influence"], color=COLORS["rare"], zorder=4,
                    label=f"rare (n = {heads['positions'].iloc[0]:,})")
            continue
        axes.edges(ax, rows["rank"], rows["low"], rows["high"], linestyle=EDGES[name], label=f"{name}, 95 %")
    shown = bands[bands["null"].isin(names)]
    ax.set_xlim(1, shown["rank"].max())
    lowest = shown.loc[shown["null"] == filled, "influence"].iloc[-3]
    ax.set_ylim(lowest / 3, shown[["influence", "high"]].to_numpy().max() * 2)


def count(heads):
    """Title: by how many of some nulls the head stands higher than chance."""
    return f"Higher than chance\nby {beyond(heads).sum()} of {len(heads)} nulls"


def height(heads):
    """Title: the measured height."""
    return f"The head stands {heads['delta'].iloc[0]:+.2f}\ne-folds above its law"


def heights(ax, heads):
    """The measured Delta beside that of each null (95 %, grey), a row a null with its p value."""
    for place, row in enumerate(heads.to_dict("records")):
        ax.plot([row["null_low"], row["null_high"]], [place] * 2, color=axes.GREY, linewidth=5, alpha=0.45,
                solid_capstyle="butt", label="null curves, 95 %" if place == 0 else None)
        ax.plot(row["null_mean"], place, "|", color=axes.GREY, markersize=7)
        ax.plot(row["delta"], place, "o", color=COLORS["rare"], markersize=4, label=None if place else "measured")
    ax.axvline(0, color=COLORS["all"], linewidth=0.6)
    names = [f"{said(row['null'])}\n{level(row['p'], row['p_floor'], 'curves')}" for _, row in heads.iterrows()]
    ax.set_yticks(range(len(heads)), names, fontsize=6)
    ax.set_ylim(len(heads) - 0.4, -0.6)
    ax.set_xlabel("head's height Δ above its law\n(e-folds of influence)")


def law(ax, values, tests, color):
    """Share of the neurons above each influence, with the power laws of the middle and of the upper tail in grey.

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
        high = row["high"] if np.isfinite(row["high"]) else np.inf
        x, a = np.geomspace(row["low"], falling[0] if np.isinf(high) else high, 50), row["alpha"] - 1
        survival, end, above = (x / row["low"]) ** -a, (high / row["low"]) ** -a, np.sum(falling > high)
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


def tested(table):
    """The rows of the grid that can be tested."""
    return table[table["verdict"] != claims.UNTESTED]


def kept(table):
    """Title of the grid: in how many of its testable cells the rule says reproduced; table: from `robustness`."""
    rows = tested(table)
    often = rows[rows["verdict"] == claims.REPRODUCED].groupby("statistic").size().reindex(list(SHORT), fill_value=0)
    best = f"most often: {often.idxmax()}, {often.max()} of {sum(rows['statistic'] == often.idxmax())}"
    best = best if often.max() else "none in any setting"
    return f"Reproduced in {often.sum()} of {len(rows)} testable cells ({best})"


def stars(q):
    """Stars of an adjusted p value."""
    return next((mark for level, mark in STARS if q < level), "")


def grid(ax, table, rows=0):
    """The robustness grid: a row a setting, a column a statistic of the table.

    Colour: distance from the null in half-widths of the 95 % interval, red where it lies on the paper's side. A frame
    marks what the claims rule calls reproduced, a dashed one partly; grey cells cannot be tested.

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
        word = f"\n{row['word']}" if row["word"] else ""
        text = f"{row['positions']:,} positions" if untested else f"{row['value']:+.3f}{stars(row['q'])}{word}"
        ax.text(x, y, text, ha="center", va="center", fontsize=5.5 if untested or word else 6.5, linespacing=0.9,
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


def seed_heights(ax, table):
    """Delta of the fixed head on rare and on common targets, a place a training seed; open where the head has no word.

    table : from `collected`.
    """
    each = table.groupby(["seed", "group"]).first().reset_index()
    known = sorted(each["seed"].unique())
    for (group, rows), shift in zip(each.groupby("group"), (0.12, -0.12)):
        for row in rows.to_dict("records"):
            place = known.index(row["seed"]) + shift
            ax.plot([place, place], [row["delta_low"], row["delta_high"]], color=COLORS[group], linewidth=1)
            ax.plot(place, row["delta"], "o", markersize=4, color=COLORS[group],
                    markerfacecolor=COLORS[group] if row["word"] else "white")
        ax.plot([], [], "o", color=COLORS[group], label=f"{group} targets")
    ax.axhline(0, color=COLORS["all"], linewidth=0.6)
    ax.set_xticks(range(len(known)), [f"seed {seed}" for seed in known])
    ax.set(xlim=(-0.6, len(known) - 0.4), ylabel="Δ of the first 1.7 %\n(e-folds of influence)")


# ---- calibration

COUNTED = ("calibration", "calibration_contrasts")  # tables in data/results


def calibrated():
    """The full counts of heads and of contrasts on planted samples; None in place of one that is not there."""
    found = (paths.RESULTS / f"{name}.parquet" for name in COUNTED)
    return [files.read_table(path) if path.exists() else None for path in found]


def limit(runs):
    """The share of samples that a test of 5 % rejects wrongly in 97.5 % of as many runs, at most."""
    return stats.binom.ppf(0.975, runs, plateaus.LEVEL) / runs


def counts(told):
    """The heads as they are shown, per cent of the samples: a row a sample, columns (head, what).

    told : from `calibrated`.
    """
    shown = told.rename(columns={"covered": "Δ in its interval"}).set_index(["kind", "sample", "runs", "head"])
    columns = [(head, what) for head in plateaus.BREAKS for what in ("raised", "plateau", "Δ in its interval", "late")]
    every = told[["kind", "sample", "runs"]].drop_duplicates()
    made = shown.unstack("head").swaplevel(axis=1)[columns].mul(100).reindex(every)
    return made.map(lambda share: f"{share:.1f}" if np.isfinite(share) else "")


def pairs(apart):
    """The contrasts as they are shown, per cent of the pairs told apart: a row a pair; apart: from `calibrated`."""
    shown = apart.pivot(index="sample", columns="coupled", values="apart").mul(100).round(1)
    return shown.reindex(apart["sample"].unique())


def of_calibration(told, apart):
    """What the calibration says, in Markdown; by which command it is made where it is not here.

    told, apart : from `calibrated`.
    """
    if told is None or apart is None:
        return ("The full counts are not here yet. `python -m rare_token_neurons calibrate` makes them, in an hour and a half of "
                "two cores: `data/results/calibration.parquet` and `calibration_contrasts.parquet`.")
    lines = []
    for head, rows in told.groupby("head", sort=False):
        size, power = (rows[rows["kind"] == kind].set_index("sample") for kind in ("size", "power"))
        rounded, worst = rows.set_index("sample").loc["rounded", "plateau"], size.loc[size["raised"].idxmax()]
        lines.append(
            f"- **The {head} head{', which decides' if head == plateaus.DECIDES else ''}**: where nothing is raised it "
            f"is called raised in at most {worst['raised']:.1%} of {worst['runs']:,} samples "
            f"({worst.name}; a test of 5% gives up to {limit(worst['runs']):.1%} in so many). Planted shelves are called a plateau in "
            f"{power['plateau'].mean():.0%}, from {power['plateau'].min():.0%} ({power['plateau'].idxmin()}) to "
            f"{power['plateau'].max():.0%}; a rounded head in {rounded:.1%}. The decay is taken for the law in at most "
            f"{rows['late'].max():.1%}. The 95 % interval of Δ holds the true one in {rows['covered'].min():.0%} to "
            f"{rows['covered'].max():.0%}.")
    laws, shelves = (apart[apart["sample"].str.contains("shelf") == side] for side in (False, True))
    worst = laws.loc[laws["apart"].idxmax()]
    lines.append(f"- **Contrasts**: two laws without a raised head are told apart in at most {worst['apart']:.1%} of "
                 f"{worst['runs']:,} pairs ({worst['sample']}); a shelf and a law in {shelves['apart'].min():.0%} to "
                 f"{shelves['apart'].max():.0%}.")
    return "\n".join(lines)


# ---- training seeds

SEEDS, STEPS = (0, 1, 2), 1_536


def commands(seed):
    """What trains one seed's suite, and what makes its table, in Markdown."""
    folder = f"data/cache/mini-pythia-seed{seed}-steps{STEPS}"
    return (f"`make suite SEED={seed} STEPS={STEPS}` trains it, "
            f"`python -m rare_token_neurons.embedded.mini_pythia.seeds {folder}` makes its table")


def collected():
    """The tables of all seeds that are there, one below the other; without rows where there is none."""
    found = [stored.completed(files.read_table(path)) for path in sorted(paths.MINI_PYTHIA_SEEDS.glob("seed*.parquet"))]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["seed"])


def spread(rows):
    """Each quantity over the seeds of one group of targets: mean, standard deviation, lowest, highest."""
    by_seed = rows.groupby("seed")[["delta", "fitted_delta", "kappa", "ratio"]].first()
    return by_seed.agg(["mean", "std", "min", "max"]).T


def of_lead(table):
    """Title: how far the seeds' leads over the median neuron span; table: from `collected`, one group of targets."""
    ratio = spread(table).loc["ratio"]
    return (f"mini-pythia, {table['seed'].nunique()} training seeds:\n"
            f"top 1.7 % over median {ratio['min']:.1f} to {ratio['max']:.1f}")


def of_words(table):
    """Title: how far the seeds' Delta spans, and the words of the heads; table: as `of_lead` takes it."""
    delta, words = spread(table).loc["delta"], table.groupby("seed")["word"].first().value_counts()
    told = ", ".join(f"{word} {n}" for word, n in words.items() if word) or "words need the documents"
    return f"Rare: Δ from {delta['min']:+.2f} to {delta['max']:+.2f}\n({told})"


def of_seeds(table):
    """What the training seeds span, and which are missing, in words.

    table : from `collected`, one group of targets.
    """
    there = set(table["seed"])
    missing = "".join(f"Seed {seed} is not measured yet; {commands(seed)}. " for seed in SEEDS if seed not in there)
    missing = missing or "All three seeds are here."
    if not len(table):
        return missing
    low, high = (spread(table)[end] for end in ("min", "max"))
    words = [f"{row['word'] or 'no word, for want of the documents'} (seed {seed})"
             for seed, row in table.groupby("seed").first().iterrows()]
    return (f"{missing} Lowest and highest: top 1.7 % over the median neuron {low['ratio']:.1f} and "
            f"{high['ratio']:.1f}; Δ of the first 1.7 % {low['delta']:+.2f} and {high['delta']:+.2f} e-folds, of the "
            f"fitted head {low['fitted_delta']:+.2f} and {high['fitted_delta']:+.2f}; kappa of the law "
            f"{low['kappa']:.2f} and {high['kappa']:.2f}. The first 1.7 % are called: {'; '.join(words)}.")


# ---- in words


def of_heads(heads):
    """Beyond which nulls the head stands, in words.

    heads : table `null_heads`.
    """
    if not len(heads):
        return "The head cannot be tested: too few neurons or documents."
    rest, higher = heads[~heads["null"].isin(FULL)], beyond(heads)
    within = heads.loc[~higher, "null"].map(said)
    told = (f"The measured head stands {heads['delta'].iloc[0]:+.2f} e-folds above its law (Δ, all positions). That is "
            f"higher than chance, p < {LEVEL:g}, by **{higher.sum()} of the {len(heads)} nulls**"
            + (f"; not by: {', '.join(within)}." if len(within) else "."))
    if not len(rest):
        return told
    alike = rest.loc[~beyond(rest), "null"]
    chance = level(rest["p"].iloc[-1], rest["p_floor"].iloc[-1])
    return (f"{told} On the part of the text that is measured position by position Δ is {rest['delta'].iloc[0]:+.2f}. "
            f"Loss-matched common positions: {rest['note'].iloc[-1]}; as high a head there: {chance}. "
            + (f"As high a head comes from positions that are not rare: {', '.join(alike)}." if len(alike) else
               "Positions that are not rare have no head as high."))


def of_promises(promises):
    """How many promises hold, and which do not, in Markdown; promises: the table."""
    asked = promises[promises["wanted"] > 0]
    broken = "".join(f" Not kept: {row.promise}, {row.kept} of {row.runs}, wanted {row.wanted} in 100."
                     for row in asked[~asked["holds"]].itertuples())
    return (f"**{asked['holds'].sum()} of {len(asked)}** promises hold, on {asked['runs'].iloc[0]} planted samples "
            f"each; the test that errs most often answers rightly in {asked['kept'].min()} of them.{broken}")


def of_choices(cells, sampled):
    """What the choices of the grid change, a line a statistic and one on the layers, in Markdown.

    cells : table `robustness` ; sampled : table `layers_sampled`.
    """
    default, deep = cells[cells["factor"] == "default"].set_index("statistic"), cells[cells["factor"] == "layer"]
    others = tested(cells[~cells["factor"].isin(["layer", "default"])])
    lines = []
    for name in SHORT:
        rows, usual = others[others["statistic"] == name], default.loc[name, "verdict"]
        sign = (rows["value"] * (1 - 2 * (rows["direction"] == "less")) > 0).sum()
        words = ", ".join(f"{word} {n}" for word, n in rows["word"].value_counts().items() if word)
        lines.append(f"- **{name}**: {usual} by default; the same verdict in {sum(rows['verdict'] == usual)} of "
                     f"{len(rows)} other testable settings, on the paper's side in "
                     f"{sign}{f'; called {words}' if words else ''}.")
    usual, wide = (((rows["high"] - rows["low"]) / 2).median() for rows in (default.loc[["rare against common"]], deep))
    lines.append(f"- **layers**: the strongest quarter of {sampled.groupby('layer').size().max()} sampled neurons "
                 f"leans to rare targets beyond random quarters in {sum(deep['verdict'] == claims.REPRODUCED)} of "
                 f"{len(deep)} earlier layers, in windows of {claims.WINDOW} tokens; there the interval's half-width "
                 f"is {wide:.2f} in the median, {usual:.2f} by default: a weak lean would be missed.")
    return "\n".join(lines)


def summary(head, laws, promises, cells, whole):
    """Paper and here, in Markdown.

    head : the row of table `prominence` on the head, rare targets ; laws, promises, cells : tables `power_laws`,
    `promises`, `robustness` ; whole : the rows of `overlaps` on boost and suppress neurons together, by score.
    """
    middle, top, kl, entropy = laws.iloc[0], *(whole.loc[score] for score in ("unigram_share", "kl", "entropy"))
    known = promises[promises["promise"].str.startswith("the middle of a planted power law")].iloc[0]
    verdicts = tested(cells)["verdict"]
    worst = head[["p_law", "p_lognormal", "p_half_normal"]].astype(float).max()
    return (
        "The paper shows a plateau above the power law, a power law and a decay, with boundaries partly set by hand, "
        f"and no null. Here the head is called **{named(head)}** (Δ = {head['value']:+.2f}, 95 %: "
        f"{between(head, form='+.2f')}; as high by the null for which it is easiest: {level(worst, head['p_floor'])}); "
        f"the middle's test as a power law says **{middle['verdict']}** (α = {middle['alpha']:.2f}, goodness of fit "
        f"{level(middle['p_fit'])}; a true law with fitted ends is rejected in {known['runs'] - known['kept']} of "
        f"{known['runs']} planted samples); of {len(verdicts)} testable cells of the robustness grid "
        f"{sum(verdicts == claims.REPRODUCED)} reproduce the paper's side by the rule; and {top['relative']} of the "
        f"{top['k']} most influential neurons are among the {top['k']} with the largest share through the unigram "
        f"direction (chance {top['chance']:.1f}; median share {top['group']:.2f}, others {top['others']:.2f}), "
        f"{kl['relative']} among those with the largest change of KL per nat of influence and {entropy['relative']} "
        f"for the entropy (chance the same; in nats, by size alone, {kl['shared']} and {entropy['shared']}).")
