"""Drawing nulls and power-law tests (notebook 09) and the token-frequency scores (13), and what they say in words."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import stats

from rare_token_neurons import files, paths
from rare_token_neurons.curve import heads as plateaus
from rare_token_neurons.figures import axes
from rare_token_neurons.figures.axes import COLORS, title  # the notebooks need title, SCORES and overlaps too
from rare_token_neurons.figures.words import between, level, named, percent
from rare_token_neurons.statistics.rankings import SCORES, SIDES, overlaps, per_nat

FULL = ("lognormal", "half-normal", "exponential", "law", "untrained model")  # at all positions
BESIDE = 3  # nulls in a row of figure 9a
LEVEL = 0.05
MIDDLES = {"rejected": "is rejected as a power law", "not rejected": "may be a power law",
           "cannot tell it from a lognormal": "could as well be lognormal"}  # what the test says of the middle


# ---- by hand


def drawn(ax, ranked):
    """Ranked numbers on log-log axes, the law of their middle carried to rank 1,
    and in the title where their head lies.

    ranked : (n,) falling.
    """
    n, found = len(ranked), plateaus.find(ranked, "fixed")
    reach = np.array([1.0, found.end[0]])
    axes.log_log(ax, "rank", "size of the number")
    ax.plot(np.arange(1, n + 1), ranked, color=axes.GREY, label="ranked numbers")
    ax.plot(reach, np.exp(found.beta[0] - found.kappa[0] * np.log(reach)), "--", color=COLORS["all"], linewidth=0.8,
            label="their law, carried to rank 1")
    ax.axvspan(1, plateaus.head_size(n), color=COLORS["head"], alpha=0.13, linewidth=0, label="head: the first 1.7 %")
    side = "above" if found.delta[0] > 0 else "below"
    ax.set_xlim(1, n)
    title(ax, f"{n:,} drawn numbers have a head, too:\n{abs(found.delta[0]):.2f} e-folds {side} its law")
    ax.legend(loc="lower left")


# ---- the nulls of the head


def said(name):
    """A null in words."""
    return "the law itself" if name == "law" else name


def beyond(heads):
    """(rows,) bool: whether the measured head stands higher than the null's, p < 0.05."""
    return heads["p"] < LEVEL


def listed(heads):
    """The nulls as they are shown: a row a null; heads: table `null_heads`."""
    return pd.DataFrame({
        "null": heads["null"].map(said), "Δ measured (e-folds)": heads["delta"].round(2),
        "its score": heads["score"].round(1), "score of the null, median": heads["null_median"].round(1),
        "5 % to 95 %": [between(row, "null", "+.1f") for row in heads.to_dict("records")],
        "as high by chance": [level(row["p"], row["p_floor"], "curves") for row in heads.to_dict("records")],
        "positions": heads["positions"]}).set_index("null")


def frames(heads):
    """A figure with a place for the scores, and beside it one for each null: the figure, and axes by name."""
    axes.use_style()
    names = [*heads["null"], *["."] * (-len(heads) % BESIDE)]
    rows = [["scores", *names[start:start + BESIDE]] for start in range(0, len(names), BESIDE)]
    return plt.subplot_mosaic(rows, figsize=(axes.PAGE, 0.5 + 1.65 * len(rows)), width_ratios=[1.25, *[1] * BESIDE])


def beside_null(ax, bands, row, limits):
    """The measured curve over the 95 % of one null's curves; in the title whether its head is higher.

    bands : from `null_bands` ; row : the null's, of `null_heads` ; limits : from `ends`, the same for all nulls.
    """
    rows = bands[bands["null"] == row["null"]]
    ax.set(xscale="log", yscale="log")
    axes.band(ax, rows["rank"], rows["low"], rows["high"], label="null curves: influence, 95 %", alpha=0.4)
    ax.plot(rows["rank"], rows["influence"], color=COLORS["rare"], zorder=4, label="the model's curve, rare targets")
    ax.set(**limits)
    ax.text(0.05, 0.05, f"{row['positions']:,} positions", transform=ax.transAxes, fontsize=6)
    ax.set_title(f"{said(row['null'])}:\n{'higher' if beyond(row) else 'not higher'}", loc="left", fontsize=6.5,
                 fontweight="normal")


def ends(bands):
    """Limits of both axes that show every measured curve, and the null curves beside it."""
    shown = bands["influence"][bands["influence"] > 0]
    high = min(shown.max() * 5, bands["high"].max() * 1.5)  # the law's own samples reach far higher at rank 1
    return {"xlim": (1, bands["rank"].max()), "ylim": (shown.quantile(0.02) / 2, high)}


def finish(figure, places, heads):
    """Labels at the outer places alone, one legend, and the finding as the title; places: from `frames`."""
    for number, name in enumerate(heads["null"]):
        lowest, left = number + BESIDE >= len(heads), number % BESIDE == 0
        places[name].set(xlabel="rank of the neuron" * lowest, ylabel="influence (nats)" * left)
        places[name].tick_params(labelbottom=lowest, labelleft=left)
    axes.legend_below(figure, places.values(), columns=2)
    figure.suptitle(finding(heads), x=0.01, ha="left", fontsize=8.5, fontweight="bold")


def finding(heads):
    """Title: how high the head stands, and by how many nulls that is more than chance; heads: table `null_heads`."""
    return (f"The head stands {heads['delta'].iloc[0]:+.2f} e-folds above its law: "
            f"more than chance by {beyond(heads).sum()} of {len(heads)} nulls")


def by_null(ax, heads):
    """The head's score beside those of each null (grey), a row a null with its p value: below 0.05 right of the bar."""
    for place, row in enumerate(heads.to_dict("records")):
        ax.plot([row["null_low"], row["null_high"]], [place] * 2, color=axes.GREY, linewidth=5, alpha=0.45,
                solid_capstyle="butt", label="null curves: scores, 5 % to 95 %" if place == 0 else None)
        ax.plot(row["null_median"], place, "|", color=axes.GREY, markersize=7)
        ax.plot(row["score"], place, "o", color=COLORS["rare"], markersize=4,
                label=None if place else "the model's score")
    ax.axvline(0, color=COLORS["all"], linewidth=0.6)
    names = [f"{said(row['null'])}\n{level(row['p'], row['p_floor'], 'curves')}" for _, row in heads.iterrows()]
    ax.set_yticks(range(len(heads)), names, fontsize=6)
    ax.set_ylim(len(heads) - 0.4, -0.6)
    ax.set_xlabel("score of the head: height Δ\nin units of its scatter")


def of_heads(heads):
    """Beyond which nulls the head stands, in words.

    heads : table `null_heads`.
    """
    if not len(heads):
        return "The head cannot be tested: too few neurons or documents."
    rest, higher = heads[~heads["null"].isin(FULL)], beyond(heads)
    within = heads.loc[~higher, "null"].map(said)
    told = (f"At all positions the head stands {heads['delta'].iloc[0]:+.2f} e-folds above its law (Δ). By its score "
            f"that is more than chance (p < {LEVEL:g}) in **{higher.sum()} of the {len(heads)} nulls**"
            + (f", but not in: {', '.join(within)}." if len(within) else "."))
    if not len(rest):
        return told
    alike = rest.loc[~beyond(rest), "null"]
    chance = level(rest["p"].iloc[-1], rest["p_floor"].iloc[-1])
    return (f"{told}\n\nOn the smaller part of the text Δ is {rest['delta'].iloc[0]:+.2f}. Common positions of the "
            f"same loss: {rest['note'].iloc[-1]}. As high a head there: {chance}. "
            + (f"So positions that are not rare have as high a head: {', '.join(alike)}." if len(alike) else
               "So positions that are not rare have no head as high."))


# ---- the power law


def law(ax, values, tests, color):
    """Share of the neurons above each influence, with the power laws of the middle and of the upper tail in grey.

    values : (neurons,) ; tests : rows of `power_laws` of one group.
    """
    falling = np.sort(np.asarray(values, dtype=float))[::-1]
    falling = falling[falling > 0]
    n = len(falling)
    axes.log_log(ax, "influence (nats)", "share of the neurons above")
    ax.plot(falling, np.arange(1, n + 1) / n, ".", color=color, markersize=2.5, label=f"{n:,} neurons", zorder=2)
    for row, line in zip(tests.to_dict("records"), ("-", "--")):
        if not np.isfinite(row["alpha"]):
            continue
        high = row["high"] if np.isfinite(row["high"]) else np.inf
        x, a = np.geomspace(row["low"], falling[0] if np.isinf(high) else high, 50), row["alpha"] - 1
        survival, end, above = (x / row["low"]) ** -a, (high / row["low"]) ** -a, np.sum(falling > high)
        ax.plot(x, (above + row["n"] * (survival - end) / (1 - end)) / n, color=COLORS["all"], linestyle=line, zorder=3,
                label=f"{row['part']}: α = {row['alpha']:.1f}, {row['n']:,} neurons\n{row['verdict']}")
    ax.set_ylim(0.5 / n, 1.5)
    ax.set_xlim(falling[int(0.99 * n)] / 2, falling[0] * 1.5)
    ax.legend(loc="lower left")


def of_middle(tests):
    """Title: whether the middle of one group's curve is a power law; tests: its rows of `power_laws`,
    the middle first."""
    row = tests.iloc[0]
    return f"{row['group'].capitalize()} targets: the middle\n{MIDDLES.get(row['verdict'], row['verdict'])}"


def tests(laws):
    """The tests as they are shown: a row a stretch of a curve; laws: table `power_laws`."""
    return pd.DataFrame({
        "targets": laws["group"], "stretch": laws["part"], "neurons": laws["n"], "exponent α": laws["alpha"].round(1),
        "from (nats)": laws["low"].map("{:.2g}".format),
        "to (nats)": laws["high"].map("{:.2g}".format).replace("nan", "the end"),
        "goodness of fit, p": laws["p_fit"].round(2), "better than a lognormal, log ratio": laws["ratio"].round(1),
        "verdict": laws["verdict"]}).set_index("targets")


# ---- calibration

COUNTED = ("calibration", "calibration_contrasts")  # tables in data/results
SHOWN = 3  # of the samples without a raised head: those most often called raised


def calibrated():
    """The full counts of heads and of contrasts on planted samples; None in place of one that is not there."""
    found = (paths.RESULTS / f"{name}.parquet" for name in COUNTED)
    return [files.read_table(path) if path.exists() else None for path in found]


def limit(runs):
    """The share of samples that a test of 5 % rejects wrongly in 97.5 % of as many runs, at most."""
    return stats.binom.ppf(0.975, runs, plateaus.LEVEL) / runs


def counts(told):
    """The samples that matter most, of the head that decides, in per cent: a row a sample.

    Those without a raised head that are most often called raised, every shelf, and the rounded head.

    told : from `calibrated`.
    """
    rows = told[told["head"] == plateaus.DECIDES]
    worst = rows[rows["kind"] == "size"].nlargest(SHOWN, "raised")
    shown = pd.concat([worst, rows[rows["kind"] == "power"], rows[rows["sample"] == "rounded"]])
    names = {"raised": "called raised (%)", "plateau": "called a plateau (%)", "covered": "true Δ in its interval (%)"}
    made = shown.set_index("sample")[list(names)].mul(100).round(1).rename(columns=names)
    return made.assign(samples=shown["runs"].to_numpy()).rename_axis("planted sample")


def pairs(apart):
    """The contrasts as they are shown, per cent of the pairs told apart: a row a pair; apart: from `calibrated`."""
    shown = apart.pivot(index="sample", columns="coupled", values="apart").mul(100).round(1)
    shown.columns = [f"told apart (%), ranks {f'coupled by {much:g}' if much else 'not coupled'}" for much in shown]
    return shown.reindex(apart["sample"].unique()).rename_axis("planted pair")


def of_calibration(told, apart):
    """What the calibration says, in Markdown; by which command it is made where it is not here.

    told, apart : from `calibrated`.
    """
    if told is None or apart is None:
        return ("The full counts are not here yet. `python -m rare_token_neurons calibrate` makes them, in an hour and "
                "a half of two cores: `data/results/calibration.parquet` and `calibration_contrasts.parquet`.")
    lines = []
    for head, rows in told.groupby("head", sort=False):
        size, power = (rows[rows["kind"] == kind].set_index("sample") for kind in ("size", "power"))
        rounded, worst = rows.set_index("sample").loc["rounded", "plateau"], size.loc[size["raised"].idxmax()]
        lines.append(
            f"- **The {head} head{', which decides' if head == plateaus.DECIDES else ''}.** Where nothing is raised it "
            f"is called raised in at most {percent(worst['raised'], 1)} of {worst['runs']:,} samples ({worst.name}). A "
            f"test of 5 % gives up to {percent(limit(worst['runs']), 1)} in so many. A planted shelf is called a "
            f"plateau in {percent(power['plateau'].mean())} of the samples, from {percent(power['plateau'].min())} "
            f"({power['plateau'].idxmin()}) to {percent(power['plateau'].max())}. A rounded head is called one in "
            f"{percent(rounded, 1)}. The decay is taken for the law in at most {percent(rows['late'].max(), 1)}. The "
            f"95 % interval of Δ holds the true one in {percent(rows['covered'].min())} to "
            f"{percent(rows['covered'].max())}.")
    laws, shelves = (apart[apart["sample"].str.contains("shelf") == side] for side in (False, True))
    worst = laws.loc[laws["apart"].idxmax()]
    lines.append(f"- **Two curves.** Two laws without a raised head are told apart in at most "
                 f"{percent(worst['apart'], 1)} of {worst['runs']:,} pairs ({worst['sample']}). A shelf and a law are "
                 f"told apart in {percent(shelves['apart'].min())} to {percent(shelves['apart'].max())}.")
    return "\n".join(lines)


def answers(promises):
    """The promises as they are shown: a row for each of which a rate is wanted; promises: the table."""
    asked = promises[promises["wanted"] > 0]
    index = pd.Index(asked["promise"], name="planted samples, and what is right")
    return asked.set_index(index)[["kept", "runs", "wanted"]].set_axis(["answered rightly", "of", "wanted (%)"], axis=1)


def of_promises(promises):
    """How many promises hold, and which do not, in Markdown; promises: the table."""
    asked = promises[promises["wanted"] > 0]
    broken = "".join(f" Not kept: {row.promise}, {row.kept} of {row.runs}, wanted {row.wanted} %."
                     for row in asked[~asked["holds"]].itertuples())
    return (f"**{asked['holds'].sum()} of {len(asked)}** promises hold. Each is tried on {asked['runs'].iloc[0]} "
            f"planted samples. The test that errs most often answers rightly in {asked['kept'].min()} of them.{broken}")


# ---- in words


def summary(head, laws, promises):
    """Paper and here, in Markdown.

    head : the row of table `prominence` on the head, rare targets ; laws, promises : tables `power_laws`, `promises`.
    """
    middle = laws.iloc[0]
    known = promises[promises["promise"].str.startswith("the middle of a planted power law")].iloc[0]
    worst = head[["p_law", "p_lognormal", "p_half_normal"]].astype(float).max()
    return (
        "The paper shows a plateau above a power law, and then a decay. It sets some of the boundaries by hand, and it "
        "has no null. Here:\n\n"
        f"- The head is called **{named(head)}**. It stands {head['value']:+.2f} e-folds above its law (95 %: "
        f"{between(head, form='+.2f')}). By the null that comes nearest, as high a head is: "
        f"{level(worst, head['p_floor'])}.\n"
        f"- The middle, tested as a power law: **{middle['verdict']}** (α = {middle['alpha']:.2f}, goodness of fit "
        f"{level(middle['p_fit'])}). For comparison: this test rejects a true power law in "
        f"{known['runs'] - known['kept']} of {known['runs']} planted samples.")


# ---- token-frequency neurons (notebook 13)

NAMES = {"unigram_share": "share through the\nunigram direction",
         "kl": "change of KL to unigram\n(nats per nat of influence)",
         "entropy": "change of entropy\n(nats per nat of influence)", "scale_share": "share through the\nnorm's scale"}
FOUND = {"unigram_share": "act through\ntoken frequency", "kl": "stand out by\nthe KL to unigram",
         "entropy": "stand out by\nthe entropy", "scale_share": "act through\nthe norm's scale"}


def of_score(row):
    """Title: how many of the rare group have the largest scores; row: of `overlaps`."""
    return f"{row['relative']} of {row['k']} {FOUND[row['score']]} (chance {row['chance']:.1f})"


def scores(ax, table, score):
    """Influence against one token-frequency score, a dot a neuron; of the rare group boost and suppress in colour.

    The changes of KL and entropy grow with any effect; they are drawn per nat of influence.

    table : from `frequency_neurons`.
    """
    table, share = table.assign(**{score: per_nat(table, score)}), score.endswith("share")
    k = int(table["rare"].sum())
    cut = (table[score] if share else table[score].abs()).nlargest(k).iloc[-1]
    for y in {cut, cut if share else -cut}:
        ax.axhline(y, color=axes.DARK, linestyle=":", linewidth=1, label=f"beyond it: the {k} largest" if y == cut else None)
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
    if share:
        ax.set_ylim(max(low, -1.0), min(high, 1.0))
    else:
        ax.set_yscale("symlog", linthresh=float(others[score].abs().quantile(0.9)) or 1.0)
        ax.set_ylim(low, high)
    ax.set(xlabel="influence on rare tokens (nats)", ylabel=NAMES[score])
    axes.plain_ticks(ax.xaxis)


def by_score(overlap):
    """The overlaps as they are shown, of boost and suppress neurons together: a row a score; overlap:
    from `overlaps`."""
    rows = overlap[overlap["side"] == "all"]
    return pd.DataFrame({
        "score": rows["score"].map(NAMES).str.replace("\n", " "), "of the rare group": rows["relative"], "among the top": rows["k"],
        "by chance": rows["chance"].round(1), "p": rows["p"].map("{:.1g}".format),
        "median, rare group": rows["group"].map("{:.2g}".format),
        "median, the others": rows["others"].map("{:.2g}".format)}).set_index("score")


def of_sides(overlap):
    """The overlap by the unigram direction, boost and suppress apart, in Markdown; overlap: from `overlaps`."""
    rows = overlap[(overlap["score"] == "unigram_share") & (overlap["side"] != "all")].set_index("side")
    told = " and ".join(f"{row['relative']} of the rare group's {row['k']} {side} neurons (chance {row['chance']:.1f})"
                        for side, row in rows.iterrows())
    return (f"Boost and suppress neurons apart: {told} are among those with the largest share through the unigram "
            "direction.")


def of_frequency(overlap):
    """Paper and here, in Markdown; overlap: from `overlaps`."""
    top, kl, entropy = (overlap[overlap["side"] == "all"].set_index("score").loc[score]
                        for score in ("unigram_share", "kl", "entropy"))
    return (
        "The paper does not ask this; its critics do. Here:\n\n"
        f"- **{top['relative']} of the {top['k']}** neurons of the rare group are among the {top['k']} with the largest "
        f"share through the unigram direction. Chance gives {top['chance']:.1f}.\n"
        f"- In the median that share is {percent(top['group'])} of their effect; of the other neurons it is "
        f"{percent(top['others'], 1)}.\n"
        f"- By the change of KL per nat of influence {kl['relative']} of {kl['k']} stand out, by that of the entropy "
        f"{entropy['relative']}. In nats it would be {kl['shared']} and {entropy['shared']}, by size alone.")
