"""How the claims table is shown (notebook 11): as Markdown, in sentences, and as rows of a figure."""

import textwrap

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator, ScalarFormatter

from rare_token_neurons.figures import axes, portraits
from rare_token_neurons.figures.axes import title  # for the notebook, as EVERY, EMBEDDED, GRID and grid are
from rare_token_neurons.figures.words import between
from rare_token_neurons.packages import EMBEDDED
from rare_token_neurons.statistics.claims import ALWAYS, EVERY, NOT, PARTLY, REPRODUCED, UNDECIDED, UNTESTED, VERDICTS
from rare_token_neurons.tables.claims import GRID, PENDING, from_commit, grid, linearity

FILLS = {REPRODUCED: "full", PARTLY: "left", NOT: "none", UNTESTED: "none"}
LABEL = 42  # characters a line, left of the panels
NOTE = "#555555"  # colour of a note below the verdict
ELSEWHERE = "no such part in this MLP"
LOG_FROM = 5  # a panel whose ends are this far apart has a logarithmic axis


def number(value):
    """Three significant digits, without an exponent where it can be read so: 28.9, 0.0221, -0.04."""
    return f"{value:.3g}" if np.isfinite(value) else "none"


def interval(row):
    """Value and interval of a row: "28.9 [27.7, 30.4]", or a share of draws: "98 %"."""
    if row["direction"] == "decay":
        return f"{100 * row['value']:.0f} %"
    ends = f" [{number(row['low'])}, {number(row['high'])}]" if np.isfinite([row["low"], row["high"]]).all() else ""
    return f"{number(row['value'])}{ends}"


def why(row):
    """The reason of a verdict, with what the head is called where the reason does not say it."""
    word = row["word"] if row["verdict"] != UNTESTED and row["word"] not in row["reason"] else ""
    return "; ".join(part for part in (word, row["reason"]) if part)


def answer(row):
    """The verdict of a row as the answer to a question.

    An interval that holds the null answers neither yes nor no, and a decay in some of the draws neither.
    """
    in_some = row["direction"] == "decay" and row["verdict"] == NOT and row["value"] > 1 - ALWAYS
    return "not shown" if in_some or row["reason"] == UNDECIDED else ANSWERS[row["verdict"]]


def finding(row):
    """What a row of the claims table says of one model, in Markdown."""
    if row["verdict"] == UNTESTED:
        text = f"*{UNTESTED}*: {row['reason']}" + (f" ({interval(row)})" if np.isfinite(row["value"]) else "")
    else:
        null = f"{100 * row['null']:.0f} %" if row["direction"] == "decay" else number(row["null"])
        at_floor = row["p"] <= row["p_floor"] * (1 + 1e-9)
        chance = (f", none of {1 / row['p_floor'] - 1:,.0f} null curves reaches it" if at_floor else "")
        chance += f", q = {row['q']:.2g}" if np.isfinite(row["q"]) else ""
        text = (f"**{row['verdict']}** ({why(row)}): {interval(row)}"
                + (f", null {null}" if np.isfinite(row["null"]) else "") + chance)
    return text + (f"; {row['note']}" if row["note"] and row["note"] != row["reason"] else "")


def in_paper(row):
    """The paper's value and words."""
    value = number(row["paper"]) if np.isfinite(row["paper"]) else ""
    return ", ".join(part for part in (value, row["paper_note"]) if part) or "none given"


def parts(table):
    """The rows of each part of a claim, in the order of the claims: name -> rows of the models that it is about."""
    return {name: rows for name in dict.fromkeys(claim.name for claim in EVERY)
            if len(rows := table[table["name"] == name])}


def statistic(rows):
    """What is measured for one part, in words; where it depends on the MLP, for either kind."""
    gated = {claim.statistic: claim.gated for claim in EVERY}
    names = rows["statistic"].unique()
    return names[0] if len(names) == 1 else "; ".join(
        f"{name} ({'gated MLPs' if gated[name] else 'other MLPs'})" for name in names)


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
    cells, every = [["claim", "statistic", "paper", *heads]], parts(table)
    for name, rows in every.items():
        said = [finding(of[model].loc[name]) if name in of[model].index else ELSEWHERE for model in run]
        cells.append([name, statistic(rows), in_paper(rows.iloc[0]), *said])
        claim = rows["id"].iloc[0]
        several = [one for one, part in every.items() if part["id"].iloc[0] == claim]
        if len(several) > 1 and name == several[-1]:
            whole = (of[model].loc[of[model]["id"] == claim, "claim_verdict"].iloc[0] for model in run)
            cells.append([claim, "its parts together", "", *(f"**{found}**" for found in whole)])
    first, *rest = ("| " + " | ".join(row + [PENDING] * (len(cells[0]) - len(row))) + " |" for row in cells)
    return "\n".join([first, "|" + "---|" * len(cells[0]), *rest])


def sentences(table):
    """Why each verdict is what it is, a sentence a part, in Markdown.

    table : `claims` of the models that were run.
    """
    lines = []
    for model, rows in table.groupby("model", sort=False):
        if rows["reason"].iloc[0] == PENDING:
            lines += [f"**{short(model)}**: {PENDING}.", ""]
            continue
        verdicts = rows["verdict"].where(rows["verdict"] != UNTESTED, "")  # whose sentence begins with it
        said = (f"- **{name}**{verdict and f', {verdict}'}. {sentence}" for name, verdict, sentence in
                zip(rows["name"], verdicts, rows["sentence"]))
        lines += [f"**{short(model)}**", "", *said, ""]
    return "\n".join(lines)


def short(model):
    """A model's name without the owner on the hub."""
    return model.split("/")[-1]


def marked(table, settings):
    """The claims table with "(from committed tables)" behind the name of a model that was not run in this checkout."""
    return table.replace({"model": {name: f"{name} (from committed tables)" for name in from_commit(settings)}})


def heading(rows):
    """Title of a model's column: its name, and how its claims fall out."""
    return f"{short(rows['model'].iloc[0])}\n{counted(rows)}"


def counted(rows):
    """How the claims of one model fall out, in two lines."""
    whole = rows.drop_duplicates("id")["claim_verdict"].value_counts()
    return (f"{whole.get(REPRODUCED, 0)} of {whole.sum()} claims reproduced,\n{whole.get(PARTLY, 0)} partly, "
            f"{whole.get(NOT, 0)} not, {whole.get(UNTESTED, 0)} cannot be tested")


def panel(ax, row, limits):
    """One row of the figure: estimate and interval, the null in grey (with what counts as an absence), the paper.

    Parameters
    ----------
    row : of the claims table ; limits : from `limits`, the same for all models.
    """
    ax.set(xlim=limits, ylim=(-0.9, 0.5), yticks=[])
    ax.spines["left"].set_visible(False)
    if _wide(*limits):
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.minorticks_off()
    else:
        ax.xaxis.set_major_locator(MaxNLocator(4))
    if np.isfinite(row["margin"]):
        centre, one_sided = row["null"] if np.isfinite(row["null"]) else 0.0, row["direction"] == "no plateau"
        ax.axvspan(limits[0] if one_sided else centre - row["margin"], centre + row["margin"], color=axes.GREY,
                   alpha=0.3, linewidth=0, label="what counts as an absence")
    if np.isfinite(row["null"]):
        ax.axvline(row["null"], color=axes.GREY, linewidth=1.5, label="null")
    if np.isfinite(row["paper"]):
        ax.plot(row["paper"], -0.2, "D", color=axes.COLORS["boost"], markersize=6, fillstyle="none", zorder=5,
                label="paper", clip_on=False)
    if np.isfinite(row["value"]):
        ax.plot([row["low"], row["high"]], [-0.2, -0.2], color=axes.COLORS["all"], linewidth=1, zorder=3)
        ax.plot(row["value"], -0.2, "o", color=axes.COLORS["all"], markersize=4.5, fillstyle=FILLS[row["verdict"]],
                markerfacecoloralt="white", zorder=4)
        ax.plot([], [], "-o", color=axes.COLORS["all"], linewidth=1, markersize=4.5, label="here, 95 % interval")
    bold, noted = row["verdict"] == REPRODUCED, bool(row["note"]) and row["note"] != row["reason"]
    above = {"xy": (0, 1), "xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
    ax.annotate(textwrap.shorten(f"{row['verdict']}: {why(row)}", 48 if bold else 56), xytext=(0, 9 if noted else 2),
                fontsize=6, fontweight="bold" if bold else "normal", **above)
    if noted:
        ax.annotate(textwrap.shorten(row["note"], 58), xytext=(0, 1), fontsize=6, color=NOTE, **above)
    if ax.get_xscale() == "log":
        ax.text(1, -0.14, "(log scale)", transform=ax.transAxes, fontsize=6, ha="right", va="top")


def panel_of(ax, rows, limits):
    """`panel` of a model's row of one part, or a word where its MLP has no such part; rows: none or one."""
    if len(rows):
        panel(ax, rows.iloc[0], limits)
        return
    ax.text(0, 0.5, ELSEWHERE, transform=ax.transAxes, fontsize=6, va="center", color=NOTE)
    ax.set_axis_off()


def _wide(low, high):
    return low > 0 and high / low > LOG_FROM


def limits(rows):
    """Ends of the axis that shows every model's value, interval, null, margin and the paper's value of one claim."""
    ends = rows[["value", "low", "high", "null", "paper"]].to_numpy(float)
    if rows.get("direction", rows["value"]).eq("decay").any():  # a share
        ends = np.r_[ends[np.isfinite(ends)], 0.0, 1.0]
    margins = rows["margin"][np.isfinite(rows["margin"])]
    ends = np.r_[ends[np.isfinite(ends)], [0.0, margins.max()] if len(margins) else [], margins * -1]
    low, high = (ends.min(), ends.max()) if len(ends) else (-1.0, 1.0)
    if _wide(low, high):
        return low / 1.3, high * 1.3
    reach = (high - low) * 0.08 or 1.0
    return low - reach, high + reach


def label(ax, name, rows):
    """Name and statistic of a part, left of its row of the figure; rows: from `parts`."""
    ax.text(-0.03, 0.5, textwrap.fill(f"{name}: {statistic(rows)}", LABEL), transform=ax.transAxes, fontsize=6,
            ha="right", va="center")


def of_lead(table):
    """The claim that all others build on, in numbers, a line a model, in Markdown.

    table : `claims` of the models that were run.
    """
    rows = table[(table["name"] == "C1") & table["value"].notna()]
    lines = [f"- **{short(row['model'])}**: {row['value']:.1f} times ({between(row, form='.1f')}); ranking "
             f"half-normal numbers gives {row['null']:.1f} times." for _, row in rows.iterrows()]
    said = "\n".join(lines) or "- not measured yet."
    return f"The rare group's influence on rare targets over the median neuron's:\n\n{said}"


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


# ---- what the models say together

ANSWERS = {REPRODUCED: "yes", PARTLY: "in part", NOT: "no", UNTESTED: "cannot be told"}
QUESTIONS = {"C2 head": "Is there a plateau, a head that stands above its law and is flatter?",
             "C7 contrast": "Does the head stand higher for rare than for common tokens?",
             "C5 within": "Do the neurons of the rare group move together, more than other neurons do?"}


def together(table, settings):
    """What holds in all, in some or in none of the models that were run, a line a question, in Markdown.

    table : `claims` ; settings : whose tables `linearity` are read beside it.
    """
    run, made = table[table.groupby("model")["reason"].transform("first") != PENDING], linearity(settings)
    found = {f"{question} ({name})": [(row["model"], answer(row), why(row))
                                      for _, row in run[run["name"] == name].iterrows()]
             for name, question in QUESTIONS.items()}
    found["Is the head made of linear maps that are always on? (exploratory)"] = [
        (model, *portraits.answer(made[model])) for model in run["model"].unique() if model in made]
    told = [f"- **{question}** {_where([answer for _, answer, _ in of])}: "
            + "; ".join(f"{answer} in {short(model)} ({reason})" for model, answer, reason in of) + "."
            for question, of in found.items() if of]
    return "\n".join(told) or "- not measured yet."


def _where(answers):
    if set(answers) == {"yes"}:
        return "In all models"
    return "In some models" if "yes" in answers else "In none of the models" + " fully" * ("in part" in answers)
