"""Earlier layers and heads, at every position or at one: running a part again is what hooks on the whole model do."""

import pytest
import torch
from tiny_models import LLAMA_LIKE, ONE_EACH as KINDS, VOCABULARY
from transformers import Qwen2Config, Qwen2ForCausalLM

from rare_token_neurons.ablation import layers
from rare_token_neurons.ablation.capture import capture
from rare_token_neurons.ablation.neurons import loss_changes
from rare_token_neurons.models.subject import dissect

POSITIONS = torch.tensor([[4, 9], [0, 3], [4, 14], [2, 7], [5, 10]])
BLOCKS = [0, 2, 4, 5]  # that hold one of them
GROUP = [5, 40, 1]
by_kind, by_ablation = pytest.mark.parametrize("kind", KINDS), pytest.mark.parametrize("how", ["mean", "zero"])


@pytest.fixture(autouse=True)
def several_batches(monkeypatch):
    monkeypatch.setattr(layers, "BATCH", 2)
    monkeypatch.setattr(layers, "WINDOWS", 4)


def whole(subject, tokens, positions, module=None, columns=None, reference=0.0, at=slice(None)):
    """Losses (n,) and final-layer activations (n, neurons), one whole forward pass with a module's input
    overwritten."""
    read, (block, t) = [], positions.unbind(1)

    def overwrite(_, inputs):
        values = inputs[0].clone()
        values[:, at, columns] = reference
        return (values,)

    hooks = [module.register_forward_pre_hook(overwrite)] if module is not None else []
    hooks.append(subject.mlp_out.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0])))
    with torch.no_grad():
        logits = subject.model(tokens).logits
    for hook in hooks:
        hook.remove()
    return -logits.log_softmax(-1)[block, t].gather(1, tokens[block, t + 1][:, None])[:, 0], read[0][block, t]


def mean_input(subject, tokens, module, scored, how):
    """The mean of what a module reads over the scored positions of blocks, or zeros."""
    read = []
    with module.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0])), torch.no_grad():
        subject.model(tokens)
    return read[0][:, scored].mean((0, 1)) * (how == "mean")


def mlp_out(subject, layer):
    return layers.find(layers.layers_of(subject)[layer], layers.MLP_OUT)


def neuron_changes(subject, tokens, positions, layer, neurons, ablation="mean"):
    """Loss changes (n, m) when one MLP neuron of a layer is ablated at EVERY position of its block."""
    module = mlp_out(subject, layer)
    recording = layers.record_blocks(subject, tokens, positions, [module])
    reference = layers.replacement(recording.means[module], ablation).to(subject.dtype)
    before, _ = layers.rerun(recording, layer, [])
    return torch.stack([layers.rerun(recording, layer, [], module, layers.put(reference, [neuron]))[0] - before
                        for neuron in neurons], 1)


@by_kind
def test_a_rerun_without_an_edit_is_the_model_from_every_layer(tiny, tokens, kind):
    subject = tiny(kind, torch.float64)
    recording = layers.record_blocks(subject, tokens, POSITIONS)
    losses, activations = whole(subject, tokens, POSITIONS)
    for layer in range(2):
        found = layers.rerun(recording, layer, [7, 2])
        assert found[0] == pytest.approx(losses, abs=1e-6)
        assert found[1] == pytest.approx(activations[:, [7, 2]], abs=1e-9)


@by_kind
@by_ablation
def test_neurons_of_any_layer_against_hooks(tiny, tokens, kind, how):
    subject = tiny(kind, torch.float64)
    base, _ = whole(subject, tokens, POSITIONS)
    for layer in range(2):
        module = mlp_out(subject, layer)
        means = mean_input(subject, tokens[BLOCKS], module, slice(3, -1), how)
        found = neuron_changes(subject, tokens, POSITIONS, layer, [3, 11], how)
        assert found.abs().max() > 1e-3
        for column, neuron in enumerate([3, 11]):
            expected = whole(subject, tokens, POSITIONS, module, neuron, means[neuron])[0] - base
            assert found[:, column] == pytest.approx(expected, abs=1e-6)


def test_where_only_some_layers_attend_to_a_window(tokens):
    """Each layer keeps its own mask; one position at a time is refused where the keys of its window are not all
    kept."""
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=VOCABULARY, **LLAMA_LIKE, use_sliding_window=True, sliding_window=4,
                         max_window_layers=1)
    config._attn_implementation, config.initializer_range = "eager", 0.3
    subject = dissect(Qwen2ForCausalLM(config).double(), model_id="own")
    assert config.layer_types == ["full_attention", "sliding_attention"]
    recording, truth = layers.record_blocks(subject, tokens, POSITIONS), whole(subject, tokens, POSITIONS)[0]
    assert all(layers.rerun(recording, layer, [])[0] == pytest.approx(truth, abs=1e-6) for layer in range(2))
    with pytest.raises(ValueError,
                       match="^Some layers of own attend to fewer than the 10 tokens of a window: take shorter"):
        layers.record_windows(subject, tokens[:, :11])
    layers.record_windows(subject, tokens[:, :4])


def test_in_the_final_layer_every_position_or_one_is_the_same(tiny, tokens):
    subject = tiny("neox-parallel", torch.float64)
    kept = capture(subject, tokens)
    found = neuron_changes(subject, tokens, kept.positions, 1, range(6))
    assert found == pytest.approx(loss_changes(subject, kept, neurons=torch.arange(6)), abs=1e-9)


def hooks_of(subject):
    return sum(len(module._forward_pre_hooks) for module in subject.model.modules())


def test_hooks_are_gone_also_after_an_error(tiny, tokens):
    subject = tiny("llama-tied")
    before = hooks_of(subject)
    neuron_changes(subject, tokens, POSITIONS, 0, [1])
    recording = layers.record_blocks(subject, tokens, POSITIONS)
    with pytest.raises(RuntimeError):
        layers.rerun(recording, 0, [], mlp_out(subject, 0), lambda values: values[..., :3])
    assert hooks_of(subject) == before


@pytest.mark.parametrize("call, message", [
    (lambda subject, tokens: layers.record_blocks(subject, tokens, torch.tensor([[0, 15]])), "without a next token"),
    (lambda subject, tokens: layers.record_blocks(subject, tokens, torch.zeros(0, 2, dtype=torch.int64)), "shape"),
    (lambda subject, tokens: layers.effects(subject, tokens, POSITIONS, GROUP, ablation="resample"), "mean or zero"),
    (lambda subject, tokens: layers.find(torch.nn.Linear(2, 2), layers.MLP_OUT), "not known"),
    (lambda subject, tokens: layers.record_windows(subject, tokens[:, :2]), "3 tokens or more")])
def test_bad_input_by_name(tiny, tokens, call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny("llama-tied"), tokens)


# ---- one position, with what came before kept


@by_kind
@by_ablation
def test_neurons_at_one_position_against_hooks(tiny, tokens, kind, how):
    subject, windows = tiny(kind, torch.float64), tokens[:, :11]
    made, ends = layers.record_windows(subject, windows), torch.tensor([[block, 9] for block in range(6)])
    base, _ = whole(subject, windows, ends)
    for layer in range(2):
        module = mlp_out(subject, layer)
        means = mean_input(subject, windows[:, :-1], module, slice(5, None), how)
        found = layers.neuron_changes(made, layer, [3, 11], ablation=how)
        assert found.abs().max() > 1e-4
        for column, neuron in enumerate((3, 11)):
            truth = whole(subject, windows, ends, module, neuron, means[neuron], at=9)[0] - base
            assert found[:, column] == pytest.approx(truth, abs=1e-6)


@by_kind
def test_in_the_final_layer_it_is_the_kernel(tiny, tokens, kind):
    subject, windows = tiny(kind, torch.float64), tokens[:, :11]
    found = layers.neuron_changes(layers.record_windows(subject, windows), 1, range(subject.n_neurons), ablation="zero")
    kept, ends = capture(subject, windows), torch.tensor([[block, 9] for block in range(6)])
    assert found == pytest.approx(loss_changes(subject, kept, ends, ablation="zero"), abs=1e-6)


# ---- attention heads


@by_kind
@by_ablation
def test_every_head_against_hooks(tiny, tokens, kind, how):
    subject = tiny(kind, torch.float64)
    found = layers.effects(subject, tokens, POSITIONS, GROUP, ablation=how)
    assert found.layer.tolist() == [0] * 4 + [1] * 4 and found.head.tolist() == [0, 1, 2, 3] * 2
    losses, activations = whole(subject, tokens, POSITIONS)
    for row, (layer, head) in enumerate(zip(found.layer, found.head)):
        module = layers.find(layers.layers_of(subject)[layer], layers.ATTENTION_OUT)
        means = mean_input(subject, tokens[BLOCKS], module, slice(3, -1), how)
        width = len(means) // 4
        columns = slice(width * head, width * (head + 1))
        after, moved = whole(subject, tokens, POSITIONS, module, columns, means[columns])
        assert found.loss_changes[row] == pytest.approx(after - losses, abs=1e-6)
        assert found.activation_changes[row] == pytest.approx((moved - activations)[:, GROUP], abs=1e-9)
    assert found.loss_changes.abs().mean() > 1e-3
    rare = torch.tensor([True, False, True, True, False])
    by_hand = found.activation_changes.view(2, 4, 5, 3)[:, :, rare].abs().mean(1)
    assert found.moved(rare) == pytest.approx(by_hand)


@pytest.mark.parametrize("kind, reached", [("neox-parallel", False), ("neox-sequential", True)])
def test_in_a_parallel_block_the_last_heads_cannot_reach_the_last_mlp(tiny, tokens, kind, reached):
    found = layers.effects(tiny(kind), tokens, POSITIONS, GROUP)
    assert found.activation_changes[4:].any() == reached
    assert found.activation_changes[:4].any() and found.loss_changes[4:].any()
