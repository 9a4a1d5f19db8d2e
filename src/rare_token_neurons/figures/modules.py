"""Drawing rankings beside each other, heads, communities and groups of neurons (notebook 08), and words on them."""

from textwrap import fill

import networkx as nx
import numpy as np
import pandas as pd

from rare_token_neurons.figures import axes
from rare_token_neurons.figures.activations import drop_empty, matches, matching, usable  # some for the notebook
from rare_token_neurons.figures.axes import of_groups, plain_ticks, title
from rare_token_neurons.figures.words import against, between, by_control, by_draws, level, many, sentence, texts
from rare_token_neurons.statistics import controls, geometry  # geometry for the notebook
from rare_token_neurons.statistics.claims import SIGNIFICANT
from rare_token_neurons.statistics.rankings import top

SETS = {("rare", "rare"): ("rare again", axes.COLORS["rare"], "--"),
        ("rare", "common"): ("common", axes.COLORS["common"], "-")}
EDGES = {"absolute": "|r|", "positive": "r > 0"}
GROUPS = {"rare": "Rare group", "random": "Random group", "matched": "Matched group"}
SHARED = 50  # neurons in the top sets that the text tells of, where the table has them
RATIO = 1    # of a joint change to the sum: nothing is gained or lost together
PARTS = (axes.COLORS["all"], axes.GREY, axes.COLORS["head"], axes.COLORS["power law"])  # of a small graph, in turn


def network(ax, graph, parts, quality):
    """A small graph, its nodes coloured by community, its modularity as title.

    graph : networkx graph ; parts : a list of sets of nodes ; quality : their modularity.
    """
    colors = {node: PARTS[at % len(PARTS)] for at, part in enumerate(parts) for node in part}
    nx.draw_networkx(graph, nx.spring_layout(graph, seed=0), ax=ax, node_color=[colors[node] for node in graph],
                     edge_color=axes.GREY, node_size=160, font_size=6, font_color="white")
    ax.axis("off")
    title(ax, f"{many(len(parts), 'community', 'communities')}:\nmodularity Q = {quality:.2f}")


def rankings(ax, rows, size, agreement):
    """A dot a neuron: influence on rare targets (half A) against that on common ones, and again on rare ones (half B).

    rows : `influence` of one revision ; size : neurons in the rare group, the top of half A ; agreement : `rankings` of
    one revision by first and second.
    """
    common_too, again_too = agreement["correlation"]["rare", "common"], agreement["correlation"]["rare", "rare"]
    less = agreement["high"]["rare", "common"] < agreement["low"]["rare", "rare"]
    title(ax, f"Rankings for rare and common {'differ' if less else 'agree'}\n(r = {common_too:.2f}; for rare twice "
              f"{again_too:.2f})")
    values = rows.pivot(index="neuron", columns="group")
    rare, again, common = values["mean_abs_a"]["rare"], values["mean_abs_b"]["rare"], values["mean_abs_b"]["common"]
    chosen = top(rare, size)
    axes.log_log(ax, "influence on rare targets, half A (nats)", "influence, half B (nats)")
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
    plain_ticks(ax.xaxis)
    k, found = tops(rows)
    title(ax, f"Rare and common tokens share {found['shared']['rare', 'common']}\nof their top {k} neurons")
    ax.legend(loc="upper left")


def tops(rows):
    """The size of the top sets that the text tells of, and their rows by first and second. rows : `overlap`"""
    sizes = np.unique(rows["k"])
    k = SHARED if SHARED in sizes else rows.loc[rows["group"], "k"].iloc[0]
    return k, rows[rows["k"] == k].set_index(["first", "second"])


def listed_overlap(rows):
    """The overlap of the tops as a reader sees it, at the rare group's size and at that of the text."""
    rows = rows[rows["group"] | (rows["k"] == tops(rows)[0])].sort_values("k", kind="stable")
    names = {"rarerare": "rare and rare again", "rarecommon": "rare and common",
             "commoncommon": "common and common again"}
    return pd.DataFrame({"neurons in each top": rows["k"], "tops for": (rows["first"] + rows["second"]).map(names),
                         "shared": rows["shared"], "Jaccard index": rows["jaccard"].round(2),
                         "95 % over documents": [between(row) for _, row in rows.iterrows()],
                         "by chance": rows["null_jaccard"].round(2)}).set_index("neurons in each top")


def listed_rankings(rows):
    """The agreement of whole rankings as a reader sees it. rows : `rankings` by first and second."""
    names = {("rare", "common"): "rare and common", ("rare", "rare"): "rare and rare again",
             ("common", "common"): "common and common again",
             ("rare", "common corrected"): "rare and common, over what the halves agree in"}
    return pd.DataFrame({"rank correlation": rows["correlation"].round(2), "95 % over documents":
                         [between(row) for _, row in rows.iterrows()]}).set_axis([names[place] for place in rows.index])


def listed_modules(rows):
    """The modularity in all variants as a reader sees it. rows : `modules` of one revision, after `usable`."""
    shown = pd.DataFrame({"positions": rows["where"], "edges": rows["weights"].map(EDGES),
                          "resolution": rows["resolution"], "communities": rows["communities"],
                          "modularity Q": texts(rows["value"], ".2f")})
    for kind in controls.KINDS:
        if rows[kind].notna().any():
            shown[f"{kind} groups"], shown[f"p ({kind})"] = texts(rows[kind], ".2f"), texts(rows[f"p_{kind}"], ".2f")
    return shown.set_index("positions")


def listed_heads(rows, count=5):
    """The heads that matter most for rare targets as a reader sees them. rows : `heads` of one revision."""
    most = rows.nlargest(count, "rare")
    shown = {"layer": most["layer"] + 1, "head": most["head"] + 1}
    for kind in ("rare", "common"):
        shown[f"{kind} targets (nats)"] = most[kind].round(2)
        shown[f"95 % ({kind})"] = [between(row, kind) for _, row in most.iterrows()]
    return pd.DataFrame(shown).set_index("layer")


def listed_groups(rows):
    """Joint changes and sums of single ones as a reader sees them, means by kind of group. rows : `group_ablation`"""
    mean = rows.groupby("group", sort=False)[["joint", "added", "ratio"]].mean()
    return mean.round(2).set_axis(["together (nats)", "sum of single changes (nats)", "ratio"], axis=1)


def listed_search(rows):
    """The greedy search as a reader sees it, a row a step. rows : `greedy_search` of one revision."""
    columns = {"size": "neurons", "neuron": "added by greedy", "best": "next best alone", "shared": "in both groups",
               "greedy": "greedy (nats)", "individual": "best alone (nats)", "gain": "greedy / best alone"}
    return rows[list(columns)].round(2).rename(columns=columns).set_index("neurons")


def communities(ax, rows, main, *, absolute=False):
    """Correlations inside a group, or their absolute values, neurons in order of community, a frame around each.

    rows : `module_members` of one revision and group ; main : the main row of `modules`.
    """
    name = rows["group"].iloc[0]
    title(ax, f"{GROUPS[name]}:\nQ = {main['value' if name == 'rare' else name]:.2f}")
    rows = rows.assign(correlation=rows["correlation"].abs() if absolute else rows["correlation"])
    order = rows.drop_duplicates("i").sort_values(["community", "i"])
    matrix = rows.pivot(index="i", columns="j", values="correlation").loc[order["i"], order["i"]]
    axes.heat_map(ax, matrix)
    ends = np.cumsum(order["community"].value_counts(sort=False).sort_index())
    for start, end in zip((0, *ends[:-1]), ends):
        x, y = [start, end, end, start, start], [start, start, end, end, start]
        ax.plot(x, y, color="black", linewidth=0.8, clip_on=False)
    ax.set(xlabel=f"{len(order)} neurons", ylabel="")


def heads(ax, rows, route):
    """A dot a head: its effect on rare against common targets, and in grey the same after shuffling the labels.

    rows : `heads` of one revision ; route : the row of `routes`.
    """
    axes.log_log(ax, "mean |loss change|, common targets (nats)", "mean |loss change|, rare targets (nats)")
    ax.plot(rows["common_shuffled"], rows["rare_shuffled"], ".", color=axes.GREY, alpha=0.6,
            label="labels shuffled within documents")
    ax.plot(rows["common"], rows["rare"], ".", color=axes.COLORS["rare"], alpha=0.8, label=f"a head (n = {len(rows)})")
    plain_ticks(ax.xaxis, ax.yaxis)
    ax.set_ylim(top=3 * max(rows["rare"].max(), rows["rare_shuffled"].max()))
    ax.legend(loc="upper left")
    found = "The same heads matter for" if route["p"] >= SIGNIFICANT else "Heads matter differently for"
    title(ax, f"{found} rare and common\n(r = {route['correlation']:.2f}; shuffled labels {route['null']:.2f})")


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
    beyond = int((rows["value"] > rows["random_high"]).sum())
    title(ax, f"Heads of {f'{beyond} of {len(rows)} layers' if beyond else 'no layer'} move the group\n"
              "more than random groups")
    ax.set(xlim=(0.4, layer.max() + 0.6), xlabel=f"layer of the head, 1 to {layer.max()}",
           ylabel="mean |activation change| (SD)",
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
    plain_ticks(ax.xaxis)
    ax.legend(loc="upper left")
    title(ax, f"{whole['size']} neurons together do {as_the_sum(rows)}\n({whole['ratio']:.2f} times the sum)")


def as_the_sum(rows):
    """Whether the rare group does more together than the sum of its neurons and than random groups, in words.

    rows : `group_ablation` of one revision.
    """
    whole, others = rows[rows["group"] == "rare"].iloc[0], rows.loc[rows["group"] == "random", "ratio"]
    if whole["ratio_low"] > max(RATIO, others.quantile(0.975)):
        return "more than their sum"
    return "less than their sum" if whole["ratio_high"] < min(RATIO, others.quantile(0.025)) else "what their sum says"


def growth(ax, rows):
    """The joint effect of the greedy group, the individually best and random groups over their size.

    rows : `greedy_search` of one revision.
    """
    axes.band(ax, rows["size"], rows["random_low"], rows["random_high"], alpha=0.4,
              label="10 random groups, their range")
    ax.plot(rows["size"], rows["individual"], "o-", color=axes.COLORS["all"], label="neurons that are best alone")
    ax.plot(rows["size"], rows["greedy"], "o--", color=axes.COLORS["rare"], label="greedy search")
    ax.set(xlabel="neurons in the group", ylabel="mean |joint change|, half B (nats)",
           ylim=(0, 1.4 * rows[["individual", "greedy"]].to_numpy().max()), xticks=rows["size"])
    ax.legend(loc="upper left")
    end = rows.iloc[-1]
    better = ("finds a stronger" if end["gain_low"] > RATIO else "finds a weaker" if end["gain_high"] < RATIO else
              "may find no stronger")
    title(ax, f"Greedy search {better} group\n({end['gain']:.2f} times the {end['size']} best; {between(end, 'gain')})")


def modularity(ax, rows):
    """Modularity of the rare group over its controls, a place for each variant at resolution 1; title: the main one.

    rows : `modules` of one revision, after `usable`.
    """
    main, rows = rows[rows["main"]].iloc[0], rows[rows["resolution"] == 1]
    of_groups(ax, rows.assign(group="rare"))
    drop_empty(ax)
    names = rows["where"] + rows["main"].map({True: "*", False: ""}) + "\n" + rows["weights"].map(EDGES)
    ax.set_xticks(range(len(rows)), names)
    highest = rows[["high", "random_high", "matched_high"]].max().max()
    ax.set(ylabel="modularity Q", xlabel="positions, edges (*: the main one)", ylim=(0, 1.1 * highest))
    title(ax, fill(sentence(against(main, "modularity")), 26))


# ---- in words


def of_modules(main):
    """Modularity of the rare group beside its controls, and whether an absence can be told, in Markdown.

    main : the main row of `modules`, after `usable`.
    """
    told = by_control(main, lambda kind: f"{kind} groups {main[kind]:.3f}, a difference of {main[f'less_{kind}']:+.3f} "
                                         f"({between(main, f'less_{kind}', '+.3f')})")
    edges = "absolute correlations" if main["weights"] == "absolute" else "positive correlations"
    untested = "" if np.isfinite(main["matched"]) else " Without matched groups a claim of absence cannot be tested."
    return (f"With {edges} as edges the rare group has a modularity of **{main['value']:.3f}**, in "
            f"{many(main['communities'], 'community', 'communities')} ({told}). Behind it: {main['size']} neurons at "
            f"{main['positions']:,} rare positions in {main['documents']} documents of half B.{untested}")


def of_tops(rows):
    """How many of their top neurons rare and common tokens share, in Markdown. rows : `overlap` of one revision."""
    k, found = tops(rows)
    shared, neurons = found["shared"], found.loc[("rare", "common"), "null_jaccard"]
    return (f"Of their top {k} neurons rare and common tokens share **{shared['rare', 'common']}**. Two halves of the "
            f"text share {shared['rare', 'rare']} for rare tokens, and {shared['common', 'common']} for common ones. "
            f"That is the most one can expect. Unrelated rankings would share {2 * k * neurons / (1 + neurons):.1f}.")


def of_heads(route):
    """Whether the heads matter in the same order for rare and for common targets, in Markdown.

    route : the row of `routes`.
    """
    return (f"Each of the {route['heads']} heads was ablated on {route['tokens']:,} tokens of {route['documents']} "
            f"documents. There are {route['rare_positions']} rare and {route['common_positions']} common targets. The "
            f"order of the heads for the two kinds has a rank correlation of **{route['correlation']:.2f}** (95 % over "
            f"documents {between(route)}). With shuffled labels it has {between(route, 'null')}, {level(route['p'])} "
            f"for a value as low. Heads that lean to one kind, at a false discovery rate of 5 %: {route['leaning']}.")


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
        "- **A module?** The follow-ups report a modularity of 0.05 to 0.11 for the plateau neurons and 0.04 to 0.09 "
        f"for random ones (p > 0.4). Here it is **{module['value']:.3f}**{edges}; {beside}.\n- **Other neurons?** Rare "
        f"and common tokens share **{one['shared']} of {one['k']}** top neurons (chance {one['k'] ** 2 / neurons:.1f}; "
        f"two halves of the text share {again['shared']} for rare tokens).\n- **Other heads?** The follow-up sees no "
        "preferential routing by attention heads. Here the order of the heads for rare and common tokens agrees with "
        f"{route['correlation']:.2f}; shuffled labels give {route['null']:.2f} ({level(route['p'])}).\n- **More "
        f"together?** Ablated together, the rare group changes the loss by {whole['joint']:.3f} nats, "
        f"**{whole['ratio']:.2f} times** ({between(whole, 'ratio')}) the sum of its neurons.")
