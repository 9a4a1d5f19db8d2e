"""Every neuron's influence at each checkpoint, and the rare group chosen by it (notebook 03)."""

import numpy as np
import pandas as pd
import torch

from rare_token_neurons import ablation, checkpoints, passes, store, tables

MEMORY_GB = 1.0  # working memory of the ablation
GROUP_SHARE = 0.017  # of the neurons: the rare group (the paper's plateau)


def influence_sums(settings, revision, group):
    """Per-document sums of every neuron's effect at one checkpoint, kept in the cache.

    Returns
    -------
    ablation.Influence (on the CPU)
    """
    found, owners = tables.group_positions(tables.positions(settings), group)
    content = passes.pass_inputs(settings, revision, tables.blocks(settings)) | {
        "positions": store.array_hash([found.numpy(), owners]), "group": group,
        "unigram": store.array_hash([tables.tokens(settings)["count_text"].to_numpy()])}
    key = store.key({"ablation": settings.ablation, "seed": settings.seed}, content, ["ablation", "checkpoints"])

    def compute():
        subject, kept = passes.captured(settings, revision)
        with store.clock("ablation"):
            made = ablation.influence(subject, kept, found.to(subject.device), torch.tensor(owners),
                                      ablation=settings.ablation, seed=settings.seed, memory_gb=MEMORY_GB,
                                      entropy=False)  # the entropy's change would cost as much again
        parts = {name: value.cpu().contiguous() for name, value in vars(made).items() if isinstance(value, torch.Tensor)}
        return parts | {"fallback": torch.tensor(made.fallback, dtype=torch.float64)}

    parts = store.tensors(settings.slug, key, compute, recompute=settings.recompute)
    return ablation.Influence(**parts | {"entropy_sum": None, "fallback": parts["fallback"].item()})


def influence(settings, default="last"):
    """Every neuron's influence, one row (revision, step, group, neuron).

    Returns
    -------
    DataFrame with revision, step, group ("rare" or "common", by target), neuron; in nats: mean_abs (mean |change| over the
    positions), mean, abs_mean (|mean change|), sem (of mean_abs, over documents), mean_abs_a, mean_a,
    abs_mean_a, and _b (the same on the document halves A and B), unigram (mean change of the logits' projection on the
    centred log-unigram direction); positions, documents, fallback (share of pairs taken exactly)
    """

    def compute():
        halves = tables.positions(settings).groupby("document")["half"].first()
        return pd.concat([_influence_rows(settings, name, group, halves) for name in passes.revisions(settings, default)
                          for group in ("rare", "common")], ignore_index=True)

    name = "influence" if default == "last" else "influence_over_training"
    return tables.stage(settings, name, compute, reads=("steps", "ablation", *tables.POSITION_PARAMETERS),
                  
                        inputs=passes.model_inputs(settings, default), modules=["influences"])


def _influence_rows(settings, revision, group, halves):
    sums = influence_sums(settings, revision, group)
    in_half = {name: torch.tensor(halves[sums.documents.numpy()].eq(name).to_numpy()) for name in "AB"}
    columns = {"mean_abs": sums.mean_abs, "mean": sums.mean, "abs_mean": sums.mean.abs(), "sem": sums.sem}
    for name, rows in in_half.items():
        n = sums.n[rows].sum()
        columns[f"mean_abs_{name.lower()}"] = sums.abs_sum[rows].sum(0) / n
        columns[f"mean_{name.lower()}"] = sums.change_sum[rows].sum(0) / n
        columns[f"abs_mean_{name.lower()}"] = columns[f"mean_{name.lower()}"].abs()
    columns["unigram"] = sums.unigram_sum.sum(0) / sums.n.sum()
    table = pd.DataFrame({name: column.double().numpy() for name, column in columns.items()})
    table.insert(0, "neuron", np.arange(len(table)))
    for name, value in (("group", group), ("step", checkpoints.step_of(revision)), ("revision", revision or "")):
        table.insert(0, name, value)
    return table.assign(positions=int(sums.n.sum()), documents=len(sums.n), fallback=sums.fallback).astype({"step": "Int64"})


def rare_group(influence_rows, group="rare"):
    """The top 1.7 % of the neurons by influence on half A of the documents, most influential first.

    Always by mean |change|, also where the parameter `aggregate` is abs_mean: that one decides how curves, phases and
    ratios are measured, not who is in the group.

    Parameters
    ----------
    influence_rows : rows of `influence` of one revision; what is said of the group is measured on half B.
    group : "rare" or "common", the targets.

    Returns
    -------
    int64 (m,)
    """
    rows = influence_rows[influence_rows["group"] == group].sort_values("neuron")
    size = int(np.ceil(GROUP_SHARE * len(rows)))
    return np.argsort(-rows["mean_abs_a"].to_numpy(), kind="stable")[:size]
