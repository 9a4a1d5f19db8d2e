"""A notebook's start, its tables and its end: in a namespace as IPython leaves it, and in a kernel."""

import json
import shutil
import subprocess
import sys
import textwrap
from difflib import get_close_matches
from functools import lru_cache

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from small_notebooks import PACKAGE

from rare_token_neurons import files, settings as parameters
from rare_token_neurons.figures import start
from rare_token_neurons.figures.notebook import ALIKE, _bound
from rare_token_neurons.runner import jobs
from rare_token_neurons.tables import checkpoints, rare_tokens, stage

DECLARED = parameters.cell(["model", "seed", "recompute"], model="mini-pythia", recompute="never")
START = 'nb = start(globals(), "04")'
OWN = "top = 26\nlabels = ['a', 'b']\nseeds_of = {'one': 1}\nfor place in range(3):\n    pass"  # a notebook's variables


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """A repository of its own: nothing is written to the real one."""
    monkeypatch.setattr(stage, "RUNS", tmp_path / "data/cache/runs")
    monkeypatch.setattr(parameters, "RESULTS", tmp_path / "data/results")
    monkeypatch.setattr(parameters, "FIGURES", tmp_path / "figures")
    return tmp_path


class Kernel:
    """A namespace in which cells are run, remembered in `In` as IPython does before it runs them."""

    def __init__(self):
        self.names = {"In": [""], "Out": {}, "start": start}

    def run(self, *cells):
        for cell in cells:
            self.names["In"].append(cell)
            exec(cell, self.names)
        return self.names.get("nb")


@pytest.fixture
def kernel():
    return Kernel()


def refused(kernel, name, *cells):
    with pytest.raises(ValueError, match=f"There is no parameter '{name}'"):
        kernel.run(*cells)


# ---- the first run, and those after it


def test_the_first_run_takes_the_parameters(kernel):
    nb = kernel.run(DECLARED, "seed = 3", "import json", START)
    assert nb.settings == parameters.Settings(model="mini-pythia", seed=3, recompute="never") and nb.number == "04"


def test_a_second_run_takes_the_notebooks_own_variables_for_what_they_are(kernel):
    for seed in (0, 0, 5):
        nb = kernel.run(DECLARED.replace("seed: int = 0", f"seed: int = {seed}"), START, OWN)
        assert nb.settings.seed == seed
    assert kernel.run("seed = 7", START).settings.seed == 7  # the parameters cell is not run again
    assert kernel.run(START).settings.seed == 7


@pytest.mark.parametrize("name", ["modell", "rare_percentil", "zzzz"])
@pytest.mark.parametrize("before", [(), (DECLARED, START, OWN)], ids=["first run", "second run"])
def test_a_misspelled_parameter_is_refused_in_any_run(kernel, before, name):
    kernel.run(*before)
    refused(kernel, name, DECLARED, f"{name} = 15", START)  # as papermill injects it, after the parameters
    refused(kernel, name, START)  # it is there still
    refused(kernel, name, DECLARED + f"\n{name}: float = 15", START)  # as it is written by hand
    assert kernel.run(DECLARED, START, OWN, DECLARED, START).settings.seed == 0  # corrected


def test_what_is_spelled_almost_like_a_parameter_is_refused_wherever_it_is_set(kernel):
    kernel.run(DECLARED, START, OWN)
    refused(kernel, "sede_of", DECLARED, "sede_of = 1", START)
    kernel.run("del sede_of", "positionz = 50")
    refused(kernel, "positionz", START)
    refused(kernel, "positionz", "positionz = 60", DECLARED, START)  # set before the parameters


def test_an_impossible_value_is_refused_and_may_be_corrected(kernel):
    with pytest.raises(ValueError, match="^seed is -1; it must be 0 or more"):
        kernel.run(DECLARED, "seed = -1", START)
    assert kernel.run(DECLARED, START).settings.seed == 0


def test_cells_that_are_no_python_bind_nothing(kernel):
    kernel.run(DECLARED, START)
    kernel.names["In"] += ["%time x = 1", "seed = = 1", "x = '\0'"]
    assert kernel.run(DECLARED, START).settings.seed == 0


def test_a_notebook_about_all_models_has_no_model():
    for namespace in ({"seed": 3}, {"seed": 3}):
        assert start(namespace, "11").settings.folder == f"{parameters.ALL_MODELS}/seed=3"


def test_a_run_begins_with_an_account_and_caches_of_its_own(kernel, root, monkeypatch):
    kernel.run(DECLARED, START)
    monkeypatch.setattr(stage, "remembered", lru_cache(lambda: object()), raising=False)
    with stage.clock("forward"):
        stage.note_figure(root / "figures/old.png")
    before = stage.remembered()
    nb = kernel.run(DECLARED, START)
    assert stage.remembered() is not before
    nb.save(nb.panels(1, 2)[0], "fig4_made")
    nb.finish()
    account = json.loads((root / "data/cache/runs/mini-pythia/04.account.json").read_text())
    assert list(account["seconds"]) == ["drawing"] and account["seconds"]["drawing"] > 0
    assert account | {"seconds": {}} == {"seconds": {}, "tables": [], "figures": ["fig4_made.png", "fig4_made.pdf"]}
    assert len(list((root / "figures/mini-pythia").iterdir())) == 2


# ---- tables


def written(root, name, frame, folder="mini-pythia"):
    files.write_table(root / "data/results" / folder / f"{name}.parquet", frame)


def test_tables_are_read_by_name(root):
    nb = start({"model": "mini-pythia", "recompute": "never"}, "03")
    frame = pd.DataFrame({"rank": [1, 2], "influence": [0.5, 0.1]})
    written(root, "rank_curves", frame)
    pd.testing.assert_frame_equal(nb.table("rank_curves"), frame)
    with pytest.raises(FileNotFoundError, match="There is no table phases.parquet to draw; run with recompute=changed"):
        nb.table("phases")


@pytest.mark.parametrize("recompute", ["never", "changed"])
def test_an_unknown_table_is_named_with_those_like_it(recompute):
    nb = start({"model": "mini-pythia", "recompute": recompute}, "03")
    with pytest.raises(ValueError, match=r"^There is no table 'rank_curv'; did you mean rank_curves\b"):
        nb.table("rank_curv")
    with pytest.raises(ValueError, match="^There is no table '../x'; there are activation_dimension, "):
        nb.table("../x")


def test_tables_are_made_by_the_function_of_their_name(monkeypatch):
    monkeypatch.setattr(rare_tokens, "tokens", lambda settings: pd.DataFrame({"made": [settings.model]}))
    nb = start({"model": "mini-pythia", "recompute": "changed"}, "01")
    assert nb.table("tokens")["made"].item() == "mini-pythia"


def test_a_cell_may_run_the_model_where_the_run_computes(monkeypatch):
    monkeypatch.setattr(checkpoints, "revisions", lambda settings: ["step1", "step2"])
    monkeypatch.setattr(checkpoints, "subject", lambda settings, revision: f"{revision} of {settings.model}")
    nb = start({"model": "mini-pythia", "recompute": "changed"}, "03")
    assert nb.computes and nb.subject() == "step2 of mini-pythia"
    assert not start({"model": "mini-pythia", "recompute": "never"}, "03").computes


def test_a_flagged_checkpoint_that_a_table_measures_is_named_above_the_figures(root):
    nb = start({"model": "own/model", "steps": [1], "recompute": "never"}, "03")
    plain = nb.save(nb.panels(1, 1)[0], "fig3_plain")[0].read_bytes()
    frame = pd.DataFrame({"rank": [1, 2], "caution": ["", "step1 has the weights of step0"]})
    written(root, "rank_curves", frame, nb.settings.folder)
    assert nb.left_out() == "" and nb.table("rank_curves").equals(frame)
    figure = nb.panels(1, 1)[0]
    said = "Flagged, and measured since it was asked for: step1 has the weights of step0."
    assert nb.left_out() == said and nb.save(figure, "fig3_noted")[0].read_bytes() != plain
    assert figure.get_suptitle() == said
    figure = nb.panels(1, 1)[0]
    figure.suptitle("The finding")
    nb.save(figure, "fig3_titled")
    assert figure.get_suptitle() == f"{said}\nThe finding"


CHECKPOINTS = pd.DataFrame({"revision": ["step0", "step1", "step512"], "flagged": [False, True, False],
                            "reason": ["", "known: weights of step 0", ""]})


@pytest.mark.parametrize(("table", "revisions", "sentence"), [
    (CHECKPOINTS, ["step0", "step512"],
     "**Left out**, since the audit of notebook 02 flags it: step1 known: weights of step 0."),
    (CHECKPOINTS.iloc[[0, 2]], ["step0", "step512"], "The audit of notebook 02 flags no checkpoint: none is left out."),
    (pd.DataFrame({"revision": [""], "flagged": False, "reason": ""}), [""], ""),
])
def test_drawing_asks_the_audits_table_for_the_checkpoints(root, table, revisions, sentence):
    nb = start({"model": "own/model", "recompute": "never"}, "04")
    assert nb.left_out() == ""  # no table
    written(root, "checkpoints", table, "own--model")
    assert nb.revisions() == revisions and nb.left_out() == sentence


def test_steps_that_are_asked_for_stay():
    nb = start({"model": "mini-pythia", "steps": [0, 512], "recompute": "never"}, "04")
    assert nb.revisions() == ["step0", "step512"] and nb.left_out() == ""


# ---- what is loaded


def runs(code):
    """Run code in a process of its own, in which nothing is loaded yet."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_drawing_loads_neither_torch_nor_transformers_nor_weightwatcher():
    runs("""
        import importlib, pkgutil, sys
        import rare_token_neurons.figures as figures
        assert "matplotlib" not in sys.modules and "rare_token_neurons.figures.notebook" not in sys.modules
        assert "start" in dir(figures) and callable(figures.start)
        for module in pkgutil.iter_modules(figures.__path__):
            importlib.import_module(f"rare_token_neurons.figures.{module.name}")
            found = {"torch", "transformers", "weightwatcher"} & set(sys.modules)
            assert not found, f"figures.{module.name} loads {', '.join(found)}"
    """)


def test_the_package_hands_on_its_names_when_they_are_asked_for():
    runs("""
        import sys
        import rare_token_neurons as package
        assert not {"torch", "numpy", "pandas"} & set(sys.modules)
        assert package.__all__ == ["load", "capture", "loss_changes", "influence", "fit_phases", "start"]
        assert set(package.__all__) <= set(dir(package))
        from rare_token_neurons import *
        assert all(callable(found) for found in (load, capture, loss_changes, influence, fit_phases, start))
        try:
            package.fit
        except AttributeError as error:
            assert "no attribute 'fit'" in str(error)
    """)


# ---- the end


def test_stopping_outside_ipython_ends_the_process_without_an_error(kernel, root, capsys):
    with pytest.raises(SystemExit) as caught:
        kernel.run(DECLARED, START, "nb.stop('There is one checkpoint.')")
    assert caught.value.code == 0 and capsys.readouterr().out == "There is one checkpoint.\n"
    assert (root / "data/cache/runs/mini-pythia/04.account.json").exists()


IMPORT = "from rare_token_neurons.figures import axes as draw, start\n\n" + START
CURVES = "curves = nb.table('rank_curves')\nkinds = ['a', 'b']\nlen(curves)"
STOP = "nb.stop('**One checkpoint**, so the notebook ends.') if nb.settings.seed else 'goes on'"
TORCH = "import sys\nprint(nb.settings.seed, 'torch' in sys.modules)"
END = "nb.finish()"


def test_in_a_kernel(root, monkeypatch):
    shutil.copytree(PACKAGE, root / "src/rare_token_neurons", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("PYTHONPATH", str(root / "src"))
    written(root, "rank_curves", pd.DataFrame({"rank": np.arange(7)}))
    written(root, "rank_curves", pd.DataFrame({"rank": np.arange(5)}), "mini-pythia/seed=1")
    client = NotebookClient(nbformat.v4.new_notebook(), timeout=120, kernel_name="python3")
    account = root / "data/cache/runs/mini-pythia/04.account.json"

    def said(*sources):
        """What each cell shows: its text, or None."""
        client.nb.cells = [nbformat.v4.new_code_cell(source) for source in sources]
        for place, cell in enumerate(client.nb.cells):
            client.execute_cell(cell, place)
        outputs = [cell.outputs for cell in client.nb.cells]
        assert all(len(shown) <= 1 and "error" not in (one.output_type for one in shown) for shown in outputs)
        return [(shown[0].get("text") or shown[0].data.get("text/markdown") or shown[0].data["text/plain"]).strip()
                if shown else None for shown in outputs]

    def changed(seed):
        return DECLARED.replace("seed: int = 0", f"seed: int = {seed}")

    with client.setup_kernel():
        for _ in range(2):  # all cells, and all cells again
            assert said(DECLARED, IMPORT, CURVES, STOP, TORCH, END) == [None, None, "7", "'goes on'", "0 False", None]
            assert account.exists()
            account.unlink()
        silent = [None, None, "5", "**One checkpoint**, so the notebook ends.", None, None]
        for _ in range(2):  # a changed parameter, and the early stop that it brings
            assert said(changed(1), IMPORT, CURVES, STOP, TORCH, END) == silent
            assert (account.parent / "seed=1/04.account.json").exists()
            assert said("'still'", "%time 1", "!echo x") == [None] * 3
        for name in ("modell", "positionz"):
            with pytest.raises(CellExecutionError, match=f"There is no parameter '{name}'"):
                said(DECLARED, f"{name} = 15", IMPORT)
        assert said(DECLARED, IMPORT, CURVES, STOP, TORCH, END)[2:] == ["7", "'goes on'", "0 False", None]
    assert account.exists()


# ---- the notebooks


@pytest.mark.parametrize("notebook", jobs.find(), ids=lambda path: path.stem)
def test_no_variable_of_a_notebook_is_called_almost_like_a_parameter(notebook):
    cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    names = set().union(*(_bound(cell.source) for cell in cells if "parameters" not in cell.metadata.get("tags", [])))
    assert not {name: close for name in names if (close := get_close_matches(name, parameters.HELP, cutoff=ALIKE))}


def test_another_models_figure_is_shown_as_it_lies_there_or_said_to_be_missing(root):
    nb = start({"model": "smollm2", "recompute": "never"}, "05")
    assert "run this notebook on mini-pythia first" in nb.picture("fig5c").data
    (root / "figures/mini-pythia").mkdir(parents=True)
    (root / "figures/mini-pythia/fig5c.png").write_bytes(b"a picture")
    assert nb.picture("fig5c").data == b"a picture"
