"""The tables of the rare group as a whole (notebook 08): the same neurons for common tokens, a module, more than its parts?

For the first question neurons are ranked on half A of the documents for one kind of token and on half B for the other, so
that no document is in both; how far two rankings for the SAME kind of token agree across the halves is the most that can be
expected. For the others the group is chosen on half A and measured on half B.
"""

from functools import lru_cache

import numpy as np
import torch

from rare_token_neurons.ablation import groups, neurons as ablation
from rare_token_neurons.statistics import controls, documents as over_documents, geometry, rankings as ranks
from rare_token_neurons.tables import activations, checkpoints as passes, influence as influences, rare_tokens
from rare_token_neurons.tables.stage import GROUPS, table

# ---- the same neurons?

SIZES = (5, 10, 20, 50, 100, 200, 500)  # top-k sets, beside the rare group's own size
PAIRS = (("rare", "common"), ("rare", "rare"), ("common", "common"))  # half A, half B


@lru_cache(maxsize=1)
def _rankings(settings, revision):
    """Influence of every neuron by (group, half): (1 + draws, neurons), first with every document once."""
    rankings = {}
    for group in GROUPS:
        sums = influences.influence_sums(settings, revision, group)
        for half in "AB":
            inside = rare_tokens.in_half(settings, sums.documents.numpy(), half)
            n, changes = sums.n.numpy()[inside], sums.abs_sum.double().numpy()[inside]
            weights = over_documents.resamples(len(n), controls.RESAMPLES, (settings.seed, *f"{group}{half}".encode()))
            rankings[group, half] = over_documents.influence(changes, n, weights)
    return rankings


@table(passes.LAST, reads=influences.EFFECTS, per=("revision",))
def overlap(settings, revision):
    """How many of the top k neurons two rankings share: rare targets on half A against common or rare ones on half B.

    Returns
    -------
    DataFrame, one row (revision, step, first, second, k): shared, jaccard with low, high (95 % over documents); what
    unrelated rankings would give: null_jaccard, null_low, null_high (95 %), p (hypergeometric); group, whether k is the
    rare group's size
    """
    rankings = _rankings(settings, revision)
    neurons, size = rankings["rare", "A"].shape[1], len(activations.rare_group(settings, revision))
    sizes = sorted({k for k in SIZES if k <= neurons // 2} | {size})
    for first, second in PAIRS:
        one, other = rankings[first, "A"], rankings[second, "B"]
        for row in ranks.jaccard_table(one[0], other[0], sizes).to_dict("records"):
            drawn = ranks.jaccard(one[1:], other[1:], row["k"])
            low, high = over_documents.interval(row["jaccard"], drawn, "centred", within=(0, 1))
            yield {"first": first, "second": second} | row | {"low": low, "high": high, "group": row["k"] == size}


@table(passes.LAST, reads=influences.EFFECTS, per=("revision",))
def rankings(settings, revision):
    """Spearman's correlation of the influence of all neurons, half A against half B.

    Returns
    -------
    DataFrame, one row (revision, step, first, second): correlation, low, high (95 % over documents); corrected: that of
    rare and common over the geometric mean of their own agreement between the halves (1: the kinds differ by noise alone)
    """
    made = _rankings(settings, revision)
    found = {pair: ranks.rank_correlation(made[pair[0], "A"], made[pair[1], "B"]) for pair in PAIRS}
    corrected = found["rare", "common"] / np.sqrt(found["rare", "rare"] * found["common", "common"])
    for pair, values in (*found.items(), (("rare", "common corrected"), corrected)):
        low, high = over_documents.interval(values[0], values[1:], "centred")
        yield {"first": pair[0], "second": pair[1], "correlation": values[0], "low": low, "high": high}


# ---- is the group a module?

BASELINES = 10  # control groups of a kind, whose communities are found anew for every draw of documents
MODULE_RESAMPLES = 200  # draws of documents
SEEDS = 20  # of Louvain's algorithm, for the rare group; the controls take one each
WEIGHTS = ("positive", "absolute")


@table(passes.LAST, reads=influences.CURVE, per=("revision",))
def modules(settings, revision):
    """Modularity of the rare group's correlation graph (Louvain's communities) against control groups.

    Returns
    -------
    DataFrame, one row (revision, step, where, weights, resolution); where: "rare" or "all" positions; weights: "positive"
    (negative correlations are no edge) or "absolute"; gated: whether the MLP is, so that the sign of a correlation is
    arbitrary; main: True for the one row a revision that the claim is judged by (rare positions, resolution 1, positive
    weights or, in a gated MLP, absolute ones): value, low, high (95 % over documents), communities (of the first
    seed), seeds_low and seeds_high (range of the value over 20 seeds of the algorithm); random and matched (means of 200
    control groups), each with _low, _high (95 % of them), p_ (two-sided, empirical) and z_ (standard deviations from their
    mean); less_random and less_matched, value less the controls' mean, with _low and _high (95 % over documents, resampled
    in the group and its controls alike; main row only); size, positions, documents, imbalance_scale and imbalance_norm
    (what matching missed, in standard deviations)
    """
    gated, deciding = _deciding(settings, revision)
    for where in activations.WHERE:
        for weights in WEIGHTS:
            for resolution in geometry.RESOLUTIONS if weights == deciding else (1.0,):
                main = (where, weights, resolution) == ("rare", deciding, 1.0)
                yield {"where": where, "weights": weights, "resolution": resolution, "gated": gated, "main": main
                       } | _modularity(settings, revision, where, weights, resolution, main)


def _deciding(settings, revision):
    """Whether the MLP is gated, and the edges by which its modularity is judged."""
    gated = passes.subject(settings, revision).gated
    return gated, "absolute" if gated else "positive"


def _modularity(settings, revision, where, weights, resolution, main):
    sample, group, nulls = activations.rare_and_controls(settings, revision, where, controls.MODULE_DRAWS)

    def found(block):
        return geometry.modularity(np.nan_to_num(block), resolution, 1, weights)

    def drawn(members):
        made = over_documents.moments(sample.values[:, members], sample.documents)
        return over_documents.bootstrap(found, made, draws=MODULE_RESAMPLES, seed=settings.seed)

    matrix = sample.matrices["correlation"]
    block = geometry.within(matrix, group)
    value, samples = drawn(group)
    null = {kind: found(geometry.within(matrix, made))[:, None] for kind, made in nulls.items()}
    base = {kind: np.mean([drawn(one)[1] for one in made[:BASELINES]], axis=0)[None, :, None]
            for kind, made in nulls.items()} if main else {}
    row, = controls.beside({"modularity": "two-sided"}, value[None], samples[:, None], null, base)
    far = {f"z_{kind}": float((value - null[kind].mean()) / null[kind].std(ddof=1)) if kind in null else np.nan
           for kind in controls.KINDS}
    seeded = [geometry.modularity(block, resolution, [seed], weights) for seed in range(SEEDS)]
    return {name: row[name] for name in row if name not in ("statistic", "side")} | far | {
        "communities": len(geometry.communities(block, resolution, 0, weights)), "seeds_low": min(seeded),
        "seeds_high": max(seeded), "size": len(group), "positions": len(sample.values),
        "documents": len(np.unique(sample.documents)), **controls.missed(sample.features, group, nulls.get("matched"))}


@table(passes.LAST, reads=influences.CURVE, per=("revision",))
def module_members(settings, revision):
    """The correlations behind the main row, by community: in the rare group, and in a typical random and matched group.

    Returns
    -------
    DataFrame, one row (revision, step, group, i, j): correlation of neurons i and j, community of i (1 is the largest);
    the random and the matched group are those whose modularity is the median
    """
    sample, group, nulls = activations.rare_and_controls(settings, revision, "rare", controls.MODULE_DRAWS)
    matrix, chosen_groups, (_, weights) = sample.matrices["correlation"], {"rare": group}, _deciding(settings, revision)
    for kind, made in nulls.items():
        order = np.argsort(geometry.modularity(geometry.within(matrix, made), 1.0, 1, weights), kind="stable")
        chosen_groups[kind] = made[order[len(order) // 2]]
    for name, chosen in chosen_groups.items():
        parts = geometry.communities(geometry.within(matrix, chosen), weights=weights)
        parts = sorted(parts, key=lambda part: (-len(part), min(part)))
        community = {chosen[at]: number for number, part in enumerate(parts, 1) for at in part}
        for i in sorted(chosen, key=community.get):
            for j in chosen:
                yield {"group": name, "i": i, "j": j, "correlation": matrix[i, j], "community": community[i]}


# ---- the group as a whole

JOINT_DRAWS = 100  # control groups of a kind: joint ablations are not cheap
POSITIONS = 128  # for these
SEARCHED = 100  # positions of the greedy search
LARGEST = 10  # neurons of the greedy search
GROWN = 10  # random groups that grow beside it


def scattered(settings, half, count):
    """At most `count` rare positions of one half, one of each document before a second: (n, 2) tensor, documents (n,)."""
    chosen = rare_tokens.positions(settings)
    chosen = chosen[chosen["half"] == half].sample(frac=1, random_state=settings.seed)
    turn = chosen[chosen["group"] == "rare"].groupby("document").cumcount().sort_values(kind="stable")
    return rare_tokens.group_positions(chosen.loc[turn.index[:count]], "rare")


@table(passes.LAST, reads=influences.CURVE, per=("revision",))
def group_ablation(settings, revision):
    """All neurons of a group ablated at once, against the sum of their single effects, at rare positions of half B.

    Returns
    -------
    DataFrame, one row (revision, step, group, draw); group: "rare" (draw 0), "random" or "matched" (100 draws); in nats the
    columns of `groups.synergy`; ratio_low and ratio_high, joint_low and joint_high (95 % over documents, rare group only);
    size, positions, documents
    """
    subject, kept = passes.captured(settings, revision)
    positions, documents = scattered(settings, "B", POSITIONS)
    _, group, nulls = activations.rare_and_controls(settings, revision, "all", JOINT_DRAWS)
    sets = np.concatenate([group[None], *nulls.values()])
    options = {"ablation": settings.ablation, "seed": settings.seed, "memory_gb": passes.MEMORY_GB}
    together = groups.joint_changes(subject, kept, positions.to(subject.device), sets, **options)
    used, place = np.unique(sets, return_inverse=True)
    alone = ablation.loss_changes(subject, kept, positions.to(subject.device), neurons=torch.from_numpy(used), **options)
    added, absolute = groups.sum_of_singles(alone, place.reshape(sets.shape))
    made = groups.synergy(together, added, absolute)
    made.insert(0, "draw", np.concatenate([[0], *[np.arange(JOINT_DRAWS)] * len(nulls)]))
    made.insert(0, "group", np.repeat(["rare", *nulls], [1, *[JOINT_DRAWS] * len(nulls)]))
    size = np.abs(together[0].double().cpu().numpy()), np.abs(added[0].double().cpu().numpy())
    for name, over in (("joint", None), ("ratio", size[1])):
        ends = over_documents.mean(size[0], documents, seed=settings.seed, over=over)[1:]
        made.loc[0, [f"{name}_low", f"{name}_high"]] = ends
    return made.assign(size=len(group), positions=len(positions), documents=len(np.unique(documents)))


@table(passes.LAST, reads=influences.EFFECTS, per=("revision",))
def greedy_search(settings, revision):
    """A group grown neuron by neuron on half A (greedy), beside the individually best ones; both measured on half B.

    Returns
    -------
    DataFrame, one row (revision, step, size): neuron (the greedy search's), best (the individually best of that rank, on
    the same positions), shared (of the two groups so far); on half B, in nats mean |joint change|: greedy, individual,
    random (mean of 10 growing random groups) with _low, _high (their range); gain, greedy over individual, with _low and
    _high (95 % over documents); chosen_on and positions, the numbers of positions of half A and B
    """
    subject, kept = passes.captured(settings, revision)
    options = {"ablation": settings.ablation, "seed": settings.seed, "memory_gb": passes.MEMORY_GB}
    positions, _ = scattered(settings, "A", SEARCHED)
    found = groups.greedy(subject, kept, positions.to(subject.device), LARGEST, **options)
    best = ranks.top(found.alone, LARGEST)
    random = controls.random_groups(subject.n_neurons, LARGEST, GROWN, settings.seed)
    grown = [order[:size] for order in (found.neurons, best, *random) for size in range(1, LARGEST + 1)]
    measured, documents = scattered(settings, "B", POSITIONS)
    changes = groups.joint_changes(subject, kept, measured.to(subject.device), grown, **options)
    changes = changes.double().abs().cpu().numpy().reshape(-1, LARGEST, len(measured))
    for at in range(LARGEST):
        greedy, individual, null = changes[0, at], changes[1, at], changes[2:, at].mean(axis=1)
        gain, low, high = over_documents.mean(greedy, documents, seed=settings.seed, over=individual)
        yield {"size": at + 1, "neuron": found.neurons[at], "best": best[at],
               "shared": len(set(found.neurons[: at + 1]) & set(best[: at + 1])), "greedy": greedy.mean(),
               "individual": individual.mean(), "random": null.mean(), "random_low": null.min(), "random_high": null.max(),
               "gain": gain, "gain_low": low, "gain_high": high, "chosen_on": len(positions), "positions": len(measured)}
