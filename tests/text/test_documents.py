"""Which documents a text has, and which of them are held out: the embedded text, a file of one's own, rows of a dataset."""

import numpy as np
import pandas as pd
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rare_token_neurons.text import documents


@pytest.fixture(scope="module")
def pile():
    return documents.documents()


def test_about_five_percent_of_each_source_are_held_out(pile):
    held_out = (pile["split"] == "held-out").groupby(pile["source"]).agg(["sum", "size", "mean"])
    assert set(pile["split"]) == {"train", "held-out"}
    np.testing.assert_array_equal(held_out["sum"], np.floor(held_out["size"] * 0.05))
    assert held_out["mean"].between(0.045, 0.05).all()


def test_the_split_depends_on_the_names_of_a_source_alone(pile):
    again = documents.documents()
    pd.testing.assert_frame_equal(pile, again)
    first = pile[pile["source"] == "austen"]["split"].to_numpy()
    assert (first[:30] == "train").any() and not (first == np.sort(first)).all()  # drawn, not the first or last ones


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


# ---- rows of a dataset


def test_names_of_texts_from_the_hub():
    assert documents.names_text("stas/c4-en-10k[:500]") and documents.names_text("a/b[10:20]")
    assert not any(map(documents.names_text, ("mini-pile", "my.txt", "folder/my.txt", "stas/c4-en-10k", "a/b[1]")))


def test_rows_of_a_dataset_are_documents(tmp_path, monkeypatch):
    pytest.importorskip("datasets", reason="the extra `hub` is not installed")
    (tmp_path / "owner/name").mkdir(parents=True)
    (tmp_path / "owner/name/train.jsonl").write_text("".join(f'{{"text": "page {n}"}}\n' for n in range(5)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    table = documents.documents("owner/name[1:4]")
    assert list(table["text"]) == ["page 1", "page 2", "page 3"] and set(table["source"]) == {"name"}
    with pytest.raises(ValueError, match="could not be had from the hub"):
        documents.of_dataset("owner/none[:2]")
