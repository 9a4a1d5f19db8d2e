"""The rule behind the verdicts, case by case, its sentences, and what it says of a model without training."""

from dataclasses import replace

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from rare_token_neurons.statistics import claims
from rare_token_neurons.statistics.claims import Claim, Evidence, NOT, PARTLY, REPRODUCED, UNTESTED

MORE = Claim("T1", "a mean", "greater")
LESS = Claim("T1", "a mean", "less")
NONE = Claim("T1", "a mean", "absent", margin=0.1)


def seen(value, low, high, null=0.0, p=(0.001, 0.001), positions=500, missing=0.0):
    return Evidence(value, low, high, null, p, positions, missing)


@pytest.mark.parametrize("claim, evidence, expected", [
    (MORE, seen(1, 0.5, 1.5), REPRODUCED),
    (MORE, seen(1, 0.5, 1.5, p=(0.001, 0.2)), PARTLY),  # plain only
    (MORE, seen(1, 0.5, 1.5, p=(0.2, 0.001)), PARTLY),  # matched only
    (MORE, seen(1, 0.5, 1.5, p=(0.2, 0.2)), PARTLY),  # direction and interval only
    (MORE, seen(1, -0.5, 1.5), NOT),  # interval includes the null
    (MORE, seen(1, 0.0, 1.5), NOT),  # touches it
    (MORE, seen(-1, -1.5, -0.5), NOT),  # significant, but the other way
    (LESS, seen(-1, -1.5, -0.5), REPRODUCED),
    (LESS, seen(1, 0.5, 1.5), NOT),
    (MORE, seen(3, 2.5, 3.5, null=2.6), NOT),
    (MORE, seen(3, 2.5, 3.5, null=2.4), REPRODUCED),
    (MORE, seen(1, 0.5, 1.5, positions=99), UNTESTED),
    (MORE, seen(1, 0.5, 1.5, missing=0.21), UNTESTED),
    (MORE, seen(1, np.nan, 1.5), UNTESTED),
    (MORE, seen(1, 0.5, 1.5, p=(0.001, np.nan)), UNTESTED),
    (NONE, seen(0.02, -0.05, 0.08), REPRODUCED),
    (NONE, seen(0.06, 0.03, 0.09), REPRODUCED),  # a difference, but a negligible one
    (NONE, seen(0.02, -0.3, 0.4), UNTESTED),  # a wide interval is no evidence of absence
    (NONE, seen(0.15, 0.05, 0.25), UNTESTED),
    (NONE, seen(0.5, 0.2, 0.8), NOT),
    (NONE, seen(-0.5, -0.8, -0.2), NOT),
    (NONE, seen(5.02, 4.95, 5.08, null=5.0), REPRODUCED),
])
def test_the_rule(claim, evidence, expected):
    found, reason = claims.verdict(claim, evidence, np.array(evidence.p))
    assert found == expected and reason


HEAD = Claim("T1", "a height", "greater", word="plateau", controls=("a", "b"))
NO_HEAD = Claim("T1", "a height", "no plateau")
LAW = Claim("T1", "a slope", "law", controls=())
DECAY = Claim("T1", "a share", "decay", controls=())


@pytest.mark.parametrize("word, evidence, expected, reason", [
    ("plateau", seen(1, 0.5, 1.5), REPRODUCED, "beyond all controls"),
    ("outliers", seen(1, 0.5, 1.5), PARTLY, "outliers, no plateau"),
    ("on the line", seen(1, 0.5, 1.5, p=(0.001, 0.2)), PARTLY, "not beyond b"),
    ("on the line", seen(1, -0.5, 1.5), NOT, "interval includes the null"),
    ("rounded", seen(-1, -1.5, -0.5), NOT, "not in the paper's direction"),
    ("", seen(np.nan, np.nan, np.nan), UNTESTED, "no estimate with an interval")])
def test_a_raised_head_is_the_claim_in_full_as_a_plateau_alone(word, evidence, expected, reason):
    assert claims.verdict(HEAD, replace(evidence, word=word), np.array(evidence.p)) == (expected, reason)


@pytest.mark.parametrize("word, evidence, expected", [
    ("on the line", seen(0.1, -0.1, 0.19), REPRODUCED),
    ("rounded", seen(-3, -4, -2), REPRODUCED),  # one-sided: far below its law it is no plateau either
    ("on the line", seen(0.1, -0.1, 0.3), UNTESTED),
    ("outliers", seen(0.5, 0.3, 0.7), NOT),
    ("plateau", seen(0.1, 0.05, 0.19), NOT)])
def test_no_plateau_is_shown_by_the_word_and_below_the_spread_of_the_laws_own_samples(word, evidence, expected):
    found = replace(evidence, word=word, margin=0.2, p=())
    assert claims.verdict(NO_HEAD, found, np.array([]))[0] == expected
    assert claims.verdict(NO_HEAD, replace(found, margin=np.nan), np.array([]))[0] == UNTESTED
    assert claims.judge({"T1": found}, (NO_HEAD,))["margin"].tolist() == [0.2]


@pytest.mark.parametrize("word, expected, reason", [
    ("not rejected", REPRODUCED, "power law: not rejected"), ("rejected", NOT, "power law: rejected"),
    ("cannot tell it from a lognormal", UNTESTED, "cannot tell it from a lognormal"),
    ("cannot be tested (5 values)", UNTESTED, "5 values"), ("", UNTESTED, "no test of the law")])
def test_the_law_is_judged_by_its_test(word, expected, reason):
    assert claims.verdict(LAW, Evidence(0.4, 0.3, 0.5, positions=500, word=word), np.array([])) == (expected, reason)


@pytest.mark.parametrize("draws, nulls, expected", [
    (0.97, 0.5, REPRODUCED), (1.0, 0.95, PARTLY), (0.94, 0.1, NOT), (np.nan, np.nan, UNTESTED)])
def test_a_decay_that_any_sample_has_counts_as_partly(draws, nulls, expected):
    found = claims.judge({"T1": Evidence(draws, null=nulls, positions=500)}, (DECAY,)).iloc[0]
    assert found["verdict"] == expected and (found["reason"] == "as in any sample") == (expected == PARTLY)


@pytest.mark.parametrize("claim, evidence, expected", [
    (MORE, seen(1, 0.5, 1.5, p=(0.001, np.nan)), PARTLY), (MORE, seen(1, 0.5, 1.5, p=(0.2, np.nan)), PARTLY),
    (MORE, seen(1, -0.5, 1.5, p=(0.001, np.nan)), NOT), (NONE, seen(0.02, -0.05, 0.08, p=()), UNTESTED)])
def test_without_matched_groups_that_match_a_claim_holds_partly_at_most(claim, evidence, expected):
    found = claims.judge({"T1": replace(evidence, unmatched=True)}, (claim,)).iloc[0]
    assert found["verdict"] == expected
    words = {UNTESTED: "no well-matched groups to stand against", PARTLY: "cannot be tested against matched groups"}
    assert found["reason"].endswith(words.get(expected, "the null"))
    assert ("Cannot be tested: no well-matched groups to stand against." in found["sentence"]) == (expected == UNTESTED)
    assert found["p"] == pytest.approx(evidence.p[0], nan_ok=True) if evidence.p else np.isnan(found["p"])


# ---- sentences


@pytest.mark.parametrize("claim, evidence, said", [
    (HEAD, replace(seen(1, 0.5, 1.5, p=(1 / 201, 1 / 201)), word="plateau", floor=1 / 201, detail="It is so."),
     "A height: 1 (0.5 to 1.5); above 0, beyond all controls (none of 200 null curves reaches it). It is so."),
    (HEAD, replace(seen(1, 0.5, 1.5, p=(1 / 201, 0.25)), floor=1 / 201),
     "A height: 1 (0.5 to 1.5); above 0, not beyond b (q = 0.25)."),
    (HEAD, seen(1, -0.5, 1.5), "A height: 1 (-0.5 to 1.5); not above 0, which the interval includes."),
    (LESS, seen(1, 0.5, 1.5), "A mean: 1 (0.5 to 1.5); not below 0."),
    (NONE, seen(0.02, -0.05, 0.08, p=()), "A mean: 0.02 (-0.05 to 0.08); interval within ±0.1 of the null."),
    (NO_HEAD, replace(seen(-1, -2, 0, p=()), word="rounded", margin=0.21),
     "A height: -1 (-2 to 0); rounded, interval below 0.21, the spread of the law's own samples."),
    (LAW, Evidence(0.4, 0.3, 0.5, positions=500, word="rejected"), "A slope: 0.4 (0.3 to 0.5); power law: rejected."),
    (LAW, Evidence(0.4, 0.3, 0.5, positions=500, word="cannot tell it from a lognormal"),
     "Cannot be tested: cannot tell it from a lognormal. Measured: 0.4 (0.3 to 0.5)."),
    (DECAY, Evidence(0.98, null=0.99, positions=500), "A share: 98 %; of the null curves 99 %: as in any sample."),
    (MORE, Evidence(positions=20), "Cannot be tested: only 20 positions.")])
def test_a_sentence_says_why(claim, evidence, said):
    assert claims.judge({"T1": evidence}, (claim,))["sentence"].tolist() == [said]


# ---- the table


def test_p_values_are_adjusted_over_the_table_and_missing_ones_left_out():
    p = np.array([[0.01, np.nan], [0.04, 0.03]])
    expected = multipletests([0.01, 0.04, 0.03], method="fdr_bh")[1]
    assert claims.adjust(p)[[0, 1, 1], [0, 0, 1]] == pytest.approx(expected) and np.isnan(claims.adjust(p)[0, 1])
    assert np.isnan(claims.adjust([np.nan])).all()
    family = tuple(Claim(f"T{i}", "", "greater") for i in range(10))
    evidence = {claim.name: seen(1, 0.5, 1.5, p=(0.04, 0.04)) for claim in family}
    assert set(claims.judge(evidence, family).verdict) == {REPRODUCED}
    evidence |= {claim.name: seen(0.1, -1, 1, p=(0.9, 0.9)) for claim in family[1:]}
    assert claims.judge(evidence, family).verdict[0] == PARTLY  # 0.04 among twenty is no longer below 0.05


@pytest.mark.parametrize("parts, expected", [
    ([REPRODUCED, REPRODUCED], REPRODUCED), ([REPRODUCED, PARTLY], PARTLY), ([REPRODUCED, NOT], PARTLY),
    ([NOT, UNTESTED], NOT), ([NOT, NOT], NOT), ([REPRODUCED, UNTESTED], UNTESTED), ([UNTESTED], UNTESTED)])
def test_parts_are_combined(parts, expected):
    assert claims.combine(parts) == claims.combine(parts[::-1]) == expected


def test_a_claim_whose_ground_is_missing_cannot_be_tested():
    family = (MORE, Claim("T2", "", "absent", margin=0.1, needs=("T1",)))
    holds = {"T1": seen(1, 0.5, 1.5), "T2": seen(0.0, -0.05, 0.05)}
    assert claims.judge(holds, family).verdict.tolist() == [REPRODUCED, REPRODUCED]
    fails = holds | {"T1": seen(0.1, -0.5, 1.5)}
    table = claims.judge(fails, family)
    assert table.verdict.tolist() == [NOT, UNTESTED] and table.reason[1] == "needs T1"


def test_the_table_has_one_row_a_part_in_order_and_names_what_is_wrong():
    for gated, parts in ((False, ["C6 W_in"]), (True, ["C6 gate", "C6 up"])):
        family = claims.of_mlp(gated)
        table = claims.judge({}, family)
        assert table.name.tolist() == [claim.name for claim in family] and table.name.is_unique
        assert set(table.verdict) == {UNTESTED}
        assert table.id.drop_duplicates().tolist() == [f"C{i}" for i in range(1, 9)]
        assert table.name[table.id == "C6"].tolist() == parts
        assert table.name[table.id == "C2"].tolist() == ["C2 head", "C2 law", "C2 decay"]
    assert table.set_index("name").paper["C4"] == pytest.approx(-0.07)
    with pytest.raises(ValueError, match="no claim 'C9'"):
        claims.judge({"C9": Evidence()})
    with pytest.raises(ValueError, match="2 controls"):
        claims.judge({"C4": seen(1, 0, 2, p=(0.1,))})


@pytest.mark.parametrize("gated", [False, True])
def test_the_claims_are_consistent(gated):
    family = claims.of_mlp(gated)
    for place, claim in enumerate(family):
        assert claim.direction in claims.RULES
        assert (claim.direction == "absent") == np.isfinite(claim.margin)
        assert bool(claim.controls) == (claim.direction in (*claims.TESTED, "absent", "no plateau"))
        assert set(claim.needs) <= {name for other in family[:place] for name in (other.id, other.name)}


