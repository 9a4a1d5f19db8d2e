"""Absolute locations of the repository's folders."""

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


def shown(path):
    """`path` as text for a reader: relative to the repository where it lies inside."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
