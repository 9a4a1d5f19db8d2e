"""Suites on the hub as public ones are: how they name their steps, which files they hold, and what is wrong with some."""

import re
import shutil
from pathlib import Path

import own_model
import pandas as pd
import pytest
import torch
from hubserver import Hub, commit_of, connected, files_of, forget
from own_model import refused, words
from transformers import Olmo2Config, Olmo2ForCausalLM

from rare_token_neurons import __main__, paths, settings as parameters
from rare_token_neurons.figures.notebook import Notebook
from rare_token_neurons.models import checkpoints, weights
from rare_token_neurons.models.steps import step_of
from rare_token_neurons.tables import checkpoints as passes, emergence, influence as influences

SUITE = "lab/suite"
SINGLE = "model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The files of a network, made once: made(place, shards=False, pickles=False) -> {file: bytes}."""
    folder = tmp_path_factory.mktemp("made")
    words().save_pretrained(folder / "words")

    def build(place, shards=False, pickles=False):
        path = folder / f"{place}{shards}{pickles}"
        if not path.exists():
            network(place).save_pretrained(path, **{"max_shard_size": "5KB"} if shards else {})
            if pickles:
                (path / SINGLE).unlink()
                torch.save(network(place).state_dict(), path / "pytorch_model.bin")
        return files_of(folder / "words") | files_of(path)

    return build


@pytest.fixture
def hub(places, tmp_path, monkeypatch):
    """A running hub without repositories, all of whose weights will be in LFS; tables and caches of this test alone."""
    monkeypatch.setattr(weights, "FOLDER", tmp_path / "pickles")
    with connected(Hub({}, large=100), tmp_path, monkeypatch) as running:
        yield running


def network(place):
    """One of ten small networks on a path, as training leaves them."""
    return moved(own_model.network(), place)


def trained(place):
    """One of ten OLMo-2 networks on a path that read mini-pythia's tokens."""
    torch.manual_seed(0)
    return moved(Olmo2ForCausalLM(Olmo2Config(
        vocab_size=8192, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256,
        max_position_embeddings=256, pad_token_id=None, eos_token_id=0)), place)


def moved(model, place):
    """A model after so many steps of a random walk."""
    with torch.no_grad():
        for step in range(place):
            torch.manual_seed(step)
            for weight in model.parameters():
                weight.add_(0.02 * torch.randn_like(weight))
    return model


def place_of(model, revision=None, **how):
    """The place on the path of the network that is measured."""
    found = checkpoints.load(model, revision, **how).model.state_dict()
    (place,) = [place for place in range(10) if all(torch.equal(found[name], part)
                                                    for name, part in network(place).state_dict().items())]
    return place


def settings(**values):
    return parameters.check({"model": SUITE} | values)


def audited(*arguments, model=SUITE):
    """The exit code of `audit`, and its table."""
    code = __main__.main(["audit", model, *arguments])
    path = settings(model=model, **dict([arguments[1:]] if arguments else [])).results / "checkpoints.parquet"
    return code, pd.read_parquet(path) if path.exists() else None


# ---- the right weights


def test_shards_are_measured_where_a_stale_single_file_lies_beside_them(hub, made, capsys):
    """pythia-2.8b, https://github.com/EleutherAI/pythia/issues/205"""
    stale = {SINGLE: made(9)[SINGLE], "consolidated.safetensors": made(8)[SINGLE],
             "adapter_model.safetensors": made(8)[SINGLE], "adapter_config.json": b'{"base_model_name_or_path": "lab/o"}'}
    hub.repositories = {SUITE: {"main": made(9)} | {f"step{step}": made(step, shards=True) | stale for step in (0, 1)}}
    hashes = {name: checkpoints.weight_hash(SUITE, name) for name in ("step0", "step1", "main")}
    assert len(set(hashes.values())) == 3 and not [path for _, path, _ in hub.log if path.endswith(".safetensors")]
    for step in (0, 1):
        assert place_of(SUITE, f"step{step}") == step
    asked = {path.rsplit("/", 1)[-1] for _, path, _ in hub.log if "/resolve/" in path and path.endswith(".safetensors")}
    assert asked == {name for name in made(0, shards=True) if name.endswith(".safetensors")}
    said = capsys.readouterr().err
    assert said.count("'lab/suite' at step1 holds model.safetensors beside an index: the files that the index names are "
                      "measured; the single file, by its sha256 that of main, is not.\n") == 1
    code, table = audited()
    assert code == 0 and table["weight_hash"].tolist() == [hashes["step0"], hashes["step1"]]
    difference = [(one - other).detach().norm() for one, other in zip(network(1).parameters(), network(0).parameters())]
    length = torch.stack([part.detach().norm() for part in network(0).parameters()]).norm()
    assert table["distance"].iloc[1] == pytest.approx(float(torch.stack(difference).norm() / length), rel=1e-5)
    hub.repositories[SUITE]["step0"] |= {SINGLE: made(8)[SINGLE]}
    forget()
    assert checkpoints.weight_hash(SUITE, "step0") == hashes["step0"]  # of its commit, which the hub would not change


def test_another_single_file_than_mains_is_said_to_be_one(hub, made, capsys):
    hub.repositories = {SUITE: {"main": made(9), "step1": made(1, shards=True) | {SINGLE: made(8)[SINGLE]}}}
    assert place_of(SUITE, "step1") == 1 and "by its sha256 another one than that of main" in capsys.readouterr().err


def test_repeats_and_main_are_said_before_anything_is_measured(hub, made, capsys):
    """OLMo-2's step 101000, 175000 and 300000, https://github.com/allenai/OLMo/issues/915"""
    steps = {0: 0, 1: 1, 2: 1, 3: 9, 4: 4}
    hub.repositories = {SUITE: {"main": made(9)} | {f"step{step}": made(seed) for step, seed in steps.items()}}
    asked = settings(steps=[1, 2, 3, 4])
    words = {"step2": "step2 has the weights of step1", "step3": "step3 has the weights of main"}
    assert passes.known_wrong(asked) == words
    assert not [path for _, path, _ in hub.log if path.endswith(SINGLE)]  # by the announced sha256s alone
    said = capsys.readouterr().err
    assert all(f"Flagged, and measured since it was asked for: {line}.\n" in said for line in words.values())
    assert passes.revisions(asked) == ["step1", "step2", "step3", "step4"]
    code, table = audited()
    reasons = table.set_index("step")["reason"]
    assert code == 1 and reasons[3] == "has the weights of main"
    assert reasons.to_dict() == {0: "", 1: "", 2: "has the weights of step1", 3: "has the weights of main", 4: ""}
    forget()
    assert passes.revisions(settings(), "all") == ["step0", "step1", "step4"]
    assert "are flagged: " in capsys.readouterr().err
    hub.repositories["lab/last"] = {"main": made(4)} | {f"step{step}": made(step) for step in (0, 1, 4)}
    assert passes.known_wrong(settings(model="lab/last", steps=[0, 4])) == {}  # main is the last step


@pytest.mark.parametrize("kind", ["none", "half"])
def test_a_revision_without_weights_is_a_flagged_row_and_a_skipped_step(hub, made, capsys, kind):
    """pythia-410m-seed9 at step40000, https://github.com/EleutherAI/pythia/issues/202"""
    bare = made(5, shards=True) if kind == "half" else made(5)
    bare = {name: content for name, content in bare.items() if name not in (SINGLE, "model-00002-of-00011.safetensors")}
    assert len(bare) < len(made(5, shards=kind == "half"))
    whole = {f"step{step}": made(step) for step in (0, 1, 2, 4)}
    hub.repositories = {SUITE: {"main": made(4), "step3": bare, "step5": bare} | whole}
    word = "lacks 'model-00002-of-00011.safetensors', which its" if kind == "half" else "holds no weights: neither"
    code, table = audited()
    assert code == 1 and table["step"].tolist() == [0, 1, 2, 3, 4, 5] and table["reason"].str.startswith(word).tolist() == [
        False, False, False, True, False, True]
    assert table.loc[[3, 5], "weight_hash"].tolist() == ["", ""] and table.loc[[3, 5], "flagged"].all()
    assert "are flagged" in capsys.readouterr().out
    assert passes.revisions(settings()) == ["step4"]
    assert f"step5 of lab/suite {word}" in capsys.readouterr().err
    assert passes.revisions(settings(steps=[1, 3, 4])) == ["step1", "step4"]
    assert f"step3 of lab/suite {word}" in capsys.readouterr().err
    assert [step for name in passes.revisions(settings(), "all") if (step := checkpoints.step_of(name))] == [1, 2, 4]
    for call in (checkpoints.load, lambda *_: passes.Checkpoints("last", text=False).inputs(settings(steps=[3]))):
        with refused(weights.NoWeights, f"^The hub repository 'lab/suite', step3, {word}"):
            call(SUITE, "step3")


def test_pickles_are_refused_and_converted_on_request(hub, made, tmp_path, capsys):
    """PolyPythias, OPT-125m, stanford-crfm: the hub announces the sha256 of a pickle."""
    steps = {f"step{step}": made(step, pickles=True) for step in (0, 1, 2)}
    hub.repositories = {SUITE: {"main": made(2, pickles=True)} | steps}
    words = "^The hub repository 'lab/suite', step1, holds its weights as pickles alone.*: -p pickles convert reads the te"
    with refused(weights.Refused, words):
        checkpoints.load(SUITE, "step1")
    assert not hub.asked(".bin") and audited()[0] == 2 and "-p pickles convert" in capsys.readouterr().err
    for step in (0, 1, 2):
        assert place_of(SUITE, f"step{step}", pickles="convert") == step
    assert len(hub.asked(".bin")) == 3 and len(list((tmp_path / "pickles").glob("*.safetensors"))) == 3
    assert not list((tmp_path / "hub").rglob("*.bin"))  # what was made of it is kept, it is not
    forget()
    assert place_of(SUITE, "step1", pickles="convert") == 1 and place_of(SUITE, pickles="convert") == 2
    code, table = audited("-p", "pickles", "convert")
    assert code == 0 and len(hub.asked(".bin")) == 3 and table["step"].tolist() == [0, 1, 2]
    assert parameters.Settings(pickles="convert").folder == parameters.Settings().folder  # the results are the same
    assert place_of(SUITE, "step0", pickles="convert", keep_weights=False) == 0  # there before: it stays
    assert len(list((tmp_path / "pickles").glob("*.safetensors"))) == 3


def test_one_converted_pickle_is_held_at_a_time(hub, made, tmp_path):
    hub.repositories = {SUITE: {"main": {}} | {f"step{step}": made(step, pickles=True) for step in (0, 1)}}
    for step in (0, 1):
        assert place_of(SUITE, f"step{step}", pickles="convert", keep_weights=False) == step
        assert len(list((tmp_path / "pickles").glob("*.safetensors"))) == 1 and not list((tmp_path / "hub").rglob("*.bin"))


def test_a_pickle_that_is_not_what_the_hub_announces_is_not_opened(hub, made, tmp_path, monkeypatch):
    hub.repositories = {SUITE: {"main": {}, "step0": made(0, pickles=True)}}
    checkpoints.weight_hash(SUITE, "step0")
    other = made(1, pickles=True)["pytorch_model.bin"]
    hub.repositories[SUITE]["step0"] = made(0, pickles=True) | {"pytorch_model.bin": other}
    monkeypatch.setattr(weights, "_read", lambda path: pytest.fail("it was opened"))
    with refused(ValueError, "^pytorch_model.bin of 'lab/suite' at step0 is damaged"):
        checkpoints.load(SUITE, "step0", pickles="convert")
    hub.large = 10**9
    hub.repositories["lab/small"] = {"main": made(0, pickles=True)}
    with refused(weights.Refused, "^The hub repository 'lab/small', main, holds pickles whose sha256 the hub does not ann"):
        checkpoints.load("lab/small", pickles="convert")


# ---- names of steps

PUBLIC = {
    "Pythia": ["step0", "step512", "step143000"], "OLMo-1": ["step1000-tokens4B", "step20000-tokens84B"],
    "SmolLM2": ["step-125000", "step-1200000"], "stanford-crfm": ["checkpoint-400", "checkpoint-4000"],
    "SmolLM3": ["stage1-step-40000", "stage1-step-3440000", "stage2-step-3480000", "stage3-step-4720000"],
    "OLMo-2": ["stage1-step1000-tokens5B", "stage1-step2000-tokens9B"],
}


@pytest.mark.parametrize("names", PUBLIC.values(), ids=PUBLIC)
@pytest.mark.parametrize("tags", [False, True], ids=["branches", "tags"])
def test_every_step_is_loaded_by_its_name_and_asked_for_by_its_number(hub, made, names, tags):
    hub.repositories = {SUITE: {"main": made(9)} | {name: made(seed) for seed, name in reversed(list(enumerate(names)))}}
    hub.tags = {SUITE: names if tags else []}
    assert checkpoints.revisions(SUITE) == names
    for seed, name in enumerate(names):
        subject = checkpoints.load(SUITE, name)
        assert (subject.revision, subject.step) == (name, checkpoints.step_of(name)) and place_of(SUITE, name) == seed
    asked = settings(steps=[checkpoints.step_of(name) for name in names])
    assert passes.revisions(asked) == names and passes.revisions(settings()) == names[-1:]
    assert [labels for _, labels in passes.LAST.walk(asked)] == [
        {"revision": name, "step": checkpoints.step_of(name)} for name in names]
    assert audited()[1]["revision"].tolist() == names


OLMO2 = {"stage1-step1000-tokens5B": 0, "stage1-step2000-tokens9B": 1, "step150-tokens1B": 2,
         "stage2-ingredient1-step1000-tokens5B": 3, "stage2-ingredient2-step1000-tokens5B": 4,
         "stage2-ingredient1-step3000-tokens13B": 5}


def test_of_several_stages_the_first_is_taken_and_another_on_request(hub, made, capsys):
    hub.repositories = {SUITE: {"main": made(9)} | {name: made(seed) for name, seed in OLMO2.items()}}
    assert passes.revisions(settings(steps=[1000])) == ["stage1-step1000-tokens5B"]
    assert capsys.readouterr().err == ("Of lab/suite the first stage of training is taken; -p stage takes another: "
                                       "stage2-ingredient1, stage2-ingredient2.\n")
    other = settings(stage="stage2-ingredient1")
    assert passes.revisions(other) == ["stage2-ingredient1-step3000-tokens13B"] and not capsys.readouterr().err
    assert passes.asked_for(other) == ["stage2-ingredient1-step1000-tokens5B", "stage2-ingredient1-step3000-tokens13B"]
    assert passes.asked_for(settings()) == ["step150-tokens1B", "stage1-step1000-tokens5B", "stage1-step2000-tokens9B"]
    assert other.folder != settings().folder and "stage=stage2-ingredient1" in other.folder
    with refused(FileNotFoundError, "has no revision 'step3000'; it has step150.*; -p stage stage2-ingredient1 has that"):
        passes.revisions(settings(steps=[3000]))
    with refused(ValueError, "^Of 'lab/suite' there is no stage 'stage3'; there is stage1, stage2-ingredient1, stage2-"):
        passes.revisions(settings(stage="stage3"))
    code, table = audited("-p", "stage", "stage2-ingredient1")
    assert code == 0 and table["weight_hash"].tolist() == [checkpoints.weight_hash(SUITE, name)
                                                           for name, seed in OLMO2.items() if seed in (3, 5)]


def test_two_names_of_one_step_are_an_error_that_lists_both(hub, made, capsys):
    hub.repositories = {SUITE: {"main": made(9), "step1000": made(1), "step1000-tokens4B": made(2), "step5": made(5)}}
    for call in (checkpoints.revisions, lambda model: passes.revisions(settings(steps=[1000]))):
        with refused(ValueError, "^Of 'lab/suite' step 1000 has two names, step1000 and step1000-tokens4B"):
            call(SUITE)
    assert audited()[0] == 2 and place_of(f"{SUITE}@step1000-tokens4B") == 2


def test_names_that_say_no_step_are_listed_and_no_training_is_shown(hub, made, capsys):
    hub.repositories = {SUITE: {"main": made(9), "epoch-1": made(1), "final": made(2)}, "lab/plain": {"main": made(3)}}
    assert audited()[0] == 2
    sentence = "lab/suite has branches or tags, but none is named like a step: epoch-1, final."
    assert capsys.readouterr().err == f"{sentence}\n"
    with refused(ValueError, f"^{sentence}$"):
        Notebook(settings(), "04").revisions()
    with refused(FileNotFoundError, "has no revision 'step1'; it has no checkpoints, but branches or tags named epoch-1, "):
        passes.revisions(settings(steps=[1]))
    assert passes.revisions(settings()) == [None] and place_of(SUITE) == 9  # a finished model with other branches
    assert audited(model="lab/plain")[0] == 0 and "there is nothing to audit" in capsys.readouterr().out


@pytest.mark.parametrize("main", [{"README.md": b"# Checkpoints"}, {".gitattributes": b"*.bin filter=lfs"}])
def test_where_main_holds_no_model_the_last_step_stands_for_it(hub, made, main):
    """SmolLM3's checkpoints, PolyPythias."""
    hub.repositories = {SUITE: {"main": main, "stage1-step-40": made(1), "stage3-step-4720": made(3)}}
    subject = checkpoints.load(SUITE)
    assert (subject.revision, subject.step) == ("stage3-step-4720", 4720) and place_of(SUITE) == 3
    assert len(checkpoints.load_tokenizer(SUITE)) == 30
    assert checkpoints.weight_hash(SUITE) == checkpoints.weight_hash(SUITE, "stage3-step-4720") and audited()[0] == 0
    hub.repositories["lab/empty"] = {"main": main}
    with refused(weights.NoWeights, "^The hub repository 'lab/empty', main, holds no weights"):
        checkpoints.load("lab/empty")


@pytest.mark.parametrize("revision", ["step1", "a-tag", commit_of(SUITE, "step1")])
def test_a_model_may_name_its_revision(hub, made, revision):
    hub.repositories = {SUITE: {"main": made(9), "step0": made(0), "step1": made(1), "a-tag": made(1)}}
    hub.tags = {SUITE: ["a-tag"]}
    model = f"{SUITE}@{revision}"
    subject = checkpoints.load(model)
    assert place_of(model) == 1 and subject.model_id == model and len(checkpoints.load_tokenizer(model)) == 30
    assert (subject.revision, subject.step) == (("step1", 1) if revision == "step1" else (None, None))
    assert checkpoints.revisions(model) == [] and passes.revisions(settings(model=model)) == [None]
    assert checkpoints.weight_hash(model) == checkpoints.weight_hash(SUITE, "step1") and audited(model=model)[0] == 0
    assert settings(model=model).folder != settings().folder
    with refused(FileNotFoundError, "has no revision 'step7'; it has step0, step1"):
        checkpoints.load(f"{SUITE}@step7")
    with refused(FileNotFoundError, "has no revision 'step0'; it has step0, step1"):
        checkpoints.load(model, "step0")


def test_the_folders_of_a_trainer_run_are_its_steps(made, tmp_path, capsys):
    """checkpoint-500/ beside the finished model."""
    for name, seed in {"checkpoint-500": 1, "checkpoint-1000": 2, "": 2, "runs": 3}.items():
        (tmp_path / name).mkdir(exist_ok=True)
        for file, content in made(seed).items():
            (tmp_path / name / file).write_bytes(content)
    model = str(tmp_path)
    assert checkpoints.revisions(model) == ["checkpoint-500", "checkpoint-1000"]
    assert place_of(model, "checkpoint-500") == 1 and place_of(model) == 2 and place_of(f"{model}/checkpoint-500") == 1
    assert checkpoints.load(f"{model}/checkpoint-500").step == 500
    assert passes.revisions(settings(model=model, steps=[500])) == ["checkpoint-500"]


# ---- what is written of them


def test_the_table_of_public_suites_names_tests_that_are_there():
    table = (paths.ROOT / "src/README.md").read_text(encoding="utf-8").split("## Public suites")[1].split("\n## ")[0]
    there = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    named = re.findall(r"`(test_\w+_)\.\.\.", table)
    assert len(named) > 10 and not [name for name in named if f"def {name}" not in there]
    assert all(step_of(name) is not None for name in re.findall(r"`((?:stage|step|checkpoint)[^`./]*\d[^`./]*)", table))
    assert "None of them was tried on the real hub" in table


# ---- from the hub to the tables


def test_a_sharded_suite_in_stages_goes_through_audit_and_tables_with_its_own_weights(hub, tmp_path, capsys):
    """OLMo-2: shards with a stale single file beside them, and a step that repeats another one.

    What is measured is what a folder with the right shards alone gives.
    """
    folder, suite = tmp_path / "saved", {"main": {}}
    for name, place in {"stage1-step1000-tokens5B": 1, "stage1-step2000-tokens9B": 2, "stage1-step3000-tokens13B": 2,
                        "stage2-ingredient1-step1000-tokens5B": 3, "main": 9}.items():
        trained(place).save_pretrained(folder / name, max_shard_size="300KB" if name != "main" else "5GB")
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(paths.MINI_PYTHIA / file, folder / name)
        suite[name] = files_of(folder / name)
    suite["stage1-step2000-tokens9B"] = suite["stage1-step2000-tokens9B"] | {SINGLE: suite["main"][SINGLE]}
    hub.repositories = {SUITE: suite}
    pile = pd.read_json(paths.MINI_PILE / "austen.jsonl.xz", lines=True)["text"]
    (tmp_path / "novels.txt").write_text("\n\n".join(pile.head(30)))
    of_text = {"positions": 100, "text": str(tmp_path / "novels.txt"), "counts": "text"}
    flagged = "stage1-step3000-tokens13B has the weights of stage1-step2000-tokens9B"
    assert audited()[0] == 1
    said = capsys.readouterr()
    assert f"1 is flagged: {flagged}" in said.out
    assert "by its sha256 that of main, is not" in said.err and "another: stage2-ingredient1" in said.err
    asked = settings(steps=[1000, 2000, 3000], **of_text)
    found, over = influences.influence(asked), emergence.emergence_top_groups(asked)
    assert f"Flagged, and measured since it was asked for: {flagged}." in "".join(capsys.readouterr())
    assert not [path for _, path, _ in hub.log if path.endswith("/" + SINGLE)]
    assert found.groupby("step")["caution"].unique().map(list).to_dict() == {1000: [""], 2000: [""], 3000: [flagged]}
    assert set(over["step"]) == {1000, 2000, 3000} and over.loc[over["step"] == 3000, "caution"].eq(flagged).all()
    own = influences.influence(settings(model=str(folder), steps=[1000, 2000], **of_text))
    assert "caution" not in own
    pd.testing.assert_frame_equal(found[found["step"] < 3000].drop(columns="caution"), own)
