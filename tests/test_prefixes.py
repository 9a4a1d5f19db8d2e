"""One ablated position of any layer, with what came before kept: the same as hooks on the whole model."""

import pytest
import torch
from conftest import ONE_EACH

from rare_token_neurons.ablation import capture as captures, layers as ablation_layers, neurons as ablation

KINDS = ONE_EACH


def hooked(subject, windows, module, neuron, reference):
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
def test_neurons_of_any_layer_against_hooks(tiny, tokens, kind, how):
    subject, windows = tiny(kind, torch.float64), tokens[:, :11]
    made = ablation_layers.record_windows(subject, windows, batch=4)
    with torch.no_grad():
        base = -subject.model(windows[:, :-1]).logits[:, -1].log_softmax(-1).gather(1, windows[:, -1:])[:, 0]
    for layer in range(2):
        module = ablation_layers.find(ablation_layers.layers_of(subject)[layer], ablation_layers.MLP_OUT)
        read = []
        hook = module.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        with torch.no_grad():
            subject.model(windows[:, :-1])
        hook.remove()
        means = read[0][:, 5:].mean((0, 1)) if how == "mean" else torch.zeros(subject.n_neurons, dtype=torch.float64)
        found = ablation_layers.neuron_changes(made, layer, [3, 11], ablation=how)
        assert found.abs().max() > 1e-4
        for column, neuron in enumerate((3, 11)):
            truth = hooked(subject, windows, module, neuron, means[neuron]) - base
            assert found[:, column] == pytest.approx(truth, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_in_the_final_layer_it_is_the_kernel(tiny, tokens, kind):
    subject, windows = tiny(kind, torch.float64), tokens[:, :11]
    found = ablation_layers.neuron_changes(ablation_layers.record_windows(subject, windows), 1, range(subject.n_neurons), ablation="zero")
    kept = captures.capture(subject, windows, first=3)
    positions = torch.tensor([[block, 9] for block in range(len(windows))])
    assert found == pytest.approx(ablation.loss_changes(subject, kept, positions, ablation="zero"), abs=1e-6)


def test_windows_without_a_position_are_refused(tiny, tokens):
    with pytest.raises(ValueError, match="3 tokens or more"):
        ablation_layers.record_windows(tiny("llama-tied", torch.float64), tokens[:, :2])
