"""Which counts decide rarity, and which documents are new to a model: by what lies beside its weights, not by its name."""

import shutil

import numpy as np
import pytest

from rare_token_neurons import paths, settings as parameters
from rare_token_neurons.tables import rare_tokens, robustness, stage
from rare_token_neurons.text import documents as texts, rarity


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Tables are written here; the caches of the module are new."""
    monkeypatch.setattr(stage, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(parameters, "RESULTS", tmp_path / "results")
    for kept in (rare_tokens._corpus, rare_tokens._chosen):
        kept.cache_clear()
    yield tmp_path
    for kept in (rare_tokens._corpus, rare_tokens._chosen):
        kept.cache_clear()


def copied(folder, *names):
    """A folder with some of mini-pythia's files."""
    folder.mkdir(parents=True)
    for name in names:
        (shutil.copytree if (paths.MINI_PYTHIA / name).is_dir() else shutil.copy)(paths.MINI_PYTHIA / name, folder / name)
    return folder


def trained_here(model):
    return parameters.Settings(model=str(model)).trained_here


def test_a_model_was_trained_here_where_its_counts_are_those_of_the_training_text(tmp_path):
    assert trained_here("mini-pythia") and trained_here(paths.MINI_PYTHIA) and trained_here(paths.MINI_PYTHIA / "step512")
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
    pile = texts.documents()
    path = root / "own.txt"
    path.write_text("\n\n".join(pile.loc[pile["source"] == "devil", "text"].head(documents)))
    return str(path)


def test_all_documents_of_another_text_are_new_and_the_training_text_decides_what_is_rare(root):
    """Fewer than 20 documents leave none held out: a text that was not trained on is measured whole."""
    settings = parameters.Settings(model="mini-pythia", text=own_text(root), positions=10_000)
    documents, trained = texts.documents(settings.text), np.load(paths.MINI_PYTHIA / rarity.COUNTS_FILE)
    assert len(documents) < 20 and not documents["split"].eq("held-out").any()
    assert rare_tokens.positions(settings)["document"].nunique() > len(documents) / 2
    assert rare_tokens.tokens(settings)["count"].to_numpy().tolist() == trained.tolist()
    assert rare_tokens.counts_name(settings) == rare_tokens.TRAINING
    of_text = parameters.Settings(model="mini-pythia", text=settings.text, counts="text")
    assert rare_tokens.tokens(of_text).eval("count == count_text").all()
    assert robustness.counts(of_text, robustness.default(of_text)).tolist() == rare_tokens.tokens(of_text)["count"].tolist()
    by_text = robustness.Cell("counts", "text", 50.0, "mean", "target", True, "text", "mean_abs")
    assert robustness.counts(settings, by_text).tolist() == rare_tokens.tokens(settings)["count_text"].tolist()


@pytest.mark.parametrize("default, other", [("auto", "wordfreq"), ("wordfreq", "text")])
def test_a_cell_with_other_counts_counts_otherwise(root, default, other):
    """Of the embedded text, mini-pythia has read the train split: that alone is counted, whatever the default counts."""
    settings = parameters.Settings(model="mini-pythia", counts=default)
    cell = next(cell for cell in robustness.grid(settings) if cell.factor == "counts")
    found, base = robustness.counts(settings, cell), rare_tokens.tokens(settings)["count"].to_numpy()
    assert cell.counts == other and (found != base).any()
    assert found.tolist() == rare_tokens.tokens(parameters.Settings(model="mini-pythia", counts=other))["count"].tolist()


def test_the_embedded_text_is_measured_where_it_was_held_out():
    settings = parameters.Settings(model="mini-pythia")
    assert settings.read_before and rare_tokens.counts_name(settings) == "text"
    assert not parameters.Settings(model="smollm2").read_before
    assert rare_tokens.counts_name(parameters.Settings()) == "wordfreq"
