"""The notebooks themselves: how they read, and, run by papermill on the committed mini-pythia, the values in their tables."""

import ast
import os
import shutil
import subprocess
import sys
from statistics import median

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest

from rare_token_neurons import claims, paths, run, spectra
from rare_token_neurons.notebooks import defaults, find

NOTEBOOKS = find()
POSITIONS = 200  # the smoke setting: enough for every table, few enough for a test
SETTING = f"mini-pythia/positions={POSITIONS}"
by_name = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """A copy of the repository (data as links, nothing computed), so that no test touches the committed tables."""
    root = tmp_path_factory.mktemp("repository")
    shutil.copytree(paths.ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copytree(paths.NOTEBOOKS, root / "notebooks", ignore=shutil.ignore_patterns(".*"))
    (root / "data/results/mini-pythia").mkdir(parents=True)
    for folder in (paths.MINI_PILE, paths.MINI_PYTHIA):
        (root / "data" / folder.name).symlink_to(folder)
    (root / "data/paper_grid.csv").symlink_to(paths.DATA / "paper_grid.csv")
    log = paths.RESULTS / "mini-pythia/training_log.parquet"
    if log.exists():
        shutil.copy(log, root / "data/results/mini-pythia")
    return root


def command(tree, *arguments):
    """`python -m rare_token_neurons run` in the copy."""
    return subprocess.run([sys.executable, "-m", "rare_token_neurons", "run", *arguments], cwd=tree, text=True,
                          env=os.environ | {"PYTHONPATH": str(tree / "src")}, capture_output=True)


@pytest.fixture(scope="session")
def smoke(tree):
    """All notebooks run once with the smoke setting; the folder that holds `data`, `figures`."""
    done = command(tree, "--model", "mini-pythia", "-p", "positions", str(POSITIONS))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return tree


def read(tree, name):
    """A table that the smoke run wrote."""
    return pd.read_parquet(tree / "data/results" / SETTING / f"{name}.parquet")


# ---- values


def check_01(tree):
    tokens, positions, blocks = (read(tree, name) for name in ("tokens", "positions", "blocks"))
    words = tokens[tokens["word"] & (tokens["count"] > 0)]
    rare, common = (tokens[tokens["group"] == name] for name in ("rare", "common"))
    assert 0.45 < len(rare) / len(words) < 0.55 and len(rare) + len(common) == len(words)
    assert rare["word"].all() and rare["count"].max() <= common["count"].min()
    assert rare["count"].sum() < 0.1 * tokens["count"].sum()
    assert positions["group"].value_counts().to_dict() == {"rare": POSITIONS, "common": POSITIONS}
    ids = np.stack(blocks["tokens"].to_numpy())
    target = ids[positions["block"], positions["t"] + 1]
    assert (positions["target"] == target).all() and (tokens["group"].to_numpy()[target] == positions["group"]).all()
    assert positions.groupby("document")["half"].nunique().max() == 1


def check_02(tree):
    checkpoints, losses = read(tree, "checkpoints"), read(tree, "losses")
    assert (checkpoints["repeat_of"] == "").all() and checkpoints["weight_hash"].is_unique
    curve = losses.pivot(index="step", columns="group", values="loss").sort_index()
    assert list(curve.index) == sorted(checkpoints["step"])
    assert curve.loc[0, "all"] == pytest.approx(np.log(8192), abs=0.3)  # an untrained model knows nothing
    assert curve["all"].iloc[-1] < 5.5 and curve["all"].is_monotonic_decreasing
    assert (curve["rare"] > curve["common"]).iloc[-1]


def check_03(tree):
    influence = read(tree, "influence")
    assert influence.groupby("group").size().to_dict() == {"common": 1536, "rare": 1536}
    assert (influence["mean_abs"] >= influence["abs_mean"] * (1 - 1e-5)).all() and (influence["positions"] == POSITIONS).all()
    assert np.allclose(influence["mean"].abs(), influence["abs_mean"])
    for _, group in influence.groupby("group"):
        ranked = np.sort(group["mean_abs"])[::-1]
        assert ranked[:26].mean() > 2 * np.median(ranked) > 0  # a few neurons matter more than the rest
    assert not np.allclose(*(influence.loc[influence["group"] == name, "mean_abs"] for name in ("rare", "common")))


def check_11(tree):
    table = pd.read_parquet(tree / "data/results/all-models" / f"positions={POSITIONS}" / "claims.parquet")
    assert table.groupby("model", sort=False).size().to_dict() == dict.fromkeys(
        ["smollm2", "mini-pythia", "EleutherAI/pythia-70m-deduped", "EleutherAI/pythia-410m-deduped"], len(claims.CLAIMS))
    mine, others = (table[table["model"].eq("mini-pythia") == here].set_index("name") for here in (True, False))
    assert others["value"].isna().all() and (others.loc["C1", "reason"] == "not run yet").all()  # no tables, no verdict
    rare = read(tree, "influence").query("group == 'rare'").sort_values("neuron")
    top = rare.sort_values("mean_abs_a", ascending=False).head(27)
    assert mine.value["C1"] == pytest.approx(top["mean_abs_b"].mean() / rare["mean_abs_b"].median(), rel=1e-4)
    assert mine.null["C1"] == pytest.approx(4, abs=0.1) and mine.low["C1"] < mine.value["C1"] < mine.high["C1"]
    phases = read(tree, "phases").set_index("group")
    assert mine.value["C2"] == pytest.approx(phases.loc["rare", "bp_plateau_end"] / len(rare))
    prominence = read(tree, "prominence").set_index(["group", "statistic"])
    family = phases.loc["rare", "null"].replace("-", "_")
    assert prominence.loc[("rare", "plateau"), f"p_{family}"] == pytest.approx(phases.loc["rare", "p_plateau"])
    for name, source in (("C4", "activation_dimension"), ("C5 within", "coactivation"), ("C8", "modules")):
        rows = read(tree, source)
        assert any(np.isclose(rows[f"less_{kind}"], mine.value[name]).any() for kind in ("random", "matched"))
    few = mine["positions"] < 100
    assert (mine.loc[few, "verdict"] == "cannot be tested").all() and not few["C1"]


CHECKS = {"01": check_01, "02": check_02, "03": check_03, "11": check_11}


@by_name
def test_tables_hold_what_the_notebook_says(smoke, notebook):
    CHECKS[notebook.name[:2]](smoke)


@by_name
def test_executed_copy_is_whole_and_its_figure_is_there(smoke, notebook):
    folder = smoke / "data/cache/runs" / (SETTING if "model" in defaults(notebook) else f"all-models/positions={POSITIONS}")
    executed = nbformat.read(folder / notebook.name, as_version=4)
    said = [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]
    assert all(output.output_type != "error" for output in said)
    assert any("image/png" in output.get("data", {}) for output in said)
    account = (folder / f"{notebook.name[:2]}.json").read_text()
    assert ".png" in account and ".pdf" in account


def test_a_second_run_repeats_nothing_and_the_defaults_are_untouched(smoke):
    again = command(smoke, "--model", "mini-pythia", "-p", "positions", str(POSITIONS))
    assert again.returncode == 0 and again.stdout.count("... unchanged") == len(NOTEBOOKS)
    assert not list((smoke / "data/results/mini-pythia").glob("[!t]*.parquet"))
    assert not list((smoke / "figures").glob("mini-pythia/*.png"))


# ---- parameters


@by_name
def test_a_misspelled_parameter_ends_before_anything_starts(notebook):
    with pytest.raises(ValueError, match="There is no parameter 'modell': did you mean model"):
        run.plan([notebook.name[:2]], values={"modell": "mini-pythia"})


def test_plain_papermill_fails_on_a_misspelled_parameter_too(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tree / "src"))
    with pytest.raises(papermill.PapermillExecutionError, match="There is no parameter 'rare_percentil'"):
        papermill.execute_notebook(find(["03"])[0], tmp_path / "out.ipynb", {"rare_percentil": 15}, progress_bar=False)


@by_name
def test_the_cell_after_the_parameters_checks_them(notebook):
    cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    place = next(at for at, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", []))
    assert "parameters.check(globals()" in cells[place + 1].source


# ---- how they read


@by_name
def test_reads_well(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    lines = [len(source.splitlines()) for source in code]
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    assert median(lines) <= 6 and max(lines) <= 25
    computed_prose = sum("Markdown(" in source for source in code)
    assert len(cells) - len(code) + computed_prose >= len(code) - computed_prose
    for source in code:
        tree = ast.parse(source)  # no shell, no magics
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        assert all(node.end_lineno - node.lineno < 5 for node in functions)
        for forbidden in ("chdir", "sys.path", "filterwarnings", "except:", "import *"):
            assert forbidden not in source


@by_name
def test_is_executed_in_order_and_free_of_litter(notebook):
    text = notebook.read_text()
    cells = [cell for cell in nbformat.reads(text, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs)
    for litter in ('"papermill"', '"start_time"', "injected-parameters", "Warning:", "it/s]", "/home/", "/root/", str(paths.ROOT)):
        assert litter not in text
