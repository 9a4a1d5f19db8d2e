"""Reduce reStructuredText of the Python documentation to plain prose."""

import re

from rare_token_neurons.embedded.mini_pile.prose import normalise, unwrap

DROPPED = set("""
    module moduleauthor sectionauthor currentmodule index highlight code-block sourcecode doctest
    testcode testsetup testoutput testcleanup productionlist literalinclude include toctree
    tabularcolumns contents image figure only raw program list-table table parsed-literal
    audit-event audit-event-table limited-api-list miscnews availability
""".split())
LABELS = {
    "versionadded": "New in version", "versionchanged": "Changed in version",
    "deprecated": "Deprecated since version", "deprecated-removed": "Deprecated since version",
    "note": "Note:", "warning": "Warning:", "seealso": "See also:", "important": "Important:",
    "caution": "Caution:", "impl-detail": "CPython implementation detail:",
}
DIRECTIVE = re.compile(r"( *)\.\. (?:\|[^|]*\| )?([\w:-]+)::(.*)")
BORDER = re.compile(r"\s*=+(?: +=+)+\s*$")
ADORNMENT = re.compile(r"""\s*([=\-~^*"'`#+.:_])\1{2,}\s*$""")
LABEL_LINE = re.compile(
    r"(?m)^((?:Note|Warning|See also|Important|Caution|CPython implementation detail):)\n\n")
OPTION = re.compile(r"\s*:[\w -]+:(\s|$)")
ITEM = re.compile(r"\s*(?:[*+-]|\(?\w\)|[\d#]+\.)\s+")
INLINE = [
    (r"\\\*", "\0"),
    (r"^:([A-Z][\w -]*): ", r"\1: "),
    (r"\\\s+", " "),
    (r":issue:`(\d+)`", r"bpo-\1"),
    (r":[\w:+-]+:`([^`<]+?)\s*<[^`>]*>`", r"\1"),
    (r":[\w:+-]+:`~[^`]*?([^`.]+)`", r"\1"),
    (r":pep:`(\d+)[^`]*`", r"PEP \1"),
    (r":[\w:+-]+:`!?([^`]+)`", r"\1"),
    (r"``(.+?)``", r"\1"),
    (r"`([^`<]+?)\s*<[^`>]*>`__?", r"\1"),
    (r"`([^`]+)`_{0,2}", r"\1"),
    (r"\s?\[[#\d*][^\]\s]*\]_", ""),
    (r"\*\*([^*\n]+)\*\*", r"\1"),
    (r"(?<![\w*])\*([^*\s][^*\n]*)\*(?![\w*])", r"\1"),
    (r"\b(\w+)__?(?=[\s,.;:)])(?<=[a-z]_)", r"\1"),
    (r"\\(.)", r"\1"),
    (r"\|(?:version|release)\|", "3.11"),
    (r"(?:^|\s+)::(?=\s|$)", ""),
    (r"::(?=\s|$)", ":"),
    (r"``", ""),
    (r"\0", "*"),
    (r" --- ", " — "),
]


def inline(text):
    """Strip roles, links and emphasis from one paragraph."""
    for pattern, replacement in INLINE:
        text = re.sub(pattern, replacement, text)
    return text


def _indent(line):
    return len(line) - len(line.lstrip())


def _directive(match):
    """Return the replacement line of a directive, or None when its body goes too."""
    spaces, name, argument = match.groups()
    if name.rpartition(":")[2] in DROPPED:
        return None
    label, argument = LABELS.get(name, ""), argument.strip()
    if label.endswith("version"):
        version, _, rest = argument.partition(" ")
        argument = f"{version}: {rest}" if rest else f"{version}."
    return f"{spaces}{label} {argument}".rstrip()


def _visible(lines):
    """Yield the lines that remain once code, tables and comments are gone."""
    skip, table, options = None, False, False
    for number, line in enumerate(lines):
        after = lines[number + 1] if number + 1 < len(lines) else ""
        if table or BORDER.match(line):
            table = not (BORDER.match(line) and table and not after.strip())
            continue
        if skip is not None:
            if not line.strip() or _indent(line) > skip:
                yield ""
                continue
            skip = None
        if options and OPTION.match(line):
            continue
        options = False
        directive = DIRECTIVE.match(line)
        comment = re.match(r" *\.\.(?: (?!\[)|$)", line)
        if directive or comment:
            shown = _directive(directive) if directive else None
            if shown is None:
                skip = _indent(line)
                yield ""
            else:
                options = True
                yield from ("", shown)
            continue
        if ADORNMENT.match(line):
            yield ""
            continue
        if re.match(r"\s*(>>>|\.\.\. |[+|])", line) or line.strip() == "::":
            skip = _indent(line) - 1 if line.strip() != "::" else _indent(line)
            if line.strip().startswith((">>>", "...")):
                skip = None
            continue
        yield re.sub(r"^(\s*)\.\. \[[^\]]*\] ?", r"\1", line)
        if line.rstrip().endswith("::"):
            skip = _indent(line)


def to_text(source):
    """Return the prose of one reStructuredText page."""
    kept, block = [], []

    def close():
        if block:
            paragraph = inline(unwrap("\n".join(block)))
            kept.append(re.sub(r"^[*+] ", "- ", paragraph))
            block.clear()

    for line in _visible(source.expandtabs(4).splitlines()):
        if not line.strip():
            close()
            continue
        if ITEM.match(line) and block and _indent(line) <= _indent(block[0]):
            close()
        block.append(line)
    close()
    kept = [paragraph for paragraph in kept if not paragraph.startswith((":tocdepth:", ":orphan:"))]
    return LABEL_LINE.sub(r"\1 ", normalise("\n\n".join(kept)))
