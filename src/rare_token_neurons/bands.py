"""Drawing rows of `comparisons`: what a group shows, over the bands of random and matched groups in grey."""

import numpy as np

from rare_token_neurons import plots

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
            ax.fill_between([left, left + 0.36], row[f"{kind}_low"], row[f"{kind}_high"], color=plots.COLORS[kind],
                            alpha=0.5 if kind == "random" else 0.35, linewidth=0, label=None if place else LABELS[kind])
            ax.plot([left, left + 0.36], [row[kind]] * 2, color=plots.GREY, linewidth=0.8)
        ends = [[row["value"] - row["low"]], [row["high"] - row["value"]]]
        ax.errorbar(place, row["value"], yerr=ends, fmt="o", markersize=4, capsize=2, zorder=4,
                    color=plots.COLORS[row["group"]], label=None if place else "group, 95 % over documents")
    names = [f"{NAMES.get(name, name)}\n(n = {size})" for name, size in zip(rows["group"], rows["size"])]
    ax.set_xticks(range(len(rows)), names)
    ax.set_xlim(-0.6, len(rows) - 0.4)


def of_curve(ax, x, rows, *, color, label):
    """A curve with its interval, over the band of random groups; matched groups are dashed (edges of their band).

    x : (n,) ; rows : DataFrame of n rows with value, low, high, random_low, ... in the order of x.
    """
    plots.band(ax, x, rows["random_low"], rows["random_high"], label=LABELS["random"], alpha=0.35)
    for end in ("low", "high"):
        ax.plot(x, rows[f"matched_{end}"], color=plots.GREY, linewidth=0.8, linestyle="--",
                label=LABELS["matched"] if end == "low" else None)
    plots.band(ax, x, rows["low"], rows["high"], color=color, label="group, 95 % over documents")
    ax.plot(x, rows["value"], color=color, label=label, zorder=4)


def over_steps(ax, rows):
    """Curves over training: the group of each checkpoint with its bands, and the last checkpoint's group followed back.

    rows : DataFrame with step, group ("rare" and "last rare"), value, low, high, random_low, ...
    """
    own, last = (rows[rows["group"] == name].sort_values("step") for name in ("rare", "last rare"))
    steps = own["step"].to_numpy(dtype=np.int64)
    of_curve(ax, steps, own, color=plots.COLORS["rare"], label="rare group of the checkpoint")
    plots.over_steps(ax, last["step"].to_numpy(dtype=np.int64), last["value"], color=plots.COLORS["all"], linewidth=0.9,
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
    ax.fill_between(edges, low, closed(sets["random"], "high")[1], step="post", color=plots.COLORS["random"], alpha=0.35,
                    linewidth=0, label=LABELS["random"])
    styles = {"random": {"color": plots.GREY, "linewidth": 0.8, "label": "random groups, mean"},
              "matched": {"color": plots.GREY, "linewidth": 0.8, "linestyle": "--", "label": "matched groups, mean"},
              "rare": {"color": plots.COLORS["rare"], "label": NAMES["rare"]}}
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
