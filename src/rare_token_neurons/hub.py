"""Texts from the Hugging Face hub, named like `stas/c4-en-10k[:500]`: a dataset, and which of its rows."""

import re
from functools import lru_cache

import pandas as pd

NAME = re.compile(r"([\w.-]+/[\w.-]+)\[(\d*:\d*)\]")
PARQUET = "refs/convert/parquet"  # the hub's own conversion, which needs no code of the dataset


def names_text(text):
    """Whether a text's name is one of a dataset's rows."""
    return NAME.fullmatch(text) is not None


@lru_cache(maxsize=1)
def documents(text):
    """The rows of a dataset's train split, each a document.

    Parameters
    ----------
    text : str, such as "stas/c4-en-10k[:500]"; the dataset needs a column `text`.

    Returns
    -------
    pandas.DataFrame with source, document, text

    Raises
    ------
    ValueError
        The package datasets is not installed; the dataset cannot be had; no column `text`; no rows.
    """
    repository, rows = NAME.fullmatch(text).groups()
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(f"The text {text} is on the hub: install the package datasets (pip install -e '.[hub]').") from None
    try:
        found = load_dataset(repository, split=f"train[{rows}]", revision=PARQUET)
    except (OSError, ValueError) as error:  # no network, no such dataset, no such rows
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"The text {text} could not be had from the hub: {reason}") from None
    if "text" not in found.column_names:
        raise ValueError(f"The dataset {repository} has no column text; it has {', '.join(found.column_names)}.")
    if not len(found):
        raise ValueError(f"The text {text} has no rows.")
    return pd.DataFrame({"source": repository.split("/")[1], "document": range(len(found)), "text": found["text"]})
