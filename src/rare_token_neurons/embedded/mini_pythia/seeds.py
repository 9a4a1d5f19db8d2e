"""The main curve of mini-pythia trained anew from another seed: one table a suite, which notebook 12 sets side by side.

    make suite SEED=1 STEPS=1536
    python -m rare_token_neurons.embedded.mini_pythia.seeds data/cache/mini-pythia-seed1-steps1536

The second command writes data/results/mini-pythia-seeds/seed1.parquet.
"""

import argparse
import re

import numpy as np
import pandas as pd

from rare_token_neurons import files, paths, settings as parameters
from rare_token_neurons.curve import heads, stored
from rare_token_neurons.models import checkpoints
from rare_token_neurons.tables import influence as influences
from rare_token_neurons.tables.nulls import SHOWN


def name_of(folder):
    """ "data/cache/mini-pythia-seed1-steps1536" -> (1, 1536)."""
    found = re.search(r"seed(\d+)-steps(\d+)/?$", str(folder))
    if not found:
        raise ValueError(f"The folder of a trained suite ends in seed<S>-steps<N>, not {folder}.")
    return tuple(map(int, found.groups()))


def table(folder):
    """What a trained suite's last checkpoint says: its main curve and the heads of it.

    Parameters
    ----------
    folder : a suite's folder, such as "data/cache/mini-pythia-seed1-steps1536".

    Returns
    -------
    DataFrame, one row (group, rank): seed, steps, group (targets), rank, influence, low, high (nats; 95 % over documents),
    and, the same in all rows of a group, neurons, ratio (of the top 1.7 % to the median neuron), positions, documents and
    the columns of `stored.of_heads`: delta with its interval, kappa, word and head (of the fixed head), fitted_delta, ...
    """
    seed, steps = name_of(folder)
    settings = parameters.check({"model": str(folder)})
    revision, parts = checkpoints.revisions(settings.model)[-1], []
    for group in ("rare", "common"):
        found, verdicts, _ = influences.fitted(settings, revision, group)
        curve = found.curve
        ranks = np.unique(np.geomspace(1, len(curve), SHOWN).round().astype(int))
        parts.append(pd.DataFrame({"rank": ranks, "influence": curve[ranks - 1], "low": found.low[ranks - 1],
                                   "high": found.high[ranks - 1]}).assign(
            seed=seed, steps=steps, group=group, neurons=len(curve),
            ratio=curve[: heads.head_size(len(curve))].mean() / np.median(curve), positions=int(found.counts.sum()),
            documents=len(found.counts), **stored.of_heads(found.own, found.drawn, verdicts)))
    made = pd.concat(parts, ignore_index=True)
    return made[stored.KEPT + [name for name in made if name not in stored.KEPT]]


def main():
    """Command line: write the table of one suite."""
    parser = argparse.ArgumentParser(prog="python -m rare_token_neurons.embedded.mini_pythia.seeds",
                                     description=main.__doc__)
    parser.add_argument("folder", help="of a suite's checkpoints, such as data/cache/mini-pythia-seed1-steps1536")
    folder = parser.parse_args().folder
    path = paths.MINI_PYTHIA_SEEDS / f"seed{name_of(folder)[0]}.parquet"
    files.write_table(path, table(folder))
    print(f"Done: {paths.shown(path)}")


if __name__ == "__main__":
    main()
