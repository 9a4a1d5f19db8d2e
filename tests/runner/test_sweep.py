"""A grid of settings: checked before it starts, a row in a process of its own, a failing row stops no other."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import nbformat
import psutil
import pytest
from distributed import LocalCluster
from small_notebooks import PARAMETERS, copy_package, marks, wait_for, write

from rare_token_neurons.runner import jobs, sweep


@pytest.fixture
def grid(tmp_path):
    def write(content):
        path = tmp_path / "grid.csv"
        path.write_text(content)
        return path

    return write


def test_a_row_is_parameters_and_notebooks(grid):
    rows = sweep.read(grid("model,notebooks,steps,positions\nmini-pythia,01 03,\"[0, 512]\",\nsmollm2,03,,300\n"))
    assert [row.line for row in rows] == [2, 3]
    assert [job.name[:2] for job in rows[0].jobs] == ["01", "03"]
    assert rows[0].jobs[1].values == {"model": "mini-pythia", "steps": [0, 512]}
    assert rows[1].jobs[0].values == {"positions": 300}  # smollm2 is notebook 03's own model


@pytest.mark.parametrize("content, message", [
    ("model,ablatoin\nsmollm2,zero\n", "line 2: There is no parameter 'ablatoin': did you mean ablation"),
    ("model,positions\nsmollm2,10\nsmollm2,0\n", "line 3: positions is 0"),
    ("model,notebooks\nsmollm2,99\n", "line 2: There is no notebook 99"),
    ("model\n", "has no rows"),
])
def test_a_wrong_grid_is_named_by_its_line_and_starts_nothing(grid, capsys, content, message):
    assert sweep.main([str(grid(content))]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_grid_is_one_sentence(capsys):
    assert sweep.main(["no/grid.csv"]) == 2
    assert capsys.readouterr().err == "There is no grid file no/grid.csv.\n"


def test_a_row_is_a_command_and_what_two_lines_ask_for_is_there_once(grid):
    rows = sweep.read(grid("model,notebooks,seed,ablation\nmini-pythia,01 03,1,zero\nsmollm2,01 "
                           "11,,\nsmollm2,1,,\n,11,0,\n"))
    (what, models), (closing, alls) = sweep.waves(rows)
    assert (what, closing) == ("rows", "runs of notebooks about all models")
    assert [(row.line, row.arguments) for row in models] == [
        (2, ["01", "03", "-y", '{"model": "mini-pythia", "seed": 1, "ablation": "zero"}']),
        (3, ["01"])]  # smollm2 is notebook 01's own model
    assert [(row.line, row.arguments) for row in alls] == [(3, ["11"])]
    assert models[0].log == f"data/cache/runs/mini-pythia/ablation=zero,seed=1/{models[0].name}.log"
    assert jobs.plan(models[0].arguments[:2], values=json.loads(models[0].arguments[3])) == list(models[0].jobs)


def test_two_rows_that_would_overwrite_each_other_are_refused(grid):
    with pytest.raises(ValueError,
                       match="line 3: 03_neuron_influence would write to the folder smollm2 as line 2 does, with "
                                         "another recompute; keep one of the two"):
        sweep.read(grid("notebooks,recompute\n03,changed\n03,always\n"))


@pytest.mark.parametrize("arguments, message", [
    (["--jobs", "0"], "--jobs is 0; it must be 1 or more."),
    (["--scheduler", "tcp://127.0.0.1:9"], "No Dask scheduler answers at tcp://127.0.0.1:9"),
])
def test_without_places_nothing_starts(grid, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(sweep, "TIMEOUT", 1)
    assert sweep.main([str(grid("notebooks\n01\n")), *arguments]) == 2
    assert message in capsys.readouterr().err


# ---- rows in processes: small notebooks in a repository of their own


@pytest.fixture
def small(tree, monkeypatch):
    """A repository with the package and one notebook, 01_one, that knows no ablation."""
    source = copy_package(tree)
    monkeypatch.setenv("PYTHONPATH", str(source))
    monkeypatch.syspath_prepend(source)  # Dask's workers get it from here
    write(tree, "01_one")
    return tree


def test_failing_and_killed_rows_stop_no_other_and_are_told_at_the_end(small, grid, capsys, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    write(small, "02_two", "if ablation == 'zero':\n    raise ValueError('no rare position')",
          "import os, signal\nif ablation == 'resample':\n    os.kill(os.getppid(), signal.SIGKILL)",
          "with open('threads', 'w') as file:\n    file.write(os.environ['OMP_NUM_THREADS'])",
          declared=PARAMETERS + '\nablation: str = "mean"')
    assert sweep.main([str(grid("ablation\nzero\nresample\nmean\n\"\"\n")), "--jobs", "2"]) == 1
    said, folder = capsys.readouterr(), "data/cache/runs/mini-pythia"
    assert f"""line 2 failed (ablation zero):
{folder}/ablation=zero/02_two.ipynb, kept, stopped at cell [4]: if ablation == 'zero':
ValueError: no rare position
its output: {folder}/ablation=zero/row-""" in said.err
    assert """line 3 failed (ablation resample):
The row's process was ended by SIGKILL; most often the machine had no memory left.""" in said.err
    assert said.out.startswith("line 5 asks for what an earlier line does; it is done once.\n")
    assert "line 2 (ablation zero): failed" in said.out
    assert said.out.endswith("\n1 of 3 rows done.\n")
    assert marks(small).count("01_one 0 []") == 1 and len(marks(small)) == 4  # the three rows share 01
    assert (small / "threads").read_text() == str(max(1, len(os.sched_getaffinity(0)) // 2))
    kept = nbformat.read(small / folder / "ablation=zero/02_two.ipynb", as_version=4)
    assert any(output.output_type == "error" for cell in kept.cells for output in cell.get("outputs", []))
    (log,) = (small / folder / "ablation=zero").glob("row-*.log")
    assert """run 01 02 -y '{"ablation": "zero"}'""" in log.read_text()

    assert sweep.main([str(grid("ablation\nmean\n"))]) == 0
    assert "line 2 (ablation mean): unchanged\n\n1 of 1 rows done.\n" in capsys.readouterr().out
    assert len(marks(small)) == 4


def test_the_row_of_a_killed_dask_worker_goes_to_another_one_and_none_is_done_twice(small, grid, capsys):
    write(small, "02_two", """import os, time
with open(f"kernel-{seed}", "w") as file:
    file.write(str(os.getpid()))
while seed == 1 and not os.path.exists("go"):
    time.sleep(0.1)
with open("ends.txt", "a") as file:
    file.write(f"{seed}\\n")""")
    killed = []

    def kill(client):
        try:
            wait_for((small / "ends.txt").exists)  # a row is finished
            wait_for(lambda: (small / "kernel-1").exists() and (small / "kernel-1").read_text())
            above, pids = psutil.Process(int((small
                                              / "kernel-1").read_text())).parents(), client.run(os.getpid).values()
            killed.extend(process for process in above if process.pid in pids)
            below = killed[0].children(recursive=True)
            killed[0].kill()
            assert len(below) >= 2 and not psutil.wait_procs(below, timeout=60)[1]  # nobody goes on with the row unseen
        finally:
            (small / "go").touch()

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs="CRITICAL") as cluster, \
            cluster.get_client() as client, ThreadPoolExecutor(1) as helper:
        murder = helper.submit(kill, client)
        code = sweep.main([str(grid("notebooks,seed\n02,0\n01 02,1\n02,2\n")), "--scheduler",
                           cluster.scheduler_address])
        murder.result()
    assert code == 0 and "3 of 3 rows done." in capsys.readouterr().out
    assert sorted((small / "ends.txt").read_text().split()) == ["0", "1", "2"]
    # 01 stays
    assert sorted(marks(small)) == ["01_one 1 []", "02_two 0 []", "02_two 1 []", "02_two 1 []", "02_two 2 []"]
