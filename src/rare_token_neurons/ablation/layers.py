"""Interventions in earlier layers: a layer and those above it are run again, the layers below are not.

At every position of a block: `record_blocks` runs the model once and keeps every layer's input. `rerun` starts from the
input of one layer, changes what one module of that layer reads, and reads off what became of the losses and of the final
layer's neurons; `effects` does so for every attention head.
At one position: `record_windows` also keeps the keys and values of the tokens before it, and `neuron_changes` runs the
last token alone.
The result is that of hooks on the whole model, for the cost of the layers from there on.
"""

import inspect
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from rare_token_neurons.ablation.capture import BATCH
from rare_token_neurons.ablation.readout import full_precision
from rare_token_neurons.models.subject import Subject

# Where the families keep their layers, and in a layer what writes into the residual stream.
LAYERS = ("layers", "h", "decoder.layers")
ATTENTION_OUT = ("attention.dense", "self_attn.o_proj", "attn.c_proj", "self_attn.out_proj", "self_attn.dense")
MLP_OUT = ("mlp.dense_4h_to_h", "mlp.down_proj", "mlp.c_proj", "fc2", "mlp.fc2")


def find(module, paths):
    """The first of the submodules named in `paths` that `module` has."""
    for path in paths:
        try:
            return module.get_submodule(path)
        except AttributeError:
            continue
    raise ValueError(f"A {type(module).__name__} has none of {', '.join(paths)}: its family is not known here.")


def layers_of(subject):
    """The model's layers from the first to the last, nn.ModuleList."""
    return find(subject.model.base_model, LAYERS)


@contextmanager
def watched(stack, modules, scored):
    """What passes through layers and modules while the model runs.

    Parameters
    ----------
    stack : the layers ; modules : modules whose input is added up ; scored : slice, the positions it is added up over.

    Returns
    -------
    seen : layer -> its last input (b, length, d), and the other arguments by their names
    sums : module -> sum of its inputs so far, float64
    """
    seen, sums = {}, dict.fromkeys(modules, 0.0)

    def enter(layer, inputs, named):
        given = dict(zip(inspect.signature(layer.forward).parameters, inputs)) | named
        seen[layer] = given.pop("hidden_states"), given

    def add(module, inputs):
        sums[module] = sums[module] + inputs[0][:, scored].sum((0, 1), dtype=torch.float64)

    with ExitStack() as hooks:
        for layer in stack:
            hooks.enter_context(layer.register_forward_pre_hook(enter, with_kwargs=True))
        for module in modules:
            hooks.enter_context(module.register_forward_pre_hook(add))
        yield seen, sums


def edited(module, edit):
    """While it lasts, a module reads what the callable `edit` makes of its input; None: nothing is changed."""
    if module is None:
        return nullcontext()
    return module.register_forward_pre_hook(lambda _, inputs: (edit(inputs[0]), *inputs[1:]))


def through(subject, layer, state, options):
    """The final residual stream, from the input of a layer (b, length, d) and the other arguments of it and those above it."""
    for step, others in zip(layers_of(subject)[layer:], options):
        state = step(state, **others)
        state = state[0] if isinstance(state, tuple) else state
    return state


def losses_of(subject, residual, targets):
    """(n,) nats, from the final residual stream (n, d)."""
    logits = nn.functional.linear(subject.final_norm(residual), subject.unembedding, subject.unembedding_bias)
    return nn.functional.cross_entropy(logits, targets, reduction="none")


def replacement(means, ablation):
    """What replaces the input of a module: its mean, or zero."""
    if ablation not in ("mean", "zero"):
        raise ValueError(f"At every position of a block the ablation is mean or zero, not {ablation!r}.")
    return means if ablation == "mean" else torch.zeros_like(means)


# ---- every position of a block

LOGITS = 256  # positions whose logits are held at a time


@dataclass
class Recording:
    """One forward pass, by batches of blocks. n positions, of which batch i holds the rows rows[i]."""

    subject: Subject
    rows: list[Tensor]  # int64 each
    places: list[tuple[Tensor, Tensor]]  # block of the batch and t, of the rows
    targets: Tensor  # (n,)
    inputs: list[list[tuple[Tensor, dict]]]  # batch, layer -> its input (b, length, d), its other arguments (masks differ)
    means: dict[nn.Module, Tensor]  # module -> mean of its input over the scored positions, float64


@full_precision()
def record_blocks(subject, tokens, positions, modules=(), *, first=3):
    """Run the model on the blocks that hold a position and keep what `rerun` needs.

    Parameters
    ----------
    subject : Subject
    tokens : int64 (blocks, length)
    positions : int64 (n, 2) rows (block, t), t the token READ.
    modules : modules whose input is averaged over the scored positions (t from `first` to length - 2) of these blocks.
    first : int, the first scored position.

    Returns
    -------
    Recording
    """
    tokens, positions = tokens.to(subject.device), torch.as_tensor(positions, device=subject.device)
    if positions.ndim != 2 or positions.shape[1] != 2 or not len(positions):
        raise ValueError(f"positions must be whole numbers of shape (n, 2) with n above 0, not {tuple(positions.shape)}.")
    block, t = positions.unbind(1)
    if block.min() < 0 or block.max() >= len(tokens) or t.min() < 0 or t.max() > tokens.shape[1] - 2:
        raise ValueError(f"positions name tokens outside {len(tokens)} blocks of {tokens.shape[1]}, "
                         "or without a next token.")
    stack, used = layers_of(subject), block.unique()
    recording = Recording(subject, [], [], tokens[block, t + 1], [], {})
    with watched(stack, modules, slice(first, -1)) as (seen, sums):
        for part in used.split(BATCH):
            subject.model.base_model(tokens[part], use_cache=False)
            rows = torch.isin(block, part).nonzero()[:, 0]
            recording.rows.append(rows)
            recording.places.append((torch.searchsorted(part, block[rows]), t[rows]))
            recording.inputs.append([seen[layer] for layer in stack])
    count = len(used) * max(0, tokens.shape[1] - 1 - first)
    recording.means = {module: total / count for module, total in sums.items()}
    return recording


@full_precision()
def rerun(recording, layer, neurons, module=None, edit=None):
    """Losses and final-layer activations with a module of one layer reading something else.

    Parameters
    ----------
    recording : Recording
    layer : int, the layer to start from, counted from 0.
    neurons : int64 (g,) neurons of the final layer whose activations are wanted.
    module, edit : a module of that layer, and a callable from its input (b, length, width) to the new one; None:
        nothing is changed.

    Returns
    -------
    losses : (n,) nats ; activations : (n, g)
    """
    subject, read = recording.subject, []
    losses = torch.empty(len(recording.targets), dtype=subject.dtype, device=subject.device)
    activations = losses.new_empty(len(losses), len(neurons))
    # the reader comes second: where both sit on the final layer's MLP it reads what the edit wrote
    with edited(module, edit), subject.mlp_out.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0])):
        for rows, place, inputs in zip(recording.rows, recording.places, recording.inputs):
            (state, _), options = inputs[layer], (others for _, others in inputs[layer:])
            parts = through(subject, layer, state, options)[place].split(LOGITS), recording.targets[rows].split(LOGITS)
            losses[rows] = torch.cat([losses_of(subject, *part) for part in zip(*parts)])
            activations[rows] = read.pop()[place][:, neurons]
    return losses, activations


def put(reference, columns):
    """The edit that sets some columns of a module's input to their reference values, at every position."""

    def edit(values):
        values = values.clone()
        values[..., columns] = reference[columns]
        return values

    return edit


# ---- every attention head


@dataclass(frozen=True)
class HeadEffects:
    """Effects of h heads at n positions on the losses and on g neurons of the final layer."""

    layer: Tensor  # int64 (h,)
    head: Tensor  # int64 (h,)
    loss_changes: Tensor  # (h, n) nats
    activation_changes: Tensor  # (h, n, g)

    def moved(self, positions):
        """Mean |activation change| over the heads of each layer, (layers, r, g), at the r positions of a bool mask (n,)."""
        return torch.stack([self.activation_changes[self.layer == layer][:, positions].abs().mean(0)
                            for layer in self.layer.unique()])


def effects(subject, tokens, positions, neurons, *, ablation="mean", first=3):
    """Ablate every attention head in turn.

    Parameters
    ----------
    subject : Subject
    tokens : int64 (blocks, length); only blocks that hold a position are run.
    positions : int64 (n, 2) rows (block, t), t the token READ.
    neurons : int64 (g,) neurons of the final layer.
    ablation : "mean" (the head's mean output over the scored positions of the blocks used) or "zero".
    first : int, the first scored position.

    Returns
    -------
    HeadEffects, heads in order of layer and number

    Raises
    ------
    ValueError
        Positions out of range, another ablation, an unknown family.
    """
    modules = [find(layer, ATTENTION_OUT) for layer in layers_of(subject)]
    recording = record_blocks(subject, tokens, positions, modules, first=first)
    losses, activations = rerun(recording, len(modules) - 1, neurons)
    n_heads, changes = subject.model.config.num_attention_heads, []
    for layer, module in enumerate(modules):
        reference = replacement(recording.means[module], ablation).to(subject.dtype)
        width = len(reference) // n_heads
        for start in range(0, len(reference), width):
            after, moved = rerun(recording, layer, neurons, module, put(reference, slice(start, start + width)))
            changes.append((after - losses, moved - activations))
    return HeadEffects(torch.arange(len(modules)).repeat_interleave(n_heads), torch.arange(n_heads).repeat(len(modules)),
                       *map(torch.stack, zip(*changes)))


# ---- one position: the tokens before it stay

PAIRS = 1024  # (window, copy) pairs at a time
WINDOWS = 64  # in one forward pass


@dataclass
class Prefixes:
    """n windows of equal length, after one forward pass."""

    subject: Subject
    targets: Tensor  # (n,) the tokens after the windows
    hidden: list[Tensor]  # layer -> its input at the last token read, (n, 1, d)
    keys: list[Tensor]  # layer -> of the tokens before, (n, heads, length - 1, width)
    values: list[Tensor]
    means: list[Tensor]  # layer -> mean activation of its MLP's neurons over the second halves of the windows, float64
    options: list[dict]  # layer -> what else it takes at the last position: a rotary embedding's cosine and sine, if any
    cache: str  # the name under which the family's layers take keys and values


@full_precision()
def record_windows(subject, windows):
    """Run the model once on windows of text.

    Parameters
    ----------
    subject : Subject
    windows : int64 (n, length + 1); the last token is the target, the one before it is the position.

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
    stack, kept, length = layers_of(subject), [], windows.shape[1] - 1
    late = length // 2  # early tokens see too little of the text to count
    with watched(stack, [find(layer, MLP_OUT) for layer in stack], slice(late, None)) as (seen, sums):
        for part in windows[:, :-1].split(WINDOWS):
            past = subject.model.base_model(part, use_cache=True).past_key_values
            kept.append(([seen[layer][0][:, -1:] for layer in stack], [layer.keys[:, :, :-1] for layer in past.layers],
                         [layer.values[:, :, :-1] for layer in past.layers]))
    hidden, keys, values = ([torch.cat(parts) for parts in zip(*made)] for made in zip(*kept))
    if any(part.shape[2] < length - 1 for part in keys):
        raise ValueError(f"Some layers of {subject.model_id or 'the model'} attend to fewer than the {length} "
                         "tokens of a window: take shorter ones.")
    means = [total / (len(windows) * (length - late)) for total in sums.values()]
    named = seen[stack[-1]][1]
    cache = next(name for name in ("layer_past", "past_key_values") if name in named)
    turns = [seen[layer][1].get("position_embeddings") for layer in stack]  # learned ones are in the first layer's input
    turns = [{"position_embeddings": tuple(part[:1, -1:] for part in turn)} if turn else {} for turn in turns]
    return Prefixes(subject, windows[:, -1], hidden, keys, values, means, turns, cache)


@full_precision()
def neuron_changes(prefixes, layer, neurons, *, ablation="mean"):
    """Loss changes when one MLP neuron of any layer is ablated at the last token read.

    Copies of that token stand beside one another, the first one unchanged and one for each neuron; each sees the tokens
    before and itself.

    Parameters
    ----------
    layer : int, counted from 0 ; neurons : (m,) int, of that layer's MLP.
    ablation : "mean" (over the second halves of the windows) or "zero".

    Returns
    -------
    (n, m) nats
    """
    subject, m = prefixes.subject, len(neurons)
    neurons = torch.as_tensor(neurons, dtype=torch.int64, device=prefixes.targets.device)
    reference = replacement(prefixes.means[layer], ablation).to(subject.dtype)
    alone = torch.full((1 + m, 1 + m), -torch.inf, dtype=subject.dtype, device=subject.device).fill_diagonal_(0)
    sees = nn.functional.pad(alone, (prefixes.keys[0].shape[2], 0))[None, None]
    module, step, found = find(layers_of(subject)[layer], MLP_OUT), max(1, PAIRS // (1 + m)), []

    def edit(values):
        values = values.clone()
        values[:, torch.arange(m) + 1, neurons] = reference[neurons]
        return values

    def update(key, value, index, *_):
        return torch.cat([prefixes.keys[index][rows], key], 2), torch.cat([prefixes.values[index][rows], value], 2)

    common = {"attention_mask": sees, prefixes.cache: SimpleNamespace(update=update)}
    options = [common | turn for turn in prefixes.options[layer:]]
    for start in range(0, len(prefixes.targets), step):
        rows = slice(start, start + step)
        state = prefixes.hidden[layer][rows].expand(-1, 1 + m, -1)  # (windows, copies, d)
        with edited(module, edit):
            state = through(subject, layer, state, options)
        losses = losses_of(subject, state.flatten(0, 1), prefixes.targets[rows].repeat_interleave(1 + m)).view(-1, 1 + m)
        found.append(losses[:, 1:] - losses[:, :1])
    return torch.cat(found)
