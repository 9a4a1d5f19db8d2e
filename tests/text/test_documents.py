"""Which documents a text has, and which of them are held out: the embedded text, a file of one's own,
rows of a dataset."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import constants
from own_model import refused
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rare_token_neurons.text import documents


def test_about_five_percent_of_each_source_are_held_out(pile):
    held_out = (pile["split"] == "held-out").groupby(pile["source"]).agg(["sum", "size", "mean"])
    assert set(pile["split"]) == {"train", "held-out"}
    np.testing.assert_array_equal(held_out["sum"], np.floor(held_out["size"] * 0.05))
    assert held_out["mean"].between(0.045, 0.05).all()


def test_the_split_depends_on_the_names_of_a_source_alone(pile, small_pile):
    split = pile[pile["source"] == "devil"]["split"].tolist()
    assert documents.documents()["split"].tolist() == split  # whatever else is there
    assert "held-out" in split[10:-10]  # drawn, not the first or last ones


def test_no_document_is_on_both_sides(pile):
    assert not pile["text"].duplicated().any()
    assert not pile[["source", "document"]].duplicated().any()


# ---- a text file


def test_a_plain_file_is_cut_at_blank_lines_into_documents(tmp_path):
    paragraph = "word " * 150  # 750 characters
    path = tmp_path / "own.txt"
    path.write_text("\n\n".join([paragraph] * 8))
    found = documents.documents(str(path))
    assert found["text"].str.len().tolist() == [3 * 750 + 4, 3 * 750 + 4, 2 * 750 + 2]  # 3 paragraphs exceed 2,000
    assert found["source"].eq("own").all()
    assert "\n\n".join(found["text"]) == path.read_text()


@pytest.mark.parametrize("content", [b"", b" \n\n \t\n", b"\0\0\0", b"\xef\xbb\xbf"])
def test_a_file_without_text_is_named(tmp_path, content):
    path = tmp_path / "blank.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^The text file blank.txt is empty\.$"):
        documents.documents(str(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^There is no text file nowhere.txt\.$"):
        documents.documents(str(tmp_path / "nowhere.txt"))


def test_odd_bytes_are_text(tmp_path):
    path = tmp_path / "odd.txt"
    path.write_bytes(b"\xef\xbb\xbfthe\0cat \xff \xf0\x9f\x98\x80" + b" cat" * 300)
    assert documents.documents(str(path))["text"].tolist() == ["the cat \ufffd \U0001f600" + " cat" * 300]


def test_the_hash_of_a_text_is_that_of_its_content(tmp_path):
    path, other = tmp_path / "a.txt", tmp_path / "b.txt"
    path.write_text("the cat")
    other.write_text("the cat")
    before = documents.text_hash(str(path))
    assert before == documents.text_hash(str(other)) != documents.text_hash()
    path.write_text("the Cat")
    assert documents.text_hash(str(path)) != before


def test_encoding_is_whole_and_adds_nothing():
    backend = Tokenizer(models.WordLevel({" the": 0, " cat": 1, ".": 2}, unk_token="."))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+|."), "isolated")
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    found = documents.encode(PreTrainedTokenizerFast(tokenizer_object=backend), [" the cat.", "", " the the the cat"])
    assert [ids.tolist() for ids in found] == [[0, 1, 2], [], [0, 0, 0, 1]]


def test_what_a_tokenizer_begins_a_text_with_is_its_opening():
    backend = Tokenizer(models.WordLevel({"a": 0, "<s>": 1, "</s>": 2}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert documents.opening(tokenizer) == []
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>",
                                                           special_tokens=[("<s>", 1), ("</s>", 2)])
    assert documents.opening(PreTrainedTokenizerFast(tokenizer_object=backend)) == [1]


# ---- a column of texts

ROWS = [{"text": "the cat, \u201csaid\u201d\n\n42", "body": "7"}, {"text": None, "body": "8"},
        {"text": "{\"a\": 1}", "body": ""}]
TABLES = {  # whatever is asked of pandas for, these rows
    "rows.jsonl": lambda path: path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS)),
    "rows.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "lines.json": lambda path: path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in ROWS),
                                               "utf-8"),
    "rows.csv": lambda path: pd.DataFrame(ROWS).to_csv(path, index=False),
    "rows.parquet": lambda path: pd.DataFrame(ROWS, index=[9, 4, 2]).to_parquet(path),
    "rows.jsonl.gz": lambda path: pd.DataFrame(ROWS).to_json(path, orient="records", lines=True),
    "ROWS.CSV": lambda path: pd.DataFrame(ROWS).to_csv(path, index=False, encoding="utf-8-sig"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_column_of_a_table_is_read_and_no_mark_up(tmp_path, capsys, name):
    TABLES[name](tmp_path / name)
    found = documents.documents(str(tmp_path / name))
    assert found["text"].tolist() == [ROWS[0]["text"], ROWS[2]["text"]] and found["document"].tolist() == [0, 2]
    assert found["source"].eq(name.split(".")[0]).all()
    assert capsys.readouterr().out == f"The table {name}: 1 of 3 rows have no text and are left out.\n"
    of_another = documents.documents(f"{tmp_path / name}:body")["text"].tolist()
    assert of_another[:2] == ["7", "8"] and not any(of_another[2:])
    assert len({documents.text_hash(f"{tmp_path / name}{column}") for column in ("", ":text", ":body")}) == 2


UNREADABLE = {"a.jsonl": b'{"text": "a"', "a.json": b'{"text": "a"', "a.parquet": b"PAR1 and so on",
              "a.jsonl.gz": b'{"text": "a"}\n', f"{'b' * 200}.parquet": b""}
WITHOUT_TEXTS = {  # what the table is said to do, its name, what is in it
    "has no column 'text'; it has 0.": ("a.json", b'["a", "b"]'),
    "has no column 'text'; it has one, two.": ("a.csv", b"one,two\n1,2\n"),
    "holds int, not text, in its column 'text'.": ("a.jsonl", b'{"text": 0}\n{"text": "a"}\n'),
    "holds dict and list, not text, in its column": ("a.json", b'[{"text": ["a"]}, {"text": {"b": 1}}]'),
    "holds no text in its column 'text'.": ("a.jsonl", b'{"text": null}\n{"text": " "}\n'),
    "cannot be read: No columns to parse from file": ("a.csv", b""),
    "cannot be read: 'utf-8' codec can't decode": ("a.jsonl", b'{"text": "caf\xe9"}\n'),
}


@pytest.mark.parametrize(("name", "content", "said"), [*((*table, said) for said, table in WITHOUT_TEXTS.items()),
                                                       *((*table, "cannot be read: ") for table in UNREADABLE.items())])
def test_a_table_that_holds_no_texts_is_one_sentence(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with refused(ValueError, f"^{re.escape(f'The table {name} {said}')}"):
        documents.documents(str(tmp_path / name))


def test_a_table_that_is_not_there_is_named(tmp_path):
    with refused(FileNotFoundError, r"^There is no text file none.csv\.$"):
        documents.documents(f"{tmp_path}/none.csv:body")


# ---- rows of a dataset


def test_names_of_texts_from_the_hub():
    assert documents.names_text("stas/c4-en-10k[:500]") and documents.names_text("a/b[10:20]")
    assert documents.names_text("a/b[:]:body")
    assert not any(map(documents.names_text, ("mini-pile", "my.txt", "folder/my.txt", "stas/c4-en-10k", "a/b[1]")))


def test_rows_of_a_dataset_are_documents(tmp_path, monkeypatch):
    pytest.importorskip("datasets", reason="the extra `hub` is not installed")
    offline(tmp_path, monkeypatch, "train.jsonl", "".join(f'{{"text": "page {n}"}}\n' for n in range(5)))
    table = documents.documents("owner/name[1:4]")
    assert list(table["text"]) == ["page 1", "page 2", "page 3"] and set(table["source"]) == {"name"}


def test_another_column_of_a_dataset_and_rows_without_a_text(tmp_path, monkeypatch, capsys):
    offline(tmp_path, monkeypatch, "train.jsonl", '{"body": "a"}\n{"body": null}\n{"body": "b"}\n')
    assert documents.of_dataset("owner/name[:]:body")["text"].tolist() == ["a", "b"]
    assert capsys.readouterr().out == "The dataset owner/name: 1 of 3 rows have no body and are left out.\n"
    with refused(ValueError, r"^The dataset owner/name has no column 'text'; it has body\.$"):
        documents.of_dataset("owner/name[:]")


@pytest.mark.parametrize(("name", "content"), [
    ("test.jsonl", '{"text": "a"}\n'), ("train.jsonl", '{"text": "a'), ("train.parquet", "no table"),
    ("name.py", "open('x', 'w')"), ("train.csv", ""), ("card.md", "# a"),
    ("train.jsonl", '{"text": "a"}\n{"text": {"b": 1}}\n{"c": []}\n'), ("train.jsonl", '{"text": 1}\n'),
    ("train.jsonl", '{"text": null}\n'), (None, "")])
def test_whatever_goes_wrong_with_a_dataset_is_one_sentence(tmp_path, monkeypatch, name, content):
    """The real package reads a folder as it reads what it has downloaded; None: no such dataset, offline."""
    offline(tmp_path, monkeypatch, name, content)
    with refused(ValueError,
                 r"^The (text owner/name\[:9\] could not be had from the hub: |dataset owner/name holds )."):
        documents.of_dataset("owner/name[:9]")
    assert not (tmp_path / "x").exists()


def offline(folder, monkeypatch, name, content):
    """A dataset owner/name of one file below a folder, and no hub."""
    pytest.importorskip("datasets", reason="the extra `hub` is not installed")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
    documents.of_dataset.cache_clear()
    if name:
        (folder / "owner/name").mkdir(parents=True)
        (folder / "owner/name" / name).write_text(content)
