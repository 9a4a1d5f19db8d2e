"""Do the findings hold under other choices?  The robustness grid of notebook 09, judged by the claims rule."""

import numpy as np
import pandas as pd
import torch

from rare_token_neurons import cells, claims, contrasts, controls, passes, prefixes, store, tables, weights

READS = ("steps", "ablation", "aggregate", "ranking", *tables.POSITION_PARAMETERS)
WIDTH = 20  # tokens that a prediction sees, where single layers are ablated
LAYER_POSITIONS = 250  # rare ones, and as many common ones, of which those of half B are run
NEURONS = (12, 32)  # sampled a layer: at least, at most
BUDGET = 360  # sampled neurons in all layers together, between these bounds
TOP = 0.25  # of the sampled neurons: the group of a layer
LAYER_CLAIM = claims.Claim("C1", contrasts.LEAN.statistic, "greater", part="in a layer", controls=("random groups",))


def stage(settings, name, compute, module, also=()):
    """One table of notebook 09, of the last checkpoint and of those in `also`."""
    return tables.stage(settings, name, compute, reads=READS, inputs=passes.model_inputs(settings, also=also), modules=[module])


def measured(settings, cell, rows, pool):
    """The `contrasts.Measured` of one cell.

    rows : name of the targets -> int64 (n, 2) positions ; pool : cells.Pool of the cell's ablation.
    """
    subject, kept = passes.captured(settings, passes.revisions(settings)[-1])
    half, owners = cells.halves(settings, cell.split), {name: cells.owners(settings, part) for name, part in rows.items()}
    effects = {name: pool[part].astype(np.float64) for name, part in rows.items()}
    if cell.aggregate == "mean_abs":
        effects = {name: np.abs(part) for name, part in effects.items()}
    inward = {name: part for name, part in weights.rows_of(subject).items() if name != "out"}
    block, t = rows["rare"].T
    return contrasts.Measured(effects, owners, {name: half[part].eq("B").to_numpy() for name, part in owners.items()},
                              kept.activations[block, t - kept.first].cpu().numpy(), subject.w_out.cpu().numpy(), inward)


def sampled(n_layers):
    """How many neurons of each layer are measured, int."""
    return int(np.clip(BUDGET // n_layers, *NEURONS))


def earlier(n_layers):
    """The layers whose neurons are sampled: all but the last, which the grid's default measures whole; of a single one itself."""
    return range(max(1, n_layers - 1))


def windows(settings):
    """Short windows before the default cell's targets: int64 (n, WIDTH + 1), bool (n,) rare, (n,) documents.

    Rare targets choose a layer's group on half A; common ones only stand beside it on half B, so no others are taken.
    """
    found, half = cells.candidates(settings, cells.default(settings)), cells.halves(settings)
    tokens, parts = np.stack(tables.blocks(settings)["tokens"].to_numpy()), {}
    for name, rows in found.items():
        rows = rows[rows[:, 1] + 1 >= WIDTH][:LAYER_POSITIONS]
        owners = cells.owners(settings, rows)
        wanted = half[owners].eq("B").to_numpy() | (name == "rare")
        parts[name] = tokens[rows[wanted, :1], rows[wanted, 1:] + np.arange(-WIDTH + 1, 2)], owners[wanted]
    rare = np.repeat([True, False], [len(parts[name][1]) for name in ("rare", "common")])
    made, owners = (np.concatenate(pair) for pair in zip(parts["rare"], parts["common"]))
    return made, rare, owners


def layers(settings):
    """Loss changes of neurons sampled from every layer in `earlier`, by exact recomputation of the layers above.

    Returns
    -------
    DataFrame, one row (layer, neuron): layer (from 0), neuron, rare, common (mean |change| on half B, nats), value, low, high
    (lean of the layer's top quarter, chosen on half A, over that of random quarters), p, positions (rare ones of half B),
    documents: the same in all rows of a layer; fewer than 100 positions leave value, low, high, p empty
    """

    def compute():
        revision = passes.revisions(settings)[-1]
        subject, _ = passes.captured(settings, revision)
        made, rare, owners = windows(settings)
        in_b = cells.halves(settings)[owners].eq("B").to_numpy()
        ablation = "zero" if settings.ablation == "zero" else "mean"
        with store.clock("ablation"):
            kept = prefixes.record(subject, torch.from_numpy(made))
            generator, rows, size = np.random.default_rng(settings.seed), [], sampled(subject.n_layers)
            for layer in earlier(subject.n_layers):
                neurons = np.sort(generator.choice(len(kept.means[layer]), size, replace=False))
                effects = np.abs(prefixes.neuron_changes(kept, layer, neurons, ablation=ablation).double().cpu().numpy())
                rows.append(_layer(effects, rare, owners, in_b, settings.seed).assign(layer=layer, neuron=neurons))
        return pd.concat(rows, ignore_index=True)

    return stage(settings, "layers_sampled", compute, "robustness")


def _layer(effects, rare, owners, in_b, seed):
    """One layer's rows: effects (n, m) absolute changes."""
    m, parts = effects.shape[1], {"rare": rare & in_b, "common": ~rare & in_b}
    fewest = int(min(part.sum() for part in (rare & ~in_b, *parts.values())))
    found = claims.Evidence(p=(np.nan,), positions=fewest)
    of_b, documents = ({name: values[one] for name, one in parts.items()} for values in (effects, owners))
    if fewest >= contrasts.LEAST:
        members = np.argsort(-effects[rare & ~in_b].mean(axis=0), kind="stable")[: int(np.ceil(TOP * m))]
        random = controls.random_groups(m, len(members), contrasts.GROUPS, seed)
        found = contrasts.lean(of_b, documents, members, {"random": random}, kinds=("random",), seed=seed)
    return pd.DataFrame({name: values.sum(axis=0) / max(1, len(values)) for name, values in of_b.items()}).assign(
        value=found.value, low=found.low, high=found.high, p=found.p[0], positions=found.positions,
        documents=len(np.unique(owners[in_b])))


def robustness(settings):
    """The grid: each cell's statistics and whether the claims rule calls them reproduced.

    Returns
    -------
    DataFrame, one row (factor, setting, statistic): value, low, high (95 % over documents; of a contrast, from the control
    groups that speak less for the claim), p and q (the less favourable control's, raw and after Benjamini-Hochberg over the
    whole table), positions, documents, verdict, reason, claim
    """

    def compute():
        found, pools = cells.pools(settings)
        rows, items = [], []
        for cell, part in found.items():
            made = measured(settings, cell, part, pools[cell.ablation])
            for name, item in contrasts.all_of(made, settings.ranking, settings.seed + cell.split).items():
                rows.append({"factor": cell.factor, "setting": cell.value, "statistic": name,
                             "documents": len(np.unique(made.owners["rare"]))})
                items.append((contrasts.STATISTICS[name], item))
        for layer, part in layers(settings).groupby("layer"):
            one = part.iloc[0]
            rows.append({"factor": "layer", "setting": str(layer), "statistic": "rare against common",
                         "documents": one["documents"]})
            items.append((LAYER_CLAIM, claims.Evidence(one["value"], one["low"], one["high"], 0.0, (one["p"],),
                                                       int(one["positions"]))))
        return pd.concat([pd.DataFrame(rows), judged(items)], axis=1)

    return stage(settings, "robustness", compute, "robustness")


def judged(items):
    """The claims rule on many (Claim, Evidence) pairs, p values adjusted over all of them: one row a pair."""
    raw = [np.array(item.p or [np.nan] * len(claim.controls), dtype=float) for claim, item in items]
    adjusted = np.split(claims.adjust(np.concatenate(raw)), np.cumsum([len(p) for p in raw])[:-1])
    rows = []
    for (claim, item), p, q in zip(items, raw, adjusted):
        verdict, reason = claims.verdict(claim, item, q)
        rows.append({"claim": claim.name, "direction": claim.direction, "value": item.value, "low": item.low, "high": item.high,
                     "null": item.null, "p": p.max(), "q": q.max(), "positions": item.positions, "verdict": verdict,
                     "reason": reason})
    return pd.DataFrame(rows)
