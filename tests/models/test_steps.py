"""The names of steps: what public suites call theirs, and what only looks like one."""

import pytest

from rare_token_neurons.models import steps

NAMES = {  # of a branch, a tag or a folder: step, stage
    "step0": (0, ""), "step143000": (143_000, ""),  # Pythia, PolyPythias
    "step1000-tokens4B": (1_000, ""),  # OLMo-1
    "stage1-step1000-tokens5B": (1_000, "stage1"),
    "stage2-ingredient1-step1000-tokens5B": (1_000, "stage2-ingredient1"),
    "checkpoint-400": (400, ""),  # stanford-crfm's tags, folders of a Trainer run
    "step-1200000": (1_200_000, ""), "stage3-step-4720000": (4_720_000, "stage3"),  # SmolLM2, SmolLM3
}
OTHERS = ["main", "step", "step12b", "xstep3", "step-", "-step3", "step3-final", "checkpoint", "stage1",
          "lc-4k-to-32k-step-400", "step\u0663", "step1\n", "", None]


@pytest.mark.parametrize("name, expected", NAMES.items())
def test_a_step_and_its_stage_are_read_from_every_name(name, expected):
    assert (steps.step_of(name), steps.stage_of(name)) == expected and steps.path([name, "main"]) == [name]


@pytest.mark.parametrize("name", OTHERS)
def test_other_names_are_no_steps(name):
    assert steps.step_of(name) is None and steps.path([name]) == []


OLMO2 = ["stage2-ingredient2-step1000-tokens5B", "main", "stage1-step3000-tokens13B", "step2000-tokens9B",
         "stage2-ingredient1-step1000-tokens5B", "stage1-step1000-tokens5B", "stage2-ingredient10-step1000-tokens5B",
         "stage2-ingredient1-step4000-tokens17B"]
SMOLLM3 = ["stage2-step-300", "stage1-step-100", "stage10-step-500", "stage9-step-400", "stage1-step-200"]


def test_the_first_stage_is_taken_with_the_names_that_have_none_and_another_on_request():
    assert steps.path(OLMO2) == ["stage1-step1000-tokens5B", "step2000-tokens9B", "stage1-step3000-tokens13B"]
    assert steps.left(OLMO2) == ["stage2-ingredient1", "stage2-ingredient2", "stage2-ingredient10"]
    assert steps.path(OLMO2, "stage2-ingredient1") == ["stage2-ingredient1-step1000-tokens5B",
                                                       "stage2-ingredient1-step4000-tokens17B"]


def test_stages_that_go_on_counting_are_one_path():
    assert [steps.step_of(name) for name in steps.path(SMOLLM3)] == [100, 200, 300, 400, 500]
    assert not steps.left(SMOLLM3)
    assert steps.path(SMOLLM3, "stage1") == ["stage1-step-100", "stage1-step-200"]
    assert steps.path([*SMOLLM3, "stage11-step-500"])[-1] == "stage10-step-500"  # it begins where another one ends


@pytest.mark.parametrize("names, words", [
    (["step1000", "step1000-tokens4B"], "^step 1000 has two names, step1000 and step1000-tokens4B$"),
    (["stage1-step5", "step-5"], "^step 5 has two names, step-5 and stage1-step5$"),
    (["step5", "checkpoint-5", "step6"], "^step 5 has two names, checkpoint-5 and step5$")])
def test_two_names_of_one_step_are_both_said(names, words):
    with pytest.raises(ValueError, match=words):
        steps.path(names)
    if "stage1-step5" in names:
        assert steps.path(names, "stage1") == ["stage1-step5"]


def test_a_stage_that_is_not_there_is_said_with_those_that_are():
    with pytest.raises(ValueError, match="^there is no stage 'stage3'; there is stage1, stage2-ingredient1, "):
        steps.path(OLMO2, "stage3")
    with pytest.raises(ValueError, match="^there is no stage 'stage1'; there is none$"):
        steps.path(["step0"], "stage1")
