"""Attention heads ablated one by one: do rare tokens take a route of their own?

A head is ablated at every position of a block, by replacing its slice of what the attention's output projection
reads. In a model with parallel blocks (GPT-NeoX, Phi) the last layer's heads cannot reach the last layer's MLP: for the
neurons' activations only heads of earlier layers count there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rare_token_neurons import suffix

WORK = 1.5e13  # floating-point operations for all heads: some two minutes on two cores
MOST_TOKENS = 2000


@dataclass(frozen=True)
class HeadEffects:
    """Effects of h heads at n positions on the losses and on g neurons of the final layer."""

    layer: Tensor  # int64 (h,)
    head: Tensor  # int64 (h,)
    losses: Tensor  # (n,) nats, nothing ablated
    loss_changes: Tensor  # (h, n) nats
    activations: Tensor  # (n, g), nothing ablated
    activation_changes: Tensor  # (h, n, g)

    def moved(self, positions):
        """Mean |activation change| over the heads of each layer, (layers, r, g), at the r positions of a bool mask (n,)."""
        return torch.stack([self.activation_changes[self.layer == layer][:, positions].abs().mean(0)
                            for layer in self.layer.unique()])


def effects(subject, tokens, positions, neurons, *, ablation="mean", layers=None, first=3, batch=8):
    """Ablate every attention head in turn.

    Parameters
    ----------
    subject : Subject
    tokens : int64 (blocks, length); only blocks that hold a position are run.
    positions : int64 (n, 2) rows (block, t), t the token READ.
    neurons : (g,) int, neurons of the final layer.
    ablation : "mean" (the head's mean output over the scored positions of the blocks used) or "zero".
    layers : ints, whose heads to ablate, None: all.
    first, batch : first scored position; blocks in one forward pass.

    Returns
    -------
    HeadEffects, heads in order of layer and number

    Raises
    ------
    ValueError
        Positions or layers out of range, another ablation, an unknown family.
    """
    stack = suffix.layers(subject)
    chosen = list(range(len(stack))) if layers is None else sorted(int(layer) for layer in layers)
    if not chosen or not 0 <= chosen[0] <= chosen[-1] < len(stack):
        raise ValueError(f"layers must name some of the layers 0 to {len(stack) - 1}.")
    modules = [suffix.find(stack[layer], suffix.ATTENTION_OUT) for layer in chosen]
    recording = suffix.record(subject, tokens, positions, modules, first=first, batch=batch)
    losses, activations = suffix.rerun(recording, len(stack) - 1, neurons=neurons)
    n_heads = subject.model.config.num_attention_heads
    found = []
    for layer, module in zip(chosen, modules):
        reference = suffix.replacement(recording.means[module], ablation).to(subject.dtype)
        width = len(reference) // n_heads
        for head in range(n_heads):
            columns = slice(head * width, (head + 1) * width)
            found.append(suffix.rerun(recording, layer, module, suffix.put(reference, columns), neurons))
    return HeadEffects(
        torch.tensor(chosen).repeat_interleave(n_heads), torch.arange(n_heads).repeat(len(chosen)), losses,
        torch.stack([after - losses for after, _ in found]), activations,
        torch.stack([after - activations for _, after in found]))


def affordable(subject, width, *, work=WORK, most=MOST_TOKENS):
    """How many tokens every head can be ablated on for a given work: a head costs its own layer and those above it.

    Parameters
    ----------
    subject : Subject
    width : the number is a multiple of it, and at least one.
    work : floating-point operations.
    most : tokens.

    Returns
    -------
    int
    """
    stack = suffix.layers(subject)
    sizes = [sum(weight.numel() for weight in layer.parameters()) for layer in stack]
    rerun = subject.model.config.num_attention_heads * sum((at + 1) * size for at, size in enumerate(sizes))
    return width * max(1, int(min(most, work / (2 * rerun)) // width))


def windows(tokens, documents, positions, *, width=64, budget=MOST_TOKENS, seed=0, ends=None):
    """Short stretches of text that end at chosen positions, so that few tokens reach many documents.

    Positions are taken in random order, one for each document before any document has a second, until `budget`
    tokens are full. Whatever other positions a window holds in its second half are measured too.

    Parameters
    ----------
    tokens : int64 (blocks, length) ; documents : (blocks,) int ; positions : int64 (n, 2) rows (block, t).
    width : tokens a window, at most the length of a block.
    budget : tokens in all.
    ends : bool (n,), the positions at which a window may end, None: all.

    Returns
    -------
    tokens : int64 (w, width), the windows.
    positions : int64 (k, 2) rows (window, t), without repeats of a position.
    rows : int64 (k,) which of the positions given each is (its document and group stay known by it).
    """
    length, count = tokens.shape[1], budget // width
    if not 4 <= width <= length or count < 1:
        raise ValueError(f"Windows are 4 to {length} tokens wide and at most the budget, not {width} of {budget}.")
    order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(seed))
    order = order if ends is None else order[ends[order]]
    owners = torch.as_tensor(documents)[positions[order, 0].cpu()]
    turn = torch.zeros(len(order), dtype=torch.int64)  # how many positions of its document come before
    seen = {}
    for place, owner in enumerate(owners.tolist()):
        turn[place] = seen[owner] = seen.get(owner, -1) + 1
    order = order[turn.argsort(stable=True)]

    made, kept, rows, taken = [], [], [], set()
    for row in order.tolist():
        if len(made) == count:
            break
        if row in taken:
            continue
        block, t = positions[row].tolist()
        start = min(max(0, t + 2 - width), length - width)
        inside = (positions[:, 0] == block) & (positions[:, 1] >= start) & (positions[:, 1] <= start + width - 2)
        inside &= (positions[:, 1] - start >= width // 2) | (torch.arange(len(positions), device=positions.device) == row)
        for other in inside.nonzero()[:, 0].tolist():
            if other not in taken:
                taken.add(other)
                kept.append((len(made), int(positions[other, 1]) - start))
                rows.append(other)
        made.append(tokens[block, start: start + width])
    return torch.stack(made), torch.tensor(kept), torch.tensor(rows)
