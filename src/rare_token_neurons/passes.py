"""Checkpoints and forward passes: which revisions the settings ask for, and what one pass of each leaves behind."""

from functools import lru_cache

import numpy as np
import torch

from rare_token_neurons import ablation, checkpoints, histories, store, tables, text


def revisions(settings, default="last"):
    """The revisions that the settings ask for: `steps`, or the last or all of a model's checkpoints; [None] without any.

    "all" leaves out what the audit flags (`histories.left_out` says so); steps asked for stay.
    """
    known = histories.revisions(settings)
    if settings.steps or default != "all":
        return known if settings.steps else known[-1:]
    return [name for name in known if name not in histories.flagged(settings)]


def model_inputs(settings, default="last", also=()):
    """Hashes of what a table of a model depends on: text, counts, the checkpoints asked for and those in `also`."""
    if settings.recompute == "never":
        return {}
    names = [*revisions(settings, default), *also]
    return tables.text_inputs(settings) | {name or "": checkpoints.model_hash(settings.model, name) for name in names}


def pass_inputs(settings, revision, blocks_table):
    """Hashes of what a tensor of one checkpoint depends on: the checkpoint, the blocks and their documents."""
    return {"model": checkpoints.model_hash(settings.model, revision), "tokens": store.array_hash(blocks_table["tokens"]),
            "documents": store.array_hash([blocks_table["document"].to_numpy()]), "first": text.FIRST}


def load(settings, revision=None):
    """A checkpoint of the settings' model as a Subject (see `checkpoints.load`)."""
    return checkpoints.load(settings.model, revision, device=settings.device, keep_weights=settings.keep_weights)


def capture(settings, subject, blocks_table):
    """The capture of the settings' blocks by one checkpoint; that of a model's last checkpoint is kept in the cache."""
    read, owners = tables.token_tensor(blocks_table).to(subject.device), torch.tensor(blocks_table["document"].to_numpy())

    def compute():
        with store.clock("forward"):
            made = ablation.capture(subject, read, first=text.FIRST, documents=owners)
        return {"activations": made.activations.contiguous(), "residual": made.residual.contiguous()}

    last = subject.revision is None or subject.revision == checkpoints.revisions(settings.model)[-1]
    key = store.key({}, pass_inputs(settings, subject.revision, blocks_table), ["captures", "checkpoints"])
    kept = store.tensors(settings.slug, key, compute, recompute=settings.recompute) if last else compute()
    return ablation.Capture(read, text.FIRST, owners.to(subject.device),
                            **{name: part.to(subject.device) for name, part in kept.items()})


@lru_cache(maxsize=1)
def captured(settings, revision=None):
    """A checkpoint (None: the last) as a Subject with the text's unigram counts, and its Capture of the blocks."""
    subject = load(settings, revision)
    subject.unigram_counts = torch.from_numpy(_unigram_counts(settings, subject.n_vocab)).to(subject.device)
    return subject, capture(settings, subject, tables.blocks(settings))


def _unigram_counts(settings, n_vocab):
    """Counts over the whole vocabulary for the unigram direction: those of the text, rows without a token 0."""
    counts = tables.tokens(settings)["count_text"].to_numpy(dtype=np.float64)
    return np.pad(counts, (0, n_vocab - len(counts)))


def activations(settings, revision=None, where="rare", half="B"):
    """The final layer's activations at the settings' positions, from one half of the documents.

    Parameters
    ----------
    revision : None for the last checkpoint.
    where : "rare" or "common" (positions of that group) or "all" (every scored position).
    half : "A" or "B".

    Returns
    -------
    values : float32 (n, neurons); documents : int64 (n,)
    """
    chosen = tables.positions(settings)
    subject, kept = captured(settings, revision)
    if where == "all":
        rows = kept.positions.cpu().numpy()
        owners = kept.documents.cpu().numpy()[rows[:, 0]]
        inside = np.isin(owners, chosen.loc[chosen["half"] == half, "document"])
        rows, owners = rows[inside], owners[inside]
    else:
        found, owners = tables.group_positions(chosen[chosen["half"] == half], where)
        rows = found.numpy()
    return kept.activations.cpu().numpy()[rows[:, 0], rows[:, 1] - kept.first], owners
