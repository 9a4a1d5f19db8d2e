"""The robustness grid: its settings and positions, a cell's statistics on planted effects,
and how all of it is judged."""

from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from rare_token_neurons import settings as parameters
from rare_token_neurons.curve import calibration
from rare_token_neurons.statistics import claims, controls, documents as over_documents
from rare_token_neurons.tables import claims as claim_tables, influence as influences, rare_tokens, robustness


# ---- cells and their positions


@pytest.fixture
def settings(monkeypatch):
    """Settings over a made-up text: 6 tokens, of which 0 to 3 are words, 4 is a mark and 5 half a word."""
    words = pd.DataFrame({"token": [" a", " b", " c", " d", ".", "x"], "word": [True] * 4 + [False] * 2,
                          "boundary": [True] * 5 + [False], "count": [1, 2, 50, 60, 0, 0],
                          "count_text": [9, 9, 1, 1, 70, 2], "count_wordfreq": [1, 2, 50, 60, 0, 0]})
    tokens = np.random.default_rng(0).integers(0, 6, (20, 24))
    blocks = pd.DataFrame({"block": np.arange(20), "document": np.arange(20) // 2 + 100, "tokens": list(tokens)})
    chosen = pd.DataFrame({"document": [100, 101, 102], "half": ["B", "B", "B"]})
    for name, table in (("tokens", words), ("blocks", blocks), ("positions", chosen)):
        monkeypatch.setattr(rare_tokens, name, lambda _, table=table: table)
    monkeypatch.setattr(rare_tokens, "text_counts", lambda *_: words["count_text"].to_numpy())
    return parameters.check({"model": "smollm2"})


def test_one_factor_at_a_time_and_rarity_times_ablation(settings):
    grid = robustness.grid(settings)
    base = asdict(grid[0])
    assert base["factor"] == "default" and len({(cell.factor, cell.value) for cell in grid}) == len(grid)
    full = [(cell.rare_percentile, cell.ablation) for cell in grid if cell.factor.startswith("rarest")
            or cell is grid[0]]
    assert len(full) == 12
    assert set(full) == {(rarest, name) for rarest in (5, 15, 25, 50) for name in ("mean", "zero", "resample")}
    for cell in grid[1:]:
        changed = {name for name, value in asdict(cell).items() if base[name] != value} - {"factor", "value"}
        allowed = {"words_only": {"words_only", "counts"}, "halves": {"split"}}.get(cell.factor, {cell.factor})
        assert changed <= (allowed if not cell.factor.startswith("rarest") else {"rare_percentile", "ablation"})
        assert changed


def test_positions_are_what_the_setting_says_and_cells_share_them(settings):
    tokens = np.stack(rare_tokens.blocks(settings)["tokens"].to_numpy())
    found = {(cell.factor, cell.value): (cell, robustness.positions(settings, cell))
             for cell in robustness.grid(settings)}
    for cell, rows in found.values():
        assert len(rows["rare"]) == len(rows["common"]) <= robustness.MOST
        block, t = rows["rare"].T
        assert t.min() >= 3 and t.max() <= 22 and not {*map(tuple, rows["rare"])} & {*map(tuple, rows["common"])}
        counted = cell.words_only and cell.counts == "wordfreq" and cell.rare_percentile == 50
        if counted:  # tokens 0 and 1 are the rarer half of the words
            assert np.isin(tokens[block, t + (cell.rare_of == "target")], [0, 1]).all()
    swapped = found["counts", "text"][1]["rare"]
    assert np.isin(tokens[swapped[:, 0], swapped[:, 1] + 1], [2, 3]).all()
    by_text = found["words_only", "false, counts = text"][1]["common"]
    assert np.isin(tokens[by_text[:, 0], by_text[:, 1] + 1], 4).any()
    default, zero = found["default", "rarest 50 %, mean"], found["rarest 50 %", "zero"]
    assert (default[1]["rare"] == zero[1]["rare"]).all()


def test_halves_keep_the_defaults_and_are_drawn_anew_for_another_split(settings):
    kept, again, other = robustness.halves(settings), robustness.halves(settings), robustness.halves(settings, 2)
    assert (kept.loc[[100, 101, 102]] == "B").all() and kept.equals(again) and set(kept) == {"A", "B"}
    assert len(kept) == 10 and not kept.equals(other) and abs(other.eq("A").sum() - 5) <= 0.5


def test_sums_by_document_and_lookup_by_position():
    effects, owners = np.random.default_rng(0).normal(size=(9, 4)), np.array([5, 2, 5, 5, 7, 2, 7, 7, 5])
    sums, counts = over_documents.by_document(effects, owners)
    assert counts.tolist() == [2, 4, 3]
    assert sums == pytest.approx(pd.DataFrame(effects).groupby(owners).sum().to_numpy())
    padded, _ = over_documents.by_document(effects, owners, np.array([1, 2, 5, 7]))
    assert padded[0].tolist() == [0] * 4 and padded[1:] == pytest.approx(sums)
    rows = np.array([[0, 3], [0, 9], [4, 5]])
    pool = robustness.Pool(rows, torch.arange(6.0).view(3, 2))
    assert pool[rows[[2, 0]]].tolist() == [[4, 5], [0, 1]]


# ---- one cell's statistics: what is there is found, what is not is not

NEURONS, SPECIAL = 300, 6
STATISTICS = robustness.statistics(gated=False)
all_of, head_of = (partial(part, ranking="split_half", seed=0) for part in (robustness.all_of, robustness.head))
lean = partial(robustness.lean, seed=0)


def group_of(measured):
    return robustness.ranked(measured)[: influences.group_size(NEURONS)]


def measured(n=400, boost=1.0, together=0.0, seed=0):
    """Effects of 300 neurons of which 0 to 5 are the most influential: `boost` times as much on rare as on common
    targets, with activations that share a part `together`."""
    rng = np.random.default_rng(seed)
    size = rng.lognormal(0, 0.5, NEURONS)
    size[:SPECIAL] = 20
    owners = {name: rng.integers(0, 60, n) for name in ("rare", "common")}
    effects = {name: size * np.abs(rng.normal(size=(n, NEURONS))) for name in owners}
    effects["rare"][:, :SPECIAL] *= boost
    active = rng.normal(size=(n, NEURONS))
    active[:, :SPECIAL] += together * rng.normal(size=(n, 1))
    w_out, w_in = rng.normal(size=(16, NEURONS)), rng.normal(size=(NEURONS, 16))
    norms = rng.permutation(np.tile(np.linspace(1, 2, 6), NEURONS // 6))  # few, so that each has its likes
    w_out *= norms / np.linalg.norm(w_out, axis=0)
    return robustness.Measured(effects, owners, {name: part % 2 == 1 for name, part in owners.items()},
                               active.astype(np.float32), w_out, {"in": w_in})


def test_the_group_is_the_top_of_half_a():
    made = measured()
    assert set(group_of(made)) == set(range(SPECIAL))
    late = made.in_b["rare"]
    made.effects["rare"][np.ix_(late, range(100, 106))] = 1e6  # half B has no say
    assert set(group_of(made)) == set(range(SPECIAL))


@pytest.mark.parametrize("boost, there", [(2.0, True), (1.0, False)])
def test_a_lean_to_rare_targets_is_found_where_it_is(boost, there):
    made = measured(boost=boost)
    nulls = {"random": controls.random_groups(NEURONS, SPECIAL, 200),
             "matched": controls.random_groups(np.arange(50, 200), SPECIAL, 200)}
    found = lean(made.effects, made.owners, np.arange(SPECIAL), nulls)
    assert found.value == pytest.approx(np.log(boost), abs=0.1)
    assert (found.low > 0 and max(found.p) < 0.05) == there and found.low < found.value < found.high
    assert found.positions == 400


def test_all_statistics_and_planted_co_activation():
    (found, shelf), (plain, _) = (all_of(measured(boost=2.0, together=part)) for part in (2.0, 0.0))
    assert list(found) == list(STATISTICS) and 1 <= shelf < NEURONS
    assert found["co-activation"].value > 0.5 and found["co-activation"].low > 0 and found["co-activation"].p[0] < 0.05
    assert found["effective dimension"].high < 0 and plain["effective dimension"].high > 0
    assert abs(plain["co-activation"].value) < 0.1 and plain["Hill exponent"].low < 0 < plain["Hill exponent"].high
    for name, item in found.items():
        claim = STATISTICS[name]
        assert len(item.p) == len(claim.controls) and np.isfinite([item.value, item.low, item.high]).all()
        assert item.positions == (400 if name == "head" else pytest.approx(200, abs=40))


def test_of_a_gated_mlp_absolute_correlations_are_taken():
    made = measured(together=2.0)
    made.activations[:, :SPECIAL:2] *= -1  # the same neurons, other signs
    signed, gated = (all_of(replace(made, rows=rows))[0]["co-activation"]
                     for rows in (made.rows, {"gate": made.rows["in"], "up": made.rows["in"]}))
    assert signed.high < 0.5 < gated.value and gated.low > 0
    assert "absolute" in robustness.statistics(True)["co-activation"].statistic
    assert robustness.statistics(True)["Hill exponent"].name == "C6 gate"


# ---- the head of a cell


def on_a_shelf(raised, size=20, n=400):
    """Effects whose influences are a planted law with a shelf of 20 neurons; 0: the law alone."""
    rng, made = np.random.default_rng(0), measured(n)
    ranks = rng.uniform(0, NEURONS, NEURONS)
    truth = calibration.shelf(ranks, size, raised, tail=150) if raised else calibration.law(ranks, tail=150)
    made.effects["rare"][:] = truth * rng.lognormal(-0.02, 0.2, (n, NEURONS))
    return made, np.argsort(-truth)


def test_a_planted_shelf_is_a_plateau_and_the_law_itself_is_none():
    made, order = on_a_shelf(1.5)
    found, shelf, size = head_of(made)
    assert found.word == "plateau" and found.low > 0 and found.floor == 1 / 101 and len(found.p) == 3
    assert shelf == pytest.approx(20, abs=4) and 20 <= size < 60
    assert set(order[:20]) <= set(robustness.ranked(made)[:size])
    lawful, _, size = head_of(on_a_shelf(0)[0])
    assert lawful.word not in ("plateau", "outliers") and size == 0


def test_no_matched_group_holds_a_neuron_of_the_raised_head(matched):
    made, order = on_a_shelf(1.5)
    all_of(made)
    assert len(matched) == 2  # by activations, and by the rows of the one matrix
    for group, groups in matched:
        assert len(group) == 6 and not np.isin(groups, order[:20]).any()


def test_a_head_of_few_neurons_cannot_be_tested():
    made = measured()
    few = replace(made, effects={name: part[:, :150] for name, part in made.effects.items()})
    found, shelf, size = head_of(few)
    assert claims.verdict(STATISTICS["head"], found, np.full(3, np.nan)) == (
        claims.UNTESTED, "too few neurons or documents")
    assert np.isnan(shelf) and size == 0


# ---- random and matched groups: the one that speaks less


def alike(made, many=30):
    """The first neurons, the group among them, are louder than others and share a part: matched groups do so too."""
    made.activations[:, :many] += 2.0 * np.random.default_rng(1).normal(size=(len(made.activations),
                                                                              1)).astype(np.float32)
    return made


def row_inside(made, members):
    late = made.in_b["rare"]
    sample = controls.sample(made.activations[late], made.owners["rare"][late], made.w_out)
    apart = np.union1d(members, robustness.ranked(made)[: head_of(made)[2]])
    nulls = controls.control_groups(sample, members, robustness.GROUPS, apart=apart)
    row = controls.within(sample, members, nulls, controls.PAIRS, controls.pairs, resamples=robustness.RESAMPLES,
                          baselines=robustness.BASELINES)[0]
    return row | controls.missed(sample.features, members, nulls["matched"]) | {"tokens": late.sum(), "documents": 30}


def test_what_matched_groups_show_too_is_no_finding():
    made = alike(measured())
    row, found = row_inside(made, group_of(made)), all_of(made)[0]["co-activation"]
    assert row["less_random"] > 0.5 and row["less_random_low"] > 0 and abs(row["less_matched"]) < 0.1
    assert not found.unmatched
    assert (found.value, found.low, found.high) == tuple(row[name] for name in controls.less_columns("matched"))
    assert claims.verdict(STATISTICS["co-activation"], found, np.array(found.p))[0] == claims.NOT


def louder(made):
    """The group is louder than all others: no groups match it."""
    made.activations[:, :SPECIAL] *= 5
    return made


@pytest.mark.parametrize("plant", [alike, lambda made: made, louder])
def test_the_grid_and_the_claims_table_choose_alike(plant):
    made = plant(measured())
    row = row_inside(made, group_of(made))
    table = pd.DataFrame([row | {"where": "rare", "group": "rare", "relation": "within", "measure": "correlation"}])
    in_table, in_grid = claim_tables.within(table), all_of(made)[0]["co-activation"]
    for name in ("value", "low", "high", "unmatched"):
        assert getattr(in_table, name) == getattr(in_grid, name)
    assert np.array_equal(in_table.p, in_grid.p, equal_nan=True) and in_grid.unmatched == (plant is louder)


def test_of_two_matrices_the_grid_takes_the_less_favourable(monkeypatch):
    made, rows = measured(), []
    made.rows.update(up=made.rows["in"].copy())
    made.rows["up"][:30] *= np.linspace(1, 20, 16)  # heavy tails, but those of look-alikes are as heavy
    choose, members = claims.lightest, np.arange(SPECIAL)
    monkeypatch.setattr(claims, "lightest", lambda given: choose(rows.extend(given) or rows))
    found = robustness.heavy_tail(made, members, controls.random_groups(np.arange(100, 300), SPECIAL, 200), members, 0)
    each = [choose([row]) for row in rows]
    assert len(rows) == 2 and found.high == max(one.high for one in each) and found in each
    up = rows[1]
    assert each[1].value == pytest.approx(up["value"] - up["matched_mean"])
    assert up["value"] - up["random_mean"] < up["value"] - up["matched_mean"]
    table = pd.DataFrame(rows).assign(matrix=list(made.rows), group="rare", rows="raw", statistic="alpha_hill")
    assert [replace(claim_tables.hill(table, name), detail="") for name in made.rows] == each


def test_a_lean_that_matched_groups_have_too_is_no_finding():
    made = measured(boost=2.0)
    made.effects["rare"][:, 50:200] *= 2.0
    random, matched = (controls.random_groups(np.arange(*ends), SPECIAL, 200) for ends in ((200, 300), (50, 200)))
    found = lean(made.effects, made.owners, np.arange(SPECIAL), {"random": random, "matched": matched})
    plain = lean(made.effects, made.owners, np.arange(SPECIAL), {"random": random}, kinds=("random",))
    assert plain.value == pytest.approx(np.log(2), abs=0.1) and plain.low > 0 and len(plain.p) == 1
    assert abs(found.value) < 0.1 and found.low < 0 < found.high and found.p[0] == plain.p[0] < 0.05 < found.p[1]


def test_without_matched_groups_a_contrast_holds_partly_at_most():
    made = measured(boost=2.0)
    nulls, members = {"random": controls.random_groups(NEURONS, SPECIAL, 200)}, np.arange(SPECIAL)
    found = lean(made.effects, made.owners, members, nulls)
    assert np.isfinite([found.value, found.low, found.high]).all() and np.isnan(found.p[1]) and found.unmatched
    assert claims.verdict(robustness.LEAN, found, np.array(found.p)) == (claims.PARTLY, claims.UNMATCHED)
    nulls["matched"] = controls.random_groups(np.arange(50, 200), SPECIAL, 200)
    poor = lean(made.effects, made.owners, members, nulls, missed={"imbalance_scale": 0.3, "imbalance_norm": 0.0})
    assert (poor.value, poor.p[0], poor.unmatched) == (found.value, found.p[0], True)
    assert not lean(made.effects, made.owners, members, nulls).unmatched


def test_few_positions_are_counted_and_not_judged():
    found, shelf = all_of(measured(n=90))
    assert np.isnan(shelf)
    for name, item in found.items():
        verdict, reason = claims.verdict(STATISTICS[name], item, np.full(3, np.nan))
        assert verdict == claims.UNTESTED and item.positions < 100 and str(item.positions) in reason


# ---- the grid as judged, and earlier layers


def test_the_claims_rule_with_p_values_adjusted_over_the_whole_grid():
    claim = STATISTICS["co-activation"]
    items = [(claim, claims.Evidence(0.2, 0.1, 0.3, 0.0, (0.01, 0.02), 200)),
             (claim, claims.Evidence(0.2, 0.1, 0.3, 0.0, (0.04, 0.9), 200)),
             (claim, claims.Evidence(-0.2, -0.3, -0.1, 0.0, (1.0, 1.0), 200)), (claim, claims.Evidence(positions=34)),
             (robustness.LAYER_CLAIM, claims.Evidence(0.2, 0.1, 0.3, 0.0, (0.001,), 150)),
             (STATISTICS["head"],
              claims.Evidence(0.5, 0.1, 0.9, 0.0, (0.001,) * 3, 150, word="outliers", floor=0.001)),
             (claim, claims.Evidence(0.2, 0.1, 0.3, 0.0, (0.01, np.nan), 200, unmatched=True))]
    found = robustness.judged(items)
    assert found["verdict"].tolist() == [claims.REPRODUCED, claims.PARTLY, claims.NOT, claims.UNTESTED,
                                         claims.REPRODUCED, claims.PARTLY, claims.PARTLY]
    assert found["word"].tolist() == [""] * 5 + ["outliers", ""] and found["p_floor"].iloc[5] == 0.001
    assert found["p"].iloc[6] == 0.01
    every = claims.adjust([0.01, 0.02, 0.04, 0.9, 1.0, 1.0, 0.001, *[0.001] * 3, 0.01])
    assert found["q"].iloc[[0, 1, 4]].tolist() == pytest.approx([every[:2].max(), every[2:4].max(), every[6]])
    assert np.isnan(found["q"].iloc[3]) and "34" in found["reason"].iloc[3]


@pytest.mark.parametrize("layers, neurons", [(1, 32), (3, 32), (24, 15), (30, 12), (100, 12)])
def test_deep_models_have_fewer_sampled_neurons_a_layer(layers, neurons):
    assert robustness.sampled(layers) == neurons


@pytest.mark.parametrize("layers, found", [(1, [0]), (2, [0]), (4, [0, 1, 2])])
def test_the_last_layer_is_left_to_the_default_where_there_are_others(layers, found):
    assert list(robustness.earlier(layers)) == found


def test_a_layer_leans_where_its_strong_neurons_do():
    rng = np.random.default_rng(0)
    rare, owners = np.arange(600) < 300, rng.integers(0, 50, 600)
    effects = np.abs(rng.normal(size=(600, 16))) * np.where(np.arange(16) < 4, 10, 1)
    effects[:300, :4] *= 2.0
    found = robustness._layer(effects, rare, owners, owners % 2 == 1, 0)
    assert len(found) == 16 and found["value"].iloc[0] > 0.2 and found["p"].iloc[0] < 0.05
    assert found["positions"].nunique() == 1 and found["rare"].iloc[:4].min() > found["rare"].iloc[4:].max()


def test_a_layer_with_few_positions_cannot_be_tested():
    rng = np.random.default_rng(0)
    rare, owners = np.arange(400) < 60, rng.integers(0, 50, 400)
    found = robustness._layer(np.abs(rng.normal(size=(400, 16))), rare, owners, owners % 2 == 1, 0)
    positions = int(found["positions"].iloc[0])
    assert found[["value", "low", "high", "p"]].isna().all(axis=None)
    assert found[["rare", "common"]].notna().all(axis=None)
    assert positions == min(sum(rare & (owners % 2 == half)) for half in (0, 1))
    item = (robustness.LAYER_CLAIM, claims.Evidence(p=(np.nan,), positions=positions))
    assert robustness.judged([item])["verdict"].tolist() == [claims.UNTESTED]
