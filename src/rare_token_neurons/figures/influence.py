"""Drawing the ranked curves of one model, and what its group and the heads of the curves say in words (notebook 03)."""

import numpy as np
import pandas as pd

from rare_token_neurons.curve import heads
from rare_token_neurons.figures.axes import COLORS, DECIDES, legend_below, rank_curve, title
from rare_token_neurons.figures.words import UNTOLD, between, level, named, stretches
from rare_token_neurons.statistics.rankings import SIDES
from rare_token_neurons.tables.stage import GROUPS

NULLS = {"law": "the law itself", "lognormal": "lognormal", "half_normal": "half-normal"}  # in columns -> in words
MEANS = {  # what the words say; `curve.heads` decides them
    "plateau": "it stands above its law and is flatter",
    "outliers": "it stands above its law, but is no flatter",
    "rounded": "it lies below its law, as the head of any sorted sample does",
    "on the line": "it is not shown to lie above its law, nor below",
    UNTOLD: "too few neurons or documents"}
RANKED = 1 / 1_001  # of one against ranked half-normal numbers (`nulls.ranked_null`)
PLACES = (1, 3, 10, 30, 100, 300, 1000)  # ranks at which a curve is set beside its law by hand


def of_lead(lead, fallback):
    """How far the rare group leads the median neuron, beside its controls, in Markdown.

    lead : the row of table `prominence` for the ratio ; fallback : share of the pairs with the exact sum.
    """
    return (f"The rare group ({int(lead['size'])} of {int(lead['neurons']):,} neurons) has **{lead['value']:.1f} "
            f"times** ({between(lead, form='.1f')}) the influence of the median neuron on rare tokens. Ranking "
            f"half-normal numbers gives {lead['null']:.1f} times ({between(lead, 'null', '.1f')}; as much: "
            f"{level(lead['p_half_normal'], RANKED, 'draws')}), groups alike in activation scale and output-weight "
            f"norm have {lead['matched']:.1f}. {fallback:.1%} of the (position, neuron) pairs needed the exact sum "
            "over the vocabulary.")


# ---- the head beside its law


def by_hand(rows, fit):
    """A curve beside its law at some ranks: influence, the law's line, and delta, the log of their ratio.

    rows : one curve's of table `rank_curves` ; fit : its row of table `phases`.
    """
    at = rows[rows["rank"].isin(PLACES)].set_index("rank")
    law = np.exp(fit["beta"] - fit["kappa"] * np.log(at.index))
    return pd.DataFrame({"influence (nats)": at["influence"], "the law's line (nats)": law,
                         "delta (e-folds)": np.log(at["influence"] / law)})


def of_mean(rows, fit):
    """Delta by hand, beside the table's, in words; takes what `by_hand` takes."""
    if not np.isfinite(fit["delta"]):
        return f"This curve {UNTOLD}: {MEANS[UNTOLD]}."
    if not fit["head"]:
        return "The law begins at rank 1: there is no head before it, and Delta is 0."
    head = rows[rows["rank"] <= fit["head"]]
    delta = np.log(head["influence"]) - (fit["beta"] - fit["kappa"] * np.log(head["rank"]))
    return (f"By hand, the mean of delta over the head's {fit['head']} ranks is **{delta.mean():+.3f}**; the table "
            f"says {fit['delta']:+.3f}. So the head has {np.exp(fit['delta']):.2f} times the influence that its law "
            "gives it.")


def _with_interval(row, name):
    ends = row[[f"{name}_low", f"{name}_high"]]
    return f"{row[name]:.2f}" + (" [{:.2f}, {:.2f}]".format(*ends) if np.isfinite(ends.astype(float)).all() else "")


def fits(found):
    """The phases of the pooled curves by each rule, as text with 95 % intervals: a row (targets, rule).

    found : rows of table `phases`, indexed by group, sign and rule.
    """
    rows = {}
    for (group, _, rule), row in found.xs("pooled", level="sign", drop_level=False).iterrows():
        rows[group, rule] = {
            "head (neurons)": row["head"],
            "cliff from rank": row["shelf"] if row["shelf"] < row["law_start"] else np.nan,
            "law (ranks)": f"{row['law_start']:.0f} to {row['law_end']:.0f}",
            "head / law / decay (%)": stretches(row),
            "Δ (e-folds)": _with_interval(row, "delta"), "κ of the law": _with_interval(row, "kappa"),
            "slope of the head": _with_interval(row, "slope"), "word": row["word"]}
    made = pd.DataFrame.from_dict(rows, orient="index").rename_axis(["targets", "rule"])
    return made.assign(**{"cliff from rank": made["cliff from rank"].map("{:.0f}".format)}).replace("nan", "none")


def chances(found):
    """How often each null has a head as high, in words, and how far the law's samples spread: a row (targets, rule).

    found : as `fits` takes it.
    """
    rows = {}
    for (group, _, rule), row in found.xs("pooled", level="sign", drop_level=False).iterrows():
        if row["word"]:
            chance = {f"as high: {name}": level(row[f"p_{null}"], row["p_floor"]) for null, name in NULLS.items()}
            rows[group, rule] = {"Δ": f"{row['delta']:+.2f}"} | chance | {
                "Δ of the law's samples, 95 %": between(row, "null_delta_law", "+.2f")}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["targets", "rule"])


def largest(fit):
    """The p value against the null that speaks most against a raised head, in words."""
    return level(max(fit[f"p_{null}"] for null in NULLS), fit["p_floor"])


def of_heads(found):
    """What the heads of the pooled curves are and by what numbers, in Markdown, a line a group.

    found : as `fits` takes it.
    """
    said = []
    for group in GROUPS:
        row, fixed = (found.loc[(group, "pooled", rule)] for rule in (DECIDES, "fixed head"))
        said.append(f"- **{group.capitalize()} tokens: {named(row)}** ({MEANS[named(row)]}).")
        if row["word"]:
            said[-1] += (
                f" The head has {row['head']} neurons and Δ = {row['delta']:+.2f} ({between(row, 'delta', '+.2f')}): "
                f"{np.exp(row['delta']):.2f} times what the law gives. As high by chance, by the null for which it is "
                f"easiest: {largest(row)}. The head's slope is {row['slope']:.2f}, the law's {row['kappa']:.2f}. The "
                f"fixed head ({fixed['head']} neurons): {named(fixed)}, Δ = {fixed['delta']:+.2f}. A steeper stretch "
                f"follows the law in {row['decay_draws']:.0%} of the draws of documents; the null that has one most "
                f"often has it in {row['decay_null']:.0%} of its curves.")
            if row["head_low"] < 1 <= row["head"]:
                said[-1] += " In some draws of documents the law begins at rank 1: there is no head, and Δ is 0."
    return "\n".join(said)


def of_noise(found):
    """How well the data can tell, in Markdown, a line a group; found : as `fits` takes it."""
    return "\n".join(
        f"- **{group.capitalize()} tokens**: split-half reliability of the influence {row['reliability']:.2f}; the "
        f"median neuron's mean change can be told from zero above {row['detectable']:.1e} nats ({row['positions']:,} "
        f"positions, {row['documents']:,} "
        "documents)." for group, row in ((one, found.loc[(one, "pooled", DECIDES)]) for one in GROUPS))


# ---- curves


def finding(name, fit):
    """The title of a curve: the word of its head, and Delta with its interval.

    fit : row of table `phases`, or None where the table has none.
    """
    if fit is None or not fit["word"]:
        return f"{name}: {UNTOLD}"
    return f"{name}: {fit['word']}\nΔ = {fit['delta']:+.2f} e-folds ({between(fit, 'delta', '+.2f')})"


def curve(ax, rows, fit, label, color):
    """A curve with its phases, interval, nulls and law; dotted, the curve ranked and measured on the same tokens.

    rows : one curve's of table `rank_curves` ; fit : its row of table `phases` ; label : with n, in the axes' own
    legend.
    """
    rank_curve(ax, rows, fit, label=f"{label} (n = {fit['positions']:,}, {fit['documents']:,} documents; 95 "
                                    "%)", color=color)
    own = [(line, line.get_label()) for line in ax.lines if line.get_label().startswith((label, "line: "))]
    ax.plot(rows["rank"], rows["same_tokens"].where(rows["same_tokens"] > 0), color=COLORS["all"], linestyle=":",
            linewidth=0.8, label="ranked on the same tokens")
    ax.legend(*zip(*own[::-1]), loc="upper right", borderaxespad=0.2)


def sign_curve(ax, curves, found, group, sign):
    """The curve of the neurons of one sign, "boost" or "suppress", or a word on why there is none; its title.

    curves : table `rank_curves` of one revision ; found : as `fits` takes it.
    """
    if (group, sign, DECIDES) not in found.index:
        ax.text(0.5, 0.5, f"{UNTOLD}:\n{MEANS[UNTOLD]}", transform=ax.transAxes, ha="center", va="center", fontsize=7)
        title(ax, finding(sign.capitalize(), None))
        return
    fit = found.loc[(group, sign, DECIDES)]
    rows = curves[(curves["group"] == group) & (curves["sign"] == sign)]
    curve(ax, rows, fit, f"{fit['neurons']:,} neurons", COLORS[sign])
    title(ax, finding(sign.capitalize(), fit))


def of_signs(found):
    """What the heads of boost and of suppress neurons are, in Markdown, a line a curve; found : as `fits` takes it."""
    said = []
    for group in GROUPS:
        for sign in SIDES:
            there = (group, sign, DECIDES) in found.index
            row = found.loc[(group, sign, DECIDES)] if there else {"word": ""}
            said.append(f"- **{group.capitalize()} tokens, {sign}: {named(row)}**" + (
                f", Δ = {row['delta']:+.2f} ({between(row, 'delta', '+.2f')}), head of {row['head']} of "
                f"{row['neurons']:,} neurons; {largest(row)}." if row["word"] else f" ({MEANS[UNTOLD]})."))
    return "\n".join(said)


def summary(found, prominence, by_neuron, top):
    """Paper and here, in Markdown.

    found : as `fits` takes it ; prominence : the table, indexed by group and statistic ; by_neuron : {group: (neurons,)
    influence} ; top : size of the top group.
    """
    rows = {group: found.loc[(group, "pooled", DECIDES)] for group in GROUPS}
    overlap = len(set(np.argsort(-by_neuron["rare"])[:top]) & set(np.argsort(-by_neuron["common"])[:top])) / top
    law, less = prominence.loc[("rare", "law")], prominence.loc[("rare", "contrast")]
    contrast = (f"Δ of the first 1.7 % of the neurons on rare less that on common tokens is {less['value']:+.2f} "
                f"e-folds ({between(less, form='+.2f')}; as much between two laws: "
                f"{level(less['p_laws'], heads.FLOOR, 'pairs')}; with the labels swapped in documents: "
                f"{level(less['p_swap'], heads.FLOOR, 'swaps')}). "
                if np.isfinite(less["value"]) else "")
    return ("The paper (by a public summary) divides the neurons into plateau, power law and decay as 1.7 % / about 10 "
            "% / 87.4 %, the plateau above the law; common tokens lack it. Here head / law / decay are "
            f"**{stretches(rows['rare'])} %** for rare tokens; the head is called *{named(rows['rare'])}*, and the "
            f"test of the law says: {law['verdict']}. For common tokens they are {stretches(rows['common'])} %, and "
            f"the head is called *{named(rows['common'])}*. {contrast}Of the {top} most influential neurons for rare "
            f"tokens, {overlap:.0%} are also among the {top} most influential for common ones.")
