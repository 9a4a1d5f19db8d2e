"""How blocks are cut, which tokens are words, which are rare by which counts, and which positions are chosen."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rare_token_neurons import paths, settings as parameters
from rare_token_neurons.tables import rare_tokens, robustness
from rare_token_neurons.text import documents as texts, rarity

# A hand-made vocabulary: the id of a token is its place in this list. The last is the special one.
TOKENS = [" the", " cat", " deafening", " xqzv", "ing", ".", " ", "the", " Cat", "'s", " caf\u00e9", "\u2014", "7",
          "\U0001f600", "<|end|>"]
THE, CAT, DEAFENING, NOWORD, ING, STOP, SPACE = range(7)


def tokenizer():
    """Cuts a text at spaces and marks, each word with its leading space; what is unknown is "." """
    backend = Tokenizer(models.WordLevel({token: row for row, token in enumerate(TOKENS)}, unk_token="."))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+|."), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", clean_up_tokenization_spaces=False)


def table(words, boundaries, size=7):
    """A vocabulary table by hand: these tokens are words, a word may end before those."""
    rows = np.arange(size)
    return pd.DataFrame({"token": TOKENS[:size], "word": np.isin(rows, words), "boundary": np.isin(rows, boundaries)})


def mask(*tokens, size=7):
    return np.isin(np.arange(size), tokens)


# ---- tokens and blocks


def test_no_block_crosses_documents(monkeypatch):
    monkeypatch.setattr(rarity, "BLOCK", 4)
    ids = [np.arange(10), np.arange(100, 103), np.arange(200, 208)]
    found = rarity.blocks(ids, [5, 6, 9])
    np.testing.assert_array_equal(found.tokens, [[0, 1, 2, 3], [4, 5, 6, 7], [200, 201, 202, 203],
                                                 [204, 205, 206, 207]])
    np.testing.assert_array_equal(found.document, [5, 5, 9, 9])
    assert found.tokens.dtype == found.document.dtype == np.int64


def test_a_block_begins_as_the_tokenizer_begins_a_text(monkeypatch):
    monkeypatch.setattr(rarity, "BLOCK", 4)
    found = rarity.blocks([np.arange(10), np.arange(100, 102)], [5, 6], opening=[77])
    np.testing.assert_array_equal(found.tokens, [[77, 0, 1, 2], [77, 3, 4, 5], [77, 6, 7, 8]])
    assert found.tokens.dtype == np.int64 and found.document.tolist() == [5, 5, 5]


def test_a_random_offset_reaches_every_part_of_a_document_in_the_end(monkeypatch):
    monkeypatch.setattr(rarity, "BLOCK", 4)
    starts = {int(rarity.blocks([np.arange(10)], [0], offset=np.random.default_rng(seed)).tokens[0, 0])
              for seed in range(50)}
    assert starts == {0, 1, 2}


@pytest.mark.parametrize("ids", [[], [np.arange(1)], [np.arange(255), np.arange(255)]])
def test_a_text_that_fills_no_block_is_refused(ids):
    with pytest.raises(ValueError, match="^No document of the text fills one block of 256 tokens.$"):
        rarity.blocks(ids, range(len(ids)))


def test_unigram_counts():
    ids = [np.array([0, 0, 2], dtype=np.int32), np.array([], dtype=np.int32), np.array([2], dtype=np.int32)]
    np.testing.assert_array_equal(rarity.unigram_counts(ids, 5), [2, 0, 2, 0, 0])


def test_a_word_token_has_a_leading_space_and_is_in_the_dictionary():
    found = rarity.vocabulary(tokenizer())
    assert found["token"].tolist() == TOKENS
    # "the" lacks the space, " xqzv" is no word, " caf\u00e9" is not ASCII
    assert found.loc[found["word"], "token"].tolist() == [" the", " cat", " deafening", " Cat"]


def sentencepiece():
    """A tokenizer with SentencePiece's mark for a space, whose decoder drops a leading space, as Llama 2's does."""
    mark = "\u2581"
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(mark), normalizers.Replace(" ", mark)])
    backend.pre_tokenizer = pre_tokenizers.Split(mark, "merged_with_next")
    backend.decoder = decoders.Sequence([decoders.Replace(mark, " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    backend.train_from_iterator(["the cat sat on a mat. a whale's tale"] * 9, trainers.BpeTrainer(
        vocab_size=60, special_tokens=["<unk>"], show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def test_a_sentencepiece_token_keeps_its_space():
    made = sentencepiece()
    assert made.decode(made.convert_tokens_to_ids(["\u2581cat"])) == "cat"  # alone, it loses it
    table = rarity.vocabulary(made)
    assert {" cat", " mat", " whale"} <= set(table.loc[table["word"], "token"]) and "<unk>" in set(table["token"])
    ids = texts.encode(made, ["the whale sat"])[0]
    assert "".join(table["token"][ids]) == " the whale sat"
    assert table.loc[ids, "word"].all() and table.loc[ids, "boundary"].all()
    alone = table.set_index("token")["word"]
    assert not alone["t"] and not alone["."]


SAID = ("Once the whale sat on the mat. the whale\u2014the cat\u2026 \u201cthe whale\u201d, said a cat\n\nThe cat's "
        "tale: caf\u00e9 the whale\u2019s mat, a  cat; the mat\u00e9 (the cat) whale7 cat! the tale\n")


def byte_level():
    """A byte-level BPE of ASCII text: it cuts every dash, quote and accent into bytes."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.train_from_iterator(["the cat sat on a mat. said a whale, the tale (once)"] * 9, trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def with_the_pieces_of(other):
    """A SentencePiece-like BPE with the words of a byte-level one, dashes and quotes of its own,
    and bytes for what is left."""
    content, mark = json.loads(other.backend_tokenizer.to_str())["model"], "\u2581"
    kept = [token for token in content["vocab"] if token.isascii() or token[:1] == "\u0120" and token[1:].isascii()]
    names = [*(f"<0x{byte:02X}>" for byte in range(256)), *(token.replace("\u0120", mark) for token in kept),
             "\u2014", "\u2026", "\u201c", "\u201d", "\u2019", "\u00e9"]
    merges = [tuple(part.replace("\u0120", mark) for part in pair) for pair in content["merges"]]
    backend = Tokenizer(models.BPE({name: row for row, name in enumerate(dict.fromkeys(names))}, merges,
                                   byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(mark), normalizers.Replace(" ", mark)])
    backend.decoder = decoders.Sequence([decoders.Replace(mark, " "), decoders.ByteFallback(), decoders.Fuse(),
                                         decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_two_tokenizers_with_the_same_words_mark_the_same_words_of_a_text():
    """One byte-level, one like SentencePiece; in front of a marked word stands where it ends."""
    found, made = [], byte_level()
    for one in (made, with_the_pieces_of(made)):
        table, encoding = rarity.vocabulary(one), one.backend_tokenizer.encode(SAID)
        words = table.loc[table["word"], "token"]
        rows = rarity.candidate_positions(np.array([encoding.ids]), table["word"].to_numpy(), table, decode=one.decode)
        ends = [end for _, t in rows if (end := encoding.offsets[t + 1][1]) > 10]  # the first few tokens are not scored
        found.append((sorted(words), [(end, SAID[:end].split()[-1].strip("(\u201c\u2014")) for end in ends]))
    assert found[0] == found[1] and {" the", " whale", " cat", " mat"} <= set(found[0][0])
    followed = {SAID[end] for end, _ in found[0][1]}
    assert len(found[0][1]) > 20 and followed == set("\u2014\u2026\u201d .,:;!)\n")


def test_a_word_ends_before_anything_but_a_letter_a_digit_or_an_apostrophe():
    found = rarity.vocabulary(tokenizer())
    assert found.loc[~found["boundary"], "token"].tolist() == ["ing", "the", "'s", "7"]


def test_english_counts_are_of_words_only():
    found = rarity.vocabulary(tokenizer())
    counts = dict(zip(found["token"], rarity.english_counts(found)))
    assert counts[" the"] > 1_000 * counts[" deafening"] > 0
    assert 1e7 < counts[" the"] < 1e8  # about 5 % of English, per 10^9 words
    assert counts[" the"] != counts["the"] == counts["."] == counts[" xqzv"] == 0


# ---- rare and common tokens


def test_rare_is_at_or_below_the_percentile_of_the_seen_types():
    counts = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 99, 0])
    candidate = np.array([True] * 10 + [False, True])  # no word; a word never seen
    rare, common, threshold = rarity.rare_tokens(counts, candidate, 30)
    assert threshold == 3
    np.testing.assert_array_equal(np.nonzero(rare)[0], [0, 1, 2])
    np.testing.assert_array_equal(np.nonzero(common)[0], [3, 4, 5, 6, 7, 8, 9])


def test_tokens_of_equal_count_are_on_the_same_side():
    rare, common, threshold = rarity.rare_tokens(np.array([1, 2, 2, 2, 9]), np.ones(5, dtype=bool), 50)
    assert threshold == 2 and rare.tolist() == [True, True, True, True, False]


def test_rows_of_the_embedding_without_a_token_are_never_rare():
    counts = np.array([5, 1, 7, 9, 3, 1])  # the embedding has two rows more than the tokenizer has tokens
    for candidate in (np.ones(4, dtype=bool), np.array([True] * 4 + [False] * 2)):
        rare, common, _ = rarity.rare_tokens(counts, candidate, 50)
        assert rare.tolist() == [True, True, False, False, False, False]
        assert common.tolist() == [False, False, True, True, False, False]


@pytest.mark.parametrize("percentile", [0, 100, -5, 250, float("nan")])
def test_an_impossible_percentile_is_named(percentile):
    with pytest.raises(ValueError, match=r"^rare_percentile is .*; it must lie between 0 and 100, both excluded\.$"):
        rarity.rare_tokens(np.arange(5), np.ones(5, dtype=bool), percentile)


def test_counts_that_leave_no_choice_are_refused():
    everything = np.ones(3, dtype=bool)
    with pytest.raises(ValueError, match="have seen none"):
        rarity.rare_tokens(np.zeros(3, dtype=int), everything, 50)
    with pytest.raises(ValueError, match="have seen none"):
        rarity.rare_tokens(np.ones(3, dtype=int), ~everything, 50)
    with pytest.raises(ValueError, match="no token is left that is common"):
        rarity.rare_tokens(np.array([4, 4, 4]), everything, 50)
    with pytest.raises(ValueError, match="2 counts for 3 tokens"):
        rarity.rare_tokens(np.array([4, 4]), everything, 50)


# ---- positions

#                0    1    2    3    4          5     6    7          8    9     10         11
SENTENCE = [[THE, CAT, THE, CAT, DEAFENING, STOP, THE, DEAFENING, ING, CAT, SPACE, DEAFENING]]
HAND = table(words=[THE, CAT, DEAFENING], boundaries=[THE, CAT, DEAFENING, STOP, SPACE])


def rows(**options):
    return rarity.candidate_positions(np.array(SENTENCE), mask(DEAFENING), HAND, **options).tolist()


def test_a_position_is_rare_by_the_token_it_predicts():
    # target 4 is followed by "."; target 7 goes on with "ing": no word ends there; behind 11 nothing is known
    assert rows() == [[0, 3]]


def test_or_by_the_token_it_reads():
    assert rows(rare_of="input") == [[0, 4]]


def test_without_words_only_every_chosen_token_counts():
    assert rows(words_only=False) == [[0, 3], [0, 6], [0, 10]]
    assert rows(words_only=False, rare_of="input") == [[0, 4], [0, 7]]  # position 11 has no target


@pytest.mark.parametrize("first, scored", [(4, [[0, 6], [0, 10]]), (10, [[0, 10]])])
def test_the_first_positions_of_a_block_are_not_scored(monkeypatch, first, scored):
    monkeypatch.setattr(rarity, "FIRST", first)
    assert rows(words_only=False) == scored


def test_positions_name_their_block():
    tokens = np.array([[THE] * 6, [THE, THE, THE, THE, CAT, STOP], [CAT] * 6])
    found = rarity.candidate_positions(tokens, mask(CAT), HAND)
    assert found.tolist() == [[1, 3], [2, 3]] and found.dtype == np.int64


def test_an_embedding_wider_than_the_tokenizer_has_the_same_positions():
    assert rarity.candidate_positions(np.array(SENTENCE), mask(DEAFENING, size=20), HAND).tolist() == [[0, 3]]


def test_brute_force_agrees_on_random_text():
    generator = np.random.default_rng(0)
    tokens, chosen = generator.integers(7, size=(20, 16)), mask(CAT, DEAFENING)
    for rare_of in ("target", "input"):
        expected = []
        for block, row in enumerate(tokens):
            for t in range(3, 15):  # the last token predicts nothing
                place = t + 1 if rare_of == "target" else t
                followed = place + 1 < 16 and HAND["boundary"][row[place + 1]]
                if chosen[row[place]] and followed:
                    expected.append([block, t])
        assert rarity.candidate_positions(tokens, chosen, HAND, rare_of=rare_of).tolist() == expected


# ---- the choice of positions


@pytest.fixture(scope="module")
def sample():
    """300 blocks of 100 documents, with their rare and common positions (about one rare to four common)."""
    tokens = np.random.default_rng(1).choice(7, p=[0.3, 0.3, 0.15, 0.1, 0.05, 0.05, 0.05], size=(300, 32))
    blocks = rarity.Blocks(tokens.astype(np.int64), np.repeat(np.arange(100) * 7, 3))
    return blocks, *(rarity.candidate_positions(blocks.tokens, chosen, HAND)
                     for chosen in (mask(DEAFENING), mask(THE, CAT)))


def test_rare_and_common_are_equal_in_number_and_share_no_position(sample):
    chosen = rarity.choose(*sample, n=200)
    assert chosen["group"].value_counts().to_dict() == {"rare": 200, "common": 200}
    assert not chosen.duplicated(["block", "t"]).any()
    assert set(chosen.loc[chosen["group"] == "rare", "target"]) == {DEAFENING}
    assert set(chosen.loc[chosen["group"] == "common", "target"]) == {THE, CAT}


def test_each_row_is_a_candidate_with_its_own_document_and_target(sample):
    blocks, rare, common = sample
    chosen = rarity.choose(*sample, n=200)
    np.testing.assert_array_equal(chosen["document"], blocks.document[chosen["block"]])
    np.testing.assert_array_equal(chosen["target"], blocks.tokens[chosen["block"], chosen["t"] + 1])
    for name, found in (("rare", rare), ("common", common)):
        rows = chosen.loc[chosen["group"] == name, ["block", "t"]].to_numpy()
        assert set(map(tuple, rows)) <= set(map(tuple, found))


def test_the_halves_are_halves_of_the_documents(sample):
    chosen = rarity.choose(*sample, n=200)
    halves = chosen.groupby("document")["half"].agg(["nunique", "first"])
    assert (halves["nunique"] == 1).all()
    counts = halves["first"].value_counts()
    assert abs(counts["A"] - counts["B"]) <= 1


def test_the_choice_is_a_function_of_the_seed(sample):
    first, again, other = (rarity.choose(*sample, n=200, seed=seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)


def test_few_positions_come_from_many_documents(sample):
    chosen = rarity.choose(*sample, n=200)
    assert chosen.groupby("document")["block"].nunique().max() == 1  # one block a document while there are others
    assert chosen["block"].nunique() < 70  # and no more blocks than are needed: there are about four in each


def test_all_are_taken_where_there_are_fewer_than_wanted(sample):
    blocks, rare, common = sample
    chosen = rarity.choose(blocks, rare, common, n=10**6)
    assert (chosen["group"] == "rare").sum() == len(rare)


def test_numbers_are_equal_where_common_positions_are_the_fewer(sample):
    blocks, rare, common = sample
    chosen = rarity.choose(blocks, common, rare, n=10**6)  # the two exchanged
    counts = chosen["group"].value_counts()
    assert counts["rare"] == counts["common"] == np.isin(rare[:, 0], common[:, 0]).sum()


def test_no_position_on_one_side_is_one_sentence(sample):
    blocks, rare, common = sample
    none = np.empty((0, 2), dtype=np.int64)
    with pytest.raises(ValueError, match=r"^The text holds no rare position: [^.]*\.$"):
        rarity.choose(blocks, none, common, n=10)
    with pytest.raises(ValueError, match=r"^The text holds no common position: [^.]*\.$"):
        rarity.choose(blocks, rare, none, n=10)
    with pytest.raises(ValueError, match=r"^The blocks with the rare positions hold no common one: [^.]*\.$"):
        rarity.choose(blocks, np.array([[0, 3]]), np.array([[1, 3]]), n=10)


def test_rare_and_common_differ_on_the_real_text(pile):
    """The trap of a filter that is silently off: both sets would be the same."""
    novels = pile[pile["source"] == "austen"]["text"].head(40).str.replace("\n", " ")
    words = novels.str.findall(r" [a-z]+").explode().unique()
    backend = Tokenizer(models.WordLevel({word: row for row, word in enumerate(["?", *words])}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r" [a-z]+|."), "isolated")
    backend.decoder = decoders.Fuse()
    cutter = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)
    ids, vocabulary = texts.encode(cutter, novels), rarity.vocabulary(cutter)
    rare, common, _ = rarity.rare_tokens(rarity.unigram_counts(ids, len(cutter)), vocabulary["word"].to_numpy(), 50)
    assert not (rare & common).any() and abs(rare.mean() / common.mean() - 1) < 0.5
    blocks = rarity.blocks(ids, range(len(ids)))
    found = {(name, rare_of): rarity.candidate_positions(blocks.tokens, chosen, vocabulary, rare_of=rare_of)
             for name, chosen in (("rare", rare), ("common", common)) for rare_of in ("target", "input")}
    as_sets = {name: set(map(tuple, positions)) for name, positions in found.items()}
    for rare_of in ("target", "input"):
        assert not as_sets["rare", rare_of] & as_sets["common", rare_of]
        assert 0 < 5 * len(as_sets["rare", rare_of]) < len(as_sets["common", rare_of])
    assert len(as_sets["rare", "target"] & as_sets["rare", "input"]) < 0.2 * len(as_sets["rare", "target"])


# ---- which counts decide rarity, and which documents are new to a model


@pytest.fixture
def root(places, small_pile):
    """Tables are written here; the caches of the module are new."""
    for kept in (rare_tokens._corpus, rare_tokens._chosen):
        kept.cache_clear()
    yield places
    for kept in (rare_tokens._corpus, rare_tokens._chosen):
        kept.cache_clear()


def copied(folder, *names):
    """A folder with some of mini-pythia's files."""
    folder.mkdir(parents=True)
    for name in names:
        copy = shutil.copytree if (paths.MINI_PYTHIA / name).is_dir() else shutil.copy
        copy(paths.MINI_PYTHIA / name, folder / name)
    return folder


def trained_here(model):
    return parameters.Settings(model=str(model)).trained_here


def test_a_model_was_trained_here_where_its_counts_are_those_of_the_training_text(tmp_path):
    assert trained_here("mini-pythia") and trained_here(paths.MINI_PYTHIA)
    assert trained_here(paths.MINI_PYTHIA / "step512")
    assert not trained_here("smollm2") and not trained_here("EleutherAI/pythia-70m")
    mine = copied(tmp_path / "renamed", rarity.COUNTS_FILE, "step16")
    assert trained_here(mine) and trained_here(mine / "step16")
    assert not trained_here(copied(tmp_path / "mini-pythia-of-another", "step16"))  # a name says nothing
    other = copied(tmp_path / "own", "step16")
    np.save(other / rarity.COUNTS_FILE, np.arange(8_192))
    assert not trained_here(other) and not trained_here(other / "step16")


def test_without_the_embedded_model_nothing_was_trained_here(tmp_path, monkeypatch):
    monkeypatch.setattr(parameters, "MINI_PYTHIA", tmp_path / "nowhere")
    assert not trained_here(tmp_path / "own")


def own_text(root, documents=12):
    path = root / "own.txt"
    path.write_text("\n\n".join(texts.documents()["text"].head(documents)))
    return str(path)


def test_all_documents_of_another_text_are_new_and_the_training_text_decides_what_is_rare(root):
    """Fewer than 20 documents leave none held out: a text that was not trained on is measured whole."""
    settings = parameters.Settings(model="mini-pythia", text=own_text(root), positions=10_000)
    documents, trained = texts.documents(settings.text), np.load(paths.MINI_PYTHIA / rarity.COUNTS_FILE)
    assert len(documents) < 20 and not documents["split"].eq("held-out").any()
    assert rare_tokens.positions(settings)["document"].nunique() > len(documents) / 2
    assert rare_tokens.tokens(settings)["count"].to_numpy().tolist() == trained.tolist()
    assert settings.counts_name == parameters.TRAINING
    of_text = parameters.Settings(model="mini-pythia", text=settings.text, counts="text")
    assert rare_tokens.tokens(of_text).eval("count == count_text").all()
    assert robustness.counts(of_text,
                             robustness.default(of_text)).tolist() == rare_tokens.tokens(of_text)["count"].tolist()
    by_text = robustness.Cell("counts", "text", 50.0, "mean", "target", True, "text", "mean_abs")
    assert robustness.counts(settings, by_text).tolist() == rare_tokens.tokens(settings)["count_text"].tolist()


@pytest.mark.parametrize("default, other", [("auto", "wordfreq"), ("wordfreq", "text")])
def test_a_cell_with_other_counts_counts_otherwise(root, default, other):
    """Of the embedded text, mini-pythia has read the train split: that alone is counted,
    whatever the default counts."""
    settings = parameters.Settings(model="mini-pythia", counts=default)
    cell = next(cell for cell in robustness.grid(settings) if cell.factor == "counts")
    found, base = robustness.counts(settings, cell), rare_tokens.tokens(settings)["count"].to_numpy()
    assert cell.counts == other and (found != base).any()
    assert found.tolist() == rare_tokens.tokens(parameters.Settings(model="mini-pythia",
                                                                    counts=other))["count"].tolist()


def test_the_embedded_text_is_measured_where_it_was_held_out():
    settings = parameters.Settings(model="mini-pythia")
    assert settings.read_before and settings.counts_name == "text"
    assert not parameters.Settings(model="smollm2").read_before
    assert parameters.Settings().counts_name == "wordfreq"
