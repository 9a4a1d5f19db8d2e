"""Null curves of positions, and the measured head against them; the full counts of the calibration; shares of
token-frequency neurons."""

from multiprocessing.pool import ThreadPool

import numpy as np
import pandas as pd
import pytest

from rare_token_neurons import files, keys, paths, settings as parameters
from rare_token_neurons.curve import calibration, heads
from rare_token_neurons.models import checkpoints
from rare_token_neurons.statistics import documents as over_documents
from rare_token_neurons.statistics.controls import empirical_p
from rare_token_neurons.tables import checkpoints as passes, influence as influences, nulls as null_tables
from rare_token_neurons.tables import rare_tokens, robustness, stage


def effects(n=300, neurons=200, documents=40, seed=0, truth=None):
    """Absolute changes (n, neurons) around a lognormal (or given) influence, and documents (n,)."""
    rng = np.random.default_rng(seed)
    truth = np.exp(rng.standard_normal(neurons)) if truth is None else truth
    return truth * rng.lognormal(-0.5, 1.0, (n, neurons)), rng.integers(0, documents, n)


def test_shuffled_labels_take_so_many_positions_from_both_kinds():
    values, owners = effects()
    values[:] = np.arange(len(values))[:, None] >= 150  # 1 where the position is common
    rng = np.random.default_rng(0)
    curves = null_tables.relabelled(values, owners, 150, "same_tokens", rng)
    assert curves.shape == (null_tables.DRAWS, 200) and curves.mean() == pytest.approx(0.5, abs=0.02)
    assert curves.mean(axis=1).std() > 0.01  # another draw each time
    assert (np.diff(curves, axis=1) <= 0).all()


RANKS = np.random.default_rng(0).uniform(0, 400, 400)
SHELF, LAW = calibration.shelf(RANKS, 20, 1.0), calibration.law(RANKS)


def test_alike_positions_tell_nothing_and_a_planted_shelf_stands_above_those_of_a_law():
    rng = np.random.default_rng(0)

    def p_of(truth, other, seed):
        (one, mine), (two, theirs) = (effects(400, 400, truth=part, seed=seed + at)
                                      for at, part in enumerate((truth, other)))
        null = heads.find(null_tables.resampled(*over_documents.by_document(two, theirs), "split_half", rng))
        found = heads.measure(*over_documents.by_document(one, mine), draws=4)
        return empirical_p(found.own[heads.DECIDES].score[0], null.score, "greater")

    assert sum(p_of(SHELF, SHELF, seed) < 0.05 for seed in range(0, 12, 2)) <= 1
    assert p_of(SHELF, LAW, 0) < 0.02


@pytest.fixture
def planted(computed, monkeypatch):
    """Settings of a model of which influence is known: a shelf above a law for rare targets, a law for common ones;
    before training all neurons are alike. Losses and positions are made up."""
    made = parameters.check({"model": "mini-pythia"})
    truth = {("step9", "rare"): SHELF, ("step9", "common"): LAW, ("step0", "rare"): np.full(400, 0.1)}
    drawn = {place: effects(400, 400, truth=values, seed=1) for place, values in truth.items()}
    sums = {place: over_documents.by_document(*pair) for place, pair in drawn.items()}
    for _, (total, _) in sums.items():
        total[:, 7] = 0.0  # a dead neuron
    monkeypatch.setattr(passes, "revisions", lambda settings, default="last": ["step9"])
    monkeypatch.setattr(checkpoints, "revisions", lambda model, stage: ["step0", "step9"])
    monkeypatch.setattr(checkpoints, "lacking", lambda model, revision: "")
    monkeypatch.setattr(checkpoints, "model_hash", lambda model, revision: "")
    monkeypatch.setattr(influences, "sums", lambda settings, revision, group: (*sums[revision, group], np.arange(40)))
    fits = {group: influences.fit(*sums["step9", group], made) for group in stage.GROUPS}
    monkeypatch.setattr(influences, "fitted", lambda settings, revision, group: fits[group])

    rows = {name: np.column_stack([np.full(400, at), np.arange(400)]) for at, name in enumerate(stage.GROUPS)}
    pool = {at: drawn["step9", name][0].astype(np.float32) for at, name in enumerate(stage.GROUPS)}
    for values in pool.values():
        values[:, 7] = 0.0
    taken = type("Pool", (), {"__getitem__": lambda self, part: pool[part[0, 0]][part[:, 1]]})()
    monkeypatch.setattr(robustness, "default", lambda settings: type("Cell", (), {"ablation": "mean"}))
    monkeypatch.setattr(robustness, "pools_of", lambda settings: (None, {"mean": taken}))
    monkeypatch.setattr(robustness, "positions", lambda settings, cell: rows)
    monkeypatch.setattr(robustness, "owners_of",
                        lambda settings, part: drawn["step9", stage.GROUPS[part[0, 0]]][1][part[:, 1]])
    monkeypatch.setattr(robustness, "changes", lambda settings, part, how: taken)
    monkeypatch.setattr(null_tables, "matched", lambda settings, rare: (rows["common"][::2], 3.0, 2.9))
    null_tables._all.cache_clear()
    yield made
    null_tables._all.cache_clear()


def test_the_head_stands_beside_every_null(planted):
    table, bands = null_tables.null_heads(planted), null_tables.null_bands(planted)
    assert table["null"].tolist() == ["lognormal", "half-normal", "exponential", "law", "untrained model",
                                      "shuffled labels", "common, same number", "common, same loss"]
    found = table.set_index("null")
    fit, verdicts, _ = influences.fitted(planted, "step9", "rare")
    for name in ("lognormal", "half-normal", "law"):  # as everywhere
        assert found["p"][name] == verdicts[heads.DECIDES].p[name]
    assert (found["delta"].iloc[:5] == fit.own[heads.DECIDES].delta[0]).all() and found["delta"].iloc[5:].nunique() == 1
    assert found["score"]["law"] == fit.own[heads.DECIDES].score[0]
    assert (table["score"] > table["null_high"]).equals(table["p"] < 0.05) and (table["p"] < 0.05)[:4].all()
    assert (table["p_floor"] == 1 / 201).all() and (table["null_low"] <= table["null_median"]).all()
    assert found["head"]["law"] == pytest.approx(20, abs=12) and (found["positions"] == 400).all()
    assert found["note"]["common, same loss"] == "mean loss 2.90 nats, of the rare ones 3.00"
    assert list(bands) == ["null", "rank", "influence", "low", "high"] and set(bands["null"]) == set(found.index)
    assert (bands["low"] <= bands["high"]).all()
    assert bands.groupby("null")["rank"].agg(["min", "max"]).eq([1, 399]).all(axis=None)
    assert bands["influence"].iloc[0] == fit.curve[0]


def test_the_power_law_is_tested_as_everywhere(planted):
    table = null_tables.power_laws(planted)
    assert table[["group", "part"]].to_numpy().tolist() == [
        [group, part] for group in stage.GROUPS for part in ("middle", "upper tail")]
    law = influences.law_test(*influences.sums(planted, "step9", "rare")[:2], 0)
    assert (table["verdict"][0], table["kappa"][0], table["p_fit"][0]) == (law.verdict, law.kappa, law.p_fit)


def test_a_curve_of_few_neurons_has_no_head(planted, monkeypatch):
    few = effects(400, 150, seed=1)
    monkeypatch.setattr(influences, "sums", lambda *_: (*over_documents.by_document(*few), np.arange(40)))
    monkeypatch.setattr(influences, "fitted", lambda *_: (None, {}, {}))
    monkeypatch.setattr(heads, "testable", lambda *curves: False)
    assert len(null_tables.null_heads(planted)) == len(null_tables.null_bands(planted)) == 0
    assert null_tables.power_laws(planted)["part"].tolist() == ["upper tail"] * 2


@pytest.fixture
def keyed(monkeypatch):
    """What decides each table that is asked for; none is made."""
    found = []
    monkeypatch.setattr(keys, "key", lambda decide, inputs, modules: found.append((decide, inputs)))
    monkeypatch.setattr(stage, "table_at", lambda *arguments, **options: None)
    return found


@pytest.mark.parametrize("known, expected", [(["step0", "step9"], {"step9", "step0"}), (["step9"], {"step9"}),
                                             (["step0"], {"step0"}), ([], {""})])
def test_the_untrained_checkpoint_decides_the_nulls_where_there_is_one(monkeypatch, keyed, known, expected):
    asked = []
    monkeypatch.setattr(checkpoints, "revisions", lambda model, stage: asked.append(model) or known)
    monkeypatch.setattr(checkpoints, "lacking", lambda model, revision: "")
    monkeypatch.setattr(checkpoints, "model_hash", lambda model, revision: f"{model} at {revision}")
    monkeypatch.setattr(rare_tokens.Text, "inputs", lambda settings: {"corpus": "text"})
    monkeypatch.setattr(passes, "revisions", lambda settings, default="last": known[-1:] or [None])
    for function in (null_tables.null_heads, null_tables.null_bands):
        function(parameters.check({"model": "smollm2"}))
        asked.clear()
        function(parameters.check({"model": "smollm2", "recompute": "never"}))  # tables are read, no model is asked for
        assert not asked
    made = {"corpus": "text"} | {name: f"smollm2 at {name or None}" for name in expected}
    assert [inputs for _, inputs in keyed] == [made, {}, made, {}]


def test_the_promises_depend_on_their_number_and_the_seed_alone(keyed):
    for values in ({}, {"model": "mini-pythia"}, {"positions": 1_000, "ablation": "zero"}, {"positions": 999},
                   {"seed": 1}):
        null_tables.promises(parameters.check({"model": "smollm2"} | values))
    usual = ({"seed": 0}, {"runs": 40})
    assert keyed == [usual] * 3 + [({"seed": 0}, {"runs": 10}), ({"seed": 1}, {"runs": 40})]


def test_the_calibration_goes_on_sample_by_sample(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(stage, "CACHE", tmp_path / "cache")
    counted = {name: [] for name in null_tables.COUNTED}
    for name, (_, samples) in null_tables.COUNTED.items():
        told = lambda runs, names, name=name: counted[name].append(names) or [{"sample": names[0], "runs": runs}]
        monkeypatch.setitem(null_tables.COUNTED, name, (told, samples[:2]))
    monkeypatch.setattr(null_tables, "Pool", lambda jobs, *_: ThreadPool(jobs))
    assert null_tables.calibrate(["--runs", "3"]) == null_tables.calibrate(["--runs", "3"]) == 0
    for name, (_, samples) in null_tables.COUNTED.items():
        assert counted[name] == [[sample] for sample in samples]  # once each
        found = files.read_table(tmp_path / "results" / f"{name}.parquet")
        assert found.equals(pd.DataFrame({"sample": samples, "runs": 3}))
    null_tables.calibrate(["--runs", "4"])
    assert len(counted["calibration"]) == 4 and "calibration: lognormal" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        null_tables.calibrate(["--jobs", "0"])


# ---- token-frequency neurons


def test_shares_say_what_vanishes():
    found = null_tables.share([2.0, 2.0, 1.0, 0.0], [0.5, 2.0, 1.5, 0.0])
    assert found == pytest.approx([0.75, 0.0, -0.5, np.nan], nan_ok=True)
