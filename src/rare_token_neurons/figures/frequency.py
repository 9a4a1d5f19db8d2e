"""Drawing the token-frequency scores (notebook 13), and what they say in words."""

import numpy as np
import pandas as pd

from rare_token_neurons.figures import axes
from rare_token_neurons.figures.axes import COLORS, title  # the notebook needs title, SCORES and overlaps too
from rare_token_neurons.figures.words import percent
from rare_token_neurons.statistics.rankings import SCORES, SIDES, overlaps, per_nat

NAMES = {"unigram_share": "share through the\nunigram direction", "kl": "change of KL to unigram\n(nats per nat of influence)",
         "entropy": "change of entropy\n(nats per nat of influence)", "scale_share": "share through the\nnorm's scale"}
FOUND = {"unigram_share": "act through\ntoken frequency", "kl": "stand out by\nthe KL to unigram",
         "entropy": "stand out by\nthe entropy", "scale_share": "act through\nthe norm's scale"}


def of_score(row):
    """Title: how many of the most influential neurons have the largest scores; row: of `overlaps`."""
    return f"{row['relative']} of {row['k']} {FOUND[row['score']]} (chance {row['chance']:.1f})"


def scores(ax, table, score):
    """Influence against one token-frequency score, a dot a neuron; of the rare group boost and suppress in colour.

    The changes of KL and entropy grow with any effect; they are drawn per nat of influence.

    table : from `frequency_neurons`.
    """
    table = table.assign(**{score: per_nat(table, score)})
    table = table[table["influence"] > table.loc[table["influence"] > 0, "influence"].quantile(0.02)]
    others = table[~table["rare"]]
    band = np.quantile(others[score].dropna(), [0.025, 0.975])
    ax.axhspan(*band, color=axes.GREY, alpha=0.3, linewidth=0, label="all other neurons, 95 %")
    ax.scatter(others["influence"], others[score], s=3, marker=".", color=axes.GREY, linewidths=0)
    for side in SIDES:
        rows = table[table["rare"] & (table["side"] == side)]
        ax.scatter(rows["influence"], rows[score], s=14, color=COLORS[side], linewidths=0, zorder=3,
                   label=f"{side}, rare group (n = {len(rows)})")
    ax.set_xscale("log")
    low, high = 1.2 * min(0, table[score].min()), 1.2 * max(0, table[score].max())
    if score.endswith("share"):
        ax.set_ylim(max(low, -1.0), min(high, 1.0))
    else:
        ax.set_yscale("symlog", linthresh=float(others[score].abs().quantile(0.9)) or 1.0)
        ax.set_ylim(low, high)
    ax.set(xlabel="influence on rare tokens (nats)", ylabel=NAMES[score])


def listed(overlap):
    """The overlaps as they are shown, of boost and suppress neurons together: a row a score; overlap: from `overlaps`."""
    rows = overlap[overlap["side"] == "all"]
    return pd.DataFrame({
        "score": rows["score"].map(NAMES).str.replace("\n", " "), "shared": rows["relative"], "of the top": rows["k"],
        "by chance": rows["chance"].round(1), "p": rows["p"].map("{:.1g}".format),
        "median, the top": rows["group"].map("{:.2g}".format),
        "median, the others": rows["others"].map("{:.2g}".format)}).set_index("score")


def of_sides(overlap):
    """The overlap by the unigram direction, boost and suppress apart, in Markdown; overlap: from `overlaps`."""
    rows = overlap[overlap["score"] == "unigram_share"].set_index("side").loc[list(SIDES)]
    told = " and ".join(f"{row['relative']} of the top {row['k']} {side} neurons (chance {row['chance']:.1f})"
                        for side, row in rows.iterrows())
    return f"Boost and suppress neurons apart: {told} are among those with the largest share through the unigram direction."


def summary(overlap):
    """Paper and here, in Markdown; overlap: from `overlaps`."""
    top, kl, entropy = (overlap[overlap["side"] == "all"].set_index("score").loc[score]
                        for score in ("unigram_share", "kl", "entropy"))
    return (
        "The paper does not ask this; its critics do. Here:\n\n"
        f"- **{top['relative']} of the {top['k']}** most influential neurons are among the {top['k']} with the largest share "
        f"through the unigram direction. Chance gives {top['chance']:.1f}.\n"
        f"- In the median that share is {percent(top['group'])} of their effect; of the other neurons it is "
        f"{percent(top['others'], 1)}.\n"
        f"- By the change of KL per nat of influence {kl['relative']} of {kl['k']} stand out, by that of the entropy "
        f"{entropy['relative']}. In nats it would be {kl['shared']} and {entropy['shared']}, by size alone.")
