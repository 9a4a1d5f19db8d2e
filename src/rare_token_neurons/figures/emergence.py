"""Drawing curves, phases, the top group and its members over training, and what they say in words (notebook 04)."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns

from rare_token_neurons.curve.changepoints import PHASES
from rare_token_neurons.figures import axes
from rare_token_neurons.figures.axes import title  # for the notebook
from rare_token_neurons.tables.stage import GROUPS

PAPER = dict(zip(PHASES, (1.7, 10.0, 87.4)))  # per cent of the neurons at the end of training, by a public summary
LEAST_SHARE = 0.1  # per cent: the axis of shares is linear below, so that 0 has a place


def marks(steps):
    """The steps that an axis names: the first, and every second after it, so that the last one is among them."""
    steps = sorted(steps)
    return sorted({steps[0], *steps[:0:-2]})


def step_axis(ax, steps):
    """Name some checkpoints on the axis of steps, after `axes.over_steps`."""
    ax.set_xticks(marks(steps), [f"{step:,}" for step in marks(steps)], rotation=45)
    ax.minorticks_off()
    ax.set_xlabel("training step")


def shade(steps):
    """One colour map over logarithmic steps (late is dark), in which step 0 has a place: a ScalarMappable."""
    positive = [step for step in steps if step > 0]
    scale = mpl.colors.SymLogNorm(linthresh=min(positive, default=1), vmin=min(steps), vmax=max(steps))
    seen = mpl.colors.ListedColormap(mpl.colormaps["viridis_r"](np.linspace(0.06, 1, 256)))  # the palest is lost on white
    return mpl.cm.ScalarMappable(scale, seen)


def legend_below(figure, axes, title, columns=3):
    """One legend of the axes' entries under the panels, each entry once."""
    entries = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(entries.values(), entries, title=title, title_fontsize=7, loc="outside lower center", ncols=columns)


# ---- rank curves


def rank_curves(ax, rows, colours):
    """Influence by rank, a curve a checkpoint: the first dashed, the last thick with its interval; its null in grey.

    rows : `emergence.emergence_curves` of one group ; colours : from `shade`.
    """
    first, last = rows["step"].min(), rows["step"].max()
    for step, part in rows.groupby("step"):
        ax.plot(part["rank"], part["influence"], "--" if step == first else "-", color=colours.to_rgba(step),
                linewidth=2 if step == last else 1.5 if step == first else 0.9,
                label={first: f"step {first:,}", last: f"step {last:,} (95 % over documents)"}.get(step))
    axes.band(ax, part["rank"], part["low"], part["high"], color=colours.to_rgba(last))
    axes.band(ax, part["rank"], part["null_low"], part["null_high"], alpha=0.45,
               label=f"ranked {part['null'].iloc[0]} draws (95 %)")
    axes.log_log(ax, "rank of the neuron", "")


def step_bar(figure, axes, colours, steps):
    """The colour bar of `shade`."""
    bar = figure.colorbar(colours, ax=axes, label="training step", ticks=marks(steps),
                          format=mpl.ticker.StrMethodFormatter("{x:,.0f}"))
    bar.ax.minorticks_off()


# ---- phases


def shares(ax, rows):
    """Shares of the three phases; a filled marker where a phase is told, an open one where it is not.

    rows : `emergence.emergence_phases` of one group and rule.
    """
    axes.band(ax, rows["step"], 100 * rows["null_plateau_low"], 100 * rows["null_plateau_high"],
               label="plateau in ranked draws, 95 %")
    for phase, paper in PAPER.items():
        name, color = phase.replace("_", " "), axes.COLORS[phase.replace("_", " ")]
        low, value, high = (100 * rows[f"{phase}{end}"] for end in ("_low", "", "_high"))
        axes.over_steps(ax, rows["step"], value, low=low, high=high, color=color, label=name)
        open_ = ~rows[f"told_{phase}"]
        ax.plot(rows["step"][open_], value[open_], "o", color=color, markerfacecolor="white", zorder=4)
        ax.axhline(paper, color=color, linestyle=":", linewidth=0.8)
    ax.plot([], [], ":", color="#303030", linewidth=0.8, label="the paper, at the end")
    ax.plot([], [], "o", color="#303030", markerfacecolor="white", label="cannot be told")
    ax.set_yscale("symlog", linthresh=LEAST_SHARE, linscale=0.5)
    ticks = [0, 0.1, 1, 10, 100]
    ax.set(yticks=ticks, yticklabels=[f"{tick:g}" for tick in ticks], ylim=(-0.03, 140), xlabel="")


def parameter(ax, phases, name):
    """kappa or beta of both groups, by change points with intervals, and by the paper's rule (dashed)."""
    for group in GROUPS:
        rows = phases[phases["group"] == group]
        changes, ruled = (rows[(rows["rule"] == "change points") == side] for side in (True, False))
        axes.over_steps(ax, changes["step"], changes[name], low=changes[f"{name}_low"], high=changes[f"{name}_high"],
                         label=group)
        ax.plot(ruled["step"], ruled[name], "--", color=axes.COLORS[group], linewidth=0.8, label=f"{group}, paper's rule")


# ---- the top group


def ratios(ax, top):
    """Influence of the top group over the median neuron's: of each step's own (solid), of the last one's (dashed).

    top : `emergence.emergence_top_groups`.
    """
    null = top[(top["group"] == "rare") & (top["chosen"] == "then")]
    axes.band(ax, null["step"], null["random_ratio_low"], null["random_ratio_high"], label="random groups, 95 %")
    axes.over_steps(ax, null["step"], null["ranked"], linestyle="-.", color=axes.GREY, label="ranked half-normal draws")
    for group in GROUPS:
        for chosen, line in (("then", "-"), ("today", "--")):
            rows = top[(top["group"] == group) & (top["chosen"] == chosen)]
            axes.over_steps(ax, rows["step"], rows["ratio"], low=rows["ratio_low"], high=rows["ratio_high"], linestyle=line,
                             color=axes.COLORS[group], label=f"{group}, top {'then' if chosen == 'then' else 'today'}")
    ax.set(yscale="log", ylabel="top group / median neuron")
    ticks = [tick for tick in (0.5, 1, 2, 3, 5, 10, 20, 50, 100) if ax.get_ylim()[0] <= tick <= ax.get_ylim()[1]]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_yticks([], minor=True)


def agreements(ax, rankings):
    """Rank correlation of rare and common rankings at the same step; in grey what the same ranking gives, the ceiling."""
    same = rankings[rankings["first_step"] == rankings["second_step"]]
    for first, second, line in (("rare", "rare", "--"), ("common", "common", ":"), ("rare", "common", "-")):
        rows = same[(same["first_group"] == first) & (same["second_group"] == second)]
        _pair(ax, rows, "correlation", axes.GREY if first == second else axes.COLORS["all"], line,
              f"{first} with {second}" + (" (ceiling)" if first == second else ""))
    ax.set_ylabel("rank correlation (0: unrelated)")


def neighbours(rankings, apart=1):
    """Pairs of checkpoints `apart` places from each other (0: with itself), both of one group."""
    steps = np.unique(rankings[["first_step", "second_step"]])
    later = dict(zip(steps, steps[apart:]))
    return rankings[rankings["first_step"].map(later).eq(rankings["second_step"])
                    & rankings["first_group"].eq(rankings["second_group"])]


def stability(ax, rankings, column):
    """Each checkpoint against the one before it (solid), and against itself on other documents (dashed)."""
    for apart, line, words in ((1, "-", "with the checkpoint before"), (0, "--", "with itself (ceiling)")):
        rows = neighbours(rankings, apart)
        for group in GROUPS:
            _pair(ax, rows[rows["first_group"] == group], column, axes.COLORS[group], line, f"{group}, {words}")
    if column == "jaccard":
        ax.axhspan(0, rankings["random_jaccard_high"].iloc[0], color=axes.GREY, alpha=0.3, linewidth=0,
                   label="unrelated rankings (97.5 %)")
    else:
        ax.axhline(0, color=axes.GREY, linewidth=0.8)
    ax.set_ylim(min(0, ax.get_ylim()[0]), 1.02)


def _pair(ax, rows, column, color, line, label):
    axes.over_steps(ax, rows["second_step"], rows[column], low=rows[f"{column}_low"], high=rows[f"{column}_high"],
                     color=color, linestyle=line, label=label)


def ranks(ax, ancestry, group):
    """Heat map: a row a neuron of the last checkpoint's top group, a column a checkpoint, the rank there as colour."""
    rows = ancestry[ancestry["group"] == group]
    table = rows.pivot(index="place", columns="step", values="rank")
    neurons = int(ancestry["neurons"].iloc[0])
    sns.heatmap(table, ax=ax, cmap="rocket", norm=mpl.colors.LogNorm(1, neurons), rasterized=True, yticklabels=5,
                xticklabels=[f"{step:,}" for step in table], cbar_kws={"label": f"rank among {neurons:,} neurons"})
    ax.tick_params(axis="x", rotation=90)
    ax.set(xlabel="training step", ylabel=f"today's top {len(table)} ({group}), by place")


# ---- in words


def when_told(phases):
    """When each phase can first be told, and since when to the end, from the table `emergence_phases`.

    Returns
    -------
    DataFrame indexed by rule, group and phase (with "plateau beyond chance": told, and its head lies below those of
    both null families); first, since (Int64, missing where never)
    """
    found = {}
    for place, rows in phases.groupby(["rule", "group"]):
        rows = rows.set_index("step").sort_index()
        told = rows[[f"told_{phase}" for phase in PHASES]].set_axis([phase.replace("_", " ") for phase in PHASES], axis=1)
        found[place] = first_told(told.assign(**{"plateau beyond chance": told["plateau"] & rows["beyond_null"]}))
    return pd.concat(found, names=["rule", "group", "phase"])


def first_told(told):
    """When each phase can first be told, and since when it is told at every checkpoint.

    Parameters
    ----------
    told : DataFrame indexed by step (rising), one bool column a phase.

    Returns
    -------
    DataFrame indexed by phase: first, since (Int64, missing where never)
    """
    steady = told[::-1].cummin()[::-1]  # told now and at every later checkpoint
    return pd.DataFrame({name: there.idxmax().where(there.any()).astype("Int64")
                         for name, there in (("first", told), ("since", steady))})


def of_lead(rare):
    """How far the rare group leads the median neuron at first and at last, and when beyond chance, in Markdown.

    rare : rows of table `emergence_top_groups` on rare targets, each step's own group, indexed by step.
    """
    first, last = rare.iloc[0], rare.iloc[-1]
    beyond = [f"{step:,}" for step in rare.index[rare["p_ranked"] < 0.05]]
    return (f"The top {first['size']} neurons have {first['ratio']:.1f} times the median neuron's influence on rare tokens "
            f"at step {rare.index[0]:,} and **{last['ratio']:.1f} times** (95 %: {last['ratio_low']:.1f} to "
            f"{last['ratio_high']:.1f}) at step {rare.index[-1]:,}; ranked half-normal numbers have {last['ranked']:.1f} "
            f"there (p = {last['p_ranked']:.3f}). The lead is larger than theirs beyond chance at "
            f"{'step ' + ', '.join(beyond) if beyond else 'no step'}.")


def of_members(today, on_top):
    """Where the last checkpoint's top neurons stood at first, and since when they stand above random groups, in Markdown.

    today : rows of table `emergence_top_groups` on rare targets, the last step's group, indexed by step.
    on_top : how many of them were on top at each step, indexed by step.
    """
    first = today.iloc[0]
    outside = (today["median_rank_high"] < today["random_median_rank_low"])[::-1].cummin()[::-1]  # from here to the end
    return (f"Of the {first['size']} neurons on top for rare tokens at step {on_top.index[-1]:,}, {on_top.iloc[0]} were on "
            f"top at step {on_top.index[0]:,}. Their median rank was {first['median_rank']:,.0f} then (random groups: "
            f"{first['random_median_rank_low']:,.0f} to {first['random_median_rank_high']:,.0f}). "
            + (f"From step {outside.idxmax():,} on they stand above random groups." if outside.any() else
               "They never stand above random groups."))


def summary(changes, statistics, rare):
    """Paper and here, in Markdown.

    changes : rows of table `emergence_phases` by change points.
    statistics : table `emergence_statistics`, indexed by group, rule, statistic and part ; rare : as `of_lead` takes it.
    """
    ends = changes[changes["group"] == "rare"].iloc[[0, -1]]
    steps, worst = ends["step"].tolist(), ends[["p_head_lognormal", "p_head_half_normal"]].max(axis=1)
    found = [f"{row['plateau']:.1%} / {row['power_law']:.1%} / {row['decay']:.1%}" for _, row in ends.iterrows()]
    heads = ["lies" if below else "does not lie" for below in ends["beyond_null"]]
    gain, lead = statistics.loc[("rare", "change points", "plateau", "gain")], statistics.loc[("rare", "", "ratio", "gain")]
    way = ("emerges" if gain["low"] > 0 else "disappears" if gain["high"] < 0 else
           "neither emerges nor disappears beyond the interval")
    return ("The paper shows curves over checkpoints: a homogeneous state at first, three phases (1.7 % / about 10 % / "
            "87.4 %, by a public summary) at last. Here, for rare tokens and by change points, plateau / power law / decay "
            f"are **{found[0]}** at step {steps[0]:,} and **{found[1]}** at step {steps[1]:,}: the plateau *{way}* (change "
            f"{gain['value']:+.1%} of the neurons, 95 % {gain['low']:+.1%} to {gain['high']:+.1%}). The head of the curve "
            f"{heads[0]} below those of ranked lognormal and half-normal draws at first (p = {worst.iloc[0]:.3f}, the less "
            f"favourable) and {heads[1]} below theirs at last (p = {worst.iloc[1]:.3f}). The top group's lead over the "
            f"median neuron grows {lead['value']:.1f} times (95 %: {lead['low']:.1f} to {lead['high']:.1f}), to "
            f"{rare['ratio'].iloc[-1]:.1f}; ranking half-normal numbers alone gives {rare['ranked'].iloc[-1]:.1f}.")
