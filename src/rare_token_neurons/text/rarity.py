"""Which tokens are rare, by which counts, and which positions of token blocks.

A position is a row (block, t): t is the token READ, its target is token t + 1 of the block.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
import wordfreq
from spellchecker import SpellChecker

from rare_token_neurons.paths import shown

BLOCK = 256  # tokens in a block, as in the paper
FIRST = 3  # the first scored position of a block, as in the paper


# ---- blocks


@dataclass
class Blocks:
    """Token blocks; no block crosses documents.

    tokens : int64 (blocks, BLOCK); document : int64 (blocks,), row of the document table.
    """

    tokens: np.ndarray
    document: np.ndarray


def blocks(ids, document, *, offset=None, opening=()):
    """Cut documents into blocks; what does not fill a block is left out.

    Parameters
    ----------
    ids : list of int arrays, one a document.
    document : int (documents,), the row of each in the document table.
    offset : numpy Generator or None; with one, each document starts at a random offset, so that over several
        epochs no part of the text is always left out.
    opening : tokens that every block begins with (see `documents.opening`).

    Returns
    -------
    Blocks
    """
    pieces, owners, size = [], [], BLOCK - len(opening)
    for row, tokens in zip(document, ids):
        n, spare = divmod(len(tokens), size)
        start = int(offset.integers(spare + 1)) if offset is not None else 0
        text = tokens[start : start + n * size].reshape(n, size)
        pieces.append(np.hstack([np.tile(opening, (n, 1)), text]) if opening else text)
        owners.append(np.full(n, row))
    if not sum(map(len, pieces)):
        raise ValueError(f"No document of the text fills one block of {BLOCK} tokens.")
    return Blocks(np.concatenate(pieces).astype(np.int64), np.concatenate(owners).astype(np.int64))


# ---- tokens


def unigram_counts(ids, n_vocab):
    """How often each token occurs, int64 (n_vocab,)."""
    return sum((np.bincount(tokens, minlength=n_vocab) for tokens in ids), np.zeros(n_vocab, dtype=np.int64))


@lru_cache(maxsize=1)
def _dictionary():
    return SpellChecker(language="en")


def vocabulary(tokenizer):
    """One row a token: its text, whether it is a word token, whether a word may end before it.

    A word token has a leading space and decodes to a dictionary word (ASCII letters); a token is a `boundary` when the
    word before it ends there: it starts with anything but a letter, a digit or an apostrophe. A token's text is what it
    adds after a letter: decoded alone, a SentencePiece token would lose its space.

    Returns
    -------
    pandas.DataFrame with token (text), word (bool), boundary (bool); index: token id
    """
    size = len(tokenizer)
    special = set(tokenizer.all_special_ids)
    texts = _texts(tokenizer, range(size))
    known = _dictionary()
    word = [token not in special and text[:1] == " " and text[1:].isascii() and text[1:].isalpha()
            and text[1:].lower() in known for token, text in enumerate(texts)]
    return pd.DataFrame({"token": texts, "word": word, "boundary": [_ends_word(text) for text in texts]})


def _ends_word(after):
    """Whether a word ends before this text; half a character (U+FFFD) says nothing."""
    return not (after[:1].isalnum() or after[:1] in "'\u2019\ufffd")


def _texts(tokenizer, tokens):
    """What each token adds to a text that ends in the letter a, exactly as it is written."""
    before = tokenizer.encode("a", add_special_tokens=False)
    start = tokenizer.decode(before, clean_up_tokenization_spaces=False)
    found = [tokenizer.decode([*before, token], clean_up_tokenization_spaces=False) for token in tokens]
    return [text.removeprefix(start) if text.startswith(start) else tokenizer.decode([token])
            for token, text in zip(tokens, found)]


def english_counts(table):
    """Occurrences per 10^9 words of general English (package wordfreq) of each word token, 0 for the others."""
    return np.array([round(wordfreq.word_frequency(token.strip().lower(), "en") * 1e9) if word else 0
                     for token, word in zip(table["token"], table["word"])], dtype=np.int64)


def rare_tokens(counts, candidate, percentile):
    """Which tokens are rare, and which are common.

    Parameters
    ----------
    counts : int (n_vocab,); candidate : bool (tokens,), the tokens that may be either (word tokens). Rows of the
        embedding without a token (n_vocab > tokens) are neither.
    percentile : float in (0, 100), of the candidates that the counts have seen, rarest first.

    Returns
    -------
    rare, common : bool (n_vocab,)
    threshold : float, the largest count of a rare token.

    Raises
    ------
    ValueError
        A percentile outside (0, 100), fewer counts than tokens, no candidate seen, or none left that is common.
    """
    if not 0 < percentile < 100:
        raise ValueError(f"rare_percentile is {percentile:g}; it must lie between 0 and 100, both excluded.")
    if len(counts) < len(candidate):
        raise ValueError(f"There are {len(counts):,} counts for {len(candidate):,} tokens.")
    seen = np.pad(candidate, (0, len(counts) - len(candidate))) & (counts > 0)
    if not seen.any():
        raise ValueError("The counts have seen none of the candidate tokens.")
    threshold = float(np.percentile(counts[seen], percentile, method="lower"))
    rare = seen & (counts <= threshold)
    if rare.sum() == seen.sum():
        raise ValueError(f"At rare_percentile {percentile:g} no token is left that is common.")
    return rare, seen & ~rare, threshold


# ---- counts from a file

COUNTS_FILE = "unigram_counts.npy"  # beside the weights of a model: the counts of the text that it was trained on


def read_counts(path, size, *, least=None):
    """The counts of the first `size` tokens, int64 (size,); 0 for those at the end that the file does not have.

    Parameters
    ----------
    least : how many it must have; None is all. An embedding is often wider than the tokenizer, whose added tokens are no
        words.

    Raises
    ------
    ValueError
        No .npy file of numbers (a pickle is never opened); another shape, or too few counts; a count that is negative, not
        whole, or not finite.
    """
    least = size if least is None else min(least, size)
    try:
        counts = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError):
        counts = None
    if not isinstance(counts, np.ndarray) or counts.dtype.kind not in "iuf":
        raise ValueError(f"{shown(path)} is no .npy file of numbers.")
    if counts.ndim != 1 or len(counts) < least:
        raise ValueError(f"{shown(path)} must hold one count for each of the {least:,} tokens; its shape is {counts.shape}.")
    wrong = ~((counts >= 0) & (counts < 2**53) & (counts == np.floor(counts)))
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(f"{shown(path)} must hold whole numbers of 0 or more; that of token {at} is {counts[at]}.")
    return fitted(counts.astype(np.int64), size)


def fitted(values, size):
    """Values by token id, (size,): 0 (False) for rows of the embedding without a token, none for tokens without a row."""
    return np.pad(values[:size], (0, max(0, size - len(values))))


# ---- positions


def candidate_positions(tokens, chosen, table, *, rare_of="target", words_only=True, decode=None):
    """Every scored position whose token is one of the chosen ones.

    Parameters
    ----------
    tokens : int64 (blocks, length).
    chosen : bool (n_vocab,).
    table : from `vocabulary`; a word token counts only where a word boundary follows it.
    rare_of : "target" (the token predicted) or "input" (the token read).
    decode : from token ids to text, asked where a word is followed by half a character, such as a dash that one tokenizer
        cuts into bytes and another does not; None: no word ends there.

    Returns
    -------
    int64 (n, 2), rows (block, t), FIRST <= t <= length - 2
    """
    boundary = np.append(table["boundary"].to_numpy(), np.ones(max(0, len(chosen) - len(table)), dtype=bool))
    hit = chosen[tokens]
    if words_only:
        after = boundary[tokens[:, 1:]]
        halves = np.flatnonzero(table["token"].str.startswith("\ufffd"))
        for block, t in np.argwhere(hit[:, :-1] & np.isin(tokens[:, 1:], halves)) if decode else ():
            after[block, t] = _ends_word(decode(tokens[block, t + 1 : t + 5]))  # a character has at most four bytes
        hit[:, :-1] &= after
        hit[:, -1] = False  # what follows is not in the block
    shift = 1 if rare_of == "target" else 0
    scored = hit[:, FIRST + shift : tokens.shape[1] - 1 + shift]
    block, column = np.nonzero(scored)
    return np.stack([block, column + FIRST], axis=1).astype(np.int64)


def choose(blocks, rare, common, *, n, seed=0):
    """Rare positions and as many common ones, from as few blocks as hold them, at most one block a document at first.

    Blocks are taken in random order, first one of each document, until they hold `n` rare positions; the common
    positions are drawn from the same blocks. Where these hold fewer common ones, as many rare ones are left out.

    Parameters
    ----------
    blocks : Blocks.
    rare, common : int64 (., 2), from `candidate_positions`.
    n : int, rare positions wanted; all are taken where there are fewer.

    Returns
    -------
    pandas.DataFrame with block, t, group ("rare" or "common"), document, target, half ("A" or "B", by document)

    Raises
    ------
    ValueError
        There is no rare position, or no common one (in these blocks).
    """
    for name, found in (("rare", rare), ("common", common)):
        if not len(found):
            raise ValueError(f"The text holds no {name} position: choose another percentile, or a longer text.")
    generator = np.random.default_rng(seed)
    held = np.bincount(rare[:, 0], minlength=len(blocks.tokens))
    shuffled = generator.permutation(np.nonzero(held)[0])
    turn = pd.Series(shuffled).groupby(blocks.document[shuffled]).cumcount().to_numpy()
    taken = shuffled[np.argsort(turn, kind="stable")]
    taken = np.sort(taken[: np.searchsorted(np.cumsum(held[taken]), n) + 1])
    rows = {name: found[np.isin(found[:, 0], taken)] for name, found in (("rare", rare), ("common", common))}
    size = min(n, len(rows["rare"]), len(rows["common"]))
    if not size:
        raise ValueError("The blocks with the rare positions hold no common one: choose another percentile.")
    rows = {name: found[np.sort(generator.choice(len(found), size, replace=False))] for name, found in rows.items()}
    table = pd.concat([pd.DataFrame({"block": found[:, 0], "t": found[:, 1], "group": name})
                       for name, found in rows.items()], ignore_index=True)
    table["document"] = blocks.document[table["block"]]
    table["target"] = blocks.tokens[table["block"], table["t"] + 1]
    names = np.sort(table["document"].unique())
    half = pd.Series(np.where(generator.permutation(len(names)) % 2, "B", "A"), index=names)
    table["half"] = half[table["document"]].to_numpy()
    return table
