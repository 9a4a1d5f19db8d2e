"""Files are whole or absent, damage is seen, and a table is computed exactly when something that decides it has
changed."""

import ast
import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from unittest.mock import Mock

import grimp
import numpy
import pandas as pd
import pytest
import torch
from damage import DAMAGE

from rare_token_neurons import files, keys, paths
from rare_token_neurons.tables import stage

TABLE = pd.DataFrame({"neuron": [0, 1, 2], "influence": [0.5, 0.25, 0.125], "name": ["a", "b", "c"]})


@pytest.fixture
def work():
    """A computation of TABLE that counts how often it is done."""
    return Mock(return_value=TABLE)


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- atomic files


def test_a_new_file_takes_its_name_when_it_is_finished(tmp_path):
    path = tmp_path / "deep" / "er" / "file.txt"
    with files.new_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists() and temporary.suffix == ".txt"
    assert path.read_text() == "new" and listing(path.parent) == ["file.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.fixture
def old(tmp_path):
    (tmp_path / "file.txt").write_text("old")
    return tmp_path / "file.txt"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file(old, error):
    with pytest.raises(error), files.new_file(old) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert old.read_text() == "old" and listing(old.parent) == ["file.txt"]


def test_a_new_folder_is_there_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "step0"
    with pytest.raises(ValueError), files.new_folder(path) as temporary:
        (temporary / "half").write_text("x")
        raise ValueError
    assert listing(tmp_path) == []
    with files.new_folder(path) as temporary:
        (temporary / "weights").write_text("w")
        (temporary / "weights").chmod(0o600)
        assert not path.exists()
    assert listing(tmp_path) == ["step0"] and listing(path) == ["weights"]
    assert path.stat().st_mode & 0o777 == 0o755 and (path / "weights").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_that_another_process_finished_is_kept_or_replaced_where_that_is_asked_for(tmp_path, replace):
    path = tmp_path / "step0"
    with files.new_folder(path, replace=replace) as temporary:
        (temporary / "late").write_text("late")
        path.mkdir()
        (path / "early").write_text("early")
    with suppress(ValueError), files.new_folder(path, replace=replace):
        raise ValueError
    assert listing(tmp_path) == ["step0"] and listing(path) == ["late" if replace else "early"]


def test_equal_tables_give_equal_bytes(tmp_path):
    for name in "ab":
        files.write_table(tmp_path / name, TABLE.copy())
    files.write_table(tmp_path / "c", TABLE.assign(influence=0.0))
    first, second, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == second != other


# ---- whatever the locale


def test_files_are_read_and_written_as_utf_8_whatever_the_locale(tmp_path):
    """In the C locale Python would read and write ASCII; every file that it opens without naming an encoding is an
    error."""
    (tmp_path / "own.txt").write_text("the caf\u00e9 \u2014 \u201ca whale\u201d", "utf-8")
    (tmp_path / "own.jsonl").write_text('{"text": "the caf\u00e9"}\n', "utf-8")
    (tmp_path / "own.csv").write_text("text\nthe caf\u00e9\n", "utf-8")
    code = f"""import locale, sys
from pathlib import Path
from rare_token_neurons import files, keys, pages, paths
from rare_token_neurons.models import checkpoints
from rare_token_neurons.runner import jobs, report
from rare_token_neurons.text import documents
folder = Path({str(tmp_path)!r})
assert locale.getpreferredencoding(False) != "UTF-8", locale.getpreferredencoding(False)
assert documents.documents(str(folder / "own.txt"))["text"][0] == "the caf\\u00e9 \\u2014 \\u201ca whale\\u201d"
for name in ("own.jsonl", "own.csv"):
    assert documents.documents(str(folder / name))["text"].tolist() == ["the caf\\u00e9"]
files.write_json(folder / "a.json", {{"caf\\u00e9": 1}})
assert files.read_json(folder / "a.json") == {{"caf\\u00e9": 1}}
files.write_json(folder / "b", {{}}), files.seal(folder / "b")
assert files.whole(folder / "b")
assert len(checkpoints.load_tokenizer("mini-pythia")) == 8192
assert len([jobs.source(path) for path in jobs.find()]) == 13 and all(make() for make, _ in pages.WRITTEN)
assert all(report.processor())"""
    package = re.escape(str(paths.ROOT / "src/rare_token_neurons"))
    done = subprocess.run([sys.executable, "-X", "warn_default_encoding", "-c", code], capture_output=True, text=True,
                          env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0"})
    assert done.returncode == 0, done.stderr
    assert not re.search(rf"{package}.*EncodingWarning", done.stderr), done.stderr


# ---- keys


@pytest.mark.parametrize("odd", [object(), {1: "a"}, {None: 1}, [{"a": {2, 3}}], paths.ROOT, b"bytes", torch.zeros(2),
                                 1j])
def test_only_plain_data_has_a_digest(odd):
    """Two objects that print alike would share a key; so would the names 1 and "1"."""
    with pytest.raises(TypeError, match="^A content key is made of plain data, not of "):
        keys.digest({"a": [odd]})


def test_the_digest_of_plain_data_is_what_it_was_in_any_order():
    """Keys of earlier caches and the names of folders hold."""
    content = {"b": [2, "x", (1.5, None, True)], "a": {"c": float("nan")}}
    assert keys.digest(content) == keys.digest(dict(reversed(content.items()))) == "9365d0be52664568"


def test_a_key_differs_when_any_part_differs():
    seed, weights, modules = {"seed": 0}, {"weights": "aa"}, ["text.rarity"]
    parts = [(seed, weights, modules), *((other, weights, modules)
                                         for other in ({"seed": 1}, {"seeds": 0}, {"seed": "0"})),
             *((seed, other, modules) for other in ({"weights": "ab"}, {"weight": "aa"})),
             (seed | weights, {}, modules), *((seed, weights, other)
                                              for other in (["text.rarity", "curve.phases"], ["curve.phases"]))]
    assert len({keys.key(*part) for part in parts}) == len(parts) == 9
    assert keys.key(*parts[0]) == keys.key({"seed": 0}, {"weights": "aa"}, ["text.rarity"])


# ---- sources


def forget():
    """What is kept of the sources that were there before."""
    for kept in (keys.makers, keys._names, keys.source_hash):
        kept.cache_clear()


def test_a_table_that_is_asked_for_by_its_name_is_that_of_the_file_that_makes_it():
    found = keys.imported("rows = nb.table('phases')\nnb.table(name)\nnb.table('unheard-of')")
    assert found == keys.code_behind("tables.influence") and keys.imported("import numpy, rare_token_neurons") == {}


ODD = "if x:\n    raise ValueError('odd') from None"


@pytest.mark.parametrize("code, other, alike", [
    ("X = '# no comment'", "X = '# another'", False),
    ("def two():\n    return 'twice'", "def two():\n    return 'Twice'", False),
    (ODD, ODD.replace("'odd'", "f'{x} is odd'"), True), (ODD, ODD.replace("ValueError", "KeyError"), False)])
def test_words_about_code_are_no_part_of_it(code, other, alike):
    assert (keys.statements(code) == keys.statements(other)) is alike


# ---- what changes the key of a table, counted over all of them


def hashes():
    """Of the source behind each table."""
    return {name: keys.source_hash(module) for name, module in keys.makers().items()}


PLAIN, BEFORE = keys.TEXTS, hashes()


@pytest.fixture
def renewed(monkeypatch):
    """A function: the tables that have another hash of the source behind them,
    were these sources (dict) the package's."""

    def renewed(edits):
        monkeypatch.setattr(keys, "TEXTS", PLAIN | edits)
        forget()
        after = hashes()
        assert BEFORE.keys() == after.keys() and len(BEFORE) > 40
        return {name for name in BEFORE if BEFORE[name] != after[name]}

    yield renewed
    forget()


class Reworded(ast.NodeTransformer):
    """Other docstrings, other words in errors."""

    def visit_Raise(self, node):
        if isinstance(node.exc, ast.Call):
            node.exc.args = [ast.Constant("other words")]
        return node

    def reworded(self, node):
        self.generic_visit(node)
        if ast.get_docstring(node) is not None:
            node.body[0].value = ast.Constant("Another docstring.")
        return node

    visit_Module = visit_ClassDef = visit_FunctionDef = reworded


ROOMS = ("text.", "models.", "ablation.", "statistics.", "curve.")
ARITHMETIC = sorted(name for name in keys.TEXTS if name.startswith(ROOMS) and name not in keys.DELIVERING)
MORE = "\n\nLATER = 1\n"


def test_docstrings_comments_and_the_words_of_errors_change_no_key_in_whatever_file(renewed):
    edits = {name: f"# a comment\n{ast.unparse(Reworded().visit(ast.parse(text)))}"
             for name, text in keys.TEXTS.items()}
    assert "other words" in edits["curve.nulls"] and "Another docstring." in edits["curve.nulls"]
    assert renewed(edits) == set()


def test_figures_runner_settings_and_files_change_no_key(renewed):
    rooms = ("figures", "runner", "__main__")
    names = [name for name in keys.TEXTS if name in keys.DELIVERING or name.split(".")[0] in rooms]
    assert {"files", "settings", "figures.axes", "runner.run"} <= set(names)
    edits = {name: keys.TEXTS[name] + "\nfrom rare_token_neurons.curve import calibration" + MORE for name in names}
    assert renewed(edits) == set()


@pytest.fixture(scope="module")
def graph():
    """Who imports whom, as import-linter sees it, without the modules that only deliver."""
    made = grimp.build_graph(keys.PACKAGE, cache_dir=None)
    for name in keys.DELIVERING:
        made.remove_module(f"{keys.PACKAGE}.{name}")
    return made


@pytest.mark.parametrize("edited", ARITHMETIC)
def test_a_statement_changes_the_keys_of_the_tables_that_stand_on_its_file_and_of_no_other(renewed, graph, edited):
    above = {name.removeprefix(f"{keys.PACKAGE}.")
             for name in graph.find_downstream_modules(f"{keys.PACKAGE}.{edited}")}
    found = renewed({edited: keys.TEXTS[edited] + MORE})
    assert found == {name for name, module in keys.makers().items() if module in above}


@pytest.mark.parametrize("library", ["jupyterlab", "seaborn", "tqdm", "scipy", "torch"])
def test_only_a_numerical_library_changes_keys(monkeypatch, library):
    assert keys.libraries()["numpy"] == numpy.__version__
    before, version = keys.key({}, {}, ["curve.phases"]), metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0" if name == library else version(name))
    keys.libraries.cache_clear()
    after = keys.key({}, {}, ["curve.phases"])
    keys.libraries.cache_clear()
    assert (after != before) == (library in ("scipy", "torch"))


# ---- stages


ZERO = TABLE.assign(influence=0.0)


def run(places, work, *, settings=None, inputs=None, modules=("curve.phases",), recompute="changed", name="influence"):
    key = keys.key(settings or {"seed": 0}, inputs or {"weights": "aa"}, list(modules))
    return stage.table_at(shown(places, name), key, work, recompute=recompute)


def shown(places, name="influence"):
    return places / "results" / "model" / f"{name}.parquet"


def test_a_stage_computes_once_even_where_a_committed_table_lies(places, work):
    """In a fresh clone the tables are there and the cache is empty: everything is computed."""
    files.write_table(shown(places), ZERO)
    for _ in range(3):
        pd.testing.assert_frame_equal(run(places, work), TABLE)
    assert work.call_count == 1
    pd.testing.assert_frame_equal(pd.read_parquet(shown(places)), TABLE)


@pytest.mark.parametrize("change", [{"settings": {"seed": 1}}, {"inputs": {"weights": "ab"}},
                                    {"modules": ("text.rarity",)}])
def test_a_stage_computes_again_when_what_decides_it_changes_and_both_results_are_kept(places, work, change):
    run(places, work)
    pd.testing.assert_frame_equal(run(places, lambda: ZERO, **change), ZERO)
    pd.testing.assert_frame_equal(run(places, work), TABLE)
    assert work.call_count == 1
    pd.testing.assert_frame_equal(pd.read_parquet(shown(places)), TABLE)


def test_two_tables_of_one_key_do_not_meet(places, work):
    run(places, work)
    pd.testing.assert_frame_equal(run(places, lambda: ZERO, name="losses"), ZERO)


def test_recompute_always_computes_every_time_and_never_reads_the_table_as_it_is(places, work):
    with pytest.raises(FileNotFoundError,
                       match=r"^There is no table influence.parquet to draw; run with recompute=changed"):
        run(places, work, recompute="never")
    for _ in range(2):
        run(places, work, recompute="always")
    pd.testing.assert_frame_equal(run(places, work, settings={"seed": 7}, recompute="never"), TABLE)
    assert work.call_count == 2


@pytest.mark.parametrize("columns, expected", [
    ({"revision": ["step0", "step1", "step2"]}, ["", "step1 known", "step2 same"]),
    ({"step": [2, 0, 2]}, ["step2 same", "", "step2 same"]),
    ({"first_step": [0, 1], "second_step": [1, 2]}, ["step1 known", "step1 known; step2 same"]),
    ({"neuron": [5, 6]}, ["step1 known; step2 same"] * 2)])
def test_the_rows_of_a_flagged_checkpoint_say_so_and_other_tables_have_no_such_column(columns, expected):
    table = pd.DataFrame(columns).astype({name: "Int64" for name in columns if name.endswith("step")})
    made = stage._cautioned(table, {"step1": "step1 known", "step2": "step2 same"})
    assert made["caution"].tolist() == expected and made.drop(columns="caution").equals(table)
    assert stage._cautioned(table, {}) is table


def test_a_stage_that_fails_changes_no_file(places, work):
    run(places, work)
    before = contents(places)
    with pytest.raises(ValueError, match="no rare position"):
        run(places, Mock(side_effect=ValueError("no rare position")), settings={"seed": 1})
    assert contents(places) == before


@pytest.mark.parametrize("ending, damage", [("parquet", damage) for damage in DAMAGE]
                         + [("sha256", damage) for damage in (*DAMAGE, os.remove)])
def test_a_damaged_table_is_named_and_made_again_and_a_damaged_seal_costs_the_work_again(
        places, work, capsys, ending, damage):
    run(places, work)
    cached = next((places / "cache").rglob(f"*.{ending}"))
    damage(cached)
    for _ in range(2):
        pd.testing.assert_frame_equal(run(places, work), TABLE)
        assert work.call_count == 2
    if ending == "parquet":
        assert capsys.readouterr().out == f"{cached.name} is damaged and is made again.\n"


# ---- tensors


@pytest.mark.parametrize("damage", [None, *DAMAGE])
def test_tensors_are_kept_by_key_and_damage_is_seen(places, capsys, damage):
    content = {"activations": torch.randn(3, 4), "ids": torch.arange(5)}
    work = Mock(return_value=content)
    stage.tensors("model", "key", work)
    if damage:
        damage(places / "cache" / "model" / "key.safetensors")
    found = stage.tensors("model", "key", work)
    assert work.call_count == 1 + bool(damage)
    assert ("key.safetensors is damaged and is made again." in capsys.readouterr().out) is bool(damage)
    assert all(torch.equal(found[name], content[name]) and found[name].dtype == content[name].dtype for name in content)
    stage.tensors("model", "another key", work)
    stage.tensors("model", "key", work, recompute="always")
    assert work.call_count == 3 + bool(damage)


# ---- accounts


def test_the_account_of_a_notebook_names_seconds_tables_and_figures(places, work):
    with stage.clock("forward"):
        pass
    with pytest.raises(ValueError), stage.clock("forward"):
        raise ValueError
    run(places, work)
    stage.note_figure(paths.FIGURES / "mini-pythia" / "fig3_three_phases.png")
    stage.finish("model", "03")
    account = json.loads((places / "cache" / "runs" / "model" / "03.account.json").read_text())
    assert list(account["seconds"]) == ["forward"] and account["seconds"]["forward"] >= 0
    assert account["tables"] == ["influence.parquet"]
    assert account["figures"] == ["figures/mini-pythia/fig3_three_phases.png"]


def test_places_are_shown_without_the_machine():
    assert paths.shown(paths.RESULTS / "mini-pythia" / "x.parquet") == "data/results/mini-pythia/x.parquet"
    assert paths.shown("/somewhere/else/x.parquet") == "x.parquet"
