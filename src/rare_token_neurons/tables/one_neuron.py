"""One neuron at every measured position: what notebook 03 ablates by hand before it ablates all."""

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from rare_token_neurons.ablation import neurons as ablation
from rare_token_neurons.ablation.capture import references
from rare_token_neurons.ablation.layers import edited
from rare_token_neurons.tables import checkpoints as passes, influence as influences, rare_tokens
from rare_token_neurons.tables.stage import clock, table

BY_HAND = 5  # rare positions at which the whole model is run again


@table(passes.LAST, reads=influences.EFFECTS)
def one_neuron(settings):
    """The most influential neuron for rare targets (on half A), at each measured position of the last checkpoint.

    Returns
    -------
    DataFrame with block, t, group, document, target, half (see `positions`), neuron, activation, reference (what the
    ablation puts in its place), change (of the loss, nats, from one pass of the model); loss_before, loss_after (nats, the
    whole model run twice, at 5 rare positions evenly spaced; missing at the others)
    """
    revision = passes.revisions(settings)[-1]
    neuron = influences.rare_group(passes.of(influences.influence(settings), revision))[:1]
    subject, kept = passes.captured(settings, revision)
    made = rare_tokens.positions(settings)
    rows = torch.tensor(made[["block", "t"]].to_numpy(dtype=np.int64), device=subject.device)
    some = torch.tensor(neuron, device=subject.device)
    with clock("ablation"):
        change = ablation.loss_changes(subject, kept, rows, ablation=settings.ablation, seed=settings.seed,
                                       memory_gb=passes.MEMORY_GB, neurons=some)
    reference = references(kept, rows, some, settings.ablation, settings.seed).expand(len(rows), 1)
    active = kept.activations[rows[:, 0], rows[:, 1] - kept.first][:, some]
    values = {"activation": active, "reference": reference, "change": change}
    made = made.assign(neuron=neuron[0], **{name: part[:, 0].double().cpu().numpy() for name, part in values.items()})
    at = np.flatnonzero(made["group"] == "rare")
    at = np.unique(at[np.linspace(0, len(at) - 1, BY_HAND).round().astype(int)])
    with clock("forward"):
        losses = run_twice(subject, kept.tokens, rows[at], some, reference[at])
    made.loc[at, ["loss_before", "loss_after"]] = losses.double().cpu().numpy().T
    return made


@torch.no_grad()
def run_twice(subject, tokens, rows, neuron, reference):
    """Losses (2, n) of the whole model at positions (n, 2), as it is and with a neuron's activation replaced there.

    neuron : int64 (1,) ; reference : (n, 1), what replaces it.
    """
    block, t = rows.T
    read, place = tokens[block], (torch.arange(len(rows), device=tokens.device), t)

    def replaced(activations):
        made = activations.clone()
        made[*place, neuron] = reference[:, 0].to(made.dtype)
        return made

    found = []
    for module in (None, subject.mlp_out):
        with edited(module, replaced):
            found.append(cross_entropy(subject.model(read).logits[place], tokens[block, t + 1], reduction="none"))
    return torch.stack(found)
