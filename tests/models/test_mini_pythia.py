"""The committed suite: every checkpoint opens, starts where Pythia starts, and learns,
on rare and on common targets."""

import math
import subprocess

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from rare_token_neurons.embedded.mini_pythia import train as training
from rare_token_neurons.models import checkpoints
from rare_token_neurons.paths import MINI_PYTHIA, RESULTS, ROOT
from rare_token_neurons.text import documents as texts, rarity

STEPS = [0, 16, 64, 128, 256, 512, 1_024, 2_048, 4_096, 6_144]  # at least; more early ones are welcome


@pytest.fixture(scope="module")
def revisions():
    return checkpoints.revisions("mini-pythia")


@pytest.fixture(scope="module")
def log():
    return pd.read_parquet(RESULTS / "mini-pythia" / "training_log.parquet").set_index("step")


@pytest.fixture(scope="module")
def models(revisions):
    return {checkpoints.step_of(name): AutoModelForCausalLM.from_pretrained(MINI_PYTHIA / name) for name in revisions}


def test_every_step_is_there(revisions):
    assert [checkpoints.step_of(name) for name in revisions] == list(training.SAVED_STEPS)


def test_the_suite_takes_120_megabytes_at_most_and_nothing_else_lies_there(revisions):
    ours = [path for path in MINI_PYTHIA.rglob("*")
            # a training run's own, ignored
            if path.is_file() and not path.name.startswith(("training-state", ".new-"))]
    assert sum(path.stat().st_size for path in ours) <= 120e6
    beside = {path.name for path in ours if path.parent == MINI_PYTHIA}
    assert beside >= {"tokenizer.json", "tokenizer_config.json", "unigram_counts.npy", "README.md"}
    assert {path.suffix for path in ours} <= {".json", ".safetensors", ".npy", ".md"}


def test_a_training_state_can_never_be_committed():
    for name in ("training-state.pt", ".new-abc.pt"):
        ignored = subprocess.run(["git", "check-ignore", "--quiet", "--no-index", MINI_PYTHIA / name], cwd=ROOT)
        assert ignored.returncode == 0, name


def test_each_checkpoint_opens_as_a_hub_model(models):
    for step, model in models.items():
        config = model.config
        assert model.dtype == torch.bfloat16 and config.model_type == "gpt_neox", step
        assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (192, 3, 1_536)
        assert config.vocab_size == training.VOCABULARY and not config.tie_word_embeddings
        assert config.use_parallel_residual
        assert all(torch.isfinite(weight).all() for weight in model.parameters())


def test_a_checkpoint_is_a_subject():
    last = checkpoints.load("mini-pythia")
    assert (last.revision, last.step, last.norm) == ("step6144", 6_144, "layer")
    assert (last.n_neurons, last.d_model, last.n_layers, last.n_vocab) == (1_536, 192, 3, 8_192)
    assert len(last.tokenizer) == 8_192 and last.unigram_counts.shape == (8_192,)
    assert checkpoints.load("mini-pythia", "step0").step == 0
    with pytest.raises(FileNotFoundError, match="^'mini-pythia' has no revision 'step3'; it has step0, step16, "):
        checkpoints.load("mini-pythia", "step3")


def test_step_0_is_pythias_initialisation(models):
    """The seed's own numbers; `test_train` says which those are."""
    drawn = training.pythia(0).state_dict()
    for name, weight in models[0].state_dict().items():
        same = (weight == drawn[name].bfloat16()).float().mean().item()
        assert same > 0.99, name  # another processor may round the last bit of a few otherwise


def test_the_log_covers_the_whole_run(log):
    assert set(STEPS) <= set(log.index) and log.index[-1] == 6_144 and log.index.is_monotonic_increasing
    assert (log["tokens"] == log.index * 4_096).all() and log["tokens"].iloc[-1] == 25_165_824
    assert log[["held_out", "rare", "common", "epochs"]].notna().all(axis=None)
    assert 2 < log["epochs"].iloc[-1] < 4


def test_it_starts_at_chance_and_learns(log):
    chance = math.log(training.VOCABULARY)
    assert (log.loc[0, ["held_out", "rare", "common"]] - chance).abs().max() < 0.5
    assert (log["train_loss"].dropna().diff().dropna() < 0.1).all()  # decreasing, but for the noise between rows
    assert (log["held_out"].diff().dropna() < 0.05).all()
    saved = log.loc[[step for step in STEPS if step >= 16]]
    assert saved["held_out"].is_monotonic_decreasing and saved["train_loss"].is_monotonic_decreasing
    assert log["held_out"].iloc[-1] < log.loc[1_024, "held_out"] - 0.2
    assert log["held_out"].iloc[-1] < 4.2 and log["held_out"].idxmin() >= 5_000


def test_rare_targets_are_learned_later_than_common_ones(log):
    late = log.loc[1_024:]
    assert (late["rare"] > late["common"] + 1).all()
    assert log["rare"].iloc[-1] < log.loc[1_024, "rare"] and log["common"].iloc[-1] < log.loc[1_024, "common"]


def test_the_counts_are_those_of_the_train_split(pile, log):
    counts = np.load(MINI_PYTHIA / "unigram_counts.npy")
    blocks = log["tokens"].iloc[-1] / log["epochs"].iloc[-1] / rarity.BLOCK  # whole batches of whole blocks in an epoch
    assert counts.shape == (training.VOCABULARY,) and 0 <= counts.sum() / rarity.BLOCK - blocks < len(pile)
    part = pile[(pile["source"] == "jargon") & (pile["split"] == "train")]["text"]
    ids = texts.encode(checkpoints.load_tokenizer("mini-pythia"), part)
    assert (counts >= rarity.unigram_counts(ids, len(counts))).all()
    assert counts[0] == 0  # the end of text


def test_the_last_checkpoint_has_the_losses_of_the_log(pile, log):
    tokenizer = checkpoints.load_tokenizer("mini-pythia")
    held_out = pile.loc[pile["split"] == "held-out", "text"]
    tokens, groups = training.evaluation_set(tokenizer, held_out, np.load(MINI_PYTHIA / "unigram_counts.npy"))
    assert min(map(len, groups.values())) > 500
    for name, loss in training.evaluate(checkpoints.load("mini-pythia").model, tokens, groups).items():
        assert loss == pytest.approx(log.iloc[-1][name], abs=0.02), name  # the checkpoint is rounded to bfloat16


def test_the_model_card_says_what_it_is(log, revisions, models):
    card = (MINI_PYTHIA / "README.md").read_text(encoding="utf-8")
    last, counts = log.iloc[-1], np.load(MINI_PYTHIA / "unigram_counts.npy")
    numbers = [f"{last['epochs']:.2f} epochs", f"{last['tokens'] / 1e6:.1f} M tokens",
               f"{counts.sum() / 1e6:.1f} M tokens",
               f"{sum(weight.numel() for weight in models[0].parameters()) / 1e6:.1f} M parameters",
               "steps " + ", ".join(str(checkpoints.step_of(name)) for name in revisions)]
    for words in ("GPT-NeoX", "mini-pile", "bfloat16", "6,144 steps", "make suite", "license:", *numbers):
        assert words in card, words
    assert str(ROOT) not in card
