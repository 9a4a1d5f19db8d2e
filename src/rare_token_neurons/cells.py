"""The settings of the robustness grid, cell by cell: which positions each needs, and the loss changes behind them.

No cell reads more text than the default: its positions lie in the blocks that the default's forward pass has read. They
are drawn in one random order for all cells, so that cells share positions, and the ablation of a position runs once.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from rare_token_neurons import ablation, passes, store, tables, text

MOST = 500  # rare positions a cell, and as many common ones
PERCENTILES = (5.0, 15.0, 25.0, 50.0)
ABLATIONS = ("mean", "zero", "resample")
SPLITS = (1, 2, 3)  # other random halves of the documents
MEMORY_GB = 1.0


@dataclass(frozen=True)
class Cell:
    """One setting: a factor and its value, and all that decides the cell's content; split 0 is the default's halves."""

    factor: str
    value: str
    rare_percentile: float
    ablation: str
    rare_of: str
    words_only: bool
    counts: str
    aggregate: str
    split: int = 0


def default(settings):
    """The cell of the settings themselves."""
    return Cell("default", f"rarest {settings.rare_percentile:g} %, {settings.ablation}", settings.rare_percentile,
                settings.ablation, settings.rare_of, settings.words_only, tables.counts_name(settings), settings.aggregate)


def grid(settings):
    """All cells: the default, one factor at a time around it, and rare_percentile x ablation in full (one is the default)."""
    base = default(settings)
    other = {"rare_of": "input" if base.rare_of == "target" else "target", "words_only": not base.words_only,
             "counts": "text" if base.counts == "wordfreq" else "wordfreq",
             "aggregate": "abs_mean" if base.aggregate == "mean_abs" else "mean_abs"}
    made = [base]
    for name, value in other.items():
        changed, said = {name: value}, str(value).lower()
        if name == "words_only" and not value and base.counts != "text":  # general English knows words alone
            changed["counts"], said = "text", f"{said}, counts = text"
        if name != "counts" or base.words_only:
            made.append(replace(base, factor=name, value=said, **changed))
    made += [replace(base, factor="halves", value=f"drawn anew ({split})", split=split) for split in SPLITS]
    percentiles = sorted({*PERCENTILES, base.rare_percentile})
    return made + [replace(base, factor=f"rarest {percentile:g} %", value=name, rare_percentile=percentile, ablation=name)
                   for percentile in percentiles for name in ABLATIONS
                   if (percentile, name) != (base.rare_percentile, base.ablation)]


# ---- positions


def counts(settings, cell):
    """The counts that decide rarity in a cell, int64 (tokens,)."""
    vocabulary = tables.tokens(settings)
    if cell.counts == tables.counts_name(settings):
        return vocabulary["count"].to_numpy()
    return vocabulary["count_wordfreq"].to_numpy() if cell.counts == "wordfreq" else tables.text_counts(settings, len(vocabulary))


def groups(vocabulary, counts, words_only, percentile):
    """Which tokens are rare and which common, bool (tokens,) each, by counts (tokens,)."""
    candidate = vocabulary["word"].to_numpy() if words_only else np.ones(len(vocabulary), dtype=bool)
    return text.rare_tokens(counts, candidate, percentile)[:2]


def candidates(settings, cell):
    """All of a cell's positions in the default's blocks.

    Returns
    -------
    dict "rare" and "common" -> int64 (n, 2), rows (block, t), in the random order that all cells share
    """
    vocabulary = tables.tokens(settings)
    tokens = np.stack(tables.blocks(settings)["tokens"].to_numpy())
    chosen = groups(vocabulary, counts(settings, cell), cell.words_only, cell.rare_percentile)
    found = [text.candidate_positions(tokens, one, vocabulary, rare_of=cell.rare_of, words_only=cell.words_only)
             for one in chosen]
    turn = np.random.default_rng(settings.seed).permutation(tokens.size).reshape(tokens.shape)
    return {name: one[np.argsort(turn[one[:, 0], one[:, 1]])] for name, one in zip(("rare", "common"), found)}


def positions(settings, cell):
    """The first of `candidates`, equally many of each group and at most 500."""
    found = candidates(settings, cell)
    size = min(MOST, settings.positions, *map(len, found.values()))
    return {name: rows[:size] for name, rows in found.items()}


def owners(settings, rows):
    """The document of each position, int64 (n,)."""
    return tables.blocks(settings)["document"].to_numpy()[rows[:, 0]]


def halves(settings, split=0):
    """The half of each document, a Series "A" or "B"; split 0 keeps the halves of the default's positions."""
    names = np.sort(tables.blocks(settings)["document"].unique())
    drawn = np.where(np.random.default_rng([settings.seed, split]).permutation(len(names)) % 2, "B", "A")
    drawn = pd.Series(drawn, index=names)
    known = tables.positions(settings).groupby("document")["half"].first()
    return known.reindex(names).fillna(drawn) if split == 0 else drawn


def by_document(effects, owners, among=None):
    """Sums of effects (n, neurons) by document: (documents, neurons), positions (documents,); among: documents, in order."""
    names = np.unique(owners) if among is None else among
    member = np.zeros((len(names), len(owners)))
    member[np.searchsorted(names, owners), np.arange(len(owners))] = 1.0
    return member @ effects, member.sum(axis=1)


# ---- loss changes


class Pool:
    """Loss changes at positions, looked up by (block, t): `pool[rows]` is float32 (n, neurons)."""

    def __init__(self, rows, changes):
        self.changes, self.place = changes, {row: at for at, row in enumerate(map(tuple, rows.tolist()))}

    def __getitem__(self, rows):
        return self.changes[[self.place[row] for row in map(tuple, rows.tolist())]].numpy()


def changes(settings, rows, how):
    """Every neuron's loss change at positions of the last checkpoint, kept in the cache.

    Parameters
    ----------
    rows : int64 (n, 2) ; how : the ablation.

    Returns
    -------
    Pool
    """
    rows = np.unique(rows, axis=0)
    revision = passes.revisions(settings)[-1]
    content = passes.pass_inputs(settings, revision, tables.blocks(settings)) | {"rows": store.array_hash([rows])}

    def compute():
        subject, kept = passes.captured(settings, revision)
        with store.clock("ablation"):
            made = ablation.loss_changes(subject, kept, torch.from_numpy(rows).to(subject.device), ablation=how,
                                         seed=settings.seed, memory_gb=MEMORY_GB)
        return {"changes": made.float().cpu().contiguous()}

    key = store.key({"ablation": how, "seed": settings.seed}, content, ["ablation", "checkpoints"])
    return Pool(rows, store.tensors(settings.slug, key, compute, recompute=settings.recompute)["changes"])


def pools(settings):
    """The positions of every cell, and one Pool an ablation with those of all cells that use it.

    Returns
    -------
    dict Cell -> its positions (see `positions`) ; dict ablation -> Pool
    """
    found = {cell: positions(settings, cell) for cell in grid(settings)}
    wanted = {how: np.concatenate([rows for cell, part in found.items() if cell.ablation == how for rows in part.values()])
              for how in dict.fromkeys(cell.ablation for cell in found)}
    return found, {how: changes(settings, rows, how) for how, rows in wanted.items()}
