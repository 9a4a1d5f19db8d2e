"""Interventions in any layer at ONE position: the tokens before it stay as they were.

`suffix` ablates a neuron at every position of a block and runs whole blocks again. Here a window of text ends at the token
read; what the layers computed for the tokens before it is kept as keys and values, so that an ablated neuron costs one
token's way through the layers above it. In the final layer the result is that of `ablation.loss_changes`.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from rare_token_neurons.predictions import full_precision
from rare_token_neurons.subjects import Subject
from rare_token_neurons.suffix import MLP_OUT, arguments, find, layers, replacement

ROWS = 1024  # (window, neuron) pairs at a time


@dataclass
class Prefixes:
    """n windows of equal length, after one forward pass."""

    subject: Subject
    targets: Tensor  # (n,) the tokens after the windows
    hidden: list[Tensor]  # layer -> its input at the last token read, (n, 1, d)
    keys: list[Tensor]  # layer -> of the tokens before, (n, heads, length - 1, width)
    values: list[Tensor]
    means: list[Tensor]  # layer -> mean activation of its MLP's neurons over the second halves of the windows, float64
    options: dict  # what else the layers take at the last position: a rotary embedding's cosine and sine, where there is one
    cache: str  # the name under which the family's layers take keys and values


@full_precision()
def record(subject, windows, *, batch=64):
    """Run the model once on windows of text.

    Parameters
    ----------
    subject : Subject
    windows : int64 (n, length + 1); the last token is the target, the one before it is the position.
    batch : windows in one forward pass.

    Returns
    -------
    Prefixes

    Raises
    ------
    ValueError
        Windows of the wrong shape, or longer than what a layer attends to.
    """
    windows = torch.as_tensor(windows, device=subject.device)
    if windows.ndim != 2 or not len(windows) or windows.shape[1] < 3:
        raise ValueError(f"windows must hold 3 tokens or more each, (n, length + 1), not {tuple(windows.shape)}.")
    stack, seen, kept, sums = layers(subject), {}, [], [0.0] * subject.n_layers
    late = (windows.shape[1] - 1) // 2  # early tokens see too little of the text to count
    modules = [find(layer, MLP_OUT) for layer in stack]

    def enter(module, inputs, named):
        seen[module], seen["options"] = arguments(module, inputs, named)

    def add(module, inputs):
        sums[modules.index(module)] += inputs[0][:, late:].sum((0, 1), dtype=torch.float64)

    hooks = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in stack]
    hooks += [module.register_forward_pre_hook(add) for module in modules]
    try:
        for part in windows[:, :-1].split(batch):
            past = subject.model.base_model(part, use_cache=True).past_key_values
            kept.append(([seen[layer][:, -1:] for layer in stack], [layer.keys[:, :, :-1] for layer in past.layers],
                         [layer.values[:, :, :-1] for layer in past.layers]))
    finally:
        for hook in hooks:
            hook.remove()
    hidden, keys, values = ([torch.cat(parts) for parts in zip(*made)] for made in zip(*kept))
    if any(part.shape[2] < windows.shape[1] - 2 for part in keys):
        raise ValueError(f"Some layers of {subject.model_id or 'the model'} attend to fewer than the {windows.shape[1] - 1} "
                         "tokens of a window: take shorter ones.")
    count = len(windows) * (windows.shape[1] - 1 - late)
    cache = next(name for name in ("layer_past", "past_key_values") if name in seen["options"])
    turn = seen["options"].get("position_embeddings")  # learned positions are in the input of the first layer already
    turn = {"position_embeddings": tuple(part[:1, -1:] for part in turn)} if turn else {}
    return Prefixes(subject, windows[:, -1], hidden, keys, values, [total / count for total in sums], turn, cache)


@full_precision()
def losses(prefixes, rows, layer, module=None, edit=None, copies=1):
    """Losses when each of some windows goes through the layers from `layer` on, `copies` times.

    Parameters
    ----------
    rows : slice of the windows.
    module, edit : a module of that layer and what changes its input (windows * copies, 1, width), copies of a window
        side by side; None: nothing is changed.

    Returns
    -------
    (windows * copies,) nats
    """
    subject = prefixes.subject

    def update(key, value, index, *_):
        before = (part[index][rows].repeat_interleave(copies, 0) for part in (prefixes.keys, prefixes.values))
        return tuple(torch.cat(pair, 2) for pair in zip(before, (key, value)))

    options = {"attention_mask": None, prefixes.cache: SimpleNamespace(update=update)} | prefixes.options
    state = prefixes.hidden[layer][rows].repeat_interleave(copies, 0)
    hook = module.register_forward_pre_hook(lambda _, inputs: (edit(inputs[0]),)) if module is not None else None
    try:
        for step in layers(subject)[layer:]:
            state = step(state, **options)
            state = state[0] if isinstance(state, tuple) else state
    finally:
        if hook is not None:
            hook.remove()
    logits = nn.functional.linear(subject.final_norm(state[:, 0]), subject.unembedding, subject.unembedding_bias)
    return nn.functional.cross_entropy(logits, prefixes.targets[rows].repeat_interleave(copies), reduction="none")


def neuron_changes(prefixes, layer, neurons, *, ablation="mean"):
    """Loss changes when one MLP neuron of any layer is ablated at the last token read.

    Parameters
    ----------
    layer : int, counted from 0 ; neurons : (m,) int, of that layer's MLP.
    ablation : "mean" (over the second halves of the windows) or "zero".

    Returns
    -------
    (n, m) nats
    """
    neurons = torch.as_tensor(neurons, dtype=torch.int64, device=prefixes.targets.device)
    module, m = find(layers(prefixes.subject)[layer], MLP_OUT), len(neurons)
    reference = replacement(prefixes.means[layer], ablation).to(prefixes.subject.dtype)

    def edit(values):
        values, copy = values.clone(), torch.arange(len(values), device=values.device)
        values[copy, 0, neurons.repeat(len(values) // m)] = reference[neurons].repeat(len(values) // m)
        return values

    step, found = max(1, ROWS // (m + 1)), []
    for start in range(0, len(prefixes.targets), step):
        rows = slice(start, start + step)
        changed = losses(prefixes, rows, layer, module, edit, m).view(-1, m)
        found.append(changed - losses(prefixes, rows, layer)[:, None])
    return torch.cat(found)
