"""The list of tables in data/README.md, made from what the functions that make them say of themselves.

`python -m rare_token_neurons tables` writes it; a test holds the two together.
"""

import argparse
import ast
import inspect
import re

from rare_token_neurons import keys
from rare_token_neurons.files import new_file
from rare_token_neurons.paths import DATA, shown
from rare_token_neurons.runner import jobs

MARKERS = "<!-- tables -->\n", "<!-- /tables -->"
README = DATA / "README.md"


def entry(name, docstring, notebooks):
    """One table as a paragraph in Markdown: its name, the notebooks that read it, what it is, its columns."""
    said, _, columns = inspect.cleandoc(docstring).partition("\nReturns\n-------\n")
    where = f" ({', '.join(notebooks)})" if notebooks else ""
    return f"**{name}**{where}: {' '.join([*said.split(), *columns.split()])}"


def section():
    """All tables, in the order of the notebooks that read them, as Markdown paragraphs."""
    makers, read = keys.makers(), {}
    for notebook in jobs.find():
        code = "\n".join(text for kind, text in jobs.source(notebook) if kind == "code")
        for name in dict.fromkeys(re.findall(r'\.table\("(\w+)"\)', code)):
            read.setdefault(name, []).append(notebook.name[:2])
    docstrings = {node.name: ast.get_docstring(node) for module in dict.fromkeys(makers.values())
                  for node in ast.parse(keys.TEXTS[module]).body if makers.get(getattr(node, "name", "")) == module}
    modules = list(dict.fromkeys(makers.values()))
    order = sorted(makers, key=lambda name: (read.get(name, ["99"])[0], modules.index(makers[name])))
    return "\n\n".join(entry(name, docstrings[name], read.get(name, [])) for name in order) + "\n"


def main(argv=None):
    """Command line of `tables`: write the list."""
    argparse.ArgumentParser(prog="python -m rare_token_neurons tables", description=__doc__).parse_args(argv)
    before, rest = README.read_text("utf-8").split(MARKERS[0])
    text = before + MARKERS[0] + section() + MARKERS[1] + rest.split(MARKERS[1])[1]
    with new_file(README) as temporary:
        temporary.write_text(text, "utf-8")
    print(f"Done: {shown(README)}")
    return 0
