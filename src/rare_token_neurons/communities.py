"""Tables of notebook 08, third part: is the rare group a module among the neurons?

The group is chosen on half A of the documents; its correlation graph is that of half B, against those of random and matched
groups of the same size.
"""

import numpy as np

from rare_token_neurons import activations, comparisons, controls, geometry, networks, overlaps, resampling

DRAWS = 200  # control groups of a kind: communities are not cheap
BASELINES = 10  # of them, whose communities are found anew for every draw of documents
RESAMPLES = 200  # draws of documents
SEEDS = 20  # of Louvain's algorithm, for the rare group; the controls take one each
WEIGHTS = ("positive", "absolute")


def modules(settings):
    """Modularity of the rare group's correlation graph (Louvain's communities) against control groups.

    Returns
    -------
    DataFrame, one row (revision, step, where, weights, resolution); where: "rare" or "all" positions; weights: "positive"
    (negative correlations are no edge) or "absolute"; main: True for the one row a revision that the claim is judged by
    (rare positions, positive weights, resolution 1): value, low, high (95 % over documents), communities (of the first
    seed), seeds_low and seeds_high (range of the value over 20 seeds of the algorithm); random and matched (means of 200
    control groups), each with _low, _high (95 % of them), p_ (two-sided, empirical) and z_ (standard deviations from their
    mean); less_random and less_matched, value less the controls' mean, with _low and _high (95 % over documents, resampled
    in the group and its controls alike; main row only); size, positions, documents, imbalance_scale and imbalance_norm
    (what matching missed, in standard deviations)
    """

    def rows(revision):
        for where in ("rare", "all"):
            for weights in WEIGHTS:
                for resolution in networks.RESOLUTIONS if weights == "positive" else (1.0,):
                    main = (where, weights, resolution) == ("rare", "positive", 1.0)
                    yield {"where": where, "weights": weights, "resolution": resolution, "main": main} | _modularity(
                        settings, revision, where, weights, resolution, main)

    return overlaps.stage(settings, "modules", lambda: overlaps.each_revision(settings, rows), "communities")


def _modularity(settings, revision, where, weights, resolution, main):
    sample, group, nulls = compared(settings, revision, where)

    def found(block):
        return networks.modularity(np.nan_to_num(block), resolution, 1, weights)

    def drawn(members):
        made = resampling.moments(sample.values[:, members], sample.documents)
        return resampling.bootstrap(found, made, draws=RESAMPLES, seed=settings.seed)

    matrix = sample.matrices["correlation"]
    value, samples = drawn(group)
    row = {"value": value, "communities": len(networks.communities(geometry.within(matrix, group), resolution, 0, weights))}
    row["low"], row["high"] = comparisons.spread(value, samples)
    seeded = [networks.modularity(geometry.within(matrix, group), resolution, [seed], weights) for seed in range(SEEDS)]
    row |= {"seeds_low": min(seeded), "seeds_high": max(seeded)}
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
    row |= {"size": len(group), "positions": len(sample.values), "documents": len(np.unique(sample.documents))}
    return row | controls.missed(sample.features, group, nulls.get("matched"))


def compared(settings, revision, where):
    """The sample of half B, the rare group without constant neurons, and its control groups."""
    sample, group = activations.sample(settings, revision, where), overlaps.rare_group(settings, revision)
    group = group[np.isin(group, sample.living)]
    return sample, group, comparisons.control_groups(sample, group, DRAWS, settings.seed)


def members(settings):
    """The correlations behind the main row: inside the rare group and inside a typical random group, by community.

    Returns
    -------
    DataFrame, one row (revision, step, group, i, j): correlation of neurons i and j, community of i (1 is the largest);
    the random group is the one whose modularity is the median
    """

    def rows(revision):
        sample, group, nulls = compared(settings, revision, "rare")
        matrix = sample.matrices["correlation"]
        order = np.argsort(networks.modularity(geometry.within(matrix, nulls["random"]), 1.0, 1), kind="stable")
        for name, chosen in (("rare", group), ("random", nulls["random"][order[len(order) // 2]])):
            parts = sorted(networks.communities(geometry.within(matrix, chosen)), key=lambda part: (-len(part), min(part)))
            community = {chosen[at]: number for number, part in enumerate(parts, 1) for at in part}
            for i in sorted(chosen, key=community.get):
                for j in chosen:
                    yield {"group": name, "i": i, "j": j, "correlation": matrix[i, j], "community": community[i]}

    return overlaps.stage(settings, "module_members", lambda: overlaps.each_revision(settings, rows), "communities")
