"""Models from the hub: huggingface_hub as it is, against a small hub on the loopback interface."""

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from damage import flip
from huggingface_hub import constants
from hubserver import Hub, at, commit_of, connected, files_of, forget
from own_model import refused
from small_notebooks import copy_package
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from rare_token_neurons import paths
from rare_token_neurons.models import checkpoints, hub as client

REPOSITORY = "lab/tiny-pythia"
STEPS = {f"step{step}": step for step in (0, 1, 512, 143000)}
WEIGHTS = "model.safetensors"


def network(seed, vocabulary=8192):
    torch.manual_seed(seed)
    return GPTNeoXForCausalLM(GPTNeoXConfig(
        vocab_size=vocabulary, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256,
        max_position_embeddings=256, eos_token_id=0))


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """A suite of four checkpoints like Pythia's (main is the last one), a pickle, and what no one may ask for."""
    folder, suite = tmp_path_factory.mktemp("saved"), {}
    for branch, seed in {**dict(reversed(STEPS.items())), "main": STEPS["step143000"]}.items():
        network(seed).save_pretrained(folder / branch)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(paths.MINI_PYTHIA / name, folder / branch)
        code = dict.fromkeys(["pytorch_model.bin", "modeling.py", "tokenizer.py"], b"code")
        suite[branch] = files_of(folder / branch) | code
        suite[branch]["onnx/model.safetensors"] = b"for another program"
    return {REPOSITORY: suite, "lab/pythia-names": {f"step{step}": {} for step in range(154)}}


@pytest.fixture
def hub(repositories, tmp_path, monkeypatch):
    """The running hub, and an empty cache for its only client."""
    with connected(Hub(repositories), tmp_path, monkeypatch) as running:
        yield running


def held(tmp_path):
    """The commits whose weights lie in the cache, and the number of files as large as weights there."""
    links = [path.parent.name for path in (tmp_path / "hub").glob("models--*/snapshots/*/*.safetensors")]
    large = [path for path in (tmp_path / "hub").glob("models--*/blobs/*") if path.stat().st_size > 1_000_000]
    return set(links), len(large)


# ---- what is there


def test_each_revision_is_loaded_with_its_own_weights(hub):
    assert checkpoints.revisions(REPOSITORY) == list(STEPS)
    for revision, step in STEPS.items():
        subject = checkpoints.load(REPOSITORY, revision)
        assert (subject.model_id, subject.revision, subject.step) == (REPOSITORY, revision, step)
        assert torch.equal(subject.w_out, network(step).gpt_neox.layers[-1].mlp.dense_4h_to_h.weight)
        assert len(subject.tokenizer) == 8192
    assert checkpoints.load(REPOSITORY).step is None


def test_nothing_is_asked_for_but_what_is_needed(hub):
    checkpoints.load(REPOSITORY, "step1")
    asked = {path.rsplit("/", 1)[-1] for _, path, _ in hub.log if "/resolve/" in path}
    assert asked == {"config.json", "generation_config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"}
    assert {path.split("/")[4] for _, path, _ in hub.log if "/resolve/" in path} == {commit_of(REPOSITORY, "step1")}
    assert len(hub.asked(WEIGHTS)) == 1


def test_names_hashes_and_the_tokenizer_need_no_weights(hub, tmp_path):
    hashes = {name: checkpoints.weight_hash(REPOSITORY, name) for name in (*STEPS, None)}
    assert len(checkpoints.load_tokenizer(REPOSITORY)) == 8192
    assert not hub.asked(WEIGHTS) and held(tmp_path) == (set(), 0)
    assert len(set(hashes.values())) == 4 and hashes[None] == hashes["step143000"]
    for name, found in hashes.items():  # the hash is that of the files
        assert found == checkpoints.weight_hash(str(checkpoints.locate(REPOSITORY, name).folder))


def test_the_models_hash_is_that_of_its_files_and_asked_for_once(hub, tmp_path):
    found = {name: checkpoints.model_hash(REPOSITORY, name) for name in STEPS}
    assert not hub.asked(WEIGHTS) and len(set(found.values())) == len(STEPS)
    hub.log.clear()
    assert found == {name: checkpoints.model_hash(REPOSITORY, name) for name in STEPS} and not hub.log
    for name in STEPS:
        assert found[name] == checkpoints.model_hash(str(checkpoints.locate(REPOSITORY, name).folder))


def test_weights_that_the_hub_announces_no_sha256_of_are_read(hub, tmp_path):
    network(0, vocabulary=8).save_pretrained(tmp_path / "small")  # too small for LFS
    hub.repositories = {"lab/small": {"main": files_of(tmp_path / "small")}}
    expected = checkpoints.weight_hash(str(tmp_path / "small"))
    assert checkpoints.weight_hash("lab/small") == expected and held(tmp_path)[0] == set()
    hub.log.clear()
    assert checkpoints.weight_hash("lab/small") == expected and not hub.asked(WEIGHTS)


# ---- one checkpoint at a time


def test_one_checkpoint_is_held_at_a_time(hub, tmp_path):
    for revision in STEPS:
        checkpoints.load(REPOSITORY, revision, keep_weights=False)
        assert held(tmp_path) == ({commit_of(REPOSITORY, revision)}, 1)
    forget()
    hub.log.clear()
    assert len({checkpoints.weight_hash(REPOSITORY, name) for name in checkpoints.revisions(REPOSITORY)}) == 4
    checkpoints.load(REPOSITORY, "step143000", keep_weights=False)  # it is still there
    assert not hub.asked(WEIGHTS) and not hub.asked("tokenizer.json")
    checkpoints.load(REPOSITORY, "step0", keep_weights=False)
    assert len(hub.asked(WEIGHTS)) == 1 and held(tmp_path) == ({commit_of(REPOSITORY, "step0")}, 1)


def test_what_was_there_before_or_is_shared_stays(hub, tmp_path):
    checkpoints.load(REPOSITORY, "step1")
    checkpoints.load(REPOSITORY)  # main: the same file as step143000
    for revision in ("step143000", "step512", "step1", "step0"):
        checkpoints.load(REPOSITORY, revision, keep_weights=False)
    assert held(tmp_path) == ({commit_of(REPOSITORY, name) for name in ("main", "step1", "step0")}, 3)
    checkpoints.load(REPOSITORY)
    checkpoints.load(REPOSITORY, "step0")  # now it is wanted
    checkpoints.load(REPOSITORY, "step512", keep_weights=False)
    assert held(tmp_path) == ({commit_of(REPOSITORY, name) for name in ("main", "step1", "step0", "step512")}, 4)


# ---- a bad day


def test_a_rate_limit_is_waited_for(hub):
    for piece in ("/refs", "/revision/step1", "/tree/", WEIGHTS, WEIGHTS):
        hub.busy.append((piece, 429, {"Retry-After": "0"}))
    assert checkpoints.revisions(REPOSITORY) == list(STEPS)
    assert checkpoints.load(REPOSITORY, "step1").step == 1
    assert not hub.busy and len(hub.asked("/refs")) == 2 and len(hub.asked(WEIGHTS, "HEAD")) > 2


def test_patience_ends(hub):
    hub.busy += [("/refs", 429, {"Retry-After": "0"})] * 50
    with refused(FileNotFoundError, r"^The hub answers 429 \(too many requests\) for 'lab/tiny"):
        checkpoints.revisions(REPOSITORY)
    assert len(hub.asked("/refs")) == 5


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_dropped_connection_goes_on_where_it_was(hub, tmp_path, reset, monkeypatch):
    whole = hub.repositories[REPOSITORY]["step512"][WEIGHTS]
    hub.drop += [(WEIGHTS, 300_000), (WEIGHTS, 200_000)]
    if reset:  # the peer's reset instead of its end
        linger = socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)  # for no time
        monkeypatch.setattr(hub.server, "shutdown_request", lambda request: (request.setsockopt(*linger),
                                                                             request.close()))
    folder = checkpoints.locate(REPOSITORY, "step512").folder
    assert (folder / WEIGHTS).read_bytes() == whole
    ranges = hub.asked(WEIGHTS)
    begins = [int(span.removeprefix("bytes=").removesuffix("-") or 0) for span in ranges]
    assert len(begins) == 3 and begins[0] == 0 and begins == sorted(set(begins)) and begins[2] <= 500_000
    if not reset:
        assert begins == [0, 300_000, 500_000]


def test_the_next_run_goes_on_where_this_one_was_killed(hub, tmp_path):
    whole, commit = hub.repositories[REPOSITORY]["step0"][WEIGHTS], commit_of(REPOSITORY, "step0")
    announced = client.digests(REPOSITORY, "step0")[WEIGHTS]
    part = tmp_path / "hub/models--lab--tiny-pythia/blobs" / f"{announced}.incomplete"
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(whole[:400_000])
    folder = checkpoints.locate(REPOSITORY, "step0").folder
    assert (folder / WEIGHTS).read_bytes() == whole and folder.name == commit
    assert hub.asked(WEIGHTS) == ["bytes=400000-"] and not part.exists()


def test_damaged_weights_are_deleted_and_downloaded_again(hub):
    flip((checkpoints.locate(REPOSITORY, "step0").folder / WEIGHTS).resolve(), -5)
    with refused(ValueError, "^model.safetensors of 'lab/tiny-pythia' at step0 is damaged"):
        checkpoints.load(REPOSITORY, "step0")
    assert checkpoints.load(REPOSITORY, "step0").step == 0 and len(hub.asked(WEIGHTS)) == 2


def test_offline_takes_what_is_cached_and_names_what_is_not(hub, monkeypatch):
    assert len(checkpoints.revisions(REPOSITORY)) == 4
    hashes = checkpoints.weight_hash(REPOSITORY, "step1"), checkpoints.weight_hash(REPOSITORY, "step0")
    checkpoints.load(REPOSITORY, "step1")
    checkpoints.load_tokenizer(REPOSITORY)
    forget()
    hub.log.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert checkpoints.revisions(REPOSITORY) == list(STEPS)  # remembered
    assert checkpoints.load(REPOSITORY, "step1").step == 1 and len(checkpoints.load_tokenizer(REPOSITORY)) == 8192
    assert (checkpoints.weight_hash(REPOSITORY, "step1"), checkpoints.weight_hash(REPOSITORY, "step0")) == hashes
    for revision, missing in (("step0", "model.safetensors of its step0"), ("step512", "its step512")):
        words = rf"\(HF_HUB_OFFLINE is set\): {missing} is not in its cache\.$"
        with refused(FileNotFoundError, words):
            checkpoints.load(REPOSITORY, revision)
    with refused(FileNotFoundError, "'lab/other' .*HF_HUB_OFFLINE is set"):
        checkpoints.revisions("lab/other")
    assert not hub.log


def test_offline_needs_no_memory_of_its_own(hub, monkeypatch, tmp_path):
    """A cache that another program filled, on a machine without a network."""
    checkpoints.load(REPOSITORY, "step1")
    checkpoints.load(REPOSITORY, "step0")
    expected = checkpoints.weight_hash(REPOSITORY, "step1")
    shutil.rmtree(tmp_path / "memory")
    forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert checkpoints.revisions(REPOSITORY) == ["step0", "step1"]
    assert checkpoints.weight_hash(REPOSITORY, "step1") == expected
    assert checkpoints.load(REPOSITORY, "step1").step == 1


def test_no_network_is_one_sentence(hub, monkeypatch):
    checkpoints.load(REPOSITORY, "step1")
    checkpoints.revisions(REPOSITORY)
    at("http://127.0.0.1:9", monkeypatch)  # nobody listens there
    words = r"^The model 'lab/other' is no folder here and the hub cannot be reached \(ConnectError\)"
    with refused(FileNotFoundError, words):
        checkpoints.revisions("lab/other")
    with refused(FileNotFoundError, r"\(ConnectError\): its step0 is not in its cache\.$"):
        checkpoints.load(REPOSITORY, "step0")
    assert checkpoints.revisions(REPOSITORY) == list(STEPS) and checkpoints.load(REPOSITORY, "step1").step == 1


@pytest.mark.parametrize("status, code, words", [
    (404, "RepoNotFound", "^There is no model 'lab/closed': neither smollm2 .* no such hub repository"),
    (401, "RepoNotFound", "^There is no model 'lab/closed': .*a private one needs `hf auth login`"),
    (401, "", "^There is no model 'lab/closed': .*a private one needs `hf auth login`"),
    (403, "GatedRepo", "^The hub repository 'lab/closed' is closed to you: accept its conditions"),
    (403, "", "^The hub repository 'lab/closed' is closed to you"),
    (418, "", "^The hub answers 418 for 'lab/closed'"),
])
def test_a_closed_repository_is_one_sentence(hub, status, code, words):
    hub.closed["lab/closed"] = (status, code)
    for call in (checkpoints.revisions, checkpoints.load, checkpoints.weight_hash, checkpoints.load_tokenizer):
        with refused(FileNotFoundError, words):
            call("lab/closed")
    assert len(hub.log) == 4  # no second try


def test_an_unknown_revision_says_which_exist(hub):
    words = r"^'lab/tiny-pythia' has no revision 'step7'; it has step0, step1, step512, step143000\.$"
    for call in (checkpoints.load, checkpoints.locate, checkpoints.weight_hash):
        with pytest.raises(FileNotFoundError, match=words):
            call(REPOSITORY, "step7")
    words = (r"^'lab/pythia-names' has no revision 'step999'; "
             r"it has step0, .*, step11, \.\.\., step151, step152, step153 \(1")
    with refused(FileNotFoundError, words):
        checkpoints.load("lab/pythia-names", "step999")


# ---- from the command line


def test_a_notebook_runs_from_the_hub_one_checkpoint_at_a_time(repositories, tmp_path):
    """Notebook 03 by papermill alone, in a folder with a text; the counts lie in the repository's root."""
    copy_package(tmp_path)
    novels = pd.read_json(paths.MINI_PILE / "austen.jsonl.xz", lines=True)["text"]
    (here := tmp_path / "elsewhere").mkdir()
    (here / "novels.txt").write_text("\n\n".join(novels.head(60)))
    np.save(tmp_path / "counts.npy", np.load(paths.MINI_PYTHIA / "unigram_counts.npy"))
    papermill = [Path(sys.executable).with_name("papermill"), paths.NOTEBOOKS / "03_neuron_influence.ipynb",
                 "out.ipynb", "-p", "model", REPOSITORY, "-y",
                 "{steps: [0, 143000], positions: 100, keep_weights: false}", "-p", "text", "novels.txt", "-p",
                 "counts", "counts.npy", "--log-level", "ERROR", "--no-progress-bar"]
    with Hub(repositories) as hub:
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "src"), "HF_ENDPOINT": hub.url, "OMP_NUM_THREADS": "1",
                                    "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0",
                                    "NO_PROXY": "127.0.0.1", "JUPYTER_PREFER_ENV_PATH": "1"}
        done = subprocess.run(papermill, cwd=here, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        asked = [path.split("/")[4] for verb, path, _ in hub.log if verb == "GET" and path.endswith(WEIGHTS)]
    assert set(asked) == {commit_of(REPOSITORY, f"step{step}") for step in (0, 143000)}
    assert held(tmp_path) == ({commit_of(REPOSITORY, "step143000")}, 1)
    path = next((tmp_path / "data/results/lab--tiny-pythia").rglob("influence.parquet"))
    table = pd.read_parquet(path)
    assert set(table["step"]) == {0, 143000} and (table.groupby(["step", "group"]).size() == 256).all()
    assert (table["positions"] == 100).all() and (table["mean_abs"] > 0).all()
    setting = json.loads((here / "out.ipynb").read_text())["metadata"]["papermill"]["parameters"]
    assert setting["keep_weights"] is False and "keep_weights" not in str(path)  # it changes no result
