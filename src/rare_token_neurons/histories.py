"""A model's training history: the weights of each checkpoint beside the one before (the table `checkpoints`), and
`python -m rare_token_neurons audit MODEL`.

Weight files are read in pieces, two checkpoints at a time; of each one a sample of coordinates stays in memory.
"""

import argparse
import contextlib
import sys
import zlib
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open

from rare_token_neurons import audit, checkpoints, parameters, tables
from rare_token_neurons.paths import shown

SAMPLE = 2**18  # coordinates of a sketch: a squared distance is known to 0.3 %
PIECE = 2**20  # elements read at once
FLOATING = ("BF16", "F16", "F32", "F64")


def revisions(settings):
    """The settings' `steps`, or all checkpoints of the model, as revisions; [None] for a model without any.

    Raises
    ------
    FileNotFoundError
        A step that the model does not have.
    """
    known = checkpoints.revisions(settings.model)
    wanted = [f"step{step}" for step in settings.steps]
    if missing := [name for name in wanted if name not in known]:
        raise FileNotFoundError(checkpoints.no_revision(settings.model, missing[0]))
    return wanted or known or [None]


# ---- weight files


@contextlib.contextmanager
def opened(folder):
    """{name: safetensors slice} of a checkpoint's floating-point tensors but single numbers (mask constants of old files)."""
    with contextlib.ExitStack() as stack:
        found = {}
        for path in sorted(folder.glob("*.safetensors")):
            handle = stack.enter_context(safe_open(path, framework="pt"))
            parts = {name: handle.get_slice(name) for name in handle.keys()}
            found |= {name: part for name, part in parts.items() if part.get_dtype() in FLOATING and part.get_shape()}
        yield found


def matrices(parts):
    """{name: number of elements} of the tensors that a sketch samples: norm gains and biases of unrelated models are alike."""
    return {name: int(np.prod(part.get_shape())) for name, part in parts.items() if len(part.get_shape()) > 1}


def places(parts, rate):
    """The coordinates of a sketch: {name: sorted flat indices} of the matrices, the same for the same name, size and rate."""
    found = {}
    for name, size in matrices(parts).items():
        rng = np.random.default_rng([zlib.crc32(name.encode()), size])
        found[name] = np.sort(rng.choice(size, round(rate * size), replace=False, shuffle=False))
    return found


def pieces(part):
    """(place of its first element, float64 tensor) of consecutive rows of a safetensors slice."""
    length, *width = part.get_shape()
    width = int(np.prod(width))
    rows = max(1, PIECE // max(1, width))
    for start in range(0, length, rows):
        yield start * width, part[start : start + rows].double().flatten()


def compare(parts, before, chosen):
    """One checkpoint beside another, tensor by tensor.

    Parameters
    ----------
    parts, before : what `opened` gives; before may be {}.
    chosen : what `places` gives.

    Returns
    -------
    squared norm of all tensors; squared distance over the tensors that both have (0.0 without any); sketch, a dict of
    (name, shape) to float32 (coordinates,)
    """
    norm, distance, sketch = 0.0, 0.0, {}
    for name, part in sorted(parts.items()):
        shape, taken = tuple(part.get_shape()), []
        same = name in before and tuple(before[name].get_shape()) == shape
        others = pieces(before[name]) if same else None
        for start, values in pieces(part):
            norm += float(values.square().sum())
            distance += float((values - next(others)[1]).square().sum()) if same else 0.0
            if name in chosen:
                low, high = np.searchsorted(chosen[name], [start, start + len(values)])
                taken.append(values[torch.from_numpy(chosen[name][low:high] - start)].float().numpy())
        if taken:
            sketch[name, shape] = np.concatenate(taken)
    return norm, distance, sketch


def together(model, sketches):
    """Sketches over the matrices that more than half of the checkpoints have, and which of these one lacks.

    Parameters
    ----------
    sketches : list of dicts, as `compare` gives them.

    Returns
    -------
    float32 (n, coordinates), zeros where a checkpoint lacks one; list of str, the first such name or ""
    """
    sizes = {key: len(part) for sketch in sketches for key, part in sketch.items()}
    shared = [key for key in sorted(sizes) if 2 * sum(key in sketch for sketch in sketches) > len(sketches)]
    if not shared:
        raise ValueError(f"The checkpoints of {model} have no weight matrix in common.")
    rows = [np.concatenate([sketch.get(key, np.zeros(sizes[key], dtype=np.float32)) for key in shared]) for sketch in sketches]
    return np.stack(rows), [next((key[0] for key in shared if key not in sketch), "") for sketch in sketches]


def walk(model, names, *, keep_weights=True):
    """Distances and sketches of all checkpoints, read in order, two at a time.

    Parameters
    ----------
    names : list of revisions, two or more.
    keep_weights : False deletes what was downloaded of the checkpoint before the last one.

    Returns
    -------
    distances, float64 (n,): from the checkpoint before, |difference| / |before| over all floating-point tensors (NaN for
    the first); sketches, float32 (n, coordinates); unfit, list of str (see `audit.judge`)

    Raises
    ------
    ValueError
        A damaged file; no matrix that most checkpoints have.
    """
    distances, sketches, finite, before, length, rate = [], [], [], None, np.nan, None
    held = contextlib.ExitStack()
    for name in names:
        lent = contextlib.ExitStack()
        folder = lent.enter_context(checkpoints.lent(model, name, keep_weights=keep_weights))
        try:
            with opened(folder) as parts, opened(before) if before else contextlib.nullcontext({}) as earlier:
                rate = rate or min(1.0, SAMPLE / max(1, sum(matrices(parts).values())))
                norm, distance, sketch = compare(parts, earlier, places(parts, rate))
        except (SafetensorError, EOFError) as error:
            raise ValueError(f"The weights in {shown(folder)} are damaged: {error}.") from None
        distances.append(np.sqrt(distance) / length)
        sketches.append(sketch)
        finite.append(bool(np.isfinite(norm)))
        before, length = folder, np.sqrt(norm)
        held.close()
        held = lent
    held.close()
    rows, lacking = together(model, sketches)
    unfit = [f"has no {name} like that of the others" if name else "" if whole else "holds values that are not finite"
             for name, whole in zip(lacking, finite)]
    return np.array(distances), rows, unfit


# ---- the table


def weights(settings):
    """What each checkpoint is: the table `checkpoints`.

    Returns
    -------
    DataFrame, one row a checkpoint: revision, step, weight_hash (sha256), distance (from the row before, relative to its
    norm) and the columns of `audit.judge`: repeat_of, turn, known_issue, flagged, reason
    """

    def compute():
        names = revisions(settings)
        table = pd.DataFrame({"revision": [name or "" for name in names],
                              "step": pd.array([checkpoints.step_of(name) for name in names], dtype="Int64"),
                              "weight_hash": [checkpoints.weight_hash(settings.model, name) for name in names]})
        several = len(names) > 1
        distances, sketches, unfit = (walk(settings.model, names, keep_weights=settings.keep_weights) if several
                                         else (np.nan, np.zeros((1, 1)), [""]))
        judged = audit.judge(settings.model, names, [checkpoints.step_of(name) for name in names], sketches, unfit)
        return pd.concat([table.assign(distance=distances), judged], axis=1)

    inputs = {} if settings.recompute == "never" else {str(name): checkpoints.weight_hash(settings.model, name)
                                                       for name in revisions(settings)}
    return tables.stage(settings, "checkpoints", compute, reads=("model", "steps"), inputs=inputs, modules=["histories"])


def _audited(settings):
    """Whether figures over training ask the audit: steps asked for stay, and drawing may find no table."""
    there = settings.recompute != "never" or (settings.results / "checkpoints.parquet").exists()
    return there and not settings.steps and revisions(settings) != [None]


@lru_cache(maxsize=1)
def flagged(settings):
    """{revision: reason} of the checkpoints that figures over training do without; {} where `steps` are asked for."""
    if not _audited(settings):
        return {}
    table = weights(settings)
    return table[table["flagged"]].set_index("revision")["reason"].to_dict()


def left_out(settings):
    """One sentence on the checkpoints that figures over training do without; "" where there was no audit."""
    if not _audited(settings):
        return ""
    found = [f"{revision} {reason}" for revision, reason in flagged(settings).items()]
    return (f"**Left out**, since the audit of notebook 02 flags {'it' if len(found) == 1 else 'them'}: {'; '.join(found)}."
            if found else "The audit of notebook 02 flags no checkpoint: none is left out.")


def main(argv=None):
    """Command line of `audit`.

    Returns
    -------
    int: 0; 1 when a checkpoint is flagged; 2 when there is no such model, or a file is damaged
    """
    parser = argparse.ArgumentParser(
        prog="python -m rare_token_neurons audit",
        description="Hash, step and distance in weight space of every checkpoint of a model; repeats, strangers, checkpoints "
        "out of order and known issues are flagged. Exit code 1 when there is one.")
    parser.add_argument("model", metavar="MODEL", help=parameters.HELP["model"])
    try:
        settings = parameters.check({"model": parser.parse_args(argv).model})
        table = weights(settings)
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    if table["step"].notna().any():
        shortened = table.assign(weight_hash=table["weight_hash"].str[:12]).drop(columns=["known_issue", "reason"])
        print(shortened.to_string(index=False, na_rep="", float_format="{:.4f}".format), "\n")
    print(audit.sentence(settings.model, table))
    return int(table["flagged"].any())
