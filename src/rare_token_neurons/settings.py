"""The parameters of the notebooks: one table, one meaning each, checked before anything starts."""

import difflib
import json
import re
import reprlib
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType

from rare_token_neurons.files import sha256
from rare_token_neurons.keys import digest
from rare_token_neurons.paths import FIGURES, MINI_PYTHIA, RESULTS, ROOT
from rare_token_neurons.text import documents as texts
from rare_token_neurons.text.rarity import COUNTS_FILE

LONG = 100  # bytes of a folder's name
_brief = reprlib.Repr()  # a value in a sentence, however large
_brief.maxstring = _brief.maxother = 200


@dataclass(frozen=True)
class Settings:
    """Checked values of all parameters; a notebook declares those that it reads."""

    model: str = "smollm2"
    steps: tuple = ()
    device: str = "cpu"
    keep_weights: bool = True
    seed: int = 0
    text: str = "mini-pile"
    counts: str = "auto"
    rare_of: str = "target"
    rare_percentile: float = 50.0
    words_only: bool = True
    aggregate: str = "mean_abs"
    ranking: str = "split_half"
    ablation: str = "mean"
    positions: int = 2_000
    recompute: str = "changed"

    @property
    def slug(self):
        """The model's name as one folder name, which no other model has."""
        name = self.model.replace("/", "--")
        plain = name.replace("--", "/") == self.model and not self.model.startswith((".", "/")) and len(name.encode()) <= LONG
        return name if plain else f"{name[-30:]}-{digest(self.model)}"

    @property
    def folder(self):
        """Where these settings' files lie below a results or figures folder: the model, and what differs from the defaults.

        No two settings share a folder: where the name alone would not tell them apart, it ends in their hash.
        """
        odd = {field.name: getattr(self, field.name) for field in fields(self)
               if field.name not in NO_SETTING and getattr(self, field.name) != field.default}
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
        folder = Path(self.model)
        places = (folder, folder.parent) if re.fullmatch(r"step\d+", folder.name) else (folder,)
        found = {sha256(place / COUNTS_FILE) for place in places} - {None}
        return self.model == "mini-pythia" or sha256(MINI_PYTHIA / COUNTS_FILE) in found

    @property
    def read_before(self):
        """Whether the model was trained on part of the text that it reads here: only held-out documents are new to it."""
        return self.trained_here and self.text == "mini-pile"


ALL_MODELS = "all-models"  # in place of a model, where a notebook is about all of them
NO_SETTING = ("model", "device", "keep_weights", "recompute")  # these never change where files go below the model's folder
CHOICES = {
    "rare_of": ("target", "input"),
    "aggregate": ("mean_abs", "abs_mean"),
    "ranking": ("split_half", "same_tokens"),
    "ablation": ("mean", "zero", "resample"),
    "recompute": ("changed", "always", "never"),
}
HELP = {
    "model": "mini-pythia, smollm2, a folder, a GGUF file, or a hub id",
    "steps": "training steps, such as [0, 512]; empty: the last one, in 02 and 04 all",
    "device": "cpu or cuda",
    "keep_weights": "false: delete a hub checkpoint's weights when the next one is taken",
    "seed": "of every random choice",
    "text": "mini-pile, a text file, or hub rows such as stas/c4-en-10k[:500]",
    "counts": "auto (training text, else general English), wordfreq, text, a .npy by token id, or a text file",
    "rare_of": "a position is rare by the token it predicts (target) or reads (input)",
    "rare_percentile": "of the token types that the counts have seen, rarest first",
    "words_only": "only tokens that are words",
    "aggregate": "mean of |change| (mean_abs) or |mean change| (abs_mean)",
    "ranking": "rank on one half of the documents, measure on the other (split_half), or same_tokens",
    "ablation": "the neuron's mean, zero, or a value from another document (resample)",
    "positions": "rare positions to measure, and as many common ones",
    "recompute": "what changed, always, or never: draw the tables as they are",
}


def given(namespace):
    """The parameters in a notebook's namespace: plain values under public names."""
    return {name: value for name, value in namespace.items()
            if not name.startswith("_") and name not in ("In", "Out") and not isinstance(value, (ModuleType, type))
            and (value is None or isinstance(value, (bool, int, float, str, list, tuple, dict)))}


def check(namespace, declared=None):
    """Check names, types and values, and return them as `Settings`.

    Parameters
    ----------
    namespace : dict of values by name; a notebook passes `globals()` in the cell after its parameters.
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
    settings = Settings(**{name: _typed(name, value) for name, value in values.items()})
    for name, choices in CHOICES.items():
        if getattr(settings, name) not in choices:
            raise ValueError(f"{name} is {getattr(settings, name)!r}; it may be {' or '.join(choices)}.")
    _check_values(settings)
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
        if isinstance(value, (list, tuple)) and all(type(step) is int and step >= 0 for step in value):
            return tuple(sorted(set(value)))
        raise ValueError(f"{name} is {_brief.repr(value)}; it must be a list of training steps, such as [0, 512].")
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(default):
        kind = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false"}[type(default).__name__]
        raise ValueError(f"{name} is {_brief.repr(value)}; it must be {kind} ({HELP[name]}).")
    return value


def _is_file(value):
    try:
        return (ROOT / value).is_file()
    except OSError:  # longer than a name may be
        return False


def _check_values(settings):
    if not 0 < settings.rare_percentile < 100:
        raise ValueError(f"rare_percentile is {settings.rare_percentile:g}; it must lie between 0 and 100, both excluded.")
    if settings.positions < 1:
        raise ValueError(f"positions is {settings.positions}; it must be 1 or more.")
    if settings.seed < 0:
        raise ValueError(f"seed is {settings.seed}; it must be 0 or more.")
    if not settings.model.strip():
        raise ValueError("model is empty; it must be mini-pythia, smollm2, a folder, a GGUF file, or a hub id.")
    if max(len(part.encode()) for part in settings.model.split("/")) > 255:
        raise ValueError("model is longer than the name of a folder may be.")
    if "\0" in settings.model or (ROOT / settings.model).resolve() in (ROOT, *ROOT.parents):
        raise ValueError(f"model is {settings.model!r}; a model's folder cannot be one that holds this repository.")
    if settings.device != "cpu":
        import torch  # slow to load, and needed for this alone

        if not (settings.device.startswith("cuda") and torch.cuda.is_available()):
            raise ValueError(f"device is {settings.device!r}; this machine has cpu{', cuda' * torch.cuda.is_available()}.")
    for name, words in (("text", ("mini-pile",)), ("counts", ("auto", "wordfreq", "text"))):
        value = getattr(settings, name)
        if value not in words and not _is_file(value) and not (name == "text" and texts.names_text(value)):
            raise ValueError(f"{name} is {value!r}; it must be {' or '.join(words)}, or a file that is there.")
