"""Token-frequency scores against the definition: softmax of whole logits, KL to the unigram distribution."""

import numpy as np
import pandas as pd
import pytest
import torch

from rare_token_neurons.ablation import capture as captures, neurons as ablation
from rare_token_neurons.tables import nulls as null_tables

KINDS = ("neox-parallel", "llama-tied")


def brute(subject, kept, positions, neuron):
    """Mean change of KL(model || unigram) with one neuron at its mean, by the model's own norm and unembedding."""
    block, t = positions.unbind(1)
    residual = kept.residual[block, t - kept.first]
    delta = kept.means[neuron] - kept.activations[block, t - kept.first, neuron]
    unigram = ((subject.unigram_counts + 1) / (subject.unigram_counts + 1).sum()).log()
    values = []
    for stream in (residual, residual + delta[:, None] * subject.w_out[:, neuron]):
        logits = torch.nn.functional.linear(subject.final_norm(stream), subject.unembedding, subject.unembedding_bias)
        logs = logits.log_softmax(-1)
        values.append((logs.exp() * (logs - unigram)).sum(-1).mean())
    return float(values[1] - values[0])


@pytest.mark.parametrize("kind", KINDS)
def test_kl_is_that_of_whole_logits_and_its_expansion_is_near(tiny, tokens, kind):
    subject = tiny(kind, torch.float64, strength=4.0)
    kept = captures.capture(subject, tokens)
    positions = kept.positions[::5]
    entropy = ablation.influence(subject, kept, positions).entropy_sum.sum(0) / len(positions)
    exact = ablation.divergences(subject, kept, positions, entropy, exact=range(subject.n_neurons))
    expanded = ablation.divergences(subject, kept, positions, entropy)
    for neuron in (0, 7, 31):
        assert float(exact[neuron]) == pytest.approx(brute(subject, kept, positions, neuron), abs=1e-6)
    assert exact.abs().max() > 1e-4
    assert float((expanded - exact).abs().max()) < 0.05 * float(exact.abs().max())
    assert float((expanded - exact).abs().max()) > 0  # it is an expansion


def test_shares_say_what_vanishes():
    assert null_tables.share([2.0, 2.0, 1.0, 0.0], [0.5, 2.0, 1.5, 0.0]) == pytest.approx([0.75, 0.0, -0.5, np.nan], nan_ok=True)


def table(n=200, seed=0, **scores):
    """Neurons whose share through the unigram direction is their influence, and whose other scores are of no size or given."""
    rng = np.random.default_rng(seed)
    influence = rng.lognormal(size=n)
    made = {"neuron": np.arange(n), "influence": influence, "kl": rng.normal(size=n), "entropy": rng.normal(size=n),
            "unigram_share": influence / influence.max(), "scale_share": rng.random(n),
            "side": np.where(np.arange(n) % 4, "boost", "suppress"), "rare": influence >= np.sort(influence)[-10]}
    return pd.DataFrame(made | {name: score(influence, rng) for name, score in scores.items()})


def in_proportion(influence, rng):
    """A score that says nothing but how large the neuron's effect is, up to 5 %."""
    return -influence * np.exp(0.05 * rng.normal(size=len(influence)))


def test_overlap_is_whole_where_share_is_influence_and_chance_where_not():
    found = null_tables.overlaps(table()).set_index(["score", "side"])
    assert (found.loc["unigram_share", "shared"] == found.loc["unigram_share", "k"]).all()
    assert found.loc[("unigram_share", "all"), "correlation"] == pytest.approx(1)
    assert found.loc[("unigram_share", "all"), "p"] < 1e-6 and found.loc[("scale_share", "all"), "p"] > 0.01
    assert found.loc[("entropy", "all"), "chance"] == pytest.approx(0.5)
    assert found.loc[("kl", "boost"), "neurons"] == 150 and found.loc[("kl", "suppress"), "k"] == 2
    for share in ("unigram_share", "scale_share"):
        assert (found.loc[share, "relative"] == found.loc[share, "shared"]).all()


def test_scores_that_only_grow_with_influence_share_all_and_test_nothing():
    runs = [null_tables.overlaps(table(seed=seed, kl=in_proportion)).set_index(["score", "side"]).loc[("kl", "all")]
            for seed in range(40)]
    shared, relative, p = (np.array([run[name] for run in runs]) for name in ("shared", "relative", "p"))
    assert (shared >= runs[0]["k"] - 3).all()
    assert relative.mean() == pytest.approx(runs[0]["chance"], abs=0.4) and np.mean(p < 0.05) <= 0.1


def test_scores_beyond_their_influence_are_found_with_their_sign():
    def more(influence, rng):
        return in_proportion(influence, rng) * np.where(influence >= np.sort(influence)[-10], 2, 1)

    row = null_tables.overlaps(table(kl=more)).set_index(["score", "side"]).loc[("kl", "all")]
    assert row["relative"] == row["k"] == 10 and row["p"] < 1e-6
    assert row["group"] == pytest.approx(-2, abs=0.1) and row["others"] == pytest.approx(-1, abs=0.1)


def test_neurons_without_influence_have_no_score_per_nat():
    silent = table(kl=in_proportion)
    silent.loc[silent["influence"].nsmallest(50).index, ["influence", "kl", "entropy"]] = 0.0
    found = null_tables.overlaps(silent)
    assert null_tables.per_nat(silent, "kl").isna().sum() == 50
    assert found.loc[found["side"] == "all", ["group", "others"]].notna().all(axis=None)
