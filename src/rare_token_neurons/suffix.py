"""Interventions in earlier layers: a layer and those above it are run again, the layers below are not.

`record` runs the model once and keeps every layer's input. `rerun` starts from the input of one layer, changes what
one module of that layer reads, at every position of the blocks, and reads off what became of the losses and of the
final layer's neurons. The result is that of hooks on the whole model, for the cost of the layers from there on.
"""

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rare_token_neurons.predictions import full_precision
from rare_token_neurons.subjects import Subject

# Where the families keep their layers, and in a layer what writes into the residual stream.
LAYERS = ("layers", "h", "decoder.layers")
ATTENTION_OUT = ("attention.dense", "self_attn.o_proj", "attn.c_proj", "self_attn.out_proj", "self_attn.dense")
MLP_OUT = ("mlp.dense_4h_to_h", "mlp.down_proj", "mlp.c_proj", "fc2", "mlp.fc2")
ROWS = 256  # positions whose logits are held at a time


def find(module, paths):
    """The first of the submodules named in `paths` that `module` has."""
    for path in paths:
        try:
            return module.get_submodule(path)
        except AttributeError:
            continue
    raise ValueError(f"A {type(module).__name__} has none of {', '.join(paths)}: its family is not known here.")


def arguments(layer, inputs, named):
    """What a layer was called with: its input (blocks, length, d), and the other arguments by their names."""
    given = dict(zip(inspect.signature(layer.forward).parameters, inputs)) | named
    return given.pop("hidden_states"), given


def layers(subject):
    """The model's layers from the first to the last, nn.ModuleList."""
    return find(subject.model.base_model, LAYERS)


@dataclass
class Recording:
    """One forward pass, by batches of blocks. n positions, of which batch i holds the rows rows[i]."""

    subject: Subject
    rows: list[Tensor]  # int64 each
    places: list[tuple[Tensor, Tensor]]  # block of the batch and t, of the rows
    targets: Tensor  # (n,)
    hidden: list[list[Tensor]]  # batch, layer -> the layer's input (b, length, d)
    options: list[list[dict]]  # batch, layer -> its other arguments; masks differ where some layers attend to a window
    means: dict[nn.Module, Tensor]  # module -> mean of its input over the scored positions, float64


@full_precision()
def record(subject, tokens, positions, modules=(), *, first=3, batch=8):
    """Run the model on the blocks that hold a position and keep what `rerun` needs.

    Parameters
    ----------
    subject : Subject
    tokens : int64 (blocks, length)
    positions : int64 (n, 2) rows (block, t), t the token READ.
    modules : modules whose input is averaged over the scored positions (t from `first` to length - 2) of these blocks.
    first, batch : first scored position; blocks in one forward pass.

    Returns
    -------
    Recording
    """
    tokens, positions = tokens.to(subject.device), torch.as_tensor(positions, device=subject.device)
    if positions.ndim != 2 or positions.shape[1] != 2 or not len(positions):
        raise ValueError(f"positions must be whole numbers of shape (n, 2) with n above 0, not {tuple(positions.shape)}.")
    block, t = positions.unbind(1)
    if block.min() < 0 or block.max() >= len(tokens) or t.min() < 0 or t.max() > tokens.shape[1] - 2:
        raise ValueError(f"positions name tokens outside {len(tokens)} blocks of {tokens.shape[1]}, or without a next token.")
    stack, used = layers(subject), block.unique()
    recording = Recording(subject, [], [], tokens[block, t + 1], [], [], {})
    sums, count = {module: 0.0 for module in modules}, 0
    for part in used.split(batch):
        hidden, options = [], []

        def enter(module, inputs, named, hidden=hidden, options=options):
            entered, others = arguments(module, inputs, named)
            hidden.append(entered)
            options.append(others)

        def add(module, inputs):
            sums[module] = sums[module] + inputs[0][:, first:-1].sum((0, 1), dtype=torch.float64)

        hooks = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in stack]
        hooks += [module.register_forward_pre_hook(add) for module in modules]
        try:
            subject.model.base_model(tokens[part], use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        rows = torch.isin(block, part).nonzero()[:, 0]
        recording.rows.append(rows)
        recording.places.append((torch.searchsorted(part, block[rows]), t[rows]))
        recording.hidden.append(hidden)
        recording.options.append(options)
        count += len(part) * max(0, tokens.shape[1] - 1 - first)
    recording.means = {module: total / count for module, total in sums.items()}
    return recording


@full_precision()
def rerun(recording, layer, module=None, edit=None, neurons=None):
    """Losses and final-layer activations with a module of one layer reading something else.

    Parameters
    ----------
    recording : Recording
    layer : int, the layer to start from, counted from 0.
    module, edit : a module of that layer, and a callable from its input (b, length, width) to the new one; None:
        nothing is changed.
    neurons : int64 (g,) neurons of the final layer whose activations are wanted, None: none.

    Returns
    -------
    losses : (n,) nats ; activations : (n, g)
    """
    subject = recording.subject
    neurons = torch.as_tensor([] if neurons is None else neurons, dtype=torch.int64, device=subject.device)
    losses = torch.empty(len(recording.targets), dtype=subject.dtype, device=subject.device)
    activations = losses.new_empty(len(losses), len(neurons))
    read = []
    hooks = [subject.mlp_out.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))]
    if module is not None:
        # before the hook above where both sit on the final layer's MLP: it reads what the edit wrote
        hooks.append(module.register_forward_pre_hook(lambda _, inputs: (edit(inputs[0]), *inputs[1:]), prepend=True))
    try:
        for rows, place, hidden, options in zip(recording.rows, recording.places, recording.hidden, recording.options):
            state = hidden[layer]
            for step, others in zip(layers(subject)[layer:], options[layer:]):
                state = step(state, **others)
                state = state[0] if isinstance(state, tuple) else state
            losses[rows] = _losses(subject, state[place], recording.targets[rows])
            activations[rows] = read.pop()[place][:, neurons]
    finally:
        for hook in hooks:
            hook.remove()
    return losses, activations


def _losses(subject, residual, targets):
    """(n,) nats, from the final residual stream (n, d)."""
    parts = []
    for some, wanted in zip(residual.split(ROWS), targets.split(ROWS)):
        logits = nn.functional.linear(subject.final_norm(some), subject.unembedding, subject.unembedding_bias)
        parts.append(nn.functional.cross_entropy(logits, wanted, reduction="none"))
    return torch.cat(parts)


def replacement(means, ablation):
    """What replaces the input of a module: its mean, or zero."""
    if ablation not in ("mean", "zero"):
        raise ValueError(f"At every position of a block the ablation is mean or zero, not {ablation!r}.")
    return means if ablation == "mean" else torch.zeros_like(means)


def put(reference, columns):
    """The edit that sets some columns of a module's input to their reference values, at every position."""

    def edit(values):
        values = values.clone()
        values[..., columns] = reference[columns]
        return values

    return edit
