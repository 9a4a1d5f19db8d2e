"""Absolute locations of the repository's folders, and of the files and folders that people name."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
FIGURES = ROOT / "figures"
DATA = ROOT / "data"
MINI_PILE = DATA / "mini-pile"
MINI_PYTHIA = DATA / "mini-pythia"
RESULTS = DATA / "results"
MINI_PYTHIA_SEEDS = RESULTS / "mini-pythia-seeds"
CACHE = DATA / "cache"
RUNS = CACHE / "runs"


def place(name):
    """Where the file or folder of a name lies: in the working directory, else in the repository's root; ~ is the home.

    Where neither holds one, its place in the root.
    """
    for base in (Path.cwd(), ROOT):
        path = Path(os.path.abspath(base / os.path.expanduser(name)))
        if os.path.exists(path):  # False for what cannot be a name
            return path.parent.resolve() / path.name
    return ROOT / name


def spelled(name):
    """The one spelling of the file or folder that is there under a name: from the root where it lies inside, else absolute.

    A name of which there is none stays as it is; the folder of mini-pythia is "mini-pythia".

    Raises
    ------
    ValueError
        It lies in the repository, and the working directory holds another one under the same spelling.
    """
    path = place(name)
    if not name.strip() or not os.path.exists(path):
        return name
    if path == MINI_PYTHIA:
        return path.name
    inside = str(path.relative_to(ROOT) if ROOT in path.parents else path)
    if place(inside) != path:
        raise ValueError(f"{inside} is in the repository and in the working directory; call it from another one.")
    return inside


def shown(path):
    """`path` as text for a reader: relative to the repository where it lies inside."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
