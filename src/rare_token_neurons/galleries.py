"""Drawing the tables of `portraits`: histograms of activations, effects by target, frequency of the tokens raised."""

import numpy as np

from rare_token_neurons import cards, plots

COLORS = {"helps": plots.COLORS["boost"], "hurts": plots.COLORS["suppress"], "neither": plots.COLORS["all"]}
LABELS = {"helps": "helps rare targets", "hurts": "hurts rare targets", "neither": "neither on average"}


def activation(ax, rows, kurtosis):
    """Histogram of one neuron's activity, at all positions and at rare targets, over the band of random neurons.

    rows : `portraits.histograms` of one neuron ; kurtosis : in excess of a normal one.
    """
    edges = np.append(rows["low"], rows["high"].iloc[-1])
    ax.stairs(rows["random_high"], edges, baseline=np.maximum(rows["random_low"], 1e-9), fill=True, color=plots.GREY,
              alpha=0.35, linewidth=0, label="random neurons, 5-95 %")
    ax.stairs(rows["random"], edges, color=plots.GREY, linewidth=0.8, label="random neurons, median", baseline=None)
    ax.stairs(rows["rare"], edges, color=plots.COLORS["rare"], linewidth=0.9, label="rare targets", baseline=None)
    ax.stairs(rows["all"], edges, color=plots.COLORS["all"], linewidth=1, label="all positions", baseline=None)
    ax.set(yscale="log", ylim=(2e-5, 1.2), xlim=(edges[0], edges[-1]), xticks=[-5, 0, 5, 10, 15], yticks=[1e-4, 1e-2, 1])
    said = f"{kurtosis:,.0f}" if abs(kurtosis) > 99 else f"{round(kurtosis, 1) + 0.0:.1f}"
    ax.text(0.97, 0.95, f"kurtosis {said}", transform=ax.transAxes, ha="right", va="top", fontsize=6.5)


def by_verdict(table):
    """What the neurons do for rare targets, and the rows of those that do it."""
    done = np.array([cards.verdict(*pair) for pair in zip(table["change_rare"], table["change_rare_error"])])
    return [(verb, table[done == verb]) for verb in COLORS if (done == verb).any()]


def beside(ax, x, y, names):
    """Name points in a column at the right of the axes, in their order of height, each with a thin line to its point."""
    line = {"arrowstyle": "-", "color": "#606060", "linewidth": 0.4, "shrinkB": 2, "relpos": (0, 0.5)}
    for place, at in enumerate(np.argsort(-y)):
        ax.annotate(names[at], (x[at], y[at]), xytext=(1.06, 0.97 - 0.065 * place), textcoords="axes fraction", fontsize=6.5,
                    va="center", annotation_clip=False, arrowprops=line)


def effects(ax, table):
    """A dot a neuron: its effect on rare against that on common targets, the top ones named.

    table : `portraits.portraits`
    """
    chosen, others = table[table["top"]].sort_values("rank"), table[~table["top"]]
    plots.log_log(ax, "mean |loss change| on common targets (nats)", "mean |loss change| on rare targets (nats)")
    ax.plot(others["common"], others["rare"], ".", color=plots.GREY, alpha=0.5, markersize=2.5,
            label=f"other neurons (n = {len(others):,})")
    ends, share = np.array([table["common"].min(), table["common"].max()]), others["share"].median()
    ax.plot(ends, ends, color=plots.GREY, linewidth=0.8, linestyle=":", label="as much on rare as on common")
    ax.plot(ends, ends * share / (1 - share), color=plots.GREY, linewidth=0.8,
            label=f"the others' median: {100 * share:.0f} % on rare")
    for verb, some in by_verdict(chosen):
        wide, high = cards.Z * some["common_error"], cards.Z * some["rare_error"]
        ax.errorbar(some["common"], some["rare"], xerr=wide, yerr=high, fmt="o", color=COLORS[verb], elinewidth=0.6,
                    label=f"{LABELS[verb]} ({len(some)}), 95 %")
    beside(ax, chosen["common"].to_numpy(), chosen["rare"].to_numpy(), [f"neuron {neuron}" for neuron in chosen["neuron"]])
    ax.legend(loc="upper left")


def frequency(ax, table):
    """Correlation of each top neuron's output with log frequency, over the band of the other neurons."""
    chosen, others = table[table["top"]].sort_values("rank"), table[~table["top"]]
    low, middle, high = np.nanquantile(others["correlation"], [0.025, 0.5, 0.975])
    ax.axvspan(low, high, color=plots.GREY, alpha=0.3, linewidth=0, label=f"other neurons (n = {len(others):,}), 95 %")
    ax.axvline(middle, color=plots.GREY, linewidth=0.8)
    chosen = chosen.assign(y=-np.arange(len(chosen)))
    for verb, some in by_verdict(chosen):
        ax.hlines(some["y"], 0, some["correlation"], color=COLORS[verb], linewidth=1)
        ax.plot(some["correlation"], some["y"], "o", color=COLORS[verb], markersize=4, label=LABELS[verb])
    ax.set(xlim=(-1, 1), xlabel="correlation of its output\nwith log frequency")
    ax.set_yticks(chosen["y"], [f"{neuron}" for neuron in chosen["neuron"]])
    ax.set_ylabel("neuron, most influential first")


def ends(ax, table):
    """Mean frequency rank of the tokens that each top neuron raises and lowers most, over the band of the other neurons."""
    chosen, others = table[table["top"]].sort_values("rank"), table[~table["top"]]
    y = -np.arange(len(chosen))
    low, high = np.nanquantile(others[["promoted", "suppressed"]], [0.025, 0.975])
    ax.axvspan(low, high, color=plots.GREY, alpha=0.3, linewidth=0)
    ax.hlines(y, chosen["promoted"], chosen["suppressed"], color="#606060", linewidth=0.6)
    ax.plot(chosen["promoted"], y, "^", color=plots.COLORS["all"], markersize=4.5, label="tokens raised most (50)")
    ax.plot(chosen["suppressed"], y, "v", color=plots.COLORS["all"], markersize=4.5, markerfacecolor="white",
            label="tokens lowered most")
    ax.set(xlim=(-0.03, 1.03), xlabel="mean frequency rank of the tokens\n(0 rarest, 1 most common)")
