"""The site of `make book`: it builds without a warning, every formula is in it, and it asks nothing of the network."""

import re
import subprocess
import sys

import nbformat
import pytest
from matplotlib.mathtext import MathTextParser

from rare_token_neurons import paths
from rare_token_neurons.runner.jobs import find

by_name = pytest.mark.parametrize("notebook", find(), ids=lambda path: path.stem)
# What matplotlib does not know of LaTeX, and how it knows it.
UNKNOWN = {r"\\[bB]ig(?![a-z])": "", r"\\([gl])e(?![a-z])": r"\\\1eq", r"\\frac(\w)(\w)": r"\\frac{\1}{\2}"}


def formulas(text):
    """The formulas of a Markdown text, without their dollar signs."""
    return [one or other for one, other in re.findall(r"\$\$(.+?)\$\$|\$(.+?)\$", re.sub(r"`[^`]*`", "", text), re.S)]


def prose(notebook):
    """What a notebook says in Markdown, in its cells and in what they print."""
    cells = nbformat.read(notebook, as_version=4).cells
    printed = [output.get("data", {}).get("text/markdown", "") for cell in cells for output in cell.get("outputs", ())]
    return "\n".join([*(cell.source for cell in cells if cell.cell_type == "markdown"), *printed])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for name in ("sphinx", "myst_nb", "furo", "mathjax"):
        pytest.importorskip(name, reason=f"{name} is not installed; make book and make test install it")
    folder = tmp_path_factory.mktemp("book")
    done = subprocess.run([sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "-d", folder / "trees",
                           paths.NOTEBOOKS, folder / "site"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@by_name
def test_every_formula_can_be_set(notebook):
    for formula in formulas(prose(notebook)):
        for pattern, known in UNKNOWN.items():
            formula = re.sub(pattern, known, formula)
        MathTextParser("path").parse(f"${' '.join(formula.split())}$")


@by_name
def test_a_page_holds_every_formula_and_figure(site, notebook):
    page, cells = (site / f"{notebook.stem}.html").read_text(), nbformat.read(notebook, as_version=4).cells
    assert len(re.findall('class="math ', page)) == len(formulas(prose(notebook)))
    drawn = [output for cell in cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", ())]
    shown = re.findall('<img [^>]*src="([^"]+)"', page)
    assert len(shown) == len(drawn) and all((site / name).exists() for name in shown)


def test_navigation_leads_to_every_page_and_nothing_is_asked_of_the_network(site):
    front = (site / "index.html").read_text()
    assert not [path.stem for path in find() if f'href="{path.stem}.html"' not in front]
    for page in site.glob("*.html"):
        asked = re.findall(r'(?:<script[^>]* src|<link[^>]* href|<img[^>]* src)="([^"]+)"', page.read_text())
        assert asked and not [name for name in asked if "//" in name], page.name
    assert (site / "_static/tex-svg.js").exists() and (site / "searchindex.js").exists()
