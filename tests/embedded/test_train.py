"""The suite starts where Pythia starts, sees its text in a fixed order,
and ends with the same bits however often it is killed."""

import math
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from rare_token_neurons import paths
from rare_token_neurons.embedded.mini_pythia import train as training
from rare_token_neurons.models import checkpoints, subject as subjects
from rare_token_neurons.text import documents as texts, rarity

TINY = dict(width=32, layers=2, heads=2, mlp=64, vocabulary=61)
STEPS = 12


@pytest.fixture(autouse=True, scope="module")
def small():
    """A row of the log every 4 steps, a state at every one; one thread:
    bit-identity is promised for one number of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "EVALUATE_EVERY", 4)
        patch.setattr(training, "STATE_EVERY", 0.0)
        yield
    torch.set_num_threads(before)


def batches(seed=0):
    """Batches of a text of 14 documents, about two steps an epoch; a token depends on the one before it."""
    generator = np.random.default_rng(3)
    return training.Batches([np.cumsum(generator.integers(1, 4, size)) % 61
                             for size in generator.integers(100, 2_000, 14)], seed)


class Stopped(training.Batches):
    """Batches that end the run where that of step `stop` is asked for."""

    def __getitem__(self, step):
        if step == self.stop:
            raise KeyboardInterrupt
        return super().__getitem__(step)


def measure(model):
    with torch.no_grad():
        return {"held_out": training.token_losses(model, batches(seed=9)[0]).mean().item()}


def train(path, *, steps=STEPS, stop=None, saved_steps=(), save=lambda model, step: None):
    """Train from the state that lies in `path`: the model and the log (None where it was stopped)."""
    model, source = training.pythia(0, **TINY), Stopped(batches().ids, 0)
    source.stop, log = stop, None
    with suppress(KeyboardInterrupt):
        log = training.train(model, source, steps, path / "state.pt", saved_steps=saved_steps, save=save,
                             measure=measure)
    return model, log


def assert_equal_states(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


# ---- the model at step 0


@pytest.fixture(scope="module")
def fresh():
    return training.pythia(0)


def test_step_0_is_pythias_initialisation(fresh):
    """N(0, 2 / (5 d)), and N(0, (2 / (layers sqrt(d)))^2) for what writes into the residual stream."""
    small, wang = math.sqrt(2 / (5 * 192)), 2 / (3 * math.sqrt(192))
    expected = {"embed_in.weight": small, "embed_out.weight": small, "lm_head.weight": small,
                "query_key_value.weight": small, "dense_h_to_4h.weight": small, "attention.dense.weight": wang,
                "dense_4h_to_h.weight": wang}
    seen = set()
    for name, weight in fresh.named_parameters():
        if weight.ndim == 2:
            ending = next(ending for ending in expected if name.endswith(ending))
            seen.add(ending)
            deviations = 5 / math.sqrt(2 * weight.numel())  # five standard errors of a standard deviation
            assert weight.std().item() == pytest.approx(expected[ending], rel=deviations), name
            assert abs(weight.mean().item()) < 5 * expected[ending] / math.sqrt(weight.numel()), name
            kurtosis = (weight / weight.std()).pow(4).mean().item()
            assert kurtosis == pytest.approx(3.0, abs=5 * math.sqrt(24 / weight.numel())), name  # normal, not uniform
        elif "norm" in name:
            assert torch.equal(weight, torch.ones_like(weight) if name.endswith("weight")
                               else torch.zeros_like(weight)), name
        else:
            assert not weight.any(), name
    assert len(seen) == 6  # all kinds of matrices, the unembedding under one of its two names


# ---- learning rate and batches


def test_the_learning_rate_warms_up_and_falls_to_a_tenth():
    peak, steps, rise = training.LEARNING_RATE, 6_144, training.WARM_UP
    rates = np.array([training.learning_rate(step, steps) for step in range(steps + 1)])
    assert rates[0] == pytest.approx(peak / rise) and rates[rise - 1] == rates[rise] == pytest.approx(peak)
    assert (np.diff(rates[:rise]) > 0).all() and (np.diff(rates[rise:]) < 0).all()
    assert rates[(rise + steps) // 2] == pytest.approx(0.55 * peak)  # half way down the cosine
    assert rates[-1] == pytest.approx(0.1 * peak)


def test_the_batch_is_a_function_of_seed_and_step():
    forward, backward = batches(), batches()
    ordered = {step: forward[step] for step in range(9)}
    for step in (8, 0, 5, 4, 3, 3, 7, 1, 2, 6):
        assert torch.equal(backward[step], ordered[step])
    assert ordered[0].shape == (training.BATCH, rarity.BLOCK) and ordered[0].dtype == torch.int64
    assert not torch.equal(batches(seed=1)[0], ordered[0])


def test_an_epoch_reads_each_block_once_and_the_next_one_cuts_elsewhere():
    source = batches()
    assert source.per_epoch == 2
    epochs = [torch.cat([source[epoch * 2 + place] for place in range(2)]).tolist() for epoch in range(3)]
    for blocks in epochs:
        assert len(set(map(tuple, blocks))) == len(blocks) == 2 * training.BATCH
    assert set(map(tuple, epochs[0])) != set(map(tuple, epochs[1])) != set(map(tuple, epochs[2]))


def test_every_block_is_a_stretch_of_one_document():
    source = batches()
    documents = ["," + ",".join(map(str, tokens)) + "," for tokens in source.ids]
    for block in source[3].tolist():
        stretch = "," + ",".join(map(str, block)) + ","
        assert any(stretch in document for document in documents)


# ---- what is measured


@torch.no_grad()
def test_losses_are_those_of_the_next_token():
    model = training.pythia(0, **TINY)
    tokens = torch.randint(61, (3, 20), generator=torch.Generator().manual_seed(0))
    expected = -model(tokens).logits.log_softmax(-1)[:, :-1].gather(2, tokens[:, 1:, None]).squeeze(2)
    found = training.token_losses(model, tokens)
    assert found.shape == (3, 19) and found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)  # bfloat16 inside
    positions = np.array([[0, 3], [2, 7], [1, 18]])
    means = training.evaluate(model, tokens, {"rare": positions, "common": positions[:1]})
    assert list(means) == ["held_out", "rare", "common"]
    assert means["held_out"] == pytest.approx(found[:, rarity.FIRST :].mean().item(), rel=1e-5)
    assert means["rare"] == pytest.approx((found[0, 3] + found[2, 7] + found[1, 18]).item() / 3, rel=1e-5)
    assert means["common"] == pytest.approx(found[0, 3].item(), rel=1e-5)


# ---- training


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Weights after 12 steps, the log, and the loss before and after."""
    model, log = train(tmp_path_factory.mktemp("whole"))
    return model.state_dict(), log


def assert_ends_alike(found, uninterrupted):
    model, log = found
    assert_equal_states(model.state_dict(), uninterrupted[0])
    pd.testing.assert_frame_equal(pd.DataFrame(log), pd.DataFrame(uninterrupted[1]), check_exact=True)


def test_train_lowers_the_loss(uninterrupted):
    log = pd.DataFrame(uninterrupted[1])
    assert log["step"].tolist() == [0, 4, 8, 12]
    assert log["tokens"].tolist() == [0, 4 * 4_096, 8 * 4_096, 12 * 4_096]
    assert math.isnan(log["train_loss"][0]) and log["train_loss"][1:].is_monotonic_decreasing
    assert log["held_out"].is_monotonic_decreasing


@pytest.mark.parametrize("clip", [1.0, 1e-6])  # where clipping is strong, Adam's epsilon is felt
def test_the_first_step_is_adam_with_clipping_and_weight_decay_on_matrices(tmp_path, monkeypatch, clip):
    """One step by hand: p <- p (1 - lr w) - lr g / (|g| + eps) with the clipped gradient g (bias correction undoes
    beta)."""
    assert training.CLIP == 1.0
    monkeypatch.setattr(training, "CLIP", clip)
    before, expected = training.pythia(0, **TINY), training.pythia(0, **TINY)
    training.token_losses(expected, batches()[0]).mean().backward()
    norm = torch.stack([weight.grad.norm() for weight in expected.parameters()]).norm()
    rate = training.LEARNING_RATE / training.WARM_UP
    with torch.no_grad():
        for weight in expected.parameters():
            gradient = weight.grad * min(1.0, training.CLIP / (norm + 1e-6))
            weight.mul_(1 - rate * training.WEIGHT_DECAY * (weight.ndim == 2))
            weight.sub_(rate * gradient / (gradient.abs() + 1e-8))
    found, _ = train(tmp_path, steps=1)
    for name, weight in found.state_dict().items():
        torch.testing.assert_close(weight, expected.state_dict()[name], rtol=4e-7, atol=1e-8)
        assert not torch.equal(weight, before.state_dict()[name]), name


@pytest.mark.parametrize("stops", [[5], [0, 1, 11], [4, 12]])
def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path, uninterrupted, stops):
    for stop in stops:
        train(tmp_path, stop=stop)
    assert_ends_alike(train(tmp_path), uninterrupted)


def test_a_finished_run_does_nothing_more(tmp_path, uninterrupted):
    train(tmp_path)
    called = []
    found = train(tmp_path, stop=0, save=lambda model, step: called.append(step), saved_steps=(0, 8, STEPS))
    assert_ends_alike(found, uninterrupted)
    assert called == [STEPS]


def test_checkpoints_are_saved_at_the_steps_asked_for(tmp_path, uninterrupted):
    kept = {}
    train(tmp_path, saved_steps=(0, 3, STEPS), save=lambda model, step: kept.update(
        {step: {name: weight.clone() for name, weight in model.state_dict().items()}}))
    assert sorted(kept) == [0, 3, STEPS]
    assert_equal_states(kept[0], training.pythia(0, **TINY).state_dict())
    assert_equal_states(kept[STEPS], uninterrupted[0])


KILLED = textwrap.dedent("""
    import os, pathlib, signal, sys, torch
    sys.path.insert(0, sys.argv[2])
    import test_train
    torch.set_num_threads(1)
    test_train.training.EVALUATE_EVERY, test_train.training.STATE_EVERY = 4, 0.0

    write = torch.save

    def save(state, path):
        write(state, path)
        if state["step"] == 7:  # half of the file, then the end
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save
    test_train.train(pathlib.Path(sys.argv[1]))
""")


def test_a_run_that_was_killed_while_it_wrote_its_state_ends_with_the_same_bits(tmp_path, uninterrupted):
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path, os.path.dirname(__file__)], capture_output=True,
                          text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 6  # the last whole one
    assert_ends_alike(train(tmp_path), uninterrupted)


# ---- the suite


@pytest.mark.parametrize("capability, fast", [("AVX512", True), ("AVX2", False), ("DEFAULT", False)])
def test_losses_are_in_bfloat16_only_where_that_is_fast(monkeypatch, capability, fast):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    model, seen = training.pythia(0, **TINY), []
    layer = model.base_model.layers[0].mlp.dense_h_to_4h
    layer.register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    training.token_losses(model, torch.zeros(1, 4, dtype=torch.int64))
    assert seen == [torch.bfloat16 if fast else torch.float32]


def test_a_saved_checkpoint_is_the_model_rounded_to_bfloat16(tmp_path):
    model = training.pythia(0, **TINY)
    expected = {name: weight.clone() for name, weight in model.state_dict().items()}
    training.save_checkpoint(model, tmp_path / "step0")
    assert_equal_states(model.state_dict(), expected)  # training goes on in float32
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "step0")
    assert opened.dtype == torch.bfloat16
    assert_equal_states(opened.state_dict(), {name: weight.bfloat16() for name, weight in expected.items()})
    assert len(opened.gpt_neox.rotary_emb.inv_freq) == 2  # a quarter of 16, in pairs
    subject = subjects.dissect(AutoModelForCausalLM.from_pretrained(tmp_path / "step0", dtype=torch.float32))
    assert torch.equal(subject.w_out, expected["gpt_neox.layers.1.mlp.dense_4h_to_h.weight"].bfloat16().float())


def test_a_new_run_replaces_the_checkpoints_of_an_old_one(tmp_path):
    """In a clone the committed suite is there: training it again must not leave old weights under a new log."""
    for seed in (0, 1):
        training.save_checkpoint(training.pythia(seed, **TINY), tmp_path / "step0")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "step0").state_dict()
    second = training.pythia(1, **TINY).state_dict()
    assert_equal_states(found, {name: weight.bfloat16() for name, weight in second.items()})
    assert [path.name for path in tmp_path.iterdir()] == ["step0"]


ODD = "caf\u00e9 \U0001f600 \u2014 don't\0\t\n\n  end \u2019"


def test_the_tokenizer_gives_every_text_back(tmp_path):
    tokenizer = training.train_tokenizer(["the cat sat on the mat, " * 20, "a caf\u00e9"])
    assert tokenizer.convert_tokens_to_ids(training.END_OF_TEXT) == 0 == tokenizer.eos_token_id
    assert 257 < len(tokenizer) <= training.VOCABULARY
    ids, empty = texts.encode(tokenizer, [ODD, ""])
    assert tokenizer.decode(ids) == ODD and len(empty) == 0
    assert tokenizer.decode(texts.encode(tokenizer, [" the"])[0][:1]) == " the"
    vocabulary = rarity.vocabulary(tokenizer)
    pieces = vocabulary.loc[texts.encode(tokenizer, ["\U0001f600"])[0]]  # the bytes of one sign: no word ends inside
    assert len(pieces) > 1 and not pieces[["word", "boundary"]].to_numpy().any()


@pytest.fixture(scope="module")
def root(tmp_path_factory, pile):
    """`suite` of a small model on a small text, 4 steps, in folders of its own."""
    root = tmp_path_factory.mktemp("root")
    pile = pile[pile["source"] == "devil"].reset_index(drop=True)
    pythia = training.pythia
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "documents", lambda: pile)
        patch.setattr(training, "pythia", lambda seed: pythia(seed, **TINY | {"vocabulary": training.VOCABULARY}))
        for name, value in {"MINI_PYTHIA": root / "mini-pythia", "CACHE": root / "cache", "RESULTS": root / "results",
                            "EVALUATION_BLOCKS": 8, "STEPS": 4, "SAVED_STEPS": (0, 2, 4)}.items():
            patch.setattr(training, name, value)
        training.suite(seed=0, steps=4)
        yield root


def test_the_suite_has_the_shape_of_the_hubs(root):
    folder = root / "mini-pythia"
    assert checkpoints.revisions(str(folder)) == ["step0", "step2", "step4"]
    subject = checkpoints.load(str(folder))
    assert subject.step == 4 and len(subject.tokenizer) <= subject.n_vocab == training.VOCABULARY
    counts = np.load(folder / "unigram_counts.npy")
    train_text = texts.documents().query("split == 'train'")["text"]
    np.testing.assert_array_equal(counts, rarity.unigram_counts(texts.encode(subject.tokenizer, train_text),
                                                                training.VOCABULARY))
    assert torch.equal(subject.unigram_counts, torch.from_numpy(counts).double())


def test_starting_again_repeats_nothing_and_another_seed_or_length_leaves_the_suite_alone(root):
    def contents():
        return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()
                and path.name != "training-state.pt"}

    before = contents()
    training.suite(seed=0, steps=4)
    assert contents() == before
    training.suite(seed=1, steps=4)
    training.suite(seed=0, steps=2)
    assert before.items() < contents().items()
    others = "mini-pythia-seed1-steps4", "mini-pythia-seed0-steps2"
    assert {path.name for path in (root / "results").iterdir()} == {"mini-pythia", *others}
    hashes = [checkpoints.weight_hash(str(root / name), "step2")
              for name in ("mini-pythia", *(f"cache/{name}" for name in others))]
    assert hashes[0] != hashes[1] and hashes[0] == hashes[2]  # a shorter run begins like a longer one


def test_held_out_text_is_never_trained_on(root, monkeypatch):
    seen = []
    monkeypatch.setattr(training, "train", lambda model, batches, *_, **__: seen.append(batches) or [{"step": 0}])
    training.suite(seed=2, steps=4)
    pile = texts.documents()
    tokenizer = training.PreTrainedTokenizerFast.from_pretrained(paths.MINI_PYTHIA)
    held_out = {tuple(tokens) for tokens in texts.encode(tokenizer, pile.loc[pile["split"] == "held-out", "text"])}
    trained = {tuple(tokens) for tokens in seen[0].ids}
    assert held_out and not held_out & trained and len(held_out) + len(trained) == len(pile)
