"""A folder with only tokenizer.model: cut as SentencePiece itself cuts, the same words marked, or one sentence."""

import sys

import pandas as pd
import pytest
from own_model import network, refused

from rare_token_neurons import paths
from rare_token_neurons.models import checkpoints
from rare_token_neurons.text import documents as texts, rarity

sentencepiece = pytest.importorskip("sentencepiece", reason="the extra `sentencepiece` is not installed")
PLAIN = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
ODD = ["The caf\u00e9 isn\u2019t 42 % \u2014 \u201ca whale\u201d\u2026\nin  the\tsea\u2019s ", " x", "\n\na", "", "  ",
       "\u65e5\u672c \uff21 \ufb01"]


def train(folder, texts, size=1_000, **options):
    """A real tokenizer.model in a folder."""
    folder.mkdir(exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.split("\n") if line),
        model_prefix=str(folder / "tokenizer"), vocab_size=size, hard_vocab_limit=False, minloglevel=9, **options)
    (folder / "tokenizer.vocab").unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.fixture(scope="module")
def novel():
    return pd.read_json(paths.MINI_PILE / "austen.jsonl.xz", lines=True)["text"].head(12).tolist()


@pytest.mark.parametrize("options", [{}, PLAIN, PLAIN | {"add_dummy_prefix": False}],
                         ids=["nfkc", "identity", "no prefix"])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("fallback", [True, False])
def test_texts_are_cut_as_sentencepiece_cuts_them(tmp_path, novel, options, kind, fallback):
    processor = train(tmp_path, novel, model_type=kind, byte_fallback=fallback, user_defined_symbols=["[X]"], **options)
    tokenizer = checkpoints.load_tokenizer(str(tmp_path))
    for text, ids in zip(novel + ODD, texts.encode(tokenizer, novel + ODD)):
        assert ids.tolist() == processor.encode(text)
    assert len(tokenizer) == processor.get_piece_size()
    assert tokenizer.convert_ids_to_tokens(sorted(tokenizer.all_special_ids)) == ["<unk>", "<s>", "</s>"]
    assert tokenizer.decode(texts.encode(tokenizer, ["the whale"])[0]) == "the whale"
    known = set(rarity.vocabulary(tokenizer).query("word")["token"])
    assert len(known) > 50 and all(processor.piece_to_id(f"\u2581{word[1:]}") != processor.unk_id() for word in known)


def test_a_model_whose_folder_has_only_the_pieces_is_loaded(tmp_path, novel):
    """Of a GPT-NeoX, whose own class would cut bytes."""
    processor = train(tmp_path, novel, **PLAIN, byte_fallback=True)
    network().save_pretrained(tmp_path)
    tokenizer = checkpoints.load(str(tmp_path)).tokenizer
    assert texts.encode(tokenizer, novel[:1])[0].tolist() == processor.encode(novel[0])


@pytest.mark.parametrize("package", ["sentencepiece", "google.protobuf"])
def test_what_is_to_be_installed_is_named(tmp_path, novel, monkeypatch, package):
    train(tmp_path / "own", novel)
    monkeypatch.setitem(sys.modules, package, None)
    with refused(ValueError,
                 r"^The tokenizer in own cannot be read: a SentencePiece model needs the packages sentencepiece and "
                             r"protobuf \(pip install -e '\.\[sentencepiece\]'\)$"):
        checkpoints.load_tokenizer(str(tmp_path / "own"))


@pytest.mark.parametrize(("content", "sentence"), [
    (b"", ""), (b"not one", ""), (b"IQ== 0\nIg== 1\n", ""),  # the last as tiktoken writes it
    ("word", "tokenizer.model cuts texts in a way that is not known here; save a tokenizer.json beside it")])
def test_what_is_no_known_model_is_one_sentence(tmp_path, novel, content, sentence):
    train(tmp_path / "own", novel, model_type=content if isinstance(content, str) else "bpe")
    if isinstance(content, bytes):
        (tmp_path / "own/tokenizer.model").write_bytes(content)
    with refused(ValueError, f"^The tokenizer in own cannot be read: {sentence or '.'}"):
        checkpoints.load_tokenizer(str(tmp_path / "own"))
