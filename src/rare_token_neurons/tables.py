"""The tables of the text: its tokens, the blocks that every checkpoint reads, the positions measured (notebook 01).

Every function takes `Settings` and returns a DataFrame that lies in `settings.results` too; what is up to date in the
cache is read from there. `stage` is how this and every other table is made.
"""

import hashlib
from functools import lru_cache

import numpy as np
import pandas as pd
import torch

from rare_token_neurons import checkpoints, counts, store, text
from rare_token_neurons.paths import MINI_PYTHIA, ROOT

TRAINING = "training text"  # the counts of a model trained here, where it reads another text than it was trained on


def stage(settings, name, compute, *, reads, inputs, modules):
    """The table `name` of these settings; `reads` are the parameters that decide it (see `store.stage`)."""
    chosen = {parameter: getattr(settings, parameter) for parameter in reads}
    return store.stage(settings.results / f"{name}.parquet", store.key(chosen, inputs, [*modules, "tables"]), compute,
                       recompute=settings.recompute)


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
    if settings.trained_here and not settings.read_before:
        return TRAINING
    return "text" if settings.trained_here or not settings.words_only else "wordfreq"


def _file(settings):
    """The file of the counts that decide rarity; None where they are those of general English or of the text."""
    name = counts_name(settings)
    return MINI_PYTHIA / counts.BESIDE if name == TRAINING else None if name in ("wordfreq", "text") else ROOT / name


def _counts(settings, vocabulary):
    """The counts that decide rarity, int64 (tokens,)."""
    name = counts_name(settings)
    if name == "wordfreq":
        return text.english_counts(vocabulary)
    if name == "text":
        return text_counts(settings, len(vocabulary))
    if _file(settings).suffix == ".npy":
        return counts.read(_file(settings), len(vocabulary))
    tokenizer = _corpus(settings.model, settings.text)[0]
    return text.unigram_counts(text.encode(tokenizer, text.documents(name)["text"]), len(vocabulary))


@lru_cache(maxsize=1)
def text_counts(settings, size):
    """How often the text that is read holds each of `size` tokens; of a text read in training, its train split: int64 (size,)."""
    _, documents, ids, _ = _corpus(settings.model, settings.text)
    read = documents["split"].eq("train") if settings.read_before else np.ones(len(ids), dtype=bool)
    return text.unigram_counts([tokens for tokens, counted in zip(ids, read) if counted], size)


def _counts_hash(settings):
    file = _file(settings)
    return store.sha256(file) if file else counts_name(settings)


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
                  inputs=text_inputs(settings), modules=["text"])


def text_inputs(settings):
    """Hashes of what a table of the text depends on: the text with its tokenizer, and the counts."""
    if settings.recompute == "never":
        return {}
    return {"corpus": _corpus(settings.model, settings.text)[3], "counts": _counts_hash(settings)}


POSITION_PARAMETERS = ("rare_percentile", "words_only", "trained_here", "rare_of", "positions", "seed")


@lru_cache(maxsize=1)
def _chosen(settings):
    """The blocks to run, with their documents, and the rare and common positions in them."""
    _, documents, ids, _ = _corpus(settings.model, settings.text)
    table = tokens(settings)
    measured = np.nonzero(documents["split"].eq("held-out") if settings.read_before else np.ones(len(ids), dtype=bool))[0]
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
                  inputs=text_inputs(settings), modules=["text"])


def positions(settings):
    """The positions measured: block, t, group, document, target (token id), half ("A" or "B", by document)."""
    return stage(settings, "positions", lambda: _chosen(settings)[1], reads=POSITION_PARAMETERS,
                  inputs=text_inputs(settings), modules=["text"])


def token_tensor(blocks_table):
    """The tokens of a table of blocks, int64 tensor (blocks, length)."""
    return torch.from_numpy(np.stack(blocks_table["tokens"].to_numpy()).astype(np.int64))


def group_positions(positions_table, group):
    """Rows (block, t) of one group, int64 tensor (n, 2), and the document of each, int64 (n,)."""
    rows = positions_table[positions_table["group"] == group]
    return torch.tensor(rows[["block", "t"]].to_numpy(dtype=np.int64)), rows["document"].to_numpy()
