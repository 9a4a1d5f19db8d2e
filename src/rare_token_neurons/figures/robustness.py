"""Drawing the robustness grid, earlier layers and training seeds (notebook 12), and what they say in words."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from rare_token_neurons import files, paths
from rare_token_neurons.curve import stored
from rare_token_neurons.curve.heads import head_size  # the notebook needs it, legend_below and title
from rare_token_neurons.figures import axes
from rare_token_neurons.figures.axes import COLORS, legend_below, title
from rare_token_neurons.statistics import claims

MAP, MOST = sns.color_palette("vlag", as_cmap=True), 3.0  # half-widths of the interval at which the colours end
UNTOLD = "#eeeeee"  # a cell that cannot be tested
FRAMES = {claims.REPRODUCED: "-", claims.PARTLY: (0, (2, 1.5))}
SHORT = {  # the grid's statistics, each of a claim
    "head": "C2: head's\nheight Δ (e-folds)", "effective dimension": "C4: effective\ndimension",
    "co-activation": "C5: co-activation\n(r)", "Hill exponent": "C6: Hill\nexponent"}
LEAN = "rare against common"  # no claim of the paper
RATIO = "influence, rare over common\n(log ratio, less controls')"
WORDS = {"rare_of = input": "rare: the token that is read", "rare_of = target": "rare: the token to come",
         "words_only = true": "rare: words only", "words_only = false": "rare: any token",
         "words_only = false, counts = text": "rare: any token, by this text",
         "counts = text": "counted in this text", "counts = wordfreq": "counted in general English",
         "aggregate = abs_mean": "influence: |mean change|", "aggregate = mean_abs": "influence: mean |change|"}


def label(row):
    """A row of the grid in words: "rarest 5 %, mean", "rare: the token that is read"."""
    factor = row["factor"]
    joint = {"default": ": ", "layer": " ", "halves": ", "}.get(factor, ", " if factor.startswith("rarest") else " = ")
    text = f"{factor}{joint}{row['setting']}"
    return WORDS.get(text, text)


def tested(table):
    """The rows of the grid that can be tested."""
    return table[table["verdict"] != claims.UNTESTED]


def tally(table):
    """How often each verdict is given, a row a statistic; table: from `robustness`."""
    order = [claims.REPRODUCED, claims.PARTLY, claims.NOT, claims.UNTESTED]
    return pd.crosstab(table["statistic"], table["verdict"]).reindex([*SHORT, LEAN], columns=order, fill_value=0)


def kept(table):
    """Title of the grid: how many of its testable cells the rule calls reproduced; table: from `robustness`."""
    rows = tested(table[table["statistic"].isin(SHORT)])
    whole, part = (sum(rows["verdict"] == verdict) for verdict in FRAMES)
    return f"Reproduced in {whole} of {len(rows)} testable cells, partly in {part}"


def grid(ax, table):
    """The robustness grid: a row a setting, a column a claim.

    Colour: distance from the null in half-widths of the 95 % interval, red where it lies on the paper's side. A frame
    marks what the claims rule calls reproduced, a dashed one partly; grey cells cannot be tested (see `explain`).

    table : from `robustness`, without its layers.
    """
    names, columns = list(dict.fromkeys(table.apply(label, axis=1))), list(SHORT)
    scale = Normalize(-MOST, MOST)
    for row in table[table["statistic"].isin(SHORT)].to_dict("records"):
        x, y = columns.index(row["statistic"]), names.index(label(row))
        untested = row["verdict"] == claims.UNTESTED
        half, sign = (row["high"] - row["low"]) / 2, 1 if row["direction"] == "greater" else -1
        z = sign * (row["value"] - row["null"]) / half if half > 0 else 0.0
        colour = UNTOLD if untested else MAP(scale(np.clip(z, -MOST, MOST)))
        ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=0.8))
        word = f"\n{row['word']}" if row["word"] else ""
        text = f"{row['positions']:,} positions" if untested else f"{row['value']:+.2f}{word}"
        ax.text(x, y, text, ha="center", va="center", fontsize=6, linespacing=0.9,
                color=axes.DARK if untested else "white" if abs(z) > 2 else "black")
        if row["verdict"] in FRAMES:
            ax.add_patch(Rectangle((x - 0.47, y - 0.44), 0.94, 0.88, fill=False, edgecolor="black", linewidth=1.2,
                                   linestyle=FRAMES[row["verdict"]], zorder=3))
    ax.set_xticks(range(len(columns)), [SHORT[name] for name in columns])
    ax.set_yticks(range(len(names)), names)
    ax.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(names) - 0.5, -0.5))
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)


def leans(ax, table):
    """How far the group leans to rare targets in each setting, in the rows of `grid`; table: as it takes it."""
    names = list(dict.fromkeys(table.apply(label, axis=1)))
    rows = tested(table[table["statistic"] == LEAN])
    ax.axvline(0, color=axes.GREY, linewidth=1.2)
    ax.errorbar(rows["value"], [names.index(label(row)) for row in rows.to_dict("records")], fmt="o",
                color=COLORS["all"], xerr=[rows["value"] - rows["low"], rows["high"] - rows["value"]], linewidth=1)
    ax.set(ylim=(len(names) - 0.5, -0.5), yticks=[], xlabel="log ratio\n(95 % over\ndocuments)")
    ax.spines["left"].set_visible(False)
    title(ax, "No claim: leaning\nto rare tokens")


def explain(figure, panels):
    """What colours, frames and grey mean, below the grid."""
    figure.colorbar(ScalarMappable(Normalize(-MOST, MOST), MAP), ax=panels, location="bottom", shrink=0.5, aspect=40,
                    label="distance from the null, in half-widths of the 95 % interval (red: on the paper's side)")
    frames = [Patch(facecolor="none", edgecolor="black", linewidth=1.2, linestyle=line, label=verdict)
              for verdict, line in FRAMES.items()]
    few = f"{claims.UNTESTED} (fewer than {claims.LEAST_POSITIONS} positions)"
    figure.legend(handles=[*frames, Patch(facecolor=UNTOLD, label=few)], loc="outside lower center", ncols=3)


def layers(ax, table):
    """How far the strongest sampled neurons of each earlier layer lean to rare targets; at the right the last layer.

    table : from `robustness`.
    """
    deep = table[table["factor"] == "layer"].assign(layer=lambda rows: rows["setting"].astype(int))
    usual = table[(table["factor"] == "default") & (table["statistic"] == LEAN)]
    last = 1 + deep["layer"].max() if len(deep) else 0  # the table counts from 0
    ax.axhline(0, color=axes.GREY, linewidth=1.2)
    for x, rows, colour, name in ((deep["layer"], deep, COLORS["all"], "earlier layers, a sample of neurons"),
                                  ([last], usual, COLORS["rare"], "last layer, all neurons")):
        axes.whiskers(ax, np.add(x, 1), rows, fmt="o", color=colour, markersize=4, linewidth=1, label=name)
    ax.set(xlim=(0.4, last + 1.6), xlabel=f"layer, 1 to {last + 1} (bars: 95 % over documents)", ylabel=RATIO)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    title(ax, f"In {sum(deep['verdict'] == claims.REPRODUCED) or 'none'} of {len(deep)} earlier layers the strongest "
              "neurons lean to rare tokens", pad=18)


def of_choices(cells, sampled):
    """What the choices of the grid change, a line a statistic and one on the layers, in Markdown.

    cells : table `robustness` ; sampled : table `layers_sampled`.
    """
    default, deep = cells[cells["factor"] == "default"].set_index("statistic"), cells[cells["factor"] == "layer"]
    others = tested(cells[~cells["factor"].isin(["layer", "default"])])
    lines = []
    for name in (*SHORT, LEAN):
        rows, usual = others[others["statistic"] == name], default.loc[name, "verdict"]
        sign = (rows["value"] * (1 - 2 * (rows["direction"] == "less")) > 0).sum()
        words = ", ".join(f"{word} {n}" for word, n in rows["word"].value_counts().items() if word)
        lines.append(f"- **{name}**: {usual} by default. Other testable settings: {len(rows)}, with the same verdict: "
                     f"{sum(rows['verdict'] == usual)}, on the paper's side: {sign}"
                     f"{f' (called {words})' if words else ''}.")
    usual, wide = (((rows["high"] - rows["low"]) / 2).median() for rows in (default.loc[[LEAN]], deep))
    lines.append(f"- **layers**: in {sum(deep['verdict'] == claims.REPRODUCED) or 'none'} of {len(deep)} earlier layers the "
                 f"strongest quarter of {sampled.groupby('layer').size().max()} sampled neurons leans to rare targets "
                 f"more than random quarters do. These are measured in windows of {claims.WINDOW} tokens. Their "
                 f"intervals are wide: half of one is {wide:.2f} in the median, by default {usual:.2f}. A weak lean "
                 f"would be missed.")
    return "\n".join(lines)


def summary(cells):
    """Paper and here, in Markdown; cells: table `robustness`."""
    rows = tested(cells[cells["statistic"].isin(SHORT)])
    best = rows.groupby("statistic")["verdict"].agg(lambda verdicts: verdicts.isin(FRAMES).mean())
    return (f"The paper's critics ask for other thresholds, ablations, seeds and layers. Here {len(rows)} cells of the "
            f"grid can be tested. The rule calls {sum(rows['verdict'] == claims.REPRODUCED)} of them reproduced and "
            f"{sum(rows['verdict'] == claims.PARTLY)} partly. The finding that holds most often, at least partly, is "
            f"{best.idxmax()} ({100 * best.max():.0f} % of its testable settings). The one that holds least often is "
            f"{best.idxmin()} ({100 * best.min():.0f} %).")


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


def of_heights(table):
    """Title: how far the seeds' Delta spans on rare targets, and the words of the heads that have one.

    table : as `of_lead` takes it.
    """
    delta, words = spread(table).loc["delta"], table.groupby("seed")["word"].first().value_counts()
    told = ", ".join(f"{word} {n}" for word, n in words.items() if word)
    span = f"{delta['min']:+.2f} to {delta['max']:+.2f}"
    return f"Rare targets: Δ of the first 1.7 %\nis {span}" + f" ({told})" * bool(told)


def seed_curves(ax, table):
    """The main curve of each training seed with its interval.

    table : from `collected`, one group of targets.
    """
    axes.log_log(ax, "rank of the neuron", "influence (nats)")
    for (seed, rows), line in zip(table.groupby("seed"), ("-", "--", ":")):
        axes.band(ax, rows["rank"], rows["low"], rows["high"], label="95 % over documents" if line == "-" else None)
        ax.plot(rows["rank"], rows["influence"], color=COLORS["rare"], linestyle=line,
                label=f"seed {seed} ({rows['steps'].iloc[0]:,} steps, {rows['positions'].iloc[0]:,} positions)")
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
        ax.plot([], [], "o", color=COLORS[group], label=f"{group} targets",
                markerfacecolor=COLORS[group] if rows["word"].any() else "white")
    ax.axhline(0, color=COLORS["all"], linewidth=0.6)
    ax.set_xticks(range(len(known)), [f"seed {seed}" for seed in known])
    ax.set(xlim=(-0.6, len(known) - 0.4), ylabel="Δ of the first 1.7 %\n(e-folds of influence)")


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
    words = [f"{row['word']} (seed {seed})" for seed, row in table.groupby("seed").first().iterrows() if row["word"]]
    told = (f"The first 1.7 % are called: {'; '.join(words)}." if words else
            "No head has a word, for want of the documents.")
    return (f"{missing} The top 1.7 % stand {low['ratio']:.1f} to {high['ratio']:.1f} times above the median neuron. Δ "
            f"of the first 1.7 % is {low['delta']:+.2f} to {high['delta']:+.2f} e-folds, that of the fitted head "
            f"{low['fitted_delta']:+.2f} to {high['fitted_delta']:+.2f}. The slope κ of the law is {low['kappa']:.2f} "
            f"to {high['kappa']:.2f}. {told}")
