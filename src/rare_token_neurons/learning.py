"""How well each checkpoint predicts: losses over training (notebook 02)."""

import numpy as np
import pandas as pd

from rare_token_neurons import ablation, passes, store, tables
from rare_token_neurons.paths import RESULTS

MEMORY_GB = 1.0  # working memory of the losses


def losses(settings, default="all"):
    """Losses in nats of each checkpoint on the settings' blocks: one row (revision, step, group).

    Groups: "all" scored positions, "rare" and "common" targets, and the deciles of the word tokens that the counts
    have seen, by target, "1" (rarest types) to "10".

    Returns
    -------
    DataFrame with revision, step, group, n, documents, loss, sem (over documents)
    """

    def compute():
        sample, vocabulary, chosen = tables.blocks(settings), tables.tokens(settings), tables.positions(settings)
        deciles = frequency_deciles(vocabulary)
        rows = []
        for name in passes.revisions(settings, default):
            subject = passes.load(settings, name)
            kept = passes.capture(settings, subject, sample)
            with store.clock("forward"):
                loss = ablation.losses(subject, kept, memory_gb=MEMORY_GB).double().cpu().numpy()
            every = kept.positions.cpu().numpy()
            target = kept.tokens.cpu().numpy()[every[:, 0], every[:, 1] + 1]
            owner = sample["document"].to_numpy()[every[:, 0]]
            place = {tuple(row): at for at, row in enumerate(every.tolist())}
            masks = {"all": slice(None)}
            for group in ("rare", "common"):
                found = chosen.loc[chosen["group"] == group, ["block", "t"]].to_numpy().tolist()
                masks[group] = [place[tuple(row)] for row in found]
            masks |= {str(decile): deciles[target] == decile for decile in range(1, 11)}
            rows += [{"revision": name or "", "step": subject.step, "group": group,
                      **mean_over_documents(loss[mask], owner[mask])} for group, mask in masks.items()]
        return pd.DataFrame(rows).astype({"step": "Int64"})

    return tables.stage(settings, "losses", compute, reads=("steps", *tables.POSITION_PARAMETERS),
                        inputs=passes.model_inputs(settings, default), modules=["learning"])


def frequency_deciles(vocabulary):
    """The decile (1 rarest to 10) of every seen word token by count, 0 for the others, int (tokens,)."""
    seen = vocabulary["word"] & (vocabulary["count"] > 0)
    rank = vocabulary.loc[seen, "count"].rank(method="first", pct=True)
    return np.ceil(rank * 10).reindex(vocabulary.index, fill_value=0).astype(int).to_numpy()


def mean_over_documents(values, documents):
    """Mean over positions and its standard error with documents as the unit (ratio estimator).

    Returns
    -------
    dict with n, documents, loss, sem
    """
    table = pd.DataFrame({"value": values, "document": documents}).groupby("document")["value"].agg(["sum", "size"])
    k, n = len(table), table["size"].sum()
    mean = table["sum"].sum() / n if n else np.nan
    excess = table["sum"] - mean * table["size"]
    sem = np.sqrt((excess**2).sum() * k / (k - 1)) / n if k > 1 else np.nan
    return {"n": int(n), "documents": k, "loss": mean, "sem": sem}


def training_log(settings):
    """The log of a suite trained here (see `training.train`); an empty table for any other model."""
    path = RESULTS / settings.slug / "training_log.parquet"
    return store.read_table(path) if path.exists() else pd.DataFrame()
