"""One style for all figures, one `save`, and the drawing functions that several figures share.

Every function draws into axes it is given; nothing here computes a result or reads a table.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import dendrogram

from rare_token_neurons import files
from rare_token_neurons.statistics.controls import POOR_MATCH  # for a notebook, as mean_pair and mean_abs_pair are
from rare_token_neurons.statistics.geometry import cluster, mean_abs_pair, mean_pair
from rare_token_neurons.tables import stage

COLUMN, PAGE = 3.4, 7.0      # widths in inches: one column, two columns
DPI = 200
_OKABE = sns.color_palette("colorblind").as_hex()
GREY = "#8c8c8c"             # nulls and controls, always
COLORS = {
    "rare": _OKABE[3],       # vermilion
    "common": _OKABE[0],     # blue
    "all": "#303030",
    "random": GREY, "matched": "#b0b0b0", "null": GREY,
    "boost": _OKABE[1], "suppress": _OKABE[9],
    "plateau": _OKABE[4], "power law": _OKABE[2], "decay": _OKABE[8],
}
PHASE_NAMES = ("plateau", "power law", "decay")
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


def use_style() -> None:
    """Set the figures' style for the whole process; a notebook calls it once.

    Letters come from matplotlib's own font files, whatever the system has under the same name:
    a PDF embeds them, and its bytes should not depend on the machine.
    """
    fonts = mpl.font_manager.fontManager
    fonts.ttflist = [font for font in fonts.ttflist if Path(mpl.get_data_path()) in Path(font.fname).parents]
    sns.set_theme(context="paper", style="ticks", palette="colorblind", font="DejaVu Sans", rc=STYLE)


def panels(rows: int = 1, columns: int = 1, *, width: float = PAGE, height: float | None = None, **options):
    """Figure and axes of a print width in inches; the height defaults to 0.72 of a panel's width a row."""
    use_style()
    height = height or 0.72 * width / columns * rows
    return plt.subplots(rows, columns, figsize=(width, height), **options)


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
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
    folder, written = Path(folder), []
    for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None, "Producer": None, "Creator": None})):
        path = folder / f"{name}.{kind}"
        with files.new_file(path) as temporary, mpl.rc_context({"pdf.fonttype": 42}):
            figure.savefig(temporary, dpi=DPI, metadata=metadata)
        written.append(path)
        stage.note_figure(path)
    return written


def title(ax, finding: str) -> None:
    """Title that states the finding, at the left, wrapped to the axes by the caller's line breaks."""
    ax.set_title(finding, loc="left")


def log_log(ax, x_label: str, y_label: str) -> None:
    """Both axes logarithmic, both labelled (give the unit in the label)."""
    ax.set(xscale="log", yscale="log", xlabel=x_label, ylabel=y_label)


def shade_phases(ax, boundaries: tuple[int, int], n: int, *, names: bool = True) -> None:
    """Shade plateau, power law and decay behind a rank curve.

    boundaries : last rank of the plateau, last rank of the power law (`Phases.boundaries`);
        an empty phase is not drawn.
    n : number of neurons.
    """
    edges = (1, boundaries[0] + 0.5, boundaries[1] + 0.5, n)
    for name, left, right, count in zip(PHASE_NAMES, edges[:-1], edges[1:],
                                        np.diff((0, *boundaries, n)), strict=True):
        if count <= 0:
            continue
        left, right = max(left, 1), min(right, n)
        ax.axvspan(left, right, color=COLORS[name], alpha=0.13, linewidth=0, zorder=0)
        if names:
            narrow = right / left < 4      # its name, centred, would stand out of the axes
            side = "left" if narrow and left == 1 else "right" if narrow and right == n else "center"
            place = {"left": 1.05, "right": 0.9 * n, "center": np.sqrt(left * right)}[side]
            ax.text(place, 0.02, f"{name}\n{100 * count / n:.1f} %", ha=side, va="bottom", fontsize=6, color="#303030",
                    transform=ax.get_xaxis_transform())


def band(ax, x, low, high, *, color: str = GREY, label: str | None = None, alpha: float = 0.25) -> None:
    """A band between `low` and `high`; `label` must say what it is (for example "95 % of 200 lognormals")."""
    ax.fill_between(x, low, high, color=color, alpha=alpha, linewidth=0, label=label, zorder=1)


def rank_curve(ax, values, phases=None, *, label: str | None = None, color: str | None = None,
               interval=None, null=None, null_label: str = "null, 95 %", line: bool = True,
               unit: str = "influence (nats)", **options) -> None:
    """Influence by rank on log-log axes, with phases shaded, an interval and a grey null.

    Parameters
    ----------
    values : (neurons,) influence, any order; drawn falling.  With `interval` or `null`: same ranks.
    phases : `phases.Phases` of these values, or None; shades the phases and draws the middle's line.
    label : legend entry (say n); a key of COLORS gives its colour unless `color` is given.
    interval : (low, high), two (neurons,) arrays by rank, in the curve's colour.
    null : (low, high), two (neurons,) arrays by rank, in grey.
    """
    falling = np.sort(np.asarray(values, dtype=float))[::-1]
    ranks = np.arange(1, len(falling) + 1)
    shown = np.where(falling > 0, falling, np.nan)            # dead neurons have no place on a log axis
    log_log(ax, "rank of the neuron", unit)
    if phases is not None:
        shade_phases(ax, phases.boundaries, len(falling))
        if line:
            reach = ranks[: max(phases.boundaries[1], phases.middle[1])]
            ax.plot(reach, phases.line(reach), color="#303030", linewidth=0.8, linestyle=(0, (4, 2)), zorder=2,
                    label=rf"$\kappa$ = {phases.kappa:.2f}")
    if null is not None:
        band(ax, ranks, *null, label=null_label)
    color = color or COLORS.get(label, COLORS["all"])
    if interval is not None:
        band(ax, ranks, *interval, color=color)
    ax.plot(ranks, shown, color=color, label=label, zorder=3, **options)
    bottom = np.nanmin(shown[: max(1, int(0.98 * len(shown)))]) if np.isfinite(shown).any() else 1e-12
    ax.set_xlim(1, len(falling))
    if ax.get_ylim()[0] < bottom / 30:                        # one dying neuron must not squeeze the curve
        ax.set_ylim(bottom=bottom / 3)


def over_steps(ax, steps, values, *, low=None, high=None, label: str | None = None, color: str | None = None,
               **options) -> None:
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


def zipf(ax, counts, *, rare_at: float | None = None, label: str | None = None, color: str | None = None) -> None:
    """Zipf plot of token counts, with the rare band shaded.

    counts : (types,) occurrences of each token type, any order; zeros are left out.
    rare_at : a count; the types at or below it are the rare band.
    """
    seen = np.sort(np.asarray(counts, dtype=float))[::-1]
    seen = seen[seen > 0]
    log_log(ax, "rank of the token type", "occurrences")
    ax.plot(np.arange(1, len(seen) + 1), seen, color=color or COLORS["all"], label=label)
    if rare_at is not None:
        first = int(np.sum(seen > rare_at)) + 1
        if first <= len(seen):
            share, types = seen[first - 1:].sum() / seen.sum(), 1 - (first - 1) / len(seen)
            ax.axvspan(first, len(seen), color=COLORS["rare"], alpha=0.13, linewidth=0,
                       label=f"rare: {100 * types:.0f} % of types, {100 * share:.1f} % of uses")


def heat_map(ax, matrix, *, limit: float | None = None, label: str = "", **options) -> None:
    """A signed matrix, diverging colours centred on zero, `label` on the colour bar."""
    matrix = np.asarray(matrix, dtype=float)
    limit = limit or float(np.nanmax(np.abs(matrix))) or 1.0
    sns.heatmap(matrix, ax=ax, cmap="vlag", vmin=-limit, vmax=limit, center=0, square=True, rasterized=True,
                cbar_kws={"label": label, "shrink": 0.8}, **{"xticklabels": False, "yticklabels": False, **options})


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
        ends = [[row["value"] - row["low"]], [row["high"] - row["value"]]]
        ax.errorbar(place, row["value"], yerr=ends, fmt="o", markersize=4, capsize=2, zorder=4,
                    color=COLORS[row["group"]], label=None if place else "group, 95 % over documents")
    names = [f"{NAMES.get(name, name)}\n(n = {size})" for name, size in zip(rows["group"], rows["size"])]
    ax.set_xticks(range(len(rows)), names)
    ax.set_xlim(-0.6, len(rows) - 0.4)


def of_curve(ax, x, rows, *, color, label):
    """A curve with its interval, over the band of random groups; matched groups are dashed (edges of their band).

    x : (n,) ; rows : DataFrame of n rows with value, low, high, random_low, ... in the order of x.
    """
    band(ax, x, rows["random_low"], rows["random_high"], label=LABELS["random"], alpha=0.35)
    for end in ("low", "high"):
        ax.plot(x, rows[f"matched_{end}"], color=GREY, linewidth=0.8, linestyle="--",
                label=LABELS["matched"] if end == "low" else None)
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
                     label="rare group of the last one")


def of_pairs(ax, sets):
    """How the pairs of a group are spread, over random groups (their mean and 95 % band) and matched ones (mean, dashed).

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


def against(row):
    """Where a value lies by the 95 % bands of its controls, in words: "below random, like matched groups".

    row : mapping with value, random_low, random_high, and the same of matched (NaN: no matched groups).
    """
    kinds = [kind for kind in ("random", "matched") if np.isfinite(row[f"{kind}_low"])]
    sides = ("below" if row["value"] < row[f"{kind}_low"] else "above" if row["value"] > row[f"{kind}_high"] else "like"
             for kind in kinds)
    return ", ".join(f"{side} {kind}" for side, kind in zip(sides, kinds)) + " groups"


def level(p):
    """A p value in words: "p = 0.034", "p = 0.001", "no p value"."""
    return "no p value" if not np.isfinite(p) else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def clustered(above, ax, block, finding):
    """The correlations inside a group as a heat map, its neurons in the order of a clustering, whose tree is drawn above.

    block : (m, m) correlations ; finding : the title, of the axes above.
    """
    order, tree = cluster(block)
    dendrogram(tree, ax=above, no_labels=True, color_threshold=0, above_threshold_color=GREY)
    above.set(ylim=(0, 1.4), yticks=(0, 1), ylabel="1 - r")
    title(above, finding)  # before the heat map, with which seaborn draws the figure once: its layout then knows the title
    heat_map(ax, block[order][:, order], limit=0.6, cbar=False)
    ax.set(xlabel=f"{len(order)} neurons, clustered", aspect="auto")
