"""What decides a result: plain data, hashed, with the source of the arithmetic and the libraries that it stands on.

Sources are read once, when the process begins: an edit while a notebook runs is not taken for what had been run. Comments,
docstrings, layout and the words of errors decide no result, and are no part of it.
"""

import ast
import hashlib
import json
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import numpy as np

PACKAGE = "rare_token_neurons"
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
# What these deliver is in a key by its own hash (weights, text, tables) or by its value (parameters).
DELIVERING = ("paths", "files", "keys", "settings", "models.hub", "models.gguf", "tables.stage")
NUMERICAL = ("torch", "transformers", "tokenizers", "numpy", "scipy", "pandas", "pyarrow", "statsmodels", "networkx",
             "weightwatcher", "powerlaw", "wordfreq", "pyspellchecker", "gguf")
DRAWING = ("matplotlib", "seaborn")


def read(folder):
    """The source of every module below a folder: dict of dotted name ("tables.influence"; of a room "tables") to str."""
    folder, found = Path(folder), {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text("utf-8")
    return found


TEXTS = read(Path(__file__).parent)


# ---- source


def imported(code, without=()):
    """The package's modules that Python code imports, or names as a table, directly or through one another.

    Parameters
    ----------
    code : str, the source of a module or of a notebook's code cells.
    without : names of modules that are left out, and what is imported through them alone.

    Returns
    -------
    dict of name to its statements
    """
    found, queue = {}, list(_names(code))
    while queue:
        name = queue.pop()
        if name in TEXTS and name not in found and name not in without:
            found[name] = statements(TEXTS[name])
            queue += _names(TEXTS[name])
    return found


def code_behind(name, without=()):
    """A module of the package and all that it imports (see `imported`): dict of name to its statements."""
    return {name: statements(TEXTS[name])} | imported(TEXTS[name], without)


@lru_cache(maxsize=None)
def statements(code):
    """Python code without comments, docstrings, layout and the words of errors, str."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
    return ast.unparse(tree)


@lru_cache(maxsize=None)
def _names(code):
    """Names of modules that Python code imports from the package, and of those that make the tables it names."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            inside = node.module.split(".")[1:]
            found |= {".".join(inside), *(".".join([*inside, alias.name]) for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix(f"{PACKAGE}.") for alias in node.names if alias.name.startswith(f"{PACKAGE}.")}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "table" and node.args:
            found.add(makers().get(getattr(node.args[0], "value", None), ""))
    return found - {""}


@lru_cache(maxsize=None)
def makers():
    """The module that makes each table: dict of the table's name to a dotted name, from what is declared with `@table`."""
    return {node.name: module for module, code in TEXTS.items() if module.startswith("tables.")
            for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)
            and any(isinstance(mark, ast.Call) and ast.unparse(mark.func) == "table" for mark in node.decorator_list)}


@lru_cache(maxsize=None)
def libraries(names=NUMERICAL):
    """The installed versions of libraries: dict of name to version."""
    return {name: metadata.version(name) for name in names}


# ---- hashes


def digest(content):
    """16 hexadecimal digits of the sha256 of plain data: dicts with names as keys, lists, numbers, strings, None.

    Raises
    ------
    TypeError
        Anything else: two different objects could look alike.
    """
    _refuse_odd(content)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _refuse_odd(content):
    parts = content if isinstance(content, (list, tuple)) else content.values() if isinstance(content, dict) else None
    odd = [name for name in content if not isinstance(name, str)] if isinstance(content, dict) else []
    if parts is None and not (content is None or isinstance(content, (str, int, float))):
        odd = [content]
    if odd:
        raise TypeError(f"A content key is made of plain data, not of {odd[0]!r} ({type(odd[0]).__name__}).")
    for part in parts or ():
        _refuse_odd(part)


def array_hash(arrays):
    """Hash of the values of numpy arrays."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


@lru_cache(maxsize=None)
def source_hash(module):
    """Hash of the source of a module of this package and of all its modules behind it, but those that only deliver."""
    return digest(code_behind(module, DELIVERING))


def key(settings, inputs, modules):
    """The content key of a table or of a file of tensors.

    Parameters
    ----------
    settings : dict of the parameters that decide the content.
    inputs : dict of hashes (weights, text, other results' keys).
    modules : list of str, the package's modules whose source decides the content, such as "tables.influence".
    """
    return digest([settings, inputs, {name: source_hash(name) for name in modules}, libraries()])
