"""Portraits of neurons: planted tails, outputs and contexts come out; the tables agree with brute force."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from rare_token_neurons import settings as parameters
from rare_token_neurons.ablation import capture as captures, neurons as ablation, readout as readouts
from rare_token_neurons.figures import portraits as draw
from rare_token_neurons.models import checkpoints
from rare_token_neurons.tables import (activations, checkpoints as passes, influence as influences, portraits,
                                       rare_tokens, stage)

FIRST = 3
DECODE = SimpleNamespace(decode=lambda ids, clean_up_tokenization_spaces: "".join(f"<{token}>" for token in ids))


# ---- traits


def test_moments_and_the_side_of_the_longer_tail():
    values = np.array([[-1.0, 1, 0], [-1, 1, 0], [2, -2, 0]])
    assert portraits.moments(values) == pytest.approx(np.array([[2, 2, 0], [2, -2, 0], [6, 6, 0]]))
    assert portraits.tail_side([2, -2, 0]).tolist() == [1, -1, 1]


@pytest.mark.parametrize("kind", ["neox-parallel", "llama-tied", "gemma3"])
def test_output_effects_are_what_the_norm_and_the_unembedding_make_of_the_weights(tiny, kind):
    subject = tiny(kind, torch.float64)
    kept = np.arange(subject.n_vocab) % 3 != 0
    found = portraits.output_effects(subject, np.array([5, 2]), kept)
    for column, neuron in zip(found.T, (5, 2)):
        w = subject.w_out[:, neuron]
        w = w - w.mean() if subject.norm == "layer" else w
        w = w if subject.mlp_norm_gain is None else w * subject.mlp_norm_gain
        logits = [float(sum(row * subject.norm_gain * w)) for row, wanted in zip(subject.unembedding, kept) if wanted]
        assert column == pytest.approx(np.array(logits) - np.mean(logits))


@pytest.mark.parametrize("kind", ["neox-parallel", "olmo2"])
def test_the_mean_scale_is_that_of_the_norms_behind_the_mlp(tiny, tokens, kind):
    subject, passed = tiny(kind, torch.float64), []
    kept = captures.capture(subject, tokens)
    norms = [subject.final_norm] + [part for name, part in subject.model.named_modules()
                                    if name == "model.layers.1.post_feedforward_layernorm"]
    for norm in norms:  # what it makes of a vector over its gain and that vector, as the norm sees it
        norm.register_forward_hook(lambda norm, inputs, output: passed.append((norm, inputs[0], output)))
    with torch.no_grad():
        subject.model(tokens)
    scale = 1.0
    for norm, x, y in passed:
        x = x - x.mean(-1, keepdim=True) if subject.norm == "layer" else x
        y = (y - (subject.norm_bias if subject.norm == "layer" else 0)) / norm.weight
        scale = scale * (y.norm(dim=-1) / x.norm(dim=-1))[:, 3:-1]
    assert len(passed) == 1 + (kind == "olmo2")
    found = readouts.mean_scale(readouts.readout_of(subject), subject, kept)
    assert found == pytest.approx(float(scale.mean()), rel=1e-5)


def test_a_neuron_that_raises_common_tokens_is_told_from_one_that_raises_rare_ones(monkeypatch):
    monkeypatch.setattr(portraits, "EXTREMES", 1)
    counts = np.array([1, 10, 100, 1000, 10_000])
    up = np.log(counts) - np.log(counts).mean()
    effects = np.stack([up, -up, np.zeros(5)], axis=1)
    found = portraits.frequency_of(effects, counts)
    assert found["correlation"][:2] == pytest.approx([1, -1]) and np.isnan(found["correlation"][2])
    assert found["promoted"][:2] == pytest.approx([1, 0]) and found["suppressed"][:2] == pytest.approx([0, 1])


def test_the_strongest_positions_and_what_they_have_in_common():
    active = np.zeros((200, 2))
    active[[3, 50], 0], active[[7, 9], 1] = 5, 4
    mark = np.zeros(200, dtype=bool)
    mark[[3, 50, 7]] = True
    assert portraits.strongest(active, {"x": mark})["x"].tolist() == [1, 0.5]


def test_one_position_a_document_the_strongest_first():
    active, documents = np.array([9.0, 8, 1, 7, 6, 2]), np.array([4, 4, 2, 2, 0, 0])
    assert portraits.one_each(active, documents, 2).tolist() == [0, 3]
    assert portraits.one_each(active, documents, 9).tolist() == [0, 3, 4]


def test_targets_are_listed_with_enough_positions_and_documents():
    targets = np.repeat([1, 2, 3, 4], [6, 5, 5, 4])
    documents = np.concatenate([np.arange(6), np.arange(5), [0, 0, 0, 1, 1], np.arange(4)])
    changes = np.concatenate([np.arange(6) - 10.0, np.full(5, 0.5), np.full(5, 9), np.full(4, 9)])
    found = portraits.by_target(changes, targets, documents)
    assert found["target"].tolist() == [2, 1] and found["change"].tolist() == [0.5, -7.5]
    assert found["n"].tolist() == [5, 6]


def test_context_at_the_start_of_a_block_and_in_it(monkeypatch):
    tokens = np.arange(10, 20)
    monkeypatch.setattr(portraits, "WINDOW", (2, 2))
    found = portraits.context(lambda ids: ",".join(map(str, ids)), tokens, 4)
    assert found == {"before": "12,13", "token": "14", "target": "15", "after": "16,17"}
    monkeypatch.setattr(portraits, "WINDOW", (5, 20))
    assert portraits.context(lambda ids: len(ids), tokens, 1) == {"before": 1, "token": 1, "target": 1, "after": 7}


def test_shares_keep_what_lies_outside_in_the_outermost_bins():
    found = portraits.shares(np.array([[-9.0, 0], [0, 0.5], [0.5, 1], [9, 1.5]]), np.array([-1.0, 0, 1, 2]))
    assert found.T.tolist() == [[0.25, 0.5, 0.25], [0, 0.5, 0.5]]


# ---- tables


@pytest.fixture
def planted(tiny, tokens, computed, monkeypatch):
    """Settings of a tiny model on six documents; nothing is stored."""
    subject = tiny("neox-parallel")
    subject.tokenizer = DECODE
    kept = captures.capture(subject, tokens, first=FIRST)
    rows = kept.positions.numpy()
    chosen = pd.DataFrame({"block": rows[:, 0], "t": rows[:, 1], "document": rows[:, 0],
                           "half": np.where(rows[:, 0] < 3, "A", "B"),
                           "group": np.where(rows.sum(1) % 2, "rare", "common")})
    ids = np.arange(97)
    vocabulary = pd.DataFrame({"token_id": ids, "token": [f" {token}" for token in ids], "word": ids % 2 == 0,
                               "group": "", "count_text": np.where(ids < 90, np.maximum(0, ids - 4), 0)})
    monkeypatch.setattr(rare_tokens, "positions", lambda settings: chosen)
    monkeypatch.setattr(rare_tokens, "tokens", lambda settings: vocabulary)
    monkeypatch.setattr(rare_tokens, "blocks", lambda settings: pd.DataFrame({"document": range(6),
                                                                              "tokens": list(tokens.numpy())}))
    monkeypatch.setattr(checkpoints, "model_hash", lambda model, revision: "")
    for name, found in (("revisions", [None]), ("subject", subject), ("captured", (subject, kept))):
        monkeypatch.setattr(passes, name, lambda *arguments, found=found: found)
    monkeypatch.setattr(influences, "GROUP_SHARE", 0.1)
    monkeypatch.setattr(stage, "tensors", lambda name, key, compute, **options: compute())
    portraits._activity.cache_clear()
    yield parameters.check({"model": "mini-pythia"}), subject, kept, chosen
    portraits._activity.cache_clear()


def test_portraits_agree_with_single_loss_changes_and_activations(planted):
    settings, subject, kept, chosen = planted
    table = portraits.portraits(settings)
    changes = {at: ablation.loss_changes(subject, kept, torch.tensor(rows[["block", "t"]].to_numpy())).numpy()
               for at, rows in chosen.groupby(["group", "half"])}
    for group in ("rare", "common"):
        assert table[group].to_numpy() == pytest.approx(np.abs(changes[group, "B"]).mean(0), rel=1e-3, abs=1e-6)
        assert table[f"change_{group}"].to_numpy() == pytest.approx(changes[group, "B"].mean(0), rel=1e-3, abs=1e-6)
    assert table.loc[table["top"], "neuron"].tolist() == sorted(np.argsort(-np.abs(changes["rare", "A"]).mean(0))[:5])
    assert sorted(table.loc[table["top"], "rank"]) == [1, 2, 3, 4, 5]
    values = kept.activations[3:, :, 7].numpy().ravel() - kept.means[7].item()
    assert table["sd"][7] == pytest.approx(np.sqrt((values**2).mean()), rel=1e-4)
    assert table["sign"][7] == np.sign((values**3).sum())
    assert table["kurtosis"][7] == pytest.approx((values**4).mean() / (values**2).mean() ** 2 - 3, rel=1e-3)


def test_neurons_that_are_named_are_portrayed_in_place_of_the_top_ones(planted, monkeypatch):
    settings, subject, *_ = planted
    loaded = []
    monkeypatch.setattr(portraits, "LEAST", 1)
    monkeypatch.setattr(passes, "load", lambda settings, revision: loaded.append(revision) or subject)
    default = portraits.portraits(settings)
    assert not loaded
    named = default.sort_values("rank")["neuron"].tolist()[20:22]
    wanted = parameters.check({"model": "mini-pythia", "neurons": str(named)})
    table = portraits.portraits(wanted)
    assert sorted(table.loc[table["top"], "neuron"]) == sorted(named) and loaded == [None]
    pd.testing.assert_frame_equal(table.drop(columns="top"), default.drop(columns="top"))  # all else is as it was
    parts = [getattr(portraits, f"portrait_{name}")(wanted) for name in ("tokens", "targets", "contexts", "histograms")]
    assert all(set(part["neuron"]) == set(named) for part in parts)
    cards = draw.gallery(table, *parts[:3])
    assert [line.split(":")[0] for line in cards.splitlines() if line.startswith("###")] == [
        f"### {rank} \u00b7 Neuron {neuron}" for rank, neuron in zip((21, 22), named)]
    assert "The 2 here" in draw.rivals(table) and "The 5 for rare targets" in draw.rivals(default)
    assert wanted.folder.startswith("mini-pythia/neurons=")


def test_a_number_that_is_no_neuron_is_refused_before_the_forward_pass(planted, monkeypatch):
    subject = planted[1]
    monkeypatch.setattr(passes, "load", lambda settings, revision: subject)
    monkeypatch.setattr(passes, "captured", None)
    wanted = parameters.check({"model": "mini-pythia", "neurons": [0, 48, 4096]})
    for table in ("portraits", "portrait_tokens", "portrait_targets", "portrait_contexts", "portrait_histograms"):
        with pytest.raises(ValueError,
                           match="^mini-pythia has no neuron 48, 4096 in its last layer: they go from 0 to 47\\.$"):
            getattr(portraits, table)(wanted)


def test_what_a_neuron_promotes_turns_with_the_side_of_its_tail(planted):
    settings, subject, *_ = planted
    table, listed = portraits.portraits(settings).set_index("neuron"), portraits.portrait_tokens(settings)
    assert listed["token_id"].between(5, 89).all()  # tokens that the text never uses are not listed
    for neuron in portraits.top(settings):
        w = subject.w_out[:, neuron]
        effect = (subject.unembedding @ (subject.norm_gain * (w - w.mean())))[5:90] * int(table.loc[neuron, "sign"])
        rows = listed[(listed["neuron"] == neuron) & (listed["place"] == 1)].set_index("side")
        assert rows.loc["promoted", "token_id"] == 5 + effect.argmax()
        assert rows.loc["suppressed", "token_id"] == 5 + effect.argmin()
        assert rows.loc["promoted", "effect"] > rows.loc["suppressed", "effect"]


def test_contexts_are_the_strongest_places_of_half_b(planted, tokens):
    settings, _, kept, _ = planted
    found, table = portraits.portrait_contexts(settings), portraits.portraits(settings).set_index("neuron")
    for neuron, rows in found.groupby("neuron"):
        values = (kept.activations[3:, :, neuron] - kept.means[neuron]).numpy() * table.loc[neuron, "sign"]
        block, column = np.unravel_index(values.argmax(), values.shape)
        first = rows[rows["place"] == 1].iloc[0]
        assert (first["block"], first["t"]) == (3 + block, FIRST + column) and rows["document"].is_unique
        assert len(rows) == 3
        assert first["active"] == pytest.approx(values.max() / table.loc[neuron, "sd"], rel=1e-4)
        before, token, target = (f"<{token}>" for token in tokens[first["block"], first["t"] - 1 : first["t"] + 2])
        assert first["before"].endswith(before) and first["token"] == token and first["target"] == target


def test_targets_hold_mean_changes_of_half_b(planted, tokens, monkeypatch):
    settings, subject, kept, chosen = planted
    monkeypatch.setattr(portraits, "LEAST", 1)
    found, neuron = portraits.portrait_targets(settings), portraits.top(settings)[0]
    rows = torch.tensor(chosen.loc[chosen["half"] == "B", ["block", "t"]].to_numpy())
    changes = pd.Series(ablation.loss_changes(subject, kept, rows)[:, neuron],
                        index=tokens[rows[:, 0], rows[:, 1] + 1].numpy())
    means = changes.groupby(level=0).mean()
    some = found[(found["neuron"] == neuron) & (found["place"] == 1)].set_index("side")
    assert some.loc["rises", "token_id"] == means.idxmax() and some.loc["falls", "token_id"] == means.idxmin()
    assert some.loc["rises", "change"] == pytest.approx(means.max(), rel=1e-3)
    assert some["overall"].to_numpy() == pytest.approx(np.full(2, changes.mean()), rel=1e-3)


def test_histograms_are_shares(planted):
    settings = planted[0]
    found = portraits.portrait_histograms(settings).groupby("neuron")
    assert set(found.groups) == set(portraits.top(settings))
    assert found[["all", "rare", "common"]].sum().to_numpy() == pytest.approx(1)


# ---- what the head is made of


def test_a_gate_that_is_always_open_makes_a_neuron_linear():
    rng = np.random.default_rng(0)
    gate, up = rng.normal(size=(2, 500, 4))
    gate[:, 0] = 5 + 0.1 * gate[:, 0]  # open, and nearly constant
    gate[:, 1] = 0
    found = portraits.linear_traits({"gate": gate, "up": up, "activation": np.maximum(gate, 0) * up})
    assert found["openness"][0] == 1 and found["openness"][1] == 0
    assert found["openness"][2:] == pytest.approx(0.5, abs=0.08)
    assert found["cv"][0] == pytest.approx(0.02, abs=0.003) and np.isnan(found["cv"][1]) and found["cv"][2] > 5
    assert found["r2"][0] > 0.99 and np.isnan(found["r2"][1])
    assert found["r2"][2] == pytest.approx(np.corrcoef(up[:, 2], np.maximum(gate[:, 2], 0) * up[:, 2])[0, 1] ** 2)
    plain = portraits.linear_traits({"in": gate + 3, "activation": np.maximum(gate + 3, 0)})
    assert plain["r2"][0] == pytest.approx(1) and plain["openness"][0] == 1 and 0.99 < plain["openness"][3] < 1
    assert 0.9 < plain["r2"][3] < 1


def test_a_direction_that_a_group_shares_stands_out_of_random_groups():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(200, 30))
    weights[:10] += 2 * rng.normal(size=30)
    found = portraits.direction(weights, np.arange(10))
    values = np.linalg.svd(weights[:10], compute_uv=False) ** 2
    assert found["direction"] == pytest.approx(values[0] / values.sum()) and found["direction"] > 0.7
    assert found["random_low"] < found["random_direction"] < found["random_high"] < 0.6


@pytest.fixture(params=["neox-parallel", "llama-tied"])
def of_one(planted, tiny, tokens, request, monkeypatch):
    """Settings and tiny model, ungated or gated, whose neurons are ranked backwards and whose fitted head has three."""
    settings, _, _, chosen = planted
    subject = tiny(request.param)
    rows = pd.DataFrame({"neuron": range(48), "group": "rare", "mean_abs_a": np.arange(1.0, 49)})
    phases = pd.DataFrame({"group": "rare", "sign": "pooled", "rule": ["fitted head", "fixed head"], "neurons": 48,
                           "head": [3, 1], "law_end": 20.4, "word": "plateau"})
    monkeypatch.setattr(passes, "subject", lambda settings, revision: subject)
    monkeypatch.setattr(passes, "captured", lambda settings, revision: (subject,
                                                                        captures.capture(subject, tokens, first=FIRST)))
    monkeypatch.setattr(activations, "influence_at", lambda *arguments: rows)
    monkeypatch.setattr(activations, "phases_at", lambda *arguments: phases)
    return settings, subject, chosen, phases


def test_linearity_is_that_of_half_b_by_hand(of_one, tokens):
    settings, subject, chosen, _ = of_one
    table = portraits.linearity(settings)
    assert len(table) == 2 * 48 and list(table["rank"][:48]) == list(range(48, 0, -1))
    assert set(table.loc[table["in_head"], "neuron"]) == {45, 46, 47} and set(table["size"]) == {3}
    read, layer = [], subject.model.base_model.layers[-1]
    hook = layer.mlp.register_forward_hook(lambda _, inputs, output: read.append(inputs[0]))
    with torch.no_grad():
        subject.model(tokens)
    hook.remove()
    first, second = (next(iter(subject.mlp_in.values())), list(subject.mlp_in.values())[-1])
    for group, rows in table.groupby("group"):
        places = chosen[(chosen["half"] == "B") & (chosen["group"] == group)]
        at = read[0][places["block"].to_numpy(), places["t"].to_numpy()]
        gate, line = first(at), second(at)
        activation = layer.mlp.act_fn(gate) * line if subject.gated else layer.mlp.act(gate)
        assert rows["openness"].to_numpy() == pytest.approx((gate > 0).float().mean(0).numpy())
        expected = [np.corrcoef(activation[:, at], line[:, at])[0, 1] ** 2 for at in range(48)]
        assert rows["r2"].to_numpy() == pytest.approx(np.array(expected), abs=1e-3)
        assert rows["cv"].to_numpy() == pytest.approx((gate.std(0, correction=0) / gate.mean(0).abs()).numpy(),
                                                      rel=1e-2)
        assert set(rows["positions"]) == {len(places)} and set(rows["documents"]) == {3}
    rows = (subject.w_in["gate"] if subject.gated else subject.w_in["in"])[45:].double()
    values = torch.linalg.svdvals(rows).square()
    assert table["direction"].to_numpy() == pytest.approx((values[0] / values.sum()).item(), rel=1e-5)


def test_a_head_that_is_not_raised_holds_no_neuron_and_the_rare_group_stands_for_it(of_one):
    settings, _, _, phases = of_one
    phases["word"] = "on the line"
    table = portraits.linearity(settings)
    assert not table["in_head"].any() and set(table["size"]) == {5}  # a tenth of 48


def test_one_checkpoint_has_no_course_of_training(of_one, monkeypatch):
    settings = of_one[0]
    assert portraits.linearity_over_training(settings).empty
    monkeypatch.setattr(passes, "revisions", lambda settings, default="last": ["step0", "step4"])
    table = portraits.linearity_over_training(settings)
    assert table["step"].unique().tolist() == [0, 4] and len(table) == 2 * 2 * 48


def test_the_sign_of_a_gated_neuron_does_not_matter_to_its_linearity(of_one):
    settings, subject, *_ = of_one
    if not subject.gated:
        pytest.skip("the sign of a neuron that is not gated means something")
    before = portraits.linearity(settings)
    flipped = torch.arange(48) % 3 == 0
    subject.w_in["up"][flipped] *= -1
    subject.w_out[:, flipped] *= -1
    pd.testing.assert_frame_equal(portraits.linearity(settings), before)
