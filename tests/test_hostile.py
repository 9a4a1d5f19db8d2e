"""Input that means harm, or only looks like it: parameters are data,
files are opened without running anything in them."""

import json
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from own_model import Bomb, edit_config, refused
from safetensors.torch import load_file, save_file
from small_notebooks import marks, write
from tiny_models import VOCABULARY

from rare_token_neurons import paths, settings as parameters
from rare_token_neurons.ablation.capture import capture
from rare_token_neurons.models import checkpoints
from rare_token_neurons.runner import run, sweep
from rare_token_neurons.statistics import spectra
from rare_token_neurons.tables import checkpoints as passes
from rare_token_neurons.text import documents as texts, rarity

TOUCH = "__import__('pathlib').Path('owned').touch()"
CODE = [TOUCH, f'"; {TOUCH} #', f"'; {TOUCH} #", f"\n{TOUCH}", f"{{{TOUCH}}}", "{model}", "$(touch owned)",
        "`touch owned`", "a\\", "\\", 'a"b\'c\\n{d}', "%run x", "!touch owned", "=cmd|'/C touch owned'!A0", "\u2028",
        "\U0001f600", "a\rb"]
DECLARED = 'model: str = "m"  # a\ntext: str = "mini-pile"  # b\nsteps: list = []  # c\nseed: int = 0  # d'


# ---- parameters are data


def test_strings_reach_the_notebook_as_they_are_and_are_never_run(tree):
    """One real papermill run: a model's name and the name of a real text file hold every sign that means something to
    Python, a shell, papermill or a path."""
    dump = 'import json\nwith open("seen.json", "w") as file:\n    json.dump([model, text], file)'
    write(tree, "01_one", dump, declared=DECLARED)
    model = "/".join(CODE)
    name = f"{TOUCH} \"'\\ {{model}} $(touch owned)\n; \u2028 \U0001f600.txt"
    (tree / name).write_text("a whale in the sea")
    assert run.main(["01", "-p", "model", model, "-p", "text", name]) == 0
    assert json.loads((tree / "seen.json").read_text()) == [model, name]
    assert not list(tree.rglob("owned")) and not Path("owned").exists() and len(marks(tree)) == 1
    assert texts.documents(str(tree / name))["text"].tolist() == ["a whale in the sea"]
    assert len(list((tree / "data/cache/runs").rglob("*.ipynb"))) == 1


@pytest.mark.parametrize("given", [
    "model: !!python/object/apply:os.system ['touch owned']", "!!python/object/new:os.system ['touch owned']",
    "model: !!python/name:os.system", "steps: !!python/object/apply:subprocess.check_output [[touch, owned]]",
    "? !!python/tuple [a]\n: b"])
def test_yaml_makes_no_objects(tree, capsys, given):
    write(tree, "01_one")
    assert run.main(["-y", given]) == 2
    assert capsys.readouterr().err.startswith("-y takes YAML such as 'steps: [0, 512]'")
    assert not (tree / "data").exists() and not Path("owned").exists()


def test_a_value_that_would_fill_the_memory_is_one_short_sentence(tree, capsys):
    write(tree, "01_one")
    bomb = "a: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(f"b{n}: &a{n + 1} [{','.join([f'*a{n}'] * 10)}]\n"
                                                      for n in range(12))
    for arguments in (["-y", f"{bomb}steps: *a12"], ["-y", "seed: " + "[x, " * 9 + "]" * 9],
                      ["-p", "steps", "[" * 100_000]):
        assert run.main(arguments) == 2
        assert len(capsys.readouterr().err) < 2_000


@pytest.mark.parametrize("cell", [*CODE, "=1+1", "@SUM(A1)", "+1", "-1"])
@pytest.mark.parametrize("column", ["model", "seed", "steps", "text", "notebooks"])
def test_the_cells_of_a_grid_are_data(tree, tmp_path, column, cell):
    write(tree, "01_one", declared=DECLARED)
    path = tmp_path / "grid.csv"
    quoted = cell.replace('"', '""')
    path.write_text(f'{column}\n"{quoted}"\n', newline="")
    try:
        rows = sweep.read(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}, line 2: ") or not cell.strip()
    else:
        assert [job.values.get(column, cell.strip()) for row in rows for job in row.jobs] in ([cell.strip()], [1], [0])
    assert not Path("owned").exists() and not list(tree.rglob("owned"))


@pytest.mark.parametrize("model", ["../x", "../../x", "x/../../y", "a/..", "..a", "./x", "/etc/x", "~", "a//b", "\n",
                                   "a\\..\\b", "x" * 4_000, *CODE])
def test_no_name_of_a_model_leads_out_of_the_results(model):
    for settings in (parameters.Settings(model=model), parameters.Settings(text=model)):
        inside = settings.results.resolve().relative_to(paths.RESULTS)
        assert len(inside.parts) <= 2 and inside.parts and all(len(part.encode()) < 255 for part in inside.parts)
        assert ".." not in settings.results.relative_to(paths.RESULTS).parts


@pytest.mark.parametrize("model", ["..", ".", "/", "../..", "notebooks/..", "a\0b"])
def test_a_folder_that_holds_the_repository_is_no_model(model):
    with refused(ValueError, "^model is .*; a model's folder cannot be one that holds this repository"):
        parameters.check({"model": model})


@pytest.mark.parametrize("name", ["text", "counts"])
@pytest.mark.parametrize("value", ["$(touch owned)", "/dev/zero", "/dev/stdin", "..", "data", "a\0b", TOUCH])
def test_a_text_is_a_file_that_is_there(name, value):
    with pytest.raises(ValueError, match=f"^{name} is .*; it must be .*, or a file that is there"):
        parameters.check({name: value})


def test_steps_that_do_not_exist_are_named():
    with pytest.raises(FileNotFoundError, match=r"^'mini-pythia' has no revision 'step7'; it has step0, step16, "):
        passes.revisions(parameters.check({"model": "mini-pythia", "steps": [0, 7]}))
    with pytest.raises(FileNotFoundError, match="has no revision 'step99999999999999999999'; it has"):
        passes.revisions(parameters.check({"model": "mini-pythia", "steps": [10**20 - 1]}))


# ---- files of a model


@pytest.mark.parametrize("kind", ["gpt_neox", "evil"])
def test_code_that_a_models_files_name_is_never_run(folder, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    for name in ("evil", "modeling_evil", "tokenization_evil"):
        (folder / f"{name}.py").write_text("open('owned', 'w')\nclass C: pass\nclass M: pass\nclass T: pass\n")
    edit_config(folder, model_type=kind, auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "modeling_evil.M",
                                                   "AutoTokenizer": ["tokenization_evil.T", None]},
                trust_remote_code=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": ["tokenization_evil.T", "tokenization_evil.T"]}, "tokenizer_class": "T",
               "chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    try:
        checkpoints.load(str(folder))
    except ValueError as error:
        assert str(error).startswith("The model in own-model cannot be opened") and "\n" not in str(error)
    assert not (tmp_path / "owned").exists() and not (folder / "owned").exists()


def test_activations_that_overflow_are_named(folder):
    """Finite weights whose products are not: float32 ends at 3e38."""
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith("dense_4h_to_h.weight") or name.endswith("dense_h_to_4h.weight"):
            weight.mul_(1e25)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    subject = checkpoints.load(str(folder))
    with pytest.raises(ValueError,
                       match=r"^The (activations|residual stream) of .* holds? values that are not finite\.$"):
        capture(subject, torch.randint(0, 40, (2, 16)))


@pytest.mark.parametrize(("tokens", "message"), [
    (torch.full((2, 16), VOCABULARY), f"between 0 and {VOCABULARY - 1}"),
    (torch.full((2, 16), 2**62), f"between 0 and {VOCABULARY - 1}"),
    (torch.full((2, 16), -1), f"between 0 and {VOCABULARY - 1}"),
    (torch.full((2, 16), 1.0), "int64"),
    (torch.full((2, 16), torch.nan), "int64"),
    (torch.zeros((0, 16), dtype=torch.int64), "int64 of shape"),
    (torch.zeros((2, 3), dtype=torch.int64), "no scored position"),
])
def test_token_ids_outside_the_vocabulary_are_refused(tiny, tokens, message):
    with pytest.raises(ValueError, match=message):
        capture(tiny("llama-tied"), tokens)


# ---- texts


def own(tmp_path, content):
    path = tmp_path / "own.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize(("content", "expected"), [
    ("a\0whale\0in", ["a whale in"]), ("whale", ["whale"]), ("no newline at the end", ["no newline at the end"]),
    ("\U0001f600" * 30, ["\U0001f600" * 30]), ("a\r\nwhale\r\n", ["a\nwhale\n"]),
    ("$(touch owned) {x} %s", ["$(touch owned) {x} %s"]),
    ("\u202e\u200b\ufeffa", ["\u202e\u200b\ufeffa"])])
def test_odd_texts_are_texts(tmp_path, content, expected):
    found = texts.documents(own(tmp_path, content))["text"]
    assert found.tolist() == expected
    tokenizer = checkpoints.load_tokenizer("mini-pythia")
    ids = texts.encode(tokenizer, found)
    assert tokenizer.decode(ids[0]) == expected[0] and max(ids[0]) < 8_192
    with pytest.raises(ValueError, match="^No document of the text fills one block of 256 tokens"):
        rarity.blocks(ids, [0])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig", "utf-8"])
def test_a_file_that_says_its_encoding_is_read_by_it(tmp_path, encoding):
    content = "caf\u00e9 \U0001f600 whale\nin the sea"
    assert texts.documents(own(tmp_path, content.encode(encoding)))["text"].tolist() == [content]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16-le", "utf-16-be", "utf-32-le", "shift-jis"])
def test_a_file_in_another_encoding_is_named_not_garbled(tmp_path, encoding):
    french = "le caf\u00e9 o\u00f9 \u00e9tait la baleine "
    content = "\u6d77\u306e\u4e2d\u306e\u9be8 " if encoding == "shift-jis" else french
    with pytest.raises(ValueError, match=r"^The text file own.txt is not UTF-8 .*; save it as UTF-8, .* iconv\.$"):
        texts.documents(own(tmp_path, (content * 40).encode(encoding)))


@pytest.mark.parametrize(("unit", "cut"), [("the whale ", " "), ("whale\n", "\n"), ("x", None),
                                           ("\u00e9\u3000", "\u3000")])
def test_a_line_of_megabytes_is_cut_and_nothing_of_it_is_lost(tmp_path, unit, cut):
    content = unit * (3_000_000 // len(unit))
    found = texts.documents(own(tmp_path, content))["text"]
    assert "".join(found) == content and found.str.len().max() <= texts.LONGEST
    assert (found.str.len()[:-1] >= texts.DOCUMENT).all() and len(found) >= 150
    assert cut is None or (found[1:].str[0] == cut).all()


def test_a_long_line_costs_little_memory_and_gives_its_tokens(tmp_path):
    """In one piece it would take 160 bytes a character inside the tokenizers library."""
    content = "the whale in the sea " * 50_000
    tokenizer = checkpoints.load_tokenizer("mini-pythia")
    tracemalloc.start()
    ids = texts.encode(tokenizer, texts.documents(own(tmp_path, content))["text"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * len(content) + 2e7
    assert np.concatenate(ids).tolist() == texts.encode(tokenizer, [content])[0].tolist()  # it is cut between tokens
    assert len(rarity.blocks(ids, range(len(ids))).tokens) > 0.8 * sum(map(len, ids)) / rarity.BLOCK


# ---- counts


@pytest.mark.parametrize(("made", "message"), [
    (np.array([1.0, np.nan, 3.0]), "whole numbers of 0 or more; that of token 1 is nan"),
    (np.array([1, -2, 3]), "that of token 1 is -2"),
    (np.array([1.0, 2.5, 3.0]), "that of token 1 is 2.5"),
    (np.array([1.0, np.inf, 3.0]), "that of token 1 is inf"),
    (np.array([1, 2], dtype=np.int64), r"one count for each of the 3 tokens; its shape is \(2,\)"),
    (np.ones((3, 1)), r"its shape is \(3, 1\)"),
    (np.array(["a", "b", "c"]), "is no .npy file of numbers"),
    (np.array([True, False, True]), "is no .npy file of numbers"),
    (np.array([Bomb(), 1, 2], dtype=object), "is no .npy file of numbers"),
    (b"", "is no .npy file"), (b"\x93NUMPY\x01\x00", "is no .npy file"), (pickle.dumps(Bomb()), "is no .npy file"),
    (b"1,2,3\n", "is no .npy file"),
])
def test_counts_that_are_none_are_named(tmp_path, monkeypatch, made, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "own.npy"
    path.write_bytes(made) if isinstance(made, bytes) else np.save(path, made)
    with refused(ValueError, f"own.npy .*{message}"):
        rarity.read_counts(path, 3)
    assert not (tmp_path / "owned").exists()


def test_counts_are_whole_numbers_whatever_their_type(tmp_path):
    for dtype in (np.uint8, np.int32, np.float64, np.float32):
        np.save(tmp_path / "own.npy", np.array([0, 7, 9, 200], dtype=dtype))
        found = rarity.read_counts(tmp_path / "own.npy", 3)
        assert found.tolist() == [0, 7, 9] and found.dtype == np.int64


# ---- groups of neurons


@pytest.mark.parametrize(("weights", "group", "message"), [
    (np.eye(8), np.arange(0), "one row a neuron"),
    (np.eye(8), np.arange(1), "A tail of 5 needs 6 eigenvalues above zero, here are 1"),
    (np.eye(8), np.arange(5), "A tail of 5 needs 6 eigenvalues above zero, here are 5"),
    (np.zeros((8, 8)), np.arange(8), "here are 0"),
    (np.ones((8, 4)), np.arange(8), "at most as many rows as columns"),
    (np.full((8, 8), np.nan), np.arange(8), "not finite"),
    (np.full((8, 8), np.inf), np.arange(8), "not finite"),
])
def test_a_group_without_a_spectrum_is_one_sentence(weights, group, message):
    with refused(ValueError, message):
        spectra.measure(weights[group][None], fits=0)


@pytest.mark.parametrize("matrix", [np.zeros((0, 8)), np.zeros((8, 0)), np.full((8, 8), np.nan),
                                    np.full((8, 8), np.inf), np.zeros(8)])
def test_weightwatcher_is_given_no_matrix_without_a_spectrum(matrix):
    with pytest.raises(ValueError, match="^The matrix W_in must have rows and columns of finite numbers"):
        spectra.metrics({"W_in": matrix})
