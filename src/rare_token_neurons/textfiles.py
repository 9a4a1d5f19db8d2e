"""A text file of one's own as documents: UTF-8 by rule, UTF-16 or UTF-32 where the file begins by saying so."""

import codecs

import numpy as np
import pandas as pd

from rare_token_neurons.paths import shown

DOCUMENT = 2_000  # characters of a document at least, but for the last
LONGEST = 20_000  # characters of a paragraph, above which it is cut: a line of 100 MB in one piece takes 17 GB to tokenise
UNREADABLE = 0.001  # share of the characters, above which a file is taken to be in another encoding
MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
         codecs.BOM_UTF16_BE: "utf-16"}  # the longer ones first: one of them begins like a shorter


def documents(path):
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
    """The text of a file; a NUL is read as a space, a byte here and there that is not UTF-8 as U+FFFD."""
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
