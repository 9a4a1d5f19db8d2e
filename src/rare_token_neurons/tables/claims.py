"""From the tables of notebooks 03 to 08 to the evidence on each claim, one small function a claim, and to the table of their
verdicts on all models (notebook 11).

Where a claim is a difference from control groups, `statistics.claims` says what counts. A table that is not there, or that
lacks the row, makes its claim "cannot be tested", with a sentence that says what to run. Of several checkpoints the last one
counts.
"""

from dataclasses import replace

import pandas as pd

from rare_token_neurons import files, paths, settings as parameters
from rare_token_neurons.statistics import claims as rule
from rare_token_neurons.statistics.claims import Evidence, LEAST_POSITIONS, contrast, item, lightest
from rare_token_neurons.tables.stage import table

EMBEDDED = ("smollm2", "mini-pythia")
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


def ratio(rows):
    """C1: influence of the rare group over the median neuron's; the null is what ranking alone gives."""
    found = row(rows, group="rare", statistic="ratio")
    return item(found, found["positions"], null=found["null"], p=("p_half_normal",))


def plateau(rows, group="rare"):
    """C2 and C7: the plateau's share by change points; p: its head lies further below the line than the null's."""
    found = row(rows, group=group, statistic="plateau")
    return item(found, found["positions"], p=("p_lognormal", "p_half_normal"))


def common_plateau(rows):
    """C7: the plateau's share for common targets."""
    return absent(plateau(rows, "common"), row(rows, group="common", statistic="plateau"))


def absent(evidence, found):
    """Evidence of an absence: a curve without any break, as noise gives, has no plateau in any draw, so it tells nothing."""
    return replace(evidence, low=float("nan"), note="no break can be told") if found.get("breaks") == 0 else evidence


PLATEAU = {"group": "rare", "rule": "change points", "statistic": "plateau"}


def emergence(rows):
    """C3: the plateau's share at the last checkpoint less that at the first, documents in common; p: of the last one."""
    if row(rows, part="first", **PLATEAU)["step"] != 0:
        raise Missing(LATE)
    gain, end = row(rows, part="gain", **PLATEAU), row(rows, part="last", **PLATEAU)
    p = tuple(float(end[name]) for name in ("p_head_lognormal", "p_head_half_normal"))
    return replace(item(gain, gain["positions"]), p=p)


def before_training(rows):
    """C3: the plateau's share at step 0."""
    found = row(rows, part="first", **PLATEAU)
    if found["step"] != 0:
        raise Missing(LATE)
    return absent(item(found, found["positions"]), found)


def dimension(rows):
    """C4: effective dimension over the group's size, at rare positions."""
    found = row(rows, where="rare", group="rare", statistic="effective dimension")
    return contrast(found, "less", found["tokens"])


def pairs(rows, relation):
    """C5: mean correlation at rare positions."""
    found = row(rows, where="rare", group="rare", relation=relation, measure="correlation", statistic="mean")
    return contrast(found, "greater" if relation == "within" else "less", found["tokens"])


def within(rows):
    """C5: mean correlation inside the rare group."""
    return pairs(rows, "within")


def between(rows):
    """C5: mean correlation of the rare group with all other neurons."""
    return pairs(rows, "between")


def hill(rows):
    """C6: Hill exponent of the group's rows of W_in; of a gated MLP's two matrices the one that speaks less for it."""
    return lightest(row(rows, group="rare", rows="raw", statistic="alpha_hill", matrix=name)
                    for name in rows["matrix"].unique() if name != "out")


def modules(rows):
    """C8: modularity of the group's correlations less that of control groups."""
    found = row(rows, main=True)
    return contrast(found, "absent", found["positions"], p=())


# ---- all of them

# claim -> (table, function)
SOURCES = {"C1": ("prominence", ratio), "C2": ("prominence", plateau), "C3 emergence": ("emergence_statistics", emergence),
           "C3 before training": ("emergence_statistics", before_training), "C4": ("activation_dimension", dimension),
           "C5 within": ("coactivation", within), "C5 between": ("coactivation", between), "C6": ("weight_groups", hill),
           "C7": ("prominence", common_plateau), "C8": ("modules", modules)}
NOTEBOOKS = {"prominence": "03", "emergence_statistics": "04", "activation_dimension": "05", "coactivation": "06",
             "weight_groups": "07", "modules": "08"}


def collect(tables):
    """The evidence that tables hold.

    Parameters
    ----------
    tables : name of a table -> DataFrame, or None where it is not there.

    Returns
    -------
    dict of a claim's name to claims.Evidence
    """
    found, whole = {}, any(rows is not None for rows in tables.values())
    for name, (source, function) in SOURCES.items():
        try:
            if not whole:
                raise Missing(PENDING)
            found[name] = function(last(_there(tables, source)))
        except Missing as reason:
            found[name] = Evidence(positions=LEAST_POSITIONS, note=str(reason))
    return found


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
    """The settings of every model in the claims table: the embedded ones with these settings, and the paper's grid."""
    return [replace(settings, model=name) for name in EMBEDDED] + [
        replace(one, recompute=settings.recompute) for one in grid()]


def everywhere(settings):
    """The settings in whose folders the tables and figures about all models lie."""
    return replace(settings, model=parameters.ALL_MODELS)


def _places(one):
    """Where the tables of one model lie that its claims are judged by: dict of name to Path."""
    return {name: one.results / f"{name}.parquet" for name in NOTEBOOKS}


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
        judged = rule.judge(collect(there))
        judged.insert(0, "model", one.model)
        yield judged
