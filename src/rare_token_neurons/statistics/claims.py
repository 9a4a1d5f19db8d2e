"""The paper's claims, what would show each, how a table's row becomes evidence, and the rule from evidence to a verdict.

Statistics, paper values, directions, margins and the rule were fixed before the first full run. What a claim is compared
with was made stricter later (C1: ranked half-normal numbers, and of two kinds of control groups the less favourable).
Four verdicts: "reproduced", "partly", "not reproduced", "cannot be tested".
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

from rare_token_neurons.statistics import controls

REPRODUCED, PARTLY, NOT, UNTESTED = VERDICTS = ("reproduced", "partly", "not reproduced", "cannot be tested")
LEAST_POSITIONS = 100
MOST_MISSING = 0.2  # share of failed fits
WINDOW = 20  # tokens that a prediction sees, where single layers are ablated
SIGNIFICANT = 0.05
GROUPS = ("random groups", "matched groups")


@dataclass(frozen=True)
class Claim:
    """One testable part of a claim.

    id: "C5"; part: "" or what distinguishes the parts of a claim; statistic: what is measured, in words;
    direction: "greater" or "less" than the null, or "absent" (no difference from the null beyond `margin`);
    paper: its value, NaN where it gives none, and paper_note in words; controls: what each p value is against;
    needs: claims that must be at least partly reproduced for this one to have a meaning.
    """

    id: str
    statistic: str
    direction: str
    paper: float = float("nan")
    paper_note: str = ""
    part: str = ""
    margin: float = float("nan")
    controls: tuple[str, ...] = GROUPS
    needs: tuple[str, ...] = ()

    @property
    def name(self):
        """ "C5 within": id and part."""
        return f"{self.id} {self.part}".strip()


@dataclass(frozen=True)
class Evidence:
    """What was measured for one part of a claim; NaN where it could not be had.

    value, low, high: the statistic and its 95 % interval over documents; null: its value under the null hypothesis
    (0 for a contrast); p: one p value per control of the claim; positions: scored positions behind it; missing: share
    of failed fits; note: a sentence for the table.
    """

    value: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    null: float = float("nan")
    p: tuple[float, ...] = ()
    positions: int = 0
    missing: float = 0.0
    note: str = ""


# The margins of the claims of absence: a third of the paper's plateau (1.7 % of the neurons), and the width of the
# range in which the follow-up's random groups lie (modularity 0.04 to 0.09).
CLAIMS = (
    Claim("C1", "influence of the rare group over the median neuron's, rare targets", "greater",
          paper_note="the top 1.7 % far above the rest", controls=("half-normal order statistics",)),
    Claim("C2", "share of the neurons in the plateau, rare targets", "greater", 0.017,
          controls=("lognormal order statistics", "half-normal order statistics")),
    Claim("C3", "plateau share at the last checkpoint less that at step 0", "greater", 0.017, part="emergence",
          controls=("lognormal order statistics", "half-normal order statistics")),
    Claim("C3", "plateau share at step 0", "absent", 0.0, part="before training", margin=0.005, needs=("C3 emergence",)),
    Claim("C4", "effective dimension over group size, less that of control groups", "less", 0.49 - 0.56),
    Claim("C5", "mean correlation inside the group, less that in control groups", "greater", part="within",
          paper_note="positive inside, near 0 for random neurons"),
    Claim("C5", "mean correlation with the other neurons, less that of control groups", "less", part="between",
          paper_note="negative"),
    Claim("C6", "Hill exponent of the group's W_in, less that of control groups", "less",
          paper_note="below random groups"),
    Claim("C7", "share of the neurons in the plateau, common targets", "absent", 0.0, margin=0.005, needs=("C2",)),
    Claim("C8", "modularity of the group's correlations, less that of control groups", "absent", 0.01, margin=0.05,
          paper_note="0.05 to 0.11 against 0.04 to 0.09", needs=("C2",)),
)


def adjust(p):
    """Benjamini-Hochberg over the p values that are there: any shape, NaN stays NaN."""
    p = np.asarray(p, dtype=np.float64)
    there, adjusted = np.isfinite(p), np.full(p.shape, np.nan)
    if there.any():
        adjusted[there] = multipletests(p[there], method="fdr_bh")[1]
    return adjusted


def verdict(claim, evidence, adjusted):
    """The verdict on one part of a claim, and the reason in a few words.

    A difference is "reproduced" where the value lies on the paper's side, its interval excludes the null, and every
    control's adjusted p value is below 0.05; "partly" where a control, or all of them, do not agree; without direction
    and interval it is "not reproduced". An absence is "reproduced" where the whole interval lies within the margin
    around the null, "not reproduced" where none of it does; in between the measurement is too coarse to say.

    Parameters
    ----------
    claim : Claim ; evidence : Evidence ; adjusted : p values after `adjust`, in the order of claim.controls.

    Returns
    -------
    verdict, reason : str
    """
    if evidence.positions < LEAST_POSITIONS:
        return UNTESTED, f"only {evidence.positions} positions"
    if evidence.missing > MOST_MISSING:
        return UNTESTED, f"{evidence.missing:.0%} of the fits failed"
    if not np.isfinite([evidence.value, evidence.low, evidence.high, evidence.null]).all():
        return UNTESTED, evidence.note or "no estimate with an interval"
    low, high = evidence.low - evidence.null, evidence.high - evidence.null
    if claim.direction == "absent":
        if -claim.margin <= low and high <= claim.margin:
            return REPRODUCED, f"interval within ±{claim.margin:g} of the null"
        if low > claim.margin or high < -claim.margin:
            return NOT, f"interval beyond ±{claim.margin:g} of the null"
        return UNTESTED, f"interval too wide for a margin of ±{claim.margin:g}"
    if not np.isfinite(adjusted).all():
        return UNTESTED, "no p value against " + claim.controls[int(np.argmin(np.isfinite(adjusted)))]
    sign = 1 if claim.direction == "greater" else -1
    if not sign * (evidence.value - evidence.null) > 0:
        return NOT, "not in the paper's direction"
    if not min(sign * low, sign * high) > 0:
        return NOT, "interval includes the null"
    failed = [control for control, p in zip(claim.controls, adjusted) if not p < SIGNIFICANT]
    return (PARTLY, "not beyond " + " and ".join(failed)) if failed else (REPRODUCED, "beyond all controls")


def combine(verdicts):
    """One verdict for a claim of several parts: all reproduced; some support, some not: partly; none: not reproduced."""
    found = set(verdicts)
    supported, refuted = found & {REPRODUCED, PARTLY}, NOT in found
    if refuted:
        return PARTLY if supported else NOT
    if UNTESTED in found:
        return UNTESTED
    return REPRODUCED if found == {REPRODUCED} else PARTLY


def judge(evidence, claims=CLAIMS):
    """The claims table of one model.

    Parameters
    ----------
    evidence : dict of a claim's name ("C5 within") to Evidence; what is not there cannot be tested.
    claims : Claims; one that others need comes before them.

    Returns
    -------
    DataFrame, one row a part: id, part, name, statistic, direction, paper, paper_note, margin, value, low, high,
    null, p, q (the least favourable control's p value, raw and adjusted over the table), positions, missing, note,
    verdict, reason, claim_verdict (the parts of a claim combined).

    Raises
    ------
    ValueError
        Evidence for no claim, or with another number of p values than the claim has controls.
    """
    known = {claim.name: claim for claim in claims}
    for name, item in evidence.items():
        if name not in known:
            raise ValueError(f"There is no claim {name!r}; known are {', '.join(known)}.")
        if known[name].direction != "absent" and item.p and len(item.p) != len(known[name].controls):
            raise ValueError(f"{name} has {len(known[name].controls)} controls, the evidence {len(item.p)} p values.")
    items = [evidence.get(claim.name, Evidence(note="not measured", positions=LEAST_POSITIONS)) for claim in claims]
    raw = [np.array(item.p or [np.nan] * len(claim.controls), dtype=float) if claim.direction != "absent" else np.array([])
           for claim, item in zip(claims, items)]
    adjusted = np.split(adjust(np.concatenate(raw)), np.cumsum([len(p) for p in raw])[:-1])
    rows, sofar = [], {}
    for claim, item, p, q in zip(claims, items, raw, adjusted):
        found, reason = verdict(claim, item, q)
        unmet = [name for name in claim.needs if combine(sofar[name]) not in (REPRODUCED, PARTLY)]
        if unmet:
            found, reason = UNTESTED, f"needs {' and '.join(unmet)}"
        for name in {claim.id, claim.name}:
            sofar.setdefault(name, []).append(found)
        rows.append({"id": claim.id, "part": claim.part, "name": claim.name, "statistic": claim.statistic,
                     "direction": claim.direction, "paper": claim.paper, "paper_note": claim.paper_note,
                     "margin": claim.margin, "value": item.value, "low": item.low, "high": item.high, "null": item.null,
                     "p": p.max() if len(p) else np.nan, "q": q.max() if len(q) else np.nan, "positions": item.positions,
                     "missing": item.missing, "note": item.note, "verdict": found, "reason": reason})
    table = pd.DataFrame(rows)
    return table.assign(claim_verdict=[combine(sofar[name]) for name in table["id"]])


# ---- from differences to evidence

LEAST_DOCUMENTS = 100


def item(found, positions, *, null=0.0, p=(), missing=0.0):
    """A row with value, low, high and documents as `Evidence`; p: names of its p values; few documents are noted."""
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
    poor = worst and missed[worst] > controls.POOR_MATCH
    return f"matched groups differ by {missed[worst]:.2f} SD in {worst}" if poor else ""


def apart(value, low, high, other, other_low, other_high):
    """A difference with its interval, from two independent values with theirs.

    The squared distances to the limits add up (Zou and Donner 2008, Statistics in Medicine 27, 1693). With the 95 %
    band of control groups as the second interval, the difference is that from one group drawn at random, as in
    `documents.against`: a group without a property of its own does not differ from the next one.
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
