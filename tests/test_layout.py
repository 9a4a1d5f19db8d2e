"""How the package is laid out: who may import whom, how large files and rooms are, and what loads without torch."""

import ast
import os
import subprocess
import sys
from collections import Counter

import nbformat
import pytest
from small_notebooks import PACKAGE

from rare_token_neurons import files, keys, paths
from rare_token_neurons.runner.jobs import find

MODULES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))
MOST_LINES, MOST_FILES = 450, 14  # of a file; in a room
# tables whose first line names the columns
SAID_IN_ONE_LINE = {"blocks", "positions", "influence_over_training", "claims"}


def python(code):
    """Run code in a process of its own, in the repository's root: (exit code, what it printed)."""
    done = subprocess.run([sys.executable, "-c", code], cwd=paths.ROOT, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)})
    return done.returncode, done.stdout


def test_a_room_imports_only_what_lies_below_it():
    """The contracts of pyproject.toml. (The linter changes the logging of its process.)"""
    code, said = python("from importlinter.cli import lint_imports\nexit(lint_imports(no_cache=True, no_logo=True))")
    assert code == 0, said


@pytest.mark.parametrize("code", [
    "import rare_token_neurons.runner.run, rare_token_neurons.runner.sweep, rare_token_neurons.__main__",
    "; ".join(f"import rare_token_neurons.figures.{path.stem}" for path in (PACKAGE / "figures").glob("[a-z]*.py")),
], ids=["running", "drawing"])
def test_running_and_drawing_load_no_torch(code):
    code, said = python(f"{code}; import sys; print(*{{'torch', 'transformers'}} & set(sys.modules))")
    assert code == 0 and said.split() == [], said


def test_no_file_is_long_and_no_room_is_full():
    lines = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in MODULES}
    assert not {name: n for name, n in lines.items() if n > MOST_LINES}
    rooms = Counter(path.parent for path in MODULES if path.name != "__init__.py")
    assert not {room.name: n for room, n in rooms.items() if n > MOST_FILES}


def test_a_room_itself_imports_nothing():
    """A function such as `influence` would hide the module of its name, and torch would come with every room."""
    for room in ROOMS:
        body = ast.parse((room / "__init__.py").read_text()).body
        assert not [ast.unparse(line) for line in body if isinstance(line, ast.Import | ast.ImportFrom)], room.name


@pytest.mark.parametrize("notebook", find(), ids=lambda path: path.stem)
def test_a_notebook_imports_one_line_of_the_package(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    tree = ast.parse("\n".join(cell.source for cell in cells if cell.cell_type == "code"))
    lines = [ast.unparse(line) for line in ast.walk(tree) if isinstance(line, ast.Import | ast.ImportFrom)]
    assert len([line for line in lines if keys.PACKAGE in line]) == 1, lines


def tables():
    """Every function that is declared as a table, as (module, its syntax)."""
    for module, code in keys.TEXTS.items():
        for node in ast.walk(ast.parse(code)):
            marks = [ast.unparse(mark) for mark in getattr(node, "decorator_list", ())]
            if any(mark.startswith("table(") for mark in marks):
                yield module, node


def test_every_table_has_one_maker_and_says_what_it_holds():
    found = list(tables())
    assert len(found) > 40 and {node.name: module for module, node in found} == keys.makers()
    assert not [name for name, n in Counter(node.name for _, node in found).items() if n > 1]
    told = {node.name for _, node in found if "Returns\n" in (ast.get_docstring(node) or "")}
    assert {node.name for _, node in found} - told == SAID_IN_ONE_LINE
    committed = {path.stem for path in paths.RESULTS.glob("*/*.parquet") if path.parent != paths.MINI_PYTHIA_SEEDS}
    assert committed - {"training_log"} <= set(keys.makers())


def test_the_data_card_names_the_processor_of_the_committed_tables():
    name, vectors, cores = files.read_json(paths.RESULTS / "processor.json")["processor"]
    card = (paths.DATA / "README.md").read_text()
    assert name in card and vectors in card and f"{cores} cores" in card
