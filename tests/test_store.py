"""Files are whole or absent, damage is seen, and a stage computes exactly when something that decides it has changed."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
import torch

from rare_token_neurons import files, keys, paths
from rare_token_neurons.tables import stage

TABLE = pd.DataFrame({"neuron": [0, 1, 2], "influence": [0.5, 0.25, 0.125], "name": ["a", "b", "c"]})


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository of its own: nothing is written to the real cache."""
    monkeypatch.setattr(stage, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(stage, "RUNS", tmp_path / "cache" / "runs")
    monkeypatch.setattr(stage, "_written", {"tables": [], "figures": []})
    monkeypatch.setattr(stage, "_seconds", {})
    return tmp_path


class Work:
    """A computation that counts how often it is done."""

    def __init__(self, result):
        self.result, self.calls = result, 0

    def __call__(self):
        self.calls += 1
        return self.result


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- one process at a time


def test_a_stage_that_two_want_at_once_is_computed_once(root):
    calls = []

    def slow():
        calls.append(1)
        time.sleep(0.3)
        return TABLE

    with ThreadPoolExecutor(2) as pool:  # each opens the lock for itself, as a process does
        tables = list(pool.map(lambda _: stage.table_at(root / "results/model/influence.parquet", "key", slow), range(2)))
    assert len(calls) == 1 and all(table.equals(TABLE) for table in tables)
    assert not list(root.rglob(".lock-*"))


def test_a_lock_ends_with_its_process(root):
    code = "import os\nfrom rare_token_neurons import store\nwith store.lock('file'):\n    os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == -signal.SIGKILL
    assert (root / ".lock-file").exists()
    with files.lock(root / "file"):
        assert (root / ".lock-file").exists()
    assert not (root / ".lock-file").exists()


# ---- atomic files


def test_a_new_file_takes_its_name_when_it_is_finished(tmp_path):
    path = tmp_path / "deep" / "er" / "file.txt"
    with files.new_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists() and temporary.suffix == ".txt"
    assert path.read_text() == "new" and listing(path.parent) == ["file.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error), files.new_file(path) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert path.read_text() == "old" and listing(tmp_path) == ["file.txt"]


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "table.parquet"
    files.write_table(path, TABLE)
    with pytest.raises(Exception, match="(?i)mixed|convert|expected"):
        files.write_table(path, pd.DataFrame({"mixed": [1, "one", object()]}))
    pd.testing.assert_frame_equal(pd.read_parquet(path), TABLE)
    assert listing(tmp_path) == ["table.parquet"]


def test_a_killed_process_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    script = textwrap.dedent(f"""
        import os, signal
        from rare_token_neurons import store
        with store.new_file({str(path)!r}) as temporary:
            temporary.write_text("half of the n")
            os.kill(os.getpid(), signal.SIGKILL)""")
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert path.read_text() == "old"


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


def test_a_folder_that_another_process_finished_is_kept(tmp_path):
    path = tmp_path / "step0"
    with files.new_folder(path) as temporary:
        (temporary / "late").write_text("late")
        path.mkdir()
        (path / "early").write_text("early")
    assert listing(tmp_path) == ["step0"] and listing(path) == ["early"]


def test_or_replaced_where_that_is_asked_for(tmp_path):
    path = tmp_path / "step0"
    for content in ("old", "new"):
        with files.new_folder(path, replace=True) as temporary:
            (temporary / content).write_text(content)
    with pytest.raises(ValueError), files.new_folder(path, replace=True) as temporary:
        raise ValueError
    assert listing(tmp_path) == ["step0"] and listing(path) == ["new"]


def test_equal_tables_give_equal_bytes(tmp_path):
    for name in "ab":
        files.write_table(tmp_path / name, TABLE.copy())
    files.write_table(tmp_path / "c", TABLE.assign(influence=0.0))
    first, second, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == second != other


def test_json_is_sorted_and_ends_with_a_line(tmp_path):
    files.write_json(tmp_path / "x.json", {"b": 1, "a": [1.5, None]})
    assert (tmp_path / "x.json").read_text() == '{\n "a": [\n  1.5,\n  null\n ],\n "b": 1\n}\n'


# ---- keys


def test_a_digest_is_of_the_content_not_of_the_order():
    assert keys.digest({"a": 1, "b": [2, "x"]}) == keys.digest({"b": [2, "x"], "a": 1})
    assert len(keys.digest({})) == 16 and int(keys.digest({}), 16) >= 0


@pytest.mark.parametrize("odd", [object(), {1: "a"}, {None: 1}, [{"a": {2, 3}}], paths.ROOT, b"bytes", torch.zeros(2), 1j])
def test_only_plain_data_has_a_digest(odd):
    """Two objects that print alike would share a key; so would the names 1 and "1"."""
    with pytest.raises(TypeError, match="^A content key is made of plain data, not of "):
        keys.digest({"a": [odd]})


def test_the_digest_of_plain_data_is_what_it_was():
    """Keys of earlier caches and the names of folders hold."""
    assert keys.digest({"b": [2, "x", (1.5, None, True)], "a": {"c": float("nan")}}) == "9365d0be52664568"


def test_a_key_differs_when_any_part_differs():
    parts = [({"seed": 0}, {"weights": "aa"}, ["text"]), ({"seed": 1}, {"weights": "aa"}, ["text"]),
             ({"seeds": 0}, {"weights": "aa"}, ["text"]), ({"seed": 0}, {"weights": "ab"}, ["text"]),
             ({"seed": 0}, {"weight": "aa"}, ["text"]), ({"seed": 0}, {"weights": "aa"}, ["text", "phases"]),
             ({"seed": 0}, {"weights": "aa"}, ["phases"]), ({"seed": "0"}, {"weights": "aa"}, ["text"]),
             ({"seed": 0, "weights": "aa"}, {}, ["text"])]
    assert len({keys.key(*part) for part in parts}) == len(parts)
    assert keys.key(*parts[0]) == keys.key({"seed": 0}, {"weights": "aa"}, ["text"])


# ---- stages


def run(root, work, *, settings=None, inputs=None, modules=("phases",), recompute="changed", name="influence"):
    key = keys.key(settings or {"seed": 0}, inputs or {"weights": "aa"}, list(modules))
    return stage.table_at(root / "results" / "model" / f"{name}.parquet", key, work, recompute=recompute)


def test_a_stage_computes_once(root):
    work = Work(TABLE)
    for _ in range(3):
        pd.testing.assert_frame_equal(run(root, work), TABLE)
    assert work.calls == 1
    pd.testing.assert_frame_equal(pd.read_parquet(root / "results" / "model" / "influence.parquet"), TABLE)


@pytest.mark.parametrize("change", [{"settings": {"seed": 1}}, {"inputs": {"weights": "ab"}}, {"modules": ("text",)}])
def test_a_stage_computes_again_when_what_decides_it_changes_and_both_results_are_kept(root, change):
    first, second = Work(TABLE), Work(TABLE.assign(influence=0.0))
    run(root, first)
    assert run(root, second, **change)["influence"].eq(0.0).all()
    pd.testing.assert_frame_equal(run(root, first), TABLE)
    assert (first.calls, second.calls) == (1, 1)
    pd.testing.assert_frame_equal(pd.read_parquet(root / "results" / "model" / "influence.parquet"), TABLE)


def test_a_stage_computes_again_when_the_source_or_a_library_changes(root, monkeypatch):
    work = Work(TABLE)
    run(root, work)
    with monkeypatch.context() as patch:
        patch.setattr(keys, "source_hash", lambda module: "another source")
        run(root, work)
    assert work.calls == 2
    monkeypatch.setattr(keys, "libraries", lambda: {"scipy": "another version"})
    run(root, work)
    assert work.calls == 3


def test_a_committed_table_is_never_the_input(root):
    """In a fresh clone the tables are there and the cache is empty: everything is computed."""
    files.write_table(root / "results" / "model" / "influence.parquet", TABLE.assign(influence=9.0))
    work = Work(TABLE)
    pd.testing.assert_frame_equal(run(root, work), TABLE)
    assert work.calls == 1


def test_two_tables_of_one_key_do_not_meet(root):
    run(root, Work(TABLE))
    assert run(root, Work(TABLE.assign(influence=0.0)), name="losses")["influence"].eq(0.0).all()


def test_recompute_always_computes_every_time(root):
    work = Work(TABLE)
    for _ in range(2):
        run(root, work, recompute="always")
    assert work.calls == 2


def test_recompute_never_reads_the_table_as_it_is(root):
    work = Work(TABLE)
    with pytest.raises(FileNotFoundError, match=r"^There is no table influence.parquet to draw; run with recompute=changed\.$"):
        run(root, work, recompute="never")
    run(root, work)
    pd.testing.assert_frame_equal(run(root, work, settings={"seed": 7}, recompute="never"), TABLE)
    assert work.calls == 1


def test_a_stage_that_fails_changes_no_file(root):
    run(root, Work(TABLE))
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}

    def fail():
        raise ValueError("no rare position")

    with pytest.raises(ValueError, match="no rare position"):
        run(root, fail, settings={"seed": 1})
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


DAMAGE = [truncate, flip, lambda path: path.write_bytes(b"")]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_table_in_the_cache_is_named_and_made_again(root, capsys, damage):
    work = Work(TABLE)
    run(root, work)
    cached = next((root / "cache").rglob("*.parquet"))
    damage(cached)
    pd.testing.assert_frame_equal(run(root, work), TABLE)
    assert work.calls == 2
    assert capsys.readouterr().out == f"{cached.name} is damaged and is made again.\n"
    run(root, work)
    assert work.calls == 2


@pytest.mark.parametrize("damage", [*DAMAGE, os.remove])
def test_a_damaged_or_missing_seal_only_costs_the_work_again(root, damage):
    work = Work(TABLE)
    run(root, work)
    damage(next((root / "cache").rglob("*.sha256")))
    pd.testing.assert_frame_equal(run(root, work), TABLE)
    run(root, work)
    assert work.calls == 2


# ---- tensors


@pytest.mark.parametrize("damage", [None, *DAMAGE])
def test_tensors_are_kept_by_key_and_damage_is_seen(root, capsys, damage):
    content = {"activations": torch.randn(3, 4), "ids": torch.arange(5)}
    work = Work(content)
    stage.tensors("model", "key", work)
    kept = root / "cache" / "model" / "key.safetensors"
    if damage:
        damage(kept)
    found = stage.tensors("model", "key", work)
    assert work.calls == (2 if damage else 1)
    assert ("key.safetensors is damaged and is made again." in capsys.readouterr().out) is bool(damage)
    assert all(torch.equal(found[name], content[name]) and found[name].dtype == content[name].dtype for name in content)
    stage.tensors("model", "another key", work)
    stage.tensors("model", "key", work, recompute="always")
    assert work.calls == (4 if damage else 3)


# ---- accounts


def test_the_account_of_a_notebook_names_seconds_tables_and_figures(root):
    with stage.clock("forward"):
        pass
    with pytest.raises(ValueError), stage.clock("forward"):
        raise ValueError
    run(root, Work(TABLE))
    stage.note_figure(paths.FIGURES / "mini-pythia" / "fig3_three_phases.png")
    stage.finish("model", "03")
    account = json.loads((root / "cache" / "runs" / "model" / "03.account.json").read_text())
    assert list(account["seconds"]) == ["forward"] and account["seconds"]["forward"] >= 0
    assert account["tables"] == ["influence.parquet"]
    assert account["figures"] == ["figures/mini-pythia/fig3_three_phases.png"]


def test_places_are_shown_without_the_machine():
    assert paths.shown(paths.RESULTS / "mini-pythia" / "x.parquet") == "data/results/mini-pythia/x.parquet"
    assert paths.shown("/somewhere/else/x.parquet") == "x.parquet"
