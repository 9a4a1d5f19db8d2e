"""The names that suites give their training steps: a branch or tag on the hub, a folder of a suite on the disk."""

import re

NAME = re.compile(r"(?:(?P<stage>stage\d+(?:-\w+)*)-)?(?:step-?|checkpoint-)(?P<step>\d+)(?:-tokens[\d.]+[KMBT])?",
                  re.ASCII)


def step_of(revision):
    """The training step in a revision's name ("step512", "stage1-step-512", "checkpoint-512" -> 512), or None."""
    found = NAME.fullmatch(revision or "")
    return int(found["step"]) if found else None


def stage_of(revision):
    """The stage in a step's name ("stage2-ingredient1-step512-tokens3B" -> "stage2-ingredient1"), "" without one."""
    return NAME.fullmatch(revision)["stage"] or ""


def stages(names):
    """The names of steps among revisions' names, by stage ("" without one) and ascending step: dict of str to list."""
    named = sorted((name for name in names if step_of(name) is not None), key=lambda name: (step_of(name), name))
    found = sorted({stage_of(name) for name in named}, key=_natural)
    return {stage: [name for name in named if stage_of(name) == stage] for stage in found}


def _natural(stage):
    """ "stage10" after "stage9"."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", stage)]


def path(names, stage=""):
    """The names of one course of training, by ascending step.

    Parameters
    ----------
    names : revisions' names, those of steps and others.
    stage : which one; "" is the first, with the names without a stage and the later stages that go on with its count.

    Raises
    ------
    ValueError
        There is no such stage; two names are left for one step.
    """
    found = stages(names)
    if stage and stage not in found:
        raise ValueError(f"there is no stage {stage!r}; there is {', '.join(filter(None, found)) or 'none'}")
    bare, *others = [found[stage]] if stage else [found.pop("", []), *found.values()]
    chosen = sorted(bare + others.pop(0) if others else bare, key=step_of)
    for later in others:
        chosen += later if step_of(later[0]) > step_of(chosen[-1]) else []
    for one, other in zip(chosen, chosen[1:]):
        if step_of(one) == step_of(other):
            raise ValueError(f"step {step_of(one)} has two names, {one} and {other}")
    return chosen


def left(names, stage=""):
    """The stages that `path` leaves out, in order."""
    chosen = set(path(names, stage))
    return [other for other, members in stages(names).items() if not chosen & set(members)]
