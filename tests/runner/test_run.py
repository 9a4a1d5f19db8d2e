"""The runner, on small notebooks made here: one behaviour a notebook."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
from hubserver import Hub
from huggingface_hub import close_session, constants
from small_notebooks import PARAMETERS, begin, copy_package, marks, wait_for, write

from rare_token_neurons import files, keys, packages, paths
from rare_token_neurons.__main__ import COMMANDS, INNER
from rare_token_neurons.models import hub as client
from rare_token_neurons.runner import jobs, report, run

ACCOUNT = """import json, pathlib
folder = pathlib.Path("data/results/mini-pythia"); folder.mkdir(parents=True, exist_ok=True)
(folder / "fig1_made.png").write_text("picture")
account = {"seconds": {"forward": 1.51, "ablation": 1.52}, "tables": [], "figures": [str(folder / "fig1_made.png")]}
pathlib.Path("data/cache/runs/mini-pythia/01.account.json").write_text(json.dumps(account))"""


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["-p", "sead", "1"], "did you mean seed?"),
    (["-p", "seed", "one"], "seed is 'one'; it must be a whole number"),
    (["-y", "seed: 2020-01-01"], "seed is no parameter with a plain value"),
    (["-p", "__class__", "x"], "__class__ is no parameter"),
    (["-y", "[1, 2]"], "-y takes YAML such as"),
    (["-y", "1: 2"], "-y takes YAML such as"),
    (["-y", "seed: {"], "-y takes YAML such as"),
    (["--model", "a", "-p", "model", "b"], "model is given twice"),
    (["--model", " , "], None),
    (["07"], "There is no notebook 07; there are: 01, 02."),
    (["../01"], "There is no notebook ../01"),
    (["--in-place", "-p", "seed", "1"], "--in-place takes no parameters"),
])
def test_a_wrong_argument_gives_one_sentence_and_starts_nothing(tree, capsys, arguments, sentence):
    for name in ("01_one", "02_two"):
        write(tree, name)
    code = run.main([*arguments, "--dry-run"] if sentence is None else arguments)
    shown = capsys.readouterr()
    assert code == (0 if sentence is None else 2)
    assert sentence is None or (sentence in shown.err and len(shown.err.strip().splitlines()) == 1)
    assert not marks(tree) and not (tree / "data").exists()


def test_a_notebook_without_parameters_or_with_a_computed_default_is_named(tree):
    write(tree, "01_bare", declared="")
    with pytest.raises(ValueError, match="01_bare.ipynb has no cell tagged parameters"):
        jobs.plan(["1"])
    write(tree, "01_bare", declared="seed: int = 1 + 1")
    with pytest.raises(ValueError, match="a parameter is a line `name: type = literal`"):
        jobs.plan(["1"])


def test_lists_come_as_text_or_as_lists_and_defaults_are_not_injected(tree):
    write(tree, "01_one")
    given = ([("steps", "[16, 0]")], []), ([], ["steps: [0, 16]"])
    as_text, as_list = (jobs.plan(values=run._values(*each)) for each in given)
    assert as_text[0].values == as_list[0].values == {"steps": [0, 16]}
    assert as_text[0].key == as_list[0].key
    assert as_text[0].folder.startswith("mini-pythia/") and "steps" in as_text[0].folder
    assert jobs.plan(models=["mini-pythia"], values={"seed": "0"})[0].values == {}


def test_a_parameter_of_one_notebook_is_left_to_it(tree):
    write(tree, "01_one")
    write(tree, "02_two", declared=PARAMETERS + "\npositions: int = 50")
    planned = jobs.plan(values={"positions": "60"})
    assert [job.values for job in planned] == [{}, {"positions": 60}]
    assert [job.missing for job in planned] == [("positions",), ()]
    with pytest.raises(ValueError, match="There is no parameter 'positions'"):
        jobs.plan(["01"], values={"positions": "60"})


def test_models_are_the_outer_loop_and_a_notebook_about_all_runs_once(tree):
    write(tree, "01_one")
    write(tree, "02_all", declared="seed: int = 0")
    planned = jobs.plan(models=["mini-pythia", "smollm2", "mini-pythia"])
    assert [(job.name, job.folder) for job in planned] == [
        ("01_one", "mini-pythia"), ("01_one", "smollm2"), ("02_all", "all-models")]
    assert jobs.plan(values={"seed": 3})[-1].folder == "all-models/seed=3"


def test_a_notebook_about_all_models_runs_again_when_a_table_of_one_changes_or_comes(tree):
    write(tree, "02_all", declared="seed: int = 0\nsteps: list = []")
    assert run.main([]) == 0 and run.main([]) == 0 and len(marks(tree)) == 1
    table = tree / "data/results/mini-pythia/made.parquet"
    for content, runs in (("one", 2), ("one", 2), ("two", 3)):
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text(content)
        assert run.main([]) == 0 and len(marks(tree)) == runs
    table.unlink()
    assert run.main([]) == 0 and len(marks(tree)) == 4


def test_runs_in_the_root_with_its_parameters_reports_and_skips_what_is_unchanged(tree, capsys):
    write(tree, "01_one", ACCOUNT)
    write(tree, "02_two")
    assert run.main(["-p", "seed", "0"]) == 0
    assert marks(tree) == ["01_one 0 []", "02_two 0 []"]
    assert (tree / "data/cache/runs/mini-pythia/01_one.ipynb").exists()
    head, row, _, end = capsys.readouterr().out.strip().splitlines()[-4:]
    assert head.split()[:9] == ["notebook", "model", "seconds", *report.STAGES, "figures"]
    assert row.split()[:2] + row.split()[4:] == ["01_one", "mini-pythia", "2", "2", "0", "0", "fig1", "-"]
    assert end.endswith("figures are in data/results/mini-pythia.")
    assert 0 < float(re.search(r"([\d.]+) GB at most in a process", end).group(1)) < 4  # of a bare kernel

    assert run.main([]) == 0
    told = capsys.readouterr().out  # nothing was run, and no memory is told
    assert told.count("... unchanged") == 2 and len(marks(tree)) == 2 and "GB" not in told
    (tree / "data/results/mini-pythia/fig1_made.png").unlink()  # a lost figure is made again
    assert run.main([]) == 0 and marks(tree)[2:] == ["01_one 0 []"]
    write(tree, "02_two", "changed = True")
    assert run.main([]) == 0 and marks(tree)[3:] == ["02_two 0 []"]
    assert run.main(["02", "-p", "seed", "3", "-y", "steps: [0]"]) == 0 and marks(tree)[4:] == ["02_two 3 [0]"]
    assert (tree / "data/cache/runs/mini-pythia/02_two.ipynb").exists()  # the other setting has a folder of its own


def test_recompute_never_and_always_are_not_skipped(tree):
    write(tree, "01_one", declared=PARAMETERS + '\nrecompute: str = "changed"')
    for expected in (1, 2):
        assert run.main(["-p", "recompute", "never"]) == 0
        assert len(marks(tree)) == expected


def test_a_failing_notebook_is_kept_and_ends_what_waits_for_it(tree, capsys):
    """03 and 04 are of the same stage as 02 and after it; those of the other model go on,
    one about all models does not."""
    write(tree, "01_one")
    write(tree, "02_fails",
          "\n# a comment\nif model == 'mini-pythia':\n    raise ValueError('there is no rare position')")
    write(tree, "03_beside")
    write(tree, "04_after")
    write(tree, "05_all", declared="seed: int = 0\nsteps: list = []")
    both = ["--model", "mini-pythia,smollm2"]
    assert run.main(both) == 1
    shown = capsys.readouterr()
    assert shown.err.strip().splitlines()[-2:] == [  # before them smollm2's terms, where it is still to be fetched
        "data/cache/runs/mini-pythia/02_fails.ipynb, kept, stopped at cell [3]: # a comment",
        "ValueError: there is no rare position",
    ]
    said = [line.split("] ")[1].split() for line in shown.out.splitlines() if line.startswith("[")]
    skipped = [words[:2] for words in said if words[-2:] == ["02_fails", "failed"]]
    assert skipped == [["04_after", "mini-pythia"], ["05_all", "all-models"]]
    ran = ["01_one", "02_fails", "03_beside"]
    assert sorted(line.split()[0] for line in marks(tree)) == sorted([*ran, *ran, "04_after"])
    kept = nbformat.read(tree / "data/cache/runs/mini-pythia/02_fails.ipynb", as_version=4)
    assert any(output.output_type == "error" for cell in kept.cells for output in cell.get("outputs", []))
    write(tree, "02_fails")
    assert run.main(both) == 0
    assert sorted(line.split()[0] for line in marks(tree)[7:]) == ["02_fails", "02_fails", "04_after", "05_all"]


# ---- several at a time


@pytest.mark.parametrize("places, expected", [
    (1, "03s 03m 02s 02m 04s 04m 08s 07s 08m 07m 11"),  # stage by stage, of each the longest first
    (2, "03s+03m 02s+02m 04s+04m 08s+08m 07s+07m 11"),  # one of each model
])
def test_the_order_is_that_of_the_tables_and_the_longest_first(tree, capsys, places, expected):
    names = ["02_losses", "03_curve", "04_course", "07_short", "08_long"]
    for name in names:
        write(tree, name)
    write(tree, "11_all", declared="seed: int = 0")
    minutes = [{"notebook": name, "model": model, "disk_mb": 0, "seconds": seconds + 10 * name.startswith("08")}
               for name in names for model, seconds in (("mini-pythia", 60), ("smollm2", 90))]
    (tree / "data/results").mkdir(parents=True)
    pd.DataFrame(minutes).to_csv(tree / "data/results/minutes.csv", index=False)
    queue, waves = run.Queue(jobs.plan(models=["mini-pythia", "smollm2"])), []
    while queue.left:
        wave = [job for job in (queue.take() for _ in range(places)) if job]
        waves.append("+".join(job.name[:2] + job.model[0] * (job.model != "all-models") for job in wave))
        queue.tell_begin(wave[0])
        for job in wave:
            queue.enter(job, {"seconds": {"all": 7.0}})
    assert " ".join(waves) == expected
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("[ 7/11] 03_curve   smollm2 ... begins (90 s when last measured); next 0")
    assert said[1].startswith("[ 7/11] 03_curve   smollm2 ... 7 s")
    assert said[-1] == "[11/11] 11_all     all-models ... 7 s"


def test_of_one_model_what_needs_the_same_table_does_not_run_at_once():
    queue, waves = run.Queue(jobs.plan(models=["mini-pythia"])), []
    while queue.left:
        wave = [job for job in (queue.take(), queue.take()) if job]
        waves.append({job.name[:2] for job in wave})
        for job in wave:
            queue.enter(job, {"seconds": {"all": 7.0}})
    assert waves[:3] == [{"01"}, {"02", "03"}, {"04"}] and waves[-1] == {"11"} and {"05", "06"} not in waves
    assert sum(map(len, waves)) == 13


def test_two_run_beside_each_other_each_with_its_share_of_the_cores_the_second_stands_back(tree, capfd, monkeypatch):
    """Each waits for the other; both say which threads they have, and how nice they are."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    meet = """import os, time
with open(f"here-{model}", "w") as file:
    file.write(f"{os.environ.get('OMP_NUM_THREADS', '')} {os.nice(0)}")
end = time.time() + 60
while not (os.path.exists("here-mini-pythia") and os.path.exists("here-smollm2")):
    assert time.time() < end
    time.sleep(0.05)"""
    write(tree, "01_meets", meet)
    assert run.main(["--model", "mini-pythia,smollm2", "--jobs", "2"]) == 0
    share = str(max(1, run.cores() // 2))
    first, second = os.nice(0), min(19, os.nice(0) + run.NICENESS)
    assert {(tree / f"here-{model}").read_text() for model in ("mini-pythia", "smollm2")} == {
        f"{share} {first}", f"{share} {second}"}
    assert not psutil.Process().children()
    assert run.main(["--model", "mini-pythia", "-p", "seed", "1", "--jobs", "1"]) == 0
    assert (tree / "here-mini-pythia").read_text() == f" {first}"
    assert run.main(["--jobs", "0"]) == 2 and "--jobs is 0; it must be 1 or more." in capfd.readouterr().err


def test_a_kernel_stays_and_the_next_notebook_finds_nothing_of_the_one_before(tree):
    """Not its names, not its cells, and not the silence of a notebook that stopped early."""
    stops = "from rare_token_neurons.figures.notebook import _silence\nleft = 1\n_silence(get_ipython())"
    look = """import os
with open("kernels.txt", "a") as file:
    file.write(f"{os.getpid()} {'left' in globals()} {len(In)}\\n")"""
    write(tree, "01_stops", look, stops, "raise ValueError('the silence was broken')")
    write(tree, "02_looks", look)
    assert run.main(["--jobs", "1"]) == 0 and len(marks(tree)) == 2
    first, second = ((tree / "kernels.txt").read_text().splitlines())
    assert first == second and first.split()[1:] == ["False", "4"]


def test_a_killed_kernel_is_reported_with_its_cell(tree, capsys):
    write(tree, "01_dies", "import os\nos.kill(os.getpid(), 9)", "never = 'reached'")
    assert run.main([]) == 1
    path, error = capsys.readouterr().err.strip().splitlines()
    assert "01_dies.ipynb, kept, stopped at cell [3]: import os" in path
    assert "the kernel was killed" in error
    assert not (tree / "data/cache/runs/mini-pythia/01.json").exists()


def test_a_kernel_that_does_not_start_is_tried_again(tree, monkeypatch):
    write(tree, "01_one")
    tries = []

    def fragile(*_, **__):
        tries.append(1)
        raise RuntimeError("Kernel died before replying to kernel_info")

    monkeypatch.setattr(run.papermill, "execute_notebook", fragile)
    with pytest.raises(run.NotebookError, match="no kernel started in 3 tries"):
        run.execute(jobs.plan()[0], run.Kernel())
    assert len(tries) == run.KERNEL_STARTS


INTERRUPTED = "\nInterrupted; the same command goes on from what is finished.\n"


def below(process):
    return psutil.Process(process.pid).children(recursive=True)


def loads_torch(process):
    return any("libtorch" in mapped.path for mapped in psutil.Process(process.pid).memory_maps())


@pytest.mark.parametrize("arguments, begun", [
    (["sweep", "grid.csv"], lambda process, root: marks(root)),
    (["run", "--model", "mini-pythia,smollm2", "--jobs", "2"], lambda process, root: len(marks(root)) == 2),
    (["audit", "mini-pythia"], lambda process, root: loads_torch(process)),
    (["bench"], lambda process, root: loads_torch(process)),
    (["calibrate", "--jobs", "2"], lambda process, root: len(below(process)) == 2),
], ids=lambda value: value[0] if isinstance(value, list) else "")
def test_ctrl_c_is_one_sentence_and_ends_all_processes(tmp_path, arguments, begun):
    copy_package(tmp_path)
    write(tmp_path, "01_waits", "import time\ntime.sleep(600)")
    (tmp_path / "grid.csv").write_text("notebooks,seed\n01,0\n01,1\n")
    process = begin(tmp_path, *arguments)
    wait_for(lambda: begun(process, tmp_path))
    time.sleep(1)
    started = below(process)
    os.killpg(process.pid, signal.SIGINT)
    out, said = process.communicate(timeout=120)
    terms = f"{packages.PACKAGES['smollm2'].terms}\n"  # a run that fetches a model says them before
    assert (process.returncode, said.removeprefix(terms)) == (130, INTERRUPTED) and "Traceback" not in out
    assert not psutil.wait_procs(started, timeout=60)[1]
    assert marks(tmp_path) == ["01_waits 0 []"] * {"sweep": 1, "run": 2}.get(arguments[0], 0)


def test_ctrl_c_inside_an_exec_is_the_same_sentence(tmp_path):
    copy_package(tmp_path)
    (tmp_path / "src/rare_token_neurons/bench.py").write_text('def main(argv):\n    exec("raise KeyboardInterrupt")')
    process = begin(tmp_path, "bench")
    assert process.communicate(timeout=120) == ("", INTERRUPTED) and process.returncode == 130


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, blow):
    copy_package(tmp_path)
    write(tmp_path, "01_one")
    write(tmp_path, "02_waits", "import os, time\nwhile not os.path.exists('go'):\n    time.sleep(0.1)")
    first = begin(tmp_path, "run")
    wait_for(lambda: len(marks(tmp_path)) == 2)
    os.killpg(first.pid, blow)
    said = first.communicate(timeout=120)[1]
    assert (first.returncode, said) == ((130, INTERRUPTED) if blow == signal.SIGINT else (-9, ""))
    (tmp_path / "go").touch()
    second = begin(tmp_path, "run")
    assert "01_one    mini-pythia ... unchanged" in second.communicate(timeout=120)[0] and second.returncode == 0
    assert [line.split()[0] for line in marks(tmp_path)] == ["01_one", "02_waits", "02_waits"]


def test_dry_run_starts_nothing_and_tells_minutes(tree, capsys):
    write(tree, "01_one")
    write(tree, "02_two")
    (tree / "data/results").mkdir(parents=True)
    last = {"notebook": "01_one", "model": "mini-pythia", "seconds": 300, "forward": 1, "ablation": 2, "disk_mb": 70}
    pd.DataFrame([last]).to_csv(tree / "data/results/minutes.csv", index=False)
    assert run.main(["--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["01_one", "mini-pythia", "runs", "5.0", "70"]
    assert lines[2].split() == ["02_two", "mini-pythia", "runs", "?", "?"]
    assert "at least 5 minutes and 70 MB" in lines[-1] and not marks(tree)


@pytest.mark.parametrize(("values", "sentence"), [
    ({"model": "smollm2", "steps": [512]}, "'smollm2' has no revision 'step512'; it has no checkpoints."),
    ({"model": "mini-pythia", "steps": [0, 7]}, "'mini-pythia' has no revision 'step7'; it has step0, step16, "),
    ({"model": "no/where"},
     "There is no model 'no/where': neither smollm2 nor gemma3 nor mini-pythia, no folder here, and no such hub"),
    ({"model": "none.gguf"}, "There is no GGUF file none.gguf."),
    ({"model": "bare"}, "The folder bare of 'bare' holds no weights: neither "),
    ({"model": "lab/suite", "steps": [5]}, "'lab/suite' has no revision 'step5'; it has step1, step2."),
    ({"model": "lab/suite", "steps": [2]}, ""), ({"model": "lab/plain"}, ""), ({"model": "smollm2"}, ""),
    ({"model": "any.gguf"}, ""), ({"model": "no/where", "recompute": "never"}, "")])
def test_dry_run_finds_a_model_or_step_that_is_not_there_and_fetches_nothing(tree, monkeypatch, capsys, values,
                                                                             sentence):
    write(tree, "01_one", declared=f'{PARAMETERS}\nrecompute: str = "changed"  # what')
    write(tree, "02_all", declared="seed: int = 0  # of every draw")
    (tree / "bare").mkdir()
    (tree / "any.gguf").write_bytes(b"converting it would fail")
    with Hub({"lab/suite": {"main": {}, "step1": {}, "step2": {}}, "lab/plain": {"main": {}}}) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(client, "MEMORY", tree / "memory")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        close_session()
        client.names.cache_clear()
        code = run.main(["--dry-run", "-y", json.dumps(values)])
    said = capsys.readouterr()
    assert (code, said.err[: len(sentence)]) == ((2, sentence) if sentence else (0, ""))
    assert ("Nothing was started" in said.out) == (not sentence) and not marks(tree)
    assert not hub.asked("/resolve/") and bool(hub.log) == ("/" in values["model"] and "recompute" not in values)


def test_measured_minutes_are_kept(tree):
    write(tree, "01_one")
    assert run.main(["--save-minutes"]) == 0 and run.main(["--save-minutes"]) == 0  # the second run measures nothing
    table = pd.read_csv(tree / "data/results/minutes.csv")
    assert table[["notebook", "model"]].to_numpy().tolist() == [["01_one", "mini-pythia"]] and table["seconds"][0] > 0


def test_in_place_leaves_what_a_reader_wants_and_nothing_of_the_machine(tree):
    cell = "import os, sys\nprint('value', 3)\nprint('progress', file=sys.stderr)\nos.getcwd() + '/data'"
    path = write(tree, "01_one", cell)
    assert run.main(["--in-place"]) == 0
    first = path.read_bytes()
    book = nbformat.reads(first.decode(), as_version=4)
    nbformat.validate(book)
    assert [cell.execution_count for cell in book.cells] == [1, 2, 3]
    assert [output.get("name", "result") for output in book.cells[2].outputs] == ["stdout", "result"]
    assert book.cells[2].outputs[1].data["text/plain"] == "'data'"
    for litter in (b"papermill", b"progress\\n", str(tree).encode(), b"start_time", b"injected"):
        assert litter not in first
    assert book.cells[0].metadata.tags == ["parameters"] and set(book.metadata) == {"kernelspec", "language_info"}
    shutil.rmtree(tree / "data")
    assert run.main(["--in-place"]) == 0 and path.read_bytes() == first
    assert run.main([]) == 0 and len(marks(tree)) == 2  # outputs in notebooks/ do not count as a change


def test_the_key_sees_parameters_modules_and_files(tree, monkeypatch):
    path = write(tree, "01_one", "from rare_token_neurons import paths")
    key = jobs.content_key(path, {"model": "mini-pythia"})
    assert key == jobs.content_key(path, {"model": "mini-pythia"}) != jobs.content_key(path, {"model": "smollm2"})
    weights = tree / "data/mini-pythia/step0/model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    with_weights = jobs.content_key(path, {"model": "mini-pythia"})
    assert with_weights != key
    monkeypatch.setitem(keys.TEXTS, "tables.stage", "NOT = 'imported by paths'")
    assert jobs.content_key(path, {"model": "mini-pythia"}) == with_weights
    with monkeypatch.context() as patch:
        patch.setitem(keys.TEXTS, "paths", "IMPORTED = True")
        assert jobs.content_key(path, {"model": "mini-pythia"}) != with_weights
    monkeypatch.setattr(keys, "libraries", lambda names: {"numpy": "another"})
    assert jobs.content_key(path, {"model": "mini-pythia"}) != with_weights


def table(**columns):
    return pd.DataFrame({"step": [0, 1], "name": ["a", "b"], "x": [1.0, 3.0], "n": [4, 4]} | columns)


@pytest.mark.parametrize(("changed", "expected"), [
    ({}, 0.0),
    ({"x": [1.0, 3.5]}, 0.5 / (3.0 + 2.0)),
    ({"x": [1.1, 3.5]}, 0.5 / (3.0 + 2.0)),
    ({"n": [4, 5]}, 1 / (4 + 4)),
    ({"name": ["a", "c"]}, np.inf),
    ({"step": [0, 2]}, np.inf),
    ({"x": [np.nan, 3.0]}, np.inf),
    ({"x": [np.inf, 3.0]}, np.inf),
    ({"y": [0, 0]}, np.inf),
])
def test_deviation_known_answers(changed, expected):
    assert report.deviation(table(**changed), table()) == pytest.approx(expected)


def test_deviation_matches_rows_by_key_and_treats_nan_zero_and_lists():
    assert report.deviation(table().iloc[::-1], table()) == 0.0
    assert report.deviation(table(x=[np.nan, 3.0]), table(x=[np.nan, 3.0])) == 0.0
    assert report.deviation(table(x=[0.0, 0.0]), table(x=[0.0, 0.0])) == 0.0
    assert report.deviation(table(x=[0.0, 1e-9]), table(x=[0.0, 0.0])) == np.inf
    assert report.deviation(table(ok=[True, False]), table(ok=[True, True])) == np.inf
    assert report.deviation(table(ids=[[1], [2]]), table(ids=[[1], [2]])) == 0.0
    assert report.deviation(table().head(1), table()) == np.inf
    unknown = table(step=pd.array([0, None], dtype="Int64"))
    assert report.deviation(unknown, unknown) == 0.0 and report.deviation(unknown, table()) == np.inf
    floats = pd.DataFrame({"x": [1.0, 2.0]})
    assert report.deviation(floats.iloc[::-1], floats) == pytest.approx(1 / 2.5)


def test_deviation_from_the_commit(tree):
    committed, fresh = "data/results/m/a.parquet", "data/results/m/new.parquet"
    for name in (committed, fresh):
        files.write_table(tree / name, table())
    assert report.from_commit([committed]) == "-"  # not a repository
    git = ["git", "-C", str(tree), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", committed], ["commit", "-qm", "Add a table"]):
        subprocess.run([*git, *command], check=True)
    assert report.from_commit([committed, fresh]) == 0.0
    assert report.from_commit([fresh]) == "new" and report.from_commit([]) == "-"
    files.write_table(tree / committed, table(n=[4, 5]))
    assert report.from_commit([committed]) == pytest.approx(1 / 8)
    files.write_table(tree / committed, table(name=["a", "z"]))
    assert report.from_commit([committed]) == "other rows"


def test_the_command_line_and_make_list_what_is_for_people():
    commands = subprocess.run([sys.executable, "-m", "rare_token_neurons", "--help"], capture_output=True, text=True)
    assert [f"\n  {name} " in commands.stdout for name in (*COMMANDS, *INNER)] == [True] * len(COMMANDS) + [False]
    wrong = subprocess.run([sys.executable, "-m", "rare_token_neurons", "rum"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "There is no command 'rum'" in wrong.stderr
    listed = subprocess.run(["make", "help"], cwd=paths.ROOT, capture_output=True, text=True, check=True).stdout
    targets = ("figures", "redraw", "notebooks", "lab", "suite", "bench", "check", "test", "clean")
    assert all(f"make {name} " in listed for name in targets)


def test_the_closing_table_says_whether_the_committed_tables_come_from_this_kind_of_processor(tree, monkeypatch):
    write(tree, "01_one")
    planned = jobs.plan()
    record = {"seconds": {"all": 1.0}, "figures": [], "deviation": 1e-7}
    # nobody said where
    assert "deviation (another kind of processor)" in report.closing_table(planned, [record], [], 1.0)
    report.save_processor()
    assert "deviation (same kind of processor)" in report.closing_table(planned, [record], [], 1.0)
    name, _, cores = report.processor()
    monkeypatch.setattr(report, "processor", lambda: ("a later model",
                                                      *report.files.read_json(paths.RESULTS
                                                                              / report.PROCESSOR)["processor"][1:]))
    assert "deviation (same kind of processor)" in report.closing_table(planned, [record], [], 1.0)
    monkeypatch.setattr(report, "processor", lambda: (name, "no vectors", cores))
    assert "deviation (another kind of processor)" in report.closing_table(planned, [record], [], 1.0)
