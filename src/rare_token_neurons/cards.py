"""The tables of `portraits` in words: a Markdown card a neuron, and how many of the top neurons do what.

Text of any kind stands in <code> elements with its punctuation as numbered entities: so neither a table's bars nor
emphasis, formulas or tags in it are taken for markup, here or on a code host.
"""

import unicodedata

import numpy as np

SHOWN = 8  # tokens a list
SIGNS = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}
Z = 1.96  # standard errors of a 95 % interval


def visible(text, spaces=True):
    """Text with a sign for each character that leaves no ink.

    spaces : False leaves single spaces between words as they are.
    """
    signs = [SIGNS.get(x, x if x.isprintable() and not unicodedata.combining(x) else f"[U+{ord(x):04X}]") for x in text]
    if not spaces:
        signs = [" " if x == " " and text[at + 1 : at + 2] not in ("", " ") and text[at - 1 : at] != " " else sign
                 for at, (x, sign) in enumerate(zip(text, signs))]
    return "".join(signs)


def code(text, spaces=True):
    """Text as an HTML code element that Markdown leaves alone; "" for no text."""
    safe = "".join(x if x.isalnum() or x == " " or ord(x) > 127 else f"&#{ord(x)};" for x in visible(text, spaces))
    return f"<code>{safe}</code>" if safe else ""


def words(tokens):
    """A list of tokens, each shown once."""
    return " ".join(dict.fromkeys(map(code, tokens))) or "none"


def verdict(change, error):
    """What a neuron does for a prediction: "helps" where the loss rises without it, "hurts" where it falls, else "neither"."""
    return "helps" if change > Z * error else "hurts" if change < -Z * error else "neither"


def title(row):
    """What a neuron does for rare and for common targets, in words."""
    done = {group: verdict(row[f"change_{group}"], row[f"change_{group}_error"]) for group in ("rare", "common")}
    if done["rare"] == done["common"]:
        return {"neither": "no clear mean effect"}.get(done["rare"], f"{done['rare']} rare and common targets")
    said = [f"{verb} {group} targets" for group, verb in done.items() if verb != "neither"]
    unclear = [f"no clear mean effect on {group} ones" for group, verb in done.items() if verb == "neither"]
    return ", ".join(said + unclear)


def card(row, tokens, targets, contexts):
    """A neuron's portrait in Markdown.

    Parameters
    ----------
    row : its row of `portraits.portraits` ; tokens, targets, contexts : its rows of `promoted`, `targets`, `contexts`.
    """
    lists = {side: words(some.sort_values("place")["token"].head(SHOWN)) for side, some in tokens.groupby("side")}
    moved = {side: " ".join(f"{code(one.token)} {one.change:+.2f}" for one in some.sort_values("place").head(SHOWN).itertuples())
             for side, some in targets.groupby("side")}
    signed = {group: f"{row[f'change_{group}']:+.3f} ± {row[f'change_{group}_error']:.3f}" for group in ("rare", "common")}
    often = {name: f"{row[name]:.0%} (all positions {row[f'{name}_base']:.0%})"
             for name in ("word_read", "word_target", "rare_target")}
    lines = [f"### {row['rank']:.0f} · Neuron {row['neuron']:.0f}: {title(row)}", "", "| | |", "|:--|:--|",
             f"| loss without it | rare targets {signed['rare']} nats, common targets {signed['common']} |",
             f"| size of its effect | {row['rare']:.3f} nats on rare, {row['common']:.3f} on common targets: "
             f"{row['share']:.0%} of it on rare ones |",
             f"| mean activity | {row['at_rare']:+.2f} SD at rare targets, {row['at_common']:+.2f} SD at common ones |",
             f"| where it is most on | reads a word at {often['word_read']}, predicts one at {often['word_target']}, "
             f"a rare one at {often['rare_target']} |",
             f"| when on, raises | {lists.get('promoted', 'none')} |",
             f"| when on, lowers | {lists.get('suppressed', 'none')} |",
             f"| loss rises most without it | {moved.get('rises', 'none')} |",
             f"| loss falls most without it | {moved.get('falls', 'none')} |"]
    for one in contexts.sort_values("place").itertuples():
        text = (f"{code(one.before, spaces=False)}<b>{code(one.token)}</b> → {code(one.target)}"
                f"{code(one.after, spaces=False)}")
        lines.append(f"| on by {one.active:.1f} SD | {text} |")
    return "\n".join(lines)


def gallery(table, tokens, targets, contexts):
    """The cards of all top neurons, the most influential first."""
    chosen = table[table["top"]].sort_values("rank")
    parts = [[part[part["neuron"] == neuron] for part in (tokens, targets, contexts)] for neuron in chosen["neuron"]]
    return "\n\n".join(card(row, *part) for (_, row), part in zip(chosen.iterrows(), parts))


def tally(table):
    """How many of the top neurons do what.

    Parameters
    ----------
    table : from `portraits.portraits`

    Returns
    -------
    dict of counts: neurons (portrayed), helps and hurts with _rare and _common, against and along (at rare targets the
    neuron lowers or raises the logits along the unigram direction), frequency (its output follows log frequency, either
    way, more than in 95 % of the other neurons), rare_share (a larger share on rare targets than the median neuron),
    dense and sparse (kurtosis below or above that of 97.5 % of the others), word_read, word_target (more than half of the
    strongest positions)
    """
    chosen, others = table[table["top"]], table[~table["top"]]
    found = {"neurons": len(chosen)}
    for group in ("rare", "common"):
        verdicts = [verdict(*pair) for pair in zip(chosen[f"change_{group}"], chosen[f"change_{group}_error"])]
        found |= {f"{verb}_{group}": verdicts.count(verb) for verb in ("helps", "hurts")}
    shifts = [verdict(*pair) for pair in zip(chosen["unigram_rare"], chosen["unigram_rare_error"])]
    low, high = np.nanquantile(others["kurtosis"], [0.025, 0.975])
    return found | {"against": shifts.count("helps"), "along": shifts.count("hurts"),
                    "frequency": int((chosen["correlation"].abs() > np.nanquantile(others["correlation"].abs(), 0.95)).sum()),
                    "rare_share": int((chosen["share"] > others["share"].median()).sum()),
                    "dense": int((chosen["kurtosis"] < low).sum()), "sparse": int((chosen["kurtosis"] > high).sum()),
                    "word_read": int((chosen["word_read"] > 0.5).sum()), "word_target": int((chosen["word_target"] > 0.5).sum())}
