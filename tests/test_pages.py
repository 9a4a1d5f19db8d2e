"""The README files: what code writes there is up to date, links lead somewhere, and the first page stays one."""

import re
import subprocess
from urllib.parse import unquote

import numpy as np
import pytest

from rare_token_neurons import files, pages, paths
from rare_token_neurons.curve import heads
from rare_token_neurons.runner.jobs import find, source

READMES = [paths.ROOT / folder / "README.md" for folder in
           (".", "notebooks", "src", "data", "data/mini-pile", "data/mini-pythia", "tests")]
FRONT = (paths.ROOT / "README.md").read_text("utf-8")
OUTSIDE = ("https://", "http://", "mailto:")


def prose(text):
    """Markdown without its code."""
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)


def anchors(text):
    """What `#...` may name in a Markdown file, spelled as code hosts spell it."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    plain = (re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", title)) for title in titles)
    return {title.strip().lower().replace(" ", "-") for title in plain}


def broken(text, folder):
    """Links and pictures of a Markdown text that lead nowhere, seen from its folder."""
    links = re.findall(r"\]\(([^)\s]+)\)", prose(text)) + re.findall(r'(?:href|src)="([^"]+)"', prose(text))
    for link in links:
        name, _, anchor = unquote(link).partition("#")
        place = folder / name if name else None
        if link.startswith(OUTSIDE):
            continue
        if place and not place.exists():
            yield link
        elif anchor and anchor not in anchors(place.read_text("utf-8") if place else text):
            yield link


@pytest.mark.parametrize("make, folder", pages.WRITTEN, ids=lambda one: getattr(one, "__name__", None))
def test_what_code_writes_is_up_to_date(make, folder):
    text = (folder / "README.md").read_text("utf-8")
    assert pages.between(make.__name__, text) == make(), "run python -m rare_token_neurons pages"


def test_a_part_is_written_between_its_markers_and_nothing_else_is():
    text = "before\n<!-- tables -->\nold\n<!-- /tables -->\nafter <!-- claims -->"
    written = pages.between("tables", text, "new\nlines")
    assert written == "before\n<!-- tables -->\nnew\nlines\n<!-- /tables -->\nafter <!-- claims -->"
    assert pages.between("tables", text) == "old" and pages.between("tables", written) == "new\nlines"


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(paths.ROOT)))
def test_links_lead_somewhere(readme):
    text = readme.read_text("utf-8")
    assert list(broken(text, readme.parent)) == []


@pytest.mark.parametrize("notebook", find(), ids=lambda path: path.stem)
def test_links_of_a_notebook_lead_somewhere(notebook):
    text = "\n".join(text for kind, text in source(notebook) if kind == "markdown")
    assert list(broken(text, notebook.parent)) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    (tmp_path / "there.md").write_text("# A title, *with* marks\n")
    text = '[a](there.md) [b](gone.md) [c](there.md#a-title-with-marks) [d](there.md#other) ' \
        '<img src="no.png"> `[e](code)`'
    assert list(broken(text, tmp_path)) == ["gone.md", "there.md#other", "no.png"]


def test_the_first_page_is_a_page():
    assert len(FRONT.encode()) <= 9000
    assert not [path.name for path in find() if f'href="notebooks/{path.name}"' not in FRONT]
    assert pages.in_order() != find() and sorted(pages.in_order()) == find()


def test_the_caption_of_figure_3_says_what_the_tables_say():
    """Left a plateau that ends in a cliff, most of it above the line; right one too, unless the head is fixed;
    no power law."""
    phases = files.read_table(paths.RESULTS / "smollm2/phases.parquet")
    rows = phases[(phases["sign"] == "pooled") & (phases["rule"] == f"{heads.DECIDES} head")].set_index("group")
    rare, common = rows.loc["rare"], rows.loc["common"]
    assert rare["word"] == "plateau" and rare["delta_low"] > 0 and rare["shelf"] < rare["head"]
    curves = files.read_table(paths.RESULTS / "smollm2/rank_curves.parquet")
    curve = curves[(curves["group"] == "rare") & (curves["sign"] == "pooled")]
    head = curve[curve["rank"] <= rare["head"]].sort_values("rank")
    above = np.log(head["influence"]) > rare["beta"] - rare["kappa"] * np.log(head["rank"])
    assert above.mean() > 0.5 and not above.iloc[0]
    fixed = phases[(phases["sign"] == "pooled") & (phases["rule"] == "fixed head")].set_index("group").loc["common"]
    assert common["word"] == "plateau" and fixed["word"] == "on the line"
    law = pages.of_claims().query("model == 'smollm2' and name == 'C2 law'").iloc[0]
    assert "rejected" in law["reason"] and "not rejected" not in law["reason"]


def test_make_help_says_what_a_person_gets():
    said = subprocess.run(["make", "help"], cwd=paths.ROOT, capture_output=True, text=True, check=True).stdout
    listed = dict(re.findall(r"^make (\S+) +(.+)$", said, re.M))
    named = set(re.findall(r"`make ([a-z-]+)", "".join(path.read_text("utf-8") for path in READMES)))
    assert {"figures", "redraw", "lab", "book", "check", "test", "suite", "bench", "clean"} | named <= set(listed)
