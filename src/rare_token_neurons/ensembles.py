"""Tables of notebook 08, third part: the rare group as a whole. Is it a module, and does it do more than its neurons?

The group is chosen on half A of the documents and measured on half B, against random and matched groups.
"""

import numpy as np
import torch

from rare_token_neurons import ablation, comparisons, controls, geometry, groups, influences, networks, passes, resampling
from rare_token_neurons import overlaps, tables

NULLS = 200  # control groups of a kind: communities and joint ablations are not cheap
BASELINES = 10  # of them, whose communities are found anew for every draw of documents
RESAMPLES = 200  # draws of documents
WEIGHTS = ("positive", "absolute")
JOINED = 100  # control groups of a kind that are ablated as a whole
POSITIONS = 128  # for that
SEARCHED = 100  # positions of the greedy search
LARGEST = 10  # neurons of the greedy search
GROWN = 10  # random groups that grow beside it


# ---- is it a module?


def modules(settings):
    """Modularity of the rare group's correlation graph (Louvain's communities) against control groups.

    Returns
    -------
    DataFrame, one row (revision, step, where, weights, resolution); where: "rare" or "all" positions; weights: "positive"
    (negative correlations are no edge) or "absolute"; main: True for the one row a revision that the claim is judged by
    (rare positions, positive weights, resolution 1): value, low, high (95 % over documents), communities (of the first
    seed); random and matched (means of 200 control groups), each with _low, _high (95 % of them), p_ (two-sided, empirical)
    and z_ (standard deviations from their mean); less_random and less_matched, value less the controls' mean, with _low and
    _high (95 % over documents, resampled in the group and its controls alike; main row only); size, positions, documents
    """

    def rows(revision):
        for where in ("rare", "all"):
            for weights in WEIGHTS:
                for resolution in networks.RESOLUTIONS if weights == "positive" else (1.0,):
                    main = (where, weights, resolution) == ("rare", "positive", 1.0)
                    yield {"where": where, "weights": weights, "resolution": resolution, "main": main} | _modularity(
                        settings, revision, where, weights, resolution, main)

    return overlaps.stage(settings, "modules", lambda: overlaps.each_revision(settings, rows), "ensembles")


def _modularity(settings, revision, where, weights, resolution, main):
    sample, group, nulls = _compared(settings, revision, where)

    def found(block):
        return networks.modularity(np.nan_to_num(block), resolution, 1, weights)

    def drawn(members):
        made = resampling.moments(sample.values[:, members], sample.documents)
        return resampling.bootstrap(found, made, draws=RESAMPLES, seed=settings.seed)

    matrix = sample.matrices["correlation"]
    value, samples = drawn(group)
    row = {"value": value, "communities": len(networks.communities(geometry.within(matrix, group), resolution, 0, weights))}
    row["low"], row["high"] = comparisons.spread(value, samples)
    for kind in ("random", "matched"):
        made = nulls.get(kind)
        if made is None:  # too few living neurons to match
            row |= dict.fromkeys([kind, *(f"{name}_{kind}" for name in ("p", "z", "less"))], np.nan)
            row |= dict.fromkeys([f"{name}_{end}" for name in (kind, f"less_{kind}") for end in ("low", "high")], np.nan)
            continue
        null = found(geometry.within(matrix, made))
        row |= {kind: null.mean(), f"{kind}_low": np.quantile(null, 0.025), f"{kind}_high": np.quantile(null, 0.975),
                f"p_{kind}": controls.empirical_p(value, null), f"z_{kind}": (value - null.mean()) / null.std(ddof=1),
                f"less_{kind}": value - null.mean(), f"less_{kind}_low": np.nan, f"less_{kind}_high": np.nan}
        if main:
            others = np.mean([drawn(one)[1] for one in made[:BASELINES]], axis=0)
            row[f"less_{kind}_low"], row[f"less_{kind}_high"] = comparisons.spread(value - null.mean(), samples - others)
    return row | {"size": len(group), "positions": len(sample.values), "documents": len(np.unique(sample.documents))}


def _compared(settings, revision, where):
    """The sample of half B, the rare group without constant neurons, and its control groups."""
    sample, group = overlaps.measured(settings, revision, where), overlaps.rare_group(settings, revision)
    group = group[np.isin(group, sample.living)]
    return sample, group, comparisons.control_groups(sample, group, NULLS, settings.seed)


def members(settings):
    """The correlations behind the main row: inside the rare group and inside a typical random group, by community.

    Returns
    -------
    DataFrame, one row (revision, step, group, i, j): correlation of neurons i and j, community of i (1 is the largest);
    the random group is the one whose modularity is the median
    """

    def rows(revision):
        sample, group, nulls = _compared(settings, revision, "rare")
        matrix = sample.matrices["correlation"]
        order = np.argsort(networks.modularity(geometry.within(matrix, nulls["random"]), 1.0, 1), kind="stable")
        for name, chosen in (("rare", group), ("random", nulls["random"][order[len(order) // 2]])):
            parts = sorted(networks.communities(geometry.within(matrix, chosen)), key=lambda part: (-len(part), min(part)))
            community = {chosen[at]: number for number, part in enumerate(parts, 1) for at in part}
            for i in sorted(chosen, key=community.get):
                for j in chosen:
                    yield {"group": name, "i": i, "j": j, "correlation": matrix[i, j], "community": community[i]}

    return overlaps.stage(settings, "module_members", lambda: overlaps.each_revision(settings, rows), "ensembles")


# ---- does it do more together?


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
        _, group, nulls = _compared(settings, revision, "all")
        sets = np.concatenate([group[None], *(made[:JOINED] for made in nulls.values())])
        options = {"ablation": settings.ablation, "seed": settings.seed, "memory_gb": influences.MEMORY_GB}
        together = groups.joint_changes(subject, kept, positions.to(subject.device), sets, **options)
        used, place = np.unique(sets, return_inverse=True)
        alone = ablation.loss_changes(subject, kept, positions.to(subject.device), neurons=torch.from_numpy(used), **options)
        added, absolute = groups.sum_of_singles(alone, place.reshape(sets.shape))
        table = groups.synergy(together, added, absolute)
        table.insert(0, "draw", np.concatenate([[0], *[np.arange(JOINED)] * len(nulls)]))
        table.insert(0, "group", np.repeat(["rare", *nulls], [1, *[JOINED] * len(nulls)]))
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
