"""Tables of notebook 08, fourth part: does the rare group do more as a whole than its neurons one by one?

The group is chosen on half A of the documents and measured on half B, against random and matched groups.
"""

import numpy as np
import torch

from rare_token_neurons import ablation, activations, comparisons, controls, groups, influences, networks, overlaps, passes, resampling
from rare_token_neurons import tables

DRAWS = 100  # control groups of a kind: joint ablations are not cheap
POSITIONS = 128  # for these
SEARCHED = 100  # positions of the greedy search
LARGEST = 10  # neurons of the greedy search
GROWN = 10  # random groups that grow beside it


def scattered(settings, half, count):
    """At most `count` rare positions of one half, one of each document before a second: (n, 2) tensor, documents (n,)."""
    chosen = tables.positions(settings)
    chosen = chosen[chosen["half"] == half].sample(frac=1, random_state=settings.seed)
    turn = chosen[chosen["group"] == "rare"].groupby("document").cumcount().sort_values(kind="stable")
    return tables.group_positions(chosen.loc[turn.index[:count]], "rare")


def joint(settings):
    """All neurons of a group ablated at once, against the sum of their single effects, at rare positions of half B.

    Returns
    -------
    DataFrame, one row (revision, step, group, draw); group: "rare" (draw 0), "random" or "matched" (100 draws); in nats the
    columns of `groups.synergy`; ratio_low and ratio_high, joint_low and joint_high (95 % over documents, rare group only);
    size, positions, documents
    """

    def rows(revision):
        subject, kept = passes.captured(settings, revision)
        positions, documents = scattered(settings, "B", POSITIONS)
        sample, group = activations.sample(settings, revision, "all"), overlaps.rare_group(settings, revision)
        group = group[np.isin(group, sample.living)]
        nulls = comparisons.control_groups(sample, group, DRAWS, settings.seed)
        sets = np.concatenate([group[None], *nulls.values()])
        options = {"ablation": settings.ablation, "seed": settings.seed, "memory_gb": influences.MEMORY_GB}
        together = groups.joint_changes(subject, kept, positions.to(subject.device), sets, **options)
        used, place = np.unique(sets, return_inverse=True)
        alone = ablation.loss_changes(subject, kept, positions.to(subject.device), neurons=torch.from_numpy(used), **options)
        added, absolute = groups.sum_of_singles(alone, place.reshape(sets.shape))
        table = groups.synergy(together, added, absolute)
        table.insert(0, "draw", np.concatenate([[0], *[np.arange(DRAWS)] * len(nulls)]))
        table.insert(0, "group", np.repeat(["rare", *nulls], [1, *[DRAWS] * len(nulls)]))
        size = np.abs(together[0].double().cpu().numpy()), np.abs(added[0].double().cpu().numpy())
        for name, over in (("joint", None), ("ratio", size[1])):
            ends = resampling.mean(size[0], documents, seed=settings.seed, over=over)[1:]
            table.loc[0, [f"{name}_low", f"{name}_high"]] = ends
        account = {"size": len(group), "positions": len(positions), "documents": len(np.unique(documents))}
        return table.assign(**account).to_dict("records")

    return overlaps.stage(settings, "group_ablation", lambda: overlaps.each_revision(settings, rows), "ensembles")


def search(settings):
    """A group grown neuron by neuron on half A (greedy), beside the individually best ones; both measured on half B.

    Returns
    -------
    DataFrame, one row (revision, step, size): neuron (the greedy search's), best (the individually best of that rank, on
    the same positions), shared (of the two groups so far); on half B, in nats mean |joint change|: greedy, individual,
    random (mean of 10 growing random groups) with _low, _high (their range); gain, greedy over individual, with _low and
    _high (95 % over documents); chosen_on and positions, the numbers of positions of half A and B
    """

    def rows(revision):
        subject, kept = passes.captured(settings, revision)
        options = {"ablation": settings.ablation, "seed": settings.seed, "memory_gb": influences.MEMORY_GB}
        positions, _ = scattered(settings, "A", SEARCHED)
        found = groups.greedy(subject, kept, positions.to(subject.device), LARGEST, **options)
        best = networks.top(found.alone, LARGEST)
        random = controls.random_groups(subject.n_neurons, LARGEST, GROWN, settings.seed)
        grown = [order[:size] for order in (found.neurons, best, *random) for size in range(1, LARGEST + 1)]
        measured, documents = scattered(settings, "B", POSITIONS)
        changes = groups.joint_changes(subject, kept, measured.to(subject.device), grown, **options)
        changes = changes.double().abs().cpu().numpy().reshape(-1, LARGEST, len(measured))
        for at in range(LARGEST):
            greedy, individual, null = changes[0, at], changes[1, at], changes[2:, at].mean(axis=1)
            gain, low, high = resampling.mean(greedy, documents, seed=settings.seed, over=individual)
            yield {"size": at + 1, "neuron": found.neurons[at], "best": best[at],
                   "shared": len(set(found.neurons[: at + 1]) & set(best[: at + 1])), "greedy": greedy.mean(),
                   "individual": individual.mean(), "random": null.mean(), "random_low": null.min(), "random_high": null.max(),
                   "gain": gain, "gain_low": low, "gain_high": high, "chosen_on": len(positions), "positions": len(measured)}

    return overlaps.stage(settings, "greedy_search", lambda: overlaps.each_revision(settings, rows), "ensembles")
