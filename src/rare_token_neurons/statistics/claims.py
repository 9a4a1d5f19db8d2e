"""The paper's claims, what would show each, how a table's row becomes evidence, and the rule from evidence to a verdict.

Statistics, paper values, directions, margins and the rule were fixed before the first full run. What a claim is compared
with was made stricter later (C1: ranked half-normal numbers, and of two kinds of control groups the less favourable), and
what a plateau is (C2, C3, C7) was fixed anew on planted samples (`curve.heads`, `curve.calibration`), not on a model.
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
    direction: how it is judged, a key of RULES: "greater" or "less" than the null; "absent" (no difference from it beyond
    `margin`); "no plateau"; "law"; "decay"; word: what a head has to be called;
    paper: its value, NaN where it gives none, and paper_note in words; controls: what each p value is against;
    needs: claims that must be at least partly reproduced for this one to have a meaning;
    gated: the MLPs that it is about, gated ones or the others; None: any.
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
    word: str = ""
    gated: bool | None = None

    @property
    def name(self):
        """ "C5 within": id and part."""
        return f"{self.id} {self.part}".strip()


@dataclass(frozen=True)
class Evidence:
    """What was measured for one part of a claim; NaN where it could not be had.

    value, low, high: the statistic and its 95 % interval over documents; null: its value under the null hypothesis
    (0 for a contrast); p: one p value per control of the claim; positions: scored positions behind it; missing: share
    of failed fits; note: a few words for the table; word: what a head is called, or what a test of a law says; margin: of
    an absence, where it is measured; unmatched: matched groups match too poorly, and value, low, high are those against
    random groups; floor: the smallest p that the draws can give; detail: a sentence to be said beside it.
    """

    value: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    null: float = float("nan")
    p: tuple[float, ...] = ()
    positions: int = 0
    missing: float = 0.0
    note: str = ""
    word: str = ""
    margin: float = float("nan")
    unmatched: bool = False
    floor: float = float("nan")
    detail: str = ""


PLATEAU = "plateau"
HEIGHT = "mean height of the head above its law (e-folds of influence)"
FIRST = f"{HEIGHT}, of the first 1.7 % of the neurons"
LAWS = ("two laws",)
UNMATCHED = "cannot be tested against matched groups"
UNDECIDED = "interval includes the null"  # not shown, which is not the same as no
ALWAYS = 0.95  # share of the draws

# What an absence is: C8, within the width of the range in which the follow-up's random groups lie (modularity 0.04 to 0.09);
# of a plateau, below the standard deviation of the same height over samples of the law itself (`Evidence.margin`).
EVERY = (
    Claim("C1", "influence of the rare group over the median neuron's, rare targets", "greater",
          paper_note="the top 1.7 % far above the rest", controls=("half-normal order statistics",)),
    Claim("C2", f"{HEIGHT}, rare targets", "greater", part="head", word=PLATEAU,
          paper_note="a plateau above the power law, 1.7 % of the neurons",
          controls=("lognormal order statistics", "half-normal order statistics", "the law itself")),
    Claim("C2", "slope of the law, a doubly truncated power law by test, rare targets", "law", part="law", controls=(),
          paper_note="a power law in the middle, about 10 % of the neurons"),
    Claim("C2", "share of the draws with a steeper stretch after the law, rare targets", "decay", part="decay", controls=(),
          paper_note="a rapid decay, 87.4 % of the neurons"),
    Claim("C3", f"{FIRST}, at the last checkpoint less that at step 0", "greater",
          part="emergence", controls=LAWS, paper_note="the phases emerge"),
    Claim("C3", f"{FIRST}, at step 0", "no plateau", part="before training",
          needs=("C3 emergence",), paper_note="a homogeneous state"),
    Claim("C4", "effective dimension over group size, less that of control groups", "less", 0.49 - 0.56),
    Claim("C5", "mean correlation inside the group, less that in control groups", "greater", part="within", gated=False,
          paper_note="positive inside, near 0 for random neurons"),
    Claim("C5", "mean absolute correlation inside the group, less that in control groups", "greater", part="within",
          gated=True, paper_note="positive inside, near 0 for random neurons"),
    Claim("C5", "mean correlation with the other neurons, less that of control groups", "less", part="between",
          paper_note="negative"),
    *(Claim("C6", f"Hill exponent of the group's rows of {name}, less that of control groups", "less", part=part,
            gated=gated, paper_note="below random groups")
      for part, name, gated in (("W_in", "W_in", False), ("gate", "the gate", True), ("up", "the up projection", True))),
    Claim("C7", f"{FIRST}, rare less common targets", "greater", part="contrast",
          controls=LAWS, paper_note="common tokens show no plateau"),
    Claim("C7", f"{HEIGHT}, common targets", "no plateau", part="common", needs=("C2 head",), paper_note="no plateau"),
    *(Claim("C8", f"modularity of the group's correlations ({edges} edges), less that of control groups", "absent", 0.01,
            margin=0.05, paper_note="0.05 to 0.11 against 0.04 to 0.09", needs=("C2 head",), gated=gated)
      for edges, gated in (("positive", False), ("absolute", True))),
)


def of_mlp(gated):
    """The claims about a model whose MLPs are gated, or are not."""
    return tuple(claim for claim in EVERY if claim.gated in (None, gated))


CLAIMS = of_mlp(False)  # the paper's models


def adjust(p):
    """Benjamini-Hochberg over the p values that are there: any shape, NaN stays NaN."""
    p = np.asarray(p, dtype=np.float64)
    there, adjusted = np.isfinite(p), np.full(p.shape, np.nan)
    if there.any():
        adjusted[there] = multipletests(p[there], method="fdr_bh")[1]
    return adjusted


# ---- from evidence to a verdict


def verdict(claim, evidence, adjusted):
    """The verdict on one part of a claim, and the reason in a few words.

    Too few positions, or too many failed fits, cannot be tested; else the claim's direction says how it is judged.

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
    needed, judged = RULES[claim.direction]
    if not np.isfinite([getattr(evidence, name) for name in needed]).all():
        return UNTESTED, evidence.note or "no estimate with an interval"
    return judged(claim, evidence, adjusted)


def _difference(claim, evidence, adjusted):
    """A difference is "reproduced" where the value lies on the paper's side, its interval excludes the null, and every
    control's adjusted p value is below 0.05; "partly" where a control, or all of them, do not agree, where matched groups
    match too poorly to be one, or where the head has another word; without direction and interval "not reproduced"."""
    checked = dict(zip(claim.controls[:1] if evidence.unmatched else claim.controls, adjusted))
    for control, p in checked.items():
        if not np.isfinite(p):
            return UNTESTED, f"no p value against {control}"
    sign = 1 if claim.direction == "greater" else -1
    if not sign * (evidence.value - evidence.null) > 0:
        return NOT, "not in the paper's direction"
    if not min(sign * (evidence.low - evidence.null), sign * (evidence.high - evidence.null)) > 0:
        return NOT, UNDECIDED
    failed = [control for control, p in checked.items() if not p < SIGNIFICANT]
    short = ["not beyond " + " and ".join(failed)] * bool(failed) + [UNMATCHED] * evidence.unmatched
    if not short and claim.word and evidence.word != claim.word:
        short = [f"{evidence.word}, no {claim.word}"]
    return (PARTLY, "; ".join(short)) if short else (REPRODUCED, "beyond all controls")


def _absence(claim, evidence, adjusted):
    """An absence is "reproduced" where the whole interval lies within the margin around the null, "not reproduced" where
    none of it does; in between the measurement is too coarse to say."""
    if evidence.unmatched:
        return UNTESTED, "no well-matched groups to stand against"
    low, high = evidence.low - evidence.null, evidence.high - evidence.null
    if -claim.margin <= low and high <= claim.margin:
        return REPRODUCED, f"interval within ±{claim.margin:g} of the null"
    if low > claim.margin or high < -claim.margin:
        return NOT, f"interval beyond ±{claim.margin:g} of the null"
    return UNTESTED, f"interval too wide for a margin of ±{claim.margin:g}"


def _no_plateau(claim, evidence, adjusted):
    """No plateau: the head has another word, and its height ends below one standard deviation of samples of its law.
    One-sided: a head below its law, rounded, is no plateau."""
    spread = f"{evidence.margin:.2g}, the spread of the law's own samples"
    if evidence.word == PLATEAU:
        return NOT, "the head is a plateau"
    if evidence.low > evidence.margin:
        return NOT, f"{evidence.word}, interval above {spread}"
    if evidence.high < evidence.margin:
        return REPRODUCED, f"{evidence.word}, interval below {spread}"
    return UNTESTED, f"interval too wide for {spread}"


def _law(claim, evidence, adjusted):
    """A power law by the verdict of its test (`powerlaws.PowerLaw`)."""
    known = {"not rejected": REPRODUCED, "rejected": NOT}
    if evidence.word in known:
        return known[evidence.word], f"power law: {evidence.word}"
    said = evidence.word.removeprefix(UNTESTED).strip(" ()")
    return UNTESTED, said or evidence.note or "no test of the law"


def _decay(claim, evidence, adjusted):
    """A decay in 95 % of the draws; "partly" where that many null curves have one too."""
    if evidence.value < ALWAYS:
        return NOT, f"in less than {100 * ALWAYS:.0f} % of the draws"
    return (PARTLY, "as in any sample") if evidence.null >= ALWAYS else (REPRODUCED, "more often than in null curves")


ESTIMATE = ("value", "low", "high", "null")
RULES = {  # direction -> (what of the evidence has to be there, the rule)
    "greater": (ESTIMATE, _difference), "less": (ESTIMATE, _difference), "absent": (ESTIMATE, _absence),
    "no plateau": ((*ESTIMATE, "margin"), _no_plateau), "law": ((), _law), "decay": (("value", "null"), _decay)}
TESTED = ("greater", "less")  # with p values


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
    claims : Claims, each name once (see `of_mlp`); one that others need comes before them.

    Returns
    -------
    DataFrame, one row a part: id, part, name, statistic, direction, paper, paper_note, margin, value, low, high,
    null, p, q (the least favourable control's p value, raw and adjusted over the table), p_floor (the smallest that the
    draws can give, where it is known), positions, missing, word, note, verdict, reason, sentence (why), claim_verdict (the
    parts of a claim combined).

    Raises
    ------
    ValueError
        Evidence for no claim, or with another number of p values than the claim has controls.
    """
    known = {claim.name: claim for claim in claims}
    for name, item in evidence.items():
        if name not in known:
            raise ValueError(f"There is no claim {name!r}; known are {', '.join(known)}.")
        if known[name].direction in TESTED and item.p and len(item.p) != len(known[name].controls):
            raise ValueError(f"{name} has {len(known[name].controls)} controls, the evidence {len(item.p)} p values.")
    items = [evidence.get(claim.name, Evidence(note="not measured", positions=LEAST_POSITIONS)) for claim in claims]
    rows, sofar = [], {}
    for claim, item, p, q in zip(claims, items, *adjusted(claims, items)):
        found, reason = verdict(claim, item, q)
        unmet = [name for name in claim.needs if combine(sofar[name]) not in (REPRODUCED, PARTLY)]
        if unmet:
            found, reason = UNTESTED, f"needs {' and '.join(unmet)}"
        for name in {claim.id, claim.name}:
            sofar.setdefault(name, []).append(found)
        rows.append({"id": claim.id, "part": claim.part, "name": claim.name, "statistic": claim.statistic,
                     "direction": claim.direction, "paper": claim.paper, "paper_note": claim.paper_note,
                     "margin": item.margin if np.isfinite(item.margin) else claim.margin, "value": item.value,
                     "low": item.low, "high": item.high, "null": item.null, "p": largest(p), "q": largest(q),
                     "p_floor": item.floor, "positions": item.positions, "missing": item.missing, "word": item.word,
                     "note": item.note, "verdict": found, "reason": reason,
                     "sentence": sentence(claim, item, found, reason, largest(q))})
    table = pd.DataFrame(rows)
    return table.assign(claim_verdict=[combine(sofar[name]) for name in table["id"]])


def adjusted(claims, items):
    """The p values of each evidence, raw and adjusted over all of them: two lists of (controls,)."""
    raw = [np.array(item.p or [np.nan] * len(claim.controls), dtype=float) if claim.direction in TESTED else np.array([])
           for claim, item in zip(claims, items)]
    return raw, np.split(adjust(np.concatenate(raw)), np.cumsum([len(p) for p in raw])[:-1])


def largest(p):
    """The least favourable of the p values that are there; NaN without any."""
    return float(np.nanmax(p)) if np.isfinite(p).any() else np.nan


# ---- why, in one sentence


def sentence(claim, evidence, found, reason, q):
    """Why the verdict is what it is, in plain words.

    found, reason : from `verdict` ; q : the least favourable control's adjusted p value.
    """
    if found == UNTESTED:
        measured = f" Measured: {_estimate(claim, evidence)}." if np.isfinite(evidence.value) else ""
        return f"Cannot be tested: {reason}.{measured}"
    why = {"law": reason, "decay": f"of the null curves {100 * evidence.null:.0f} %: {reason}", "absent": reason,
           "no plateau": reason}.get(claim.direction) or _compared(claim, evidence, found, reason, q)
    said = f"{claim.statistic[:1].upper()}{claim.statistic[1:]}: {_estimate(claim, evidence)}; {why}."
    return " ".join(part for part in (said, evidence.detail) if part)


def _estimate(claim, evidence):
    """Value and interval: "0.82 (0.61 to 1.03)", of a decay "98 %"."""
    if claim.direction == "decay":
        return f"{100 * evidence.value:.0f} %"
    interval = f" ({evidence.low:.3g} to {evidence.high:.3g})" if np.isfinite([evidence.low, evidence.high]).all() else ""
    return f"{evidence.value:.3g}{interval}"


def _compared(claim, evidence, found, reason, q):
    """A difference beside its null and its controls, in words."""
    side = "above" if claim.direction == "greater" else "below"
    if found == NOT:
        return f"not {side} {evidence.null:.3g}" + (", which the interval includes" if "interval" in reason else "")
    at_floor = evidence.p and largest(np.array(evidence.p)) <= evidence.floor * (1 + 1e-9)
    chance = f"none of {1 / evidence.floor - 1:,.0f} null curves reaches it" if at_floor else f"q = {q:.2g}"
    return f"{side} {evidence.null:.3g}, {reason} ({chance})"


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
    both = [tuple(float(found[column]) for column in controls.less_columns(kind))
            for kind in controls.KINDS if f"less_{kind}" in found]
    weakness = {"greater": lambda one: -one[1], "less": lambda one: one[2], "absent": lambda one: max(-one[1], one[2])}[side]
    return max((one for one in both if np.isfinite(one).all()), key=weakness, default=(np.nan,) * 3)


def contrast(found, side, positions, p=("p_random", "p_matched"), missing=0.0):
    """A difference from control groups as evidence: `less_controls` of a row.

    Where matched groups match too poorly (`poor_match`), or where there are none, it is the difference from random groups
    alone, `unmatched`, and a note says why.

    found : dict or row with the columns of `less_controls`, those named in p, documents, and imbalance_* if known.
    """
    found, alone = dict(found), {}
    poor = poor_match(found)
    if not poor and "p_matched" in (*p, *found) and not np.isfinite(found.get("less_matched", np.nan)):
        poor = "no matched groups"
    if poor:
        alone = {"p_matched": np.nan} | controls.less("matched", (np.nan,) * 3)
    found |= alone
    found |= dict(zip(("value", "low", "high"), less_controls(found, side)))
    made = item(found, positions, p=p, missing=missing)
    notes = [made.note, poor if np.isfinite(made.value) else ""]
    return replace(made, note="; ".join(note for note in notes if note), unmatched=bool(poor))


def poor_match(found):
    """How far matched groups stay from the group in their worst feature, in a few words; "" within `controls.POOR_MATCH`."""
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
    """Of the Hill exponents of some matrices, less those of control groups, the one that speaks least for heavy tails.

    rows : dicts or rows with value, low, high, for each kind of control _mean, _low, _high and p_, positions, documents,
    missing.
    """
    found = []
    for one in map(dict, rows):
        for kind in controls.KINDS:
            columns = ("value", "low", "high", f"{kind}_mean", f"{kind}_low", f"{kind}_high")
            one |= controls.less(kind, apart(*(float(one.get(column, np.nan)) for column in columns)))
        found.append(contrast(one, "less", one["positions"], missing=one["missing"]))
    return max(found, key=lambda one: one.high)
