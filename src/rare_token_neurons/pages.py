"""The parts of the README files that code writes: findings, speed, claims, notebooks, tables, each between its markers.

`python -m rare_token_neurons pages` writes them; a test holds them to the tables, notebooks and docstrings.
"""

import argparse
import ast
import inspect
import re

import numpy as np
import pandas as pd

from rare_token_neurons import files, keys, paths, settings
from rare_token_neurons.curve import heads
from rare_token_neurons.figures import claims as draw, influence as ranked
from rare_token_neurons.runner import jobs, report

INDEX = paths.NOTEBOOKS / "index.md"  # of the book: its table of contents is the reading order
# Part of a claim: the question it answers, and its value in words; of heights above a law (e-folds) the ratio is told.
FINDINGS = {
    "C1": ("On rare words, do a few neurons have far more influence than the rest?",
           "{} times the median neuron's; ranked random numbers give {}"),
    "C2 head": ("Do the first neurons stand above the line of the rest, as a plateau?", "{} times the line"),
    "C7 common": ("Do common words lack such a plateau?", "their first neurons stand at {} times the line"),
    "C5 within": ("Are these neurons active together, more than others are?", "correlations {} higher than in random groups"),
    "C3 emergence": ("Does the height of the first neurons grow in training?", "{} times that at the start"),
}
PLAIN = {  # reasons of verdicts, shorter or without a claim's name
    "needs C2 head": "rare words show no plateau to compare with", "not beyond two laws": "two samples of one line differ as much",
    "the model has no checkpoints": "no checkpoints", "cannot be tested against matched groups": "no well-matched groups"}


# ---- claims and findings


def of_claims():
    """The committed claims table."""
    return files.read_table(paths.RESULTS / settings.ALL_MODELS / "claims.parquet")


def claims():
    """Every claim in numbers, as a Markdown table."""
    return draw.markdown(of_claims())


def together():
    """What holds in all, in some or in none of the models, a line a question."""
    return draw.together(of_claims(), settings.check({}))


def finding(row):
    """What one model answers to a question of `FINDINGS`, in words."""
    if row["verdict"] == draw.UNTESTED:
        return f"{row['verdict']}: {PLAIN.get(row['reason'], row['reason'])}"
    why = PLAIN.get(row["reason"], draw.why(row))
    if "e-folds" in row["statistic"]:
        row = row.copy()
        row[["value", "low", "high", "null"]] = np.exp(row[["value", "low", "high", "null"]].astype(float))
        why = re.sub(r"below ([\d.]+)", lambda limit: f"below {draw.number(np.exp(float(limit[1])))} times", why)
    told = FINDINGS[row["name"]][1].format(draw.interval(row), draw.number(row["null"]))
    return f"**{draw.answer(row)}**: {told} ({why})"


def phases(model):
    """Whether law and decay are there on rare words, two answers."""
    rows = of_claims().query("model == @model").set_index("name")
    return ", ".join(f"**{draw.answer(rows.loc[name])}**" for name in ("C2 law", "C2 decay"))


def shared(model):
    """How many of the neurons in a model's rare group are also the most influential ones for common words, in words."""
    found = files.read_table(settings.check({"model": model}).results / "influence.parquet")
    last = found[found["revision"] == found["revision"].iloc[-1]]
    top = heads.head_size(last["neuron"].nunique())
    return f"{ranked.shared(last, top)} of the {top} are among the {top} most influential on common words"


def linear(model):
    """Whether the neurons of a model's head are linear maps that are always on, in words."""
    said, how_many = draw.portraits.answer(draw.linearity(settings.check({}))[model])
    return f"**{said}**: {how_many}"


FURTHER = {"Is the middle of the curve a power law, and does a rapid decay follow?": phases,
           "Are the first neurons others than those of common words?": shared,
           "Are they linear maps that are always on?": linear}


def findings():
    """Findings in plain words as a Markdown table: a question a row, a model that was run a column."""
    found = {model: rows.set_index("name", drop=False).loc[list(FINDINGS)].apply(finding, axis=1)
             for model, rows in of_claims().groupby("model", sort=False) if rows["reason"].iloc[0] != draw.PENDING}
    rows = [["", *map(draw.short, found)], ["---"] * (1 + len(found)),
            *([question, *(said[name] for said in found.values())] for name, (question, _) in FINDINGS.items()),
            *([question, *map(said, found)] for question, said in FURTHER.items())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


# ---- notebooks and figures


def in_order():
    """The notebooks in the order in which to read them: that of the book."""
    found = {path.stem: path for path in jobs.find()}
    return [found[name] for name in re.findall(r"^\d\d_\w+$", INDEX.read_text("utf-8"), re.M)]


def minutes(notebook):
    """What a notebook took, in words: "0.5 minutes (mini-pythia), 1.0 (smollm2)", or "" where it was not measured."""
    measured = pd.read_csv(paths.RESULTS / report.MINUTES)
    rows = measured[measured["notebook"] == notebook.stem]
    return ", ".join(f"{row.seconds / 60:.1f} ({row.model})" for row in rows.itertuples())


def figure(name, preferred, told):
    """A figure as a line: its picture of the preferred model, else of any, and what the first cell tells of it."""
    pictures = sorted(paths.FIGURES.glob(f"*/{name}.png"), key=lambda path: (path.parent.name != preferred, path))
    shown = f"[{name}](../{paths.shown(pictures[0])})" if pictures else f"`{name}`"
    return f"- {shown}" + (re.findall(rf"`{name}`((?: \([^)]+\))?(?:: [^;.]+)?)", told) or [""])[0]


def notebook(path):
    """One notebook as a section: its question, what it took, its tables, its figures."""
    cells = jobs.source(path)
    code, first = "\n".join(text for kind, text in cells if kind == "code"), cells[0][1]
    title, question = first.splitlines()[0].lstrip("# "), re.search(r"\*\*Question\.\*\* (.+)", first)[1]
    tables = ", ".join(f"`{name}`" for name in dict.fromkeys(re.findall(r'\.table\("(\w+)"\)', code)))
    names = dict.fromkeys(re.findall(r'\.save\([^)]*"(fig\w+)"', code))
    preferred = jobs.defaults(path).get("model", settings.ALL_MODELS)
    took = f" Minutes: {said}." if (said := minutes(path)) else ""
    return "\n".join([f"### [{title}]({path.name})", "", question, "", f"Tables: {tables}.{took}", "",
                      *(figure(name, preferred, first) for name in names)])


def notebooks():
    """Every notebook in reading order, with what it makes."""
    return "\n\n".join(map(notebook, in_order()))


# ---- tables


def entry(name, docstring, read_by):
    """One table as a paragraph in Markdown: its name, the notebooks that read it, what it is, its columns."""
    said, _, columns = inspect.cleandoc(docstring).partition("\nReturns\n-------\n")
    where = f" ({', '.join(read_by)})" if read_by else ""
    return f"**{name}**{where}: {' '.join([*said.split(), *columns.split()])}"


def tables():
    """All tables, in the order of the notebooks that read them, as Markdown paragraphs."""
    makers, read = keys.makers(), {}
    for path in jobs.find():
        code = "\n".join(text for kind, text in jobs.source(path) if kind == "code")
        for name in dict.fromkeys(re.findall(r'\.table\("(\w+)"\)', code)):
            read.setdefault(name, []).append(path.name[:2])
    docstrings = {node.name: ast.get_docstring(node) for module in dict.fromkeys(makers.values())
                  for node in ast.parse(keys.TEXTS[module]).body if makers.get(getattr(node, "name", "")) == module}
    modules = list(dict.fromkeys(makers.values()))
    order = sorted(makers, key=lambda name: (read.get(name, ["99"])[0], modules.index(makers[name])))
    return "\n\n".join(entry(name, docstrings[name], read.get(name, [])) for name in order)


# ---- speed


def speed():
    """How many times faster the kernel is than the usual way, and what the paper's own models need, from the tables of the
    benchmark in src/README.md."""
    table = (paths.ROOT / "src/README.md").read_text("utf-8")
    times = {model: int(ratio.replace(",", ""))
             for model, ratio in re.findall(r"^\| (\S+) \| \(c\) .*\(c\)/\(d\) = ([\d,]+)", table, re.M)}
    said = " to ".join(f"{times[model]:,} ({model}{', random weights' * model.startswith('pythia-')})"
                       for model in (min(times, key=times.get), max(times, key=times.get)))
    needed = re.findall(r"^(The paper's grid|Every checkpoint of pythia-410m), (\d+) checkpoints: ([\d.]+) hours", table, re.M)
    hours = "; ".join(f"{what[0].lower()}{what[1:]} ({number} checkpoints) {time} hours" for what, number, time in needed)
    return "All neurons are measured from one forward pass: by a closed form in moments with a bounded error, and by " \
        "the exact sum where the bound is not met. Recomputing the unembedding for each neuron takes " \
        f"{said} times as long. The ranked curves of the paper's own models take, on the benchmark's two cores and " \
        f"without downloads: {hours}."


# ---- writing


WRITTEN = ((findings, paths.ROOT), (speed, paths.ROOT), (notebooks, paths.NOTEBOOKS),
           (together, paths.NOTEBOOKS), (claims, paths.NOTEBOOKS), (tables, paths.DATA))


def between(name, text, made=None):
    """What stands between the markers of a part, or the whole text with `made` in its place."""
    before, rest = text.split(f"<!-- {name} -->\n")
    now, after = rest.split(f"\n<!-- /{name} -->")
    return now if made is None else f"{before}<!-- {name} -->\n{made}\n<!-- /{name} -->{after}"


def main(argv=None):
    """Command line of `pages`: write every part."""
    argparse.ArgumentParser(prog="python -m rare_token_neurons pages", description=__doc__).parse_args(argv)
    for make, folder in WRITTEN:
        readme = folder / "README.md"
        text = between(make.__name__, readme.read_text("utf-8"), make())
        with files.new_file(readme) as temporary:
            temporary.write_text(text, "utf-8")
        print(f"Done: {make.__name__} in {paths.shown(readme)}")
    return 0
