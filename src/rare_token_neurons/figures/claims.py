"""How the claims table is shown (notebook 11): as Markdown, and as rows of a figure."""

import textwrap

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator, ScalarFormatter

from rare_token_neurons.figures import axes
from rare_token_neurons.figures.axes import title  # for the notebook, as CLAIMS, EMBEDDED, GRID and grid are
from rare_token_neurons.statistics.claims import CLAIMS, NOT, PARTLY, REPRODUCED, UNTESTED, VERDICTS
from rare_token_neurons.tables.claims import EMBEDDED, GRID, PENDING, grid

FILLS = {REPRODUCED: "full", PARTLY: "left", NOT: "none", UNTESTED: "none"}
LABEL = 36  # characters a line, left of the panels
NOTE = "#555555"  # colour of a note below the verdict
LOG_FROM = 5  # a panel whose ends are this far apart has a logarithmic axis


def number(value):
    """Three significant digits, without an exponent where it can be read so: 28.9, 0.0221, -0.04."""
    return f"{value:.3g}" if np.isfinite(value) else "none"


def finding(row):
    """What a row of the claims table says of one model, in Markdown."""
    if row["verdict"] == UNTESTED:
        text = f"*{UNTESTED}*: {row['reason']}"
        if np.isfinite(row["value"]):
            text += f" ({number(row['value'])} [{number(row['low'])}, {number(row['high'])}])"
    else:
        text = (f"**{row['verdict']}** ({row['reason']}): {number(row['value'])} "
                f"[{number(row['low'])}, {number(row['high'])}], null {number(row['null'])}"
                + (f", q = {row['q']:.2g}" if np.isfinite(row["q"]) else ""))
    return text + (f"; {row['note']}" if row["note"] and row["note"] != row["reason"] else "")


def in_paper(row):
    """The paper's value and words."""
    value = number(row["paper"]) if np.isfinite(row["paper"]) else ""
    return ", ".join(part for part in (value, row["paper_note"]) if part) or "none given"


def markdown(table):
    """The claims table for a page: a row a part of a claim, a column a model.

    Parameters
    ----------
    table : DataFrame, `claims`, models in this order; those that were not run share one column, the last.

    Returns
    -------
    str
    """
    of = {name: rows.set_index("name") for name, rows in table.groupby("model", sort=False)}
    waiting = [name for name, rows in of.items() if rows["reason"].iloc[0] == PENDING]
    run = [name for name in of if name not in waiting]
    heads = run + ([" and ".join(short(name) for name in waiting)] if waiting else [])
    lines = ["| " + " | ".join(["claim", "statistic", "paper", *heads]) + " |", "|" + "---|" * (3 + len(heads))]
    first = next(iter(of.values()))
    for name, part in first.iterrows():
        cells = [name, part["statistic"], in_paper(part), *(finding(of[model].loc[name]) for model in run)]
        lines.append("| " + " | ".join(cells + [PENDING] * bool(waiting)) + " |")
        several = first[first["id"] == part["id"]]
        if len(several) > 1 and name == several.index[-1]:
            cells = [part["id"], "its parts together", "", *(f"**{of[model].loc[name, 'claim_verdict']}**" for model in run)]
            lines.append("| " + " | ".join(cells + [PENDING] * bool(waiting)) + " |")
    return "\n".join(lines)


def short(model):
    """A model's name without the owner on the hub."""
    return model.split("/")[-1]


def counted(rows):
    """How the claims of one model fall out, in two lines."""
    whole = rows.drop_duplicates("id")["claim_verdict"].value_counts()
    return (f"{whole.get(REPRODUCED, 0)} of {whole.sum()} claims reproduced,\n{whole.get(PARTLY, 0)} partly, "
            f"{whole.get(NOT, 0)} not, {whole.get(UNTESTED, 0)} cannot be tested")


def panel(ax, row, limits):
    """One row of the figure: estimate and interval, the null in grey (with the margin of a claim of absence), the paper.

    Parameters
    ----------
    row : of the claims table ; limits : from `limits`, the same for all models.
    """
    ax.set(xlim=limits, ylim=(-1, 1.4), yticks=[])
    ax.spines["left"].set_visible(False)
    if _wide(*limits):
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.minorticks_off()
    else:
        ax.xaxis.set_major_locator(MaxNLocator(4))
    if np.isfinite(row["margin"]):
        centre = row["null"] if np.isfinite(row["null"]) else 0.0
        ax.axvspan(centre - row["margin"], centre + row["margin"], ymax=0.62, color=axes.GREY, alpha=0.3, linewidth=0,
                   label="margin of a claim of absence")
    if np.isfinite(row["null"]):
        ax.axvline(row["null"], ymax=0.62, color=axes.GREY, linewidth=1.5, label="null")
    if np.isfinite(row["paper"]):
        ax.plot(row["paper"], -0.2, "D", color=axes.COLORS["boost"], markersize=8, fillstyle="none", zorder=5, label="paper")
    if np.isfinite([row["value"], row["low"], row["high"]]).all():
        ax.plot([row["low"], row["high"]], [-0.2, -0.2], color=axes.COLORS["all"], linewidth=1, zorder=3)
        ax.plot(row["value"], -0.2, "o", color=axes.COLORS["all"], markersize=4.5, fillstyle=FILLS[row["verdict"]],
                markerfacecoloralt="white", zorder=4)
        ax.plot([], [], "-o", color=axes.COLORS["all"], linewidth=1, markersize=4.5, label="here, 95 % interval")
    words = f"{row['verdict']}: {row['reason']}"
    ax.text(0, 1.15, textwrap.shorten(words, 66), transform=ax.transAxes, fontsize=6, va="top",
            fontweight="bold" if row["verdict"] == REPRODUCED else "normal")
    if row["note"] and row["note"] != row["reason"]:
        ax.text(0, 0.85, textwrap.shorten(row["note"], 72), transform=ax.transAxes, fontsize=5, va="top", color=NOTE)
    if ax.get_xscale() == "log":
        ax.text(1, -0.14, "(log scale)", transform=ax.transAxes, fontsize=6, ha="right", va="top")


def _wide(low, high):
    return low > 0 and high / low > LOG_FROM


def limits(rows):
    """Ends of the axis that shows every model's value, interval, null, margin and the paper's value of one claim."""
    ends = rows[["value", "low", "high", "null", "paper"]].to_numpy(float)
    ends = np.r_[ends[np.isfinite(ends)], 0.0 if np.isfinite(rows["margin"]).any() else []]
    margin = np.nan_to_num(rows["margin"].max())
    low, high = (ends.min() - margin, ends.max() + margin) if len(ends) else (-1.0, 1.0)
    if _wide(low, high):
        return low / 1.3, high * 1.3
    reach = (high - low) * 0.08 or 1.0
    return low - reach, high + reach


def label(ax, row):
    """Name and statistic of a claim, left of its row."""
    ax.text(-0.03, 0.5, textwrap.fill(f"{row['name']}: {row['statistic']}", LABEL), transform=ax.transAxes, fontsize=6,
            ha="right", va="center")


def summary(table, pending):
    """The verdicts, a line a model, in Markdown.

    table : `claims` of the models that were run ; pending : names of those that were not.
    """
    lines = []
    for model, rows in table.drop_duplicates(["model", "id"]).groupby("model", sort=False):
        ids = {verdict: rows.loc[rows["claim_verdict"] == verdict, "id"] for verdict in VERDICTS}
        said = "; ".join(f"{verdict}: {', '.join(some)}" for verdict, some in ids.items() if len(some))
        lines.append(f"- **{short(model)}**: {said}.")
    empty = f"The paper's own models ({', '.join(map(short, pending))}) were not run here: their column is empty. "
    lines += ["", f"{empty if pending else ''}These models are small, or of another family than Pythia: what is not "
              "reproduced here may hold in the paper's models; it does not hold wherever one looks."]
    return "\n".join(lines)
