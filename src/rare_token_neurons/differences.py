"""A difference from control groups as evidence: it has to hold against random AND against matched groups.

Of the two differences the one that speaks less for the claim is taken, in the claims table and in the robustness grid.
"""

from dataclasses import replace

import numpy as np

from rare_token_neurons import controls
from rare_token_neurons.claims import Evidence

LEAST_DOCUMENTS = 100


def item(found, positions, *, null=0.0, p=(), missing=0.0):
    """A row with value, low, high and documents as `claims.Evidence`; p: names of its p values; few documents are noted."""
    value, low, high = (float(found[name]) for name in ("value", "low", "high"))
    few = found["documents"] < LEAST_DOCUMENTS
    return Evidence(value, low, high, float(null), tuple(float(found[name]) for name in p), int(positions), float(missing),
                    f"{found['documents']:.0f} documents only" if few else "")


def less_controls(found, side):
    """A difference from control groups: that of the two, random and matched, which speaks less for the claim.

    Parameters
    ----------
    found : row with less_random and less_matched, each with _low and _high; one that is not there has no say.
    side : "greater" or "less", or "absent": the difference that is farther from 0.

    Returns
    -------
    value, low, high : float
    """
    both = [tuple(float(found[column]) for column in _columns(kind)) for kind in controls.KINDS if f"less_{kind}" in found]
    weakness = {"greater": lambda one: -one[1], "less": lambda one: one[2], "absent": lambda one: max(-one[1], one[2])}[side]
    return max((one for one in both if np.isfinite(one).all()), key=weakness, default=(np.nan,) * 3)


def _columns(kind):
    return tuple(f"less_{kind}{end}" for end in ("", "_low", "_high"))


def difference(kind, ends):
    """The columns that `less_controls` reads for a kind of control; ends: value, low, high of the difference."""
    return dict(zip(_columns(kind), ends))


def contrast(found, side, positions, p=("p_random", "p_matched"), missing=0.0):
    """A difference from control groups as evidence: `less_controls` of a row, and a note where matched groups match poorly.

    found : dict or row with the columns of `less_controls`, those named in p, documents, and imbalance_* if known.
    """
    found = dict(found)
    made = item(found | dict(zip(("value", "low", "high"), less_controls(found, side))), positions, p=p, missing=missing)
    notes = [made.note, poor_match(found) if np.isfinite(made.value) else ""]
    return replace(made, note="; ".join(note for note in notes if note))


def poor_match(found):
    """How far matched groups stay from the group in their worst feature, in a few words; "" where they match."""
    missed = {name.removeprefix("imbalance_"): abs(found[name]) for name in found if name.startswith("imbalance_")}
    worst = max(missed, key=missed.get, default=None)
    return f"matched groups differ by {missed[worst]:.2f} SD in {worst}" if worst and missed[worst] > controls.POOR_MATCH else ""


def apart(value, low, high, other, other_low, other_high):
    """A difference with its interval, from two independent values with theirs.

    The squared distances to the limits add up (Zou and Donner 2008, Statistics in Medicine 27, 1693). With the 95 %
    band of control groups as the second interval, the difference is that from one group drawn at random, as in
    `resampling.against`: a group without a property of its own does not differ from the next one.
    """
    difference = value - other
    return (difference, difference - np.hypot(value - low, other_high - other),
            difference + np.hypot(high - value, other - other_low))


def lightest(rows):
    """Of the Hill exponents of several matrices, less those of control groups, the one that speaks least for heavy tails.

    rows : dicts or rows with value, low, high, for each kind of control _mean, _low, _high and p_, positions, documents,
    missing.
    """
    found = []
    for one in map(dict, rows):
        for kind in controls.KINDS:
            columns = ("value", "low", "high", f"{kind}_mean", f"{kind}_low", f"{kind}_high")
            one |= difference(kind, apart(*(float(one.get(column, np.nan)) for column in columns)))
        found.append(contrast(one, "less", one["positions"], missing=one["missing"]))
    return max(found, key=lambda one: one.high)
