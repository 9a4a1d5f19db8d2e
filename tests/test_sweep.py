"""A grid of settings: checked before it starts, a failing row stops no other."""

import pytest

from rare_token_neurons import hub, paths, run, sweep, text


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


def test_a_failing_row_stops_no_other_and_is_told_at_the_end(grid, capsys, monkeypatch):
    begun = []

    def one(jobs):
        begun.append(jobs[0].model)
        if jobs[0].model == "mini-pythia":
            raise run.NotebookError("cell [3]: no memory")

    monkeypatch.setattr(run, "run", one)
    path = grid("model,notebooks\nmini-pythia,01\nsmollm2,01\n")
    assert sweep.main([str(path)]) == 1
    said = capsys.readouterr()
    assert begun == ["mini-pythia", "smollm2"]
    assert "line 2 failed (model mini-pythia, notebooks 01):\ncell [3]: no memory" in said.err and "1 of 2 rows done" in said.out


def test_the_papers_grid_is_a_right_one():
    rows = sweep.read(paths.DATA / "paper_grid.csv")
    assert [row.jobs[0].model for row in rows] == ["EleutherAI/pythia-70m-deduped", "EleutherAI/pythia-410m-deduped"]
    steps = next(job.values["steps"] for job in rows[0].jobs if "steps" in job.values)
    assert steps == [0, 4000, *range(14_000, 124_001, 10_000), 143_000] and len(steps) == 15


# ---- texts from the hub


def test_names_of_texts_from_the_hub():
    assert hub.names_text("stas/c4-en-10k[:500]") and hub.names_text("a/b[10:20]")
    assert not any(map(hub.names_text, ("mini-pile", "my.txt", "folder/my.txt", "stas/c4-en-10k", "a/b[1]")))


def test_rows_of_a_dataset_are_documents(tmp_path, monkeypatch):
    pytest.importorskip("datasets", reason="the extra `hub` is not installed")
    (tmp_path / "owner/name").mkdir(parents=True)
    (tmp_path / "owner/name/train.jsonl").write_text("".join(f'{{"text": "page {n}"}}\n' for n in range(5)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    table = text.documents("owner/name[1:4]")
    assert list(table["text"]) == ["page 1", "page 2", "page 3"] and set(table["source"]) == {"name"}
    with pytest.raises(ValueError, match="could not be had from the hub"):
        hub.documents("owner/none[:2]")
