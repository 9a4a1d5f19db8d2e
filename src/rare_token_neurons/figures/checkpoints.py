"""Drawing what checkpoints lose over training or by frequency, and what they say in words (notebook 02)."""

import numpy as np
import pandas as pd

from rare_token_neurons import files, paths
from rare_token_neurons.figures.axes import COLORS, COLUMN, GREY, Z, over_steps, title  # some for the notebook
from rare_token_neurons.models.audit import TURN, sentence


def training_log(settings):
    """The log of a suite trained here (see `embedded.mini_pythia.train`); an empty table for any other model."""
    path = paths.RESULTS / settings.slug / "training_log.parquet"
    return files.read_table(path) if path.exists() else pd.DataFrame()


def over_training(ax, losses):
    """Mean losses at all, rare and common targets over training steps.

    losses : table `losses`.
    """
    for group in ("all", "rare", "common"):
        rows = losses[losses["group"] == group]
        reach = Z * rows["sem"]
        over_steps(ax, rows["step"], rows["loss"], low=rows["loss"] - reach, high=rows["loss"] + reach, label=group)


def by_decile(ax, deciles):
    """Mean losses of one checkpoint by the frequency of the target.

    deciles : its ten rows of table `losses`, rarest first.
    """
    ax.errorbar(range(1, 11), deciles["loss"], yerr=Z * deciles["sem"], fmt="o-", capsize=2, color=COLORS["all"],
                label=f"by target (n = {deciles['n'].sum():,})")
    ax.set_xlabel("frequency decile of the target word type (1: rarest)")


def summary(model, losses, n_vocab):
    """Paper and here, in Markdown.

    losses : table `losses` ; n_vocab : tokens among which a blind guess chooses.
    """
    first, last = (losses[losses["revision"] == losses["revision"].iloc[at]].set_index("group") for at in (0, -1))
    start, gap = (rows.loc["rare", "loss"] - rows.loc["common", "loss"] for rows in (first, last))
    story = f"{model} has no training checkpoints here; its losses are those of the finished model. "
    if losses["step"].nunique() > 1:
        story = (f"At step {int(first['step'].iloc[0]):,} rare and common targets differ by {start:.2f} nats, at step "
                 f"{int(last['step'].iloc[0]):,} by {gap:.2f}. ")
    rare = losses[losses["group"] == "rare"].sort_values("step")
    worse = rare.loc[rare["loss"] > rare["loss"].iloc[0], "step"]
    if len(worse):
        story += (f"Rare words get worse before they get better: up to step {worse.max():,} their loss is above that "
                  "at the start, since a model that knows only how common each token is bets against them. ")
    return (f"{story}The last loss is {last.loc['all', 'loss']:.2f} nats over all {last.loc['all', 'n']:,} scored "
            f"positions, {last.loc['rare', 'loss']:.2f} on rare and {last.loc['common', 'loss']:.2f} on common words "
            f"(a blind guess costs {np.log(n_vocab):.2f}). The paper shows no losses; it reads 15 checkpoints of "
            "Pythia, each on text of its own, where here all read the same blocks.")
