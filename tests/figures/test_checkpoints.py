"""Losses over training and by frequency: what is drawn and said is what the table holds."""

import numpy as np
import pandas as pd
import pytest

from rare_token_neurons import files, paths, settings as parameters
from rare_token_neurons.figures import checkpoints


def losses(steps=(0, 16, 64), rare=(9.0, 10.0, 7.0)):
    """Losses at all targets (5), common ones (4), the ten deciles (10 to 1) and rare ones."""
    groups = {"all": 5.0, "common": 4.0} | {str(decile): 11.0 - decile for decile in range(1, 11)}
    rows = [{"revision": f"step{step}", "step": step, "group": group, "n": 100, "loss": loss, "sem": 0.1}
            for step, of_rare in zip(steps, rare) for group, loss in (groups | {"rare": of_rare}).items()]
    return pd.DataFrame(rows).astype({"step": "Int64"})


def test_losses_over_training_are_drawn_with_their_intervals(ax):
    checkpoints.over_training(ax, losses())
    assert ax.get_title(loc="left") == "Rare words end 3.0 nats harder\nthan common ones"
    assert [text.get_text() for text in ax.texts] == ["", "+3.0"]  # an arrow, and what it spans
    assert [line.get_label() for line in ax.lines] == ["all", "rare", "common"]
    assert list(ax.lines[1].get_ydata()) == [9, 10, 7] and list(ax.lines[1].get_xdata()) == [0, 16, 64]
    assert np.ptp(ax.collections[1].get_paths()[0].vertices[:, 1]) == pytest.approx(3 + 2 * 1.96 * 0.1)


def test_losses_by_decile_are_drawn_rarest_first(ax, legend):
    table = losses(steps=(64,)).set_index("group")
    checkpoints.by_decile(ax, table.loc[[str(decile) for decile in range(1, 11)]])
    assert list(ax.lines[0].get_xdata()) == list(range(1, 11))
    assert list(ax.lines[0].get_ydata()) == list(range(10, 0, -1))
    assert legend() == ["by target (n = 1,000)"]
    assert ax.get_title(loc="left") == "The rarest tenth costs 9.0 nats more\nthan the most frequent"


def test_the_summary_tells_the_gap_at_both_ends_and_how_long_it_got_worse():
    said = checkpoints.summary("own", losses(), 1_000)
    assert said.startswith("At step 0 rare and common targets differ by 5.00 nats. At step 64 they differ by 3.00. "
                           "Rare words get worse before they get better: up to step 16 their loss is above that at the "
                           "start")
    assert ("5.00 nats over all 100 scored positions, 7.00 on rare and 4.00 on common words. A blind guess costs "
            "6.91.") in said
    steady = checkpoints.summary("own", losses(rare=(9.0, 8.0, 7.0)), 1_000)
    assert "get worse" not in steady
    finished = checkpoints.summary("own", losses(steps=(64,)).astype({"step": "Int64"}), 1_000)
    assert finished.startswith("own has no training checkpoints here; its losses are those of the finished model. The ")


def test_the_last_losses_stand_beside_the_probabilities_that_they_mean():
    made = checkpoints.at_last(losses().assign(documents=20))
    assert made.index.tolist() == ["all", "rare", "common"]
    assert made.loc["rare", "loss (nats)"] == "7.00"
    assert made.loc["rare", "typical probability of the target"] == "1 in 1,097"  # e to the 7


def audited(n=3, flagged=()):
    return pd.DataFrame({"revision": [f"step{at}" for at in range(n)], "step": range(n),
                         "weight_hash": ["0123456789ab"] * n, "distance": [np.nan, *[0.125] * (n - 1)],
                         "turn": [np.nan, *[-0.5] * (n - 2), np.nan], "flagged": [at in flagged for at in range(n)],
                         "reason": ["repeats another" if at in flagged else "" for at in range(n)]})


def test_the_audit_is_told_in_words_flagged_ones_first_where_it_is_long():
    short = checkpoints.audit(audited(flagged=[1]))
    assert short.index.tolist() == [0, 1, 2] and short["flagged"].tolist() == ["no", "repeats another", "no"]
    assert short["turn (cosine)"].tolist() == ["", "-0.50", ""]
    long = checkpoints.audit(audited(100, flagged=[70, 80]))
    assert len(long) == 12 and long.index[:3].tolist() == [70, 80, 0]
    said = checkpoints.of_audit("own", audited())
    assert "move by 12 % to 12 % of their norm" in said and "a cosine of -0.50; above 0.5 " in said


def test_the_log_stands_beside_the_losses_at_the_steps_of_both():
    log = pd.DataFrame({"step": [0, 16, 32], "held_out": 5.5, "rare": 6.5, "common": 4.5})
    made = checkpoints.log_beside(log, losses())
    assert made.index.tolist() == [0, 16] and made.loc[16].tolist() == [5.5, 6.5, 4.5, 5.0, 10.0, 4.0]


def test_a_model_that_was_not_trained_here_has_no_log(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    settings = parameters.Settings(model="own/model", seed=3)
    assert not len(checkpoints.training_log(settings))
    log = pd.DataFrame({"step": [1], "loss": [9.0]})
    files.write_table(tmp_path / "own--model" / "training_log.parquet", log)
    pd.testing.assert_frame_equal(checkpoints.training_log(settings), log)
