"""Imports are followed, sources are those that the process began with, and the libraries are those that are installed."""

import numpy
import pytest

from rare_token_neurons import keys


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of its own: `top` imports `middle` imports `bottom`, which imports `top`; nobody imports `beside`."""
    written = {"__init__": "", "top": "import os\n\nfrom tiny import (middle,\n    other)\n", "other": "X = 1\n",
               "middle": "def late():\n    from tiny.bottom import VALUE\n    return VALUE\n",
               "bottom": "from tiny import top, absent\nimport tiny.last as last\n", "last": "", "beside": "VALUE = 1\n"}
    for name, source in written.items():
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.setattr(keys, "PACKAGE", "tiny")
    monkeypatch.setattr(keys, "TEXTS", keys.read(tmp_path))
    keys._names.cache_clear()
    keys.source_hash.cache_clear()
    yield tmp_path
    keys._names.cache_clear()
    keys.source_hash.cache_clear()


def test_imports_are_followed(package):
    assert set(keys.imported("from tiny.middle import late\nimport numpy")) == {"middle", "bottom", "top", "other", "last"}
    assert set(keys.code_behind("last")) == {"last"} and keys.imported("import numpy, tiny") == {}
    assert keys.code_behind("top")["other"] == "X = 1"


def test_words_about_code_are_no_part_of_it():
    code = '"""What it is for."""\n\nclass One:  # a thing\n    """A thing."""\n\n\ndef two(x):\n    """Twice."""\n    return (x\n            * 2)\n'
    assert keys.statements(code) == keys.statements("class One:\n    pass\ndef two(x):\n    return x * 2")
    assert keys.statements("X = '# no comment'") != keys.statements("X = '# another'")
    assert keys.statements("def two():\n    return 'twice'") != keys.statements("def two():\n    return 'Twice'")


@pytest.mark.parametrize("edited, changes", [("top", True), ("other", True), ("middle", True), ("bottom", True), ("beside", False)])
def test_a_new_process_sees_an_edit_and_this_one_does_not(package, monkeypatch, edited, changes):
    before = keys.source_hash("top")
    with (package / f"{edited}.py").open("a") as file:
        file.write("LATER = 1\n")
    keys.source_hash.cache_clear()
    assert keys.source_hash("top") == before
    monkeypatch.setattr(keys, "TEXTS", keys.read(package))
    keys.source_hash.cache_clear()
    assert (keys.source_hash("top") != before) is changes


def test_a_real_module_takes_in_what_it_imports():
    assert set(keys.code_behind("text")) < set(keys.code_behind("training"))
    assert set(keys.imported("from rare_token_neurons.paths import ROOT")) == {"paths"}


def test_the_libraries_are_those_installed():
    found = keys.libraries()
    assert found["numpy"] == numpy.__version__ and {"torch", "transformers", "weightwatcher"} <= set(found)
    assert "pytest" not in found
