"""Attention heads ablated one by one, against hooks on the whole model."""

import pytest
import torch
from test_suffix import KINDS, hooked

from rare_token_neurons.ablation import layers as ablation_layers
from rare_token_neurons.tables import routes

POSITIONS = torch.tensor([[0, 3], [2, 7], [4, 14], [4, 5], [5, 10]])
GROUP = [5, 40, 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["mean", "zero"])
def test_every_head_against_hooks(tiny, tokens, kind, how):
    subject = tiny(kind, torch.float64)
    found = ablation_layers.effects(subject, tokens, POSITIONS, GROUP, ablation=how, batch=2)
    assert found.layer.tolist() == [0] * 4 + [1] * 4 and found.head.tolist() == [0, 1, 2, 3] * 2
    losses, activations = hooked(subject, tokens, POSITIONS, None, None, None)
    assert found.losses == pytest.approx(losses, abs=1e-6)
    assert found.activations == pytest.approx(activations[:, GROUP], abs=1e-9)
    used = tokens[[0, 2, 4, 5]]
    for row in range(8):
        layer, head = int(found.layer[row]), int(found.head[row])
        module = ablation_layers.find(ablation_layers.layers_of(subject)[layer], ablation_layers.ATTENTION_OUT)
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
    parallel = ablation_layers.effects(tiny("neox-parallel"), tokens, POSITIONS, GROUP)
    assert torch.count_nonzero(parallel.activation_changes[parallel.layer == 1]) == 0
    assert torch.count_nonzero(parallel.activation_changes[parallel.layer == 0]) > 0
    assert torch.count_nonzero(parallel.loss_changes[parallel.layer == 1]) > 0
    sequential = ablation_layers.effects(tiny("neox-sequential"), tokens, POSITIONS, GROUP)
    assert torch.count_nonzero(sequential.activation_changes[sequential.layer == 1]) > 0


def test_some_layers_only(tiny, tokens):
    subject = tiny("llama-tied")
    every, some = (ablation_layers.effects(subject, tokens, POSITIONS, GROUP, layers=layers) for layers in (None, [1]))
    assert some.layer.tolist() == [1] * 4 and torch.equal(some.loss_changes, every.loss_changes[4:])
    with pytest.raises(ValueError, match="layers 0 to 1"):
        ablation_layers.effects(subject, tokens, POSITIONS, GROUP, layers=[2])
    with pytest.raises(ValueError, match="mean or zero"):
        ablation_layers.effects(subject, tokens, POSITIONS, GROUP, ablation="resample")


def test_windows_end_at_positions_and_spread_over_documents():
    tokens = torch.arange(40 * 64).reshape(40, 64)
    documents = torch.arange(40) // 2
    positions = torch.cartesian_prod(torch.arange(40), torch.tensor([3, 20, 30, 33, 61]))
    made, kept, rows = routes.choose_windows(tokens, documents, positions, width=16, budget=16 * 20)
    assert made.shape == (20, 16) and len(set(rows.tolist())) == len(rows) >= 20
    assert len(set(documents[positions[rows, 0]].tolist())) == 20
    block, t = positions[rows].unbind(1)
    assert torch.equal(made[kept[:, 0], kept[:, 1]], tokens[block, t])
    assert torch.equal(made[kept[:, 0], kept[:, 1] + 1], tokens[block, t + 1])
    again = routes.choose_windows(tokens, documents, positions, width=16, budget=16 * 20)
    assert all(torch.equal(a, b) for a, b in zip((made, kept, rows), again))
    whole = routes.choose_windows(tokens, documents, positions, width=64, budget=64)
    assert whole[0].shape == (1, 64) and set(whole[1][:, 1].tolist()) <= {3, 20, 30, 33, 61}
    with pytest.raises(ValueError, match="Windows"):
        routes.choose_windows(tokens, documents, positions, width=65)


def test_windows_end_where_they_may():
    tokens, documents = torch.arange(10 * 32).reshape(10, 32), torch.arange(10)
    positions = torch.cartesian_prod(torch.arange(10), torch.tensor([12, 20, 23, 28]))
    ends = positions[:, 1] == 23
    made, kept, rows = routes.choose_windows(tokens, documents, positions, width=16, budget=16 * 10, ends=ends)
    assert made.shape == (10, 16) and sorted(made[:, 15].tolist()) == [32 * block + 24 for block in range(10)]
    assert torch.unique(positions[rows, 1]).tolist() == [20, 23] and len(rows) == 20


def test_what_is_affordable(tiny):
    subject = tiny("llama-tied")
    layer = sum(weight.numel() for weight in ablation_layers.layers_of(subject)[0].parameters())
    cost = 2 * 4 * 3 * layer  # a token: multiply and add, four heads in each layer, two layers from the first and one from the last
    assert routes.affordable(subject, 8, work=cost * 50) == 48 and routes.affordable(subject, 8, work=1) == 8
    assert routes.affordable(subject, 8, work=cost * 1e6) == 2000
