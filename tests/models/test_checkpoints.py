"""Loading a checkpoint from a folder: the same model whatever the file holds,
or one sentence that says what is wrong."""

import contextlib
import json
import shutil

import numpy as np
import pytest
import torch
from own_model import NEURONS, VOCABULARY, edit, edit_config, network, panics, refused, words

from rare_token_neurons.ablation.capture import capture
from rare_token_neurons.models import checkpoints
from rare_token_neurons.text import documents as texts

KINDS = ["neox", "neox-tied", "llama", "llama-tied"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test reaches for the hub: it is as if HF_HUB_OFFLINE=1 had been set."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


# ---- what a Subject holds


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_gives_back_the_model_in_float32_whatever_its_files_hold(tmp_path, kind, dtype):
    saved = network(kind).to(dtype)
    saved.save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    subject = checkpoints.load(str(tmp_path))
    assert subject.dtype == torch.float32 and not subject.model.training
    expected, found = saved.state_dict(), subject.model.state_dict()
    assert expected.keys() == found.keys()
    for name in expected:
        assert found[name].dtype == torch.float32 and torch.equal(found[name], expected[name].float()), name
    same, tokens = network(kind, seed=1), torch.arange(12).view(1, 12)
    same.load_state_dict(expected)
    with torch.no_grad():
        torch.testing.assert_close(subject.model(tokens).logits, same(tokens).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_float64_on_request(tmp_path, kind):
    network(kind).save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    subject = checkpoints.load(str(tmp_path), dtype=torch.float64)
    assert {weight.dtype for weight in subject.model.parameters()} == {torch.float64} == {subject.dtype}
    assert torch.equal(subject.w_out, checkpoints.load(str(tmp_path)).w_out.double())


def test_the_old_spelling_of_the_rotary_settings_means_the_same(folder):
    """Pythia's files on the hub say rotary_pct and rotary_emb_base."""
    tokens = torch.arange(20).view(1, 20)
    new = checkpoints.load(str(folder)).model
    edit_config(folder, rope_parameters=None, rotary_pct=0.25, rotary_emb_base=10_000)
    old = checkpoints.load(str(folder)).model
    with torch.no_grad():
        assert torch.equal(old(tokens).logits, new(tokens).logits)
    edit_config(folder, rotary_pct=1.0)
    with torch.no_grad():
        assert not torch.allclose(checkpoints.load(str(folder)).model(tokens).logits, new(tokens).logits)


def test_attention_is_eager_and_the_tokenizer_comes_along(folder):
    subject = checkpoints.load(str(folder))
    assert subject.model.config._attn_implementation == "eager"
    assert subject.tokenizer("w3 w7")["input_ids"] == [3, 7]
    assert (subject.model_id, subject.revision, subject.step) == (str(folder), None, None)


# ---- suites: a model and its revisions


@pytest.fixture
def suite(tmp_path):
    """step0, step16 and step128, each its own weights, one tokenizer and one table of counts for all."""
    for step in (0, 16, 128):
        network(seed=step).save_pretrained(tmp_path / f"step{step}")
    (tmp_path / "notes").mkdir()
    words().save_pretrained(tmp_path)
    np.save(tmp_path / "unigram_counts.npy", np.arange(VOCABULARY))
    return tmp_path


def test_revisions_are_in_order_of_training(suite):
    assert checkpoints.revisions(str(suite)) == ["step0", "step16", "step128"]
    assert checkpoints.revisions(str(suite / "step0")) == []


def test_a_suite_is_loaded_by_revision_and_the_last_without(suite):
    for revision, step in (("step0", 0), ("step16", 16), ("step128", 128), (None, 128)):
        subject = checkpoints.load(str(suite), revision)
        assert (subject.revision, subject.step) == (f"step{step}", step)
        assert torch.equal(subject.w_out, network(seed=step).gpt_neox.layers[-1].mlp.dense_4h_to_h.weight)
        assert len(subject.tokenizer) == 30
        assert torch.equal(subject.unigram_counts, torch.arange(VOCABULARY).double())


def test_a_steps_folder_can_be_named_on_its_own(suite):
    subject = checkpoints.load(str(suite / "step16"))
    assert (subject.revision, subject.step, len(subject.tokenizer)) == ("step16", 16, 30)
    in_suite = checkpoints.weight_hash(str(suite), "step16")
    assert checkpoints.weight_hash(str(suite / "step16"), subject.revision) == in_suite


def test_what_is_there_is_never_looked_up_on_the_hub(folder, tmp_path, monkeypatch):
    """A folder or a file that is named like a hub repository; the hub is closed to these tests."""
    monkeypatch.chdir(tmp_path.parent)
    named = f"{tmp_path.name}/{folder.name}"
    assert checkpoints.load(named).n_neurons == checkpoints.load(f"./{named}/").n_neurons == NEURONS
    (tmp_path / "a-file").write_text("no model")
    with refused(ValueError, r"^The GGUF file a-file cannot be read: "):
        checkpoints.load(f"{tmp_path.name}/a-file")


def test_only_a_suite_shares_its_tokenizer(suite):
    """What lies beside an unrelated model is not that model's."""
    network().save_pretrained(suite / "unrelated")
    with pytest.raises(FileNotFoundError, match="^The folder unrelated holds no tokenizer"):
        checkpoints.load(str(suite / "unrelated"))


def test_the_weight_hash_is_that_of_the_weights(suite):
    hashes = {name: checkpoints.weight_hash(str(suite), name) for name in checkpoints.revisions(str(suite))}
    assert len(set(hashes.values())) == 3 and hashes["step128"] == checkpoints.weight_hash(str(suite))
    shutil.copy(suite / "step16" / "model.safetensors", suite / "step128" / "model.safetensors")  # a wrong branch
    assert checkpoints.weight_hash(str(suite), "step128") == hashes["step16"]


def test_the_model_hash_is_that_of_weights_and_configuration(suite):
    name, weights = str(suite), checkpoints.weight_hash(str(suite), "step16")
    before = checkpoints.model_hash(name, "step16")
    assert len({checkpoints.model_hash(name, step) for step in checkpoints.revisions(name)}) == 3
    config = suite / "step16" / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"layer_norm_eps": 0.1}))
    assert checkpoints.weight_hash(name, "step16") == weights and checkpoints.model_hash(name, "step16") != before


# ---- what is missing


def test_a_missing_revision_says_which_exist(suite, folder):
    with refused(FileNotFoundError, r"has no revision 'step17'; it has step0, step16, step128\.$"):
        checkpoints.load(str(suite), "step17")
    with pytest.raises(FileNotFoundError, match=r"has no revision 'step17'; it has no checkpoints\.$"):
        checkpoints.load(str(folder), "step17")
    with pytest.raises(FileNotFoundError, match="has no revision 'notes'"):
        checkpoints.load(str(suite), "notes")


@pytest.mark.parametrize("call", [
    checkpoints.load, checkpoints.revisions, checkpoints.weight_hash, checkpoints.load_tokenizer])
@pytest.mark.parametrize("model", ["no-such-model", "EleutherAI/pythia-70m-deduped-that-is-nowhere"])
def test_a_hub_model_without_a_network_is_one_sentence(call, model):
    with refused(FileNotFoundError, rf"^The model '{model}' is no folder here and the hub cannot be"):
        call(model)


@pytest.mark.parametrize("model", ["/no/such/folder", "a/b/c", "spaces in it"])
def test_what_cannot_be_a_model_is_one_sentence(model):
    for call in (checkpoints.load, checkpoints.revisions):
        with refused(FileNotFoundError, "^There is no model '.*': neither smollm2 nor gemma3 nor mini-pythia"):
            call(model)


# ---- what is damaged


LFS = b"version https://git-lfs.github.com/spec/v1\n"
DAMAGED = [  # a file, what is in it or how much is left of it, the sentence
    *(("model.safetensors", content, "The weights in own-model are damaged: ")
      for content in (0.5, b"", b"x" * 99, LFS)),
    *(("config.json", content, "The model in own-model cannot be opened: ")
      for content in (b"", b"{", b"{}", b'{"model_type": "nonsense"}')),
    *(("tokenizer.json", content, "The tokenizer in own-model cannot be read: ")
      for content in (b"", b"{", b"{}", b'{"model": {"type": "nonsense"}}')),
    ("tokenizer.json", None, "The folder own-model holds no tokenizer"),  # transformers would make an empty one up
    ("unigram_counts.npy", b"\x93NUMPY", "unigram_counts.npy is no .npy file of numbers"),
]


@pytest.mark.parametrize("name, content, words", DAMAGED)
def test_a_damaged_file_is_named_in_one_sentence(folder, name, content, words):
    path = folder / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content == 0.5 else content)
    with refused(FileNotFoundError if content is None else ValueError, f"^{words}"):
        checkpoints.load(str(folder))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["gpt_neox.final_layer_norm.bias", "gpt_neox.layers.0.mlp.dense_h_to_4h.weight"])
def test_a_weight_that_is_not_finite_is_named(folder, name, bad):
    def spoil(tensors):
        tensors[name].view(-1)[3] = bad

    edit(folder, spoil)
    with refused(ValueError, f"^The weight {name} of .* holds values that are not finite"):
        checkpoints.load(str(folder))


@pytest.mark.parametrize("name", ["gpt_neox.layers.2.mlp.dense_4h_to_h.weight", "embed_out.weight"])
def test_a_weight_that_the_file_lacks_is_named(folder, name):
    """transformers would fill it with random numbers and go on."""
    edit(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(ValueError, match=rf"^The weights in own-model lack ({name}|lm_head.weight)\.$"):
        checkpoints.load(str(folder))


def test_a_weight_of_another_shape_is_named(folder):
    edit_config(folder, vocab_size=44)
    with pytest.raises(ValueError, match=r"^The weight gpt_neox.embed_in.weight in own-model is \(40, 16\), "
                                         r"config.json asks for \(44, 16\)\.$"):
        checkpoints.load(str(folder))


def test_a_token_without_a_row_is_refused_where_a_text_needs_it(folder):
    larger = words(VOCABULARY)
    larger.add_tokens(["extra"])
    larger.save_pretrained(folder)
    subject = checkpoints.load(str(folder))
    assert (len(subject.tokenizer), subject.n_vocab) == (VOCABULARY + 1, VOCABULARY)
    text = "w1 w2 w3 w4 w5 w6 "
    for words_of, fits in ((text + "w7", True), (text + "extra", False)):
        tokens = torch.from_numpy(texts.encode(subject.tokenizer, [words_of])[0].astype(np.int64))[None]
        with contextlib.nullcontext() if fits else refused(ValueError,
                                                           "^Tokens must be between 0 and 39, the rows of the "
                                                           "embedding of .*own-model; they lie between 1 and 40"):
            assert capture(subject, tokens).activations.shape == (1, 3, NEURONS)


@pytest.mark.parametrize("n", [30, 31, VOCABULARY, VOCABULARY + 9])
def test_counts_beside_the_weights_may_end_where_the_tokenizer_does(folder, n):
    """The embedding is padded to a round number, and some count its rows,
    some the tokens with or without the added ones."""
    larger = words(30)
    larger.add_tokens(["extra"])
    larger.save_pretrained(folder)
    np.save(folder / "unigram_counts.npy", np.arange(n))
    found = checkpoints.load(str(folder)).unigram_counts
    assert found.tolist() == [row if row < n else 0 for row in range(VOCABULARY)]


def test_counts_that_lack_a_token_are_refused(folder):
    np.save(folder / "unigram_counts.npy", np.arange(29))
    with refused(ValueError,
                 r"^unigram_counts.npy must hold one count for each of the 30 tokens; its shape is \(29,\)"):
        checkpoints.load(str(folder))


def test_a_panic_of_the_tokenizers_library_is_one_sentence(folder):
    panics(folder)
    with refused(ValueError, "^The tokenizer in own-model cannot be read: Precompiled: Error"):
        checkpoints.load_tokenizer(str(folder))
