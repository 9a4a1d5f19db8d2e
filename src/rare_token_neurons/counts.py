"""Unigram counts from a file: one number a token, in the order of the token ids."""

import numpy as np

from rare_token_neurons.paths import shown

BESIDE = "unigram_counts.npy"  # beside the weights of a model: the counts of the text that it was trained on


def read(path, size):
    """The counts of the first `size` tokens, int64 (size,).

    Raises
    ------
    ValueError
        No .npy file of numbers (a pickle is never opened); another shape, or fewer counts than tokens; a count that is
        negative, not whole, or not finite.
    """
    try:
        counts = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError):
        counts = None
    if not isinstance(counts, np.ndarray) or counts.dtype.kind not in "iuf":
        raise ValueError(f"{shown(path)} is no .npy file of numbers.")
    if counts.ndim != 1 or len(counts) < size:
        raise ValueError(f"{shown(path)} must hold one count for each of the {size:,} tokens; its shape is {counts.shape}.")
    wrong = ~((counts >= 0) & (counts < 2**53) & (counts == np.floor(counts)))
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(f"{shown(path)} must hold whole numbers of 0 or more; that of token {at} is {counts[at]}.")
    return counts[:size].astype(np.int64)
