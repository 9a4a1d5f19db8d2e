"""Drawing the ranked curve of one model, and what its group and its boundaries say in words (notebook 03)."""

import numpy as np
import pandas as pd

from rare_token_neurons.curve.phases import fit  # for the notebook, as title is
from rare_token_neurons.figures.axes import COLORS, GREY, rank_curve, title
from rare_token_neurons.figures.nulls import HEADS, kinds, two_sided

QUANTITIES = {"head's end (rank)": "head_end", "plateau's end (rank, 0: none)": "plateau_end", "law's end (rank)": "law_end",
              "kappa": "kappa", "plateau (share)": "plateau_share", "power law (share)": "law_share",
              "decay (share)": "decay_share"}  # of a change-point fit, by its words


def of_lead(lead, fallback):
    """How far the rare group leads the median neuron, beside its controls, in Markdown.

    lead : the row of table `prominence` for the ratio ; fallback : share of the pairs with the exact sum.
    """
    return (f"The rare group ({int(lead['size'])} of {int(lead['neurons']):,} neurons) has **{lead['value']:.1f} times** "
            f"({lead['low']:.1f} to {lead['high']:.1f}) the influence of the median neuron on rare tokens; ranking "
            f"half-normal numbers gives {lead['null']:.1f} times ({lead['null_low']:.1f} to {lead['null_high']:.1f}; p = "
            f"{lead['p_half_normal']:.3f}), groups alike in activation scale and output-weight norm have "
            f"{lead['matched']:.1f}. {fallback:.1%} of the (position, neuron) pairs needed the exact sum over the "
            "vocabulary.")


def change_points(found):
    """A column a group, a row a quantity: value and 95 % interval by change points, as text.

    found : rows of table `phases`, indexed by group.
    """
    stretches = range(1, 2 + int(found["breaks"].max()))
    names = QUANTITIES | {f"slope of stretch {place}": f"slope_{place}" for place in stretches}
    told = {group: {label: [row[f"bp_{name}{end}"] for end in ("", "_low", "_high")] for label, name in names.items()}
            for group, row in found.iterrows()}
    return pd.DataFrame({group: {label: "{:.4g} [{:.4g}, {:.4g}]".format(*values) for label, values in column.items()}
                         for group, column in told.items()})


def of_boundaries(found):
    """Whether the paper's rule and the change points agree on the boundaries, and how sure both are, in Markdown.

    found : rows of table `phases`, indexed by group.
    """
    said = []
    for group, row in found.iterrows():
        for what, rule_end, name in (("plateau", row["first"], "plateau_end"), ("power law", row["last"], "law_end")):
            inside = row[f"bp_{name}_low"] <= rule_end <= row[f"bp_{name}_high"]
            said.append(f"- **{group.capitalize()} tokens, the {what}'s last rank**: {rule_end:.0f} by the paper's rule, "
                        f"{row[f'bp_{name}']:.0f} by change points{' (0: there is none)' if what == 'plateau' else ''}: the "
                        f"two {'agree within' if inside else 'differ beyond'} the interval.")
        said.append(f"- Of the draws {row['plateau_draws']:.0%} have a plateau and {row['decay_draws']:.0%} a decay. "
                    f"Split-half reliability of the influence is {row['reliability']:.2f}; the median neuron's mean change "
                    f"can be told from zero above {row['detectable']:.1e} nats ({row['positions']:,} positions, "
                    f"{row['documents']:,} documents).")
    return "\n".join(said)


def curve(ax, rows, phases, row):
    """One group's curve with phases, interval and null, that of the same tokens, and where change points end the head.

    rows : of table `rank_curves`, one group ; phases : `phases.Phases` by the paper's rule.
    row : the group's of table `phases`.
    """
    group = rows["group"].iloc[0]
    rank_curve(ax, rows["influence"], phases, color=COLORS[group], interval=(rows["low"], rows["high"]),
               label=f"{group} (n = {row['positions']:,}, {row['documents']:,} documents; 95 %)",
               null=(rows["null_low"], rows["null_high"]), null_label=f"{rows['null'].iloc[0]} null, 95 %")
    ax.plot(rows["rank"], rows["same_tokens"], color=GREY, linestyle=":", label="ranked on the same tokens")
    if row["breaks"]:
        ax.axvspan(*row[["bp_head_end_low", "bp_head_end_high"]], ymin=0.58, color="#303030", alpha=0.35, linewidth=0,
                   label=f"head's end by change points, rank {row['bp_head_end']:.0f} (95 %)")


def heads(found):
    """{group: what its head is beyond the null, in words}.

    found : rows of table `phases`, indexed by group.
    """
    return {group: f"{HEADS[kind]} (p = {p:.3f})" for group, kind, p in zip(found.index, kinds(found), two_sided(found))}


def summary(fitted, by_neuron, top):
    """Paper and here, in Markdown.

    fitted : {group: `phases.Phases`} ; by_neuron : {group: (neurons,) influence} ; top : size of the top group.
    """
    shares = {group: " / ".join(f"{share:.1%}" for share in phases.shares) for group, phases in fitted.items()}
    overlap = len(set(np.argsort(-by_neuron["rare"])[:top]) & set(np.argsort(-by_neuron["common"])[:top])) / top
    return ("The paper (by a public summary) divides the neurons into plateau, power law and decay as 1.7 % / about 10 % / "
            f"87.4 %. Here it is **{shares['rare']}** for rare tokens (kappa {fitted['rare'].kappa:.2f}) and "
            f"{shares['common']} for common ones (kappa {fitted['common'].kappa:.2f}). Of the {top} most influential "
            f"neurons for rare tokens, {overlap:.0%} are also among the {top} most influential for common ones.")
