"""Drawing groups of neurons beside their controls and along the activation scale (notebooks 05, 06), and words on them.

Where matched groups match too poorly to be a control, they are neither drawn nor spoken of: `usable` takes them out.
"""

import numpy as np
import pandas as pd

from rare_token_neurons.figures import axes
from rare_token_neurons.figures.axes import COLORS, clustered, of_groups, of_pairs, reach, title  # for notebooks too
from rare_token_neurons.figures.words import against, among, beside, between, by_control, chance
from rare_token_neurons.statistics import controls
from rare_token_neurons.statistics.claims import poor_match
from rare_token_neurons.statistics.geometry import mean_abs_pair, mean_pair

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
    return (f"{found}**{told}**: they are left out of figures and sentences, and a claim "
            "is judged on random groups alone, as partly reproduced at most.")


# ---- notebook 05

STATISTICS = ("effective dimension", "participation ratio")


def behind_it(behind):
    """Positions, documents and neurons behind the rows of the rare group, in words. behind : from `account`."""
    rare, every = behind.loc["rare"], behind.loc["all"]
    return (f"Behind it: a group of {rare['size']} neurons, {rare['tokens']:,} rare positions and {every['tokens']:,} "
            f"of all positions, from {rare['documents']} and {every['documents']} documents. Dead or constant neurons "
            f"have no correlation and are left out of every group: {rare['constant']:,} at rare positions, "
            f"{every['constant']:,} at all.")


def of_curve(ax, rows, *, label):
    """Cumulative variance over components, with the bands of its controls: `activation_variance` after `usable`."""
    axes.of_curve(ax, rows["components"] / rows["size"], rows, color=COLORS["rare"], label=label)
    drop_empty(ax)


def over_steps(ax, rows):
    """The rare group over training with the bands of its controls: `activations_over_training` after `usable`."""
    axes.group_over_steps(ax, rows)
    drop_empty(ax)
    for line in ax.lines:  # matched groups that can be used at single checkpoints, whom no line joins
        if not np.isfinite(line.get_ydata()).all():
            line.set_marker("_")


def beyond(rows, kind, side):
    """The steps at which the group chosen there lies beyond the whole band of a control, and how many can be judged.

    rows : one statistic of `activations_over_training`, after `usable` ; side : "below" or "above".
    """
    own = rows[(rows["group"] == "rare") & rows[kind].notna()]
    out = own["value"] < own[f"{kind}_low"] if side == "below" else own["value"] > own[f"{kind}_high"]
    return sorted(own.loc[out, "step"]), len(own)


def steps_beyond(rows, side):
    """At how many checkpoints the group lies beyond its controls, two lines for a title; takes what `beyond` takes."""
    found = {kind: beyond(rows, kind, side) for kind in controls.KINDS}
    return ",\n".join(f"{side} {kind} at {len(there)} of {total}" for kind, (there, total) in found.items() if total)


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
        return by_control(row, lambda kind: f"{row[f'less_{kind}']:+.2f} against {kind} groups "
                                            f"({between(row, f'less_{kind}', '+.2f')}; {chance(row, kind)})")

    return ("The paper (by a public summary) has 0.49 for rare token neurons against 0.56 for random ones. Here, at "
            f"rare positions, it is **{rare['value']:.2f}** ({of['rare', 'whole components']['value']:.2f} in whole "
            f"components) against {rare['random']:.2f} for random groups: {less(rare)}. At all positions: "
            f"{less(every)}.{course(training, 'below', STATISTICS[0])} The level depends on the size of the group and "
            "on the number of positions; only the difference is a finding.")


# ---- along the activation scale (exploratory)


def windows(ax, rows):
    """A statistic along the activation scale: windows of neurons outside rare group and head, the group beside them.

    rows : one statistic and place of `activation_windows`.
    """
    group, others = rows[rows["window"] == 0].iloc[0], rows[rows["window"] > 0]
    ax.plot(np.exp(others["scale"]), others["value"], "o", color=COLORS["random"], alpha=0.7,
            label=f"windows of {group['size']} neurons outside rare group and head (n = {len(others)})")
    ax.plot(np.exp(group["scale"]), group["value"], "D", color=COLORS["rare"], markersize=5,
            label=f"rare group (n = {group['size']} neurons)")
    ax.set(xscale="log", xlabel="activation scale (geometric mean of the SDs)")


def loudest(rows):
    """The group's value and those of the three loudest windows, two lines for a title; takes what `windows` takes."""
    near = rows[rows["window"].between(1, 3)]["value"]
    return f"rare group {rows['value'].iloc[0]:.2f},\nthe loudest windows {near.min():.2f} to {near.max():.2f}"


def along_the_scale(rows):
    """The rare group beside windows of others along the activation scale, in Markdown; takes what `windows` takes."""
    group, others = rows[rows["window"] == 0].iloc[0], rows[rows["window"] > 0].sort_values("scale", ascending=False)
    times, near = np.exp(group["scale"] - others["scale"].iloc[0]), others["value"].head(3)
    louder = (f"{times:.1f} times that of the loudest window of other neurons" if times > 1 else
              "within that of the windows of other neurons")
    rank = others["scale"].rank().corr(others["value"].rank())
    name = SYMBOLS.get(rows["statistic"].iloc[0], f"{rows['statistic'].iloc[0]} over group size")
    return (f"*Exploratory.* The activation scale of the rare group is {louder}. Its {name} is {group['value']:.3f}; "
            f"the three loudest windows have {near.min():.3f} to {near.max():.3f}, and along all {len(others)} windows "
            f"it has a rank correlation of {rank:+.2f} with the scale. What is common to loud neurons is no trait of "
            "the rare group.")


# ---- notebook 06: pairs of neurons

SYMBOLS = {"mean": "mean r", "mean absolute": "mean |r|"}
FORMATS = {"mean": "+.4f", "mean absolute": ".3f"}


def statistics_of(table):
    """The statistics of pairs that have a meaning: of a gated MLP the mean absolute value alone, what decides first.

    table : `coactivation`.
    """
    return ("mean absolute",) if table["gated"].any() else ("mean", "mean absolute")


def pick(table, where, relation, measure="correlation", statistic="mean"):
    """The rare group's row of `coactivation`."""
    places = ["where", "group", "relation", "measure", "statistic"]
    return table[(table[places] == [where, "rare", relation, measure, statistic]).all(axis=1)].iloc[0]


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
               "flipped to be alike (signs of the first principal component)": alike}
    turned = {name: block * np.outer(signs, signs) for name, signs in choices.items()}
    return pd.DataFrame([[one[i, j], abs(one[i, j]), mean_pair(one), mean_abs_pair(one)] for one in turned.values()],
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


def span(rows):
    """The mean correlations of some groups, in words for a title: "mean r +0.005 to +0.034"."""
    return "mean r " + " to ".join(dict.fromkeys(f"{end:+.3f}" for end in (rows["value"].min(), rows["value"].max())))


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
        return (paper + "The signs mean nothing in this model, whose MLPs are gated. Here, at rare positions, the mean "
                f"absolute correlation **within** the group is {beside(within['rare'])}; at all positions "
                f"{beside(within['all'])}. **Between** the group and the others: cannot be tested, since avoidance has "
                "no form without a sign; their mean absolute correlation is "
                f"{beside(pick(table, 'rare', 'between', statistic='mean absolute'))}.")
    of = {(where, relation): pick(table, where, relation) for where in PLACES for relation in ("within", "between")}
    return (paper + "Here, at rare positions, the mean correlation **within** the group is "
            f"{beside(of['rare', 'within'])}, and **between** it and the others {beside(of['rare', 'between'])}. At "
            f"all positions it is {beside(of['all', 'within'])} within, and {beside(of['all', 'between'])} between.")


def beyond_the_mean(table):
    """What the mean does not show, and what the uncentred measure adds, in Markdown; takes what `co_activate` takes."""
    statistic = statistics_of(table)[0]
    cosine = {relation: pick(table, "rare", relation, "cosine", statistic) for relation in ("within", "between")}
    offset = "what it has beyond the correlation is constant offset, not firing together."
    if statistic == "mean absolute":
        return (f"The mean absolute value of the uncentred cosine is {beside(cosine['within'])} within and "
                f"{beside(cosine['between'])} between: {offset}")
    absolute, negative = (pick(table, "rare", "within", statistic=name) for name in ("mean absolute", "negative share"))
    matched = f", {negative['matched']:.0%} in matched ones" if np.isfinite(negative["matched"]) else ""
    return (f"The mean absolute correlation within the group is {beside(absolute)}; {negative['value']:.0%} of its "
            f"pairs are negative ({negative['random']:.0%} in random groups{matched}). The uncentred cosine is "
            f"{beside(cosine['within'])} within and {beside(cosine['between'])} between: {offset}")
