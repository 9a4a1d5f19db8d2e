"""A notebook with one set of parameters: what is to run, with every parameter checked, and what need not run again."""

from dataclasses import dataclass, replace
from pathlib import Path

from rare_token_neurons import notebooks, parameters, paths, store

RECORDED = {"key", "seconds", "tables", "figures", "deviation", "disk_mb", "outputs", "read"}  # what a whole record holds


@dataclass(frozen=True)
class Job:
    """One notebook with one set of parameters."""

    notebook: Path
    values: dict  # the parameters to inject: those that differ from the notebook's defaults
    model: str
    folder: str  # piece of path: the model, and the setting
    key: str  # hash of all that decides the outcome
    recompute: str
    missing: tuple = ()  # parameters given for other notebooks, which this one does not have

    @property
    def name(self):
        """The file's name without its ending, such as 03_neuron_influence."""
        return self.notebook.stem

    @property
    def executed(self):
        """The executed copy."""
        return paths.RUNS / self.folder / self.notebook.name

    @property
    def record(self):
        """What a finished run leaves: its key, seconds, outputs and their hashes."""
        return paths.RUNS / self.folder / f"{self.name[:2]}.json"

    @property
    def account(self):
        """What the notebook's last cell says of itself (`store.finish`)."""
        return paths.RUNS / self.folder / f"{self.name[:2]}.account.json"


def plan(numbers=(), models=(), values=None):
    """Check every parameter against every notebook and list what is to run: models in the outer loop, notebooks about all
    models (they have no parameter `model`) once, after them.

    Parameters
    ----------
    numbers : iterable of str, notebooks; empty for all.
    models : iterable of str; empty for each notebook's own default.
    values : dict of parameters by name; text from the command line is converted.

    Returns
    -------
    list of Job

    Raises
    ------
    ValueError
        One sentence: an unknown notebook, a misspelled name, a wrong type, an impossible value.
    """
    values, models = dict(values or {}), list(dict.fromkeys(models))
    if models and "model" in values:
        raise ValueError("model is given twice, by --model and by -p or -y; give it once.")
    if strange := set(values) - set(parameters.given(values)):
        raise ValueError(f"{min(strange, key=str)} is no parameter with a plain value (number, text, truth value or list).")
    chosen = {path: notebooks.defaults(path) for path in notebooks.find(numbers)}
    one = {path: defaults for path, defaults in chosen.items() if "model" in defaults}
    jobs = [_job(path, defaults, values | ({"model": model} if model else {}), chosen.values())
            for model in models or [None] for path, defaults in one.items()]
    return jobs + [_job(path, defaults, values, chosen.values()) for path, defaults in chosen.items() if path not in one]


def _job(path, defaults, values, declared_anywhere):
    """The job of one notebook; a parameter that only other chosen notebooks have is left to them."""
    mine = {name: value for name, value in values.items()
            if name in defaults or not any(name in declared for declared in declared_anywhere)}
    before = parameters.check(defaults, declared=list(defaults))
    settings = parameters.check(defaults | mine, declared=list(defaults))
    checked = {name: getattr(settings, name) for name in defaults}
    if "model" not in defaults:
        settings = replace(settings, model=parameters.ALL_MODELS)
    injected = {name: list(value) if isinstance(value, tuple) else value
                for name, value in checked.items() if value != getattr(before, name)}
    return Job(path, injected, settings.model, settings.folder, notebooks.content_key(path, checked), settings.recompute,
               tuple(name for name in values if name not in mine))


def finished(job):
    """The record of a run that need not be repeated, or None.

    Key and outputs must be as recorded: a deleted or altered table or figure runs its notebook again; for a notebook about
    all models, the tables of every model must be too.
    """
    if job.recompute != "changed" or not (job.record.exists() and job.executed.exists()):
        return None
    record = store.read_json(job.record) or {}
    if not RECORDED <= set(record) or record["key"] != job.key or record["read"] != tables_read(job):
        return None
    return record if all(file_hash(name) == sha256 for name, sha256 in record["outputs"].items()) else None


def tables_read(job):
    """What a notebook about all models reads: the hash of every model's tables; "" for a notebook about one model."""
    if job.model != parameters.ALL_MODELS:
        return ""
    found = sorted(path for path in paths.RESULTS.rglob("*.parquet") if parameters.ALL_MODELS not in path.parts)
    return store.digest([[paths.shown(path), file_hash(path)] for path in found])


def file_hash(name):
    """The sha256 of a file by its path from the root; None where there is none."""
    return store.sha256(paths.ROOT / name)
