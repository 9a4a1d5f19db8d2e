"""From tables to evidence to verdicts: each claim's row, what is missing, the page's table,
and a model without training."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from rare_token_neurons import files, paths, settings as parameters
from rare_token_neurons.figures import axes as plots, claims as claim_figures
from rare_token_neurons.runner import sweep
from rare_token_neurons.statistics import claims, spectra as spectra_of
from rare_token_neurons.statistics.claims import NOT, PARTLY, REPRODUCED, UNTESTED
from rare_token_neurons.tables import activations, claims as claim_tables, emergence, influence as influences
from rare_token_neurons.tables import stage, weights
from rare_token_neurons.text import rarity

P = {"p_random": 0.001, "p_matched": 0.002}
ALIKE = {"less_random": 0.01, "less_random_low": -0.01, "less_random_high": 0.02, "less_matched": 0.01,
         # of a module: no more than control groups
         "less_matched_low": -0.01, "less_matched_high": 0.02, "positions": 900, "documents": 120, **P}


def head(group="rare", statistic="ratio", **columns):
    return pd.DataFrame([{"revision": "step9", "group": group, "statistic": statistic, "value": 9.0, "low": 8.0,
                          "high": 11.0, "null": 4.0, "positions": 1000, "documents": 120, "p_lognormal": 0.01,
                          "p_half_normal": 0.03, "p_law": 0.02, "p_floor": 1 / 201, "p_laws": 0.04, "word": "plateau",
                          "null_sd": 0.2, "verdict": "", "p_fit": np.nan, **P, **columns}])


def heads():
    """The rows of `prominence` on heads, law and decay."""
    rows = [head(statistic="head", value=0.5, low=0.3, high=0.7, null=0.0),
            head(statistic="head fixed", value=0.4),
            head("common", "head", value=-0.4, low=-0.6, high=-0.2, word="rounded"),
            head(statistic="law", value=0.45, low=0.4, high=0.5, verdict="not rejected", p_fit=0.31),
            head("common", "law", value=0.6, verdict="rejected"),
            head(statistic="decay", value=0.97, low=np.nan, high=np.nan, null=0.99),
            head("common", "decay", value=0.2, low=np.nan, high=np.nan),
            head(statistic="contrast", value=0.3, low=0.1, high=0.6, null=0.0)]
    return pd.concat(rows, ignore_index=True)


def contrast(**columns):
    return pd.DataFrame([{"revision": "step9", "where": where, "group": "rare", "value": 0.4, "random": 0.5,
                          "less_random": -0.1, "less_random_low": -0.15, "less_random_high": -0.04,
                          "less_matched": -0.2, "less_matched_low": -0.25, "less_matched_high": -0.05, "tokens": 800,
                          "documents": 110, **P, **columns}
                         for where in ("rare", "all")])


def course(step=0, **columns):
    """Delta of the fixed head, rare targets, over training."""
    known = ("first", step, -0.3, "rounded"), ("last", 900, 0.5, "plateau"), ("gain", pd.NA, 0.8, "")
    rows = [{"part": part, "step": at, "value": value, "low": value - 0.1, "high": value + 0.1, "word": word}
            for part, at, value, word in known]
    made = pd.DataFrame(rows).assign(group="rare", statistic="delta", null_sd=0.25, p_laws=0.01, positions=500,
                                     documents=120)
    return pd.concat([made.assign(**columns), made.assign(group="common", value=9.0), made.assign(statistic="kappa")])


def spectra(matrices=("gate", "up", "out"), **columns):
    rows = [{"matrix": name, "statistic": statistic, "value": 2.0, "low": 1.8, "high": 2.1, "p_random": 0.01,
             "p_matched": 0.01, "random_mean": 3.0, "random_low": 2.6, "random_high": 3.6, "matched_mean": 3.0,
             "matched_low": 2.6, "matched_high": 3.6} for name in matrices for statistic in claim_tables.HEAVY]
    made = pd.DataFrame(rows).assign(revision="", group="rare", rows="raw", positions=1000, documents=130, missing=0.01,
                                     **columns)
    return pd.concat([made, made.assign(rows="standardised"), made.assign(group="common")])


def judged(name, evidence, gated=False):
    """The verdict on one claim, and the reason."""
    claim = next(claim for claim in claims.of_mlp(gated) if claim.name == name)
    return claims.verdict(claim, evidence, np.array(evidence.p))


# ---- one function a claim


def test_each_claim_takes_its_row():
    assert claim_tables.ratio(head()) == claims.Evidence(9.0, 8.0, 11.0, 4.0, (0.03,), 1000)
    raised = claim_tables.head(heads())
    assert (raised.value, raised.low, raised.null, raised.p, raised.word) == (0.5, 0.3, 0, (0.01, 0.03, 0.02),
                                                                              "plateau")
    assert claim_tables.law(heads()).word == "not rejected"
    assert claim_tables.law(heads()).detail == "Goodness of fit: p = 0.31."
    assert (claim_tables.decay(heads()).value, claim_tables.decay(heads()).null) == (0.97, 0.99)
    assert claim_tables.contrasted(heads()).value == 0.3 and claim_tables.contrasted(heads()).p == (0.04,)
    common = claim_tables.common(heads())
    assert (common.value, common.high, common.word, common.margin, common.p) == (-0.4, -0.2, "rounded", 0.2, ())
    row = claim_tables.dimension(contrast(statistic="effective dimension"))
    assert (row.value, row.low, row.high, row.null, row.p, row.positions) == (-0.1, -0.15, -0.04, 0, (0.001, 0.002),
                                                                              800)
    pairs = pd.concat([contrast(relation=name, measure="correlation", statistic="mean")
                       for name in ("within", "between")])
    assert claim_tables.within(pairs).value == -0.2 and claim_tables.between(pairs).value == -0.1


def test_the_parts_of_a_claim_are_judged_apart_and_together():
    table = claims.judge(claim_tables.collect({"prominence": heads()})).set_index("name")
    assert table.loc[["C2 head", "C2 law", "C2 decay"], "verdict"].tolist() == [REPRODUCED, REPRODUCED, PARTLY]
    assert table.reason["C2 decay"] == "as in any sample"
    assert set(table.claim_verdict[["C2 head", "C2 law"]]) == {PARTLY}
    assert table.loc[["C7 contrast", "C7 common"], "verdict"].tolist() == [REPRODUCED, REPRODUCED]
    assert table.word["C7 common"] == "rounded" and table.margin["C7 common"] == 0.2
    assert "none of 200" not in table.sentence["C2 head"] and table.p_floor["C2 head"] == 1 / 201
    lined = heads().assign(word="on the line", p_lognormal=0.001, p_half_normal=0.001, p_law=0.3)
    table = claims.judge(claim_tables.collect({"prominence": lined})).set_index("name")
    assert table.verdict["C2 head"] == PARTLY and table.reason["C2 head"] == "not beyond the law itself"


def test_of_random_and_matched_groups_the_one_that_speaks_less_for_the_claim_counts():
    found = {"less_random": 0.3, "less_random_low": 0.1, "less_random_high": 0.5, "less_matched": 0.2,
             "less_matched_low": 0.15, "less_matched_high": 0.25}
    assert claims.less_controls(found, "greater") == (0.3, 0.1, 0.5)
    assert claims.less_controls(found, "less") == claims.less_controls(found, "absent") == (0.3, 0.1, 0.5)
    assert claims.less_controls(found | {"less_random_low": 0.2}, "greater") == (0.2, 0.15, 0.25)
    assert claims.less_controls(found | {"less_matched_low": -0.6}, "absent") == (0.2, -0.6, 0.25)
    assert claims.less_controls({name: found[name] for name in found if "random" in name}, "greater") == (0.3, 0.1, 0.5)
    # no interval, no evidence
    assert claims.less_controls(found | {"less_random_high": np.nan}, "less") == (0.2, 0.15, 0.25)


def test_emergence_is_the_gain_and_before_training_there_is_no_plateau():
    found, before = claim_tables.emergence(course()), claim_tables.before_training(course())
    assert (found.value, found.null, found.p, found.floor) == (0.8, 0, (0.01,), 1 / 201)
    assert (before.value, before.word, before.margin) == (-0.3, "rounded", 0.25)
    assert judged("C3 emergence", found)[0] == judged("C3 before training", before)[0] == REPRODUCED
    for function in (claim_tables.emergence, claim_tables.before_training):
        with pytest.raises(claim_tables.Missing, match="not step 0"):
            function(course(step=16))


def test_every_matrix_has_a_row_and_a_sentence_on_other_measures():
    found = claim_tables.hill(spectra(), "gate")
    assert found.value == pytest.approx(-1.0) and found.missing == 0.01 and found.p == (0.01, 0.01)
    assert found.detail == ("A heavier tail than random groups and matched groups by Hill by fix-finger, Hill at k = "
                            "m/2, stable rank, entropy.")
    split = spectra()
    split.loc[split["statistic"].isin(["stable_rank", "entropy"]), "p_matched"] = 0.2
    assert claim_tables.hill(split,
                             "up").detail.endswith("by Hill by fix-finger, Hill at k = m/2; not by stable rank, "
                                                   "entropy.")
    poor = claim_tables.hill(split.assign(imbalance_norm=0.4), "up")
    assert poor.unmatched and poor.detail.endswith("entropy.") and "matched" not in poor.detail
    assert claim_tables.hill(spectra(matched_mean=2.1, matched_low=1.7, matched_high=2.6),
                             "up").value == pytest.approx(-0.1)
    with pytest.raises(claim_tables.Missing):
        claim_tables.hill(spectra(), "in")


def test_of_a_gated_mlp_no_sign_counts_and_both_input_matrices_do():
    pairs = pd.concat([contrast(relation=name, measure="correlation", statistic=statistic, gated=True,
                                less_random=value, less_random_low=value - 0.05, less_random_high=value + 0.05,
                                less_matched=9.0, less_matched_low=8.0)
                       for name in ("within", "between")
                       for statistic, value in (("mean", -0.3), ("mean absolute", 0.2))])
    modular = pd.DataFrame([{"weights": name, "main": name == "absolute", "gated": True, **ALIKE}
                            for name in ("positive", "absolute")])
    tables = {"prominence": heads(), "coactivation": pairs, "modules": modular, "weight_groups": spectra()}
    assert all(claim_tables.gated({name: tables[name]}) for name in ("coactivation", "modules", "weight_groups"))
    table = claim_tables.judged(tables).set_index("name")
    assert table.value["C5 within"] == 0.2 and table.verdict["C5 within"] == REPRODUCED
    assert "mean absolute" in table.statistic["C5 within"] and "absolute edges" in table.statistic["C8"]
    assert (table.verdict["C5 between"], table.reason["C5 between"]) == (UNTESTED,
                                                                         "the sign of a gated neuron is arbitrary")
    assert table.verdict[["C6 gate", "C6 up", "C8"]].tolist() == [REPRODUCED] * 3 and "C6 W_in" not in table.index
    plain = claim_tables.judged(tables | {"coactivation": None, "modules": None,
                                          "weight_groups": spectra(["in", "out"])})
    assert plain.name.tolist() == [claim.name for claim in claims.CLAIMS]
    assert plain.set_index("name").verdict["C6 W_in"] == REPRODUCED


def test_the_interval_of_a_difference_adds_squared_distances():
    assert claims.apart(2.0, 1.7, 2.3, 3.0, 2.6, 3.4) == pytest.approx((-1.0, -1.5, -0.5))
    # a fixed group against a random one
    assert claims.apart(2.0, 2.0, 2.0, 3.0, 2.6, 3.4) == pytest.approx((-1.0, -1.4, -0.6))


def test_of_a_module_the_farther_control_counts():
    found = {"less_random": 0.01, "less_random_low": -0.01, "less_random_high": 0.02, "less_matched": 0.03,
             "less_matched_low": 0.0, "less_matched_high": 0.04, "positions": 900, "documents": 120}
    table = pd.DataFrame([found | {"main": True}, found | {"main": False,
                                                           "less_matched": 9.0}]).assign(weights="positive")
    assert (claim_tables.modules(table).value, claim_tables.modules(table).high) == (0.03, 0.04)
    assert claim_tables.modules(table.assign(less_random_low=-0.05)).low == -0.05
    assert claim_tables.modules(table).p == ()


def test_the_last_checkpoint_counts_and_few_documents_are_noted():
    two = pd.concat([head(revision="step0", value=1.0), head(documents=60)])
    found = claim_tables.collect({"prominence": two})["C1"]
    assert found.value == 9.0 and found.note == "60 documents only"


def test_where_matched_groups_match_poorly_random_ones_count_alone():
    missed = {"imbalance_scale": -0.54, "imbalance_norm": 0.3}
    poor = claim_tables.dimension(contrast(statistic="effective dimension", **missed))
    assert poor.note == "matched groups differ by 0.54 SD in scale" and poor.unmatched
    assert (poor.value, poor.low, poor.high, poor.p[0]) == (-0.1, -0.15, -0.04, 0.001) and np.isnan(poor.p[1])
    assert judged("C4", poor) == (PARTLY, "cannot be tested against matched groups")
    few = claim_tables.dimension(contrast(statistic="effective dimension", **missed | {"documents": 60}))
    assert few.note == "60 documents only; matched groups differ by 0.54 SD in scale"
    for missed in ({"imbalance_scale": 0.25, "imbalance_norm": -0.1},
                   {"imbalance_scale": np.nan, "imbalance_norm": np.nan}, {}):
        fine = claim_tables.dimension(contrast(statistic="effective dimension", **missed))
        assert fine.note == "" and not fine.unmatched
    none = claim_tables.dimension(contrast(statistic="effective dimension", less_matched=np.nan, p_matched=np.nan))
    assert none.note == "no matched groups" and judged("C4", none)[0] == PARTLY
    nothing = contrast(statistic="effective dimension", less_random=np.nan, less_matched=np.nan, imbalance_scale=0.5)
    assert claim_tables.dimension(nothing).note == ""  # the reason is that there is no estimate
    assert judged("C4", claim_tables.dimension(nothing))[0] == UNTESTED


def test_a_module_needs_matched_groups_that_match():
    found = ALIKE | {"main": True, "weights": "positive"}
    for missed, verdict in (({}, REPRODUCED), ({"imbalance_norm": 0.26}, UNTESTED),
                            ({"less_matched": np.nan}, UNTESTED)):
        made = claim_tables.modules(pd.DataFrame([found | missed]))
        assert judged("C8", made)[0] == verdict and made.unmatched == (verdict == UNTESTED) and made.p == ()


def test_the_note_on_a_poor_match_stands_beside_the_verdict():
    poor = claim_tables.dimension(contrast(statistic="effective dimension", imbalance_scale=-0.54))
    table = claims.judge({"C4": poor}).set_index("name").loc["C4"]
    assert claim_figures.finding(table).endswith("; matched groups differ by 0.54 SD in scale")
    figure, ax = plots.panels()
    claim_figures.panel(ax, table, (-1, 1))
    assert [one.get_text() for one in ax.texts][1:] == ["matched groups differ by 0.54 SD in scale"]
    plots.plt.close(figure)


# ---- what is missing


def test_what_is_missing_cannot_be_tested_and_says_what_to_run():
    found = claims.judge(claim_tables.collect({"prominence": head(), "coactivation": None})).set_index("name")
    assert found.verdict["C1"] == REPRODUCED and set(found.verdict.drop("C1")) == {UNTESTED}
    assert found.reason["C4"] == "no table yet: run notebook 05"
    assert found.reason["C3 emergence"].endswith("run notebook 04") and "0 rows" in found.reason["C2 head"]
    alone = claims.judge(claim_tables.collect({"prominence": head(revision="")})).set_index("name")
    assert alone.reason["C3 emergence"] == "the model has no checkpoints"
    assert set(claims.judge(claim_tables.collect({})).reason[:2]) == {claim_tables.PENDING}


def test_the_claims_have_a_source_each():
    assert list(claim_tables.SOURCES) == list(dict.fromkeys(claim.name for claim in claims.EVERY))
    assert {source for source, _ in claim_tables.SOURCES.values()} == set(claim_tables.NOTEBOOKS)


# ---- the table of all models


def test_the_table_is_made_anew_when_one_that_it_reads_comes_changes_or_goes(monkeypatch, places):
    settings = parameters.check({"positions": 700})
    place = claim_tables.everywhere(settings).results / "claims.parquet"
    assert place.relative_to(places / "results").parts == (parameters.ALL_MODELS, "positions=700", "claims.parquet")
    with pytest.raises(FileNotFoundError, match="claims.parquet"):
        claim_tables.claims(replace(settings, recompute="never"))

    def values():
        table = claim_tables.claims(settings)
        assert list(table.columns)[0] == "model" and table.equals(files.read_table(place))
        assert list(table["model"].unique()) == [one.model for one in claim_tables.models(settings)]
        assert len(table) == 4 * len(claims.CLAIMS)
        return table[table["name"] == "C1"].set_index("model")["value"].dropna().to_dict()

    assert values() == {}
    other = replace(settings, model="mini-pythia").results / "prominence.parquet"
    files.write_table(other, head())
    assert values() == {"mini-pythia": 9.0}
    paper = claim_tables.grid()[1].results / "prominence.parquet"
    files.write_table(paper, head(value=7.0))
    assert values() == {"mini-pythia": 9.0, "EleutherAI/pythia-410m-deduped": 7.0}
    files.write_table(other, head(value=8.0))
    assert values() == {"mini-pythia": 8.0, "EleutherAI/pythia-410m-deduped": 7.0}
    paper.unlink()
    known, before = claim_tables.claims(replace(settings, recompute="never")), values()
    assert before == {"mini-pythia": 8.0} and known["value"].notna().sum() == 2  # as it lay there


def test_a_model_on_request_has_a_column_where_its_tables_are_and_says_that_they_were_committed(monkeypatch, tmp_path):
    monkeypatch.setattr(parameters, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(stage, "CACHE", tmp_path / "cache")
    settings = parameters.check({})
    assert [one.model for one in claim_tables.models(settings)][:2] == ["smollm2", "mini-pythia"]
    place = replace(settings, model="gemma3").results / "prominence.parquet"
    files.write_table(place, head())
    table = claim_tables.claims(settings)
    assert list(table["model"].unique())[:3] == ["smollm2", "gemma3", "mini-pythia"]
    assert "gemma3 (from committed tables)" in set(claim_figures.marked(table, settings)["model"])
    stage.table_at(place, "key", head)  # made here now, with the same content
    assert claim_tables.from_commit(settings) == [] and claim_figures.marked(table, settings).equals(table)


# ---- the page's table, the paper's grid


def test_the_page_has_a_column_a_model_and_one_for_what_was_not_run():
    parts = [claims.judge(claim_tables.collect(tables)).assign(model=name) for name, tables in
             (("small", {"prominence": head()}), ("owner/one", {}), ("owner/two", {}))]
    page = claim_figures.markdown(pd.concat(parts)).splitlines()
    assert page[0] == "| claim | statistic | paper | small | one and two |"
    assert page[2].startswith("| C1 |") and "**reproduced**" in page[2] and "9 [8, 11], null 4" in page[2]
    # C2, C3, C5 and C7 have parts
    assert page[2].endswith("| not run yet |") and len(page) == 2 + len(claims.CLAIMS) + 4
    assert {line.count("|") for line in page} == {6}


def test_the_figure_marks_null_paper_margin_and_verdict():
    table = claims.judge(claim_tables.collect({"prominence": pd.concat([head(),
                                                                        head("common", "head")])})).set_index("name")
    figure, axes = plots.panels(1, 3)
    for ax, name in zip(axes, ("C1", "C7 common", "C4")):
        claim_figures.panel(ax, table.loc[name], claim_figures.limits(table.loc[[name]]))
    assert [ax.texts[0].get_text().split(":")[0] for ax in axes] == [REPRODUCED, UNTESTED, UNTESTED]
    marks = [[line.get_marker() for line in ax.lines] for ax in axes]
    # C1: no number in the paper
    assert "o" in marks[0] and "D" not in marks[0] and "D" in marks[2] and "o" not in marks[2]
    assert len(axes[1].patches) == 1 and not axes[0].patches  # the margin of an absence
    assert axes[0].get_xlim()[0] < 4 and axes[0].get_xlim()[1] > 11
    plots.plt.close(figure)
    counted = claim_figures.counted(table.reset_index())
    assert counted == "1 of 8 claims reproduced,\n0 partly, 0 not, 7 cannot be tested"


def test_an_axis_over_much_more_than_itself_is_logarithmic():
    rows = pd.DataFrame([{"value": 29.0, "low": 27.0, "high": 31.0, "null": 4.0, "paper": np.nan, "margin": np.nan}])
    assert claim_figures.limits(rows) == pytest.approx((4 / 1.3, 31 * 1.3))
    low, high = claim_figures.limits(rows.assign(margin=0.05, null=0.0, value=0.02, low=0.01, high=0.03))
    assert low < -0.05 and 0.05 < high < 0.2


def test_the_grid_is_the_papers_configuration():
    rows = claim_tables.grid()
    assert [row.jobs[0].model for row in sweep.read(paths.DATA / "paper_grid.csv")] == [one.model for one in rows]
    assert [one.model for one in rows] == ["EleutherAI/pythia-70m-deduped", "EleutherAI/pythia-410m-deduped"]
    for one in rows:
        assert one.steps == (0, 4000, *range(14000, 124001, 10000), 143000) and len(one.steps) == 15
        assert (one.rare_percentile, one.rare_of, one.ablation) == (50.0, "target", "mean")
        assert one.text == "stas/c4-en-10k[:500]" and rarity.BLOCK == 256


# ---- a model without training: random weights through the same tables


@pytest.fixture(scope="module")
def untrained(tmp_path_factory, pile):
    """Tables of a suite of two "checkpoints" whose weights are both random; without weightwatcher's fits,
    which take a minute."""
    folder, kept = tmp_path_factory.mktemp("untrained"), pytest.MonkeyPatch()
    for seed, step in enumerate(("step0", "step1")):
        torch.manual_seed(seed)
        config = GPTNeoXConfig(vocab_size=8192, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                               intermediate_size=600, max_position_embeddings=256)
        GPTNeoXForCausalLM(config).save_pretrained(folder / "model" / step)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(paths.MINI_PYTHIA / name, folder / "model")
    pieces = pile["text"].str.slice(0, 3000)
    (folder / "text.txt").write_text("\n\n".join(pieces[pieces.str.len() > 2000].iloc[:: len(pieces) // 260]),
                                     encoding="utf-8")
    kept.setattr(parameters, "RESULTS", folder / "results")
    kept.setattr(stage, "CACHE", folder / "cache")
    kept.setattr(weights, "DRAWS", 200)
    columns = [*spectra_of.FITTED, "status", "warning", "log"]
    kept.setattr(spectra_of, "metrics", lambda matrices, **options: pd.DataFrame(columns=columns))
    settings = parameters.check({"model": str(folder / "model"), "text": str(folder / "text.txt"), "positions": 600})
    made = {"prominence": influences.prominence, "emergence_statistics": emergence.emergence_statistics,
            "activation_dimension": activations.activation_dimension, "coactivation": activations.coactivation,
            "weight_groups": weights.weight_groups}
    yield {name: function(settings) for name, function in made.items()}
    kept.undo()


def test_random_weights_reproduce_nothing(untrained):
    table = claim_tables.judged(untrained)
    found = table.drop_duplicates("id").set_index("id").claim_verdict
    told = table[["name", "value", "low", "high", "null", "q", "positions", "reason"]].to_string()
    assert (found[["C1", "C5", "C6", "C7"]] == NOT).all() and found["C8"] == UNTESTED, told
    rows = table.set_index("name")
    assert (rows.verdict[["C2 head", "C3 emergence"]] == NOT).all() and not rows.verdict.isin([REPRODUCED]).any(), told
    # a group that is chosen for its large weights differs from random ones by that: "partly", where no others match it
    assert found["C4"] == NOT or (found["C4"], rows.reason["C4"]) == (PARTLY, claims.UNMATCHED), told
    assert np.isfinite(table.loc[table["id"].isin(["C1", "C4", "C5", "C6"]),
                                 ["value", "low", "high"]]).all(axis=None), told
