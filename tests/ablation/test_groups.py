"""Joint ablation of groups and greedy search, against whole-model hooks and brute force."""

import numpy as np
import pytest
import torch
from oracle import exact_norms

from rare_token_neurons.ablation import groups
from rare_token_neurons.ablation.capture import ABLATIONS, Capture, capture, references
from rare_token_neurons.ablation.neurons import loss_changes

KINDS = ("neox-parallel", "neox-sequential", "llama-tied", "olmo2", "gemma3-tied")
GROUP = [3, 17, 40, 41, 8]


def whole(tiny, tokens, kind, **options):
    """A small model in float64 and its capture."""
    subject = tiny(kind, torch.float64, **options)
    with exact_norms(subject.model):
        return subject, capture(subject, tokens)


def hooked(subject, tokens, kept, positions, group, kind="mean"):
    """Joint loss changes (n,) by one whole forward pass: the group's activations replaced at the positions."""
    block, t = positions.unbind(1)
    new = references(kept, positions, torch.tensor(group), kind, 0).to(subject.dtype)

    def ablate(module, inputs):
        activations = inputs[0].clone()
        rows = activations[block, t]
        rows[:, group] = new
        activations[block, t] = rows
        return (activations,)

    def loss():
        with exact_norms(subject.model), torch.no_grad():
            log_p = subject.model(tokens).logits.log_softmax(-1)[block, t]
            return -log_p.gather(1, tokens[block, t + 1][:, None])[:, 0]

    before = loss()
    with subject.mlp_out.register_forward_pre_hook(ablate):
        return loss() - before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ABLATIONS)
def test_joint_changes_are_those_of_the_whole_model(tiny, tokens, kind, how):
    subject, kept = whole(tiny, tokens, kind)
    positions = kept.positions[::3]
    found = groups.joint_changes(subject, kept, positions, [GROUP, [5]], ablation=how)
    assert found[0] == pytest.approx(hooked(subject, tokens, kept, positions, GROUP, how), abs=1e-11)
    assert found[0].abs().mean() > 0.01
    single = loss_changes(subject, kept, positions, ablation=how, neurons=[5])
    assert found[1] == pytest.approx(single[:, 0], abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [1.0, 8.0, 40.0])
def test_float32_is_close_to_float64_for_small_and_for_harsh_changes(tiny, tokens, kind, strength):
    wide, narrow = tiny(kind, torch.float64, strength=strength), tiny(kind, strength=strength)
    kept = capture(narrow, tokens)
    exact = Capture(kept.tokens, kept.first, kept.documents, kept.activations.double(), kept.residual.double(),
                    kept.entering.double())
    found = groups.joint_changes(narrow, kept, kept.positions, [GROUP]).double()
    expected = groups.joint_changes(wide, exact, kept.positions, [GROUP])
    assert (found - expected).abs().max() < 1e-5 + 1e-5 * expected.abs().max()


def test_memory_and_company_do_not_change_the_answer(tiny, tokens):
    subject, kept = whole(tiny, tokens, "neox-parallel")
    together = groups.joint_changes(subject, kept, kept.positions, [GROUP, [1, 2]], ablation="resample")
    alone = groups.joint_changes(subject, kept, kept.positions, [[1, 2]], ablation="resample", memory_gb=3e-5)
    assert alone[0] == pytest.approx(together[1], abs=1e-12)


def test_synergy_by_hand(tiny, tokens):
    subject, kept = whole(tiny, tokens, "llama-tied")
    changes = loss_changes(subject, kept)
    joint = groups.joint_changes(subject, kept, None, [GROUP, [7, 9, 11]])
    added, absolute = groups.sum_of_singles(changes, [GROUP, [7, 9, 11]])
    assert added[0] == pytest.approx(changes[:, GROUP].sum(1)) and absolute.shape == added.shape
    table = groups.synergy(joint, added, absolute)
    assert table.joint[1] == pytest.approx(joint[1].abs().mean())
    assert table.ratio[0] == pytest.approx(joint[0].abs().mean() / added[0].abs().mean())
    assert table.interaction[0] == pytest.approx((joint[0] - added[0]).abs().mean())
    assert (table.added <= table.absolute + 1e-12).all()


def test_effects_add_up_where_the_prediction_hardly_moves(tiny, tokens):
    subject, kept = whole(tiny, tokens, "neox-parallel", strength=0.3)
    joint = groups.joint_changes(subject, kept, None, [GROUP])
    added, absolute = groups.sum_of_singles(loss_changes(subject, kept), [GROUP])
    assert groups.synergy(joint, added, absolute).ratio[0] == pytest.approx(1, abs=0.02)


def best_next(subject, kept, positions, chosen, **options):
    """By brute force, the neuron that raises the group's influence most."""
    left = [one for one in range(subject.n_neurons) if one not in chosen]
    scores = groups.joint_changes(subject, kept, positions, [[*chosen, one] for one in left], **options).abs().mean(1)
    return left[int(scores.argmax())]


@pytest.mark.parametrize("kind", ["neox-sequential", "olmo2"])
def test_greedy_search_takes_the_best_next_neuron_at_every_step(tiny, tokens, kind):
    subject, kept = whole(tiny, tokens, kind)
    positions = kept.positions[::2]
    found, chosen = groups.greedy(subject, kept, positions, 3), []
    for _ in range(3):
        chosen.append(best_next(subject, kept, positions, chosen))
    assert found.neurons.tolist() == chosen
    assert found.alone == pytest.approx(loss_changes(subject, kept, positions).abs().mean(0).numpy(), abs=1e-8)


def test_greedy_search_leaves_the_capture_alone_and_works_with_resampling(tiny, tokens):
    subject, kept = whole(tiny, tokens, "llama-tied")
    before = kept.residual.clone()
    found = groups.greedy(subject, kept, kept.positions, 4, ablation="resample", seed=3)
    assert torch.equal(kept.residual, before) and len(set(found.neurons)) == 4
    first, last = found.neurons[:-1].tolist(), found.neurons[-1]
    assert best_next(subject, kept, None, first, ablation="resample", seed=3) == last
    again = groups.greedy(subject, kept, kept.positions, 4, ablation="resample", seed=3)
    assert np.array_equal(found.neurons, again.neurons)


@pytest.mark.parametrize("measured, asked, message", [
    (groups.joint_changes, [[1, 1]], "each of them once"),
    (groups.joint_changes, [np.array([], dtype=int)], "one neuron or more"),
    (groups.joint_changes, [[1, 480]], "neurons"), (groups.greedy, 49, "cannot be chosen")])
def test_bad_input_by_name(tiny, tokens, measured, asked, message):
    subject = tiny("neox-parallel")
    with pytest.raises(ValueError, match=message):
        measured(subject, capture(subject, tokens), None, asked)
