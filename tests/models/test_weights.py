"""The right weights or none: folders that hold two sets of weights, and pickles, which carry code or tensors."""

import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from damage import flip
from own_model import Bomb, edit_config, network, refused, words
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES
from transformers import AutoModelForCausalLM

from rare_token_neurons import files
from rare_token_neurons.models import checkpoints, weights

INDEX = "model.safetensors.index.json"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What is made of pickles goes to this test's own folder, and no test reaches for the hub."""
    monkeypatch.setattr(weights, "FOLDER", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    checkpoints._tell_of_second.cache_clear()


def written(path, seed, **how):
    """The network of a seed in a folder, with a tokenizer."""
    network(seed=seed).save_pretrained(path, **how)
    words().save_pretrained(path)
    return path


@pytest.fixture
def shards(tmp_path):
    """The network of seed 1 in several files with their index."""
    path = written(tmp_path / "shards", 1, max_shard_size="5KB")
    assert len(list(path.glob("*.safetensors"))) > 2 and (path / INDEX).exists()
    return path


def measured(path, **how):
    """The seed of the network that a folder is loaded as."""
    found = checkpoints.load(str(path), **how).model.state_dict()
    (seed,) = [seed for seed in range(4) if all(torch.equal(found[name], part)
                                                for name, part in network(seed=seed).state_dict().items())]
    return seed


# ---- which files count


def test_the_shards_are_measured_hashed_and_audited_not_the_single_file_beside_them(shards, tmp_path, capsys):
    """transformers alone prefers the single file."""
    hashed = checkpoints.weight_hash(str(shards))
    assert measured(shards) == 1 and not capsys.readouterr().err.count("beside an index")
    (shards / "model.safetensors").write_bytes((written(tmp_path / "stale", 2) / "model.safetensors").read_bytes())
    plain = AutoModelForCausalLM.from_pretrained(shards).state_dict()
    assert all(torch.equal(plain[name], part) for name, part in network(seed=2).state_dict().items())
    checkpoints._tell_of_second.cache_clear()
    assert measured(shards) == 1 and checkpoints.weight_hash(str(shards)) == hashed
    said = ("shards holds model.safetensors beside an index: the files that the index names are measured; the single "
            "file, which holds other tensors, is not.\n")
    assert capsys.readouterr().err.count(said) == 1
    found = checkpoints.locate(str(shards)).weights
    assert {path.name for path in found} == {path.name for path in shards.glob("model-*.safetensors")}


def test_a_single_file_with_the_same_tensors_is_said_to_hold_them(shards, tmp_path, capsys):
    (shards / "model.safetensors").write_bytes((written(tmp_path / "same", 1) / "model.safetensors").read_bytes())
    assert measured(shards) == 1 and "which holds the same tensors, is not." in capsys.readouterr().err


def test_nothing_else_in_the_folder_is_read(tmp_path, monkeypatch):
    """Leftovers of other formats, pickles, an adapter that names another model,
    a configuration that names another file."""
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "single", 1)
    hashed = checkpoints.weight_hash(str(path))
    other = (written(tmp_path / "other", 2) / "model.safetensors").read_bytes()
    for name in ("consolidated.safetensors", "adapter_model.safetensors", "model-00001-of-00001.safetensors"):
        (path / name).write_bytes(other)
    (path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "other")}))
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "tokenizer.pkl", "tokenizer.model",
                 "counts.pkl"):
        (path / name).write_bytes(pickle.dumps(Bomb()))
    edit_config(path, transformers_weights="consolidated.safetensors")
    assert measured(path) == 1 and checkpoints.weight_hash(str(path)) == hashed and not Path("owned").exists()


@pytest.mark.parametrize("content, words", [
    ({"a": "model-00009-of-00009.safetensors"},
     "lacks 'model-00009-of-00009.safetensors', which its model.safetensors.in"),
    ({"a": "../stale/model.safetensors"}, "lacks '../stale/model.safetensors', which its model.safetensors.index.json"),
    ({"a": "pytorch_model.bin"}, "lacks 'pytorch_model.bin', which"), ({"a": 3}, "lacks 3, which"),
    ({}, "has a model.safetensors.index.json that names no file"), (None, "names no file"), ([], "names no file")])
def test_an_index_that_does_not_fit_is_one_sentence_and_no_other_file_is_taken(shards, tmp_path, content, words):
    written(tmp_path / "stale", 2)
    for name in ("model.safetensors", "pytorch_model.bin"):
        (shards / name).write_bytes((tmp_path / "stale/model.safetensors").read_bytes())
    (shards / INDEX).write_text("{" if content is None else json.dumps({"weight_map": content}))
    for call in (checkpoints.load, checkpoints.weight_hash):
        with refused(weights.NoWeights, f"^The folder shards of '.*' .*{words}"):
            call(str(shards))
    assert checkpoints.lacking(str(shards))


def test_a_tensor_in_two_shards_is_refused(shards):
    first, second, *_ = sorted(shards.glob("*.safetensors"))
    save_file(load_file(second) | dict([next(iter(load_file(first).items()))]), second, metadata={"format": "pt"})
    with refused(ValueError, "^The model in shards cannot be opened: Two weight files of shards hold "):
        checkpoints.load(str(shards))


def test_a_folder_without_weights_says_so(tmp_path):
    path = written(tmp_path / "bare", 0)
    (path / "model.safetensors").rename(path / "consolidated.safetensors")
    for call in (checkpoints.load, checkpoints.weight_hash):
        with refused(weights.NoWeights,
                     "^The folder bare of '.*' holds no weights: neither model.safetensors nor shards"):
            call(str(path))
    assert len(checkpoints.load_tokenizer(str(path))) == 30


# ---- pickles


def pickled(path, seed=1, parts=1):
    """A folder as `written`, its weights in one pickle, or in several with their index."""
    written(path, seed)
    tensors = dict(load_file(path / "model.safetensors"))
    (path / "model.safetensors").unlink()
    if parts == 1:
        torch.save(tensors, path / "pytorch_model.bin")
        return path
    names = {name: f"pytorch_model-{place % parts + 1:05}-of-{parts:05}.bin" for place, name in enumerate(tensors)}
    for file in set(names.values()):
        torch.save({name: tensors[name] for name in tensors if names[name] == file}, path / file)
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    return path


@pytest.mark.parametrize("parts", [1, 3])
def test_pickles_are_refused_and_on_request_give_the_numbers_of_the_safetensors(tmp_path, parts):
    path = pickled(tmp_path / "pickled", parts=parts)
    with refused(weights.Refused,
                 "^The folder pickled of .* holds its weights as pickles alone.*: -p pickles convert "):
        checkpoints.load(str(path))
    assert not weights.FOLDER.exists()
    assert measured(path, pickles="convert") == 1
    made = {file.name for file in weights.FOLDER.glob("*.safetensors")}
    assert made == {f"{files.sha256(file)}.safetensors" for file in path.glob("*.bin")} and len(made) == parts
    stamps = {file: file.stat().st_mtime_ns for file in weights.FOLDER.iterdir()}
    assert measured(path, pickles="convert") == 1
    assert stamps == {file: file.stat().st_mtime_ns for file in weights.FOLDER.iterdir()}
    for file in path.glob("*.bin"):  # the hash is that of the pickles
        torch.save(torch.load(file, weights_only=True) | {f"more {file.stem}": torch.ones(2)}, file)
    assert measured(path, pickles="convert") == 1 and len(list(weights.FOLDER.glob("*.safetensors"))) == 2 * parts


def test_safetensors_are_taken_where_there_are_both(tmp_path):
    path = pickled(tmp_path / "both", seed=2)
    written(path, 1)
    assert measured(path) == measured(path, pickles="convert") == 1 and not weights.FOLDER.exists()


@pytest.mark.parametrize("kind", [name for name in FAMILIES if name.endswith("-tied")])
def test_tied_tensors_are_stored_once_and_loaded_as_both(tmp_path, kind):
    torch.manual_seed(0)
    model = FAMILIES[kind](31)
    model.save_pretrained(tmp_path / "tied")
    words().save_pretrained(tmp_path / "tied")
    (tmp_path / "tied/model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "tied/pytorch_model.bin")
    found = checkpoints.load(str(tmp_path / "tied"), pickles="convert").model.state_dict()
    assert all(torch.equal(found[name], part) for name, part in model.state_dict().items())
    (made,) = weights.FOLDER.glob("*.safetensors")
    assert len(load_file(made)) == len(model.state_dict()) - 1


def test_views_are_stored_as_what_they_show(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    torch.save({"whole": base, "row": base[1], "turned": base.T, "empty": torch.zeros(0, 3)}, tmp_path / "views.bin")
    found = load_file(weights.safe(tmp_path / "views.bin"))
    assert found.keys() == {"whole", "row", "turned", "empty"} and found["empty"].shape == (0, 3)
    assert torch.equal(found["row"], base[1]) and torch.equal(found["turned"], base.T)
    assert torch.equal(found["whole"], base)


def zipped(content):
    """What torch.save would write, with any pickle inside."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def old_format():
    """torch's format before 1.6."""
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def tarred():
    """torch's first format, with a pickle that would run code."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(Bomb())
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def saved(content):
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


ZIP, ELSE = "it is not in the zip format", "it holds something else than plain tensors by name"
HARMFUL = {
    "a bomb in a zip": (zipped(pickle.dumps({"a": Bomb()}, protocol=2)), ""), "a bomb": (pickle.dumps(Bomb()), ZIP),
    "a saved bomb": (saved({"a": torch.ones(2), "b": Bomb()}), ""),
    "a tar": (tarred(), ZIP), "the old format": (old_format(), ZIP), "nothing": (b"", ZIP),
    "a torn zip": (b"PK\3\4abc", ""),
    "a module": (saved(torch.nn.Linear(2, 2)), ""), "a list": (saved([torch.ones(2)]), ELSE),
    "a nest": (saved({"model": {"a": torch.ones(2)}}), ELSE),
    "a number": (saved({"a": torch.ones(2), "step": 3}), ELSE), "numbers as names": (saved({1: torch.ones(2)}), ELSE),
    "sparse": (saved({"a": torch.eye(3).to_sparse()}), ELSE),
    "a terabyte of one value": (saved({"a": torch.ones(1).expand(2**40)}), ELSE),
    "meta": (saved({"a": torch.ones(3, device="meta")}), ELSE),
}


@pytest.mark.parametrize("content, words", HARMFUL.values(), ids=HARMFUL)
def test_a_pickle_that_is_not_plain_tensors_runs_nothing_and_is_refused(tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    path = pickled(tmp_path / "pickled")
    (path / "pytorch_model.bin").write_bytes(content)
    with refused(ValueError, f"^The pickle .*pytorch_model.bin is refused: .*{words}"):
        checkpoints.load(str(path), pickles="convert")
    assert not list(tmp_path.rglob("owned")) and not list(weights.FOLDER.glob("[!.]*")) and not Path("owned").exists()


def test_a_damaged_conversion_is_made_again(tmp_path, capsys):
    path = pickled(tmp_path / "pickled")
    assert measured(path, pickles="convert") == 1
    (made,) = weights.FOLDER.glob("*.safetensors")
    flip(made, -3)
    assert measured(path, pickles="convert") == 1 and "is damaged and is made again" in capsys.readouterr().out
