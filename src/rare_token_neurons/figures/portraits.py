"""Drawing the portraits of neurons (notebook 10): activity, effects by target, tokens; and a card in words."""

import unicodedata

import numpy as np
import pandas as pd

from rare_token_neurons.curve import heads
from rare_token_neurons.figures import axes
from rare_token_neurons.figures.axes import Z, title  # title for the notebook
from rare_token_neurons.figures.words import between, many, percent

COLORS = {"helps": axes.COLORS["boost"], "hurts": axes.COLORS["suppress"], "neither": axes.COLORS["all"]}
FACES = COLORS | {"neither": "white"}
CONFINED = 0.75  # least share of an effect on rare targets that is mostly a matter of rare tokens
LABELS = {"helps": "helps rare targets", "hurts": "hurts rare targets", "neither": "neither on average"}


def activation(ax, rows, kurtosis):
    """Histogram of one neuron's activity, at all positions and at rare targets, over the band of random neurons.

    rows : `portrait_histograms` of one neuron ; kurtosis : in excess of a normal one.
    """
    edges = np.append(rows["low"], rows["high"].iloc[-1])
    ax.stairs(rows["random_high"], edges, baseline=np.maximum(rows["random_low"], 1e-9), fill=True, color=axes.GREY,
              alpha=0.35, linewidth=0, label="random neurons, 5-95 %")
    ax.stairs(rows["random"], edges, color=axes.GREY, linewidth=0.8, label="random neurons, median", baseline=None)
    ax.stairs(rows["rare"], edges, color=axes.COLORS["rare"], linewidth=0.9, label="rare targets", baseline=None)
    ax.stairs(rows["all"], edges, color=axes.COLORS["all"], linewidth=1, label="all positions", baseline=None)
    ax.set(yscale="log", ylim=(2e-5, 1.2), xlim=edges[[0, -1]], xticks=[-5, 0, 5, 10, 15], yticks=[1e-4, 1e-2, 1])
    said = f"{kurtosis:,.0f}" if abs(kurtosis) > 99 else f"{round(kurtosis, 1) + 0.0:.1f}"
    ax.text(0.97, 0.95, f"kurtosis {said}", transform=ax.transAxes, ha="right", va="top", fontsize=6.5)


def by_verdict(table):
    """What the neurons do for rare targets, and the rows of those that do it."""
    done = verdicts(table, "change_rare")
    return [(verb, table[done == verb]) for verb in COLORS if (done == verb).any()]


def beside(ax, x, y, names):
    """Name points in a column at the right of the axes, by height, each with a thin line to its point."""
    line = {"arrowstyle": "-", "color": axes.DARK, "linewidth": 0.4, "shrinkB": 2, "relpos": (0, 0.5)}
    apart = min(0.065, 0.97 / max(1, len(y) - 1))
    for place, at in enumerate(np.argsort(-y)):
        ax.annotate(names[at], (x[at], y[at]), xytext=(1.06, 0.97 - apart * place), textcoords="axes fraction",
                    fontsize=6.5, va="center", annotation_clip=False, arrowprops=line)


def height(neurons, least):
    """Height of a figure in which so many neurons are named one below the other, in inches."""
    return max(least, 0.9 + 0.12 * neurons)


def effects(ax, table):
    """A dot a neuron: its effect on rare against that on common targets, the top ones named.

    table : `portraits`
    """
    chosen, others = table[table["top"]].sort_values("rank"), table[~table["top"]]
    axes.log_log(ax, "mean |loss change| on common targets (nats)", "mean |loss change| on rare targets (nats)")
    ax.plot(others["common"], others["rare"], ".", color=axes.GREY, alpha=0.5, markersize=2.5,
            label=f"other neurons (n = {len(others):,})")
    ends, share = np.array([table["common"].min(), table["common"].max()]), others["share"].median()
    ax.plot(ends, ends, color=axes.GREY, linewidth=0.8, linestyle=":", label="as much on rare as on common")
    ax.plot(ends, ends * share / (1 - share), color=axes.GREY, linewidth=0.8,
            label=f"the others' median: {100 * share:.0f} % on rare")
    for verb, some in by_verdict(chosen):
        wide, high = Z * some["common_error"], Z * some["rare_error"]
        ax.errorbar(some["common"], some["rare"], xerr=wide, yerr=high, fmt="o", color=COLORS[verb], elinewidth=0.6,
                    markerfacecolor=FACES[verb], label=f"{LABELS[verb]} ({len(some)}), 95 %")
    beside(ax, *chosen[["common", "rare"]].to_numpy().T, [f"neuron {neuron}" for neuron in chosen["neuron"]])
    share = chosen["share"].median()
    what = "are about rare tokens" if share > CONFINED else "matter for common tokens, too"
    title(ax, f"The {len(chosen)} {what}: {percent(share)} of their\neffect is on rare targets (other neurons: "
              f"{percent(others['share'].median())})")


def frequency(ax, table):
    """Correlation of each top neuron's output with log frequency, over the band of the other neurons."""
    chosen, others = table[table["top"]].sort_values("rank"), table[~table["top"]]
    low, middle, high = np.nanquantile(others["correlation"], [0.025, 0.5, 0.975])
    ax.axvspan(low, high, color=axes.GREY, alpha=0.3, linewidth=0, label=f"other neurons (n = {len(others):,}), 95 %")
    ax.axvline(middle, color=axes.GREY, linewidth=0.8)
    chosen = chosen.assign(y=-np.arange(len(chosen)))
    for verb, some in by_verdict(chosen):
        ax.hlines(some["y"], 0, some["correlation"], color=COLORS[verb], linewidth=1)
        ax.plot(some["correlation"], some["y"], "o", color=COLORS[verb], markerfacecolor=FACES[verb], markersize=4,
                label=LABELS[verb])
    ax.set(xlim=(-1, 1), xlabel="correlation of its output\nwith log frequency")
    ax.set_yticks(chosen["y"], [f"{neuron}" for neuron in chosen["neuron"]])
    ax.set_ylabel("neuron, most influential first")
    title(ax, f"{tally(table)['frequency']} of {len(chosen)} write by token frequency\n(by chance "
              f"{UNUSUAL * len(chosen):.1f})")


def ends(ax, table):
    """Mean frequency rank of the tokens that each top neuron raises and lowers most, over the others' band."""
    chosen, others = table[table["top"]].sort_values("rank"), table[~table["top"]]
    y = -np.arange(len(chosen))
    low, high = np.nanquantile(others[["promoted", "suppressed"]], [0.025, 0.975])
    ax.axvspan(low, high, color=axes.GREY, alpha=0.3, linewidth=0)
    ax.hlines(y, chosen["promoted"], chosen["suppressed"], color=axes.DARK, linewidth=0.6)
    ax.plot(chosen["promoted"], y, "^", color=axes.COLORS["all"], markersize=4.5, label="tokens raised most (50)")
    ax.plot(chosen["suppressed"], y, "v", color=axes.COLORS["all"], markersize=4.5, markerfacecolor="white",
            label="tokens lowered most")
    ax.set(xlim=(-0.03, 1.03), xlabel="mean frequency rank of the tokens\n(0 rarest, 1 most common)")
    common = (chosen["promoted"] > chosen["suppressed"]).sum()
    first, second = ("common", "rare") if 2 * common >= len(chosen) else ("rare", "common")
    title(ax, f"When on, {max(common, len(chosen) - common)} of {len(chosen)} raise {first} tokens\nand lower "
              f"{second} ones")


# ---- what the head is made of

ALWAYS_ON, LINEAR = 0.95, 0.9  # least openness and R² of a linear map that is always on
MEASURES = {"openness": "openness: gate above 0\n(share of positions)",
            "r2": "linearity: R² of activation\non linear input"}
LEAST = {"openness": ALWAYS_ON, "r2": LINEAR}


def of_head(table):
    """Which rows of `linearity` are the head's; where it has none, the rare group's: bool, by row, and its name."""
    if table["in_head"].any():
        return table["in_head"], "head"
    return table["rank"] <= table["size"], "rare group (no head is raised)"


def linear(ax, table, measure):
    """A dot a neuron: openness or R² by influence rank, the head in colour.

    table : `linearity` at the positions of one group ; measure : a key of MEASURES.
    """
    inside, name = of_head(table)
    others = table[~inside]
    ax.plot(others["rank"], others[measure], ".", color=axes.GREY, alpha=0.35, markersize=2,
            label=f"other neurons (n = {len(others):,})")
    color = axes.COLORS["head" if name == "head" else "rare"]
    ax.plot(table.loc[inside, "rank"], table.loc[inside, measure], "o", color=color, markersize=3.5,
            label=f"{name.split(' (')[0]} (n = {inside.sum()})")
    middle = others.groupby(np.log2(others["rank"]).astype(int))[["rank", measure]].median()
    ax.plot(middle["rank"], middle[measure], color=axes.COLORS["all"], linewidth=0.9,
            label="median of the others, by octave of rank")
    ax.axhline(LEAST[measure], color=axes.COLORS["all"], linewidth=0.6, linestyle=":",
               label=f"an always open gate: {ALWAYS_ON:g}; a linear map: R² {LINEAR:g}")
    ax.set(xscale="log", ylim=(-0.03, 1.03))


def medians(table, measure):
    """Median of the head and of the others, in two lines for a title; takes what `linear` takes."""
    inside, name = of_head(table)
    say = {"openness": lambda value: f"open at {percent(value)}", "r2": "R² {:.2f}".format}[measure]
    head, others = (say(table.loc[some, measure].median()) for some in (inside, ~inside))
    return f"{name.split(' (')[0].capitalize()} {head},\nothers {others}"


def linear_over_steps(ax, training, measure):
    """Medians over training, at rare positions: each checkpoint's top 1.7 %, the last head followed back, the others.

    training : `linearity_over_training`.
    """
    rows = training[training["group"] == "rare"]
    last = rows[rows["step"] == rows["step"].max()]
    inside, name = of_head(last)
    followed = rows["neuron"].isin(last.loc[inside, "neuron"])
    size = heads.head_size(last["neuron"].nunique())
    curves = [("others, median", rows[~followed & (rows["rank"] > size)], axes.GREY, "-"),
              (f"top 1.7 % of the checkpoint (n = {size})", rows[rows["rank"] <= size], axes.COLORS["rare"], "-"),
              (f"{name.split(' (')[0]} of the last one (n = {inside.sum()})", rows[followed],
               axes.COLORS["head" if name == "head" else "all"], "--")]
    for label, some, color, style in curves:
        found = some.groupby("step")[measure].quantile([0.25, 0.5, 0.75]).unstack()
        axes.over_steps(ax, found.index.to_numpy(dtype=np.int64), found[0.5], low=found[0.25], high=found[0.75],
                        color=color, linestyle=style, label=label)
    ax.set_ylim(-0.03, 1.03)


def always_on(table):
    """Which neurons are linear maps that are always on, by `linearity`: bool, by row."""
    return (table["openness"] >= ALWAYS_ON) & (table["r2"] >= LINEAR)


def answer(table):
    """Whether most neurons of the head are linear maps that are always on, "yes" or "no", and how many: two texts.

    table : `linearity` of one checkpoint at rare targets.
    """
    inside, name = of_head(table)
    count = always_on(table[inside]).sum()
    return ("yes" if 2 * count > inside.sum() else "no",
            f"{count} of {many(inside.sum(), 'neuron')} of the {name.split(' (')[0]}")


def linear_title(table):
    """How many of the head are linear maps that are always on; table: `linearity` of one checkpoint."""
    rare = table[table["group"] == "rare"]
    inside, name = of_head(rare)
    return (f"Exploratory: linear maps that are always on, {always_on(rare[inside]).sum()} of the "
            f"{name.split(' (')[0]}'s {many(inside.sum(), 'neuron')}")


def traits(table):
    """Openness, variation and linearity of the head's neurons, and of the others: a row (targets, trait).

    table : `linearity` of one checkpoint.
    """
    rows = {}
    for group, part in table.groupby("group", sort=False):
        inside, name = of_head(part)
        for column, what in (("openness", "openness (share of positions)"),
                             ("cv", "variation of the gate over its mean"), ("r2", "R² on the linear input")):
            low, middle, high = part.loc[inside, column].quantile([0.25, 0.5, 0.75])
            rows[group, what] = {f"{name.split(' (')[0]}, median": middle, "middle half from": low, "to": high,
                                 "other neurons, median": part.loc[~inside, column].median()}
    return pd.DataFrame.from_dict(rows, orient="index").round(2).rename_axis(["targets", "trait"])


def made_of(table):
    """Whether the head's neurons work as linear maps that are always on, and the directions they read, in Markdown.

    table : `linearity` of one checkpoint.
    """
    rare, common = (table[table["group"] == group] for group in ("rare", "common"))
    inside, name = of_head(rare)
    head, others, first = rare[inside], rare[~inside], rare.iloc[0]
    count, again = always_on(head).sum(), always_on(common[common["neuron"].isin(head["neuron"])]).sum()
    wide = ("more than" if first["direction"] > first["random_high"] else
            "less than" if first["direction"] < first["random_low"] else "as in")
    return (f"Of the {len(head)} neurons of the {name}, **{count}** are linear maps that are always on at rare "
            f"targets, and {again} at common ones. Of the other neurons {percent(always_on(others).mean())} are. So "
            f"**{'most' if 2 * count > len(head) else 'most do not'} work as linear maps that are always on**. One "
            f"direction holds {percent(first['direction'])} of the sum of squares of their "
            f"{'gate' if first['gated'] else 'input'} weights. That is {wide} random groups of {first['size']}, which "
            f"have {percent(first['random_direction'])} (95 % from {percent(first['random_low'])} to "
            f"{percent(first['random_high'])}).")


# ---- a neuron in words

SHOWN = 8  # tokens a list
UNUSUAL = 0.05  # share of the other neurons that write by frequency as much as one that counts as doing so
SIGNS = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}


def visible(text, spaces=True):
    """Text with a sign for each character that leaves no ink.

    spaces : False leaves single spaces between words as they are.
    """
    signs = [SIGNS.get(x, x if x.isprintable() and not unicodedata.combining(x) else f"[U+{ord(x):04X}]") for x in text]
    if not spaces:
        signs = [" " if x == " " and text[at + 1 : at + 2] not in ("", " ") and text[at - 1 : at] != " " else sign
                 for at, (x, sign) in enumerate(zip(text, signs))]
    return "".join(signs)


def code(text, spaces=True):
    """Text as an HTML code element that Markdown leaves alone; "" for no text."""
    safe = "".join(x if x.isalnum() or x == " " or ord(x) > 127 else f"&#{ord(x)};" for x in visible(text, spaces))
    return f"<code>{safe}</code>" if safe else ""


def words(tokens):
    """A list of tokens, each shown once."""
    return " ".join(dict.fromkeys(map(code, tokens))) or "none"


def verdict(change, error):
    """What a neuron does for a prediction: "helps" (the loss rises without it), "hurts" (it falls) or "neither"."""
    return "helps" if change > Z * error else "hurts" if change < -Z * error else "neither"


def verdicts(table, name):
    """`verdict` of a column with its error, row by row: an array."""
    return np.array([verdict(*pair) for pair in zip(table[name], table[f"{name}_error"])])


def headline(row):
    """What a neuron does for rare and for common targets, in words."""
    done = {group: verdict(row[f"change_{group}"], row[f"change_{group}_error"]) for group in ("rare", "common")}
    if done["rare"] == done["common"]:
        return {"neither": "no clear mean effect"}.get(done["rare"], f"{done['rare']} rare and common targets")
    said = [f"{verb} {group} targets" for group, verb in done.items() if verb != "neither"]
    unclear = [f"no clear mean effect on {group} ones" for group, verb in done.items() if verb == "neither"]
    return ", ".join(said + unclear)


def card(row, tokens, targets, contexts):
    """A neuron's portrait in Markdown.

    Parameters
    ----------
    row : its row of `portraits` ; tokens, targets, contexts : its rows of `portrait_tokens`, `portrait_targets`,
    `portrait_contexts`.
    """
    lists = {side: words(some.sort_values("place")["token"].head(SHOWN)) for side, some in tokens.groupby("side")}
    first = {side: some.sort_values("place").head(SHOWN) for side, some in targets.groupby("side")}
    moved = {side: " ".join(f"{code(one.token)} {one.change:+.2f}" for one in some.itertuples())
             for side, some in first.items()}
    signed = {group: f"{row[f'change_{group}']:+.3f} ± {row[f'change_{group}_error']:.3f}"
              for group in ("rare", "common")}
    often = {name: f"{percent(row[name])} (all positions {percent(row[f'{name}_base'])})"
             for name in ("word_read", "word_target", "rare_target")}
    lines = [f"### {row['rank']:.0f} · Neuron {row['neuron']:.0f}: {headline(row)}", "", "| | |", "|:--|:--|",
             f"| loss without it | rare targets {signed['rare']} nats, common targets {signed['common']} |",
             f"| size of its effect | {row['rare']:.3f} nats on rare, {row['common']:.3f} on common targets: "
             f"{percent(row['share'])} of it on rare ones |",
             f"| mean activity | {row['at_rare']:+.2f} SD at rare targets, {row['at_common']:+.2f} SD at common ones |",
             f"| where it is most on | reads a word at {often['word_read']}, predicts one at {often['word_target']}, "
             f"a rare one at {often['rare_target']} |",
             f"| when on, raises | {lists.get('promoted', 'none')} |",
             f"| when on, lowers | {lists.get('suppressed', 'none')} |",
             f"| loss rises most without it | {moved.get('rises', 'none')} |",
             f"| loss falls most without it | {moved.get('falls', 'none')} |"]
    for one in contexts.sort_values("place").itertuples():
        text = (f"{code(one.before, spaces=False)}<b>{code(one.token)}</b> → {code(one.target)}"
                f"{code(one.after, spaces=False)}")
        lines.append(f"| on by {one.active:.1f} SD | {text} |")
    return "\n".join(lines)


def gallery(table, tokens, targets, contexts, places=slice(None)):
    """The cards of the top neurons, the most influential first; places: which of them."""
    chosen = table[table["top"]].sort_values("rank")[places]
    parts = [[part[part["neuron"] == neuron] for part in (tokens, targets, contexts)] for neuron in chosen["neuron"]]
    return "\n\n".join(card(row, *part) for (_, row), part in zip(chosen.iterrows(), parts))


def tally(table):
    """How many of the top neurons do what.

    Parameters
    ----------
    table : `portraits`

    Returns
    -------
    dict of counts: neurons (portrayed), helps and hurts with _rare and _common, against and along (at rare targets the
    neuron lowers or raises the logits along the unigram direction), frequency (its output follows log frequency, either
    way, more than in 95 % of the other neurons), rare_share (a larger share on rare targets than the median neuron),
    dense and sparse (kurtosis below or above that of 97.5 % of the others), word_read, word_target (more than half of
    the strongest positions)
    """
    chosen, others = table[table["top"]], table[~table["top"]]
    found = {"neurons": len(chosen)}
    for group in ("rare", "common"):
        done = verdicts(chosen, f"change_{group}")
        found |= {f"{verb}_{group}": int((done == verb).sum()) for verb in ("helps", "hurts")}
    shifts = verdicts(chosen, "unigram_rare")
    low, high = np.nanquantile(others["kurtosis"], [0.025, 0.975])
    usual = np.nanquantile(others["correlation"].abs(), 1 - UNUSUAL)
    return found | {"against": int((shifts == "helps").sum()), "along": int((shifts == "hurts").sum()),
                    "frequency": int((chosen["correlation"].abs() > usual).sum()),
                    "rare_share": int((chosen["share"] > others["share"].median()).sum()),
                    "dense": int((chosen["kurtosis"] < low).sum()), "sparse": int((chosen["kurtosis"] > high).sum()),
                    **{name: int((chosen[name] > 0.5).sum()) for name in ("word_read", "word_target")}}


def in_numbers(table):
    """The top neurons' effects and traits: a row a neuron, the most influential first; table: `portraits`."""
    ten = table[table["top"]].sort_values("rank")
    columns = {"rare": "effect on rare targets (nats)", "common": "on common ones (nats)",
               "share": "part on rare ones (%)",
               "change_rare": "mean change, rare (nats)", "change_common": "mean change, common (nats)",
               "kurtosis": "kurtosis", "correlation": "correlation with log frequency"}
    made = ten.assign(share=100 * ten["share"]).set_index("neuron")[list(columns)].astype(float)
    return (made.round(dict.fromkeys(columns, 3) | {"share": 0, "kurtosis": 1, "correlation": 2}) + 0.0).astype(
        {"share": int}).rename(columns=columns)


def of_activity(table):
    """How many of the top neurons are dense and how many sparse, as a title; table: `portraits`."""
    count = tally(table)
    return (f"{count['dense']} of the {count['neurons']} are denser than nearly all other neurons, {count['sparse']} "
            f"sparser (n = {table['positions'].iloc[0]:,} positions)")


def beside_others(table):
    """How large the top neurons' effects are beside those of the others, in words; table: `portraits`."""
    ten, others = table[table["top"]], table[~table["top"]]
    return (f"The median of the other {len(others):,} neurons changes the loss by {others['rare'].median():.4f} nats "
            f"on rare and by {others['common'].median():.4f} on common targets, {percent(others['share'].median())} of "
            f"it on rare ones. The {len(ten)} change it by {ten['rare'].min():.3f} to {ten['rare'].max():.3f} and by "
            f"{ten['common'].min():.3f} to {ten['common'].max():.3f}. A larger share on rare targets than the median "
            f"neuron's: {tally(table)['rare_share']} of the {len(ten)}.")


def rivals(table):
    """How the top neurons compare with those that matter most for common targets, in words; table: `portraits`."""
    ten = table[table["top"]]
    rival = table[table["rank_common"] <= len(ten)]
    chosen = "for rare targets" if ten["rank"].max() == len(ten) else "here"
    other = table[table["share"] < 1 / 3].sort_values("rank")
    said = (f"The opposite, common targets moved more than twice as far as rare ones, is done by "
            f"{many(len(other), 'neuron')} of the layer, the first of rank {other['rank'].iloc[0]:,}."
            if len(other) else
            "No neuron of the layer moves common targets more than twice as far as rare ones.")
    return (f"The {len(rival)} most influential neurons for common targets put {percent(rival['share'].median())} "
            f"(median) of their effect on rare ones. The {len(ten)} {chosen} put {percent(ten['share'].median())} "
            f"there. The two lists share {many(rival['top'].sum(), 'neuron')}. {said}")


def writes(model, table):
    """Which tokens the top neurons raise, when on and at rare targets, in Markdown; table: `portraits` of the model."""
    ten = table[table["top"]]
    common, towards = (ten["promoted"] > ten["suppressed"]).sum(), (ten["at_rare"] * ten["correlation"] < 0).sum()
    mostly = "common" if 2 * common > len(ten) else "rare" if 2 * common < len(ten) else "neither rare nor common"
    return (f"In {model} the top neurons raise mostly **{mostly} tokens** when they are on: {common} of the {len(ten)} "
            f"raise tokens that are more common than those they lower, {len(ten) - common} rarer ones. At rare targets "
            f"it matters on which side of its mean a neuron is. There **{towards} of the {len(ten)}** push towards "
            f"rare tokens, {len(ten) - towards} towards common ones.")


def deeds(table):
    """What the top neurons do, counted, in Markdown; table: `portraits`."""
    count, base = tally(table), table.iloc[0]
    return (f"Of the {count['neurons']} neurons, rare targets are **helped by {count['helps_rare']}** (the loss rises "
            f"without them) and **hurt by {count['hurts_rare']}**; common ones are helped by {count['helps_common']} "
            f"and hurt by {count['hurts_common']}. For the rest the 95 % interval holds zero. **Against the unigram "
            f"direction at rare targets: {count['against']}** (without them the logits move towards common tokens); "
            f"along it: {count['along']}. Writing along or against frequency more than {percent(1 - UNUSUAL)} of the "
            f"others: {count['frequency']}. Denser than 97.5 % of the others: {count['dense']}; sparser: "
            f"{count['sparse']}. Where they are most on (1 % of the positions), mostly reading a word token: "
            f"{count['word_read']} ({percent(base['word_read_base'])} of all positions do); mostly predicting one: "
            f"{count['word_target']} ({percent(base['word_target_base'])}).")


def summary(table):
    """Paper and here, in words; table: `portraits`."""
    ten, others = table[table["top"]], table[~table["top"]]
    share, typical = ten["share"].median(), others["share"].median()
    times = {group: ten[group].median() / others[group].median() for group in ("rare", "common")}
    return ("The paper describes its neurons as a group that is specialised in rare tokens. Taken one by one, the "
            f"{len(ten)} here put {percent(share)} (median) of their effect on rare targets, the other neurons of the "
            f"layer {percent(typical)}. They change the loss of rare targets {times['rare']:.0f} times as much as the "
            f"median of the others, and that of common targets {times['common']:.0f} times. Their effects are "
            f"{'mostly a matter of rare tokens' if share > CONFINED else 'not confined to rare tokens'}.")
