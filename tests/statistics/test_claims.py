"""The rule behind the verdicts, case by case, and what it says of a model without training."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
from scipy.special import ndtr
from statsmodels.stats.multitest import multipletests

from rare_token_neurons.statistics import claims, controls, documents, rankings, spectra
from rare_token_neurons.statistics.claims import Claim, Evidence, NOT, PARTLY, REPRODUCED, UNTESTED
from rare_token_neurons.tables import claims as evidence_of

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
    table = claims.judge({})
    assert table.name.tolist() == [claim.name for claim in claims.CLAIMS]
    assert set(table.verdict) == {UNTESTED} and table.id.drop_duplicates().tolist() == [f"C{i}" for i in range(1, 9)]
    assert table.set_index("name").paper["C4"] == pytest.approx(-0.07)
    with pytest.raises(ValueError, match="no claim 'C9'"):
        claims.judge({"C9": Evidence()})
    with pytest.raises(ValueError, match="2 controls"):
        claims.judge({"C4": seen(1, 0, 2, p=(0.1,))})


def test_the_claims_are_consistent():
    names = {claim.name for claim in claims.CLAIMS} | {claim.id for claim in claims.CLAIMS}
    for place, claim in enumerate(claims.CLAIMS):
        assert claim.direction in ("greater", "less", "absent")
        assert (claim.direction == "absent") == np.isfinite(claim.margin)
        earlier = {name for other in claims.CLAIMS[:place] for name in (other.id, other.name)}
        assert set(claim.needs) <= earlier & names


# ---- a model without training: independent Gaussian weights, activations of GELU neurons that read noise


@pytest.fixture(scope="module")
def untrained():
    rng = np.random.default_rng(0)
    neurons, d, texts, tokens = 400, 64, 110, 20
    states = rng.normal(size=(texts * tokens, d)) / np.sqrt(d)
    w_in, w_out = rng.normal(size=(neurons, d)), rng.normal(size=(d, neurons))
    read = states @ w_in.T
    activations = read * ndtr(read)  # GELU
    ids = np.repeat(np.arange(texts), tokens)
    # each ablation changes the loss by its activation times the projection of its weights on a target of its own
    effects = np.abs((activations - activations.mean(axis=0)) * (rng.normal(size=(texts * tokens, d)) @ w_out))
    return activations, w_in, w_out, ids, effects


def head(values):
    """Influence of the top 1.7 % over the median neuron's."""
    top = rankings.top(values, max(1, round(0.017 * values.shape[-1])))
    return np.take_along_axis(values, top, -1).mean(-1) / np.median(values, -1)


def measured(activations, w_in, w_out, ids, effects):
    """Evidence for each claim, gathered as the notebooks do: the group chosen on half A, measured on half B."""
    half = ids % 2 == 0
    per_document = np.stack([effects[ids == one].sum(axis=0) for one in np.unique(ids)])
    n = np.unique(ids, return_counts=True)[1]
    group = rankings.top(per_document[::2].sum(axis=0), 20)
    anew = documents.resampled_groups(per_document[::2], n[::2], 20, draws=100)
    sample = controls.sample(activations[~half], ids[~half], w_out)
    nulls = controls.control_groups(sample, group, draws=199)
    rng = np.random.default_rng(1)

    per_document = per_document[1::2] / n[1::2, None]
    influence = per_document.mean(axis=0)
    null = head(np.abs(rng.normal(size=(199, len(influence)))))  # order statistics of a half-normal
    resampled = [head(per_document[rng.integers(0, len(per_document), len(per_document))].mean(axis=0)) for _ in range(200)]
    low, high = documents.interval(head(influence), np.array(resampled))
    p = controls.empirical_p(head(influence), null, "greater")
    found = {"C1": Evidence(head(influence), low, high, null.mean(), (p,), 1000)}
    none = Evidence(0.0, 0.0, 0.0, 0.0, (1.0, 1.0), 1000)  # no plateau at any time
    found |= {"C2": none, "C3 emergence": none, "C3 before training": none, "C7": none, "C8": none}

    def table(found, **columns):
        return pd.DataFrame(found).assign(group="rare", where="rare", tokens=1000, positions=1000, documents=55, **columns)

    options = {"resamples": 100, "baselines": 30}
    statistic = partial(controls.dimensions, tokens=len(sample.values))
    dimensions = controls.within(sample, group, nulls, controls.DIMENSIONS, statistic, **options)
    inside = controls.within(sample, group, nulls, controls.PAIRS, controls.pairs, **options)
    outside = controls.between(sample, group, nulls, **options)
    own, again = (spectra.measure(w_in[groups], fits=0) for groups in (group[None], anew))
    others = {kind: spectra.measure(w_in[groups], fits=0) for kind, groups in nulls.items()}
    tails = controls.compare(own, again, others, spectra.SIDES, spectra.FITTED)
    return found | {"C4": evidence_of.dimension(table(dimensions)),
                    "C5 within": evidence_of.within(table(inside, relation="within", measure="correlation")),
                    "C5 between": evidence_of.between(table(outside, relation="between", measure="correlation")),
                    "C6": evidence_of.hill(table(tails, matrix="in", rows="raw"))}


def test_random_weights_reproduce_nothing(untrained):
    table = claims.judge(measured(*untrained))
    verdicts = table.drop_duplicates("id").set_index("id").claim_verdict
    shown = ["name", "value", "low", "high", "null", "q", "reason"]
    assert (verdicts[[f"C{i}" for i in range(1, 7)]] == NOT).all(), table[shown]
    assert (verdicts[["C7", "C8"]] == UNTESTED).all()
