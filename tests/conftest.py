"""Small random models, tokens, checkpoints and an empty repository, for every test that asks for them."""

import pytest
import torch
from own_model import network, words
from tiny_models import LENGTH, VOCABULARY, tiny_subject

from rare_token_neurons import paths, settings as parameters
from rare_token_neurons.tables import stage
from rare_token_neurons.text import documents


@pytest.fixture
def tiny():
    """The builder of tiny subjects."""
    return tiny_subject


@pytest.fixture
def tokens():
    """int64 (6, 16)"""
    return torch.randint(0, VOCABULARY, (6, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def folder(tmp_path):
    """A whole checkpoint of a small model, to be damaged."""
    path = tmp_path / "own-model"
    network().save_pretrained(path)
    words().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def pile():
    """All documents of mini-pile: reading them takes seconds."""
    return documents.documents()


@pytest.fixture
def small_pile(tmp_path, monkeypatch):
    """The smallest source of mini-pile stands for all of it."""
    (tmp_path / "pile").mkdir()
    (tmp_path / "pile/devil.jsonl.xz").symlink_to(paths.MINI_PILE / "devil.jsonl.xz")
    monkeypatch.setattr(documents, "MINI_PILE", tmp_path / "pile")


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Below tmp_path: results/ and cache/ of this test alone, and nothing written or timed yet."""
    monkeypatch.setattr(parameters, "RESULTS", tmp_path / "results")
    for name, value in {"CACHE": tmp_path / "cache", "RUNS": tmp_path / "cache/runs", "_seconds": {},
                        "_written": {"tables": [], "figures": []}}.items():
        monkeypatch.setattr(stage, name, value)
    return tmp_path


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """An empty repository: every folder that the runner knows lies under tmp_path."""
    for name in ("NOTEBOOKS", "DATA", "RESULTS", "CACHE", "RUNS", "FIGURES"):
        monkeypatch.setattr(paths, name, tmp_path / getattr(paths, name).relative_to(paths.ROOT))
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    return tmp_path
