"""Drawing rankings beside each other, heads, communities and groups of neurons (notebook 08), and words on them."""

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from rare_token_neurons.figures import axes
from rare_token_neurons.figures.activations import drop_empty, matches, matching, usable  # some for the notebook
from rare_token_neurons.figures.axes import of_groups, title
from rare_token_neurons.figures.words import against, between, by_control, by_draws, level
from rare_token_neurons.statistics import controls
from rare_token_neurons.statistics.rankings import top

SETS = {("rare", "rare"): ("rare again", axes.COLORS["rare"], "--"),
        ("rare", "common"): ("common", axes.COLORS["common"], "-")}


def _plain(*scales):
    """Ticks at 1, 2 and 5 in plain numbers, for logarithmic axes over a decade or two."""
    for axis in scales:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())


def rankings(ax, rows, size):
    """A dot a neuron: influence on rare targets (half A) against that on common ones, and again on rare ones (half B).

    rows : `influence` of one revision ; size : neurons in the rare group, the top of half A.
    """
    values = rows.pivot(index="neuron", columns="group")
    rare, again, common = values["mean_abs_a"]["rare"], values["mean_abs_b"]["rare"], values["mean_abs_b"]["common"]
    chosen = top(rare, size)
    axes.log_log(ax, "influence on rare targets, half A (nats)", "influence on half B (nats)")
    ax.plot(rare, again, ".", color=axes.GREY, alpha=0.35, markersize=4,
            label=f"rare targets again (n = {len(rare):,} neurons)")
    ax.plot(rare, common, ".", color=axes.COLORS["common"], alpha=0.7, markersize=1.5, label="common targets")
    ax.plot(rare.iloc[chosen], common.iloc[chosen], ".", color=axes.COLORS["rare"],
            label=f"of these the rare group (n = {size})")
    low = np.nanquantile(values[["mean_abs_a", "mean_abs_b"]].to_numpy(), 0.002)
    ax.set(xlim=(low, None), ylim=(low, None))
    ax.legend(loc="upper left")


def overlap(ax, rows):
    """Jaccard index of top-k sets over k, with chance in grey.

    rows : `overlap` of one revision.
    """
    for pair, (name, color, style) in SETS.items():
        some = rows[(rows["first"] == pair[0]) & (rows["second"] == pair[1])]
        axes.band(ax, some["k"], some["low"], some["high"], color=color, alpha=0.15)
        ax.plot(some["k"], some["jaccard"], style, marker="o", color=color,
                label=f"top for rare (A) and {name} (B), 95 %")
    axes.band(ax, some["k"], some["null_low"], some["null_high"], label="unrelated rankings, 95 %", alpha=0.5)
    ax.plot(some["k"], some["null_jaccard"], color=axes.GREY, linewidth=0.8)
    ax.axvline(some.loc[some["group"], "k"].iloc[0], color=axes.GREY, linewidth=0.6, linestyle=":")
    ax.set(xscale="log", xlabel="k, neurons in each top set", ylabel="Jaccard index of the two sets",
           ylim=(0, 1.5 * rows["high"].max()))
    ax.set_yticks([tick for tick in ax.get_yticks() if tick <= 1])
    _plain(ax.xaxis)
    ax.legend(loc="upper left")


def communities(ax, rows, *, absolute=False):
    """Correlations inside a group, or their absolute values, neurons in order of community, a frame around each.

    rows : `module_members` of one revision and group.
    """
    rows = rows.assign(correlation=rows["correlation"].abs() if absolute else rows["correlation"])
    order = rows.drop_duplicates("i").sort_values(["community", "i"])
    matrix = rows.pivot(index="i", columns="j", values="correlation").loc[order["i"], order["i"]]
    axes.heat_map(ax, matrix)
    ends = np.cumsum(order["community"].value_counts(sort=False).sort_index())
    for start, end in zip((0, *ends[:-1]), ends):
        x, y = [start, end, end, start, start], [start, start, end, end, start]
        ax.plot(x, y, color="black", linewidth=0.8, clip_on=False)
    ax.set(xlabel=f"{len(order)} neurons", ylabel="")


def heads(ax, rows):
    """A dot a head: its effect on rare against common targets, and in grey the same after shuffling the labels.

    rows : `heads` of one revision.
    """
    axes.log_log(ax, "mean |loss change|, common targets (nats)", "mean |loss change|, rare targets (nats)")
    ax.plot(rows["common_shuffled"], rows["rare_shuffled"], ".", color=axes.GREY, alpha=0.6,
            label="labels shuffled within documents")
    ax.plot(rows["common"], rows["rare"], ".", color=axes.COLORS["rare"], alpha=0.8, label=f"a head (n = {len(rows)})")
    _plain(ax.xaxis, ax.yaxis)
    ax.set_ylim(top=3 * max(rows["rare"].max(), rows["rare_shuffled"].max()))
    ax.legend(loc="upper left")


def layers(ax, rows, size):
    """Change of the rare group's activations by the layer of the ablated head, over bands of control groups.

    rows : `head_layers` of one revision, after `usable` ; size : neurons in the group.
    """
    layer = rows["layer"] + 1
    axes.band(ax, layer, rows["random_low"], rows["random_high"], label=axes.LABELS["random"], alpha=0.4)
    if rows["matched_low"].notna().any():
        axes.edges(ax, layer, rows["matched_low"], rows["matched_high"], label=axes.LABELS["matched"])
    axes.whiskers(ax, layer, rows, fmt="o-", capsize=1.5, color=axes.COLORS["rare"],
                  label=f"rare group (n = {size}), 95 % over documents")
    ax.set(xlabel="layer of the head", ylabel="mean |activation change| (SD)",
           ylim=(0, 1.5 * rows[["high", "random_high", "matched_high"]].max().max()))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(loc="upper left")


def together(ax, rows):
    """A dot a group: its joint effect over the sum of its neurons' effects, by that sum.

    rows : `group_ablation` of one revision.
    """
    for name, some in rows[rows["group"] != "rare"].groupby("group", sort=False):
        ax.plot(some["added"], some["ratio"], "." if name == "random" else "x", color=axes.COLORS[name], markersize=3,
                alpha=0.8, label=f"{name} groups (n = {len(some)})")
    whole = rows[rows["group"] == "rare"].iloc[0]
    axes.whiskers(ax, whole["added"], whole, "ratio", fmt="o", capsize=2, color=axes.COLORS["rare"],
                  label=f"rare group ({whole['size']} neurons), 95 % over documents")
    ax.axhline(1, color=axes.COLORS["all"], linewidth=0.8, linestyle=(0, (4, 2)), label="the sum of the neurons")
    top, bottom = max(rows["ratio"].max(), whole["ratio_high"]), min(rows["ratio"].min(), whole["ratio_low"])
    ax.set(xscale="log", xlabel="mean |sum of the single changes| (nats)", ylabel="joint change / sum",
           ylim=(bottom - 0.1 * (top - bottom), top + 0.8 * (top - bottom)))
    _plain(ax.xaxis)
    ax.legend(loc="upper left")


def growth(ax, rows):
    """The joint effect of the greedy group, the individually best and random groups over their size.

    rows : `greedy_search` of one revision.
    """
    axes.band(ax, rows["size"], rows["random_low"], rows["random_high"], alpha=0.4,
              label="10 random groups, their range")
    ax.plot(rows["size"], rows["individual"], "o-", color=axes.COLORS["all"], label="individually best")
    ax.plot(rows["size"], rows["greedy"], "o--", color=axes.COLORS["rare"], label="greedy search")
    ax.set(xlabel="neurons in the group", ylabel="mean |joint change|, half B (nats)",
           ylim=(0, 1.4 * rows[["individual", "greedy"]].to_numpy().max()), xticks=rows["size"])
    ax.legend(loc="upper left")


def modularity(ax, rows):
    """Modularity of the rare group over its controls, a place for each variant.

    rows : `modules` of one revision, after `usable`.
    """
    of_groups(ax, rows.assign(group="rare"))
    drop_empty(ax)
    edges = rows["weights"].map({"absolute": "|r|", "positive": "r > 0"})
    names = rows["where"] + "\n" + rows["resolution"].map("{:g}".format) + "\n" + edges
    ax.set_xticks(range(len(rows)), names, fontsize=6)
    highest = rows[["high", "random_high", "matched_high"]].max().max()
    ax.set(ylabel="modularity Q", xlabel="positions, resolution, edges", ylim=(0, 1.45 * highest))
    ax.legend(loc="upper left", fontsize=6)


# ---- in words


def of_modules(main):
    """Modularity of the rare group beside its controls, and whether an absence can be told, in Markdown.

    main : the main row of `modules`, after `usable`.
    """
    told = by_control(main, lambda kind: f"less {kind} groups {main[f'less_{kind}']:+.3f} "
                                           f"({between(main, f'less_{kind}', '+.3f')})")
    edges = "absolute correlations" if main["weights"] == "absolute" else "positive correlations"
    untested = "" if np.isfinite(main["matched"]) else " Without matched groups a claim of absence cannot be tested."
    return (f"Modularity of the rare group, by its {edges}: **{main['value']:.3f}** in {main['communities']} "
            f"communities; {told}. ({main['size']} neurons, {main['positions']:,} rare positions, {main['documents']} "
            f"documents of half B.){untested}")


def of_heads(route):
    """Whether the heads matter in the same order for rare and for common targets, in Markdown.

    route : the row of `routes`.
    """
    return (f"Each of the {route['heads']} heads was ablated on {route['tokens']:,} tokens: {route['rare_positions']} "
            f"rare and {route['common_positions']} common targets in {route['documents']} documents. The order of the "
            f"heads agrees with a rank correlation of **{route['correlation']:.2f}** (95 % over documents "
            f"{between(route)}; shuffled labels {between(route, 'null')}, {level(route['p'])} for a value as low). "
            f"Heads that lean to one kind at a false discovery rate of 5 %: {route['leaning']}.")


def summary(module, group, neurons, route, whole):
    """Paper and here, in Markdown.

    Parameters
    ----------
    module : the main row of `modules`, after `usable` ; group : the rows of `overlap` at the rare group's size by the
    second set, the first being that of rare targets ; neurons : of the layer ; route : the row of `routes` ; whole :
    the rare group's row of `group_ablation`.
    """
    one, again = group.loc["common"], group.loc["rare"]
    edges = " on absolute correlations" if module["weights"] == "absolute" else ""
    beside = by_control(module, lambda kind: f"{kind} groups have {module[kind]:.3f} "
                                             f"({by_draws(module[f'p_{kind}'], controls.MODULE_DRAWS, kind, 2)})")
    return (
        "The follow-ups report a modularity of 0.05 to 0.11 for the plateau neurons against 0.04 to 0.09 for random "
        f"ones (p > 0.4). Here it is **{module['value']:.3f}**{edges}; {beside}. Rare and common words share "
        f"**{one['shared']} of {one['k']}** top neurons (chance {one['k'] ** 2 / neurons:.1f}; rare words on two "
        f"halves of the text {again['shared']}). The follow-up sees no preferential routing by attention heads; here "
        f"the order of the heads for rare and common words agrees with {route['correlation']:.2f}, where shuffled "
        f"labels give {route['null']:.2f} ({level(route['p'])}). Ablated together, the rare group changes the loss by "
        f"{whole['joint']:.3f} nats, **{whole['ratio']:.2f} times** ({between(whole, 'ratio')}) the sum of its "
        "neurons.")
