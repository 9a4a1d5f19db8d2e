"""Drawing what checkpoints lose over training or by frequency, and what they say in words (notebook 02)."""

import numpy as np
import pandas as pd

from rare_token_neurons import files, paths
from rare_token_neurons.figures.axes import COLORS, COLUMN, DARK, GREY, Z, over_steps, title  # COLUMN: the notebook's
from rare_token_neurons.figures.words import percent
from rare_token_neurons.models.audit import TURN, sentence

GROUPS = ("all", "rare", "common")  # of targets
MOST = 12  # rows of the audit that are shown


# ---- the audit


def audit(weights):
    """The table `checkpoints` in words, flagged ones first where it is long: a row a checkpoint."""
    long = len(weights) > MOST
    shown = weights.sort_values("flagged", ascending=False, kind="stable").head(MOST) if long else weights
    return pd.DataFrame({
        "step": shown["step"], "weight file (sha256, begins)": shown["weight_hash"].str[:8],
        "distance from the one before (share of its norm)": shown["distance"].map("{:.2f}".format),
        "turn (cosine)": shown["turn"].map("{:.2f}".format),
        "flagged": shown["reason"].where(shown["flagged"], "no")}).replace("nan", "").set_index("step")


def of_audit(model, weights):
    """What the audit finds, in words; weights: table `checkpoints`."""
    apart, turn = weights["distance"].dropna(), weights["turn"].dropna()
    if not len(turn):
        return sentence(model, weights)
    return (f"{sentence(model, weights)} From one to the next the weights move by {percent(apart.min())} to "
            f"{percent(apart.max())} of their norm. The sharpest turn has a cosine of {turn.max():.2f}; above {TURN:g} "
            "a checkpoint would be out of order.")


# ---- losses


def at_last(losses):
    """The last checkpoint's losses and the probabilities that they stand for: a row a group of targets.

    losses : table `losses`.
    """
    rows = losses[losses["revision"] == losses["revision"].iloc[-1]].set_index("group").loc[list(GROUPS)]
    return pd.DataFrame({
        "positions": rows["n"].map("{:,}".format), "documents": rows["documents"],
        "loss (nats)": rows["loss"].map("{:.2f}".format), "± standard error": rows["sem"].map("{:.2f}".format),
        "typical probability of the target": rows["loss"].map(lambda loss: f"1 in {np.exp(loss):,.0f}")}
    ).rename_axis("targets")


def over_training(ax, losses):
    """Mean losses at all, rare and common targets over training steps; the gap at the end as an arrow and the title.

    losses : table `losses`.
    """
    for group in GROUPS:
        rows = losses[losses["group"] == group]
        reach = Z * rows["sem"]
        over_steps(ax, rows["step"], rows["loss"], low=rows["loss"] - reach, high=rows["loss"] + reach, label=group)
    last = losses[losses["step"] == losses["step"].max()].set_index("group")["loss"]
    gap = _gap(ax, 1.25 * losses["step"].max(), last["rare"], last["common"])
    title(ax, f"Rare words end {abs(gap):.1f} nats {'harder' if gap > 0 else 'easier'}\nthan common ones")


def by_decile(ax, deciles):
    """Mean losses of one checkpoint by the frequency of the target; the gap of its ends as an arrow and the title.

    deciles : its ten rows of table `losses`, rarest first.
    """
    ax.errorbar(range(1, 11), deciles["loss"], yerr=Z * deciles["sem"], fmt="o-", capsize=2, color=COLORS["all"],
                label=f"by target (n = {deciles['n'].sum():,})")
    gap = _gap(ax, 10.4, deciles["loss"].iloc[0], deciles["loss"].iloc[-1])
    ax.set_xlabel("frequency of the target\n(tenths of the word tokens, 1: rarest)")
    title(ax, f"The rarest tenth costs {abs(gap):.1f} nats {'more' if gap > 0 else 'less'}\nthan the most frequent")


def _gap(ax, x, high, low):
    """An arrow from one loss to another with their difference, which is returned."""
    ax.annotate("", (x, high), (x, low), arrowprops={"arrowstyle": "<->", "color": DARK, "linewidth": 0.8,
                                                     "shrinkA": 0, "shrinkB": 0})
    ax.annotate(f"{high - low:+.1f}", (x, (high + low) / 2), (4, 0), textcoords="offset points", fontsize=7,
                va="center", color=DARK)
    return high - low


def blind_guess(ax, n_vocab):
    """The loss of who knows nothing, dotted; n_vocab: tokens among which one guesses."""
    ax.axhline(np.log(n_vocab), color=GREY, linewidth=0.8, linestyle=":", label="blind guess")
    ax.set_ylabel("loss (nats)")


# ---- the log of the training


def training_log(settings):
    """The log of a suite trained here (see `embedded.mini_pythia.train`); an empty table for any other model."""
    path = paths.RESULTS / settings.slug / "training_log.parquet"
    return files.read_table(path) if path.exists() else pd.DataFrame()


def log_beside(log, losses):
    """The log of the training beside the losses measured here, at the steps that both have: a row a step, in nats.

    log : from `training_log` ; losses : table `losses`.
    """
    here = losses.pivot(index="step", columns="group", values="loss").rename_axis(columns=None)
    made = {("in the log", name): log.set_index("step")[column] for name, column in zip(
        GROUPS, ("held_out", "rare", "common"))} | {("here", name): here[name] for name in GROUPS}
    return pd.DataFrame(made).dropna().round(2).rename_axis("step")


# ---- in words


def summary(model, losses, n_vocab):
    """Paper and here, in Markdown.

    losses : table `losses` ; n_vocab : tokens among which a blind guess chooses.
    """
    first, last = (losses[losses["revision"] == losses["revision"].iloc[at]].set_index("group") for at in (0, -1))
    start, gap = (rows.loc["rare", "loss"] - rows.loc["common", "loss"] for rows in (first, last))
    story = f"{model} has no training checkpoints here; its losses are those of the finished model. "
    if losses["step"].nunique() > 1:
        story = (f"At step {int(first['step'].iloc[0]):,} rare and common targets differ by {start:.2f} nats. At step "
                 f"{int(last['step'].iloc[0]):,} they differ by {gap:.2f}. ")
    rare = losses[losses["group"] == "rare"].sort_values("step")
    worse = rare.loc[rare["loss"] > rare["loss"].iloc[0], "step"]
    if len(worse):
        story += (f"Rare words get worse before they get better: up to step {worse.max():,} their loss is above that "
                  "at the start. (A model that knows only how common each token is bets against them.) ")
    return (f"{story}The last loss is {last.loc['all', 'loss']:.2f} nats over all {last.loc['all', 'n']:,} scored "
            f"positions, {last.loc['rare', 'loss']:.2f} on rare and {last.loc['common', 'loss']:.2f} on common words. "
            f"A blind guess costs {np.log(n_vocab):.2f}. The paper shows no losses. It reads 15 checkpoints of "
            "Pythia, each on text of its own; here all read the same blocks.")
