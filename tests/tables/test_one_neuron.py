"""One neuron by two runs of the whole model: the same change of the loss as by the closed form."""

import pytest
import torch
from tiny_models import ONE_EACH

from rare_token_neurons.ablation.capture import ABLATIONS, capture, references
from rare_token_neurons.ablation.neurons import loss_changes, losses
from rare_token_neurons.tables.one_neuron import run_twice

ROWS, NEURON = torch.tensor([(0, 3), (0, 9), (2, 14), (5, 7)]), torch.tensor([11])


@pytest.mark.parametrize("kind", ONE_EACH)
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_two_runs_of_the_model_give_the_change_of_the_closed_form(tiny, tokens, kind, ablation):
    subject = tiny(kind)
    kept = capture(subject, tokens)
    reference = references(kept, ROWS, NEURON, ablation, 0).expand(len(ROWS), 1)
    before, after = run_twice(subject, tokens, ROWS, NEURON, reference)
    torch.testing.assert_close(before, losses(subject, kept, ROWS), atol=1e-5, rtol=1e-5)
    change = loss_changes(subject, kept, ROWS, ablation=ablation, neurons=NEURON)[:, 0]
    assert change.abs().max() > 1e-3, "the model is too tame to test anything"
    torch.testing.assert_close(after - before, change, atol=1e-4, rtol=1e-3)
