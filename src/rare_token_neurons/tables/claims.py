"""From the tables of notebooks 03 to 08 to the evidence on each claim, one small function a claim, and to the table of their
verdicts on all models (notebook 11).

Where a claim is a difference from control groups, `statistics.claims` says what counts. A table that is not there, or that
lacks the row, makes its claim "cannot be tested", with a sentence that says what to run. Of several checkpoints the last one
counts.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from rare_token_neurons import files, paths, settings as parameters
from rare_token_neurons.curve import heads
from rare_token_neurons.packages import EMBEDDED, NAMED
from rare_token_neurons.statistics import claims as rule, controls
from rare_token_neurons.statistics.claims import Evidence, LEAST_POSITIONS, contrast, item, lightest
from rare_token_neurons.tables.stage import made_here, table

GRID = paths.DATA / "paper_grid.csv"  # the paper's own configuration, a row a model
# What a note of the table says: named here, for the words of a `raise` are no part of a key.
PENDING, LATE, ONE = "not run yet", "the first checkpoint is not step 0", "the model has no checkpoints"
NO_TABLE = "no table yet: run notebook {}"


class Missing(LookupError):
    """What a claim needs is not in the table; the message says so in a few words."""


# ---- reading


def last(rows):
    """The rows of the last checkpoint, in a table with a revision."""
    return rows[rows["revision"] == rows["revision"].iloc[-1]] if len(rows) and "revision" in rows else rows


def row(rows, /, **where):
    """The one row in which the columns have these values."""
    for column, value in where.items():
        rows = rows[rows[column] == value] if column in rows else rows.iloc[:0]
    if len(rows) != 1:
        reason = f"the table has {len(rows)} rows for {', '.join(map(str, where.values()))}"
        raise Missing(reason)
    return rows.iloc[0]


# ---- one function a claim

LAWS = ("p_laws",)


def ratio(rows):
    """C1: influence of the rare group over the median neuron's; the null is what ranking alone gives."""
    found = row(rows, group="rare", statistic="ratio")
    return item(found, found["positions"], null=found["null"], p=("p_half_normal",))


def head(rows):
    """C2: mean height of the head above its law (`heads.DECIDES`), and what it is called; p against every null."""
    found = row(rows, group="rare", statistic="head")
    made = item(found, found["positions"], p=("p_lognormal", "p_half_normal", "p_law"))
    return replace(made, word=found["word"], floor=float(found["p_floor"]))


def law(rows):
    """C2: slope of the law, and what the test of a truncated power law says of it."""
    found = row(rows, group="rare", statistic="law")
    p = f"Goodness of fit: p = {found['p_fit']:.2g}." if np.isfinite(found["p_fit"]) else ""
    return replace(item(found, found["positions"], null=np.nan), word=found["verdict"], detail=p)


def decay(rows):
    """C2: share of the draws with a steeper stretch after the law, beside the largest share of null curves."""
    found = row(rows, group="rare", statistic="decay")
    return Evidence(float(found["value"]), null=float(found["null"]), positions=int(found["positions"]))


def emergence(rows):
    """C3: the head's height (first 1.7 %) at the last checkpoint less that at step 0, documents in common."""
    _from_step_0(rows)
    return _contrast(row(rows, part="gain", group="rare", statistic="delta"))


def before_training(rows):
    """C3: no plateau at step 0 (first 1.7 %)."""
    return _none(_from_step_0(rows))


def contrasted(rows):
    """C7: the head's height (first 1.7 %) on rare less on common targets, documents in common."""
    return _contrast(row(rows, group="rare", statistic="contrast"))


def common(rows):
    """C7: no plateau on common targets (`heads.DECIDES`)."""
    return _none(row(rows, group="common", statistic="head"))


def _from_step_0(rows):
    found = row(rows, part="first", group="rare", statistic="delta")
    if found["step"] != 0:
        raise Missing(LATE)
    return found


def _contrast(found):
    return replace(item(found, found["positions"], p=LAWS), floor=heads.FLOOR)


def _none(found):
    return replace(item(found, found["positions"]), word=found["word"], margin=float(found["null_sd"]))


def dimension(rows):
    """C4: effective dimension over the group's size, at rare positions."""
    found = row(rows, where="rare", group="rare", statistic="effective dimension")
    return contrast(found, "less", found["tokens"])


def pairs(rows, relation, statistic, side):
    """C5: correlation at rare positions."""
    found = row(rows, where="rare", group="rare", relation=relation, measure="correlation", statistic=statistic)
    return contrast(found, side, found["tokens"])


def within(rows):
    """C5: mean correlation inside the rare group; of a gated MLP, whose signs are arbitrary, the mean absolute one."""
    return pairs(rows, "within", "mean absolute" if gated({"coactivation": rows}) else "mean", "greater")


def between(rows):
    """C5: mean correlation of the rare group with all other neurons."""
    if gated({"coactivation": rows}):
        raise Missing("the sign of a gated neuron is arbitrary")
    return pairs(rows, "between", "mean", "less")


HEAVY = {"alpha_hill": "Hill by fix-finger", "alpha_hill_half": "Hill at k = m/2", "stable_rank": "stable rank",
         "entropy": "entropy"}


def hill(rows, matrix):
    """C6: Hill exponent of the group's rows of one input matrix; beside it, which other measures of a heavy tail agree."""
    rows = rows[(rows["group"] == "rare") & (rows["rows"] == "raw") & (rows["matrix"] == matrix)]
    found = lightest([row(rows, statistic="alpha_hill")])
    kinds = controls.KINDS[:1] if found.unmatched else controls.KINDS
    told = {True: [], False: []}
    for statistic, name in HEAVY.items():
        of = rows[rows["statistic"] == statistic]
        if len(of) == 1:
            told[all((of[f"p_{kind}"] < rule.SIGNIFICANT).all() for kind in kinds)].append(name)
    against, said = " and ".join(f"{kind} groups" for kind in kinds), {by: ", ".join(names) for by, names in told.items()}
    detail = f"A heavier tail than {against} by {said[True] or 'none of the measures'}"
    return replace(found, detail=f"{detail}; not by {said[False]}." if said[True] and said[False] else f"{detail}.")


def modules(rows):
    """C8: modularity of the group's correlations less that of control groups; of a gated MLP on absolute edges."""
    found = row(rows, main=True, weights="absolute" if gated({"modules": rows}) else "positive")
    return contrast(found, "absent", found["positions"], p=())


# ---- all of them

# claim -> (table, function)
SOURCES = {"C1": ("prominence", ratio), "C2 head": ("prominence", head), "C2 law": ("prominence", law),
           "C2 decay": ("prominence", decay), "C3 emergence": ("emergence_statistics", emergence),
           "C3 before training": ("emergence_statistics", before_training), "C4": ("activation_dimension", dimension),
           "C5 within": ("coactivation", within), "C5 between": ("coactivation", between),
           **{f"C6 {part}": ("weight_groups", partial(hill, matrix=matrix))
              for part, matrix in (("W_in", "in"), ("gate", "gate"), ("up", "up"))},
           "C7 contrast": ("prominence", contrasted), "C7 common": ("prominence", common), "C8": ("modules", modules)}
NOTEBOOKS = {"prominence": "03", "emergence_statistics": "04", "activation_dimension": "05", "coactivation": "06",
             "weight_groups": "07", "modules": "08"}


def gated(tables):
    """Whether the model's MLPs are gated, as its tables say; False where none of them is there."""
    known = [tables[name] for name in ("coactivation", "modules") if tables.get(name) is not None]
    if any("gated" in rows and rows["gated"].any() for rows in known):
        return True
    spectra = tables.get("weight_groups")
    return spectra is not None and bool(spectra["matrix"].eq("gate").any())


def collect(tables):
    """The evidence that tables hold.

    Parameters
    ----------
    tables : name of a table -> DataFrame, or None where it is not there.

    Returns
    -------
    dict of a claim's name to claims.Evidence, for the claims about such a model
    """
    found, whole = {}, any(rows is not None for rows in tables.values())
    for claim in rule.of_mlp(gated(tables)):
        source, function = SOURCES[claim.name]
        try:
            if not whole:
                raise Missing(PENDING)
            found[claim.name] = function(last(_there(tables, source)))
        except Missing as reason:
            found[claim.name] = Evidence(positions=LEAST_POSITIONS, note=str(reason))
    return found


def judged(tables):
    """The claims table of one model (`statistics.claims.judge`) from its tables, as `collect` takes them."""
    return rule.judge(collect(tables), rule.of_mlp(gated(tables)))


def _there(tables, source):
    if tables.get(source) is not None:
        return tables[source]
    named = [rows["revision"] for rows in tables.values() if rows is not None and "revision" in rows]
    if source.startswith("emergence") and any((names == "").all() for names in named):
        raise Missing(ONE)
    raise Missing(NO_TABLE.format(NOTEBOOKS[source]))


def grid():
    """The settings of the paper's own configuration, one a model: the rows of data/paper_grid.csv."""
    return [parameters.check(values) for values in pd.read_csv(GRID).to_dict("records")]


def models(settings):
    """The settings of every model in the claims table: the embedded ones with these settings, others of `packages.NAMED`
    that have tables, and the paper's grid."""
    named = [replace(settings, model=name) for name in NAMED]
    return [one for one in named if one.model in EMBEDDED or _lying(one)] + [
        replace(one, recompute=settings.recompute) for one in grid()]


def everywhere(settings):
    """The settings in whose folders the tables and figures about all models lie."""
    return replace(settings, model=parameters.ALL_MODELS)


def _places(one):
    """Where the tables of one model lie that its claims are judged by: dict of name to Path."""
    return {name: one.results / f"{name}.parquet" for name in NOTEBOOKS}


def _lying(one):
    return [place for place in _places(one).values() if place.exists()]


def from_commit(settings):
    """Names of the models whose tables are read as they were committed: run on request alone, and not in this checkout."""
    return [one.model for one in models(settings)
            if one.model in NAMED and one.model not in EMBEDDED and not all(map(made_here, _lying(one)))]


def linearity(settings):
    """What the heads are made of: model -> rows of its table `linearity` at rare targets of the last checkpoint, where there
    is one."""
    found = {one.model: one.results / "linearity.parquet" for one in models(settings)}
    return {model: last(files.read_table(place)).query("group == 'rare'") for model, place in found.items() if place.exists()}


class Tables:
    """What the claims are made from: the tables of all models, as they lie there."""

    @staticmethod
    def inputs(settings):
        """Hashes of the tables; None where there is none."""
        return {f"{one.model}: {name}": files.sha256(place)
                for one in models(settings) for name, place in _places(one).items()}


@table(Tables, at=everywhere)
def claims(settings):
    """The claims table (`statistics.claims.judge`) of all models, one below the other, with a column `model` before it.

    It is made anew when a table that it reads has changed, has come or has gone.
    """
    for one in models(settings):
        there = {name: files.read_table(place) if place.exists() else None for name, place in _places(one).items()}
        made = judged(there)
        made.insert(0, "model", one.model)
        yield made
