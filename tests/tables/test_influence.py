"""How far the head stands out: the ratio to the median neuron and its null; planted curves, pooled and by sign."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from rounding import assert_same, rounded

from rare_token_neurons import settings as parameters
from rare_token_neurons.ablation.neurons import Influence
from rare_token_neurons.curve import calibration, heads, nulls, phases as curve_phases
from rare_token_neurons.statistics import controls
from rare_token_neurons.tables import checkpoints as passes, influence as influences, rare_tokens

NEURONS, DOCUMENTS = 600, 120
IN_A = np.arange(DOCUMENTS) % 2 == 0


@pytest.fixture
def planted():
    """Ten neurons with ten times the others' influence, documents of four positions."""
    rng = np.random.default_rng(0)
    true = np.where(np.arange(NEURONS) < 10, 10.0, 1.0)
    return rng.gamma(4, true / 4, size=(DOCUMENTS, 4, NEURONS)).sum(axis=1), np.full(DOCUMENTS, 4)


def groups(members):
    pool = np.setdiff1d(np.arange(NEURONS), members)
    return {"random": controls.random_groups(NEURONS, len(members), 200),
            "matched": controls.random_groups(pool, len(members), 200)}


def test_the_ratio_of_a_planted_group(planted):
    members = np.arange(10)
    row = influences.ratio(*planted, members, groups(members), seed=0)
    assert row["value"] == pytest.approx(10, rel=0.05) and row["low"] < row["value"] < row["high"]
    assert row["low"] > nulls.ranked_null(*planted, IN_A, 10, seed=0).max()
    assert row["random"] == pytest.approx(1 + 9 * 10 / NEURONS, rel=0.1)
    assert row["matched"] == pytest.approx(1, rel=0.02)


def test_a_group_like_the_others_has_the_median_influence(planted):
    members = np.arange(300, 310)
    row = influences.ratio(*planted, members, groups(members), seed=0)
    assert row["value"] == pytest.approx(1, abs=0.05)
    assert row["high"] < nulls.ranked_null(*planted, IN_A, 10, seed=0).min()


def test_documents_of_unlike_length_count_by_their_positions():
    sums, counts = np.array([[9.0, 1, 1], [3.0, 1, 1]]), np.array([3.0, 1])
    row = influences.ratio(sums, counts, np.array([0]), {}, seed=0)
    assert row["value"] == pytest.approx((12 / 4) / (2 / 4))


def test_ranking_alone_lifts_the_top_to_four_times_the_median():
    # mean of |z| beyond its 98.24 % quantile is 2 phi(q) / 0.0176 with q = 2.374; the median is 0.6745
    sums = np.tile(np.abs(np.random.default_rng(0).normal(size=1536)), (40, 1))  # every document alike: no noise
    null = nulls.ranked_null(sums, np.ones(40), np.arange(40) < 20, 27, seed=0)
    assert null.mean() == pytest.approx(2 * 0.02383 / 0.01758 / 0.6745, rel=0.02)
    other = nulls.ranked_null(sums, np.ones(40), np.arange(40) < 20, 27, seed=1)
    assert null.shape == (nulls.RANKED,) and other.mean() != null.mean()
    dead = np.pad(sums, ((0, 0), (0, 400)))
    assert nulls.ranked_null(dead, np.ones(40), np.arange(40) < 20, 27, seed=0).mean() > 1.2 * null.mean()


def test_half_normal_neurons_do_not_stand_out(monkeypatch):
    """Chosen on half A, measured on half B, with the documents' noise: p is uniform, whatever the network's size."""
    monkeypatch.setattr(nulls, "RANKED", 200)
    p, rng = [], np.random.default_rng(0)
    for _ in range(40):
        true = np.abs(rng.normal(size=NEURONS))
        sums, counts = rng.gamma(2, true / 2, size=(60, NEURONS)), np.ones(60)
        in_a = np.arange(60) % 2 == 0
        members = np.argsort(-sums[in_a].sum(0))[:10]
        value = influences.ratio(sums[~in_a], counts[~in_a], members, {}, seed=0)["value"]
        p.append(controls.empirical_p(value, nulls.ranked_null(sums, counts, in_a, 10, seed=0), "greater"))
    assert np.mean(np.array(p) < 0.05) <= 0.15 and 0.25 < np.mean(p) < 0.75


# ---- tables of planted models

LIVING, DEAD = 700, 20
RANKS = np.arange(1, LIVING + 1) - 0.5
SHELF = 0.01 * calibration.shelf(RANKS, 20, 1.0)
ROUNDED = 0.01 * calibration.law(np.maximum(RANKS, 30))


@pytest.fixture
def tell(computed, monkeypatch):
    """A function that lets the tables read planted influences, one curve a group, instead of a model;
    returns the settings.

    Every third neuron lowers the loss on half A and raises it on half B, the others raise it on A and lower it on B;
    DEAD more have no effect. Common targets have no position in the first four documents.
    """
    def plant(rare=SHELF, common=ROUNDED, count=60, rounding=None, **options):
        rng, found = np.random.default_rng(0), {}
        in_a = np.arange(count) % 2 == 0
        for group, truth, first in (("rare", rare, 0), ("common", common, min(4, count - 1))):
            truth, names = np.append(truth, np.zeros(DEAD)), np.arange(first, count)
            sums, counts = calibration.measured(truth, rng, documents=len(names), noise=0.3)
            sums = sums if rounding is None else rounded(sums, rounding)
            sign = np.where(np.arange(len(truth)) % 3 == 0, -0.5, 0.5) * np.where(in_a[names], 1, -1)[:, None]
            made = map(torch.from_numpy, (names, counts.astype(int), sign * sums, sums))
            found[group] = Influence(*made, entropy_sum=None, unigram_sum=torch.zeros(sums.shape), fallback=0.0)
        monkeypatch.setattr(influences, "influence_sums", lambda settings, revision, group: found[group])
        monkeypatch.setattr(rare_tokens, "positions", lambda settings: pd.DataFrame(
            {"document": np.arange(count), "half": np.where(in_a, "A", "B")}))
        # so none reads other's fits
        return parameters.check({"model": "mini-pythia", "seed": len(rare) + count, **options})

    monkeypatch.setattr(passes, "revisions", lambda settings, default="last": ["step9"])
    monkeypatch.setattr(influences, "DRAWS", 40)
    monkeypatch.setattr(influences, "LAW_DRAWS", 10)
    return plant


@pytest.fixture(scope="module", autouse=True)
def own_fits():
    """No fit of another test module is taken for one of these, or the other way round."""
    influences._fitted.cache_clear()
    yield
    influences._fitted.cache_clear()


def test_sums_are_those_that_aggregate_asks_for(tell):
    for aggregate, part in (("mean_abs", "abs_sum"), ("abs_mean", "change_sum")):
        settings = tell(aggregate=aggregate)
        sums, counts, names = influences.sums(settings, "step9", "common")
        kept = influences.influence_sums(settings, "step9", "common")
        assert np.array_equal(sums, getattr(kept, part)) and sums.dtype == counts.dtype == float
        assert np.array_equal(counts, kept.n) and np.array_equal(names, np.arange(4, 60))


def test_a_shelf_above_its_law_is_a_plateau_and_a_rounded_head_is_none(tell):
    rows = influences.phases(tell())
    assert {"revision", "step", "group", "sign", "rule", "neurons", *influences.FITTED, "reliability", "detectable",
            "positions", "documents"} == set(rows)
    assert set(rows["rule"]) == {"fitted head", "fixed head", "paper's rule"}
    assert len(rows) == 2 * (3 + 2 * 2) and (rows["neurons"][rows["sign"] == "pooled"] == LIVING + DEAD).all()
    found = rows[rows["sign"] == "pooled"].set_index(["group", "rule"])
    assert (found.loc["rare"].loc[["fitted head", "fixed head"], "word"] == "plateau").all()
    assert found.loc[("common", "fixed head"), "word"] == "rounded"
    assert "plateau" not in set(found.loc["common", "word"])
    row = found.loc[("rare", "fitted head")]
    assert row["shelf"] == pytest.approx(20, rel=0.15) and row["shelf"] < row["head"] < 35  # down to the law by a cliff
    assert row["law_end"] == pytest.approx(calibration.TAIL, rel=0.15)
    assert row["delta_low"] <= row["delta"] <= row["delta_high"] and row["delta"] == pytest.approx(1.0, abs=0.25)
    assert row["p_floor"] == row["p_lognormal"] == row["p_half_normal"] == pytest.approx(1 / 41) and row["p_law"] < 0.05
    assert row["null_delta_law_low"] < row["null_sd"] < row["null_delta_law_high"] < row["delta"]
    assert row["slope"] < row["kappa"]
    assert found.loc[("rare", "fixed head"), "head"] == heads.head_size(LIVING)
    shares = found[["head_share", "law_share", "decay_share"]]
    assert np.allclose(shares.sum(axis=1), 1) and (shares["decay_share"] > DEAD / (LIVING + DEAD)).all()


def test_by_the_papers_rule_a_row_says_what_the_rule_finds(tell):
    settings = tell()
    sums, counts, _ = influences.sums(settings, "step9", "rare")
    rule = curve_phases.by_differences(sums.sum(axis=0) / counts.sum())
    row = influences.phases(settings).query("group == 'rare' and rule == \"paper's rule\"").iloc[0]
    assert (row["head"], row["law_end"]) == rule.boundaries and row["head"] > 0
    assert (row["delta"], row["kappa"]) == (rule.delta, rule.kappa)
    assert row["word"] == "" and np.isnan([row["delta_low"], row["p_law"], row["decay_draws"]]).all()


def test_of_the_nulls_the_one_with_the_most_decays_counts(tell):
    measured, verdicts, _ = influences.fitted(tell(), "step9", "rare")
    said = {head: replace(one, decay={"lognormal": 0.2, "half-normal": 0.9, "law": 0.4})
            for head, one in verdicts.items()}
    assert [row["decay_null"] for row in influences.head_rows(measured, said, LIVING + DEAD)] == [0.9, 0.9]


def test_a_sign_comes_from_half_a_and_its_curve_from_half_b(tell):
    settings = tell()
    sums, counts, names = influences.sums(settings, "step9", "rare")
    in_b, lowers = names % 2 == 1, np.arange(LIVING) % 3 == 0
    for sign, chosen in (("boost", ~lowers), ("suppress", lowers)):
        measured, verdicts, curves = influences.fitted(settings, "step9", "rare", sign)
        assert np.array_equal(measured.counts, counts[in_b])
        assert np.array_equal(measured.sums, sums[in_b][:, :LIVING][:, chosen])
        assert set(verdicts) == {"fitted", "fixed"} and all(len(drawn) == 40 for drawn in curves.values())
    rows = influences.phases(settings).query("group == 'rare' and rule == 'fixed head'").set_index("sign")
    assert rows.loc["boost", "neurons"] + rows.loc["suppress", "neurons"] == LIVING  # the dead ones have no sign
    assert rows.loc["boost", "documents"] == 30 and rows.loc["pooled", "documents"] == 60


def test_curves_lie_in_their_bands_and_dead_neurons_at_their_end(tell):
    settings = tell()
    rows = influences.rank_curves(settings)
    assert list(rows) == ["revision", "step", "group", "sign", "rank", *influences.BANDS, "same_tokens"]
    pooled = rows[(rows["group"] == "rare") & (rows["sign"] == "pooled")].set_index("rank")
    assert len(pooled) == LIVING + DEAD and (pooled.loc[LIVING + 1:, influences.BANDS] == 0).all(axis=None)
    living = pooled.loc[:LIVING]
    assert np.log(living["influence"] / SHELF[living.index - 1]).abs().max() < 0.2
    assert (living["law_low"] < living["law_high"]).loc[:100].all() and living["influence"][15] > living["law_high"][15]
    assert (living["low"] <= living["high"]).all() and living["same_tokens"].is_monotonic_decreasing


def test_prominence_tells_head_law_and_decay_and_sets_rare_beside_common(tell, monkeypatch):
    settings = tell()
    controls = np.arange(13), groups(np.arange(13))
    monkeypatch.setattr(influences, "_controls", lambda settings, revision, rows: controls)
    made = influences.prominence(settings)
    assert set(made["statistic"]) == {"ratio", "head", "head fixed", "law", "decay", "contrast"}
    assert (made["neurons"] == LIVING + DEAD).all()
    found = made.set_index(["group", "statistic"])
    assert found.index.is_unique and len(found) == 2 * 4 + 2
    head, fixed, law, decay, contrast = (found.loc[("rare", name)]
                                         for name in ("head", "head fixed", "law", "decay", "contrast"))
    fits = influences.phases(settings).query("group == 'rare' and sign == 'pooled'").set_index("rule")
    for row, rule in ((head, f"{heads.DECIDES} head"), (fixed, "fixed head")):
        assert (row["value"], row["low"], row["high"]) == tuple(fits.loc[rule, ["delta", "delta_low", "delta_high"]])
        assert row["word"] == "plateau" and row["size"] == fits.loc[rule, "head"]
        assert row["p_floor"] <= row["p_law"] < 0.05
    assert law["value"] == fits.loc[f"{heads.DECIDES} head", "kappa"] == pytest.approx(calibration.KAPPA, abs=0.05)
    assert law["verdict"] in ("not rejected", "cannot tell it from a lognormal") and 0 < law["p_fit"] <= 1
    assert decay["value"] >= 0.95 and decay["null"] == fits.loc[f"{heads.DECIDES} head", "decay_null"]
    other = found.loc[("common", "head fixed")]
    assert contrast["value"] == pytest.approx(fixed["value"] - other["value"], abs=0.15) and contrast["low"] > 0
    assert contrast["p_laws"] == pytest.approx(1 / 41) and contrast["p_swap"] < 0.05 and contrast["null_sd"] > 0.1
    assert contrast["documents"] == 56 and other["word"] == "rounded" and other["high"] < other["null_sd"]


def test_matched_controls_hold_no_neuron_of_the_group_or_of_a_raised_head(tell, monkeypatch):
    settings, asked, rng = tell(), [], np.random.default_rng(0)
    weights = torch.from_numpy(rng.normal(size=(8, LIVING + DEAD)))
    values = rng.normal(size=(50, LIVING + DEAD))
    monkeypatch.setattr(passes, "activations", lambda settings, revision: (values, np.arange(50)))
    monkeypatch.setattr(passes, "subject", lambda settings, revision: type("Subject", (), {"w_out": weights}))
    monkeypatch.setattr(controls, "control_groups", lambda sample, group, seed, apart: asked.append((group, apart))
                        or {})
    rows = influences.influence(settings)
    influences._controls(settings, "step9", rows)
    (members, apart), = asked
    size = influences.fitted(settings, "step9", "rare")[0].own["fitted"].size[0]
    assert np.array_equal(members, influences.rare_group(rows)) and len(apart) == size > len(members)
    assert np.array_equal(apart[: len(members)], members)
    monkeypatch.setattr(influences, "RAISED", ())  # no word is that of a raised head
    influences._controls(settings, "step9", rows)
    assert len(asked[1][1]) == 0


def test_a_sign_with_too_few_neurons_is_left_out(tell):
    settings = tell(SHELF[:500], ROUNDED[:500])  # a third of 500 lower the loss
    for made in (influences.phases, influences.rank_curves):
        assert list(made(settings)["sign"].unique()) == ["pooled", "boost"]


@pytest.mark.parametrize("neurons, documents", [(150, 60), (700, 5)])
def test_what_cannot_be_tested_has_rows_without_a_word(tell, monkeypatch, neurons, documents):
    settings = tell(SHELF[:neurons], ROUNDED[:neurons], documents)
    rows = influences.phases(settings)
    assert (rows["word"] == "").all() and rows[["p_law", "detectable", "reliability"]].isna().all(axis=None)
    assert rows["delta"].isna().tolist() == [True, True, False] * 2 and (rows["sign"] == "pooled").all()
    curves = influences.rank_curves(settings)
    assert len(curves) == 2 * (neurons + DEAD) and curves["influence"].isna().all()
    assert (curves["same_tokens"] >= 0).all()
    monkeypatch.setattr(influences, "_ratio_of", lambda *_: {"statistic": "ratio", "value": 1.0})
    found = influences.prominence(settings).set_index("statistic").drop("ratio")
    assert found["value"].isna().all() and (found["word"] == "").all()
    assert (found.loc["law", "verdict"] == influences.UNTESTED).all()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_rounding_moves_no_table(tell, seed):
    tables = (influences.influence, influences.phases, influences.rank_curves)
    settings = tell()
    expected = [made(settings) for made in tables]
    settings = tell(rounding=seed)
    influences._fitted.cache_clear()
    for made, before in zip(tables, expected):
        assert_same(made(settings), before)
