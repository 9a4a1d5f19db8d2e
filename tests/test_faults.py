"""What breaks in long runs really breaks here: processes are killed, disks fill up, files are damaged,
two runs collide."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from damage import DAMAGE
from safetensors.torch import save_file
from small_notebooks import begin, copy_package, wait_for, write

from rare_token_neurons import files, packages, paths, settings as parameters
from rare_token_neurons.embedded.mini_pythia import train as training
from rare_token_neurons.figures import axes
from rare_token_neurons.models import gguf
from rare_token_neurons.runner import jobs as runner_jobs, run
from rare_token_neurons.tables import checkpoints as passes, influence as influences, rare_tokens, stage

HERE = Path(__file__).parent
TABLE = pd.DataFrame({"neuron": np.arange(50_000), "influence": np.random.default_rng(0).random(50_000)})


@pytest.fixture
def cache(places):
    return places / "cache"


# ---- a process is killed, or works beside others


def lines(mode, folder):
    """What tests/helpers/killed.py saw."""
    done = subprocess.run([sys.executable, HERE / "helpers" / "killed.py", mode, folder], capture_output=True,
                          text=True, env=os.environ | {"PYTHONPATH": str(HERE.parent / "src")})
    assert done.returncode == 0, done.stderr
    assert ("No locks where" in done.stderr) == (mode == "unlocked")
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_process_killed_at_any_moment_loses_and_repeats_nothing_that_was_finished(tmp_path):
    seen = pd.DataFrame(lines("kill", tmp_path))
    assert seen["kind"].value_counts().to_dict() == {"compute": 4, "half": 9, "renamed": 9}
    assert (seen["died"] == -signal.SIGKILL).all() and (seen["again"] == 0).all() and seen["equal"].all()
    assert not seen["repeated"].map(len).any() and (seen["made"] == seen["open"]).all()


@pytest.mark.parametrize("mode", ["race", "unlocked"])
def test_processes_that_do_the_same_at_once_end_alike(tmp_path, mode):
    """With locks each table is computed once; on a file system without them some work is done again,
    and is as whole."""
    *results, end = lines(mode, tmp_path)
    assert len(results) == 4 and len({line["result"] for line in results}) == 1
    assert end["codes"] == [0] * 4 and end["equal"]
    made = sum(name != "folder" for name in end["trace"])
    assert made == 3 if mode == "race" else 3 < made <= 12


STAGES = """
import os, time
import pandas as pd
from rare_token_neurons import keys, settings as parameters
from rare_token_neurons.tables import stage
settings = parameters.check(globals() | {"__file__": 0}, ["model", "steps", "seed"])

def made(name):
    with open("trace.txt", "a") as file:
        file.write(f"{name} {seed} {os.getpid()}\\n")
    while name == "second" and not os.path.exists("go"):
        time.sleep(0.05)
    return pd.DataFrame({"seed": [seed] * 1000})

for name in ("first", "second"):
    place = settings.results / f"{name}.parquet"
    stage.table_at(place, keys.key({"seed": seed}, {}, ["tables.stage"]), lambda: made(name))
stage.finish(settings.folder, "01")
"""


def traced(root):
    """Rows (stage, seed, process) of what was computed."""
    path = root / "trace.txt"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A copy of the source with one notebook of two stages, the second of which waits for the file `go`."""
    root = tmp_path_factory.mktemp("repository")
    copy_package(root)
    write(root, "01_one", STAGES)
    return root


def alive(process):
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    return True


def test_two_runs_at_once_and_a_run_of_another_setting_that_is_killed_leave_whole_tables(repository):
    """Two runs of one notebook compute its stages once. Killed in the second stage of another setting, a run leaves an
    orphaned kernel: it ends by itself, and the same command, begun at once, waits for it and goes on from there."""
    (repository / "go").touch()
    both = [begin(repository, "run"), begin(repository, "run")]
    said = [process.communicate(timeout=180) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert [row[:2] for row in traced(repository)] == [["first", "0"], ["second", "0"]]
    assert sum("waits for it" in err for _, err in said) == 1

    results = repository / "data/results/mini-pythia"
    before = {path: path.read_bytes() for path in results.glob("*.parquet")}
    (repository / "go").unlink()
    first = begin(repository, "run", "-p", "seed", "1")
    wait_for(lambda: len(traced(repository)) == 4)
    first.kill()
    first.communicate()
    second = begin(repository, "run", "-p", "seed", "1")
    kernel = traced(repository)[-1][2]
    wait_for(lambda: not alive(kernel))  # nobody is there to take its result
    (repository / "go").touch()
    out, err = second.communicate(timeout=180)
    assert second.returncode == 0, err
    assert [row[:2] for row in traced(repository)[2:]] == [["first", "1"], ["second", "1"], ["second", "1"]]
    assert len(before) == 2 and before == {path: path.read_bytes() for path in results.glob("*.parquet")}
    for folder, seed in ((results, 0), (results / "seed=1", 1)):
        assert all(set(pd.read_parquet(folder / f"{name}.parquet")["seed"]) == {seed} for name in ("first", "second"))


@pytest.mark.parametrize("one, other", [
    ({"model": "a/b"}, {"model": "a--b"}), ({"model": "/a/b"}, {"model": "a/b"}), ({"steps": (1, 2)}, {"steps": (12,)}),
    ({"text": "x,seed=3"}, {"text": "x", "seed": 3}), ({"text": "a/b.txt"}, {"text": "a-b.txt"}),
    ({"text": "a b.txt"}, {"text": "ab.txt"}), ({"text": "x" * 200}, {"text": "x" * 201})])
def test_no_two_settings_share_a_folder(one, other):
    assert parameters.Settings(**one).folder != parameters.Settings(**other).folder


def test_what_killed_processes_left_is_swept_after_a_day(tree):
    old, young = tree / "data/results/m", tree / "figures/m"
    for folder in (old, young):
        (folder / ".new-folder").mkdir(parents=True)
        for name in (".new-a.parquet", ".lock-b.parquet", "whole.parquet", ".new-folder/half"):
            (folder / name).write_text("x")
    for path in (*old.rglob("*"), tree / "data/results/m/.new-folder"):
        os.utime(path, (time.time() - 2 * files.DAY,) * 2)
    run.run([])
    assert [path.name for path in old.rglob("*")] == ["whole.parquet"]
    assert len(list(young.rglob("*"))) == 5


# ---- the disk is full


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", place], capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here: that needs the rights of root")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def weights(path):
    with files.new_folder(path) as folder:
        save_file({"w": torch.zeros(500_000)}, folder / "model.safetensors")


def figure(path):
    drawn, ax = plt.subplots()
    ax.imshow(np.random.default_rng(0).random((900, 900)))
    axes.save(drawn, path.parent, path.name)
    plt.close(drawn)


WRITERS = {
    "table": lambda path: files.write_table(path, TABLE.assign(b=TABLE["influence"][::-1].to_numpy())),
    "cached table": lambda path: stage.table_at(path, "key",
                                                lambda: TABLE.assign(b=TABLE["influence"][::-1].to_numpy())),
    "tensors": lambda path: stage.tensors("model", "key", lambda: {"a": torch.zeros(500_000)}),
    "folder": weights, "figure": figure,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_one_sentence_and_costs_nothing(small_disk, monkeypatch, kind):
    monkeypatch.setattr(stage, "CACHE", small_disk / "cache")
    small, calls = TABLE.head(10), []

    def kept():
        return stage.table_at(small_disk / "small.parquet", "key", lambda: calls.append(1) or small)

    kept()
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 600_000)
    before = {path: path.read_bytes() for path in small_disk.rglob("*") if path.is_file()}
    with pytest.raises(OSError,
                       match=r"No space left on the disk for .*; what was finished is kept, and the same command"):
        WRITERS[kind](small_disk / "made")
    assert {path: path.read_bytes() for path in small_disk.rglob("*") if path.is_file()} == before
    pd.testing.assert_frame_equal(kept(), small)
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    WRITERS[kind](small_disk / "made")
    kept()
    assert len(calls) == 1


def test_a_run_on_a_full_disk_ends_with_a_sentence_and_the_same_command_goes_on(small_disk, tree, capsys):
    """Neither the executed copy nor a record can be written."""
    write(tree, "01_one")
    job = runner_jobs.plan()[0]
    (tree / "data").symlink_to(small_disk)
    job.executed.parent.mkdir(parents=True)
    subprocess.run(["dd", "if=/dev/zero", f"of={small_disk / 'rest'}", "bs=1k"], capture_output=True)
    assert run.main([]) == 1
    assert capsys.readouterr().err.strip().startswith("01_one could not be run to its end: [Errno 28] No space left on")
    (small_disk / "rest").unlink()
    assert run.main([]) == 0 and runner_jobs.finished(job)


# ---- files are damaged


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_table_of_the_repository_is_named_where_it_is_drawn_from(tmp_path, damage):
    path = tmp_path / "influence.parquet"
    files.write_table(path, TABLE)
    damage(path)
    with pytest.raises(ValueError, match=r"^The table influence.parquet is damaged \(.*\); take it from git again"):
        stage.table_at(path, "key", None, recompute="never")


def test_no_flipped_byte_of_a_table_goes_unseen(tmp_path):
    """Whatever byte is flipped: the table is read as it was, or it is named. (Without checksums of its pages,
    it is not.)"""
    path = tmp_path / "small.parquet"
    table = TABLE.head(40).assign(name=[f"neuron {row}" for row in range(40)])
    files.write_table(path, table)
    whole, named = path.read_bytes(), 0
    for place in range(0, len(whole), 13):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            found = files.read_table(path)
        except ValueError:
            named += 1
            continue
        assert not {"neuron", "influence", "name"} <= set(found) or found[list(table)].equals(table), place
    assert named > len(whole) / 13 / 3


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_token_ids_are_named_and_made_again(cache, capsys, tmp_path, damage):
    own = tmp_path / "own.txt"
    own.write_text("A whale is a large animal of the sea. " * 200)
    rare_tokens._corpus.cache_clear()
    ids = rare_tokens._corpus("mini-pythia", str(own))[2]
    kept = next((cache / "token-ids").glob("*.safetensors"))
    damage(kept)
    rare_tokens._corpus.cache_clear()
    again = rare_tokens._corpus("mini-pythia", str(own))[2]
    rare_tokens._corpus.cache_clear()
    assert len(ids) == len(again) and all(map(np.array_equal, ids, again))
    assert f"{kept.name} is damaged and is made again." in capsys.readouterr().out


SPOIL = [*DAMAGE, lambda path: path.write_text("[]"), lambda path: path.write_text('{"key": 1}'),
         lambda path: path.write_bytes(b"\xff\xfe{"), os.remove]


@pytest.mark.parametrize("name", ["record", "executed"])
@pytest.mark.parametrize("damage", SPOIL)
def test_a_damaged_record_or_executed_copy_runs_the_notebook_again(tree, name, damage):
    write(tree, "01_one")
    job = runner_jobs.plan()[0]
    job.executed.parent.mkdir(parents=True)
    shutil.copyfile(job.notebook, job.executed)
    outputs = {paths.shown(job.executed): files.sha256(job.executed)}
    files.write_json(job.record, dict.fromkeys(runner_jobs.RECORDED) | {"key": job.key, "outputs": outputs, "read": ""})
    assert runner_jobs.finished(job)
    damage(getattr(job, name))
    assert runner_jobs.finished(job) is None


def test_a_damaged_account_is_one_sentence(tree, capsys):
    account = "data/cache/runs/mini-pythia/01.account.json"
    write(tree, "01_one", f'with open("{account}", "w") as file:\n    file.write("{{")')
    assert run.main([]) == 1
    assert capsys.readouterr().err.strip() == f"{account} is damaged; the same command runs 01_one again."
    assert not runner_jobs.plan()[0].record.exists()


@pytest.mark.parametrize("damage", [*DAMAGE, os.remove])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", gguf.SEAL])
def test_smollm2s_folder_is_made_again_where_it_is_damaged(tmp_path, monkeypatch, capsys, name, damage):
    made = []

    def make(model, target):  # the real one fetches 90 MB
        made.append(1)
        (target / "model.safetensors").write_bytes(b"weights" * 100)
        (target / "tokenizer.json").write_text("{}")

    def times_made():
        gguf.of_package.cache_clear()
        gguf.of_package("smollm2")
        return len(made)

    monkeypatch.setattr(packages, "CACHE", tmp_path)
    monkeypatch.setattr(gguf, "_make", make)
    assert times_made() == times_made() == 1 and not capsys.readouterr().out
    folder = packages.folder("smollm2")
    before = files.read_json(folder / gguf.SEAL)
    damage(folder / name)
    assert times_made() == 2 and capsys.readouterr().out == f"{folder.name} is damaged and is made again.\n"
    assert times_made() == 2 and files.read_json(folder / gguf.SEAL) == before
    gguf.of_package.cache_clear()


# ---- a checkpoint disappears


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """A small model with three checkpoints, and a text of its own."""
    root = tmp_path_factory.mktemp("suite")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(paths.MINI_PYTHIA / name, root / name)
    for step in (0, 16, 64):
        training.save_checkpoint(training.pythia(step, width=32, layers=2, heads=2, mlp=64), root / f"step{step}")
    entries = pd.read_json(paths.MINI_PILE / "devil.jsonl.xz", lines=True)["text"]
    (root / "own.txt").write_text("\n\n".join(entries.head(60)))
    return root


def test_a_checkpoint_that_disappears_is_named_and_what_was_finished_is_kept(suite, cache):
    settings = parameters.Settings(model=str(suite), text=str(suite / "own.txt"), positions=20, steps=(0, 16, 64))
    names = passes.revisions(settings, "all")
    assert names == ["step0", "step16", "step64"]

    def measure():
        for name in names:
            yield influences.influence_sums(settings, name, "rare")

    def kept():
        return {path: path.stat().st_mtime_ns for path in (cache / settings.slug).glob("*.safetensors")}

    loop = measure()
    next(loop)
    before = kept()
    away = shutil.move(suite / "step16", cache.parent / "away")
    with pytest.raises(FileNotFoundError, match=r"has no revision 'step16'; it has step0, step64\.$"):
        next(loop)
    with pytest.raises(FileNotFoundError, match="step16"):
        passes.EVERY.inputs(parameters.Settings(model=str(suite), text=settings.text, steps=(0, 16)))
    assert len(before) == 2 and kept() == before  # the capture at the positions, and the sums
    shutil.move(away, suite / "step16")
    assert [len(sums.mean_abs) for sums in measure()] == [64] * 3
    assert kept().items() > before.items()
    for cached in (passes.subject, passes.captured):
        cached.cache_clear()
    rare_tokens._corpus.cache_clear()
    rare_tokens._chosen.cache_clear()
