"""Which Pythons the repository is installed on, and whether its pins can be had there."""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from packaging.specifiers import SpecifierSet

from rare_token_neurons import paths

LATER = ("3.12", "3.13", "3.14")
TAGS = "cp{0}{1}-cp{0}{1}-".format(*sys.version_info)  # of a wheel for this Python alone


def pins():
    """(pin, its distribution) of every line of requirements.lock that is installed here."""
    for pin in re.findall(r"^\S+==\S+$", (paths.ROOT / "requirements.lock").read_text(), re.M):
        try:
            yield pin, distribution(pin.split("==")[0])
        except PackageNotFoundError:  # of another extra
            continue


def test_every_pin_has_a_wheel_for_each_python(tmp_path):
    """What is compiled for one Python is asked for at the package index; the rest says what it needs."""
    needs = {pin: SpecifierSet(package.metadata.get("Requires-Python") or "") for pin, package in pins()}
    compiled = [pin for pin, package in pins() if TAGS in (package.read_text("WHEEL") or "")]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--retries=0", "--no-deps",
               "--only-binary=:all:", *compiled, f"--target={tmp_path}", "--python-version"]
    asked = {python: subprocess.Popen([*command, python], stderr=subprocess.PIPE, text=True) for python in LATER}
    said = {python: process.communicate()[1] for python, process in asked.items()}
    assert not [(pin, python) for pin, needed in needs.items() for python in LATER
                if not needed.contains(f"{python}.0")]
    if any("(from versions: none)" in words for words in said.values()):
        pytest.skip("the package index does not answer")
    assert len(compiled) > 20 and not any(process.returncode for process in asked.values()), said


def test_the_check_runs_on_each_python_with_actions_that_cannot_change():
    text = (paths.ROOT / ".github/workflows/tests.yml").read_text()
    assert re.search(r"python: \[(.+)\]", text)[1] == ", ".join(f'"{version}"' for version in ("3.11", *LATER))
    used = re.findall(r"uses: (\S+)", text)
    assert used and all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action) for action in used)
    assert "secrets." not in text


@pytest.mark.parametrize("there, taken", [(("3.11", "3.13"), "3.11"), (("3.12", "3.14", "3.13"), "3.14"),
                                          (("3.12",), "3.12")])
def test_make_takes_python_3_11_else_the_newest(tmp_path, there, taken):
    for name in ("3", "3.11", *LATER):
        (tmp_path / f"python{name}").write_text(f"#!/bin/sh\nexit {int(name not in there)}\n")
        (tmp_path / f"python{name}").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    listed = subprocess.run(["make", "help"], cwd=paths.ROOT, env=environment, capture_output=True, text=True,
                            check=True)
    assert f"PYTHON=python{taken} " in listed.stdout
    asked = subprocess.run(["make", "help", "PYTHON=mine"], cwd=paths.ROOT, capture_output=True, text=True, check=True)
    assert "PYTHON=mine " in asked.stdout


def test_another_python_is_refused_in_one_sentence(tmp_path):
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(paths.ROOT / name, tmp_path)
    own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # `make test` is around it
    done = subprocess.run(["make", "figures", "PYTHON=false"], cwd=tmp_path, env=own, capture_output=True, text=True)
    assert done.returncode and done.stdout == "Python 3.11, 3.12, 3.13 or 3.14 is needed; name it with make " \
        "PYTHON=/path/to/python3.11.\n"


@pytest.mark.parametrize("name, ours, own", [("OMP_WAIT_POLICY", "PASSIVE", "ACTIVE"),
                                             ("THP_MEM_ALLOC_ENABLE", "1", "0")])
def test_torch_is_told_how_to_wait_and_to_lay_out_memory_unless_the_user_has(name, ours, own):
    """The package says so before torch is loaded: in a kernel, a row of a grid, a command or a script."""
    code = f"import os, sys, rare_token_neurons\nprint(os.environ['{name}'], 'torch' in sys.modules)"
    bare = {one: value for one, value in os.environ.items() if one != name}
    for given, expected in (({}, ours), ({name: own}, own)):
        done = subprocess.run([sys.executable, "-c", code], env=bare | given, capture_output=True, text=True,
                              check=True)
        assert done.stdout.split() == [expected, "False"]
