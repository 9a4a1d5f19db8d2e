"""The parameters of the notebooks: each declared once, with what it means and may be, and checked before anything starts."""

import difflib
import json
import os
import re
import reprlib
from dataclasses import dataclass, field, fields
from types import ModuleType

from rare_token_neurons.files import sha256
from rare_token_neurons.keys import digest
from rare_token_neurons.packages import NAMED
from rare_token_neurons.paths import FIGURES, MINI_PYTHIA, RESULTS, ROOT, place, spelled
from rare_token_neurons.text import documents as texts
from rare_token_neurons.text.rarity import COUNTS_FILE

LONG = 100  # bytes of a folder's name
TRAINING = "training text"  # the counts of a model trained here, where it reads another text than it was trained on
ALL_MODELS = "all-models"  # in place of a model, where a notebook is about all of them
NO_SETTING = ("model", "device", "keep_weights", "pickles", "recompute")  # these never change where files go
KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
_brief = reprlib.Repr()  # a value in a sentence, however large
_brief.maxstring = _brief.maxother = 200


# ---- values that need code


def _model(name, value):
    if not value.strip():
        return f"{name} is empty; it must be {HELP[name]}."
    if max(len(part.encode()) for part in value.split("/")) > 255:
        return f"{name} is longer than the name of a folder may be."
    if "\0" in value or place(value) in (ROOT, *ROOT.parents):
        return f"{name} is {value!r}; a model's folder cannot be one that holds this repository."


def _device(name, value):
    if value != "cpu":
        import torch  # slow to load, and needed for this alone

        if not (value.startswith("cuda") and torch.cuda.is_available()):
            return f"{name} is {value!r}; this machine has cpu{', cuda' * torch.cuda.is_available()}."


def _file(name, value):
    rows = name == "text"  # those of a dataset on the hub are none to count
    if value not in WORDS[name] and not os.path.isfile(_place(value)) and not (rows and texts.names_text(value)):
        return (f"{name} is {value!r}; it must be {' or '.join(WORDS[name])}, or a file that is there (a table's column: "
                f"a.jsonl:body){', or rows of the hub, such as stas/c4-en-10k[:500]' * rows}.")


def _place(text):
    return place(texts.parted(text)[0])


# ---- the parameters


def parameter(default, meaning, *, choices=(), least=None, between=None, words=None, check=None):
    """Declare a parameter.

    Parameters
    ----------
    default : of its type; () is a list of whole numbers of 0 or more.
    meaning : the words beside it in a notebook.
    choices : what it may be ; least : the smallest it may be ; between : two numbers that it must lie between.
    words : of one that names a file or a folder, what it may be else.
    check : function of name and value that returns a sentence on what is wrong, or None.
    """
    return field(default=default, metadata={"help": meaning, "choices": choices, "least": least, "between": between,
                                            "words": words, "check": check})


@dataclass(frozen=True)
class Settings:
    """Checked values of all parameters; a notebook declares those that it reads."""

    model: str = parameter("smollm2", f"{', '.join(NAMED)}, a folder, a GGUF file, or a hub id", words=NAMED, check=_model)
    steps: tuple = parameter((), "training steps, such as [0, 512]; empty: the last one, in 02 and 04 all")
    stage: str = parameter("", "of training, such as stage2-ingredient1, where a suite has several; empty: the first")
    device: str = parameter("cpu", "cpu or cuda", check=_device)
    keep_weights: bool = parameter(True, "false: delete a hub checkpoint's weights when the next one is taken")
    pickles: str = parameter("refuse", "a checkpoint without safetensors: refuse, or convert the tensors in its pickles",
                             choices=("refuse", "convert"))
    text: str = parameter("mini-pile", "mini-pile, a text file, or hub rows such as stas/c4-en-10k[:500]",
                          words=("mini-pile",), check=_file)
    counts: str = parameter("auto", "auto (training text, else general English), wordfreq, text, a .npy by token id, or a "
                            "text file", words=("auto", "wordfreq", "text"), check=_file)
    rare_of: str = parameter("target", "a position is rare by the token it predicts (target) or reads (input)",
                             choices=("target", "input"))
    rare_percentile: float = parameter(50.0, "of the token types that the counts have seen, rarest first", between=(0, 100))
    words_only: bool = parameter(True, "only tokens that are words")
    ablation: str = parameter("mean", "the neuron's mean, zero, or a value from another document (resample)",
                              choices=("mean", "zero", "resample"))
    aggregate: str = parameter("mean_abs", "mean of |change| (mean_abs) or |mean change| (abs_mean)",
                               choices=("mean_abs", "abs_mean"))
    ranking: str = parameter("split_half", "rank on one half of the documents, measure on the other (split_half), or "
                             "same_tokens", choices=("split_half", "same_tokens"))
    positions: int = parameter(2_000, "rare positions to measure, and as many common ones", least=1)
    seed: int = parameter(0, "of every random choice", least=0)
    neurons: tuple = parameter((), "neurons to portray, such as [511, 1126]; empty: the ten most influential for rare tokens")
    recompute: str = parameter("changed", "what changed, always, or never: draw the tables as they are",
                               choices=("changed", "always", "never"))

    @property
    def slug(self):
        """The model's name as one folder name, which no other model has."""
        name = self.model.replace("/", "--")
        plain = name.replace("--", "/") == self.model and not self.model.startswith((".", "/"))
        return name if plain and len(name.encode()) <= LONG else f"{name[-30:]}-{digest(self.model)}"

    @property
    def folder(self):
        """Where these settings' files lie below a results or figures folder: the model, and what differs from the defaults.

        No two settings share a folder: where the name alone would not tell them apart, it ends in their hash.
        """
        odd = {one.name: getattr(self, one.name) for one in fields(self)
               if one.name not in NO_SETTING and getattr(self, one.name) != one.default}
        name = ",".join(f"{key}={value}" for key, value in odd.items()).replace("/", "-").replace(" ", "")
        if any(isinstance(value, str) and set(value) & set("/, ") for value in odd.values()):
            name += f"-{digest(odd)}"
        return f"{self.slug}/{name if len(name.encode()) <= LONG else digest(odd)}" if odd else self.slug

    @property
    def results(self):
        """Folder of these settings' tables."""
        return RESULTS / self.folder

    @property
    def figures(self):
        """Folder of these settings' figures."""
        return FIGURES / self.folder

    @property
    def trained_here(self):
        """Whether the model was trained on the train split of mini-pile: the token counts beside its weights say so."""
        folder = place(self.model)
        places = (folder, folder.parent) if re.fullmatch(r"step\d+", folder.name) else (folder,)
        found = {sha256(place / COUNTS_FILE) for place in places} - {None}
        return self.model == "mini-pythia" or sha256(MINI_PYTHIA / COUNTS_FILE) in found

    @property
    def read_before(self):
        """Whether the model was trained on part of the text that it reads here: only held-out documents are new to it."""
        return self.trained_here and self.text == "mini-pile"

    @property
    def counts_name(self):
        """Which counts decide rarity: general English knows only words, so without `words_only` the text is counted."""
        if self.counts != "auto":
            return self.counts
        if self.trained_here and not self.read_before:
            return TRAINING
        return "text" if self.trained_here or not self.words_only else "wordfreq"


HELP = {one.name: one.metadata["help"] for one in fields(Settings)}  # what each parameter means, by name
WORDS = {one.name: one.metadata["words"] for one in fields(Settings) if one.metadata["words"]}


def cell(names, **defaults):
    """The source of a notebook's parameters cell.

    Parameters
    ----------
    names : the parameters that the notebook has.
    defaults : its own defaults by name, where they are not those of `Settings`.
    """
    values = {one.name: defaults.get(one.name, one.default) for one in fields(Settings) if one.name in names}
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    literals = {name: json.dumps(value) if isinstance(value, str) else repr(value) for name, value in values.items()}
    return "\n".join(f"{name}: {type(value).__name__} = {literals[name]}  # {HELP[name]}" for name, value in values.items())


# ---- a namespace


def given(namespace):
    """The parameters in a notebook's namespace: plain values under public names."""
    return {name: value for name, value in namespace.items()
            if not name.startswith("_") and name not in ("In", "Out") and not isinstance(value, (ModuleType, type))
            and (value is None or isinstance(value, (bool, int, float, str, list, tuple, dict)))}


def check(namespace, declared=None):
    """Check names, types and values, and return them as `Settings`, files and folders in their one spelling.

    Parameters
    ----------
    namespace : dict of values by name.
    declared : names that the notebook has, where it has not all of them.

    Returns
    -------
    Settings

    Raises
    ------
    ValueError
        One sentence that names the parameter and what it may be.
    """
    values, known = given(namespace), list(declared or HELP)
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, [*known, *(set(HELP) - {name})], n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ValueError(f"There is no parameter {name!r}: {hint}the notebook has {', '.join(known)}.")
    settings = Settings(**{name: _spelled(name, _typed(name, value)) for name, value in values.items()})
    for one in fields(Settings):
        if wrong := _wrong(one.name, getattr(settings, one.name), **one.metadata):
            raise ValueError(wrong)
    return settings


def _typed(name, value):
    """`value` in the parameter's type; a list or a truth value may come as text, as papermill's -p gives it."""
    default = getattr(Settings, name)
    if isinstance(value, str) and not isinstance(default, str):
        try:
            value = json.loads(value.lower())
        except (json.JSONDecodeError, RecursionError):
            pass
    if isinstance(default, tuple):
        if isinstance(value, (list, tuple)) and all(type(number) is int and number >= 0 for number in value):
            return tuple(sorted(set(value)))
        raise ValueError(f"{name} is {_brief.repr(value)}; it must be a list of whole numbers of 0 or more ({HELP[name]}).")
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(default):
        raise ValueError(f"{name} is {_brief.repr(value)}; it must be {KINDS[type(default)]} ({HELP[name]}).")
    return value


def _spelled(name, value):
    """A name in its one spelling, with the column of a table where it is not the usual one."""
    if name not in WORDS or value in WORDS[name]:
        return value
    path, column = (value, "") if name == "model" else texts.parted(value)
    return spelled(path) + f":{column}" * (column not in ("", texts.COLUMN))


def _wrong(name, value, *, choices, least, between, check, **_):
    """What is wrong with a value of the right type, in one sentence; None where nothing is."""
    if choices and value not in choices:
        return f"{name} is {value!r}; it may be {' or '.join(choices)}."
    if least is not None and value < least:
        return f"{name} is {value}; it must be {least} or more."
    if between and not between[0] < value < between[1]:
        return f"{name} is {value:g}; it must lie between {between[0]} and {between[1]}, both excluded."
    return check(name, value) if check else None
