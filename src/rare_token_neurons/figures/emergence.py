"""Drawing curves, phases, the top group and its members over training, and what they say in words (notebook 04)."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns

from rare_token_neurons.curve import heads
from rare_token_neurons.figures import axes
from rare_token_neurons.figures.axes import DECIDES, legend_below, title  # for the notebook
from rare_token_neurons.figures.influence import RANKED, largest
from rare_token_neurons.figures.words import UNTOLD, between, level, named, percent, stretches
from rare_token_neurons.tables.stage import GROUPS

FIXED = "fixed head"  # the rule by which Delta is compared between steps
PAPER = {"head": 1.7, "power law": 10.0, "decay": 87.4}  # per cent of the neurons at the end, by a public summary
SHARES = {"head": "head_share", "power law": "law_share", "decay": "decay_share"}  # in the table
TOLD = {"plateau": "told_head", "power law": "told_power_law", "decay": "told_decay"}
WORDS = dict(zip((*heads.WORDS, UNTOLD), "o^vsx"))  # markers
OPEN = ("rounded", "on the line")  # whose markers are not filled
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
    seen = mpl.colors.ListedColormap(mpl.colormaps["viridis_r"](np.linspace(0.06, 1, 256)))  # paler is lost on white
    return mpl.cm.ScalarMappable(scale, seen)


# ---- rank curves


def rank_curves(ax, rows, colours, positions):
    """Influence by rank, a curve a checkpoint: the first dashed, the last thick with its interval; its nulls in grey.

    rows : `emergence.emergence_curves` of one group ; colours : from `shade` ; positions : how many it has.
    """
    first, last = rows["step"].min(), rows["step"].max()
    for step, part in rows.groupby("step"):
        ax.plot(part["rank"], part["influence"], "--" if step == first else "-", color=colours.to_rgba(step),
                linewidth=2 if step == last else 1.5 if step == first else 0.9,
                label={first: f"step {first:,}", last: f"step {last:,} (95 % over documents)"}.get(step))
    axes.band(ax, part["rank"], part["low"], part["high"], color=colours.to_rgba(last))
    axes.null_bands(ax, part)
    axes.log_log(ax, f"rank of the neuron ({rows['group'].iloc[0]}: n = {positions:,} positions)", "")
    ax.set_xlim(1, rows["rank"].max())
    ax.set_ylim(bottom=rows.loc[rows["influence"] > 0, "influence"].min() / 2)  # a null's last ranks may lie far below


def step_bar(figure, axes, colours, steps):
    """The colour bar of `shade`."""
    bar = figure.colorbar(colours, ax=axes, label="training step", ticks=marks(steps),
                          format=mpl.ticker.StrMethodFormatter("{x:,.0f}"))
    bar.ax.minorticks_off()


# ---- phases


def heights(ax, rows):
    """Delta of the fixed head over training, its marker by each step's word, over the spread of the law's own samples.

    rows : `emergence.emergence_phases` of one group and rule, by step.
    """
    axes.band(ax, rows["step"], rows["null_delta_law_low"], rows["null_delta_law_high"], alpha=0.35,
              label="95 % of the law's\nown samples")
    color = axes.COLORS[rows["group"].iloc[0]]
    axes.over_steps(ax, rows["step"], rows["delta"], low=rows["delta_low"], high=rows["delta_high"], color=color,
                    markersize=0)
    for word, at in rows.groupby(rows["word"].replace("", UNTOLD)):
        for some, hue, options in ((at, color, {"zorder": 4}), (at[:0], axes.COLORS["all"], {"label": word})):
            ax.plot(some["step"], some["delta"], WORDS[word], color=hue, markersize=4.5,
                    markerfacecolor="white" if word in OPEN else hue, **options)
    ax.axhline(0, color=axes.COLORS["all"], linewidth=0.6)
    ax.set_xlabel("")


def shares(ax, rows):
    """Shares of the three phases; a filled marker where a phase is told (a head: called a plateau), else an open one.

    rows : `emergence.emergence_phases` of one group and rule.
    """
    for (phase, paper), told in zip(PAPER.items(), TOLD.values()):
        color = axes.COLORS[phase]
        low, value, high = (100 * rows[f"{SHARES[phase]}{end}"] for end in ("_low", "", "_high"))
        axes.over_steps(ax, rows["step"], value, low=low, high=high, color=color, label=phase)
        open_ = ~rows[told]
        ax.plot(rows["step"][open_], value[open_], "o", color=color, markerfacecolor="white", zorder=4)
        ax.axhline(paper, color=color, linestyle=":", linewidth=0.8)
    ax.plot([], [], ":", color=axes.COLORS["all"], linewidth=0.8, label="the paper at the end")
    ax.plot([], [], "o", color=axes.COLORS["all"], markerfacecolor="white", label="not told from chance")
    ax.set_yscale("symlog", linthresh=LEAST_SHARE, linscale=0.5)
    ticks = [0, 0.1, 1, 10, 100]
    ax.set(yticks=ticks, yticklabels=[f"{tick:g}" for tick in ticks], ylim=(-0.03, 140), xlabel="")


def parameter(ax, phases, name):
    """kappa or beta of both groups' law, beyond the fixed head."""
    for group in GROUPS:
        rows = phases[(phases["group"] == group) & (phases["rule"] == FIXED)]
        _line(ax, rows, name, axes.COLORS[group], "-", f"{group} targets")


def legend_beside(ax, panels):
    """The legend of a row of panels, in axes of its own at their right."""
    entries = {label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels())}
    ax.axis("off")
    ax.legend(entries.values(), entries, loc="center left", borderaxespad=0)


# ---- the top group


def ratios(ax, top):
    """Influence of the top group over the median neuron's: of each step's own (solid), of the last one's (dashed).

    top : `emergence.emergence_top_groups`.
    """
    null = top[(top["group"] == "rare") & (top["chosen"] == "then")]
    axes.band(ax, null["step"], null["random_ratio_low"], null["random_ratio_high"], label=axes.LABELS["random"])
    axes.over_steps(ax, null["step"], null["ranked"], linestyle="-.", color=axes.GREY, label="ranked half-normal draws")
    for group in GROUPS:
        for chosen, line, whose in (("then", "-", "the step's own top"), ("today", "--", "the last step's top")):
            rows = top[(top["group"] == group) & (top["chosen"] == chosen)]
            _line(ax, rows, "ratio", axes.COLORS[group], line, f"{group}, {whose}")
    ax.set(yscale="log", ylabel="influence: top group / median neuron")
    axes.tick_at(ax, (0.5, 1, 2, 3, 5, 10, 20, 50, 100))


def agreements(ax, rankings):
    """Rank correlation of rare and common rankings at the same step; in grey the ceiling, the same ranking's."""
    same = rankings[rankings["first_step"] == rankings["second_step"]]
    for first, second, line in (("rare", "rare", "--"), ("common", "common", ":"), ("rare", "common", "-")):
        rows = same[(same["first_group"] == first) & (same["second_group"] == second)]
        _line(ax, rows, "correlation", axes.GREY if first == second else axes.COLORS["all"], line,
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
            _line(ax, rows[rows["first_group"] == group], column, axes.COLORS[group], line, f"{group}, {words}")
    if column == "jaccard":
        ax.axhspan(0, rankings["random_jaccard_high"].iloc[0], color=axes.GREY, alpha=0.3, linewidth=0,
                   label="unrelated rankings (97.5 %)")
    else:
        ax.axhline(0, color=axes.GREY, linewidth=0.8)
    ax.set_ylim(min(0, ax.get_ylim()[0]), 1.02)


def _line(ax, rows, column, color, line, label):
    """A column with its interval, at the steps or, of pairs of checkpoints, at the later one."""
    steps = rows["second_step" if "second_step" in rows else "step"]
    axes.over_steps(ax, steps, rows[column], low=rows[f"{column}_low"], high=rows[f"{column}_high"], color=color,
                    linestyle=line, label=label)


def ranks(ax, ancestry, group):
    """Heat map: a row a neuron of the last checkpoint's top group, a column a checkpoint, the rank there as colour."""
    rows = ancestry[ancestry["group"] == group]
    table = rows.pivot(index="place", columns="step", values="rank")
    neurons = int(ancestry["neurons"].iloc[0])
    sns.heatmap(table, ax=ax, cmap="rocket", norm=mpl.colors.LogNorm(1, neurons), rasterized=True, yticklabels=5,
                xticklabels=[f"{step:,}" for step in table], cbar_kws={"label": f"rank among {neurons:,} neurons"})
    ax.tick_params(axis="x", rotation=90)
    ax.set(xlabel="training step", ylabel=f"the last step's top {len(table)} ({group}), by place")


# ---- titles


def ends(values, form="{:.2f}", then=", "):
    """Values at the first and the last step in words: "0.12 at step 0, 0.80 at 6,144"; values: a Series by step."""
    (first, one), (last, other) = ((values.index[at], values.iloc[at]) for at in (0, -1))
    return f"{form.format(one)} at step {first:,}{then}{form.format(other)} at {last:,}"


def finding(rows):
    """When the head of one group is a plateau, and how high it stands at last; rows: as `heights` takes them."""
    rows = rows.set_index("step")
    told, height, last = rows["word"].eq("plateau"), rows["delta"].iloc[-1], rows.index[-1]
    since = told[::-1].cummin()[::-1]  # told from here to the end
    said = (f"a plateau from step {since.idxmax():,} on" if since.any() else
            f"a plateau at step {told.idxmax():,}, not at last" if told.any() else
            "no plateau at any step" if rows["word"].any() else UNTOLD)
    end = f"\n(Δ = {height:+.2f} at step {last:,})" if np.isfinite(height) else ""
    return f"{rows['group'].iloc[0].capitalize()}: {said}{end}"


def of_shares(rows):
    """The head's share of the neurons at last, beside the paper's; rows: as `shares` takes them."""
    share = rows.set_index("step")["head_share"].iloc[-1]
    return (f"{rows['group'].iloc[0].capitalize()}: the head ends at {percent(share, 1)}\n"
            f"of the neurons (the paper: {PAPER['head']:g} %)")


def of_parameter(phases, name, label):
    """kappa or beta of both laws beyond the fixed head, first and last; label : what it is called."""
    rows = phases[phases["rule"] == FIXED].pivot(index="step", columns="group", values=name)
    way = {group: "{:.2f} to {:.2f}".format(*rows[group].iloc[[0, -1]]) for group in GROUPS}
    return f"{label}: rare {way['rare']},\ncommon {way['common']}"


def of_ratio(ratio, group):
    """The lead of a group's top neurons, first and last; ratio: a Series by step."""
    first, last = ratio.iloc[[0, -1]]
    return (f"{group.capitalize()}: the top 1.7 % lead {'more' if last > first else 'less'},\n"
            f"from {first:.1f} to {last:.1f} times the median")


def of_best(ratio):
    """The lead of the rare group at its best and at last; ratio: a Series by step."""
    return (f"Rare: {ratio.max():.1f} times the median at best\n(step {ratio.idxmax():,}), {ratio.iloc[-1]:.1f} at "
            f"step {ratio.index[-1]:,}")


def of_agreement(rankings):
    """Whether rare and common rankings part, beyond the interval; rankings: the table `emergence_rankings`."""
    same = rankings[rankings["first_step"] == rankings["second_step"]].set_index(["first_group", "second_group"])
    pair, ceiling = (same.loc[place].set_index("first_step") for place in (("rare", "common"), ("rare", "rare")))
    first, last = pair.iloc[0], pair.iloc[-1]
    way = ("part" if last["correlation_high"] < first["correlation_low"] else "draw together"
           if last["correlation_low"] > first["correlation_high"] else "keep their distance")
    return (f"Rare and common rankings {way}:\n{ends(pair['correlation'])} "
            f"(ceiling {ceiling['correlation'].iloc[-1]:.2f})")


def of_ancestors(on_top, size, neurons):
    """How many of the last step's top neurons were on top at first, beside chance, and one step before.

    on_top : how many, by step ; size : of the group ; neurons : of the layer.
    """
    return (f"{on_top.iloc[0]} of {size} were on top at step {on_top.index[0]:,}\n(chance {size**2 / neurons:.1f}), "
            f"{on_top.iloc[-2]} at step {on_top.index[-2]:,}")


def of_stability(rankings, column, what):
    """How alike the last two checkpoints are, beside the last one with itself, on rare targets."""
    late, itself = (neighbours(rankings, apart).query("first_group == 'rare'")[column].iloc[-1] for apart in (1, 0))
    return f"{what}: {late:.2f} alike\n(with itself: {itself:.2f})"


# ---- in words


def course(phases):
    """Delta of the fixed head, its word and chance at every step, as text: a row a step, columns (targets, what).

    phases : table `emergence_phases`.
    """
    made = {}
    for group, rows in phases[phases["rule"] == FIXED].groupby("group", sort=False):
        rows = rows.set_index("step")
        made[group, "Δ (e-folds)"] = rows.apply(
            lambda row: "{:+.2f} [{:+.2f}, {:+.2f}]".format(*row[["delta", "delta_low", "delta_high"]]), axis=1)
        made[group, "word"] = rows.apply(named, axis=1)
        made[group, "as high by chance"] = rows.apply(largest, axis=1)
    return pd.DataFrame(made)


def when_told(phases):
    """When each phase can first be told, and since when to the end, from the table `emergence_phases`.

    Returns
    -------
    DataFrame indexed by head, targets and phase (a head is told where its word is plateau); steps: first at, to the end
    from (Int64, missing where never)
    """
    found = {}
    for place, rows in phases.groupby(["rule", "group"]):
        told = rows.set_index("step").sort_index()[list(TOLD.values())].set_axis(list(TOLD), axis=1)
        steady = told[::-1].cummin()[::-1]  # told now and at every later checkpoint
        found[place] = pd.DataFrame({name: there.idxmax().where(there.any()).astype("Int64")
                                     for name, there in (("first at step", told), ("to the end from step", steady))})
    return pd.concat(found, names=["head", "targets", "phase"])


def too_few(model):
    """Why there is nothing to draw, in Markdown."""
    return (f"**{model} has fewer than two training checkpoints to compare here, so the notebook ends, without a "
            "figure.**")


def of_course(curves):
    """The influence of the neuron in the middle of the ranking over training, in words.

    curves : table `emergence_curves`.
    """
    rows = curves[curves["group"] == "rare"]
    half = rows["rank"].max() / 2
    middle = rows.groupby("step").apply(lambda part: np.interp(half, part["rank"], part["influence"]))
    low = middle.idxmin()
    said = f" It falls to {middle.min():.4f} at step {low:,}." if low not in middle.index[[0, -1]] else ""
    return (f"The neuron in the middle of the ranking has an influence on rare tokens of {middle.iloc[0]:.4f} nats at "
            f"step {middle.index[0]:,}.{said} At step {middle.index[-1]:,} it has {middle.iloc[-1]:.4f}.")


def of_lead(rare):
    """How far the rare group leads the median neuron at first and at last, and when beyond chance, in Markdown.

    rare : rows of table `emergence_top_groups` on rare targets, each step's own group, indexed by step.
    """
    first, last = rare.iloc[0], rare.iloc[-1]
    beyond = [f"{step:,}" for step in rare.index[rare["p_ranked"] < 0.05]]
    return (f"At step {rare.index[0]:,} the top {first['size']} neurons have {first['ratio']:.1f} times the median "
            f"neuron's influence on rare tokens. At step {rare.index[-1]:,} they have **{last['ratio']:.1f} times** "
            f"(95 %: {between(last, 'ratio', '.1f')}). Ranked half-normal numbers have {last['ranked']:.1f} there; "
            f"as much: {level(last['p_ranked'], RANKED, 'draws')}. The lead is larger than theirs beyond chance at "
            f"{'step ' + ', '.join(beyond) if beyond else 'no step'}.")


def of_parting(parted):
    """How far rare and common rankings part, the noise taken off, in Markdown; parted: a Series by step."""
    return (f"With the noise taken off, rare and common rankings correlate by {parted.iloc[0]:.2f} at step "
            f"{parted.index[0]:,} and by **{parted.iloc[-1]:.2f}** at step {parted.index[-1]:,}. The lowest value is "
            f"{parted.min():.2f} (step {parted.idxmin():,}). (The noise is taken off by dividing by the geometric mean "
            "of the two ceilings.)")


def of_members(today, on_top):
    """Where the last checkpoint's top neurons stood at first, and since when above random groups, in Markdown.

    today : rows of table `emergence_top_groups` on rare targets, the last step's group, indexed by step.
    on_top : how many of them were on top at each step, indexed by step.
    """
    first = today.iloc[0]
    outside = (today["median_rank_high"] < today["random_median_rank_low"])[::-1].cummin()[::-1]  # from here to the end
    return (f"Of the {first['size']} neurons on top for rare tokens at step {on_top.index[-1]:,}, {on_top.iloc[0]} "
            f"were on top at step {on_top.index[0]:,}. Their median rank was {first['median_rank']:,.0f} then (random "
            f"groups: {between(first, 'random_median_rank', ',.0f')}). "
            + (f"From step {outside.idxmax():,} on they stand above random groups." if outside.any() else
               "They never stand above random groups."))


def of_gain(statistics):
    """How far Delta of the fixed head rises, and against what, in Markdown, a line a group.

    statistics : table `emergence_statistics`, indexed by group, rule, statistic and part.
    """
    said = []
    for group in GROUPS:
        first, last, gain = (statistics.loc[(group, FIXED, "delta", part)] for part in ("first", "last", "gain"))
        said.append(f"- **{group.capitalize()} targets**: Δ is {first['value']:+.2f} ({named(first)}) at step "
                    f"{first['step']:,} and {last['value']:+.2f} ({named(last)}) at step {last['step']:,}. The gain is "
                    f"**{gain['value']:+.2f}** e-folds (95 %: {between(gain, form='+.2f')}). Two laws alone differ "
                    f"with a standard deviation of {gain['null_sd']:.2f}. As much between two laws: "
                    f"{level(gain['p_laws'], heads.FLOOR, 'pairs')}.")
    return "\n".join(said)


def judged(statistics):
    """The rows by which notebook 11 judges C3: a row a part (first, last, gain); statistics: as `of_gain` takes it."""
    rows = statistics.loc[("rare", FIXED, "delta")].loc[["first", "last", "gain"]]
    return pd.DataFrame({
        "step": rows["step"].astype("string").fillna(""),
        "Δ (e-folds)": rows.apply(
            lambda row: "{:+.2f} [{:+.2f}, {:+.2f}]".format(*row[["value", "low", "high"]]), axis=1),
        "word": rows["word"],
        "as high by chance (the law itself)": rows["p_law"].map("{:.3f}".format).replace("nan", ""),
        "as much between two laws": rows["p_laws"].map("{:.3f}".format).replace("nan", ""),
        "positions": rows["positions"], "documents": rows["documents"]}).rename_axis("part")


def summary(phases, statistics, rare):
    """Paper and here, in Markdown.

    phases : table `emergence_phases` ; statistics : as `of_gain` takes it ; rare : as `of_lead` takes it.
    """
    rows = phases[(phases["group"] == "rare") & (phases["rule"] == DECIDES)]
    ends = [f"{stretches(row)} % at step {row['step']:,} (the head: *{named(row)}*)"
            for _, row in rows.iloc[[0, -1]].iterrows()]
    gain, lead = (statistics.loc[("rare", *place, "gain")] for place in ((FIXED, "delta"), ("", "ratio")))
    way = "rises" if gain["low"] > 0 else "sinks" if gain["high"] < 0 else "neither rises nor sinks beyond the interval"
    return ("The paper shows curves over checkpoints: a homogeneous state at first, three phases (1.7 % / about 10 % / "
            f"87.4 %, by a public summary) at last. Here head / law / decay for rare tokens are {ends[0]} and "
            f"{ends[1]}. The height of the first 1.7 % of the neurons above their law *{way}*: Δ changes by "
            f"{gain['value']:+.2f} e-folds (95 %: {between(gain, form='+.2f')}). As much between two laws: "
            f"{level(gain['p_laws'], heads.FLOOR, 'pairs')}. The top group's lead over the median neuron grows "
            f"{lead['value']:.1f} times (95 %: {between(lead, form='.1f')}), to {rare['ratio'].iloc[-1]:.1f}. Ranking "
            f"half-normal numbers alone gives {rare['ranked'].iloc[-1]:.1f}.")
