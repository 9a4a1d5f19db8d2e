"""Are checkpoints what their names say? From weight files to sketches of them, and from these to flags, a reason each.

The rules, in the order in which they take checkpoints out of the path (none has a number that was fitted to data):
1. known: a public issue reports this revision (`KNOWN`).
2. unfit: a weight that is not finite, a tensor that the other checkpoints do not share, no weights at all, or, byte for
   byte, the weights of main in a checkpoint that is not the last.
3. repeated: the weights of another revision. The place nearest to its undisputed neighbours keeps them.
4. a stranger: no more alike than independent draws (cosine within 4 standard errors of 0) to all of the run that links
   most checkpoints. Another seed is that: its initial weights never leave it.
5. out of order: seen from it, the checkpoints before and after lie in one direction, at less than 60 degrees. A path that
   goes on has 180 degrees, a random walk 90, and three checkpoints with nothing in common, the farthest that training can
   take neighbours apart, an equilateral triangle. The sharpest turn is taken out first, until none is left.
What this cannot see: which of two checkpoints is wrong, and a trained stranger at an end of the path whose weights share a
mean with the run's. What it takes for granted: checkpoints near enough for weight decay not to have wiped out the one
before. (mini-pythia's turns lie between -0.68 and -0.04.)
"""

import contextlib
import re
import zlib

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from scipy.sparse.csgraph import connected_components

from rare_token_neurons.models import weights
from rare_token_neurons.paths import shown

TURN = 0.5  # cosine of 60 degrees
CHANCE = 4.0  # standard errors
THOUSANDS = range(1_000, 144_000, 1_000)
LATE = {*range(66_000, 144_000, 1_000)} - {70_000, 80_000, 90_000, 100_000, 103_000, 110_000, 120_000, 130_000, 140_000}
PYTHIA, NEOX = (f"https://github.com/EleutherAI/{name}/issues/" for name in ("pythia", "gpt-neox"))
KNOWN = (  # pattern of the model's name, steps, file ("": any), what is wrong, the public issue that reports it
    (r"EleutherAI/pythia-2\.8b", {0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, *THOUSANDS} - LATE, weights.SINGLE,
     "weights of the end of training", f"{PYTHIA}205"),
    (r"EleutherAI/pythia-12b", {50_000, 58_000}, "", "first weight file of the last checkpoint", f"{PYTHIA}206"),
    (r"EleutherAI/pythia-160m-weight-seed[12]", {0}, "", "not what the later steps started from", f"{PYTHIA}203"),
    (r"EleutherAI/pythia-.*", {1}, "", "weights of step 0 (the first learning rate is 0)", f"{NEOX}1373"),
    (r"EleutherAI/pythia-.*", {2}, "", "weights of step 0", f"{PYTHIA}198"),
)


def known_issue(model, step, names):
    """What a public issue says is wrong with a checkpoint, with its address; "" where none is known.

    Parameters
    ----------
    model : str, a hub id ; step : int or None ; names : function that returns the names of its weight files.
    """
    found = (f"{what} ({url})" for pattern, steps, file, what, url in KNOWN
             if step in steps and re.fullmatch(pattern, model) and (not file or file in names()))
    return next(found, "")


def squared_distances(sketches):
    """Squared distances and cosines between sketches.

    Parameters
    ----------
    sketches : (checkpoints, coordinates), the same coordinates of each.

    Returns
    -------
    float64 (checkpoints, checkpoints), twice
    """
    points = np.asarray(sketches, dtype=np.float64)
    gram = points @ points.T
    length = np.sqrt(np.diagonal(gram))
    squared = np.maximum(np.diagonal(gram)[:, None] + np.diagonal(gram) - 2 * gram, 0)
    return squared, gram / np.maximum(length[:, None] * length, np.finfo(float).tiny)


def turns(squared):
    """Cosine of the angle at each checkpoint between its directions to the one before and the one after.

    Parameters
    ----------
    squared : (n, n) squared distances in the order of training.

    Returns
    -------
    float64 (n,): -1 straight on, 0 a random walk, above 0.5 out of order, 1 there and back; NaN at both ends
    """
    found, gaps = np.full(len(squared), np.nan), np.diagonal(squared, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found[1:-1] = (gaps[:-1] + gaps[1:] - np.diagonal(squared, 2)) / (2 * np.sqrt(gaps[:-1] * gaps[1:]))
    return found


def out_of_order(squared):
    """Checkpoints that the path must do without to have no turn left, the sharpest first.

    Of two neighbours whose exchange mends the path as well, both are out of order.

    Parameters
    ----------
    squared : (n, n) squared distances in the order of training.

    Returns
    -------
    dict of int to float: place, and its turn when it was taken out
    """
    path, found = list(range(len(squared))), {}
    while len(path) > 2:
        bends = np.nan_to_num(turns(squared[np.ix_(path, path)]), nan=-1.0)
        worst = int(np.argmax(bends))
        if bends[worst] <= TURN:
            break
        taken = {worst} | {other for other in (worst - 1, worst + 1) if _exchange_mends(squared, path, worst, other)}
        found |= {path[place]: float(bends[place]) for place in taken}
        path = [row for place, row in enumerate(path) if place not in taken]
    return found


def _exchange_mends(squared, path, one, other):
    """Whether two neighbours, neither at an end, leave no turn around them when they change places."""
    first = min(one, other)
    if first < 1 or first + 2 >= len(path):
        return False
    around = path[max(0, first - 2) : first] + [path[first + 1], path[first]] + path[first + 2 : first + 4]
    return bool((np.nan_to_num(turns(squared[np.ix_(around, around)]), nan=-1.0) <= TURN).all())


def strangers(cosine, coordinates):
    """Checkpoints outside the run that links more than half of all; none where no run does.

    Parameters
    ----------
    cosine : (n, n) between sketches ; coordinates : int, of each sketch.

    Returns
    -------
    bool (n,)
    """
    _, run = connected_components(cosine > CHANCE / np.sqrt(coordinates), directed=False)
    size = np.bincount(run)
    return run != size.argmax() if 2 * size.max() > len(run) else np.zeros(len(run), dtype=bool)


def misplaced(first, squared):
    """Repeated checkpoints less the one of each set that lies nearest to its undisputed neighbours.

    Parameters
    ----------
    first : int (n,), the first checkpoint with the same weights ; squared : (n, n) squared distances.

    Returns
    -------
    dict of int to int: a place, and the place that keeps its weights
    """
    own = np.flatnonzero(np.bincount(first, minlength=len(first))[first] == 1)  # weights that nobody else has
    found = {}
    for start in np.unique(first):
        members = np.flatnonzero(first == start)
        near = [[*own[own < place][-1:], *own[own > place][:1]] for place in members]
        apart = [np.sqrt(squared[place, others]).mean() if others else 0.0 for place, others in zip(members, near)]
        kept = int(members[np.argmin(apart)])
        found |= {int(place): kept for place in members if place != kept}
    return found


# ---- the rules together


def judge(revisions, issues, sketches, unfit):
    """Flag the checkpoints that are not what their names say (the rules are at the top of this module).

    Parameters
    ----------
    revisions : list of str, in the order of training ; issues : list of str, what is known of each (see `known_issue`).
    sketches : float (n, coordinates), the same sample of each checkpoint's weights.
    unfit : list of str, why a checkpoint's weights cannot be compared, "" where they can.

    Returns
    -------
    DataFrame, one row a checkpoint: repeat_of (an earlier revision with the same weights, or ""), turn (cosine, see
    `turns`; NaN at the ends and where it was not measured), known_issue (what, and the issue's address), flagged, reason
    """
    table = pd.DataFrame({"repeat_of": "", "turn": np.nan, "known_issue": issues,
                          "flagged": False, "reason": ""}, index=range(len(revisions)))
    fit = np.flatnonzero([not word for word in unfit])
    sketches = np.where(np.isfinite(sketches), sketches, 0) + 0.0  # no negative zeros
    first = pd.Series([row.tobytes() for row in sketches[fit]], index=fit)
    first = first.map(dict(zip(first[::-1], fit[::-1])))
    table.loc[fit, "repeat_of"] = ["" if row == place else revisions[row] for place, row in first.items()]
    table["reason"] = [f"known: {issue}" if issue else word for issue, word in zip(table["known_issue"], unfit)]
    squared, cosine = squared_distances(sketches)

    path = np.flatnonzero(table["reason"] == "")
    ranks = {row: place for place, row in reversed(list(enumerate(first[path])))}
    for place, kept in misplaced(first[path].map(ranks).to_numpy(dtype=int), squared[np.ix_(path, path)]).items():
        table.loc[path[place], "reason"] = f"has the weights of {revisions[path[kept]]}"
    path = np.flatnonzero(table["reason"] == "")
    alone = path[strangers(cosine[np.ix_(path, path)], sketches.shape[1])]
    table.loc[alone, "reason"] = "shares nothing with the other checkpoints"
    path = np.flatnonzero(table["reason"] == "")
    found = {path[place]: turn for place, turn in out_of_order(squared[np.ix_(path, path)]).items()}
    table.loc[list(found), "reason"] = "out of order: the checkpoints before and after it lie in one direction"
    path = np.flatnonzero(table["reason"] == "")
    table.loc[path, "turn"] = turns(squared[np.ix_(path, path)])
    table.loc[list(found), "turn"] = list(found.values())
    return table.assign(flagged=table["reason"] != "")


def sentence(model, table):
    """What an audit found, in one sentence.

    Parameters
    ----------
    table : DataFrame with revision, flagged, reason.
    """
    bad = table[table["flagged"]]
    if list(table["revision"]) == [""]:
        return f"{model} has no training checkpoints here: there is nothing to audit."
    if bad.empty:
        return f"Of the {len(table):,} checkpoints of {model} none is flagged."
    listed = "; ".join(f"{row.revision} {row.reason}" for row in bad.itertuples())
    return f"Of the {len(table):,} checkpoints of {model} {len(bad):,} {'is' if len(bad) == 1 else 'are'} flagged: {listed}."


# ---- weight files

SAMPLE = 2**18  # coordinates of a sketch: a squared distance is known to 0.3 %
PIECE = 2**20  # elements read at once
FLOATING = ("BF16", "F16", "F32", "F64")


@contextlib.contextmanager
def opened(paths):
    """{name: safetensors slice} of floating-point tensors in weight files, without single numbers (masks of old files)."""
    with weights.opened(paths) as parts:
        yield {name: part for name, part in parts.items() if part.get_dtype() in FLOATING and part.get_shape()}


def matrices(parts):
    """{name: number of elements} of the tensors that a sketch samples; gains and biases of unrelated models are alike."""
    return {name: int(np.prod(part.get_shape())) for name, part in parts.items() if len(part.get_shape()) > 1}


def places(parts, rate):
    """Coordinates of a sketch: {name: sorted flat indices} of the matrices, the same for the same name, size and rate."""
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
                taken.append(values[chosen[name][low:high] - start].float().numpy())
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
    rows = [np.concatenate([sketch.get(key, np.zeros(sizes[key], dtype=np.float32)) for key in shared])
            for sketch in sketches]
    return np.stack(rows), [next((key[0] for key in shared if key not in sketch), "") for sketch in sketches]


def walk(model, names, *, keep_weights=True, pickles="refuse"):
    """Distances and sketches of all checkpoints, read in order, two at a time.

    Parameters
    ----------
    names : list of revisions, two or more.
    keep_weights : False deletes what was downloaded of the checkpoint before the last one.
    pickles : "refuse" or "convert".

    Returns
    -------
    distances, float64 (n,): from the checkpoint before, |difference| / |before| over all floating-point tensors (NaN for
    the first); sketches, float32 (n, coordinates); unfit, list of str (see `judge`)

    Raises
    ------
    ValueError
        A damaged file; no matrix that most checkpoints have.
    """
    from rare_token_neurons.models import checkpoints  # loads torch, and what only judges or tells needs none

    distances, sketches, finite, before, length, rate = [], [], [], (), np.nan, None
    held = contextlib.ExitStack()
    for name in names:
        lent = contextlib.ExitStack()
        there = lent.enter_context(checkpoints.lent(model, name, keep_weights=keep_weights, pickles=pickles))
        try:
            with opened(there.weights) as parts, opened(before) as earlier:
                rate = rate or min(1.0, SAMPLE / max(1, sum(matrices(parts).values())))
                norm, distance, sketch = compare(parts, earlier, places(parts, rate))
        except (SafetensorError, EOFError) as error:
            raise ValueError(f"The weights in {shown(there.folder)} are damaged: {error}.") from None
        distances.append(np.sqrt(distance) / length)
        sketches.append(sketch)
        finite.append(bool(np.isfinite(norm)))
        before, length = there.weights, np.sqrt(norm)
        held.close()
        held = lent
    held.close()
    rows, lacking = together(model, sketches)
    unfit = [f"has no {name} like that of the others" if name else "" if whole else "holds values that are not finite"
             for name, whole in zip(lacking, finite)]
    return np.array(distances), rows, unfit
