"""What a notebook begins and ends with: its parameters checked, its tables, its figures, and its account.

    nb = start(globals(), "04")
    curves = nb.table("rank_curves")
    figure, axes = nb.panels(1, 2)
    nb.save(figure, "fig4a_rank_curves")
    nb.finish()

Drawing from tables that are there loads neither torch nor the code that makes them.
"""

import difflib
import importlib
import re
import symtable
import sys
import textwrap
import time
from dataclasses import dataclass, field, replace

from rare_token_neurons import keys, paths, settings as parameters
from rare_token_neurons.figures import axes
from rare_token_neurons.tables import stage

STARTS = "_starts"  # where a notebook's namespace remembers how often it was started
AUDIT = "checkpoints"  # asked in passing: not spelled out where it is read, the table is in no notebook's key
ALIKE = 0.85  # similarity (difflib) of a name to a parameter's, from which it is taken for that, misspelled


@dataclass(frozen=True)
class Notebook:
    """A started notebook: its settings, and the ways to its tables and figures."""

    settings: parameters.Settings
    number: str  # two digits
    begun: float = field(default_factory=time.perf_counter)  # when it was started
    cautions: dict = field(default_factory=dict)  # its keys: flagged checkpoints that the tables read so far measure

    panels = staticmethod(axes.panels)

    @property
    def computes(self):
        """Whether this run makes tables; with recompute="never" it draws them, and loads no model."""
        return self.settings.recompute != "never"

    def subject(self):
        """The last of the checkpoints that the settings ask for, taken apart: for a cell that runs the model itself."""
        passes = _module("tables.checkpoints")
        with stage.clock("forward"):
            return passes.subject(self.settings, passes.revisions(self.settings)[-1])

    def table(self, name):
        """A table by its name, made first where it is not up to date; with recompute="never" read as it lies there.

        Raises
        ------
        ValueError, FileNotFoundError
            There is no table of that name; recompute="never" and it is not there, or damaged.
        """
        if name not in keys.makers():
            close = difflib.get_close_matches(name, keys.makers())
            raise ValueError(f"There is no table {name!r}; " + (f"did you mean {' or '.join(close)}?" if close else
                                                                f"there are {', '.join(sorted(keys.makers()))}."))
        if self.settings.recompute == "never":
            found = stage.table_at(self.settings.results / f"{name}.parquet", "", None, recompute="never")
        else:
            with stage.clock("statistics"):
                found = getattr(_module(keys.makers()[name]), name)(self.settings)
        self.cautions.update(dict.fromkeys("; ".join(found.get(stage.CAUTION, ())).split("; ")))
        return found

    def revisions(self):
        """The names of the checkpoints that figures over training show; one name for a model without checkpoints.

        Raises
        ------
        ValueError
            The model's branches are none named like a step.
        """
        audit = self._audit() if self.settings.recompute == "never" else None
        if audit is None:
            with stage.clock("statistics"):
                if unread := _module("models.checkpoints").unread(self.settings.model):
                    raise ValueError(unread)
                return _module("tables.checkpoints").revisions(self.settings, "all")
        return list(audit.loc[~audit["flagged"], "revision"])

    def left_out(self):
        """One sentence on the checkpoints that figures over training do without, or on flagged ones that were asked
        for; "" where there was no audit."""
        if self.settings.steps:
            if self.settings.recompute == "never":
                return self._caution(self.cautions)
            return self._caution(_module("tables.checkpoints").known_wrong(self.settings).values())
        audit = self._audit()
        if audit is None or list(audit["revision"]) == [""]:
            return ""
        found = [f"{row.revision} {row.reason}" for row in audit[audit["flagged"]].itertuples()]
        if not found:
            return "The audit of notebook 02 flags no checkpoint: none is left out."
        them = "it" if len(found) == 1 else "them"
        return f"**Left out**, since the audit of notebook 02 flags {them}: {'; '.join(found)}."

    def _audit(self):
        """The table `checkpoints`; None where nobody asks it: steps asked for stay, and drawing may find no table."""
        missing = self.settings.recompute == "never" and not (self.settings.results / f"{AUDIT}.parquet").exists()
        return None if self.settings.steps or missing else self.table(AUDIT)

    @staticmethod
    def _caution(found):
        words = "; ".join(filter(None, found))
        return f"Flagged, and measured since it was asked for: {words}." if words else ""

    @staticmethod
    def picture(name, model="mini-pythia"):
        """Another model's figure as that model's own run drew it, or a sentence where it is not there."""
        from IPython.display import Image, Markdown

        path = parameters.FIGURES / model / f"{name}.png"
        if path.exists():
            return Image(path.read_bytes(), width=int(100 * axes.PAGE))
        return Markdown(f"There is no {paths.shown(path)} yet: run this notebook on {model} first.")

    def save(self, figure, name, shared=False):
        """Write a figure, flagged checkpoints named above it, into the settings' folder,
        as PNG and PDF (see `axes.save`).

        shared : whether it is the same for every model; it then lies in the folder of all models.
        """
        if shared:
            return axes.save(figure, replace(self.settings, model=parameters.ALL_MODELS).figures, name)
        if note := self._caution(self.cautions):
            title = figure.get_suptitle()  # the finding stays, below the note
            words = "\n".join(filter(None, (textwrap.fill(note, 120), title)))
            figure.suptitle(words, x=0.01, ha="left", **{} if title else {"fontsize": "xx-small"})
        return axes.save(figure, self.settings.figures, name)

    def finish(self):
        """Write the notebook's account for the runner: the last cell's call. What made no table, drew."""
        stage._seconds["drawing"] = 0.0
        stage._seconds["drawing"] = time.perf_counter() - self.begun - sum(stage._seconds.values())
        stage.finish(self.settings.folder, self.number)

    def stop(self, sentence):
        """End the notebook here without an error: say why, write the account, and let the cells that follow do nothing.

        A cell that sets a parameter, starts a notebook or empties the namespace ends the silence.
        Outside IPython the process ends.
        """
        from IPython import get_ipython
        from IPython.display import Markdown, display

        self.finish()
        if get_ipython() is None:
            print(sentence)
            raise SystemExit(0)
        display(Markdown(sentence))
        _silence(get_ipython())


def start(namespace, number):
    """Begin a notebook: check its parameters, set the figures' style, and forget what an earlier run left.

    Parameters
    ----------
    namespace : dict, the notebook's `globals()`, in the cell after its parameters.
    number : str, the notebook's two digits.

    Returns
    -------
    Notebook

    Raises
    ------
    ValueError
        One sentence: a misspelled parameter, a wrong type, an impossible value.

    Example
    -------
    >>> nb = rtn.start({"model": "mini-pythia", "recompute": "never"}, "03")
    >>> nb.table("phases")["group"].unique().tolist()
    ['rare', 'common']
    """
    settings = parameters.check(_meant(namespace))
    if "model" not in namespace:
        settings = replace(settings, model=parameters.ALL_MODELS)
    namespace[STARTS]["done"] = namespace[STARTS]["tried"]
    _forget()
    axes.use_style()
    return Notebook(settings, number, time.perf_counter())


def _module(name):
    with stage.clock("start"):  # libraries are loaded where they are first needed
        return importlib.import_module(f"{keys.PACKAGE}.{name}")


def _forget():
    """Begin a new account, and empty what the package's functions remember: files may have changed."""
    for part in (stage._seconds, *stage._written.values()):
        part.clear()
    for name, module in list(sys.modules.items()):
        if name.startswith(f"{keys.PACKAGE}."):
            for value in vars(module).values():
                getattr(value, "cache_clear", bool)()


# ---- cells


def _meant(namespace):
    """What in a notebook's namespace is meant as a parameter: dict of name to value.

    In the first run of a kernel that is every plain value under a public name. In a later one the notebook's own values
    are there too. Then the parameters are meant, what was bound from the last cell on that declared one, and what is
    spelled almost like one, unless it was there at the start before: that one refused it, and a cell has declared
    parameters since.
    """
    public, memory = parameters.given(namespace), namespace.setdefault(STARTS, {})
    cells = [_bound(code) for code in namespace.get("In", ())]
    now = len(cells), set(public)
    if cells and not _declares(cells[-1]):  # the cell that calls `start` is the notebook's own
        cells.pop()
    tried = memory.get("tried")
    before = tried if tried and any(map(_declares, cells[tried[0]:])) else memory.get("done")
    memory["tried"] = now
    if before is None:
        return public
    recent = cells[before[0]:]
    since = max((place for place, cell in enumerate(recent) if _declares(cell)), default=len(recent))
    meant = set(parameters.HELP).union(*recent[since:])
    new = (set(public) - before[1]).union(*recent)
    return {name: value for name, value in public.items()
            if name in meant or (name in new and difflib.get_close_matches(name, parameters.HELP, cutoff=ALIKE))}


def _bound(code):
    """The names that a cell binds: dict of name to whether it declares its type, as a parameters cell does."""
    try:
        symbols = symtable.symtable(code, "cell", "exec").get_symbols()
    except (SyntaxError, ValueError):
        return {}
    return {one.get_name(): one.is_annotated() for one in symbols if one.is_assigned()}


def _declares(cell):
    return any(cell.get(name) for name in parameters.HELP)


def _silence(shell):
    """Let cells do nothing until one sets a parameter, calls `start`, or empties the namespace (`reset`)."""

    def emptied(lines):
        code = "".join(lines)
        if not re.search(r"\b(start|reset)\(", code) and not set(_bound(code)) & set(parameters.HELP):
            return []
        shell.input_transformers_post = [other for other in shell.input_transformers_post if other is not emptied]
        return lines

    shell.input_transformers_post = [*shell.input_transformers_post, emptied]
