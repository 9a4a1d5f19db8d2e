"""Parameters: each declared once, checked by name, type and value,
and written into every notebook as it is declared."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields

import nbformat
import pytest

from rare_token_neurons import paths, settings as parameters
from rare_token_neurons.runner import jobs
from rare_token_neurons.text import documents as texts

WRONG = [
    ({"modell": "smollm2"},
     "There is no parameter 'modell': did you mean model? the notebook has model, steps, stage, device, "),
    ({"seed": "one"}, "seed is 'one'; it must be a whole number (of every random choice)."),
    ({"seed": -1}, "seed is -1; it must be 0 or more."),
    ({"positions": 0}, "positions is 0; it must be 1 or more."),
    ({"rare_percentile": 100}, "rare_percentile is 100; it must lie between 0 and 100, both excluded."),
    ({"rare_percentile": float("nan")}, "rare_percentile is nan; it must lie between 0 and 100, both excluded."),
    ({"words_only": 1}, "words_only is 1; it must be true or false ("),
    ({"steps": [0, -4]}, "steps is [0, -4]; it must be a list of whole numbers of 0 or more (training steps, such as "
                         "[0, 512]"),
    ({"neurons": [5.5]}, "neurons is [5.5]; it must be a list of whole numbers of 0 or more (neurons to portray"),
    ({"model": 3}, "model is 3; it must be text (smollm2, gemma3, mini-pythia, a folder, a GGUF file, or a hub id)."),
    ({"model": " "}, "model is empty; it must be smollm2, gemma3, mini-pythia, a folder, a GGUF file, or a hub id."),
    ({"model": "."}, f"model is '{paths.ROOT}'; a model's folder cannot be one that holds this repository."),
    ({"model": "x" * 300}, "model is longer than the name of a folder may be."),
    ({"text": "x" * 300}, "text is 'xxx"),
    ({"text": "no.txt"}, "text is 'no.txt'; it must be mini-pile, or a file that is there (a table's column: "
                         "a.jsonl:body), "
     "or rows of the hub, such as stas/c4-en-10k[:500]."),
    ({"counts": "no.npy"},
     "counts is 'no.npy'; it must be auto or wordfreq or text, or a file that is there (a table's column: "
     "a.jsonl:body)."),
    ({"device": "tpu"}, "device is 'tpu'; this machine has cpu"),
    *(({one.name: "Both"}, f"{one.name} is 'Both'; it may be {' or '.join(one.metadata['choices'])}.")
      for one in fields(parameters.Settings) if one.metadata["choices"]),
]


@pytest.mark.parametrize(("values", "sentence"), WRONG)
def test_what_is_wrong_is_one_sentence_that_names_the_parameter(values, sentence):
    with pytest.raises(ValueError) as caught:
        parameters.check(values)
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)


def test_values_come_in_their_types_or_as_text():
    as_text = {"steps": "[512, 0, 512]", "words_only": "False", "rare_percentile": "15", "positions": "200",
               "seed": "3"}
    as_values = {"steps": [512, 0], "words_only": False, "rare_percentile": 15, "positions": 200, "seed": 3}
    found = parameters.check(as_text)
    assert found == parameters.check(as_values) == parameters.Settings(
        steps=(0, 512), words_only=False, rare_percentile=15.0, positions=200, seed=3)
    assert type(found.rare_percentile) is float


def test_a_notebook_without_a_parameter_does_not_take_it():
    with pytest.raises(ValueError, match="There is no parameter 'seed': the notebook has model, steps"):
        parameters.check({"seed": 1}, declared=["model", "steps"])
    with pytest.raises(ValueError, match="There is no parameter 'sed': did you mean seed"):
        parameters.check({"sed": 1}, declared=["model", "steps"])


def test_only_plain_values_under_public_names_are_given():
    namespace = {"seed": 1, "steps": [0], "nothing": None, "_hidden": 2, "In": ["seed"], "Out": {}, "json": json,
                 "Settings": parameters.Settings, "check": parameters.check}
    assert parameters.given(namespace) == {"seed": 1, "steps": [0], "nothing": None}


def test_a_default_is_what_may_be_and_nothing_is_declared_without_a_meaning():
    assert parameters.check({}) == parameters.check({one.name: one.default for one in fields(parameters.Settings)})
    assert all(parameters.HELP.values()) and list(parameters.HELP) == [one.name for one in fields(parameters.Settings)]


# ---- files and folders


@pytest.fixture
def typed(tree, monkeypatch, tmp_path_factory):
    """Where a command is typed: a folder outside the repository, itself below the home;
    each holds a model and a text."""
    here = tmp_path_factory.mktemp("home", numbered=True) / "work"
    for name, place in {"notebooks": tree / "notebooks", "root": tree, "work": here, "home": here.parent}.items():
        (place / f"{name}-model").mkdir(parents=True)
        (place / f"{name}.txt").write_text("a whale")
    monkeypatch.setenv("HOME", str(here.parent))
    monkeypatch.chdir(here)
    return here


def found(name):
    """The one spelling of a model and of a text whose names begin alike."""
    settings = parameters.check({"model": f"{name}-model", "text": f"{name}.txt", "counts": f"{name}.txt"})
    assert settings.text == settings.counts == settings.model.replace("-model", ".txt")
    return settings.text


def test_a_name_is_looked_up_where_the_command_is_typed_then_in_the_root(typed, tree, monkeypatch):
    assert found("work") == f"{typed}/work.txt" and found("~/home") == found("../home") == f"{typed.parent}/home.txt"
    assert found("root") == "root.txt" and found("notebooks/notebooks") == "notebooks/notebooks.txt"
    shutil.copy(typed / "work.txt", typed / "root.txt")
    shutil.copytree(typed / "work-model", typed / "root-model")
    assert found("root") == f"{typed}/root.txt"  # the nearer one
    with pytest.raises(ValueError, match="^root-model is in the repository and in the working directory"):
        found(f"{tree}/root")
    monkeypatch.chdir(tree / "notebooks")  # as JupyterLab does
    assert found("notebooks") == found("./notebooks") == "notebooks/notebooks.txt" and found("root") == "root.txt"


def test_one_model_has_one_folder_however_it_is_spelled(typed, tree):
    (tree / "link").symlink_to(tree / "notebooks")
    names = ["notebooks/notebooks-model", "./notebooks/notebooks-model/", f"{tree}/notebooks//notebooks-model",
             "link/notebooks-model", f"{os.path.relpath(tree)}/notebooks/notebooks-model"]
    assert {parameters.check({"model": name}).folder for name in names} == {"notebooks--notebooks-model"}
    outside = {parameters.check({"model": name}).folder for name in ("work-model", "./work-model/",
                                                                     "~/work/work-model")}
    assert len(outside) == 1
    same = [parameters.check({"model": name}).model for name in ("data/mini-pythia", paths.MINI_PYTHIA.as_posix())]
    assert same[1:] == ["mini-pythia"]


def test_words_and_hub_names_stay_unless_a_file_is_there(typed):
    (typed / "mini-pile").write_text("a whale")
    assert parameters.check({"model": "a/b", "text": "mini-pile"}) == parameters.Settings(model="a/b", text="mini-pile")
    rows = "stas/c4-en-10k[:500]"
    assert parameters.check({"text": rows}).text == rows
    (typed / "stas").mkdir()
    (typed / rows).write_text("a whale")
    assert parameters.check({"text": rows}).text == f"{typed}/{rows}"
    assert texts.documents(rows)["text"].tolist() == ["a whale"]


def test_a_table_has_one_spelling_and_so_has_its_column(typed):
    (typed / "rows.jsonl").write_text('{"text": "a whale", "body": "a cat"}')
    for name in ("text", "counts"):
        spelled = [getattr(parameters.check({name: f"./rows.jsonl{column}"}), name)
                   for column in ("", ":text", ":body")]
        assert spelled == [f"{typed}/rows.jsonl"] * 2 + [f"{typed}/rows.jsonl:body"]
    (typed / "rows.jsonl:body").write_text("a whale")
    assert parameters.check({"text": "rows.jsonl:body"}).text == f"{typed}/rows.jsonl:body"  # a file of that name
    assert texts.documents("rows.jsonl:body")["text"].tolist() == ["a whale"]


def test_folders_name_the_model_and_what_is_no_default():
    assert parameters.Settings(device="cuda", recompute="never", keep_weights=False).folder == "smollm2"
    settings = parameters.Settings(model="mini-pythia", seed=1, ablation="zero")
    assert settings.folder == "mini-pythia/ablation=zero,seed=1"
    assert settings.results == paths.RESULTS / settings.folder and settings.figures == paths.FIGURES / settings.folder


def test_a_cell_declares_what_it_is_asked_for_in_one_order():
    assert parameters.cell(["seed", "model", "steps"], model="mini-pythia") == (
        'model: str = "mini-pythia"  # smollm2, gemma3, mini-pythia, a folder, a GGUF file, or a hub id\n'
        "steps: list = []  # training steps, such as [0, 512]; empty: the last one, in 02 and 04 all\n"
        "seed: int = 0  # of every random choice")
    namespace = {}
    exec(parameters.cell(parameters.HELP), namespace)
    assert parameters.check(namespace) == parameters.Settings()


@pytest.mark.parametrize("notebook", jobs.find(), ids=lambda path: path.stem)
def test_every_notebook_declares_its_parameters_as_they_are_declared_here(notebook):
    declared = jobs.defaults(notebook)
    cells = nbformat.read(notebook, as_version=4).cells
    (source,) = (cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    model = {name: value for name, value in declared.items() if name == "model"}
    assert source == parameters.cell(declared, **model)


def test_parameters_are_checked_without_torch():
    code = ("import sys\nfrom rare_token_neurons import settings\nsettings.check({})\n"
            "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)
