"""Earlier layers: running a suffix again is what hooks on the whole model do."""

import pytest
import torch
from conftest import LLAMA_LIKE, ONE_EACH, VOCABULARY
from transformers import Qwen2Config, Qwen2ForCausalLM

from rare_token_neurons.ablation import capture as captures, layers as ablation_layers, neurons as ablation
from rare_token_neurons.models import subject as subjects

KINDS = ONE_EACH


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
    module = ablation_layers.find(ablation_layers.layers_of(subject)[layer], ablation_layers.MLP_OUT)
    recording = ablation_layers.record_blocks(subject, tokens, positions, [module], batch=batch)
    reference = ablation_layers.replacement(recording.means[module], ablation).to(subject.dtype)
    before, _ = ablation_layers.rerun(recording, layer)
    return torch.stack([ablation_layers.rerun(recording, layer, module, ablation_layers.put(reference, [neuron]))[0] - before
                        for neuron in neurons], 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rerun_without_an_edit_is_the_model_from_every_layer(tiny, tokens, kind):
    subject = tiny(kind, torch.float64)
    positions = torch.tensor([[4, 9], [0, 3], [4, 14], [1, 7]])
    recording = ablation_layers.record_blocks(subject, tokens, positions, batch=2)
    losses, activations = hooked(subject, tokens, positions, None, None, None)
    for layer in range(2):
        found = ablation_layers.rerun(recording, layer, neurons=[7, 2])
        assert found[0] == pytest.approx(losses, abs=1e-6)
        assert found[1] == pytest.approx(activations[:, [7, 2]], abs=1e-9)
    assert ablation_layers.rerun(recording, 0)[1].shape == (4, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["mean", "zero"])
def test_neurons_of_any_layer_against_hooks(tiny, tokens, kind, how):
    subject = tiny(kind, torch.float64)
    positions = torch.tensor([[0, 3], [1, 7], [4, 14], [4, 5], [5, 10]])
    used = tokens[[0, 1, 4, 5]]
    base, _ = hooked(subject, tokens, positions, None, None, None)
    for layer in range(2):
        module = ablation_layers.find(ablation_layers.layers_of(subject)[layer], ablation_layers.MLP_OUT)
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
    subject = subjects.dissect(Qwen2ForCausalLM(config).double(), model_id="own")
    assert config.layer_types == ["full_attention", "sliding_attention"]
    positions = torch.tensor([[4, 9], [0, 3], [4, 14], [1, 7]])
    truth = hooked(subject, tokens, positions, None, None, None)[0]
    recording = ablation_layers.record_blocks(subject, tokens, positions)
    assert all(ablation_layers.rerun(recording, layer)[0] == pytest.approx(truth, abs=1e-6) for layer in range(2))
    with pytest.raises(ValueError, match="^Some layers of own attend to fewer than the 10 tokens of a window: take shorter"):
        ablation_layers.record_windows(subject, tokens[:, :11])
    ablation_layers.record_windows(subject, tokens[:, :4])


def test_in_the_final_layer_every_position_or_one_is_the_same(tiny, tokens):
    subject = tiny("neox-parallel", torch.float64)
    capture = captures.capture(subject, tokens)
    found = neuron_changes(subject, tokens, capture.positions, 1, range(6))
    assert found == pytest.approx(ablation.loss_changes(subject, capture, neurons=torch.arange(6)), abs=1e-9)


def test_hooks_are_gone_and_errors_speak(tiny, tokens):
    subject = tiny("llama-tied")
    before = sum(len(module._forward_pre_hooks) for module in subject.model.modules())
    neuron_changes(subject, tokens, torch.tensor([[0, 3]]), 0, [1])
    recording = ablation_layers.record_blocks(subject, tokens, torch.tensor([[0, 3]]))
    with pytest.raises(RuntimeError):
        ablation_layers.rerun(recording, 0, ablation_layers.layers_of(subject)[0].mlp.down_proj, lambda values: values[..., :3])
    assert before == sum(len(module._forward_pre_hooks) for module in subject.model.modules())
    with pytest.raises(ValueError, match="without a next token"):
        ablation_layers.record_blocks(subject, tokens, torch.tensor([[0, 15]]))
    with pytest.raises(ValueError, match="shape"):
        ablation_layers.record_blocks(subject, tokens, torch.zeros(0, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="mean or zero"):
        ablation_layers.replacement(torch.zeros(3), "resample")
    with pytest.raises(ValueError, match="not known"):
        ablation_layers.find(torch.nn.Linear(2, 2), ablation_layers.MLP_OUT)
