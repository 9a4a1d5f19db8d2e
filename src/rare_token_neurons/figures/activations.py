"""Drawing groups of neurons beside their controls and along the activation scale (notebooks 05, 06), and words on them.

Where matched groups match too poorly to be a control, they are neither drawn nor spoken of: `usable` takes them out.
"""

from textwrap import fill

import numpy as np
import pandas as pd

from rare_token_neurons.figures import axes
from rare_token_neurons.figures.axes import COLORS, clustered, of_groups, of_pairs, reach, title
from rare_token_neurons.figures.words import (against, among, beside, between, by_control, chance, percent, sentence,
                                              texts, when)
from rare_token_neurons.statistics import controls, geometry  # geometry for the notebooks too
from rare_token_neurons.statistics.claims import poor_match

PLACES = {"rare": "Rare positions", "all": "All positions"}
FEATURES = {"scale": "activation scale", "norm": "output-weight norm"}


# ---- matched groups, where they can be used


def account(table):
    """What is behind the rows of the rare group, by the positions it is measured at: one row each."""
    return table[table["group"] == "rare"].drop_duplicates("where").set_index("where")


def matches(row):
    """Whether a row's group has matched groups that are a control for it.

    row : with imbalance_scale and imbalance_norm, or the norm alone: missing where there are no matched groups.
    """
    return bool(row.filter(like="imbalance_").notna().any()) and not poor_match(dict(row))


def usable(rows, behind=None):
    """Rows in which whatever is told of matched groups is missing where these cannot be used.

    rows : of a table with columns matched, p_matched, ... ; behind : `account` of another table, for rows that do not
    say themselves what matching missed.
    """
    told = rows if behind is None else behind.loc[rows["where"]]
    poor = [not matches(row) for _, row in told.filter(like="imbalance_").iterrows()]
    return rows.assign(**{name: rows[name].mask(poor) for name in rows if "matched" in name})


def unmatched(behind):
    """The places at which matched groups cannot be used. behind : from `account`."""
    return [place for place, row in behind.iterrows() if not matches(row)]


def drop_empty(ax):
    """Take what has nothing to show, such as matched groups that cannot be used, out of axes and legend."""
    for drawn in (*ax.lines, *ax.collections):
        paths = drawn.get_paths() if drawn in ax.collections else [drawn.get_path()]
        if not any(np.isfinite(path.vertices[:, 1]).any() for path in paths):
            drawn.remove()


def matching(behind):
    """Whether matched groups can be used, and what follows where they cannot, in Markdown.

    behind : from `account`, or other rows of the rare group by a place.
    """
    said, poor = [], unmatched(behind)
    for place, row in behind.iterrows():
        missed = row.filter(like="imbalance_").astype(float).abs()
        where = PLACES.get(place, str(place)).lower()
        said.append(f"{missed.max():.2f} SD in {FEATURES[missed.idxmax().removeprefix('imbalance_')]} ({where})"
                    if missed.notna().any() else f"there are too few neurons to match ({where})")
    found = f"Matched groups miss the rare group by {', '.join(said)}; the limit is {controls.POOR_MATCH} SD. "
    if not poor:
        return found + "They are a good match."
    names = " and ".join(PLACES.get(place, str(place)).lower() for place in poor)
    where = "" if len(poor) == len(behind) else f"at {names} "
    told = f"{where}they cannot be used".capitalize()
    return (f"{found}**{told}**, and are left out here. A claim then rests on random groups alone: it counts as partly "
            "reproduced at most.")


def listed(rows, **named):
    """Groups beside their controls as a reader sees them: words as names of columns, three digits.

    rows : with group, size, value, low, high, random, p_random, ..., after `usable` ; named : columns before these.
    """
    shown = pd.DataFrame({**named, "group": rows["group"].replace(axes.NAMES), "neurons": rows["size"],
                          "value": texts(rows["value"], ".3f")})
    shown["95 % over documents"] = [between(row, form=".3f") for _, row in rows.iterrows()]
    for kind in controls.KINDS:
        if rows[kind].notna().any():
            shown[f"{kind} groups"], shown[f"p ({kind})"] = texts(rows[kind], ".3f"), texts(rows[f"p_{kind}"], ".3f")
    return shown.set_index(shown.columns[0])


# ---- notebook 05

STATISTICS = ("effective dimension", "participation ratio")


def dimension(ax, table, where, statistic):
    """Groups over their controls at some positions, the finding on the rare group as title.

    table : `activation_dimension` of one checkpoint, after `usable`.
    """
    rows = table[(table["where"] == where) & (table["statistic"] == statistic)]
    of_groups(ax, rows)
    drop_empty(ax)
    title(ax, f"{PLACES[where]}:\n{against(rows.iloc[0], 'dimension')}")
    ax.set_ylabel(f"{statistic} / group size")
    ax.label_outer()


def variance(ax, rows, where):
    """The curve behind the effective dimension, the share of its first component as title.

    rows : `activation_variance` of the rare group at some positions, after `usable`.
    """
    one = rows[rows["components"] == 1].iloc[0]
    of_curve(ax, rows, label=f"rare group (n = {one['size']} neurons)")
    ax.axhline(geometry.SHARE, color=COLORS["all"], linewidth=0.6, linestyle=":", label="95 % of the variance")
    title(ax, f"{PLACES[where]}: one component holds {percent(one['value'])}\n({among(one, percent)})")
    ax.set(xlabel="principal components / group size", ylabel="cumulative share of the variance")
    ax.label_outer()


def behind_it(behind):
    """Positions, documents and neurons behind the rows of the rare group, in words. behind : from `account`."""
    rare, every = behind.loc["rare"], behind.loc["all"]
    return (f"The rare group has {rare['size']} neurons. They were seen at {rare['tokens']:,} rare positions (from "
            f"{rare['documents']} documents) and at {every['tokens']:,} of all positions (from {every['documents']}). "
            f"Neurons that never vary have no correlation and are in no group: {rare['constant']:,} at rare "
            f"positions, {every['constant']:,} at all.")


def of_curve(ax, rows, *, label):
    """Cumulative variance over components, with the bands of its controls: `activation_variance` after `usable`."""
    axes.of_curve(ax, rows["components"] / rows["size"], rows, color=COLORS["rare"], label=label)
    drop_empty(ax)


def over_steps(ax, rows):
    """The rare group over training with the bands of its controls: `activations_over_training` after `usable`."""
    axes.group_over_steps(ax, rows)
    drop_empty(ax)
    few = rows[(rows["group"] == "rare") & rows["matched"].notna()]  # where matched groups can be used
    if 0 < len(few) < (rows["group"] == "rare").sum():               # no line joins these
        for line in [line for line in ax.lines if not np.isfinite(line.get_ydata()).all()]:
            line.remove()
        ax.vlines(few["step"], few["matched_low"], few["matched_high"], color=axes.DARK, linewidth=1.6,
                  label=axes.LABELS["matched"])


def beyond(rows, kind, side):
    """The steps at which the group chosen there lies beyond the whole band of a control, and how many can be judged.

    rows : one statistic of `activations_over_training`, after `usable` ; side : "below" or "above".
    """
    own = rows[(rows["group"] == "rare") & rows[kind].notna()]
    out = own["value"] < own[f"{kind}_low"] if side == "below" else own["value"] > own[f"{kind}_high"]
    return sorted(own.loc[out, "step"]), len(own)


def course_of(ax, rows, side, what, width):
    """A curve over training, with the steps at which the group lies beyond random groups as title.

    rows : one statistic of `activations_over_training`, after `usable` ; side : "below" or "above" ; what : the
    statistic's name in the title ; width : letters in a line of it.
    """
    over_steps(ax, rows)
    steps = sorted(rows.loc[rows["group"] == "rare", "step"])
    there = beyond(rows, "random", side)[0]
    order = "Lower" if side == "below" else "Higher"
    title(ax, fill(f"{order} {what} than random groups {when(steps, [step in there for step in steps])}", width))


def course(training, side, statistic):
    """The same in a sentence, with the first such step; "" without checkpoints.

    training : `activations_over_training` at rare positions, after `usable`.
    """
    if not len(training):
        return ""
    found = {kind: beyond(training[training["statistic"] == statistic], kind, side) for kind in controls.KINDS}
    said = [f"{side} {kind} groups at {len(there)} of {total} checkpoints"
            + (f" (first at step {there[0]:,})" if there else "") for kind, (there, total) in found.items() if total]
    return f" Over training the rare group lies {' and '.join(said)}."


def dimensions(table, training):
    """Paper and here on the dimensions that a group spans, in Markdown.

    table : `activation_dimension` of one checkpoint, and training : `activations_over_training` at rare positions or
    without rows, both after `usable`.
    """
    of = {(row["where"], row["statistic"]): row for _, row in table[table["group"] == "rare"].iterrows()}
    rare, every = (of[where, STATISTICS[0]] for where in PLACES)

    def less(row):
        return by_control(row, lambda kind: f"{row[f'less_{kind}']:+.3f} against {kind} groups "
                                            f"({between(row, f'less_{kind}', '+.3f')}; {chance(row, kind)})")

    return ("The paper (by a public summary) has 0.49 for rare token neurons and 0.56 for random ones. Here, at rare "
            f"positions, the rare group has **{rare['value']:.3f}** and random groups have {rare['random']:.3f}. (In "
            "whole components, as the paper counts, the group has "
            f"{of['rare', 'whole components']['value']:.3f}.)\n\n- Difference at rare positions: {less(rare)}.\n- "
            f"Difference at all positions: {less(every)}.\n\n{course(training, 'below', STATISTICS[0])} The level "
            "depends on the size of the group and on the number of positions. Only the difference is a finding.")


# ---- along the activation scale (exploratory)

LOUDEST = 3  # windows beside which the rare group is told


def windows(ax, rows):
    """A statistic along the activation scale: windows of neurons outside rare group and head, the group beside them.

    rows : one statistic and place of `activation_windows`.
    """
    group, others = rows[rows["window"] == 0].iloc[0], rows[rows["window"] > 0]
    ax.plot(np.exp(others["scale"]), others["value"], "o", color=COLORS["random"], alpha=0.7,
            label=f"windows of {group['size']} neurons outside rare group and head (n = {len(others)})")
    ax.plot(np.exp(group["scale"]), group["value"], "D", color=COLORS["rare"], markersize=5,
            label=f"rare group (n = {group['size']} neurons)")
    name = SYMBOLS.get(group["statistic"], f"{group['statistic']} / group size")
    ax.set(xscale="log", xlabel="activation scale (mean SD, model's units)", ylabel=name)
    ax.label_outer()
    axes.plain_ticks(ax.xaxis)
    near = others.nsmallest(LOUDEST, "window")["value"]
    side = "below" if group["value"] < near.min() else "above" if group["value"] > near.max() else "like"
    title(ax, f"{PLACES[group['where']]}: the rare group is\n{side} the {LOUDEST} loudest windows")


def along_the_scale(rows):
    """The rare group beside windows of others along the activation scale, in Markdown; takes what `windows` takes."""
    group, others = rows[rows["window"] == 0].iloc[0], rows[rows["window"] > 0].sort_values("scale", ascending=False)
    times, near = np.exp(group["scale"] - others["scale"].iloc[0]), others["value"].head(LOUDEST)
    louder = (f"{times:.1f} times that of the loudest window of other neurons" if times > 1 else
              "within that of the windows of other neurons")
    rank = others["scale"].rank().corr(others["value"].rank())
    name = SYMBOLS.get(rows["statistic"].iloc[0], f"{rows['statistic'].iloc[0]} over group size")
    return (f"*Exploratory.* The activation scale of the rare group is {louder}. Its {name} is {group['value']:.3f}. "
            f"The {LOUDEST} loudest windows have {near.min():.3f} to {near.max():.3f}. Along all {len(others)} windows "
            f"{name} and scale have a rank correlation of {rank:+.2f}. What all loud neurons share is no trait of the "
            "rare group.")


# ---- notebook 06: pairs of neurons

SYMBOLS = {"mean": "mean r", "mean absolute": "mean |r|"}
RELATIONS = {"within": "Inside the group", "between": "With other neurons"}
GROUPS = {"rare": "Rare group", "random": "A typical random group", "matched": "A typical matched group"}
MEASURES = {"correlation": "correlation r (centred) of a pair", "cosine": "cosine (uncentred) of a pair"}


def statistics_of(table):
    """The statistics of pairs that have a meaning: of a gated MLP the mean absolute value alone, what decides first.

    table : `coactivation`.
    """
    return ("mean absolute",) if table["gated"].any() else ("mean", "mean absolute")


def pick(table, where, relation, measure="correlation", statistic="mean"):
    """The rare group's row of `coactivation`."""
    places = ["where", "group", "relation", "measure", "statistic"]
    return table[(table[places] == [where, "rare", relation, measure, statistic]).all(axis=1)].iloc[0]


def listed_pairs(rows):
    """The rows of `coactivation` as a reader sees them, and the rare group's share of negative pairs with them."""
    names = {"mean": "mean", "mean absolute": "mean size", "negative share": "share below 0"}
    what = rows["statistic"].map(names) + " of " + rows["measure"].replace({"correlation": "r"})
    return listed(rows, **{"pairs": rows["relation"].map(RELATIONS), "statistic": what})


def spread(ax, bins, row):
    """How the pairs of the rare group are spread, over random groups; what their mean says is the title.

    bins : `coactivation_distribution` of one checkpoint ; row : from `pick`, after `usable`.
    """
    bins = bins[(bins["where"] == row["where"]) & (bins["measure"] == row["measure"])]
    bins = bins[(bins["set"] != "matched") | matches(row)]
    own = bins[bins["relation"] == row["relation"]].sort_values("left")
    of_pairs(ax, dict(list(own.groupby("set"))))
    ax.set(xlim=reach(bins), xlabel=MEASURES[row["measure"]],
           ylabel=f"share of the pairs (n = {own.loc[own['set'] == 'rare', 'pairs'].iloc[0]:,})")
    ax.label_outer()
    sign = {"mean": "mean {}", "mean absolute": "mean |{}|"}[row["statistic"]]
    name = sign.format("r" if row["measure"] == "correlation" else "cosine")
    title(ax, fill(f"{RELATIONS[row['relation']]}: {against(row, name)}", 40))


def panels_of(table):
    """What is drawn over training: pairs of relation and statistic; in a gated model the one that has a meaning."""
    within = [("within", statistic) for statistic in statistics_of(table)]
    return within if table["gated"].any() else [*within, ("between", "mean")]


def pairs_over_steps(ax, rows, relation, statistic):
    """Pairs over training, on the paper's side: `activations_over_training` of one statistic, after `usable`."""
    side, where = {"within": ("above", "inside the group"), "between": ("below", "with others")}[relation]
    course_of(ax, rows, side, f"{SYMBOLS[statistic]} {where}", 25)
    ax.set_ylabel(f"{SYMBOLS[statistic]} of the pairs")


def heat_maps(figure, panels, blocks, gated):
    """The clustered correlations of groups beside each other, of a gated model without their signs.

    panels : (2, groups) axes, trees above maps ; blocks : (m, m) correlations by the group's name.
    """
    for (above, ax), (name, block) in zip(panels.T, blocks.items()):
        signed = "" if gated else f"mean r {geometry.mean_pair(block):+.3g}, "
        finding = f"{signed}mean |r| {geometry.mean_abs_pair(block):.3g}"
        clustered(above, ax, abs(block) if gated else block, f"{GROUPS[name]}:\n{finding}")
        above.set_ylabel("1 - |r|" if gated else "1 - r")
    bar = figure.colorbar(panels[1, 0].collections[0], ax=panels, shrink=0.6, extend="max" if gated else "both",
                          label="|r| of a pair" if gated else "correlation r of a pair")
    bar.ax.set_ylim(0 if gated else None, None)


def flips(block):
    """What flipping neurons of a gated MLP does to correlations: a row a choice of signs.

    With its row of the up projection and its column of the output weights flipped a gated neuron's activation changes
    its sign, and the model computes the same.

    block : (m, m) correlations of a group.
    """
    block = np.asarray(block, dtype=float)
    apart = np.abs(block - np.diag(np.diag(block)))
    i, j = np.unravel_index(apart.argmax(), apart.shape)
    every = np.ones(len(block))
    one, second = np.where(np.arange(len(block)) == i, -1.0, every), np.where(np.arange(len(block)) % 2, -1.0, every)
    alike = np.where(np.linalg.eigh(block)[1][:, -1] < 0, -1.0, 1.0)
    choices = {"as they are": every, "one of the most correlated pair flipped": one, "every second one flipped": second,
               "flipped to be alike": alike}
    turned = {name: block * np.outer(signs, signs) for name, signs in choices.items()}
    return pd.DataFrame([[one[i, j], abs(one[i, j]), geometry.mean_pair(one), geometry.mean_abs_pair(one)]
                         for one in turned.values()],
                        index=pd.Index(turned, name="signs of the neurons"),
                        columns=["r of the pair", "|r| of the pair", "mean r", "mean |r|"])


def signs(ax, rows):
    """Groups of one sign, or of both signs with each other, over their controls.

    rows : one statistic and relation of `coactivation`, after `usable`: its groups "boost 10", "boost and suppress 10"
    ...
    """
    kinds = ["all" if " and " in name else name.split()[0] for name in rows["group"]]
    of_groups(ax, rows.assign(group=kinds))
    ax.set_xticks(range(len(rows)), [f"top {size}\n{name.rsplit(' ', 1)[0]}".replace(" and ", " with\n")
                                     for name, size in zip(rows["group"], rows["size"])])
    drop_empty(ax)
    ax.axhline(0, color=COLORS["all"], linewidth=0.6, linestyle=":")
    above = rows.loc[rows["value"] > rows["random_high"], "group"].str.replace(r"(.*) (\d+)", r"top \2 \1", regex=True)
    finding = f"Above random groups: {', '.join(above) or 'none'}"
    one = rows["relation"].iloc[0] == "between" and len(rows) == 1
    title(ax, fill(sentence(against(rows.iloc[0], "mean r")) if one else finding, 24 if one else 50))
    ax.set_ylabel("mean r of the pairs")


def of_signs(table):
    """Co-activation of boost and suppress neurons, in Markdown, a line a group.

    table : `coactivation` of one checkpoint, after `usable`.
    """
    rows = table[table["group"].str.contains("boost|suppress") & (table["where"] == "rare")]
    rows = rows[(rows["measure"] == "correlation") & (rows["statistic"] == "mean")]
    return "\n".join(f"- {row['group'].rsplit(' ', 1)[0]}, top {row['size']}, {row['relation']}: mean r {beside(row)}"
                     for _, row in rows.iterrows())


def co_activate(table):
    """Paper and here on co-activation, in Markdown. table : `coactivation` of one checkpoint, after `usable`."""
    paper = ("The paper finds positive cosine similarity and correlation inside the rare group, random neurons near 0, "
             "and negative values towards other neurons. ")
    if table["gated"].any():
        within = {where: pick(table, where, "within", statistic="mean absolute") for where in PLACES}
        return (paper + "In this model, whose MLPs are gated, signs mean nothing. So here it is the mean absolute "
                f"correlation.\n\n- **Within** the group, at rare positions: {beside(within['rare'])}.\n- Within, at "
                f"all positions: {beside(within['all'])}.\n- **Between** the group and the others: cannot be tested. "
                "Without a sign nothing can be avoided. Their mean absolute correlation is "
                f"{beside(pick(table, 'rare', 'between', statistic='mean absolute'))}.")
    of = {(where, relation): beside(pick(table, where, relation)) for where in PLACES for relation in RELATIONS}
    return (paper + "Here it is the mean correlation.\n\n- **Within** the group, at rare positions: "
            f"{of['rare', 'within']}.\n- **Between** it and the others, at rare positions: {of['rare', 'between']}.\n- "
            f"At all positions: {of['all', 'within']} within, {of['all', 'between']} between.")


def beyond_the_mean(table):
    """What the mean does not show, and what the uncentred measure adds, in Markdown; takes what `co_activate` takes."""
    statistic = statistics_of(table)[0]
    cosine = {relation: pick(table, "rare", relation, "cosine", statistic) for relation in ("within", "between")}
    offset = "What it has beyond the correlation is constant offset, not firing together."
    if statistic == "mean absolute":
        return (f"- Mean size of the uncentred cosine within: {beside(cosine['within'])}.\n- Between: "
                f"{beside(cosine['between'])}. {offset}")
    absolute, negative = (pick(table, "rare", "within", statistic=name) for name in ("mean absolute", "negative share"))
    matched = f", {percent(negative['matched'])} in matched ones" if np.isfinite(negative["matched"]) else ""
    return (f"- Mean absolute correlation within: {beside(absolute)}.\n- Negative pairs within: "
            f"{percent(negative['value'])} ({percent(negative['random'])} in random groups{matched}).\n- Uncentred "
            f"cosine within: {beside(cosine['within'])}; between: {beside(cosine['between'])}. {offset}")
