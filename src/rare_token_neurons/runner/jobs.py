"""A notebook with one set of parameters: what is to run, with every parameter checked, and what need not run again.

Below: a notebook's file, with its parameters, the key of all that decides what it gives, and a clean copy for readers.
"""

import ast
import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import nbformat

from rare_token_neurons import files, keys, paths, settings as parameters
from rare_token_neurons.text.documents import parted

RECORDED = {"key", "seconds", "tables", "figures", "deviation", "disk_mb", "outputs", "read"}  # what a whole record holds

EARLY = ("01", "03", "02", "04")  # notebooks whose tables all later ones read, the figure that counts most first
READS = {"01": (), "02": ("01",), "03": ("01",), "06": (*EARLY, "05")}  # whose tables a notebook reads; EARLY where not said


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
        """What the notebook's last cell says of itself (`stage.finish`)."""
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
    chosen = {path: defaults(path) for path in find(numbers)}
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
    return Job(path, injected, settings.model, settings.folder, content_key(path, checked), settings.recompute,
               tuple(name for name in values if name not in mine))


def finished(job):
    """The record of a run that need not be repeated, or None.

    Key and outputs must be as recorded: a deleted or altered table or figure runs its notebook again; for a notebook about
    all models, the tables of every model must be too.
    """
    if job.recompute != "changed" or not (job.record.exists() and job.executed.exists()):
        return None
    record = files.read_json(job.record) or {}
    if not RECORDED <= set(record) or record["key"] != job.key or record["read"] != tables_read(job):
        return None
    return record if all(file_hash(name) == sha256 for name, sha256 in record["outputs"].items()) else None


def tables_read(job):
    """What a notebook about all models reads: the hash of every model's tables; "" for a notebook about one model."""
    if job.model != parameters.ALL_MODELS:
        return ""
    found = sorted(path for path in paths.RESULTS.rglob("*.parquet") if parameters.ALL_MODELS not in path.parts)
    return keys.digest([[paths.shown(path), file_hash(path)] for path in found])


def file_hash(name):
    """The sha256 of a file by its path from the root; None where there is none."""
    return files.sha256(paths.ROOT / name)


# ---- in which order


def stage(job):
    """Less is to be done earlier, int: the place among the notebooks that all others read; later those that read them."""
    return EARLY.index(job.name[:2]) if job.name[:2] in EARLY else len(EARLY)


def waits_for(job, other):
    """Whether a job reads tables that another makes: of its own model, or of any where it is about all.

    With recompute="never" nobody makes a table.
    """
    if job.recompute == "never" or other.model == parameters.ALL_MODELS:
        return False
    number = job.name[:2]
    reads = READS.get(number, set(EARLY) - {number})
    return job.model == parameters.ALL_MODELS or (job.model == other.model and other.name[:2] in reads)


# ---- notebook files


def find(numbers=()):
    """The numbered notebooks, in order.

    Parameters
    ----------
    numbers : iterable of str, such as "03" or "3"; empty for all.

    Raises
    ------
    ValueError
        There is no notebook of that number.
    """
    found = {path.name[:2]: path for path in sorted(paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))}
    wanted = [number.zfill(2) for number in numbers] or list(found)
    for number in wanted:
        if number not in found:
            raise ValueError(f"There is no notebook {number}; there are: {', '.join(found) or 'none'}.")
    return [found[number] for number in sorted(set(wanted))]


def defaults(notebook):
    """The parameters of a notebook with their defaults.

    Returns
    -------
    dict of str to a plain value

    Raises
    ------
    ValueError
        The notebook has no `parameters` cell, or another line in it than `name: type = literal`.
    """
    cells = nbformat.read(notebook, as_version=4).cells
    declared = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if not declared:
        raise ValueError(f"{paths.shown(notebook)} has no cell tagged parameters.")
    try:
        return {line.target.id: ast.literal_eval(line.value) for line in ast.parse(declared[0]).body}
    except (AttributeError, SyntaxError, ValueError):
        raise ValueError(f"{paths.shown(notebook)}: a parameter is a line `name: type = literal`.") from None


def source(notebook):
    """The text of all cells, code and prose, without what running the notebook adds."""
    cells = nbformat.read(notebook, as_version=4).cells
    return [[cell.cell_type, cell.source] for cell in cells if "injected-parameters" not in cell.metadata.get("tags", [])]


def content_key(notebook, values):
    """Hash of all that decides what a run of a notebook gives.

    That is its cells, its parameters, the package's modules that it imports or whose tables it names, the versions of the
    libraries that compute and draw, and size and time of the files that a parameter names: `mini-pile`, `mini-pythia`, a
    model's folder, a text. (A hub model is known by its name alone; the tables compare the hashes of its weights.)
    """
    cells = source(notebook)
    code = "\n".join(text for kind, text in cells if kind == "code")
    used = keys.imported(re.sub(r"^\s*[%!].*$", "", code, flags=re.M))
    named = [base / parted(value)[0] for value in values.values() for base in (paths.ROOT, paths.DATA)
             if isinstance(value, str) and value.strip()]
    content = [cells, values, used, keys.libraries(keys.NUMERICAL + keys.DRAWING), [stamps(path) for path in named]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def stamps(path):
    """Name, size and time of a file, or of every file of a folder and of its subfolders; [] where there is none."""
    found = [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in found if file.is_file()]


def for_readers(notebook):
    """A copy of an executed notebook without what differs from run to run and machine to machine.

    Taken out: papermill's timings and paths, injected parameters, what was written to stderr (progress, warnings), the
    repository's absolute path, and the interpreter's version.
    """
    clean = nbformat.from_dict(json.loads(json.dumps(notebook).replace(f"{paths.ROOT}/", "")))
    clean.metadata = nbformat.from_dict({
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    })
    clean.cells = [cell for cell in clean.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for cell in clean.cells:
        cell.metadata = nbformat.from_dict({"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {})
    for number, cell in enumerate((cell for cell in clean.cells if cell.cell_type == "code"), 1):
        cell.execution_count = number
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number
    return clean
