"""Planted paths through weight space: training is clean; a repeat, an exchange,
a stranger and a known issue are flagged."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hubserver import forget
from safetensors.torch import load_file, save_file

from rare_token_neurons import __main__, settings as parameters
from rare_token_neurons.embedded.mini_pythia import train as training
from rare_token_neurons.figures.notebook import Notebook
from rare_token_neurons.models import audit, checkpoints
from rare_token_neurons.tables import checkpoints as passes

TINY = dict(width=16, layers=2, heads=2, mlp=32, vocabulary=96)
STEPS = [0, 1, 2, 4, 8, 16, 32, 64]


def path(gaps, seed=0, size=4_000, decay=0.001):
    """A random walk with weight decay, (len(gaps) + 1, size): a gap is the number of small steps to the next
    checkpoint."""
    rng = np.random.default_rng(seed)
    points = [rng.normal(size=size)]
    for gap in gaps:
        kept = (1 - decay) ** gap
        points.append(kept * points[-1] + rng.normal(scale=0.2 * math.sqrt(gap), size=size))
    return np.stack(points)


GRIDS = {"even": [10] * 9, "doubling": [2**k for k in range(9)], "fourfold": [4**k for k in range(6)], "fine": [1] * 14}


def flagged(sketches):
    """{place: reason} of a path's flagged checkpoints."""
    n = len(sketches)
    table = audit.judge([f"step{k}" for k in range(10, n + 10)], [""] * n, sketches, [""] * n)
    assert table["flagged"].eq(table["reason"] != "").all()
    return table.loc[table["flagged"], "reason"].to_dict()


# ---- the rules


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("gaps", GRIDS.values(), ids=GRIDS)
def test_a_random_walk_with_decay_is_clean(gaps, seed):
    assert flagged(path(gaps, seed)) == {}


def test_so_are_a_straight_line_and_weights_that_grow_and_shrink_again():
    start, way = np.random.default_rng(0).normal(size=(2, 4_000))
    assert flagged(np.stack([start + k * way for k in range(6)])) == {}
    assert flagged(path(GRIDS["even"]) * np.sin(np.linspace(0.6, 2.5, 10))[:, None]) == {}


@pytest.mark.parametrize("gaps", GRIDS.values(), ids=GRIDS)
def test_an_exchanged_pair_is_flagged(gaps):
    points = path(gaps)
    for first in range(1, len(points) - 2):
        order = np.arange(len(points))
        order[[first, first + 1]] = first + 1, first
        found = flagged(points[order])
        assert set(found) == {first, first + 1}, first
        assert all(reason.startswith("out of order") for reason in found.values())


def test_one_of_an_exchanged_pair_at_an_end_is_flagged():
    points = path(GRIDS["even"])
    assert set(flagged(points[[1, 0, *range(2, 10)]])) == {1} and set(flagged(points[[*range(8), 9, 8]])) == {8}


@pytest.mark.parametrize("taken, kept", [(1, 3), (1, 6), (1, 9), (4, 0), (4, 6), (4, 9), (8, 0), (8, 3), (8, 6)])
def test_the_place_nearest_to_its_neighbours_keeps_repeated_weights(taken, kept):
    points = path(GRIDS["even"])
    points[taken] = points[kept]
    assert flagged(points) == {taken: f"has the weights of step{10 + kept}"}


def test_of_neighbours_with_the_same_weights_the_first_stays():
    points = path(GRIDS["doubling"])
    points[[1, 2]] = points[0]
    points[2] *= np.where(points[2] == 0, -1, 1)
    assert flagged(points) == dict.fromkeys([1, 2], "has the weights of step10")


def test_an_early_half_with_the_last_weights_leaves_these_at_the_end():
    points = path(GRIDS["even"])
    points[:5] = points[9]
    assert flagged(points) == dict.fromkeys(range(5), "has the weights of step19")


@pytest.mark.parametrize("gaps", GRIDS.values(), ids=GRIDS)
def test_another_seed_is_flagged_anywhere(gaps):
    points, others = path(gaps), path(gaps, seed=99)
    for place in range(len(points)):
        mixed = points.copy()
        mixed[place] = others[place]
        assert flagged(mixed) == {place: "shares nothing with the other checkpoints"}, place
    mixed = points.copy()
    mixed[2:4] = others[2:4]
    assert set(flagged(mixed)) == {2, 3}


def test_a_late_checkpoint_early_or_a_stranger_with_a_mean_in_common_is_out_of_order():
    points = path(GRIDS["even"])
    fine = points + np.random.default_rng(1).normal(scale=1e-3, size=points.shape)
    assert set(flagged(np.insert(points, 3, fine[8], axis=0))) == {3}
    points, others = points + 1, path(GRIDS["even"], seed=9) + 1
    points[5] = others[5]
    assert set(flagged(points)) == {5}


def test_turns_known_answers():
    corner = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.5, 1.0], [2.0, 1.0]])
    squared, _ = audit.squared_distances(corner)
    np.testing.assert_allclose(audit.turns(squared), [np.nan, 0, 0, 1, np.nan], atol=1e-7)
    assert audit.out_of_order(audit.squared_distances(np.eye(5))[0]) == {}  # 60 degrees everywhere is allowed


def test_two_checkpoints_that_share_nothing_are_not_judged():
    assert flagged(np.random.default_rng(0).normal(size=(2, 4_000))) == {}


def test_known_issues_are_flagged_by_model_and_step_and_left_out_of_the_path():
    every, single = [0, *(2**k for k in range(10)), *range(1_000, 144_000, 1_000)], ["model.safetensors"]
    bad = [step for step in every if audit.known_issue("EleutherAI/pythia-2.8b", step,
                                                       lambda: single).endswith("issues/205)")]
    assert len(bad) == 85 and {0, 512, 53_000, 65_000, 140_000} <= set(bad) and 143_000 not in bad and 66_000 not in bad
    # what issue 205 does not speak of
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert [step for step in every if audit.known_issue("EleutherAI/pythia-2.8b", step, lambda: shards)] == [1, 2]
    assert [step for step in every if audit.known_issue("EleutherAI/pythia-70m-deduped", step,
                                                        lambda: single)] == [1, 2]
    assert audit.known_issue("own/pythia-2.8b", 0, list) == audit.known_issue("mini-pythia", 1, list) == ""
    assert all(url.startswith("https://github.com/") and url.split("/")[-1].isdigit() for *_, url in audit.KNOWN)
    points = path(GRIDS["even"])
    points[4] = path(GRIDS["even"], seed=5)[4]
    issues = [audit.known_issue("EleutherAI/pythia-12b", step, list) for step in (*range(10, 14), 50_000, *range(5))]
    table = audit.judge([""] * 10, issues, points, [""] * 10)
    assert table["flagged"].tolist() == [row in (4, 6, 7) for row in range(10)]
    assert table.loc[4, "reason"] == f"known: {table.loc[4, 'known_issue']}" and table.loc[[3, 5], "turn"].max() < 0.2


# ---- weight files


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small suite that really is trained, a bfloat16 checkpoint a step."""
    folder = tmp_path_factory.mktemp("suites") / "trained"

    class Batches:
        def __getitem__(self, step):
            return torch.cumsum(torch.randint(1, 3, (8, 24), generator=torch.Generator().manual_seed(step)), 1) % 96

    training.train(training.pythia(0, **TINY), Batches(), STEPS[-1], folder.parent / "state.pt", saved_steps=STEPS,
                   save=lambda model, step: training.save_checkpoint(model, folder / f"step{step}"),
                   measure=lambda model: {})
    return folder


@pytest.fixture
def suite(trained, tmp_path):
    """A copy of the trained suite, to be spoilt."""
    folder = tmp_path / "suite"
    for step in STEPS:
        (folder / f"step{step}").mkdir(parents=True)
        save_file(load_file(trained / f"step{step}" / "model.safetensors"),
                  folder / f"step{step}" / "model.safetensors")
    return folder


@pytest.fixture(autouse=True)
def own_places(places):
    """Tables and cache of this test alone."""
    forget()
    yield
    forget()


def put(suite, step, tensors):
    save_file(tensors, suite / f"step{step}" / "model.safetensors")


def tensors(suite, step):
    return load_file(suite / f"step{step}" / "model.safetensors")


def settings(suite, **values):
    return parameters.check({"model": str(suite)} | values)


def left_out(settings):
    """What a notebook with figures over training says of the checkpoints that it leaves out."""
    return Notebook(settings, "04").left_out()


def put_other_seed(suite, step):
    training.save_checkpoint(training.pythia(1, **TINY), suite / f"step{step}")


def test_a_real_training_is_clean_and_its_distances_are_those_of_all_its_tensors(trained):
    table = passes.checkpoints(settings(trained))
    assert table["step"].tolist() == STEPS and not table["flagged"].any() and (table["reason"] == "").all()
    assert (table["repeat_of"] == "").all() and (table["turn"].iloc[1:-1] < 0.2).all()
    assert table["weight_hash"].tolist() == [checkpoints.weight_hash(str(trained), f"step{step}") for step in STEPS]
    flat = [torch.cat([part.flatten().double() for _, part in sorted(tensors(trained, step).items())])
            for step in STEPS]
    expected = [(after - before).norm() / before.norm() for before, after in zip(flat, flat[1:])]
    np.testing.assert_allclose(table["distance"].iloc[1:], expected, rtol=1e-12)
    assert np.isnan(table["distance"].iloc[0])
    assert passes.revisions(settings(trained), "all") == table["revision"].tolist()
    assert left_out(settings(trained)) == "The audit of notebook 02 flags no checkpoint: none is left out."


def test_pieces_shards_and_samples_change_nothing_that_they_should_not(suite, monkeypatch):
    before = passes.checkpoints(settings(suite))
    whole = tensors(suite, 4)
    half = dict(list(whole.items())[::2])
    put(suite, 4, half)
    save_file({name: part for name, part in whole.items() if name not in half}, suite / "step4" / "more.safetensors")
    index = {"weight_map": {name: "model.safetensors" if name in half else "more.safetensors" for name in whole}}
    (suite / "step4" / "model.safetensors.index.json").write_text(json.dumps(index))
    put(suite, 8, tensors(suite, 8) | {"mask": torch.tensor(-math.inf), "causal": torch.ones(2, 2, dtype=torch.bool)})
    monkeypatch.setattr(audit, "PIECE", 100)
    monkeypatch.setattr(audit, "SAMPLE", 2_000)
    after = passes.checkpoints(settings(suite))
    np.testing.assert_allclose(after["distance"], before["distance"], rtol=1e-12)
    np.testing.assert_allclose(after["turn"], before["turn"], atol=0.1)
    assert not after["flagged"].any() and not after["turn"].equals(before["turn"])


def test_checkpoints_with_no_matrix_in_common_are_refused(suite):
    for step in STEPS:
        put(suite, step, {f"own{step}": torch.ones(2, 2)})
    with pytest.raises(ValueError, match="have no weight matrix in common"):
        passes.checkpoints(settings(suite))


def damage_exchange(suite):
    first, second = tensors(suite, 8), tensors(suite, 16)
    put(suite, 8, second)
    put(suite, 16, first)


DAMAGES = {
    "exchanged": (damage_exchange, {8: "out of order", 16: "out of order"}),
    "repeated": (lambda suite: put(suite, 32, tensors(suite, 2)), {32: "has the weights of step2"}),
    "other seed": (lambda suite: put_other_seed(suite, 4), {4: "shares nothing"}),
    "other start": (lambda suite: put_other_seed(suite, 0), {0: "shares nothing"}),
    "other shapes at the start": (lambda suite: put(suite, 0, {"own": torch.ones(3, 3)}),
                                  {0: "has no embed_out.weight"}),
    "other shape": (lambda suite: put(suite, 2, tensors(suite, 2) | {"embed_out.weight": torch.ones(3, 3)}),
                    {2: "has no embed_out.weight like that of the others"}),
    "not finite": (lambda suite: put(suite, 64, tensors(suite,
                                                        64) | {"embed_out.weight": torch.full((96, 16), math.nan)}),
                   {64: "holds values that are not finite"}),
}


@pytest.mark.parametrize("damage, expected", DAMAGES.values(), ids=DAMAGES)
def test_what_is_flagged_is_left_out_of_figures_over_training_and_said_so(suite, capsys, damage, expected):
    damage(suite)
    assert __main__.main(["audit", str(suite)]) == 1
    printed = capsys.readouterr().out
    table = pd.read_parquet(settings(suite).results / "checkpoints.parquet")
    found = table[table["flagged"]].set_index("step")["reason"].to_dict()
    assert found.keys() == expected.keys() and all(found[step].startswith(reason) for step, reason in expected.items())
    assert f"Of the 8 checkpoints of {suite} {len(found)} " in printed
    assert all(reason in printed for reason in found.values())
    good = [f"step{step}" for step in STEPS if step not in found]
    assert passes.revisions(settings(suite), "all") == good and passes.revisions(settings(suite)) == ["step64"]
    assert all(f"step{step} {reason}" in left_out(settings(suite)) for step, reason in found.items())
    asked = settings(suite, steps=STEPS)
    assert passes.revisions(asked, "all") == [f"step{step}" for step in STEPS]
    said = f"Flagged, and measured since it was asked for: step32 {found[32]}." if 32 in found else ""  # the same bytes
    assert left_out(asked) == said
    assert passes.checkpoints(asked)["flagged"].sum() == len(found)  # told, and left in


def test_drawing_reads_the_table_and_needs_none(suite):
    put_other_seed(suite, 4)
    drawn = settings(suite, recompute="never")
    assert len(passes.revisions(drawn, "all")) == len(STEPS) and left_out(drawn) == ""
    passes.checkpoints(settings(suite))
    forget()
    good = [f"step{step}" for step in STEPS if step != 4]
    assert passes.revisions(drawn, "all") == Notebook(drawn, "04").revisions() == good
    assert Notebook(settings(suite), "04").revisions() == good and left_out(drawn) == left_out(settings(suite)) != ""


def test_a_model_without_checkpoints_is_one_sentence(suite, capsys):
    folder = suite / "step16"
    assert __main__.main(["audit", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder} has no training checkpoints here: there is nothing to audit.\n"
    table = passes.checkpoints(settings(folder))
    assert table["revision"].tolist() == [""] and not table["flagged"].any()
    assert passes.revisions(settings(folder), "all") == [None] and left_out(settings(folder)) == ""


def test_bad_input_is_one_sentence_and_exit_code_2(suite, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (suite / "step8" / "model.safetensors").write_bytes(b"x" * 99)
    (suite.parent / "empty" / "step0").mkdir(parents=True)
    for model, words in (("no-such-model", "no folder here"), (str(suite), "The weights in step8 are damaged"),
                         (" ", "model is empty"), (str(suite.parent / "empty"), "holds no weights: neither")):
        assert __main__.main(["audit", model]) == 2
        shown = capsys.readouterr()
        assert words in shown.err and shown.err.count("\n") == 1 and not shown.out
    with pytest.raises(FileNotFoundError, match=r"has no revision 'step3'; it has step0, step1, "):
        passes.asked_for(settings(suite, steps=[3]))


def test_mini_pythia_is_clean(capsys):
    assert __main__.main(["audit", "mini-pythia"]) == 0
    printed = capsys.readouterr().out
    assert "Of the 11 checkpoints of mini-pythia none is flagged." in printed and printed.count("step") == 12
    table = passes.checkpoints(replace(settings("mini-pythia"), steps=()))
    assert table["distance"].iloc[1:].between(0.01, 1).all() and (table["turn"].iloc[1:-1] < 0).all()
