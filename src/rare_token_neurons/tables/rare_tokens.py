"""The tables of the text: its tokens, the blocks that every checkpoint reads, the positions measured (notebook 01).

A table is a function of `Settings`; what it returns lies in `settings.results` too, and is read from the cache where it is
up to date (see `stage.table`).
"""

import hashlib
from functools import lru_cache

import numpy as np
import pandas as pd
import torch

from rare_token_neurons import files, keys, settings as parameters
from rare_token_neurons.models import checkpoints
from rare_token_neurons.paths import MINI_PYTHIA, place
from rare_token_neurons.tables import stage
from rare_token_neurons.tables.stage import table
from rare_token_neurons.text import documents as texts, rarity

RARITY = ("rare_percentile", "words_only", "trained_here", "read_before")  # parameters that decide which tokens are rare
POSITIONS = (*RARITY, "rare_of", "positions", "seed")  # and which positions are measured


@lru_cache(maxsize=1)
def _corpus(model, text_name):
    """The documents of a text and the token ids of each (cached: tokenising 44 MB takes a while)."""
    tokenizer = checkpoints.load_tokenizer(model)
    documents = texts.documents(text_name)
    vocabulary = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    key = keys.key({}, {"text": texts.text_hash(text_name), "tokenizer": vocabulary}, ["text.documents"])
    kept = stage.tensors("token-ids", key, lambda: _flat(texts.encode(tokenizer, documents["text"])))
    ids = np.split(kept["ids"].numpy(), kept["ends"].numpy()[:-1])
    return tokenizer, documents, ids, key


def _flat(ids):
    return {"ids": torch.from_numpy(np.concatenate(ids)), "ends": torch.from_numpy(np.cumsum([len(x) for x in ids]))}


def _file(settings):
    """The file of the counts that decide rarity; None where they are those of general English or of the text."""
    match settings.counts_name:
        case "wordfreq" | "text":
            return None
        case parameters.TRAINING:
            return MINI_PYTHIA / rarity.COUNTS_FILE
        case name:
            return place(texts.parted(name)[0])


def _counts(settings, vocabulary):
    """The counts that decide rarity, int64 (tokens,)."""
    match settings.counts_name:
        case "wordfreq":
            return rarity.english_counts(vocabulary)
        case "text":
            return text_counts(settings, len(vocabulary))
        case _ if _file(settings).suffix == ".npy":
            tokenizer = _corpus(settings.model, settings.text)[0]
            return rarity.read_counts(_file(settings), len(vocabulary), least=tokenizer.vocab_size)
        case name:
            tokenizer = _corpus(settings.model, settings.text)[0]
            return rarity.unigram_counts(texts.encode(tokenizer, texts.documents(name)["text"]), len(vocabulary))


@lru_cache(maxsize=1)
def text_counts(settings, size):
    """How often the text that is read holds each of `size` tokens; of a text read in training, its train split: int64 (size,)."""
    _, documents, ids, _ = _corpus(settings.model, settings.text)
    read = documents["split"].eq("train") if settings.read_before else np.ones(len(ids), dtype=bool)
    return rarity.unigram_counts([tokens for tokens, counted in zip(ids, read) if counted], size)


def _counts_hash(settings):
    file = _file(settings)
    if file is None:
        return settings.counts_name
    return files.sha256(file) if file.suffix == ".npy" else texts.text_hash(settings.counts)


class Text:
    """What a table of the text is made from (see `stage.table`)."""

    @staticmethod
    def inputs(settings):
        """Hashes of the text with its tokenizer, and of the counts."""
        return {"corpus": _corpus(settings.model, settings.text)[3], "counts": _counts_hash(settings)}


@table(Text, reads=RARITY)
def tokens(settings):
    """One row a token: its text, whether it is a word, its counts, and its group.

    Returns
    -------
    DataFrame with token_id, token, word, boundary, count (the one that decides), count_text, count_wordfreq
    (occurrences per 10^9 words, 0 for what is no word), group ("rare", "common" or "")
    """
    tokenizer, _, ids, _ = _corpus(settings.model, settings.text)
    made = rarity.vocabulary(tokenizer)
    made["count"] = _counts(settings, made)
    made["count_text"] = rarity.unigram_counts(ids, len(made))
    made["count_wordfreq"] = rarity.english_counts(made)
    candidate = made["word"].to_numpy() if settings.words_only else np.ones(len(made), dtype=bool)
    rare, common, _ = rarity.rare_tokens(made["count"].to_numpy(), candidate, settings.rare_percentile)
    made["group"] = np.select([rare, common], ["rare", "common"], "")
    return made.rename_axis("token_id").reset_index()


def decoder(settings):
    """From token ids to text, by the model's tokenizer, which is loaded when it is called."""
    return lambda ids: _corpus(settings.model, settings.text)[0].decode(ids, clean_up_tokenization_spaces=False)


@lru_cache(maxsize=1)
def _chosen(settings):
    """The blocks to run, with their documents, and the rare and common positions in them."""
    tokenizer, documents, ids, _ = _corpus(settings.model, settings.text)
    every = tokens(settings)
    measured = np.nonzero(documents["split"].eq("held-out") if settings.read_before else np.ones(len(ids), dtype=bool))[0]
    blocks = rarity.blocks([ids[row] for row in measured], measured, opening=texts.opening(tokenizer))
    found = [rarity.candidate_positions(blocks.tokens, every["group"].eq(name).to_numpy(), every, rare_of=settings.rare_of,
                                        words_only=settings.words_only, decode=decoder(settings)) for name in stage.GROUPS]
    positions = rarity.choose(blocks, *found, n=settings.positions, seed=settings.seed)
    used, positions["block"] = np.unique(positions["block"], return_inverse=True)
    rows = documents.iloc[blocks.document[used]]
    return pd.DataFrame({"block": np.arange(len(used)), "document": blocks.document[used], "source": rows["source"].array,
                         "name": rows["document"].astype(str).array, "tokens": list(blocks.tokens[used])}), positions


@table(Text, reads=POSITIONS)
def blocks(settings):
    """The text that every checkpoint reads: block, document, source, name of the document, tokens (a list)."""
    return _chosen(settings)[0]


@table(Text, reads=POSITIONS)
def positions(settings):
    """The positions measured: block, t, group, document, target (token id), half ("A" or "B", by document)."""
    return _chosen(settings)[1]


def halves(settings):
    """The half of each document that has positions: a Series of "A" and "B" by document, sorted."""
    return positions(settings).groupby("document")["half"].first()


def documents_in(settings, name):
    """The documents of half `name`, int64, sorted."""
    made = halves(settings)
    return made.index[made == name].to_numpy()


def in_half(settings, owners, name):
    """Which documents lie in half `name`, "A" or "B": owners (documents,) -> bool (documents,)."""
    return halves(settings).loc[owners].eq(name).to_numpy()


def token_tensor(blocks_table):
    """The tokens of a table of blocks, int64 tensor (blocks, length)."""
    return torch.from_numpy(np.stack(blocks_table["tokens"].to_numpy()).astype(np.int64))


def group_positions(positions_table, group, half="AB"):
    """Rows (block, t) of one group, of one half or of both, int64 tensor (n, 2), and the document of each, int64 (n,)."""
    rows = positions_table[positions_table["group"].eq(group) & positions_table["half"].isin(list(half))]
    return torch.tensor(rows[["block", "t"]].to_numpy(dtype=np.int64)), rows["document"].to_numpy()
