"""Plain prose, for all sources: normalised, unwrapped, and merged into documents that are long enough."""

import re
import textwrap
import unicodedata

LINE_JOINTS = [("“ ", "“"), ("‘ ", "‘"), ("{ ", "{"), (" ”", "”"), (" }", "}"), (" ’ ", "’ ")]


def normalise(text):
    """Return NFC text with single spaces, no control characters, one blank line at most."""
    text = unicodedata.normalize("NFC", text.replace("\ufffd", ""))
    text = re.sub(r"[^\S\n]+", " ", text)
    text = "".join(c for c in text if c == "\n" or unicodedata.category(c)[0] != "C")
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" *\n *", "\n", text)).strip()


def unwrap(block):
    """Join the hard-wrapped lines of one paragraph."""
    joined = " ".join(line.strip() for line in block.splitlines())
    for wrong, right in LINE_JOINTS:
        joined = joined.replace(wrong, right)
    return joined


def blocks(text):
    """Return the blank-line separated blocks of a text."""
    return [b for b in re.split(r"\n(?:[^\S\n]*\n)+", text.strip("\n")) if b.strip()]


def paragraphs(text, keep_indented=None):
    """Unwrap every block; blocks wholly indented by `keep_indented` or more keep their lines."""
    kept = []
    for block in blocks(text):
        indents = [len(line) - len(line.lstrip()) for line in block.splitlines()]
        verse = keep_indented is not None and min(indents) >= keep_indented
        kept.append(textwrap.dedent(block).strip() if verse else unwrap(block))
    return "\n\n".join(kept)


def merge(documents, minimum):
    """Join adjacent documents until each holds at least `minimum` characters.

    Parameters
    ----------
    documents : iterable of (str, str)
        Names and texts, in reading order.
    minimum : int
        Smallest number of characters of a document.

    Returns
    -------
    list of (str, str)
        Merged documents; a run is named "first – last".
    """
    runs, open_run = [], []
    for name, text in documents:
        open_run.append((name, normalise(text)))
        if sum(len(part) for _, part in open_run) >= minimum:
            runs.append(open_run)
            open_run = []
    if open_run and runs:
        runs[-1].extend(open_run)
    elif open_run:
        runs.append(open_run)
    return [(_run_name(run), "\n\n".join(text for _, text in run if text)) for run in runs]


def _run_name(run):
    first, last = run[0][0], run[-1][0]
    return first if first == last else f"{first} – {last}"


def unique(documents):
    """Drop repeated texts and number repeated names."""
    seen_texts, seen_names, kept = set(), {}, []
    for name, text in documents:
        if text in seen_texts:
            continue
        seen_texts.add(text)
        seen_names[name] = seen_names.get(name, 0) + 1
        kept.append((name if seen_names[name] == 1 else f"{name} ({seen_names[name]})", text))
    return kept
