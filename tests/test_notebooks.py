"""The notebooks themselves: how they read, and, run by papermill on mini-pythia, the values in their tables."""

import ast
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from statistics import median

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from rare_token_neurons import paths
from rare_token_neurons.curve import heads
from rare_token_neurons.runner.jobs import defaults, find, for_readers
from rare_token_neurons.runner.run import EMPTY
from rare_token_neurons.statistics import claims, spectra as spectra_of
from rare_token_neurons.tables import claims as claim_tables

NOTEBOOKS = find()
POSITIONS = 200  # the smoke setting: enough for every table, few enough for a test
SETTING = f"mini-pythia/positions={POSITIONS}"
STEPS = ("step0", "step512", "step6144")  # of the suite: enough for every figure over training
SOURCES = ("austen", "bible", "devil", "jargon")  # a fifth of mini-pile, with a hundred held-out documents
TWICE = "03"  # the notebook that is run again in its own namespace
by_name = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def copied(root):
    """Package and notebooks in a folder, which is then a repository of its own."""
    shutil.copytree(paths.ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copytree(paths.NOTEBOOKS, root / "notebooks", ignore=shutil.ignore_patterns(".*"))
    return root


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """A copy of the repository (part of its data as links, nothing computed),
    so that no test touches the committed tables."""
    root = copied(tmp_path_factory.mktemp("repository"))
    (root / "data/results/mini-pythia").mkdir(parents=True)
    for name in ("mini-pile", "mini-pythia"):
        (root / "data" / name).mkdir()
    for source in SOURCES:
        (root / f"data/mini-pile/{source}.jsonl.xz").symlink_to(paths.MINI_PILE / f"{source}.jsonl.xz")
    for path in paths.MINI_PYTHIA.iterdir():
        if path.is_file() or path.name in STEPS:
            (root / "data/mini-pythia" / path.name).symlink_to(path)
    (root / "data/paper_grid.csv").symlink_to(paths.DATA / "paper_grid.csv")
    log = paths.RESULTS / "mini-pythia/training_log.parquet"
    if log.exists():
        shutil.copy(log, root / "data/results/mini-pythia")
    return root


def command(tree, *arguments):
    """`python -m rare_token_neurons run` in the copy."""
    return subprocess.run([sys.executable, "-m", "rare_token_neurons", "run", *arguments], cwd=tree, text=True,
                          env=os.environ | {"PYTHONPATH": str(tree / "src")}, capture_output=True)


SMOKE = {"model": "mini-pythia", "positions": POSITIONS}


@contextmanager
def by_hand(tree):
    """A kernel in which notebooks are opened from their folder as JupyterLab does, and typed into.

    Yields a function that runs all cells of a notebook, with `values` and one more line in its parameters, in a
    namespace emptied before unless it is run `again`, and returns what the code cells show.
    """
    client = NotebookClient(nbformat.v4.new_notebook(), timeout=900, kernel_name="python3",
                            resources={"metadata": {"path": str(tree / "notebooks")}})

    def run(notebook, values, more="", again=False):
        if not again:
            ask(client, EMPTY)
        client.nb = nbformat.read(notebook, as_version=4)
        parameters = next(cell for cell in client.nb.cells if "parameters" in cell.metadata.get("tags", []))
        for name, value in values.items():
            parameters.source = re.sub(rf"^({name}: \w+ =) .*$", rf"\1 {value!r}", parameters.source, flags=re.M)
        parameters.source += more
        for at, cell in enumerate(client.nb.cells):
            client.execute_cell(cell, at)
        return shown(client.nb)

    with client.setup_kernel(env=os.environ | {"PYTHONPATH": str(tree / "src")}):
        yield run
        run.loaded = ask(client, "import sys\n' '.join(sys.modules)")


def ask(client, code):
    """The text that a cell of its own shows in a kernel, or None."""
    client.nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    cell = client.execute_cell(client.nb.cells[0], 0)
    return cell.outputs[0].data["text/plain"] if cell.outputs else None


def shown(book):
    """What the code cells of an executed notebook show, progress and parameters of papermill left out."""
    return [[output.get("data", output.get("text")) for output in cell.outputs]
            for cell in for_readers(book).cells if cell.cell_type == "code"]


@pytest.fixture(scope="session")
def smoke(tree):
    """All notebooks with the smoke setting: run by the runner, then drawn by hand from their tables, in one kernel and
    without torch; where `data`, `figures` lie."""
    done = command(tree, "--model", SMOKE["model"], "-p", "positions", str(POSITIONS))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    with by_hand(tree) as run:
        for notebook in NOTEBOOKS:
            made = shown(nbformat.read(runs(tree, notebook) / notebook.name, as_version=4))
            for again in (False, True)[: 1 + (notebook.name[:2] == TWICE)]:
                said = run(notebook, SMOKE | {"recompute": "never"}, again=again)
                assert said == made, f"{notebook.name} says something else when drawn from its tables (again: {again})"
        with pytest.raises(CellExecutionError, match="There is no parameter 'positons'"):
            run(notebook, SMOKE, "\npositons: int = 300", again=True)
    assert not {"torch", "transformers", "weightwatcher"} & set(run.loaded.strip("'").split())
    return tree


def runs(tree, notebook):
    """Where the runner leaves what it knows of a notebook with the smoke setting."""
    return tree / "data/cache/runs" / (SETTING if "model" in defaults(notebook)
                                       else f"all-models/positions={POSITIONS}")


def read(tree, *names):
    """Tables that the smoke run wrote: one, or a list of them."""
    found = [pd.read_parquet(tree / "data/results" / SETTING / f"{name}.parquet") for name in names]
    return found if len(names) > 1 else found[0]


# ---- values


def check_01(tree):
    tokens, positions, blocks = read(tree, "tokens", "positions", "blocks")
    words = tokens[tokens["word"] & (tokens["count"] > 0)]
    rare, common = (tokens[tokens["group"] == name] for name in ("rare", "common"))
    assert 0.45 < len(rare) / len(words) < 0.55 and len(rare) + len(common) == len(words)
    assert rare["count"].max() <= common["count"].min() and rare["count"].sum() < 0.1 * tokens["count"].sum()
    assert positions["group"].value_counts().to_dict() == {"rare": POSITIONS, "common": POSITIONS}
    target = np.stack(blocks["tokens"].to_numpy())[positions["block"], positions["t"] + 1]
    assert (positions["target"] == target).all() and (tokens["group"].to_numpy()[target] == positions["group"]).all()
    assert positions.groupby("document")["half"].nunique().max() == 1


def check_02(tree):
    checkpoints, losses = read(tree, "checkpoints", "losses")
    assert checkpoints["weight_hash"].is_unique and not checkpoints["flagged"].any()
    curve = losses.pivot(index="step", columns="group", values="loss").sort_index()
    assert list(curve.index) == sorted(checkpoints["step"])
    assert curve.loc[0, "all"] == pytest.approx(np.log(8192), abs=0.3)  # an untrained model knows nothing
    assert curve["all"].iloc[-1] < 5.5 and curve["all"].is_monotonic_decreasing
    assert (curve["rare"] > curve["common"]).iloc[-1]


def check_03(tree):
    influence, curves, phases, prominence = read(tree, "influence", "rank_curves", "phases", "prominence")
    assert influence.groupby("group").size().to_dict() == {"common": 1536, "rare": 1536}
    assert (influence["positions"] == POSITIONS).all() and np.allclose(influence["mean"].abs(), influence["abs_mean"])
    for _, group in influence.groupby("group"):
        ranked = np.sort(group["mean_abs"])[::-1]
        assert ranked[:26].mean() > 2 * np.median(ranked) > 0  # a few neurons matter more than the rest
    pooled = phases[phases["sign"] == "pooled"].set_index(["group", "rule"])
    found = prominence.set_index(["group", "statistic"])
    for group in ("rare", "common"):
        fit, row = pooled.loc[(group, f"{heads.DECIDES} head")], found.loc[(group, "head")]
        curve = curves[(curves["group"] == group) & (curves["sign"] == "pooled")]
        head = curve[curve["rank"] <= fit["head"]]  # Delta is the mean height of the head above its law
        height = np.log(head["influence"]) - fit["beta"] + fit["kappa"] * np.log(head["rank"])
        assert len(curve) == 1536 and fit["delta"] == pytest.approx(height.mean() if len(head) else 0.0)
        assert (row["value"], row["word"], row["p_law"]) == (fit["delta"], fit["word"], fit["p_law"])
    one, rare = read(tree, "one_neuron"), influence[influence["group"] == "rare"].set_index("neuron")
    assert rare["mean_abs_a"].idxmax() == one["neuron"].iloc[0]  # its changes, position by position, are its influence
    for group, rows in one.groupby("group"):
        stored = influence[influence["group"] == group].set_index("neuron").loc[one["neuron"].iloc[0]]
        assert rows["change"].abs().mean() == pytest.approx(stored["mean_abs"], rel=1e-4)
    run = one.dropna()  # the positions at which the whole model was run
    assert len(run) == 5 and np.allclose(run["loss_after"] - run["loss_before"], run["change"], atol=5e-5)


def check_04(tree):
    names = ("phases", "top_groups", "rankings", "ancestry", "statistics")
    phases, top, rankings, ancestry, statistics = read(tree, *map("emergence_{}".format, names))
    steps = sorted(read(tree, "checkpoints")["step"])
    for table in (phases, top, ancestry):
        assert sorted(table["step"].unique()) == steps and set(table["group"]) == {"rare", "common"}
    last = phases[phases["step"] == steps[-1]].set_index(["group", "rule"])  # notebook 03 says the same of it
    before = read(tree, "phases").query("sign == 'pooled'").set_index(["group", "rule"]).loc[last.index]
    assert np.allclose(last[["delta", "kappa", "p_law", "delta_low"]], before[["delta", "kappa", "p_law", "delta_low"]])
    lead = top[top["chosen"] == "then"].pivot(index="step", columns="group", values="ratio")
    assert lead["rare"].iloc[-1] > 1.5 * lead["rare"].iloc[0]  # a few neurons come to matter far more than the rest
    ancient = top[(top["step"] == 0) & (top["chosen"] == "today")]  # untrained, today's top neurons are like any others
    assert (ancient["median_rank"] > 100).all() and (ancient["ratio"] < 2).all()
    pairs = rankings.set_index(["first_group", "first_step", "second_group", "second_step"])["correlation"]
    assert pairs["rare", steps[-1], "rare", steps[-1]] > 0.4  # the ceiling: documents agree on the ranking
    assert pairs["rare", 0, "rare", steps[-1]] < 0.3 and len(ancestry) == 2 * 27 * len(steps)
    found = claim_tables.collect({"emergence_statistics": statistics})  # C3 can be judged by it
    assert np.isfinite([[found[name].low, found[name].high] for name in ("C3 emergence", "C3 before training")]).all()


def check_05(tree):
    dimension, variance, training = read(tree, "activation_dimension", "activation_variance",
                                         "activations_over_training")
    rows = dimension.set_index(["where", "group", "statistic"]).sort_index()
    for where in ("rare", "all"):
        exact, whole = (rows.loc[(where, "rare", name)] for name in ("effective dimension", "whole components"))
        assert exact["size"] == 27 and 1 / 27 < exact["value"] <= whole["value"] + 1e-9 < exact["value"] + 1 / 27
        for kind in ("random", "matched"):  # what the claims take
            assert exact[f"less_{kind}"] == pytest.approx(exact["value"] - exact[kind])
        curve = variance[(variance["where"] == where) & (variance["group"] == "rare")]["value"].to_numpy()
        assert (curve < 0.95).sum() + 1 == round(27 * whole["value"])
    few, many = (rows.loc[(where, "rare", "effective dimension")] for where in ("rare", "all"))
    assert many["tokens"] > 10 * few["tokens"] and few["random"] < many["random"]  # few positions, few dimensions
    assert set(training["step"]) == set(read(tree, "losses")["step"])
    last = training.query("step == step.max() and where == 'rare' and group == 'rare'")
    last = last.set_index(["statistic", "measure"])
    assert last["value"]["effective dimension", "correlation"] == pytest.approx(few["value"], abs=1e-5)


def check_06(tree):
    table, pairs, spread = read(tree, "coactivation", "coactivation_matrix", "coactivation_distribution")
    rows = table.set_index(["where", "group", "relation", "measure", "statistic"]).sort_index()
    for (where, group), block in pairs[pairs["i"] != pairs["j"]].groupby(["where", "group"]):
        row = rows.loc[where, "rare", "within", "correlation", "mean"]
        if group == "rare":  # the heat map shows what the table says
            assert block["correlation"].mean() == pytest.approx(row["value"], abs=1e-5)
        else:  # and a typical random or matched group
            assert row[f"{group}_low"] < block["correlation"].mean() < row[f"{group}_high"]
    assert not table["gated"].any() and {"boost 10", "suppress 10", "boost and suppress 10"} <= set(table["group"])
    rare = spread[(spread["set"] == "rare") & (spread["left"] < -1e-9)]  # the bins below 0
    for place, share in rare.groupby(["where", "relation", "measure"])["share"].sum().items():
        assert share == pytest.approx(rows.loc[(place[0], "rare", *place[1:], "negative share"), "value"], abs=1e-6)


def check_07(tree):
    names = ("weight_groups", "weights_over_training", "weight_eigenvalues", "weight_layers", "weight_power_laws")
    groups, over, values, layers, laws = read(tree, *names)
    rare = groups[(groups["group"] == "rare") & (groups["rows"] == "raw")].set_index(["statistic", "matrix"])
    assert dict(zip(groups["matrix"], groups["weights"])) == {"in": "W_in", "out": "W_out"}
    assert (rare["size"] == 27).all() and (groups["missing"] < 0.2).all()
    assert (rare.loc["entropy", "value"] < rare.loc["entropy", "shuffled_low"]).all()  # shared directions, not elements
    entropy = over[(over["statistic"] == "entropy") & (over["kind"] == "own")]
    assert (entropy.loc[entropy["step"] == 0, "p_random"] > 0.02).all()  # untrained: any group is like any other
    assert (entropy.loc[entropy["step"] == entropy["step"].max(), "p_random"] < 0.02).all()
    start = values[(values["step"] == 0) & (values["kind"] == "random")]
    law = spectra_of.mp_edges(27 / start["columns"].iloc[0])
    for _, rows in start.groupby("matrix"):
        assert law[0] * 0.85 < rows["relative"].min() < law[0] * 1.15
        assert law[1] * 0.85 < rows["relative"].max() < law[1] * 1.3
    shuffled = laws[(laws["kind"] == "shuffled") & (laws["revision"] == laws["revision"].iloc[-1])]
    assert (shuffled["verdict"] == "not rejected").mean() < 0.1  # noise is no power law
    alphas = layers.groupby("step")["alpha"].median()
    assert set(layers["layer"]) == {0, 1, 2} and alphas.iloc[-1] < 0.7 * alphas.loc[0]


def check_08(tree):
    names = ("overlap", "modules", "group_ablation", "greedy_search", "heads", "head_layers")
    overlap, modules, joint, search, heads, layers = read(tree, *names)
    top = overlap[overlap["group"]].set_index(["first", "second"])
    assert (top["k"] == 27).all() and (top["p"] < 1e-6).all() and (top["jaccard"] > top["null_high"]).all()
    main = modules[modules["main"]].iloc[0]
    assert modules["main"].sum() == 1 and main["size"] == 27 and 1 < main["communities"] < 27
    assert main["weights"] == "positive" and not modules["gated"].any()  # a plain MLP's correlations have signs
    whole, null = joint[joint["group"] == "rare"].iloc[0], joint[joint["group"] == "random"]
    assert len(null) == 100 and whole["joint"] > null["joint"].max()  # the group matters more than any random one
    assert search["size"].tolist() == list(range(1, 11)) and search["neuron"].is_unique
    assert search["neuron"][0] == search["best"][0] and (search["greedy"] > search["random_high"]).all()
    assert heads.groupby("layer").size().to_dict() == {0: 6, 1: 6, 2: 6} and (heads["rare"] > 1e-4).all()
    moved = layers.set_index("layer")  # parallel blocks: the last layer's heads cannot reach its MLP
    assert (moved.loc[2, ["value", "random", "matched"]] == 0).all() and (moved.loc[[0, 1], "random"] > 0).all()


def check_09(tree):
    nulls, promises = read(tree, "null_heads", "promises")
    fit = read(tree, "phases").query(f"sign == 'pooled' and group == 'rare' and rule == '{heads.DECIDES} head'").iloc[0]
    of_model = nulls.set_index("null").loc[["lognormal", "half-normal", "law"]]  # those of notebook 03
    assert len(nulls) == 8 and (of_model["delta"] == fit["delta"]).all()
    assert of_model["p"].tolist() == fit[["p_lognormal", "p_half_normal", "p_law"]].tolist()
    found, rare = (float(word) for word in nulls["note"].iloc[-1].replace(",", "").split()
                   if word.replace(".", "").isdigit())
    assert found == pytest.approx(rare, abs=0.5)  # the matched positions are as hard
    assert (promises["runs"] == 10).all() and (promises["kept"] >= 7).all()


def check_12(tree):
    grid, layers = read(tree, "robustness", "layers_sampled")
    assert len(grid.loc[grid["factor"] != "layer", ["factor", "setting"]].drop_duplicates()) == 19
    tested = grid[grid["verdict"] != claims.UNTESTED]
    assert (tested["positions"] >= 100).all() and (tested["q"] >= tested["p"] - 1e-12).all() and len(tested) < len(grid)
    assert grid.loc[grid["factor"].eq("rarest 5 %"), "verdict"].eq(claims.UNTESTED).all()  # so few in so little text
    assert layers.groupby("layer").size().to_dict() == {0: 32, 1: 32}


def check_13(tree):
    neurons = read(tree, "frequency_neurons")
    assert len(neurons) == 1536 and neurons["rare"].sum() == 27
    top = neurons.nlargest(50, "influence")
    assert top["entropy"].abs().median() > 2 * neurons["entropy"].abs().median()


def check_10(tree):
    portraits, influence, positions = read(tree, "portraits", "influence", "positions")
    names = ("tokens", "contexts", "histograms")
    tokens, contexts, histograms = read(tree, *map("portrait_{}".format, names))
    top = portraits[portraits["top"]].sort_values("rank")
    rare = influence[influence["group"] == "rare"].set_index("neuron")
    assert list(top["rank"]) == list(range(1, 11)) and set(rare["mean_abs_a"].nlargest(10).index) == set(top["neuron"])
    assert np.allclose(rare.loc[portraits["neuron"], "mean_abs_b"], portraits["rare"])
    strength = top["correlation"].abs().median() / portraits["correlation"].abs().median()
    assert strength > 1.3  # they write along or against frequency
    assert set(contexts["document"]) <= set(positions.loc[positions["half"] == "B", "document"])
    for table, count in ((tokens, 24), (contexts, 4), (histograms, 42)):
        assert table.groupby("neuron").size().to_dict() == dict.fromkeys(top["neuron"], count)
    linear, over = read(tree, "linearity", "linearity_over_training")
    assert linear.groupby("group").size().to_dict() == {"common": 1536, "rare": 1536} and not linear["gated"].any()
    last = over[over["step"] == over["step"].max()].reset_index(drop=True)
    assert np.allclose(last[["openness", "r2"]], linear[["openness", "r2"]], equal_nan=True)


def check_11(tree):
    table = pd.read_parquet(tree / "data/results/all-models" / f"positions={POSITIONS}" / "claims.parquet")
    assert table.groupby("model").size().eq(len(claims.CLAIMS)).all() and table["model"].nunique() == 4
    mine, others = (table[table["model"].eq("mini-pythia") == here].set_index("name") for here in (True, False))
    assert others["value"].isna().all() and (others.loc["C1", "reason"] == "not run yet").all()  # no tables, no verdict
    rare = read(tree, "influence").query("group == 'rare'")
    top = rare.nlargest(27, "mean_abs_a")
    assert mine.value["C1"] == pytest.approx(top["mean_abs_b"].mean() / rare["mean_abs_b"].median(), rel=1e-4)
    assert 2.5 < mine.null["C1"] < 4.1 and mine.low["C1"] < mine.value["C1"] < mine.high["C1"]
    fits = read(tree, "phases").query("sign == 'pooled'").set_index(["group", "rule"])
    for name, group in (("C2 head", "rare"), ("C7 common", "common")):
        assert (mine.value[name], mine.word[name]) == tuple(fits.loc[(group, f"{heads.DECIDES} head"),
                                                                     ["delta", "word"]])
    for name, source in (("C4", "activation_dimension"), ("C5 within", "coactivation"), ("C8", "modules")):
        rows = read(tree, source)
        assert any(np.isclose(rows[f"less_{kind}"], mine.value[name]).any() for kind in ("random", "matched"))
    few = mine["positions"] < 100
    assert (mine.loc[few, "verdict"] == "cannot be tested").all() and not few["C1"]


@by_name
def test_tables_hold_what_the_notebook_says(smoke, notebook):
    globals()[f"check_{notebook.name[:2]}"](smoke)


@by_name
def test_a_run_by_hand_is_whole_and_its_figure_is_there(smoke, notebook):
    account = (runs(smoke, notebook) / f"{notebook.name[:2]}.account.json").read_text()
    assert ".png" in account and ".pdf" in account


def test_the_runner_repeats_nothing_and_leaves_the_defaults_untouched(smoke):
    again = command(smoke, "01", "03", "--model", "mini-pythia", "-p", "positions", str(POSITIONS))
    assert again.returncode == 0 and again.stdout.count("... unchanged") == 2
    for notebook in NOTEBOOKS:
        said = sum(shown(nbformat.read(runs(smoke, notebook) / notebook.name, as_version=4)), [])
        assert any("image/png" in data for data in said)
    assert not list((smoke / "data/results/mini-pythia").glob("[!t]*.parquet"))
    assert not list((smoke / "figures").glob("mini-pythia/*.png"))


def test_04_ends_with_a_sentence_for_a_model_without_checkpoints(tree):
    with by_hand(tree) as run:
        said = sum(run(find(["04"])[0], SMOKE | {"model": str(tree / "data/mini-pythia/step512")}), [])
    assert len(said) == 1 and "fewer than two training checkpoints" in str(said[0])


def test_03_is_drawn_from_the_committed_tables(tmp_path):
    """The one notebook of `make check`: its figures are there, and no table was made."""
    shutil.copytree(paths.RESULTS / "mini-pythia", copied(tmp_path) / "data/results/mini-pythia")
    done = command(tmp_path, "03", "--model", "mini-pythia", "-p", "recompute", "never")
    assert done.returncode == 0, done.stderr
    made = sorted(path.name for path in (tmp_path / "figures/mini-pythia").iterdir())
    assert made == sorted(path.name for path in (paths.FIGURES / "mini-pythia").glob("fig3*"))
    assert not (tmp_path / "data/cache/tables").exists()


# ---- parameters


def test_plain_papermill_fails_on_a_misspelled_parameter_too(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tree / "src"))
    with pytest.raises(papermill.PapermillExecutionError, match="There is no parameter 'rare_percentil'"):
        papermill.execute_notebook(find(["03"])[0], tmp_path / "out.ipynb", {"rare_percentil": 15}, progress_bar=False)


@by_name
def test_the_cell_after_the_parameters_checks_them(notebook):
    cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    place = next(at for at, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", []))
    assert f'nb = start(globals(), "{notebook.name[:2]}")' in cells[place + 1].source


def test_a_changed_parameter_computes_only_what_depends_on_it(smoke):
    cache = smoke / "data/cache"

    def kept():
        return {path for pattern in ("tables/**/*.parquet", "mini-pythia/*.safetensors", "token-ids/*.safetensors")
                for path in cache.glob(pattern)}

    before = kept()
    done = command(smoke, "03", "--model", "mini-pythia", "-p", "positions", str(POSITIONS), "-p", "aggregate",
                   "abs_mean")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    made = sorted(path.name.rsplit("-", 1)[0] for path in kept() - before)
    assert made == ["phases", "prominence", "rank_curves"]  # no table of the text, losses, influences or passes


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
    for litter in ('"papermill"', '"start_time"', "injected-parameters", "Warning:", "it/s]", "/home/", "/root/",
                   str(paths.ROOT)):
        assert litter not in text
