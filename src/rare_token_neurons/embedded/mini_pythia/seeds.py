"""The main curve of mini-pythia trained anew from another seed: one table a suite, which notebook 09 sets side by side.

    make suite SEED=1 STEPS=1536
    python -m rare_token_neurons.embedded.mini_pythia.seeds data/cache/mini-pythia-seed1-steps1536

The second command writes data/results/mini-pythia-seeds/seed1.parquet.
"""

import argparse
import re

import numpy as np
import pandas as pd

from rare_token_neurons import files, paths, settings as parameters
from rare_token_neurons.curve import nulls
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
    """What a trained suite's last checkpoint says: its main curve and its phases.

    Parameters
    ----------
    folder : a suite's folder, such as "data/cache/mini-pythia-seed1-steps1536".

    Returns
    -------
    DataFrame, one row (group, rank): seed, steps, group (targets), rank, influence, low, high (nats; 95 % over documents),
    and, the same in all rows of a group, plateau_end, plateau_low, plateau_high (rank; 0: no plateau), kappa, departure,
    p_plateau (against the null family that fits best), ratio (of the top 1.7 % to the median neuron), positions, documents
    """
    seed, steps = name_of(folder)
    settings = parameters.check({"model": str(folder)})
    revision, parts = checkpoints.revisions(settings.model)[-1], []
    for group in ("rare", "common"):
        _, changes, families, (_, counts) = influences.fitted(settings, revision, group)
        best, n = families[nulls.best(families)], len(changes.curve)
        ranks = np.unique(np.geomspace(1, n, SHOWN).round().astype(int))
        low, high = changes.intervals["plateau_end"]
        top = int(np.ceil(influences.GROUP_SHARE * n))
        parts.append(pd.DataFrame({"rank": ranks, "influence": changes.curve[ranks - 1], "low": changes.low[ranks - 1],
                                   "high": changes.high[ranks - 1]}).assign(
            group=group, neurons=n, plateau_end=changes.boundaries[0], plateau_low=low, plateau_high=high,
            kappa=changes.kappa, departure=best.departure, p_plateau=best.p_plateau,
            ratio=changes.curve[:top].mean() / np.median(changes.curve), positions=int(counts.sum()), documents=len(counts)))
    made = pd.concat(parts, ignore_index=True)
    made.insert(0, "steps", steps)
    made.insert(0, "seed", seed)
    return made


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
