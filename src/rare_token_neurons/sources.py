"""What a result owes to code: the package's own source, as this process found it, and the libraries that it stands on.

Sources are read once, when the process begins: an edit while a notebook runs is not taken for what had been run. Comments,
docstrings and layout decide no result, and are no part of it.
"""

import ast
import re
from functools import lru_cache
from importlib import metadata
from pathlib import Path

PACKAGE = "rare_token_neurons"
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def read(folder):
    """The source of every module in a folder, dict of name to str."""
    return {path.stem: path.read_text() for path in sorted(Path(folder).glob("*.py"))}


TEXTS = read(Path(__file__).parent)


def imported(code):
    """The package's modules that Python code imports, directly or through one another.

    Parameters
    ----------
    code : str, the source of a module or of a notebook's code cells.

    Returns
    -------
    dict of name to its statements
    """
    found, queue = {}, list(_names(code))
    while queue:
        name = queue.pop()
        if name in TEXTS and name not in found:
            found[name] = statements(TEXTS[name])
            queue += _names(TEXTS[name])
    return found


def module(name):
    """A module of the package and all that it imports: dict of name to its statements."""
    return {name: statements(TEXTS[name])} | imported(TEXTS[name])


@lru_cache(maxsize=None)
def statements(code):
    """Python code without comments, docstrings and layout, str."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


@lru_cache(maxsize=None)
def _names(code):
    """Names that Python code imports from the package, modules or not."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE}."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith(f"{PACKAGE}.")}
    return found


@lru_cache(maxsize=None)
def libraries():
    """The installed versions of the libraries that the package asks for: dict of name to version."""
    asked = [line for line in metadata.requires(PACKAGE) if "extra ==" not in line]
    names = [re.match(r"[\w.-]+", line).group() for line in asked]
    return {name: metadata.version(name) for name in sorted(names)}
