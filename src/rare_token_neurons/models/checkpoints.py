"""Suites of checkpoints: finding one, and loading it as a `Subject`.

Every model comes from a folder of safetensors, wherever it was found: the embedded `mini-pythia` and `smollm2`, a local
folder, a GGUF file (dequantised once), or a hub repository (`owner/name`, see `models.hub`).
"""

import contextlib
import hashlib
import re
from functools import lru_cache

import torch
from huggingface_hub.errors import RevisionNotFoundError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from rare_token_neurons import files
from rare_token_neurons.models import gguf, hub, pieces
from rare_token_neurons.models.subject import dissect
from rare_token_neurons.paths import MINI_PYTHIA, place, shown
from rare_token_neurons.text import rarity

transformers_logging.disable_progress_bar()  # hundreds of lines in a notebook
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


# ---- finding


def step_of(revision):
    """The training step in a revision's name ("step512" -> 512), or None."""
    found = re.fullmatch(r"step(\d+)", revision or "")
    return int(found.group(1)) if found else None


def _suite(model):
    """The local folder of a model, or None for a hub repository: what is there is never looked up."""
    if model == "mini-pythia":
        return MINI_PYTHIA
    if model == "smollm2":
        return gguf.smollm2()
    path = place(model)
    if path.is_dir():
        return path
    return gguf.of_file(path) if path.is_file() or model.endswith(".gguf") else None


def revisions(model):
    """Names of the training checkpoints of a model by ascending step, `[]` for a model without.

    Parameters
    ----------
    model : str, an embedded model, a folder, a GGUF file or a hub id.
    """
    if model == "smollm2" or place(model).is_file():  # the last one alone: known without fetching or converting it
        return []
    suite = _suite(model)
    names = hub.branches(model) if suite is None else [child.name for child in suite.iterdir() if child.is_dir()]
    return sorted((name for name in names if step_of(name) is not None), key=step_of)


def locate(model, revision=None, *, weights=True, keep_weights=True):
    """The local folder of a checkpoint, downloaded first where it is a hub repository.

    Parameters
    ----------
    weights : False for a hub repository's configuration and tokenizer alone.
    keep_weights : False deletes the weights of the hub checkpoint taken before (see `hub.snapshot`).

    Raises
    ------
    FileNotFoundError
        No such model, no such revision (the sentence says which exist), no safetensors in it.
    """
    suite = _suite(model)
    if suite is None:
        with _known_revision(model, revision):
            folder = hub.snapshot(model, revision, weights=weights, keep_weights=keep_weights)
        where = f"The hub repository {model!r}, {revision or 'main'},"
    else:
        steps = revisions(model)
        if revision == suite.name and not steps:  # a step's folder, named on its own
            revision = None
        revision = revision or (steps[-1] if steps else None)
        folder = suite / revision if revision else suite
        if revision and revision not in steps:
            raise FileNotFoundError(no_revision(model, revision))
        where = f"The folder {shown(folder)} of {model!r}"
    if weights and not list(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"{where} holds no safetensors weights (other formats are not read: they may carry code).")
    return folder


@contextlib.contextmanager
def lent(model, revision=None, *, keep_weights=True):
    """The folder of a checkpoint for a while; with keep_weights False, weights that were downloaded for it go at the end."""
    if keep_weights or _suite(model) is not None:
        yield locate(model, revision)
    else:
        with _known_revision(model, revision), hub.lent(model, revision) as folder:
            yield folder


@contextlib.contextmanager
def _known_revision(model, revision):
    try:
        yield
    except RevisionNotFoundError:
        raise FileNotFoundError(no_revision(model, revision)) from None


def no_revision(model, revision):
    """The sentence on a revision that a model does not have: which it has, the middle of a long list left out."""
    known = revisions(model)
    if len(known) > 20:
        known = [*known[:12], "...", *known[-3:-1], f"{known[-1]} ({len(known)} in all)"]
    return f"{model!r} has no revision {revision!r}; it has {', '.join(known) or 'no checkpoints'}."


def weight_hash(model, revision=None):
    """sha256 over those of a checkpoint's weight files, in the order of their names; a hub repository announces them."""
    found = {}
    if _suite(model) is None:
        with _known_revision(model, revision):
            found = hub.digests(model, revision)
    if not found:
        found = {path.name: files.sha256(path) for path in locate(model, revision).glob("*.safetensors")}
    return hashlib.sha256(b"".join(bytes.fromhex(found[name]) for name in sorted(found))).hexdigest()


def model_hash(model, revision=None):
    """What a checkpoint computes with: the sha256 over its `weight_hash` and its config.json."""
    config = _hub_config(model, revision) if _suite(model) is None else _config(locate(model, revision))
    return hashlib.sha256(f"{weight_hash(model, revision)}{config}".encode()).hexdigest()


def _config(folder):
    """sha256 of a folder's config.json, "" without one."""
    return files.sha256(folder / "config.json") if (folder / "config.json").exists() else ""


@lru_cache(maxsize=None)  # a commit's file stays as it is; each look at the hub costs a request
def _hub_config(model, revision):
    return _config(locate(model, revision, weights=False))


def _beside(folder, name):
    """A file in the checkpoint's folder, or one up, where all checkpoints of a suite share it; None without."""
    places = (folder, folder.parent) if step_of(folder.name) is not None else (folder,)
    return next((place / name for place in places if (place / name).exists()), None)


# ---- loading


def load_tokenizer(model):
    """The tokenizer of a model, from the last checkpoint's folder or the suite's.

    Raises
    ------
    FileNotFoundError, ValueError
        There is none (transformers would make an empty one up), or it cannot be read.
    """
    return _tokenizer(locate(model, weights=False))


def _tokenizer(folder):
    found = next(filter(None, (_beside(folder, name) for name in TOKENIZER_FILES)), None)
    if found is None:
        raise FileNotFoundError(f"The folder {shown(folder)} holds no tokenizer ({', '.join(TOKENIZER_FILES)}).")
    try:
        if found.suffix == ".model":
            return pieces.of_file(found)
        return AutoTokenizer.from_pretrained(found.parent, trust_remote_code=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the tokenizers library raises nothing narrower, and its panics are no Exception
        raise ValueError(f"The tokenizer in {shown(found.parent)} cannot be read: {_first_line(error)}") from None


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def load(model, revision=None, *, device="cpu", dtype=torch.float32, keep_weights=True):
    """Load one checkpoint and take its final layer apart.

    Parameters
    ----------
    model : str, "mini-pythia", "smollm2", a folder, a GGUF file, or a hub id.
    revision : str or None, a checkpoint such as "step512"; None is the last one.
    device : str, where the weights go.
    dtype : torch.float32 or torch.float64, whatever the files hold.
    keep_weights : False deletes the weights of the hub checkpoint taken before, so that one lies on the disk at a time.

    Returns
    -------
    Subject

    Raises
    ------
    FileNotFoundError, ValueError
        One sentence: what is missing, damaged or does not fit.

    Example
    -------
    >>> import rare_token_neurons as rtn
    >>> subject = rtn.load("mini-pythia", "step512")
    >>> subject.step, subject.n_neurons
    (512, 1536)
    """
    folder = locate(model, revision, keep_weights=keep_weights)
    try:
        network, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, attn_implementation="eager",
            output_loading_info=True, ignore_mismatched_sizes=True)
    except (SafetensorError, EOFError) as error:
        raise ValueError(f"The weights in {shown(folder)} are damaged: {error}.") from None
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"The model in {shown(folder)} cannot be opened: {_first_line(error)}") from None
    if report["missing_keys"]:
        raise ValueError(f"The weights in {shown(folder)} lack {sorted(report['missing_keys'])[0]}.")
    for name, found, asked in sorted(report["mismatched_keys"]):
        raise ValueError(f"The weight {name} in {shown(folder)} is {tuple(found)}, config.json asks for {tuple(asked)}.")
    revision = folder.name if step_of(folder.name) is not None else revision
    subject = dissect(network.to(device), _tokenizer(folder), model_id=model, revision=revision,
                      step=step_of(revision))
    beside = _beside(folder, rarity.COUNTS_FILE)
    if beside:
        counts = rarity.read_counts(beside, subject.n_vocab, least=subject.tokenizer.vocab_size)
        subject.unigram_counts = torch.from_numpy(counts).double().to(device)
    return subject
