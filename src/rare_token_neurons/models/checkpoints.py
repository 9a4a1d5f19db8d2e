"""Suites of checkpoints: finding one, and loading it as a `Subject`.

Every model comes from safetensors, wherever they were found: the embedded `mini-pythia`, the models of packages (`smollm2`,
`gemma3`), a local folder, a GGUF file (dequantised once), or a hub repository (`owner/name`, or `owner/name@revision`; see
`models.hub`). The files that are hashed (`models.weights`) are those that are loaded: transformers is given their tensors,
not a folder to choose from.
"""

import contextlib
import hashlib
import sys
from functools import lru_cache

import torch
from huggingface_hub.errors import RevisionNotFoundError
from safetensors import SafetensorError
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging

from rare_token_neurons import files, packages
from rare_token_neurons.models import gguf, hub, pieces, steps, weights
from rare_token_neurons.models.steps import step_of
from rare_token_neurons.models.subject import dissect
from rare_token_neurons.paths import MINI_PYTHIA, place, shown
from rare_token_neurons.text import rarity

transformers_logging.disable_progress_bar()  # hundreds of lines in a notebook
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


# ---- finding


def _suite(model):
    """The local folder of a model, or None for a hub repository: what is there is never looked up."""
    if model == "mini-pythia":
        return MINI_PYTHIA
    if model in packages.PACKAGES:
        return gguf.of_package(model)
    path = place(model)
    if path.is_dir():
        return path
    return gguf.of_file(path) if path.is_file() or model.lower().endswith(".gguf") else None


def _of_hub(model):
    """Whether a model is a hub repository's, told without fetching or converting anything."""
    return not (model in packages.NAMED or place(model).exists() or model.lower().endswith(".gguf"))


def _names(model):
    """The names of all that may be checkpoints of a model: branches and tags, or subfolders; [] for one revision alone."""
    if model in packages.PACKAGES or place(model).is_file():  # the last one alone: known without fetching or converting it
        return []
    suite = _suite(model)
    if suite is not None:
        return [child.name for child in suite.iterdir() if child.is_dir()]
    return [] if "@" in model else hub.names(model)


def revisions(model, stage=""):
    """Names of the training checkpoints of a model by ascending step, `[]` for a model without.

    Parameters
    ----------
    model : str, an embedded model, a folder, a GGUF file, a hub id, or one with @ and a revision.
    stage : str, one of several stages of training; "" is the first (see `steps.path`).

    Raises
    ------
    ValueError
        There is no such stage; two names are left for one step.
    """
    try:
        return steps.path(_names(model), stage)
    except ValueError as error:
        raise ValueError(f"Of {model!r} {error}.") from None


def stages_left(model, stage=""):
    """The stages of training that `revisions` leaves out."""
    return steps.left(_names(model), stage)


def other_names(model):
    """Names of a hub repository's branches and tags that are no steps, without main."""
    return [name for name in _names(model) if step_of(name) is None and name != "main"] if _of_hub(model) else []


def unread(model):
    """The sentence on a hub repository whose branches and tags are none named like a step; "" for any other model."""
    odd = [] if revisions(model) else other_names(model)
    return f"{model} has branches or tags, but none is named like a step: {listed(odd)}." if odd else ""


@lru_cache(maxsize=None)
def _on_hub(model, revision):
    """A hub repository and its revision: main where none is named, the last step where main holds no model."""
    repository, _, own = model.partition("@")
    if own and revision not in (None, own):
        raise FileNotFoundError(no_revision(model, revision))
    if own or revision or (hub.snapshot(repository, small=True).folder / "config.json").exists():
        return repository, own or revision
    return repository, next(reversed(revisions(repository)), None)


def locate(model, revision=None, *, small=False, keep_weights=True, pickles="refuse"):
    """Where a checkpoint lies, downloaded first where it is a hub repository.

    Parameters
    ----------
    small : True for the configuration and tokenizer alone.
    keep_weights : False deletes the weights of the hub checkpoint taken before (see `hub.snapshot`).
    pickles : "refuse", or "convert" those of a checkpoint that has no safetensors (see `weights.safe`).

    Returns
    -------
    weights.Files

    Raises
    ------
    FileNotFoundError
        No such model, no such revision (the sentence says which exist), no weights in it, or pickles that are refused.
    """
    with _named(model, revision):
        if _suite(model) is None:
            repository, name = _on_hub(model, revision)
            found = hub.snapshot(repository, name, small=small, keep_weights=keep_weights, pickles=pickles)
        else:
            found = weights.Files(_folder(model, revision))
            if not small:
                named = weights.of_folder(found.folder)
                weights.permit(named, pickles)
                found = weights.Files(found.folder, tuple(map(weights.safe, named)))
    if not small:
        _tell_of_second(model, revision, found)
    return found


def _folder(model, revision):
    """The folder of a checkpoint of a local model; the last one's where none is named."""
    suite, known = _suite(model), [name for name in _names(model) if step_of(name) is not None]
    if revision is None or (revision == suite.name and not known):  # a step's folder, named on its own
        return suite / next(reversed(revisions(model)), "")
    if revision not in known:
        raise FileNotFoundError(no_revision(model, revision))
    return suite / revision


@contextlib.contextmanager
def lent(model, revision=None, *, keep_weights=True, pickles="refuse"):
    """Where a checkpoint lies, for a while; with keep_weights False, weights that were downloaded for it go at the end."""
    if keep_weights or _suite(model) is not None:
        yield locate(model, revision, pickles=pickles)
    else:
        with _named(model, revision), hub.lent(*_on_hub(model, revision), pickles=pickles) as found:
            _tell_of_second(model, revision, found)
            yield found


@contextlib.contextmanager
def _named(model, revision):
    """Name the checkpoint in what is said inside of its weights, and the revisions that there are where it is none."""
    where = f"The folder {shown(_folder(model, revision))} of" if _suite(model) is not None else "The hub repository"
    try:
        with weights.said_of(f"{where} {model!r}" + f", {revision or 'main'}," * (_suite(model) is None)):
            yield
    except RevisionNotFoundError:
        raise FileNotFoundError(no_revision(model, revision)) from None


def no_revision(model, revision, stage=""):
    """The sentence on a revision that a model does not have: which it has, and which stages of training have that step."""
    if _of_hub(model):
        model, _, own = model.partition("@")
        revision = revision or own
    known, odd = revisions(model, stage), other_names(model)
    has = listed(known) or "no checkpoints" + f", but branches or tags named {listed(odd)}" * bool(odd)
    others = [other for other, names in steps.stages(_names(model)).items() if step_of(revision) in map(step_of, names)]
    return (f"{model!r} has no revision {revision!r}; it has {has}" + f"; -p stage {' or '.join(others)} has that step" *
            bool(others) + ".")


def listed(names):
    """Names as text, the middle of a long list left out."""
    if len(names) > 20:
        names = [*names[:12], "...", *names[-3:-1], f"{names[-1]} ({len(names)} in all)"]
    return ", ".join(names)


# ---- what its weights are


def weight_names(model, revision=None):
    """The names of the files that are a checkpoint's weights; nothing is downloaded or hashed."""
    if _suite(model) is None:
        return list(hub.counted(*_on_hub(model, revision)))
    return [path.name for path in weights.of_folder(_folder(model, revision))]


def lacking(model, revision=None):
    """Why a checkpoint has no weights, "" where it has them."""
    try:
        weight_names(model, revision)
    except weights.NoWeights as error:
        return str(error)
    return ""


def weight_files(model, revision=None):
    """{name: sha256} of the files that are a checkpoint's weights; a hub repository announces them.

    Raises
    ------
    FileNotFoundError
        As `locate`; pickles are hashed as they are.
    """
    with _named(model, revision):
        if _suite(model) is None:
            return hub.digests(*_on_hub(model, revision))
        return {path.name: files.sha256(path) for path in weights.of_folder(_folder(model, revision))}


def weight_hash(model, revision=None):
    """sha256 over those of a checkpoint's weight files, in the order of their names."""
    found = weight_files(model, revision)
    return hashlib.sha256(b"".join(bytes.fromhex(found[name]) for name in sorted(found))).hexdigest()


def model_hash(model, revision=None):
    """What a checkpoint computes with: the sha256 over its `weight_hash` and its config.json."""
    config = _hub_config(model, revision) if _suite(model) is None else _config(_folder(model, revision))
    return hashlib.sha256(f"{weight_hash(model, revision)}{config}".encode()).hexdigest()


def _config(folder):
    """sha256 of a folder's config.json, "" without one."""
    return files.sha256(folder / "config.json") or ""


@lru_cache(maxsize=None)  # a commit's file stays as it is; each look at the hub costs a request
def _hub_config(model, revision):
    return _config(locate(model, revision, small=True).folder)


def main_hash(model):
    """The `weight_hash` of a hub repository's main; "" where it holds no weights, and for every other model."""
    if _suite(model) is not None or lacking(model, "main"):
        return ""
    return weight_hash(model, "main")


@lru_cache(maxsize=None)
def _tell_of_second(model, revision, found):
    """Say so where a single file lies beside the shards that are a checkpoint's weights, and what is in it."""
    single = found.folder / weights.SINGLE
    if _suite(model) is None:
        repository, name = _on_hub(model, revision)
        sha256, where = hub.beside(repository, name), f"{repository!r} at {name or 'main'}"
        there, main = sha256 is not None, hub.single(repository, "main") if sha256 else None
        what = "by its sha256 that of main" if main == sha256 else "by its sha256 another one than that of main"
    else:
        there, where = single.is_file() and single not in found.weights, shown(found.folder)
        what = f"which holds {'the same' if there and _alike(found.weights, [single]) else 'other'} tensors"
    if there:
        tell(f"{where} holds {weights.SINGLE} beside an index: the files that the index names are measured; "
             f"the single file, {what}, is not.")


def _alike(paths, others):
    """Whether weight files hold the same tensors."""
    with weights.opened(paths) as ours, weights.opened(others) as theirs:
        return ours.keys() == theirs.keys() and all(torch.equal(ours[name][...], theirs[name][...]) for name in ours)


def tell(sentence):
    """Say something of a checkpoint to who runs this, apart from a notebook's own output."""
    print(sentence, file=sys.stderr, flush=True)


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
    return _tokenizer(locate(model, small=True).folder)


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


def load(model, revision=None, *, device="cpu", dtype=torch.float32, keep_weights=True, pickles="refuse"):
    """Load one checkpoint and take its final layer apart.

    Parameters
    ----------
    model : str, "mini-pythia", "smollm2", "gemma3", a folder, a GGUF file, a hub id, or one with @ and a revision.
    revision : str or None, a checkpoint such as "step512"; None is the last one.
    device : str, where the weights go.
    dtype : torch.float32 or torch.float64, whatever the files hold.
    keep_weights : False deletes the weights of the hub checkpoint taken before, so that one lies on the disk at a time.
    pickles : "refuse" a checkpoint that has pickles alone, or "convert" them (see `weights.safe`).

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
    found = locate(model, revision, keep_weights=keep_weights, pickles=pickles)
    folder = found.folder
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ValueError(f"{config.model_type!r} is no causal language model.")
        with weights.opened(found.weights) as tensors:
            network, report = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
                None, config=config, state_dict=tensors, dtype=dtype, attn_implementation="eager",
                output_loading_info=True, ignore_mismatched_sizes=True)
    except (SafetensorError, EOFError) as error:
        raise ValueError(f"The weights in {shown(folder)} are damaged: {error}.") from None
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"The model in {shown(folder)} cannot be opened: {_first_line(error)}") from None
    if report["missing_keys"]:
        raise ValueError(f"The weights in {shown(folder)} lack {sorted(report['missing_keys'])[0]}.")
    for name, has, asked in sorted(report["mismatched_keys"]):
        raise ValueError(f"The weight {name} in {shown(folder)} is {tuple(has)}, config.json asks for {tuple(asked)}.")
    name = _on_hub(model, revision)[1] if _suite(model) is None else folder.name
    revision = name if step_of(name) is not None else revision
    subject = dissect(network.to(device), _tokenizer(folder), model_id=model, revision=revision, step=step_of(revision))
    beside = _beside(folder, rarity.COUNTS_FILE)
    if beside:
        counts = rarity.read_counts(beside, subject.n_vocab, least=subject.tokenizer.vocab_size)
        subject.unigram_counts = torch.from_numpy(counts).double().to(device)
    return subject
