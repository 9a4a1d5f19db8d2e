"""Are the rare group's neurons token-frequency neurons?  Scores after Stolfo et al. 2024 (arXiv 2406.16254).

A token-frequency neuron moves the logits along the unigram direction (the centred log frequencies of the tokens), towards
or away from what is said anyway; an entropy neuron acts through the final norm's scale. Both show when the component in
question is frozen: the share of the effect that vanishes is the share that goes through it.
"""

import numpy as np
import pandas as pd
import torch
from scipy import stats

from rare_token_neurons import ablation, cells, influences, passes, store
from rare_token_neurons.captures import references
from rare_token_neurons.predictions import full_precision, predict_at, readout_of, shifts
from rare_token_neurons.robustness import stage

SCORES = ("unigram_share", "kl", "entropy", "scale_share")
SIDES = ("boost", "suppress")
EXACT = 50  # the most influential neurons, whose KL is not expanded


@full_precision()
def divergences(subject, capture, positions, entropy, *, ablation="mean", seed=0, memory_gb=1.0, exact=None):
    """Change of KL(model || unigram) when one neuron is ablated.

    KL(p || u) = -H(p) - E_p log u, with u the unigram distribution (every count raised by one). A value above 0 says that the
    ablated model lies further from the unigram distribution: the neuron kept it near. The entropy's part is the kernel's;
    that of E_p log u is expanded to the second order in the change of the logits, and exact for the neurons in `exact`.

    Parameters
    ----------
    subject : Subject with unigram counts ; capture, positions, ablation, seed, memory_gb : as for `ablation.loss_changes`.
    entropy : (neurons,) mean change of the entropy there (`Influence.entropy_sum`).
    exact : int64 (k,) neurons whose change is summed over the whole vocabulary, None: none.

    Returns
    -------
    (neurons,) nats, mean over the positions
    """
    readout, neurons = readout_of(subject), torch.arange(subject.n_neurons, device=subject.device)
    exact = neurons[:0] if exact is None else torch.as_tensor(exact, dtype=torch.int64, device=subject.device)
    unigram = (subject.unigram_counts.double() + 1).log()
    unigram = (unigram - torch.logsumexp(unigram, 0)).to(subject.dtype)
    u, along = readout.centred(subject.w_out.T).T, torch.zeros(subject.n_neurons, dtype=torch.float64, device=subject.device)
    for rows in positions.split(max(1, int(memory_gb * 1e9 / 16 / subject.dtype.itemsize / subject.n_vocab))):
        base = predict_at(readout, capture, rows, memory_gb / 2)
        block, t = rows.unbind(1)
        active = capture.activations[block, t - capture.first].double()
        shift = [part.to(subject.dtype) for part in shifts(base, u, references(capture, rows, neurons, ablation, seed) - active)]
        changes = _expanded(readout, base, u, *shift, unigram)
        for neuron in exact.tolist():
            changes[:, neuron] = _summed(readout, base, u[:, [neuron]], *(part[:, neuron] for part in shift), unigram)
        along += changes.sum(0, dtype=torch.float64)
    return -entropy - along / len(positions)


def _expanded(readout, base, u, rho, tau, unigram):
    """(n, neurons) change of E_p log u, to the second order in g = rho f + tau B."""
    p, directions = base.log_p.exp(), readout.directions(u).T  # (n, vocabulary), (neurons, d)
    w = p * (unigram - (p @ unigram)[:, None])
    first, mean, mixed, square = (torch.zeros_like(rho) for _ in range(4))
    for part in readout.parts():
        b = readout.rows(part, base.centre) @ directions.T  # (vocabulary, neurons)
        first += w[:, part] @ b
        mean += p[:, part] @ b
        mixed += (w * base.f)[:, part] @ b
        square += w[:, part] @ b.square_()
    wf, wff = (w * base.f).sum(1, keepdim=True), (w * base.f.square()).sum(1, keepdim=True)
    linear = rho * wf + tau * first
    return linear + 0.5 * (rho**2 * wff + 2 * rho * tau * mixed + tau**2 * square) - tau * mean * linear


def _summed(readout, base, u, rho, tau, unigram):
    """(n,) the same for one neuron, by the sum over the vocabulary."""
    b = readout.project(readout.directions(u).T, base.centre)  # (1, vocabulary)
    logs = torch.addcmul(base.log_p, tau[:, None], b).addcmul_(rho[:, None], base.f)
    return logs.softmax(1) @ unigram - base.log_p.exp() @ unigram


def share(effect, frozen):
    """Share of mean |effect| that vanishes with a component frozen, at most 1; NaN where there is no effect."""
    effect, frozen = np.asarray(effect, dtype=float), np.asarray(frozen, dtype=float)
    return 1 - np.divide(frozen, effect, out=np.full_like(effect, np.nan), where=effect > 0)


def neurons(settings):
    """One row a neuron of the last checkpoint, measured at up to 500 rare positions.

    Returns
    -------
    DataFrame with neuron, influence, mean (|change| and change of the loss, nats), side ("boost": the loss rises without the
    neuron, "suppress": it falls), unigram_share, scale_share (of the influence that vanishes when the unigram direction, the
    norm's scale is frozen), kl, entropy (mean changes, nats), unigram (mean change of the logits' projection on the
    direction), rare (whether in the rare group, chosen on half A of all positions), positions
    """

    def compute():
        revision = passes.revisions(settings)[-1]
        subject, kept = passes.captured(settings, revision)
        rows = torch.from_numpy(cells.positions(settings, cells.default(settings))["rare"]).to(subject.device)
        options = {"ablation": settings.ablation, "seed": settings.seed, "memory_gb": cells.MEMORY_GB}
        with store.clock("ablation"):
            whole = ablation.influence(subject, kept, rows, entropy=True, **options)
            frozen = {name: ablation.influence(subject, kept, rows, freeze=name, entropy=False, **options)
                      for name in ("unigram", "scale")}
            entropy = whole.entropy_sum.sum(0) / len(rows)
            kl = divergences(subject, kept, rows, entropy, exact=whole.mean_abs.argsort(descending=True)[:EXACT], **options)
        table = influences.influence(settings)
        group = influences.rare_group(table[table["revision"] == (revision or "")])
        found = {"influence": whole.mean_abs, "mean": whole.mean, "entropy": entropy,
                 "unigram": whole.unigram_sum.sum(0) / len(rows), "kl": kl}
        found = {name: part.double().cpu().numpy() for name, part in found.items()}
        for name, part in frozen.items():
            found[f"{name}_share"] = share(found["influence"], part.mean_abs.cpu().numpy())
        made = pd.DataFrame({"neuron": np.arange(subject.n_neurons), **found})
        return made.assign(side=np.where(made["mean"] >= 0, *SIDES), rare=made["neuron"].isin(group), positions=len(rows))

    return stage(settings, "frequency_neurons", compute, "frequency")


def per_nat(table, score):
    """(neurons,) a score per nat of influence; a share is relative already. NaN where a neuron has no influence."""
    return table[score] if score.endswith("share") else table[score] / table["influence"].where(table["influence"] > 0)


def overlaps(table):
    """How far the most influential neurons are those with the largest scores, boost and suppress apart.

    The changes of KL and entropy are in nats and grow with any effect that a neuron has, so their `shared` is far above chance
    whatever the neurons do. What tests something is `relative`: the same overlap with the scores per nat of influence.

    Parameters
    ----------
    table : from `neurons`.

    Returns
    -------
    DataFrame, one row (score, side): k (neurons in the rare group's size), shared (of the top k by influence and by the
    score's absolute value; shares by themselves), relative (of the top k by influence and by |score| per nat of influence;
    for the two shares the same as shared), chance (expected of relative), p (hypergeometric, of relative), correlation
    (Spearman's, of influence and |score|), group (median signed score per nat of influence of the top k by influence; of
    the two shares the median share), others (of the rest)
    """
    rows, size = [], int(table["rare"].sum())
    for side in ("all", *SIDES):
        part = table if side == "all" else table[table["side"] == side]
        k = max(1, round(size * len(part) / len(table)))
        inside = part.index.isin(part.nlargest(k, "influence").index)
        for score in SCORES:
            alike = per_nat(part, score)
            sizes = [one if score.endswith("share") else one.abs() for one in (part[score], alike)]
            shared, relative = (int(inside[part.index.isin(one.nlargest(k).index)].sum()) for one in sizes)
            rows.append({"score": score, "side": side, "neurons": len(part), "k": k, "shared": shared, "relative": relative,
                         "chance": k * k / len(part), "p": float(stats.hypergeom.sf(relative - 1, len(part), k, k)),
                         "correlation": float(part["influence"].corr(sizes[0], method="spearman")),
                         "group": alike[inside].median(), "others": alike[~inside].median()})
    return pd.DataFrame(rows)
