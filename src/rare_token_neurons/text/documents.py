"""The documents of a text, their split and their token ids: mini-pile, a text file, a column of a table, hub rows."""

import codecs
import contextlib
import hashlib
import os
import re
import textwrap
from functools import lru_cache, partial
from itertools import takewhile
from operator import itemgetter

import numpy as np
import pandas as pd

from rare_token_neurons.paths import MINI_PILE, place, shown

HELD_OUT = 0.05  # share of each source's documents
BATCH = 100  # texts tokenised at a time: an encoding takes 30 times the memory of its ids


def documents(text="mini-pile"):
    """The documents of a text, with their split.

    Parameters
    ----------
    text : "mini-pile", the path of a text file (see `of_file`) or of a table, with the name of its column (see `of_table`),
        or rows of a dataset on the hub (see `of_dataset`).

    Returns
    -------
    pandas.DataFrame with source, document, text, split ("train" or "held-out"; about 5 % of each source is held out)

    Raises
    ------
    FileNotFoundError, ValueError
        What `of_file`, `of_table` and `of_dataset` raise.
    """
    if text == "mini-pile":
        files = sorted(MINI_PILE.glob("*.jsonl.xz"))
        table = pd.concat([pd.read_json(path, lines=True).assign(source=path.name.split(".")[0]) for path in files],
                          ignore_index=True)
    else:
        name, column = parted(text)
        table = of_dataset(text) if names_text(text) else of_table(place(name), column) if column else of_file(place(name))
    names = table["source"] + "/" + table["document"].astype(str)
    table["order"] = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    rank = table.groupby("source")["order"].rank() / table.groupby("source")["order"].transform("size")
    table["split"] = np.where(rank <= HELD_OUT, "held-out", "train")
    return table[["source", "document", "text", "split"]]


def text_hash(text="mini-pile"):
    """sha256 of the files of a text, or of its rows from the hub."""
    if names_text(text):
        return hashlib.sha256("\0".join(of_dataset(text)["text"]).encode()).hexdigest()
    name, column = parted(text)
    files = sorted(MINI_PILE.glob("*.jsonl.xz")) if text == "mini-pile" else [place(name)]
    digest = hashlib.sha256(column.encode())
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def encode(tokenizer, texts):
    """Token ids of each text, int32 arrays, whole and without special tokens."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # some tokenizer files ask for a length or for padding
    backend.no_padding()
    texts = list(texts)
    return [np.array(encoding.ids, dtype=np.int32) for start in range(0, len(texts), BATCH)
            for encoding in backend.encode_batch_fast(texts[start : start + BATCH], add_special_tokens=False)]


def opening(tokenizer):
    """The special tokens that a tokenizer puts before every text, such as <bos>, list of int; [] for most.

    A model that was trained with them is lost without: Gemma 3's loss is 1.3 nats a token higher.
    """
    whole = tokenizer.backend_tokenizer.encode("a")
    return [token for token, _ in takewhile(itemgetter(1), zip(whole.ids, whole.special_tokens_mask))]


# ---- a text file

DOCUMENT = 2_000  # characters of a document at least, but for the last
LONGEST = 20_000  # characters of a paragraph, above which it is cut: a line of 100 MB in one piece takes 17 GB to tokenise
UNREADABLE = 0.001  # share of the characters, above which a file is taken to be in another encoding
MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
         codecs.BOM_UTF16_BE: "utf-16"}  # the longer ones first: one of them begins like a shorter


def of_file(path):
    """The documents of a text file, cut at blank lines into 2,000 characters or more.

    A paragraph of more than 20,000 characters is cut at line ends, else at white space, else anywhere.

    Returns
    -------
    pandas.DataFrame with source (the file's name), document, text

    Raises
    ------
    FileNotFoundError, ValueError
        No such file; a file without text; a file that is not UTF-8.
    """
    pieces, run = [], ""
    for paragraph in read(path).split("\n\n"):
        for piece in _cut(paragraph):
            run = f"{run}\n\n{piece}" if run else piece
            if len(run) >= DOCUMENT:
                pieces.append(run)
                run = ""
    if run.strip():
        pieces.append(run)
    return pd.DataFrame({"source": path.stem, "document": np.arange(len(pieces)), "text": pieces})


def read(path):
    """The text of a file: UTF-8, or UTF-16 or UTF-32 where it begins by saying so.

    A NUL is read as a space, a byte here and there that is not UTF-8 as U+FFFD.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no text file {shown(path)}.")
    with path.open("rb") as file:
        start = file.read(4)
    encoding = next((name for mark, name in MARKS.items() if start.startswith(mark)), "utf-8-sig")
    content = path.read_text(encoding=encoding, errors="replace")
    found = content.replace("\0", " ")
    if not found.strip():
        raise ValueError(f"The text file {shown(path)} is empty.")
    bad = content.count("\ufffd") / len(content)
    if bad > UNREADABLE or content.count("\0") > len(content) / 4:
        raise ValueError(f"The text file {shown(path)} is not UTF-8 ({bad:.1%} of its characters cannot be read, "
                         f"{content.count(chr(0)) / len(content):.1%} are NUL); save it as UTF-8, for example with iconv.")
    return found


def _cut(paragraph):
    """The paragraph in pieces of at most LONGEST characters; joined, they are the paragraph."""
    start = 0
    while len(paragraph) - start > LONGEST:
        window = paragraph[start : start + LONGEST]
        line, word = window.rfind("\n"), len(window.rsplit(maxsplit=1)[0]) if window.strip() else 0
        size = next((size for size in (line, word) if size >= DOCUMENT), LONGEST)
        yield window[:size]
        start += size
    yield paragraph[start:]


# ---- a column of texts

COLUMN = "text"  # where none is named
TABLE = re.compile(r"(.+\.(jsonl?|csv|parquet)(?:\.(?:gz|bz2|xz|zst))?)(?::(.+))?", re.IGNORECASE | re.DOTALL)


def parted(text):
    """The path in a text's name, and the column that holds the texts, "" for a file that is text itself: (str, str)."""
    found = TABLE.fullmatch(text)
    if found is None or (found[3] and os.path.exists(place(text))):
        return text, ""
    return found[1], found[3] or COLUMN


def of_table(path, column):
    """The rows of a table, each a document: .jsonl, .json (a list of records, or lines), .csv or .parquet.

    Returns
    -------
    pandas.DataFrame with source (the file's name), document (the row), text

    Raises
    ------
    FileNotFoundError, ValueError
        No such file; one that pandas cannot read; what `_texts` raises.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no text file {shown(path)}.")
    try:
        table = _read_table(path, TABLE.fullmatch(path.name)[2].lower())
    except Exception as error:  # pandas, pyarrow and the decompressors raise what comes
        raise ValueError(f"The table {shown(path)} cannot be read: {_reason(error)}") from None
    return _texts(f"The table {shown(path)}", path.name.split(".")[0], table.get(column), column, table.columns)


def _read_table(path, kind):
    if kind == "parquet":
        return pd.read_parquet(path)
    if kind == "csv":
        return pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    if kind == "json":
        with contextlib.suppress(ValueError):  # often lines under this ending
            return pd.read_json(path, dtype=False)  # a text of digits is a text
    return pd.read_json(path, lines=True, dtype=False)


def _texts(name, source, values, column, columns):
    """The texts in a column as documents; rows without one are left out and counted.

    Raises
    ------
    ValueError
        There is no such column; it holds something else than text, or no text.
    """
    if values is None:
        raise ValueError(f"{name} has no column {column!r}; it has {_brief(', '.join(map(str, columns)))}.")
    values = list(values)
    there = [row for row, value in enumerate(values) if not (pd.api.types.is_scalar(value) and pd.isna(value))]
    texts = [values[row] for row in there]
    if odd := {type(value).__name__ for value in texts} - {"str"}:
        raise ValueError(f"{name} holds {' and '.join(sorted(odd))}, not text, in its column {column!r}.")
    if not any(map(str.strip, texts)):
        raise ValueError(f"{name} holds no text in its column {column!r}.")
    if len(texts) < len(values):
        print(f"{name}: {len(values) - len(texts):,} of {len(values):,} rows have no {column} and are left out.")
    return pd.DataFrame({"source": source, "document": there, "text": texts})


def _reason(error):
    """What went wrong at the bottom of an error, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return _brief(str(error)) or type(error).__name__


_brief = partial(textwrap.shorten, width=200, placeholder=" ...")


# ---- a dataset of the hub

NAME = re.compile(r"([\w.-]+/[\w.-]+)\[(\d*:\d*)\](?::(.+))?")
PARQUET = "refs/convert/parquet"  # the hub's own conversion, which needs no code of the dataset


def names_text(text):
    """Whether a text's name is one of a dataset's rows, and no file that is there."""
    return NAME.fullmatch(text) is not None and not os.path.exists(place(text))


@lru_cache(maxsize=1)
def of_dataset(text):
    """The rows of a dataset's train split, each a document.

    Parameters
    ----------
    text : str, such as "stas/c4-en-10k[:500]", or "owner/name[:500]:body" for another column than `text`.

    Returns
    -------
    pandas.DataFrame with source, document, text

    Raises
    ------
    ValueError
        The package datasets is not installed; the dataset cannot be had; what `_texts` raises.
    """
    repository, rows, column = NAME.fullmatch(text).groups(COLUMN)
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(f"The text {text} is on the hub: install the package datasets (pip install -e '.[hub]').") from None
    try:
        found = load_dataset(repository, split=f"train[{rows}]", revision=PARQUET)
        values = found[column][:] if column in found.column_names else None
    except Exception as error:  # datasets, pyarrow, fsspec and the hub's client raise what comes
        raise ValueError(f"The text {text} could not be had from the hub: {_reason(error)}") from None
    return _texts(f"The dataset {repository}", repository.split("/")[1], values, column, found.column_names)
