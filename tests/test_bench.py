"""The benchmark at toy size: every row is there, its numbers hang together, and no test asserts a time."""

import os
import re

import pandas as pd
import pytest
import torch
from oracle import captured_changes

from rare_token_neurons import bench

TOY = (16, 2, 2, 32, 300)  # width, layers, heads, neurons, vocabulary


@pytest.fixture(scope="module")
def table():
    return bench.bench([TOY], (20, 40, 80), threads=1, say=lambda line: None).set_index("what")


def test_every_row_is_there_with_its_extrapolation_named(table):
    assert [row[:3] for row in table.index] == ["(a)", "(b)", "(c)", "(d)", "(d)", "(d)", "err", "sec", "sec"]
    assert table["positions"].iloc[:7].tolist() == [40, 40, 40, 20, 40, 80, 64]
    for what in table.index[:3]:
        assert "extrapolated from" in table.loc[what, "note"]
    assert (table["seconds"].iloc[:6] > 0).all() and (table["peak memory (GB)"].iloc[:6] > 0.05).all()


def test_ratios_are_those_of_the_seconds(table):
    a, b, c = table["seconds"].iloc[:3]
    d = table["seconds"].iloc[4]
    assert f"(c)/(d) = {c / d:,.0f}" in table["note"].iloc[2] and f"(b)/(d) = {b / d:,.0f}" in table["note"].iloc[1]
    # forward seconds a token over kernel seconds a position
    assert f"{a / round(40 / bench.SCORED) / (d / 40):.1%}" in table["note"].iloc[0]


def test_error_is_within_the_tolerance_and_slopes_are_fitted(table):
    note = table["note"].iloc[6]
    assert "32 neurons" in note and 0 < float(re.search(r"([\d.]+) of the tolerance", note).group(1)) <= 1
    assert "at (20, 40, 80)" in table["note"].iloc[7].replace("[", "(").replace("]", ")")
    assert "ms a neuron" in table["note"].iloc[8]


@pytest.mark.parametrize("kind", ["toy", "phi", "gemma3"])  # phi's unembedding has a bias, a norm follows gemma3's MLP
def test_the_baseline_is_the_definition(tiny, kind):
    subject = bench.subject_of(TOY, whole=False) if kind == "toy" else tiny(kind)
    kept, positions = bench.scored(subject, 30)
    assert len(positions.unique(dim=0)) == 30
    neurons = torch.tensor([3, 30])
    with torch.no_grad():
        found = bench.by_definition(subject, kept, positions, neurons, torch.float64)
        expected, _ = captured_changes(subject, kept, positions, neurons)
    torch.testing.assert_close(found, expected)


def test_operations_are_those_of_a_hand_count():
    subject = bench.subject_of(TOY, whole=False)
    # 300 x 16 x 32 (B), three of 10 x 300 x 32 (B^2, B^3), four of 10 x 16 x 300 (mean rows, logits), two operations
    # each
    assert bench.operations(subject, 10, 32) == 2 * (300 * 16 * 32 + 3 * 10 * 300 * 32 + 4 * 10 * 16 * 300)


def test_each_measurement_has_a_process_of_its_own():
    assert len({bench.alone(os.getpid, threads=1) for _ in range(2)} | {os.getpid()}) == 3


def test_bad_arguments_are_named_before_anything_runs(monkeypatch, capsys):
    monkeypatch.setattr(bench, "bench", lambda *arguments, **named: pytest.fail("something ran"))
    monkeypatch.setattr(bench.checkpoints, "locate",
                        lambda model: (_ for _ in ()).throw(FileNotFoundError(f"no {model}")))
    for arguments, message in ((["pythia-70b"], "no pythia-70b"), (["pythia-70m", "--positions", "0"], "positions")):
        with pytest.raises(SystemExit):
            bench.main(arguments)
        assert message in capsys.readouterr().err


def test_main_prints_a_markdown_table(monkeypatch, capsys):
    monkeypatch.setattr(bench, "bench", lambda models, positions, threads, say: say(f"{models} {positions} {threads}"))
    assert bench.main(["pythia-70m", "--positions", "8", "16", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| model | what |") and lines[-1] == "| ['pythia-70m'] [8, 16] 1 |"


def test_a_checkpoints_cost_grows_to_that_of_a_sweep(monkeypatch):
    monkeypatch.setattr(bench, "alone", lambda function, *arguments, threads: function(*arguments))
    monkeypatch.setattr(bench, "kernel", lambda model, n: {"seconds": 1 + n / 10, "peak": 2.0})
    costs = bench.growth([(16, 2, 2, 256, 8192)], 40, threads=1, say=lambda line: None).set_index("stage")["seconds"]
    assert list(costs.index) == ["read", "forward", "ablation", "statistics"] and (costs > 0).all()
    assert costs["ablation"] == pytest.approx(2 * (1 + 40 / 10))  # two groups, each extrapolated from smaller ones
    grid = pd.DataFrame({"model": ["a/pythia-70m-deduped", "a/pythia-1b"], "steps": ["[0, 4, 8]", "[0]"]})
    made = bench.sweeps(pd.DataFrame({"model": ["pythia-70m"] * 2, "seconds": [1800.0, 1800.0]}), grid)
    assert made == {"the paper's grid": (3, 3.0), "every checkpoint of pythia-70m": (154, 154.0)}


@pytest.mark.parametrize("arguments, spins", [([], "ACTIVE"), (["--as-here"], "PASSIVE")])
def test_the_ways_are_measured_as_elsewhere_unless_asked_otherwise(monkeypatch, arguments, spins):
    for name in bench.AS_ELSEWHERE:
        monkeypatch.setenv(name, "PASSIVE" if name == "OMP_WAIT_POLICY" else "1")
    found = []
    monkeypatch.setattr(bench, "bench", lambda *_, **__: found.append(os.environ["OMP_WAIT_POLICY"]))
    assert bench.main(["pythia-70m", *arguments]) == 0 and found == [spins]
