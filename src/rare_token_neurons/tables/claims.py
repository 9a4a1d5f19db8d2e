"""From the tables of notebooks 03 to 08 to the evidence on each claim: one small function a claim.

Where a claim is a difference from control groups, `differences` says what counts. A table that is not there, or that lacks
the row, makes its claim "cannot be tested", with a sentence that says what to run. Of several checkpoints the last one counts.
"""

import hashlib
from dataclasses import replace

import pandas as pd

from rare_token_neurons import files, keys, paths, settings as parameters
from rare_token_neurons.statistics import claims as rule
from rare_token_neurons.statistics.claims import Evidence, LEAST_POSITIONS, contrast, item, lightest
from rare_token_neurons.tables import stage

EMBEDDED = ("smollm2", "mini-pythia")
GRID = paths.DATA / "paper_grid.csv"  # the paper's own configuration, a row a model
PENDING = "not run yet"


class Missing(LookupError):
    """What a claim needs is not in the table; the message says so in a few words."""


# ---- reading


def last(table):
    """The rows of the last checkpoint, in a table with a revision."""
    return table[table["revision"] == table["revision"].iloc[-1]] if len(table) and "revision" in table else table


def row(table, **where):
    """The one row in which the columns have these values."""
    for column, value in where.items():
        table = table[table[column] == value] if column in table else table.iloc[:0]
    if len(table) != 1:
        raise Missing(f"the table has {len(table)} rows for {', '.join(map(str, where.values()))}")
    return table.iloc[0]


# ---- one function a claim


def ratio(table):
    """C1: influence of the rare group over the median neuron's; the null is what ranking alone gives."""
    found = row(table, group="rare", statistic="ratio")
    return item(found, found["positions"], null=found["null"], p=("p_half_normal",))


def plateau(table, group="rare"):
    """C2 and C7: the plateau's share by change points; p: its head lies further below the line than the null's."""
    found = row(table, group=group, statistic="plateau")
    return item(found, found["positions"], p=("p_lognormal", "p_half_normal"))


def common_plateau(table):
    """C7: the plateau's share for common targets."""
    return absent(plateau(table, "common"), row(table, group="common", statistic="plateau"))


def absent(evidence, found):
    """Evidence of an absence: a curve without any break, which noise gives too, has no plateau in any draw, and tells nothing."""
    return replace(evidence, low=float("nan"), note="no break can be told") if found.get("breaks") == 0 else evidence


PLATEAU = {"group": "rare", "rule": "change points", "statistic": "plateau"}


def emergence(table):
    """C3: the plateau's share at the last checkpoint less that at the first, documents in common; p: of the last one."""
    if row(table, part="first", **PLATEAU)["step"] != 0:
        raise Missing("the first checkpoint is not step 0")
    gain, end = row(table, part="gain", **PLATEAU), row(table, part="last", **PLATEAU)
    p = tuple(float(end[name]) for name in ("p_head_lognormal", "p_head_half_normal"))
    return replace(item(gain, gain["positions"]), p=p)


def before_training(table):
    """C3: the plateau's share at step 0."""
    found = row(table, part="first", **PLATEAU)
    if found["step"] != 0:
        raise Missing("the first checkpoint is not step 0")
    return absent(item(found, found["positions"]), found)


def dimension(table):
    """C4: effective dimension over the group's size, at rare positions."""
    found = row(table, where="rare", group="rare", statistic="effective dimension")
    return contrast(found, "less", found["tokens"])


def pairs(table, relation):
    """C5: mean correlation at rare positions."""
    found = row(table, where="rare", group="rare", relation=relation, measure="correlation", statistic="mean")
    return contrast(found, "greater" if relation == "within" else "less", found["tokens"])


def within(table):
    """C5: mean correlation inside the rare group."""
    return pairs(table, "within")


def between(table):
    """C5: mean correlation of the rare group with all other neurons."""
    return pairs(table, "between")


def hill(table):
    """C6: Hill exponent of the group's rows of W_in; of a gated MLP's two matrices the one that speaks less for the claim."""
    return lightest(row(table, group="rare", rows="raw", statistic="alpha_hill", matrix=name)
                    for name in table["matrix"].unique() if name != "out")


def modules(table):
    """C8: modularity of the group's correlations less that of control groups."""
    found = row(table, main=True)
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
    found, whole = {}, any(table is not None for table in tables.values())
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
    named = [table["revision"] for table in tables.values() if table is not None and "revision" in table]
    if source.startswith("emergence") and any((names == "").all() for names in named):
        raise Missing("the model has no checkpoints")
    raise Missing(f"no table yet: run notebook {NOTEBOOKS[source]}")


def grid():
    """The settings of the paper's own configuration, one a model: the rows of data/paper_grid.csv."""
    return [parameters.check(values) for values in pd.read_csv(GRID).to_dict("records")]


def models(settings):
    """The settings of every model in the claims table: the embedded ones with these settings, and the paper's grid."""
    return [replace(settings, model=name) for name in EMBEDDED] + [replace(one, recompute=settings.recompute) for one in grid()]


def claims(settings):
    """The claims table (`claims.judge`) of all models, one below the other, with a column `model` before it.

    It is made anew when a table that it reads has changed, has come or has gone.
    """
    places = {(one, name): one.results / f"{name}.parquet" for one in models(settings) for name in NOTEBOOKS}
    inputs = {paths.shown(place): hashlib.sha256(place.read_bytes()).hexdigest() if place.exists() else None
              for place in places.values()}

    def compute():
        parts = []
        for one in models(settings):
            there = {name: files.read_table(place) if place.exists() else None
                     for (model, name), place in places.items() if model == one}
            part = rule.judge(collect(there))
            part.insert(0, "model", one.model)
            parts.append(part)
        return pd.concat(parts, ignore_index=True)

    return stage.table_at(everywhere(settings).results / "claims.parquet", keys.key({}, inputs, ["evidence"]), compute,
                       recompute=settings.recompute)


def everywhere(settings):
    """The settings under whose folders lie the tables and figures about all models."""
    return replace(settings, model=parameters.ALL_MODELS)
