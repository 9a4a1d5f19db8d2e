"""Null curves of positions: labels shuffled, other positions; and that the measured head is judged against them."""

import numpy as np
import pytest

from rare_token_neurons import settings as parameters
from rare_token_neurons.curve import calibration, nulls
from rare_token_neurons.models import checkpoints
from rare_token_neurons.statistics import documents as over_documents
from rare_token_neurons.tables import checkpoints as passes, nulls as null_tables


def effects(n=300, neurons=200, documents=40, seed=0, truth=None):
    """Absolute changes (n, neurons) around a lognormal (or given) influence, and documents (n,)."""
    rng = np.random.default_rng(seed)
    truth = np.exp(rng.standard_normal(neurons)) if truth is None else truth
    return truth * rng.lognormal(-0.5, 1.0, (n, neurons)), rng.integers(0, documents, n)


def test_shuffled_labels_take_so_many_positions_from_both_kinds():
    values, owners = effects()
    values[:] = np.arange(len(values))[:, None] >= 150  # 1 where the position is common
    rng = np.random.default_rng(0)
    curves = null_tables.relabelled(values, owners, 150, "same_tokens", rng)
    assert curves.shape == (null_tables.DRAWS, 200) and curves.mean() == pytest.approx(0.5, abs=0.02)
    assert curves.mean(axis=1).std() > 0.01  # another draw each time
    assert (np.diff(curves, axis=1) <= 0).all()


def test_alike_positions_give_no_verdict_and_a_planted_plateau_does():
    truth = calibration.planted(400)
    rare, owners = effects(400, 400, truth=truth)
    same, others = effects(400, 400, truth=truth, seed=1)
    rng = np.random.default_rng(0)
    x, y, curve = null_tables.measured(*over_documents.by_document(rare, owners), "split_half", rng)
    alike = nulls.compare(x, y, null_tables.resampled(*over_documents.by_document(same, others), "split_half", rng))
    assert alike.p_plateau > 0.05 and alike.p_outliers > 0.05
    told = 0
    for seed in range(2, 14, 2):
        (one, mine), (other, theirs) = (effects(400, 400, truth=truth, seed=seed + part) for part in (0, 1))
        measured = null_tables.measured(*over_documents.by_document(one, mine), "split_half", rng)[:2]
        found = nulls.compare(*measured, null_tables.resampled(*over_documents.by_document(other, theirs), "split_half", rng))
        told += 2 * min(found.p_plateau, found.p_outliers) < 0.05
    assert told <= 1
    straight = np.arange(1, 401.0) ** -0.7
    law = over_documents.by_document(*effects(400, 400, truth=straight, seed=2))
    lawful = nulls.compare(x, y, null_tables.resampled(*law, "split_half", rng))
    assert lawful.p_plateau < 0.05
    assert np.corrcoef(np.log(curve), np.log(truth))[0, 1] > 0.98


@pytest.mark.parametrize("known, expected", [(["step0", "step9"], ["step0"]), (["step9"], []), (["step0"], []), ([], [])])
def test_the_untrained_checkpoint_decides_the_nulls_where_there_is_one(monkeypatch, known, expected):
    monkeypatch.setattr(checkpoints, "revisions", lambda model: known)
    monkeypatch.setattr(passes, "revisions", lambda settings: known[-1:] or [None])
    keyed = []
    monkeypatch.setattr(null_tables, "stage", lambda settings, name, compute, module, also=(): keyed.append(list(also)))
    for function in (null_tables.null_heads, null_tables.null_bands):
        function(parameters.check({"model": "smollm2"}))
        function(parameters.check({"model": "smollm2", "recompute": "never"}))  # tables are read, no model is asked for
    assert keyed == [expected, [], expected, []]
