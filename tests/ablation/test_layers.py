"""Earlier layers and heads, at every position or at one: running a part again is what hooks on the whole model do."""

import pytest
import torch
from tiny_models import LLAMA_LIKE, ONE_EACH as KINDS, VOCABULARY
from transformers import Qwen2Config, Qwen2ForCausalLM

from rare_token_neurons.ablation import layers
from rare_token_neurons.ablation.capture import capture
from rare_token_neurons.ablation.neurons import loss_changes
from rare_token_neurons.models.subject import dissect


def hooked(subject, tokens, positions, module, columns, reference):
    """Losses (n,) and final-layer activations (n, neurons), one whole forward pass with a module's input overwritten."""
    read, (block, t) = [], positions.unbind(1)

    def overwrite(_, inputs):
        values = inputs[0].clone()
        values[..., columns] = reference
        return (values,)

    hooks = [module.register_forward_pre_hook(overwrite)] if module is not None else []
    hooks.append(subject.mlp_out.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0])))
    with torch.no_grad():
        logits = subject.model(tokens).logits
    for hook in hooks:
        hook.remove()
    return -logits.log_softmax(-1)[block, t].gather(1, tokens[block, t + 1][:, None])[:, 0], read[0][block, t]


def neuron_changes(subject, tokens, positions, layer, neurons, ablation="mean", batch=8):
    """Loss changes (n, m) when one MLP neuron of a layer is ablated at EVERY position of its block."""
    module = layers.find(layers.layers_of(subject)[layer], layers.MLP_OUT)
    recording = layers.record_blocks(subject, tokens, positions, [module], batch=batch)
    reference = layers.replacement(recording.means[module], ablation).to(subject.dtype)
    before, _ = layers.rerun(recording, layer)
    return torch.stack([layers.rerun(recording, layer, module, layers.put(reference, [neuron]))[0] - before
                        for neuron in neurons], 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rerun_without_an_edit_is_the_model_from_every_layer(tiny, tokens, kind):
    subject = tiny(kind, torch.float64)
    positions = torch.tensor([[4, 9], [0, 3], [4, 14], [1, 7]])
    recording = layers.record_blocks(subject, tokens, positions, batch=2)
    losses, activations = hooked(subject, tokens, positions, None, None, None)
    for layer in range(2):
        found = layers.rerun(recording, layer, neurons=[7, 2])
        assert found[0] == pytest.approx(losses, abs=1e-6)
        assert found[1] == pytest.approx(activations[:, [7, 2]], abs=1e-9)
    assert layers.rerun(recording, 0)[1].shape == (4, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["mean", "zero"])
def test_neurons_of_any_layer_against_hooks(tiny, tokens, kind, how):
    subject = tiny(kind, torch.float64)
    positions = torch.tensor([[0, 3], [1, 7], [4, 14], [4, 5], [5, 10]])
    used = tokens[[0, 1, 4, 5]]
    base, _ = hooked(subject, tokens, positions, None, None, None)
    for layer in range(2):
        module = layers.find(layers.layers_of(subject)[layer], layers.MLP_OUT)
        read = []
        hook = module.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        with torch.no_grad():
            subject.model(used)
        hook.remove()
        means = read[0][:, 3:-1].mean((0, 1)) if how == "mean" else torch.zeros(subject.n_neurons)
        found = neuron_changes(subject, tokens, positions, layer, [3, 11], how, batch=3)
        assert found.abs().max() > 1e-3
        for column, neuron in enumerate([3, 11]):
            expected = hooked(subject, tokens, positions, module, neuron, means[neuron])[0] - base
            assert found[:, column] == pytest.approx(expected, abs=1e-6)


def test_where_only_some_layers_attend_to_a_window(tokens):
    """Each layer keeps its own mask; one position at a time is refused where the keys of its window are not all kept."""
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=VOCABULARY, **LLAMA_LIKE, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    config._attn_implementation, config.initializer_range = "eager", 0.3
    subject = dissect(Qwen2ForCausalLM(config).double(), model_id="own")
    assert config.layer_types == ["full_attention", "sliding_attention"]
    positions = torch.tensor([[4, 9], [0, 3], [4, 14], [1, 7]])
    truth = hooked(subject, tokens, positions, None, None, None)[0]
    recording = layers.record_blocks(subject, tokens, positions)
    assert all(layers.rerun(recording, layer)[0] == pytest.approx(truth, abs=1e-6) for layer in range(2))
    with pytest.raises(ValueError, match="^Some layers of own attend to fewer than the 10 tokens of a window: take shorter"):
        layers.record_windows(subject, tokens[:, :11])
    layers.record_windows(subject, tokens[:, :4])


def test_in_the_final_layer_every_position_or_one_is_the_same(tiny, tokens):
    subject = tiny("neox-parallel", torch.float64)
    kept = capture(subject, tokens)
    found = neuron_changes(subject, tokens, kept.positions, 1, range(6))
    assert found == pytest.approx(loss_changes(subject, kept, neurons=torch.arange(6)), abs=1e-9)


def test_hooks_are_gone_and_errors_speak(tiny, tokens):
    subject = tiny("llama-tied")
    before = sum(len(module._forward_pre_hooks) for module in subject.model.modules())
    neuron_changes(subject, tokens, torch.tensor([[0, 3]]), 0, [1])
    recording = layers.record_blocks(subject, tokens, torch.tensor([[0, 3]]))
    with pytest.raises(RuntimeError):
        layers.rerun(recording, 0, layers.layers_of(subject)[0].mlp.down_proj, lambda values: values[..., :3])
    assert before == sum(len(module._forward_pre_hooks) for module in subject.model.modules())
    with pytest.raises(ValueError, match="without a next token"):
        layers.record_blocks(subject, tokens, torch.tensor([[0, 15]]))
    with pytest.raises(ValueError, match="shape"):
        layers.record_blocks(subject, tokens, torch.zeros(0, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="mean or zero"):
        layers.replacement(torch.zeros(3), "resample")
    with pytest.raises(ValueError, match="not known"):
        layers.find(torch.nn.Linear(2, 2), layers.MLP_OUT)


# ---- one position, with what came before kept


def hooked_at_the_end(subject, windows, module, neuron, reference):
    """Losses (n,) of the last tokens with one neuron overwritten at the last position read, by a whole forward pass."""

    def overwrite(_, inputs):
        values = inputs[0].clone()
        values[:, -1, neuron] = reference
        return (values,)

    hook = module.register_forward_pre_hook(overwrite)
    with torch.no_grad():
        logits = subject.model(windows[:, :-1]).logits[:, -1]
    hook.remove()
    return -logits.log_softmax(-1).gather(1, windows[:, -1:])[:, 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["mean", "zero"])
def test_neurons_at_one_position_against_hooks(tiny, tokens, kind, how):
    subject, windows = tiny(kind, torch.float64), tokens[:, :11]
    made = layers.record_windows(subject, windows, batch=4)
    with torch.no_grad():
        base = -subject.model(windows[:, :-1]).logits[:, -1].log_softmax(-1).gather(1, windows[:, -1:])[:, 0]
    for layer in range(2):
        module = layers.find(layers.layers_of(subject)[layer], layers.MLP_OUT)
        read = []
        hook = module.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        with torch.no_grad():
            subject.model(windows[:, :-1])
        hook.remove()
        means = read[0][:, 5:].mean((0, 1)) if how == "mean" else torch.zeros(subject.n_neurons, dtype=torch.float64)
        found = layers.neuron_changes(made, layer, [3, 11], ablation=how)
        assert found.abs().max() > 1e-4
        for column, neuron in enumerate((3, 11)):
            truth = hooked_at_the_end(subject, windows, module, neuron, means[neuron]) - base
            assert found[:, column] == pytest.approx(truth, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_in_the_final_layer_it_is_the_kernel(tiny, tokens, kind):
    subject, windows = tiny(kind, torch.float64), tokens[:, :11]
    found = layers.neuron_changes(layers.record_windows(subject, windows), 1, range(subject.n_neurons), ablation="zero")
    kept = capture(subject, windows, first=3)
    positions = torch.tensor([[block, 9] for block in range(len(windows))])
    assert found == pytest.approx(loss_changes(subject, kept, positions, ablation="zero"), abs=1e-6)


def test_windows_without_a_position_are_refused(tiny, tokens):
    with pytest.raises(ValueError, match="3 tokens or more"):
        layers.record_windows(tiny("llama-tied", torch.float64), tokens[:, :2])


# ---- attention heads


POSITIONS = torch.tensor([[0, 3], [2, 7], [4, 14], [4, 5], [5, 10]])
GROUP = [5, 40, 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["mean", "zero"])
def test_every_head_against_hooks(tiny, tokens, kind, how):
    subject = tiny(kind, torch.float64)
    found = layers.effects(subject, tokens, POSITIONS, GROUP, ablation=how, batch=2)
    assert found.layer.tolist() == [0] * 4 + [1] * 4 and found.head.tolist() == [0, 1, 2, 3] * 2
    losses, activations = hooked(subject, tokens, POSITIONS, None, None, None)
    assert found.losses == pytest.approx(losses, abs=1e-6)
    assert found.activations == pytest.approx(activations[:, GROUP], abs=1e-9)
    used = tokens[[0, 2, 4, 5]]
    for row in range(8):
        layer, head = int(found.layer[row]), int(found.head[row])
        module = layers.find(layers.layers_of(subject)[layer], layers.ATTENTION_OUT)
        read = []
        hook = module.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        with torch.no_grad():
            subject.model(used)
        hook.remove()
        width = read[0].shape[-1] // 4
        columns = slice(width * head, width * (head + 1))
        reference = read[0][:, 3:-1, columns].mean((0, 1)) if how == "mean" else 0.0
        after, moved = hooked(subject, tokens, POSITIONS, module, columns, reference)
        assert found.loss_changes[row] == pytest.approx(after - losses, abs=1e-6)
        assert found.activation_changes[row] == pytest.approx((moved - activations)[:, GROUP], abs=1e-9)
    assert found.loss_changes.abs().mean() > 1e-3


def test_in_a_parallel_block_the_last_heads_cannot_reach_the_last_mlp(tiny, tokens):
    parallel = layers.effects(tiny("neox-parallel"), tokens, POSITIONS, GROUP)
    assert torch.count_nonzero(parallel.activation_changes[parallel.layer == 1]) == 0
    assert torch.count_nonzero(parallel.activation_changes[parallel.layer == 0]) > 0
    assert torch.count_nonzero(parallel.loss_changes[parallel.layer == 1]) > 0
    sequential = layers.effects(tiny("neox-sequential"), tokens, POSITIONS, GROUP)
    assert torch.count_nonzero(sequential.activation_changes[sequential.layer == 1]) > 0


def test_some_layers_only(tiny, tokens):
    subject = tiny("llama-tied")
    every, some = (layers.effects(subject, tokens, POSITIONS, GROUP, layers=chosen) for chosen in (None, [1]))
    assert some.layer.tolist() == [1] * 4 and torch.equal(some.loss_changes, every.loss_changes[4:])
    with pytest.raises(ValueError, match="layers 0 to 1"):
        layers.effects(subject, tokens, POSITIONS, GROUP, layers=[2])
    with pytest.raises(ValueError, match="mean or zero"):
        layers.effects(subject, tokens, POSITIONS, GROUP, ablation="resample")
