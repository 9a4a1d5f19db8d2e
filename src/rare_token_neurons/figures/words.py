"""Numbers in words, as several drawing files say them: p values, intervals, shares, and a value beside its controls."""

import numpy as np

from rare_token_neurons.statistics import controls

UNTOLD = "cannot be tested"  # in place of the word of a head that has none
PARTS = ("head", "law", "decay")  # of a curve, in columns


def named(fit):
    """What the head of a fit is called, by the column `word` alone: "plateau", ..., or "cannot be tested"."""
    return fit["word"] or UNTOLD


def between(row, name="", form=".2f"):
    """The ends of an interval, "0.70 to 0.90". row : with name_low and name_high, or low and high ; form : a format."""
    low, high = (row[f"{name}_{end}".lstrip("_")] for end in ("low", "high"))
    return f"{low:{form}} to {high:{form}}"


def percent(share, digits=0):
    """A share in per cent, as every text here writes it: "9.6 %". share : 0 to 1 ; digits : after the point."""
    return f"{100 * share:.{digits}f} %"


def many(count, one, several=None):
    """A count with its noun: "1 neuron", "1,046 neurons". one : the singular ; several : a plural without an s."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def stretches(fit):
    """The shares of head, law and decay in per cent of the neurons: "3.0 / 12.0 / 85.0"."""
    return " / ".join(f"{100 * fit[f'{part}_share']:.1f}" for part in PARTS)


def level(p, floor=np.nan, of="null curves"):
    """A p value in words: "p = 0.034", "no p value"; one at its floor as what it is: "none of 200 null curves".

    floor : the smallest p that the draws can give, 1 / (draws + 1) ; of : what was drawn.
    """
    if np.isfinite(floor) and p <= floor * (1 + 1e-9):
        return f"none of {1 / floor - 1:,.0f} {of}"
    return "no p value" if not np.isfinite(p) else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def texts(numbers, form):
    """Numbers as a table shows them: a Series of str, "" where there is none. form : a format"""
    return numbers.map(lambda number: "" if np.isnan(number) else f"{number:{form}}")


# ---- a group beside its controls


def by_draws(p, draws, kind, sides=1):
    """An empirical p value in words, one at its floor as what it is.

    draws : control groups ; sides : of the test, 1 or 2.
    """
    if p <= sides / (draws + 1) * (1 + 1e-9):
        return f"none of {int(draws):,} {kind} groups is as far out"
    return level(p)


def chance(row, kind):
    """How often a control group is as far out as the group, in words: "p = 0.034", "none of 1,000 random groups"."""
    size = row["size"] * (2 if " and " in row["group"] else 1)  # of boost and suppress neurons together
    draws = controls.DRAWS if size <= controls.LARGE else controls.LARGE_DRAWS
    return by_draws(row[f"p_{kind}"], draws, kind, 2 if row["side"] == "two-sided" else 1)


def by_control(row, say, column="{}", then="; "):
    """Words on each kind of control of a row, or that it cannot be used: where the row has no number in `column`.

    say : function of a kind, to words ; then : between the kinds.
    """
    return then.join(say(kind) if np.isfinite(row[column.format(kind)]) else f"{kind} groups cannot be used"
                     for kind in controls.KINDS)


def among(row, say):
    """What the control groups of a row have, in short: "random groups 5 %, matched groups 9 %"; say : of a number."""
    return ", ".join(f"{kind} groups {say(row[kind])}" for kind in controls.KINDS if np.isfinite(row[kind]))


def beside(row):
    """A value with its interval, and its controls: "**0.0312** (0.0203 to 0.0411; random groups 0.0021, ...)"."""
    told = by_control(row, lambda kind: f"{kind} groups {row[kind]:.3g}, {chance(row, kind)}")
    return f"**{row['value']:.3g}** ({between(row, form='.3g')}; {told})"


def when(steps, out):
    """At which checkpoints something holds, for a title: "at no step", "from step 64 on", "at 3 of 11 steps".

    steps : ascending ; out : (steps,) bool.
    """
    steps, there = list(steps), [step for step, beyond in zip(steps, out) if beyond]
    if not there or there == steps:
        return "at no step" if not there else "at every step" + ", even untrained" * bool(steps[0] == 0)
    if there == steps[-len(there):]:
        return f"from step {there[0]:,} on"
    return f"at {len(there)} of {len(steps)} steps" + ", not at the last" * bool(there[-1] != steps[-1])


def against(row, what=""):
    """Where a value lies by the 95 % bands of its controls, in words: "below random, like matched groups".

    row : mapping with value, random_low, random_high, and the same of matched (NaN: no matched groups) ; what : the
    value's name, which makes it "lower dimension than random groups".
    """
    below, like, above = "below", "like", "above"
    if what:
        below, like, above = f"lower {what} than", f"{what} like", f"higher {what} than"
    ends = ((kind, row[f"{kind}_low"], row[f"{kind}_high"]) for kind in controls.KINDS)
    sides = (f"{below if row['value'] < low else above if row['value'] > high else like} {kind}"
             for kind, low, high in ends if np.isfinite(low))
    return f"{', '.join(sides)} groups"


def sentence(words):
    """The same with a capital letter, the rest as it is."""
    return words[:1].upper() + words[1:]
