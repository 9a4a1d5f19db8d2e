"""Small notebooks, one behaviour each, and what they leave: for tests that run notebooks."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat

import rare_token_neurons

PACKAGE = Path(rare_token_neurons.__file__).parent
PARAMETERS = ('model: str = "mini-pythia"  # the model\nsteps: list = []  # training steps\n'
              'seed: int = 0  # of every draw')
MARK = 'with open("marks.txt", "a") as file:\n    file.write("{name} {{}} {{}}\\n".format(seed, steps))'


def write(folder, name, *cells, declared=PARAMETERS):
    """Write notebooks/<name>.ipynb: a parameters cell, one that leaves a mark in marks.txt, and `cells`."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    book.cells = [nbformat.v4.new_code_cell(text) for text in (declared, MARK.format(name=name), *cells)]
    if declared:
        book.cells[0].metadata["tags"] = ["parameters"]
    path = folder / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)
    return path


def marks(folder):
    """Which notebooks ran, in order, with the seed and steps that they saw."""
    path = folder / "marks.txt"
    return path.read_text().splitlines() if path.exists() else []


def copy_package(folder):
    """Copy the package to src/ of a folder, which is then a repository of its own; returns that src/."""
    shutil.copytree(PACKAGE, folder / "src" / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "src"


def begin(root, *arguments):
    """A command in a copy of the repository, the first of a process group of its own, as in a terminal."""
    return subprocess.Popen([sys.executable, "-m", "rare_token_neurons", *arguments], cwd=root, start_new_session=True,
                            env=os.environ | {"PYTHONPATH": str(root / "src")}, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


def wait_for(condition, seconds=300):
    """Wait until a condition holds; it is asserted in the end."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    assert condition()
