"""One style for all figures, one `save`, and the drawing functions that several figures share.

Every function draws into axes it is given; nothing here computes a result or reads a table.
"""

import math
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from scipy.cluster.hierarchy import dendrogram

from rare_token_neurons import files
from rare_token_neurons.curve import heads
from rare_token_neurons.statistics.geometry import cluster
from rare_token_neurons.tables import stage

COLUMN, PAGE = 3.4, 7.0      # widths in inches: one column, two columns
DPI = 200
UNSAID = {"png": ("Software",), "pdf": ("CreationDate", "Producer", "Creator")}  # in the files' metadata
_OKABE = sns.color_palette("colorblind").as_hex()
GREY, DARK = "#8c8c8c", "#606060"  # nulls and controls, always
COLORS = {
    "rare": _OKABE[3],       # vermilion
    "common": _OKABE[0],     # blue
    "all": "#303030",
    "random": GREY, "matched": "#b0b0b0", "null": GREY,
    "boost": "#882255", "suppress": "#999933",  # wine and olive: neither is like rare or common
    "head": _OKABE[4], "power law": _OKABE[2], "decay": _OKABE[8],
}
DECIDES = f"{heads.DECIDES} head"                # the rule, in tables, of the head that decides
Z = 1.96                                         # standard errors of a 95 % interval
PLACES = 100                                     # at which null curves are drawn
LIMIT = 0.6                                      # of the correlation at which the colours of a heat map end
NULLS = {"lognormal": "--", "half_normal": ":"}  # outlines; the law itself is filled
STYLE = {
    "font.size": 8, "axes.titlesize": 8.5, "axes.labelsize": 8, "legend.fontsize": 7,
    "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.frameon": False,
    "axes.titlelocation": "left", "axes.titleweight": "bold",
    "lines.linewidth": 1.2, "lines.markersize": 3, "axes.linewidth": 0.6,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "grid.linewidth": 0.4,
    "figure.dpi": 100, "savefig.dpi": DPI, "figure.constrained_layout.use": True,
    "pdf.fonttype": 42, "ps.fonttype": 42, "svg.hashsalt": "rare-token-neurons",
    "axes.spines.top": False, "axes.spines.right": False,
}


def use_style():
    """Set the figures' style for the whole process; a notebook calls it once.

    Letters come from matplotlib's own font files, whatever the system has under the same name:
    a PDF embeds them, and its bytes should not depend on the machine.
    """
    fonts = mpl.font_manager.fontManager
    fonts.ttflist = [font for font in fonts.ttflist if Path(mpl.get_data_path()) in Path(font.fname).parents]
    sns.set_theme(context="paper", style="ticks", palette="colorblind", font="DejaVu Sans", rc=STYLE)


def panels(rows=1, columns=1, *, width=PAGE, height=None, **options):
    """Figure and axes of a print width in inches; the height defaults to 0.72 of a panel's width a row."""
    use_style()
    height = height or 0.72 * width / columns * rows
    return plt.subplots(rows, columns, figsize=(width, height), **options)


def save(figure, folder, name):
    """Write `figure` to folder/name.png (200 dpi) and folder/name.pdf, the same bytes each time.

    Each file is written under a temporary name and renamed, so that a reader never meets half a
    figure; without a creation date and without the library's version the bytes depend on the
    figure alone.

    Parameters
    ----------
    name : for example "fig3_three_phases", without an ending.

    Returns
    -------
    The two paths, PNG first.
    """
    if not name or Path(name).name != name or name.endswith((".png", ".pdf")):
        raise ValueError(f"a figure's name is one word without folder or ending, not {name!r}")
    written = [Path(folder) / f"{name}.{kind}" for kind in UNSAID]
    _lay_out(figure)
    for path, unsaid in zip(written, UNSAID.values()):
        with files.new_file(path) as temporary, mpl.rc_context({"pdf.fonttype": 42}):
            figure.savefig(temporary, dpi=DPI, metadata=dict.fromkeys(unsaid))
        stage.note_figure(path)
    return written


def _lay_out(figure):
    """Find the places of all axes once, at the resolution of the PNG: not again for the PDF and for the notebook."""
    with mpl.rc_context({"figure.constrained_layout.use": False}):
        figure.set_dpi(DPI)
        figure.draw_without_rendering()
        figure.set_dpi(STYLE["figure.dpi"])
        figure.set_layout_engine(None)


def title(ax, finding, pad=None):
    """Title that states the finding, at the left, with the caller's line breaks; pad: points below it."""
    ax.set_title(finding, loc="left", pad=pad)


def log_log(ax, x_label, y_label):
    """Both axes logarithmic, both labelled (give the unit in the label)."""
    ax.set(xscale="log", yscale="log", xlabel=x_label, ylabel=y_label)


def last_ranks(fit):
    """Where the stretches of a fitted curve end: last rank of the shelf, last one before the law, last one of the law.

    The cliff lies between the first two; without a cliff, or without a head, they are the same. The next stretch always
    begins at the next rank.

    fit : row of table `phases`: neurons, head, shelf (missing by the paper's rule), law_start, decay_share.
    """
    head = int(fit["head"])
    before = max(head, math.ceil(fit["law_start"]) - 1)
    return int(np.fmin(fit["shelf"], head)), before, round((1 - fit["decay_share"]) * fit["neurons"])


def shade_phases(ax, fit):
    """Shade head, power law and decay behind a rank curve as the fit found them, the cliff down to the law hatched.

    An empty stretch is not drawn. A head with a cliff has a shelf before it, whatever its word is.

    fit : as `last_ranks` takes it.
    """
    n, ranks = fit["neurons"], (0, *last_ranks(fit), fit["neurons"])
    called = ("shelf" if ranks[2] > ranks[1] else "head", "cliff", "power law", "decay")
    for name, first, last in zip(called, ranks[:-1], ranks[1:]):
        if last <= first:
            continue
        left, right = max(first + 0.5, 1), min(last + 0.5, n)
        color = COLORS["head" if name in ("shelf", "cliff") else name]
        ax.axvspan(left, right, facecolor=color, alpha=0.13, linewidth=0, zorder=0)
        if name == "cliff":
            ax.axvspan(left, right, facecolor="none", edgecolor=color, alpha=0.5, hatch="////", linewidth=0, zorder=0)
        narrow = right / left < 4      # its name, centred, would stand out of the axes
        side = "left" if narrow and left == 1 else "right" if narrow and right == n else "center"
        place = {"left": 1.05, "right": 0.9 * n, "center": np.sqrt(left * right)}[side]
        height = 0.14 if name == "cliff" else 0.02  # it is narrow, and would run into its neighbours' names
        ax.text(place, height, f"{name}\n{100 * (last - first) / n:.1f} %", ha=side, va="bottom", fontsize=6,
                color=COLORS["all"], transform=ax.get_xaxis_transform())


def band(ax, x, low, high, *, color=GREY, label=None, alpha=0.25):
    """A band between `low` and `high`; `label` must say what it is (for example "95 % of 200 lognormals")."""
    ax.fill_between(x, low, high, color=color, alpha=alpha, linewidth=0, label=label, zorder=1)


def edges(ax, x, low, high, *, label, **look):
    """The two edges of a band as thin grey lines, in place of the band; takes what `band` takes."""
    for edge, name in ((low, label), (high, None)):
        ax.plot(x, edge, label=name, **{"color": GREY, "linewidth": 0.8, "linestyle": "--"} | look)


def null_bands(ax, rows):
    """95 % of the null curves by rank: the law itself in grey, ranked draws from two families as thin grey outlines.

    Drawn at ranks even in log rank: at every rank the outlines of the tail would be a blot.

    rows : one curve's of table `rank_curves`, or of `emergence_curves`: rank, law_low, law_high, lognormal_low, ...
    """
    shown = np.unique(np.geomspace(1, rows["rank"].max(), PLACES).round())
    rows = rows[rows["rank"].isin(shown)]
    band(ax, rows["rank"], rows["law_low"], rows["law_high"], label="null: the law itself, 95 %", alpha=0.4)
    for name, line in NULLS.items():
        low, high = (rows[f"{name}_{end}"] for end in ("low", "high"))
        edges(ax, rows["rank"], low.where(low > 0), high.where(high > 0), linewidth=0.7, linestyle=line,
              label=f"null: {name.replace('_', '-')}, 95 %")


def rank_curve(ax, rows, fit, *, label, color):
    """Influence by rank on log-log axes, with its interval, over its null curves, and what a fit found in it.

    Parameters
    ----------
    rows : one curve's of table `rank_curves`: rank, influence, low, high and the columns of `null_bands`.
    fit : its row of table `phases`: shades head, law and decay, and draws the law's line, carried to rank 1. A curve
        that could not be fitted has neither.
    label : legend entry (say n).
    """
    shown = rows["influence"].where(rows["influence"] > 0)    # dead neurons have no place on a log axis
    log_log(ax, "rank of the neuron", "influence (nats)")
    if np.isfinite(fit["kappa"]):
        shade_phases(ax, fit)
        reach = np.array([1, last_ranks(fit)[-1]])
        ax.plot(reach, np.exp(fit["beta"] - fit["kappa"] * np.log(reach)), color=COLORS["all"], linewidth=0.8,
                linestyle=(0, (4, 2)), zorder=2.5, label=f"line: the law, carried to rank 1 (κ = {fit['kappa']:.2f})")
    null_bands(ax, rows)
    band(ax, rows["rank"], rows["low"], rows["high"], color=color)
    ax.plot(rows["rank"], shown, color=color, label=label, zorder=3)
    ax.set_xlim(1, len(rows))
    bottom = shown.iloc[: max(1, int(0.98 * len(shown)))].min()
    if ax.get_ylim()[0] < bottom / 30:                        # one dying neuron must not squeeze the curve
        ax.set_ylim(bottom=bottom / 3)


def legend_below(figure, panels, title=None, columns=3):
    """One legend of the panels' entries under them, each entry once, without those that a panel's own legend has."""
    entries = {label: handle for ax in panels for handle, label in zip(*ax.get_legend_handles_labels())}
    for ax in panels:
        for text in ax.get_legend().get_texts() if ax.get_legend() else ():
            entries.pop(text.get_text(), None)
    figure.legend(entries.values(), entries, title=title, title_fontsize=7, loc="outside lower center", ncols=columns)


def over_steps(ax, steps, values, *, low=None, high=None, label=None, color=None, **options):
    """A quantity over training steps; the axis is symmetric-log, so that step 0 has a place.

    steps, values, low, high : (checkpoints,).
    """
    color = color or COLORS.get(label, COLORS["all"])
    steps, values = np.asarray(steps), np.asarray(values)
    if low is not None:
        band(ax, steps, low, high, color=color)
    ax.plot(steps, values, marker="o", color=color, label=label, **options)
    positive = steps[steps > 0]
    ax.set_xscale("symlog", linthresh=float(positive.min()) if len(positive) else 1.0, linscale=0.4)
    ax.set_xlabel("training step")


def zipf(ax, counts, *, rare_at=None, label=None, color=COLORS["all"]):
    """Zipf plot of token counts, with the rare band shaded.

    counts : (types,) occurrences of each token type, any order; zeros are left out.
    rare_at : a count; the types at or below it are the rare band.
    """
    seen = np.sort(np.asarray(counts, dtype=float))[::-1]
    seen = seen[seen > 0]
    log_log(ax, "rank of the token type", "occurrences")
    ax.plot(np.arange(1, len(seen) + 1), seen, color=color, label=label)
    if rare_at is not None:
        first = int(np.sum(seen > rare_at)) + 1
        if first <= len(seen):
            share, types = seen[first - 1:].sum() / seen.sum(), 1 - (first - 1) / len(seen)
            ax.axvspan(first, len(seen), color=COLORS["rare"], alpha=0.13, linewidth=0,
                       label=f"rare: {100 * types:.0f} % of types, {100 * share:.1f} % of uses")


def heat_map(ax, matrix):
    """Correlations in diverging colours centred on zero, which end at `LIMIT` either way."""
    sns.heatmap(np.asarray(matrix, dtype=float), ax=ax, cmap="vlag", vmin=-LIMIT, vmax=LIMIT, center=0, square=True,
                rasterized=True, cbar=False, xticklabels=False, yticklabels=False)


def plain_ticks(*scales):
    """Ticks in plain numbers on logarithmic axes: at 1, 2 and 5 over a decade or two, else at 1 alone."""
    for axis in scales:
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())


def tick_at(ax, ticks):
    """Name those of some heights that lie within a logarithmic axis, in plain numbers, and no others."""
    ticks = [tick for tick in ticks if ax.get_ylim()[0] <= tick <= ax.get_ylim()[1]]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_yticks([], minor=True)


def whiskers(ax, x, rows, column="value", **look):
    """Values with their intervals.

    x : of each ; rows : table or row with column, its low and its high (for "value": low and high).
    """
    low, high = ("low", "high") if column == "value" else (f"{column}_low", f"{column}_high")
    value, low, high = (np.atleast_1d(rows[name]) for name in (column, low, high))
    ax.errorbar(np.atleast_1d(x), value, yerr=[value - low, high - value], **look)


# ---- a group over its controls

LABELS = {"random": "random groups, 95 %", "matched": "matched groups, 95 %"}
NAMES = {"rare": "rare group"}
LEAST_SHARE = 0.001  # of the pairs: emptier bins at the ends are not drawn


def of_groups(ax, rows):
    """Each row's value with its interval over documents, beside the bands of its control groups.

    rows : DataFrame, one row a group, with group, value, low, high, random, random_low, random_high, matched, ...
    """
    for place, row in enumerate(rows.to_dict("records")):
        alone = np.isnan(row["matched"])
        for kind, left in (("random", place - (0.18 if alone else 0.36)), ("matched", place)):
            ax.fill_between([left, left + 0.36], row[f"{kind}_low"], row[f"{kind}_high"], color=COLORS[kind],
                            alpha=0.5 if kind == "random" else 0.35, linewidth=0, label=None if place else LABELS[kind])
            ax.plot([left, left + 0.36], [row[kind]] * 2, color=GREY, linewidth=0.8)
        whiskers(ax, place, row, fmt="o", markersize=4, capsize=2, zorder=4, color=COLORS[row["group"]],
                 markeredgecolor=DARK, markeredgewidth=0.4,
                 label=None if place else "group, 95 % over documents")
    names = [f"{NAMES.get(name, name)}\n(n = {size})" for name, size in zip(rows["group"], rows["size"])]
    ax.set_xticks(range(len(rows)), names)
    ax.set_xlim(-0.6, len(rows) - 0.4)


def of_curve(ax, x, rows, *, color, label):
    """A curve with its interval, over the band of random groups; matched groups are dashed (edges of their band).

    x : (n,) ; rows : DataFrame of n rows with value, low, high, random_low, ... in the order of x.
    """
    band(ax, x, rows["random_low"], rows["random_high"], label=LABELS["random"], alpha=0.35)
    edges(ax, x, rows["matched_low"], rows["matched_high"], label=LABELS["matched"])
    band(ax, x, rows["low"], rows["high"], color=color, label="group, 95 % over documents")
    ax.plot(x, rows["value"], color=color, label=label, zorder=4)


def group_over_steps(ax, rows):
    """Curves over training: the group of each checkpoint with its bands, and the last checkpoint's group followed back.

    rows : DataFrame with step, group ("rare" and "last rare"), value, low, high, random_low, ...
    """
    own, last = (rows[rows["group"] == name].sort_values("step") for name in ("rare", "last rare"))
    steps = own["step"].to_numpy(dtype=np.int64)
    of_curve(ax, steps, own, color=COLORS["rare"], label="rare group of the checkpoint")
    over_steps(ax, last["step"].to_numpy(dtype=np.int64), last["value"], color=COLORS["all"], linewidth=0.9,
               label="last rare group, followed back")


def of_pairs(ax, sets):
    """How the pairs of a group are spread, over random groups (mean and 95 % band) and matched ones (mean, dashed).

    sets : "rare", "random" and, where there are such, "matched" -> DataFrame, one row a bin, with left, share, low,
    high.
    """
    def closed(rows, column):  # the last bin has a right edge too
        left = rows["left"].to_numpy()
        return np.append(left, 2 * left[-1] - left[-2]), np.append(rows[column], rows[column].iloc[-1])

    edges, low = closed(sets["random"], "low")
    ax.fill_between(edges, low, closed(sets["random"], "high")[1], step="post", color=COLORS["random"], alpha=0.35,
                    linewidth=0, label=LABELS["random"])
    styles = {"random": {"color": GREY, "linewidth": 0.8, "label": "random groups, mean"},
              "matched": {"color": GREY, "linewidth": 0.8, "linestyle": "--", "label": "matched groups, mean"},
              "rare": {"color": COLORS["rare"], "label": NAMES["rare"]}}
    for name, style in styles.items():
        if name in sets:
            ax.step(*closed(sets[name], "share"), where="post", **style)


def reach(bins):
    """The ends of the bins that hold more than 0.1 % of the pairs of some set: (low, high).

    bins : DataFrame, rows of one measure with left, share.
    """
    seen = bins.loc[bins["share"] > LEAST_SHARE, "left"]
    return seen.min(), seen.max() + np.diff(np.unique(bins["left"])).min()


def clustered(above, ax, block, finding):
    """The correlations inside a group as a heat map, in the order of a clustering, whose tree is drawn above.

    block : (m, m) correlations ; finding : the title, of the axes above.
    """
    order, tree = cluster(block)
    dendrogram(tree, ax=above, no_labels=True, color_threshold=0, above_threshold_color=GREY)
    above.set(ylim=(0, 1.4), yticks=(0, 1), ylabel="1 - r")
    title(above, finding)  # before the heat map, with which seaborn draws the figure: its layout then knows the title
    heat_map(ax, block[order][:, order])
    ax.set(xlabel=f"{len(order)} neurons, clustered", aspect="auto")
