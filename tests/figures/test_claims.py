"""The claims table on a page, in sentences, and in a figure."""

import numpy as np
import pandas as pd
import pytest

from rare_token_neurons.figures import claims as claim_figures
from rare_token_neurons.statistics import claims
from rare_token_neurons.statistics.claims import Evidence, NOT, PARTLY, REPRODUCED, UNTESTED
from rare_token_neurons.tables.claims import PENDING

FLOOR = 1 / 201
FOUND = {  # a gated model
    "C1": Evidence(28.9, 27.7, 30.4, 4.0, (0.001,), 900),
    "C2 head": Evidence(0.8, 0.6, 1.0, 0.0, (FLOOR,) * 3, 900, word="plateau", floor=FLOOR),
    "C2 law": Evidence(0.67, 0.6, 0.7, np.nan, (), 900, word="not rejected"),
    "C2 decay": Evidence(0.98, null=0.99, positions=900),
    "C7 contrast": Evidence(0.3, 0.1, 0.5, 0.0, (0.6,), 900, floor=FLOOR),
    "C7 common": Evidence(-0.3, -0.4, -0.2, 0.0, (), 900, word="rounded", margin=0.25),
    "C6 gate": Evidence(-1.0, -2.0, -0.5, 0.0, (0.01, 0.02), 900)}


def table():
    """Claims of a gated model, of another one without positions, and of two that were not run."""
    other = {name: Evidence(note="not measured", positions=900) for name in ("C1", "C6 W_in")}
    other["C2 head"] = Evidence(-0.4, -0.5, -0.3, 0.0, (0.9,) * 3, 900, word="rounded", floor=FLOOR)
    parts = {"small": claims.judge(FOUND, claims.of_mlp(True)), "plain": claims.judge(other),
             "owner/one": claims.judge({"C1": Evidence(note=PENDING, positions=900)})}
    return pd.concat([rows.assign(model=model) for model, rows in parts.items()], ignore_index=True)


def row(name, model="small"):
    rows = table()
    return rows[(rows["model"] == model) & (rows["name"] == name)].iloc[0]


@pytest.mark.parametrize("name, said", [
    ("C1", "**reproduced** (beyond all controls): 28.9 [27.7, 30.4], null 4, q = 0.007"),
    ("C2 head",
     "**reproduced** (plateau; beyond all controls): 0.8 [0.6, 1], null 0, none of 200 null curves reaches it, q = "
     "0.0087"),
    ("C2 law", "**reproduced** (power law: not rejected): 0.67 [0.6, 0.7]"),
    ("C2 decay", "**partly** (as in any sample): 98 %, null 99 %"),
    ("C7 common",
     "**reproduced** (rounded, interval below 0.25, the spread of the law's own samples): -0.3 [-0.4, -0.2], null 0"),
    ("C5 between", "*cannot be tested*: not measured")])
def test_a_finding_says_word_value_null_and_chance(name, said):
    assert claim_figures.finding(row(name)) == said


def test_a_head_that_is_not_raised_is_named_too():
    assert claim_figures.why(row("C2 head", "plain")) == "rounded; not in the paper's direction"


def test_the_page_has_a_row_a_part_and_says_where_an_mlp_has_none():
    page = claim_figures.markdown(table()).splitlines()
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in page[2:] if "its parts together" not in line}
    assert list(lines) == list(dict.fromkeys(claim.name for claim in claims.EVERY))
    assert {line.count("|") for line in page} == {7}
    assert lines["C6 W_in"].split(" | ")[3] == claim_figures.ELSEWHERE == lines["C6 gate"].split(" | ")[4]
    plain = "modularity of the group's correlations (positive edges), less that of control groups (other MLPs)"
    assert f"(gated MLPs); {plain}" in lines["C8"]
    together = [line for line in page if "its parts together" in line]
    assert [line[2:4] for line in together] == ["C2", "C3", "C5", "C6", "C7"] and f"**{PARTLY}**" in together[0]
    assert together[0].count("**") == 4 and lines["C1"].endswith(f"| {PENDING} |")


def test_every_verdict_has_a_sentence():
    rows = table()
    said = claim_figures.sentences(rows)
    assert said.count("\n- **C") == len(rows[rows["model"] != "owner/one"]) and said.endswith("**one**: not run yet.\n")
    assert "- **C4**. Cannot be tested: not measured." in said
    assert "- **C2 head**, reproduced. Mean height of the head above its law" in said
    assert "none of 200 null curves reaches it" in said


def test_no_plateau_has_a_field_that_is_open_below(ax):
    rows = table().query("name == 'C7 common' and model == 'small'")
    limits = claim_figures.limits(rows)
    claim_figures.panel_of(ax, rows, limits)
    (field,) = ax.patches
    assert field.get_x() == limits[0] and field.get_x() + field.get_width() == pytest.approx(0.25) and limits[1] > 0.25
    assert ax.texts[0].get_text().startswith("reproduced: rounded, interval below 0.25")


def test_a_share_of_draws_has_a_dot_without_an_interval(ax):
    rows = table().query("name == 'C2 decay' and model == 'small'")
    claim_figures.panel_of(ax, rows, claim_figures.limits(rows))
    dots = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in dots] == [[0.98]]
    assert ax.texts[0].get_text() == "partly: as in any sample"


def test_a_part_that_an_mlp_has_not_is_left_blank(ax):
    claim_figures.panel_of(ax, table().query("name == 'C6 W_in' and model == 'small'"), (0, 1))
    assert [text.get_text() for text in ax.texts] == [claim_figures.ELSEWHERE] and not ax.lines and not ax.axison


def test_a_models_column_is_headed_by_its_count():
    assert claim_figures.heading(table().query("model == 'small'")) == (
        "small\n1 of 8 claims reproduced,\n2 partly, 0 not, 5 cannot be tested")


def test_the_lead_is_told_for_models_that_have_one():
    said = claim_figures.of_lead(table())
    assert said.endswith("\n\n- **small**: 28.9 times (27.7 to 30.4); ranking half-normal numbers gives 4.0 times.")
    assert claim_figures.of_lead(table().query("model == 'plain'")).endswith("- not measured yet.")


def test_the_summary_counts_a_claim_once_and_names_what_was_not_run():
    verdicts = {"C1": REPRODUCED, "C2": UNTESTED, "C3": NOT, "C5": REPRODUCED}
    table = pd.DataFrame([{"model": model, "id": name, "claim_verdict": found} for model in ("owner/one", "two")
                          for name, found in verdicts.items() for _ in range(1 + (name == "C3"))])
    first, second, _, last = claim_figures.summary(table, []).splitlines()
    assert first == f"- **one**: {REPRODUCED}: C1, C5; {NOT}: C3; {UNTESTED}: C2." and second.startswith("- **two**: ")
    assert last.startswith("These models are small")
    last = claim_figures.summary(table, ["owner/three", "four"]).splitlines()[-1]
    assert last.startswith("The paper's own models (three, four) were not run here: their column is empty. These "
                           "models are")


# ---- together


def linear(in_head, openness, r2):
    return pd.DataFrame({"rank": [1, 2, 3, 4], "size": 2, "in_head": in_head, "openness": openness, "r2": r2})


def test_what_the_models_say_together_names_all_some_or_none(monkeypatch):
    made = {"small": linear([True, True, True, False], 1.0, [0.95, 0.95, 0.5, 0.5]), "plain": linear(False, 0.5, 0.99)}
    monkeypatch.setattr(claim_figures, "linearity", lambda settings: made)
    found = table()
    plateau, contrast, together, linear_maps = claim_figures.together(found, None).splitlines()
    assert plateau.startswith("- **Is there a plateau") and plateau.endswith(
        "(C2 head)** In some models: yes in small (plateau; beyond all controls); no in plain (rounded; not in the "
        "paper's direction).")
    assert "** In none of the models fully: in part in small (not beyond two laws); cannot be told in plain" in contrast
    assert "** In none of the models: cannot be told in small (" in together
    assert linear_maps.endswith("** In some models: yes in small (2 of 3 neurons of the head); no in plain (0 of 2 "
                                "neurons of the rare group).")
    held = found.assign(reason=found["reason"].replace("not in the paper's direction", claim_figures.UNDECIDED))
    assert "; not shown in plain (rounded; interval includes" in claim_figures.together(held, None).splitlines()[0]
    one = claim_figures.together(found[found["model"] == "small"], None).splitlines()
    assert "** In all models: yes in small (plateau" in one[0] and "plain" not in "".join(one)
    assert claim_figures.together(found[found["model"] == "owner/one"], None) == "- not measured yet."


@pytest.mark.parametrize("share, said", [(0.18, "not shown"), (0.03, "no")])
def test_a_decay_in_some_of_the_draws_is_neither_there_nor_absent(share, said):
    decay = row("C2 decay").copy()
    decay[["verdict", "value"]] = NOT, share
    assert claim_figures.answer(decay) == said
