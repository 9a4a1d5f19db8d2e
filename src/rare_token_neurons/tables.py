"""The tables of the repository: how each is made from settings, text and weights, and which content key it has.

Every function takes `Settings` and returns a DataFrame that lies in `settings.results` too; what is up to date in the
cache is read from there.
"""

import hashlib
from functools import lru_cache

import numpy as np
import pandas as pd
import torch

from rare_token_neurons import ablation, checkpoints, store, text
from rare_token_neurons.paths import RESULTS, ROOT

MEMORY_GB = 1.0  # working memory of the ablation
GROUP_SHARE = 0.017  # of the neurons: the rare group (the paper's plateau)


def stage(settings, name, compute, *, reads, inputs, modules):
    """The table `name` of these settings; `reads` are the parameters that decide it (see `store.stage`)."""
    chosen = {parameter: getattr(settings, parameter) for parameter in reads}
    return store.stage(settings.results / f"{name}.parquet", store.key(chosen, inputs, [*modules, "tables"]), compute,
                       recompute=settings.recompute)


# ---- tokens and positions (notebook 01)


@lru_cache(maxsize=1)
def _corpus(model, text_name):
    """The documents of a text and the token ids of each (cached: tokenising 44 MB takes a while)."""
    tokenizer = checkpoints.load_tokenizer(model)
    documents = text.documents(text_name)
    vocabulary = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    key = store.key({}, {"text": text.text_hash(text_name), "tokenizer": vocabulary}, ["text"])
    kept = store.tensors("token-ids", key, lambda: _flat(text.encode(tokenizer, documents["text"])))
    ids = np.split(kept["ids"].numpy(), kept["ends"].numpy()[:-1])
    return tokenizer, documents, ids, key


def _flat(ids):
    return {"ids": torch.from_numpy(np.concatenate(ids)), "ends": torch.from_numpy(np.cumsum([len(x) for x in ids]))}


def counts_name(settings):
    """Which counts decide rarity: general English knows only words, so without `words_only` the text is counted."""
    if settings.counts != "auto":
        return settings.counts
    return "text" if settings.trained_here or not settings.words_only else "wordfreq"


def _counts(settings, vocabulary):
    """The counts that decide rarity, int64 (tokens,)."""
    tokenizer, documents, ids, _ = _corpus(settings.model, settings.text)
    name = counts_name(settings)
    if name == "wordfreq":
        return text.english_counts(vocabulary)
    if name == "text":
        read = documents["split"].eq("train") if settings.trained_here else np.ones(len(ids), dtype=bool)
        return text.unigram_counts([tokens for tokens, counted in zip(ids, read) if counted], len(vocabulary))
    if name.endswith(".npy"):
        counts = np.load(ROOT / name)
        if counts.ndim != 1 or len(counts) < len(vocabulary):
            raise ValueError(f"{name} must hold one count for each of the {len(vocabulary):,} tokens; "
                             f"its shape is {counts.shape}.")
        return counts[: len(vocabulary)].astype(np.int64)
    return text.unigram_counts(text.encode(tokenizer, text.documents(name)["text"]), len(vocabulary))


def _counts_hash(settings):
    name = counts_name(settings)
    return name if name in ("wordfreq", "text") else hashlib.sha256((ROOT / name).read_bytes()).hexdigest()


def tokens(settings):
    """One row a token: its text, whether it is a word, its counts, and its group.

    Returns
    -------
    DataFrame with token_id, token, word, boundary, count (the one that decides), count_text, count_wordfreq
    (occurrences per 10^9 words, 0 for what is no word), group ("rare", "common" or "")
    """

    def compute():
        tokenizer, _, ids, _ = _corpus(settings.model, settings.text)
        table = text.vocabulary(tokenizer)
        table["count"] = _counts(settings, table)
        table["count_text"] = text.unigram_counts(ids, len(table))
        table["count_wordfreq"] = text.english_counts(table)
        candidate = table["word"].to_numpy() if settings.words_only else np.ones(len(table), dtype=bool)
        rare, common, _ = text.rare_tokens(table["count"].to_numpy(), candidate, settings.rare_percentile)
        table["group"] = np.select([rare, common], ["rare", "common"], "")
        return table.rename_axis("token_id").reset_index()

    return stage(settings, "tokens", compute, reads=("rare_percentile", "words_only", "trained_here"),
                  inputs=_text_inputs(settings), modules=["text"])


def _text_inputs(settings):
    if settings.recompute == "never":
        return {}
    return {"corpus": _corpus(settings.model, settings.text)[3], "counts": _counts_hash(settings)}


POSITION_PARAMETERS = ("rare_percentile", "words_only", "trained_here", "rare_of", "positions", "seed")


@lru_cache(maxsize=1)
def _chosen(settings):
    """The blocks to run, with their documents, and the rare and common positions in them."""
    _, documents, ids, _ = _corpus(settings.model, settings.text)
    table = tokens(settings)
    measured = np.nonzero(documents["split"].eq("held-out") if settings.trained_here else np.ones(len(ids), dtype=bool))[0]
    blocks = text.blocks([ids[row] for row in measured], measured)
    found = [text.candidate_positions(blocks.tokens, table["group"].eq(name).to_numpy(), table, rare_of=settings.rare_of,
                                      words_only=settings.words_only) for name in ("rare", "common")]
    positions = text.choose(blocks, *found, n=settings.positions, seed=settings.seed)
    used, positions["block"] = np.unique(positions["block"], return_inverse=True)
    rows = documents.iloc[blocks.document[used]]
    return pd.DataFrame({"block": np.arange(len(used)), "document": blocks.document[used], "source": rows["source"].array,
                         "name": rows["document"].astype(str).array, "tokens": list(blocks.tokens[used])}), positions


def blocks(settings):
    """The text that every checkpoint reads: block, document, source, name of the document, tokens (a list)."""
    return stage(settings, "blocks", lambda: _chosen(settings)[0], reads=POSITION_PARAMETERS,
                  inputs=_text_inputs(settings), modules=["text"])


def positions(settings):
    """The positions measured: block, t, group, document, target (token id), half ("A" or "B", by document)."""
    return stage(settings, "positions", lambda: _chosen(settings)[1], reads=POSITION_PARAMETERS,
                  inputs=_text_inputs(settings), modules=["text"])


def token_tensor(blocks_table):
    """The tokens of a table of blocks, int64 tensor (blocks, length)."""
    return torch.from_numpy(np.stack(blocks_table["tokens"].to_numpy()).astype(np.int64))


def group_positions(positions_table, group):
    """Rows (block, t) of one group, int64 tensor (n, 2), and the document of each, int64 (n,)."""
    rows = positions_table[positions_table["group"] == group]
    return torch.tensor(rows[["block", "t"]].to_numpy(dtype=np.int64)), rows["document"].to_numpy()


# ---- checkpoints and losses (notebook 02)


def revisions(settings, default="last"):
    """The revisions that the settings ask for: `steps`, or the last or all of a model's checkpoints; [None] without any."""
    known = checkpoints.revisions(settings.model)
    if settings.steps:
        wanted = [f"step{step}" for step in settings.steps]
        missing = [name for name in wanted if name not in known]
        if missing:
            raise FileNotFoundError(f"{settings.model} has no {missing[0]}; "
                                    f"it has {', '.join(known) or 'no checkpoints'}.")
        return wanted
    return (known if default == "all" else known[-1:]) or [None]


def weights(settings, default="all"):
    """One row a checkpoint: revision, step, weight_hash, repeat_of (an earlier revision with the same weights, or "")."""

    def compute():
        names = revisions(settings, default)
        table = pd.DataFrame({"revision": [name or "" for name in names],
                              "step": pd.array([checkpoints.step_of(name) for name in names], dtype="Int64"),
                              "weight_hash": [checkpoints.weight_hash(settings.model, name) for name in names]})
        first = table.groupby("weight_hash")["revision"].transform("first")
        return table.assign(repeat_of=first.where(first != table["revision"], ""))

    inputs = {} if settings.recompute == "never" else {name: checkpoints.weight_hash(settings.model, name)
                                                       for name in revisions(settings, default)}
    return stage(settings, "checkpoints", compute, reads=("steps",), inputs={str(k): v for k, v in inputs.items()},
                  modules=["checkpoints"])


def capture(settings, subject, blocks_table):
    """The capture of the settings' blocks by one checkpoint; that of a model's last checkpoint is kept in the cache."""
    content = {"weights": checkpoints.weight_hash(settings.model, subject.revision), "tokens": _hash(blocks_table["tokens"]),
               "documents": _hash([blocks_table["document"].to_numpy()])}
    read, owners = token_tensor(blocks_table).to(subject.device), torch.tensor(blocks_table["document"].to_numpy())

    def compute():
        with store.clock("forward"):
            made = ablation.capture(subject, read, first=text.FIRST, documents=owners)
        return {"activations": made.activations.contiguous(), "residual": made.residual.contiguous()}

    last = subject.revision is None or subject.revision == checkpoints.revisions(settings.model)[-1]
    kept = store.tensors(settings.slug, store.key({}, content, ["captures"]), compute,
                         recompute=settings.recompute) if last else compute()
    return ablation.Capture(read, text.FIRST, owners.to(subject.device),
                            **{name: part.to(subject.device) for name, part in kept.items()})


def losses(settings, default="all"):
    """Losses in nats of each checkpoint on the settings' blocks: one row (revision, step, group).

    Groups: "all" scored positions, "rare" and "common" targets, and the deciles of the word tokens that the counts
    have seen, by target, "1" (rarest types) to "10".

    Returns
    -------
    DataFrame with revision, step, group, n, documents, loss, sem (over documents)
    """

    def compute():
        sample, vocabulary, chosen = blocks(settings), tokens(settings), positions(settings)
        deciles = frequency_deciles(vocabulary)
        rows = []
        for name in revisions(settings, default):
            subject = checkpoints.load(settings.model, name, device=settings.device)
            kept = capture(settings, subject, sample)
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

    return stage(settings, "losses", compute, reads=("steps", *POSITION_PARAMETERS), inputs=model_inputs(settings, default),
                  modules=["ablation", "checkpoints", "text"])


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
    return pd.read_parquet(path) if path.exists() else pd.DataFrame()


# ---- influence (notebook 03)


def model_inputs(settings, default="last"):
    """Hashes of what a table of a model depends on: text, counts, weights."""
    if settings.recompute == "never":
        return {}
    names = revisions(settings, default)
    return _text_inputs(settings) | {name or "": checkpoints.weight_hash(settings.model, name) for name in names}


def influence_sums(settings, revision, group):
    """Per-document sums of every neuron's effect at one checkpoint, kept in the cache.

    Returns
    -------
    ablation.Influence (on the CPU)
    """
    sample, chosen = blocks(settings), positions(settings)
    found, owners = group_positions(chosen, group)
    content = {"weights": checkpoints.weight_hash(settings.model, revision), "tokens": _hash(sample["tokens"]),
               "positions": _hash([found.numpy(), owners]), "group": group}
    key = store.key({"ablation": settings.ablation, "seed": settings.seed}, content, ["ablation", "checkpoints"])

    def compute():
        subject, kept = captured(settings, revision)
        with store.clock("ablation"):
            made = ablation.influence(subject, kept, found.to(subject.device), torch.tensor(owners),
                                      ablation=settings.ablation, seed=settings.seed, memory_gb=MEMORY_GB,
                                      entropy=False)  # the entropy's change would cost as much again
        parts = {name: value.cpu().contiguous() for name, value in vars(made).items() if isinstance(value, torch.Tensor)}
        return parts | {"fallback": torch.tensor(made.fallback, dtype=torch.float64)}

    parts = store.tensors(settings.slug, key, compute, recompute=settings.recompute)
    return ablation.Influence(**parts | {"entropy_sum": None, "fallback": parts["fallback"].item()})


@lru_cache(maxsize=1)
def captured(settings, revision=None):
    """A checkpoint (None: the last) as a Subject with the text's unigram counts, and its Capture of the blocks."""
    subject = checkpoints.load(settings.model, revision, device=settings.device)
    subject.unigram_counts = torch.from_numpy(_unigram_counts(settings, subject.n_vocab)).to(subject.device)
    return subject, capture(settings, subject, blocks(settings))


def _unigram_counts(settings, n_vocab):
    """Counts over the whole vocabulary for the unigram direction: those of the text, rows without a token 0."""
    counts = tokens(settings)["count_text"].to_numpy(dtype=np.float64)
    return np.pad(counts, (0, n_vocab - len(counts)))


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
        halves = positions(settings).groupby("document")["half"].first()
        return pd.concat([_influence_rows(settings, name, group, halves) for name in revisions(settings, default)
                          for group in ("rare", "common")], ignore_index=True)

    name = "influence" if default == "last" else "influence_over_training"
    return stage(settings, name, compute, reads=("steps", "ablation", *POSITION_PARAMETERS),
                  inputs=model_inputs(settings, default), modules=["ablation", "checkpoints", "text"])


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


# ---- the rare group and what later notebooks measure of it


def rare_group(influence_rows, group="rare"):
    """The top 1.7 % of the neurons by influence on half A of the documents, most influential first.

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


def activations(settings, revision=None, where="rare", half="B"):
    """The final layer's activations at the settings' positions, from one half of the documents.

    Parameters
    ----------
    revision : None for the last checkpoint.
    where : "rare" or "common" (positions of that group) or "all" (every scored position).
    half : "A" or "B".

    Returns
    -------
    values : float32 (n, neurons); documents : int64 (n,)
    """
    chosen = positions(settings)
    subject, kept = captured(settings, revision)
    if where == "all":
        rows = kept.positions.cpu().numpy()
        owners = kept.documents.cpu().numpy()[rows[:, 0]]
        inside = np.isin(owners, chosen.loc[chosen["half"] == half, "document"])
        rows, owners = rows[inside], owners[inside]
    else:
        found, owners = group_positions(chosen[chosen["half"] == half], where)
        rows = found.numpy()
    return kept.activations.cpu().numpy()[rows[:, 0], rows[:, 1] - kept.first], owners


def _hash(arrays):
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
