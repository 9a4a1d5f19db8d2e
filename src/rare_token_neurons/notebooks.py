"""Notebook files: finding them, their parameters, the sources that decide their content, and the copy that readers see."""

import ast
import hashlib
import json
import re

import nbformat
import papermill

from rare_token_neurons import paths, sources


def find(numbers=()):
    """The numbered notebooks, in order.

    Parameters
    ----------
    numbers : iterable of str, such as "03" or "3"; empty for all.

    Raises
    ------
    ValueError
        There is no notebook of that number.
    """
    found = {path.name[:2]: path for path in sorted(paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))}
    wanted = [number.zfill(2) for number in numbers] or list(found)
    for number in wanted:
        if number not in found:
            raise ValueError(f"There is no notebook {number}; there are: {', '.join(found) or 'none'}.")
    return [found[number] for number in sorted(set(wanted))]


def defaults(notebook):
    """The parameters of a notebook with their defaults.

    Returns
    -------
    dict of str to a plain value

    Raises
    ------
    ValueError
        The notebook has no `parameters` cell, or a default in it is not a literal.
    """
    inferred = papermill.inspect_notebook(braced(notebook))
    if not inferred:
        raise ValueError(f"{paths.shown(notebook)} has no cell tagged parameters.")
    try:
        return {name: ast.literal_eval(entry["default"]) for name, entry in inferred.items()}
    except (ValueError, SyntaxError):
        raise ValueError(f"{paths.shown(notebook)}: a parameter's default is not a plain literal.") from None


def braced(path):
    """`path` as papermill wants it: it reads braces in a path as fields to fill in."""
    return str(path).replace("{", "{{").replace("}", "}}")


def source(notebook):
    """The text of all cells, code and prose, without what running the notebook adds."""
    cells = nbformat.read(notebook, as_version=4).cells
    return [[cell.cell_type, cell.source] for cell in cells if "injected-parameters" not in cell.metadata.get("tags", [])]


def content_key(notebook, values):
    """Hash of all that decides what a run of a notebook gives.

    That is its cells, its parameters, the package's modules that it imports, the libraries' versions, and size and time of the
    files that a parameter names: `mini-pile`, `mini-pythia`, a model's folder, a text. (A hub model is known by its name alone;
    the heavy stages inside the notebook compare the hashes of its weights.)
    """
    cells = source(notebook)
    code = "\n".join(text for kind, text in cells if kind == "code")
    used = sources.imported(re.sub(r"^\s*[%!].*$", "", code, flags=re.M))
    named = [base / value for value in values.values() for base in (paths.ROOT, paths.DATA)
             if isinstance(value, str) and value.strip()]
    content = [cells, values, used, sources.libraries(), [stamps(path) for path in named]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def stamps(path):
    """Name, size and time of a file, or of every file of a folder and of its subfolders; [] where there is none."""
    files = [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]


def for_readers(notebook):
    """A copy of an executed notebook without what differs from run to run and machine to machine.

    Taken out: papermill's timings and paths, injected parameters, what was written to stderr (progress, warnings), the
    repository's absolute path, and the interpreter's version.
    """
    clean = nbformat.from_dict(json.loads(json.dumps(notebook).replace(f"{paths.ROOT}/", "")))
    clean.metadata = nbformat.from_dict({
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    })
    clean.cells = [cell for cell in clean.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for cell in clean.cells:
        cell.metadata = nbformat.from_dict({"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {})
    for number, cell in enumerate((cell for cell in clean.cells if cell.cell_type == "code"), 1):
        cell.execution_count = number
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number
    return clean
