"""Drawing of spectra: what is drawn is what the tables hold; the last layer's place; sentences."""

import numpy as np
import pandas as pd
import pytest

from rare_token_neurons.figures import axes as plots, weights


def test_groups_have_places_of_their_own(ax):
    table = pd.DataFrame([{"matrix": matrix, "group": group, "rows": rows, "size": 27, "value": 1.0, "low": 0.5,
                           "statistic": "alpha_hill", "p_random": 0.5, "p_matched": 0.5,
                           "high": 1.5,
                           "random_low": 1.0, "random_high": 3.0, "random_mean": 2.0, "matched_low": 1.0,
                           "matched_high": 3.0, "matched_mean": 2.0} for matrix in ("gate", "out")
                          for group, rows in (("rare", "raw"), ("rare", "standardised"), ("common", "raw"))])
    placed, cases = weights.places(table)
    assert cases["y"].is_unique and placed["y"].tolist() == cases["y"].tolist() and cases["name"].is_unique
    assert cases["y"].is_monotonic_decreasing and cases["y"].diff().abs().min() >= 1
    weights.groups(ax, placed)
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [dot.get_color() for dot in dots] == [plots.COLORS["rare"], plots.COLORS["common"]]
    assert sorted(np.concatenate([dot.get_ydata() for dot in dots])) == sorted(cases["y"])


def test_the_hill_plot_marks_the_chosen_tail(ax, legend):
    part = pd.DataFrame({"k": [1, 2, 3], "value": [3.0, 2.0, 1.5], "chosen": 2, "revision": "",
                         "random_low": 2.5, "random_high": 9.0,
                         "matched_low": 1.8, "matched_high": 8.0, "shuffled_mean": 5.0})
    both = pd.concat([part.assign(revision="step0", value=[8.0, 7.0, 6.0]), part.assign(revision="step9")])
    weights.hill(ax, both)
    mark = next(line for line in ax.lines if line.get_marker() == "D")
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (2, 2.0)
    assert {"rare group at step0", "rare group at step9", "matched groups, 95 %"} <= set(legend())
    ax.clear()
    weights.hill(ax, both.assign(matched_low=np.nan, matched_high=np.nan))
    assert "matched groups, 95 %" not in legend()
    assert ax.get_title(loc="left") == "Heavier tail than random\nat 67 % of the tail sizes"


def test_the_law_is_drawn_at_the_groups_aspect_ratio(ax):
    rank = np.arange(1, 21)
    rows = pd.DataFrame({"rank": np.tile(rank, 3), "columns": 80, "matrix": "gate", "draw": 0,
                         "kind": np.repeat(["rare", "random", "shuffled"], 20),
                         "relative": np.tile(np.linspace(2, 0.3, 20), 3)})
    weights.spectrum(ax, rows, np.linspace(-1, 1, 10))
    law = next(line for line in ax.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 400)
    assert 10 ** law.get_xdata()[[0, -1]] == pytest.approx([0.25, 2.25])  # (1 -+ sqrt(1/4))^2
    x, y = law.get_xdata(), law.get_ydata()
    assert np.trapezoid(y, x) == pytest.approx(1, abs=0.02)
    ticks = next(line for line in ax.lines if line.get_marker() == "|")
    assert len(ticks.get_xdata()) == 20
    share = weights.shares(rows)
    assert share["rare", "gate"] == pytest.approx(2 / np.linspace(2, 0.3, 20).sum())
    assert ax.get_title(loc="left") == "$W_{in}$ gate: one direction\nholds 9 % (random 9 %)"
    assert weights.one_direction(share) == ("- $W_{in}$ gate: one direction holds **9 %** of the rare group's spectrum "
                                            "(random groups 9 %).")


def test_planted_spectra_give_their_known_answers_back(ax, legend):
    rng = np.random.default_rng(0)
    noise, one = rng.normal(size=(200, 20, 200)), rng.normal(size=(200, 1, 200))
    sets = {"unrelated neurons": weights.spectra.eigenvalues(noise),
            "one direction shared": weights.spectra.eigenvalues(noise + one),
            "power law, exponent 1.5": np.sort(rng.pareto(1.5, size=(200, 20)) + 1, axis=1)[:, ::-1]}
    found = weights.judged(sets)
    assert found.loc["power law, exponent 1.5", "Hill exponent (median)"] == pytest.approx(1.5, abs=0.2)
    noise, shared = (found.loc[name, "stable rank (median)"] for name in ("unrelated neurons", "one direction shared"))
    assert noise == pytest.approx(20 / weights.spectra.mp_edges(0.1)[1], rel=0.1)  # lambda_1 at the edge
    assert 1.5 < shared < 2.2  # half of each row's length is shared
    weights.ranked(ax, sets)
    assert legend() == list(sets) and all(len(line.get_xdata()) == 20 for line in ax.lines)


def groups_of(**changed):
    """`weight_groups` of a rare group: gate and up in four statistics; the gate's matched groups cannot be used."""
    made = []
    for matrix in ("gate", "up"):
        for at, statistic in enumerate(("alpha_hill", "alpha_hill_half", "stable_rank", "entropy")):
            p = 0.001 if at % 2 else 0.3
            one = {"group": "rare", "rows": "raw", "matrix": matrix, "statistic": statistic, "value": 2.0, "low": 1.5,
                   "high": 2.5, "missing": 0.0, "positions": 900, "documents": 120, "shuffled_mean": 9.0,
                   "imbalance_norm": 0.4 if matrix == "gate" else 0.01}
            for kind in ("random", "matched"):
                one |= {f"{kind}_mean": 3.0, f"{kind}_low": 2.6, f"{kind}_high": 3.5, f"p_{kind}": p,
                        f"{kind}_draws": 1000}
            made.append(one | changed)
    return pd.DataFrame(made)


def test_matched_groups_that_cannot_be_used_are_left_out_matrix_by_matrix(ax, legend):
    every = groups_of()
    spectra = pd.DataFrame({"matrix": ["gate", "gate", "up", "up"], "kind": ["matched", "random"] * 2})
    assert weights.in_use(spectra, every).index.tolist() == [1, 2, 3]
    curves = weights.in_use(pd.DataFrame({"matrix": ["gate", "up"], "value": 1.0, "matched_low": 2.0}), every)
    assert curves["matched_low"].isna().tolist() == [True, False] and curves["value"].notna().all()
    said = weights.matching(every)
    assert "0.40 SD in $W_{in}$ gate (**cannot be used there**), 0.01 SD in $W_{in}$ up. The limit is 0.25" in said
    used = weights.usable(every)
    assert weights.lower(used).tolist() == [False, True] * 4
    used.loc[used["matrix"] == "up", "p_matched"] = 0.2
    assert weights.lower(used).tolist() == [False, True, False, True] + [False] * 4
    placed, _ = weights.places(used.assign(size=27).query("statistic == 'entropy' and matrix == 'gate'"))
    weights.groups(ax, placed)
    assert not any("matched" in name for name in legend())
    assert ax.get_title(loc="left") == "Rare group: smaller spectral entropy than\nits controls in $W_{in}$ gate"
    shown = weights.listed(used)
    assert shown.index.tolist() == ["Hill exponent"] * 2 + ["stable rank"] * 2
    assert shown["matched groups"].tolist() == ["", "3.00"] * 2
    assert shown["matrix"].tolist() == ["W_in, gate", "W_in, up"] * 2
    assert weights.others(used).loc["spectral entropy", "W_in, up"] == "2 (3)"


def test_the_course_of_training_is_in_the_titles_and_in_words(ax, legend):
    rows = pd.DataFrame([{"kind": kind, "statistic": name, "matrix": "up", "step": step, "value": value, "low": value,
                          "high": value, "random_low": 2.0, "random_high": 4.0, "difference": value - 3,
                          "p_random": 0.2}
                         for kind in ("own", "last") for name in weights.MAIN
                         for step, value in ((64, 1.0), (0, 3.0), (8, 2.5))])
    weights.over_steps(ax, rows[rows["statistic"] == "alpha_hill"])
    assert ax.get_title(loc="left") == "$W_{in}$ up: smaller Hill exponent than\nrandom groups from step 64 on"
    assert weights.course(rows) == (
        "- $W_{in}$ up: the distance to random groups goes from +0.00 to -2.00 in the Hill exponent, and from +0.0 to "
        "-2.0 in the stable rank.\n- At the first checkpoint the smallest of the 2 p values is 0.20.")
    assert weights.course(pd.DataFrame()) == ""


# ---- layer by layer


def test_the_last_layers_place_among_the_others():
    table = pd.DataFrame({"matrix": ["a"] * 5 + ["b"] * 3 + ["embed"], "layer": [3, 0, 1, 2, 4, 0, 1, 2, -1],
                          "alpha": [2.0, 1.0, np.nan, 5.0, 2.5, 4.0, 3.0, np.nan, 9.0]})
    found = weights.special(table)
    assert list(found.index) == ["a", "b"]
    assert found.loc["a", ["last", "median", "lowest", "highest", "below", "others"]].tolist() == [2.5, 2.0, 1.0, 5.0,
                                                                                                   2, 3]
    shown = weights.listed_layers(table)
    assert shown.loc["a", "others below it"] == "2 of 3" and shown.loc["a", "alpha of the last layer"] == 2.5
    assert found.loc["a", "p"] == 1.0 and np.isnan(found.loc["b", ["last", "p"]].astype(float)).all()


def test_an_outlier_among_many_layers_has_a_small_p():
    table = pd.DataFrame({"matrix": "a", "layer": range(40), "alpha": [*np.linspace(2, 3, 39), 9.0]})
    assert weights.special(table)["p"].item() == pytest.approx(2 / 40)


def test_layers_are_counted_from_one_and_the_title_says_whether_the_last_stands_out(ax):
    for layers, words in ((40, "stands out:\nextreme in 2 of 2"), (3, "does not stand out:\nextreme in 2 of 2")):
        ax.clear()
        weights.by_layer(ax, pd.DataFrame({"matrix": np.repeat(["mlp.a", "attention"], layers), "alpha": np.tile(
            np.arange(layers), 2), "layer": np.tile(np.arange(layers), 2)}), "alpha")
        assert ax.lines[0].get_xdata()[[0, -1]].tolist() == [1, layers] and f"1 to {layers}" in ax.get_xlabel()
        assert ax.get_title(loc="left").startswith(f"The last layer {words}")


# ---- in words


def test_failed_fits_are_told_matrix_by_matrix_and_too_many_are_marked():
    table = pd.DataFrame({"group": ["rare", "rare", "rare", "common"], "rows": ["raw", "raw", "standardised", "raw"],
                          "matrix": ["in", "out", "in", "in"], "statistic": "alpha", "missing": [0.05, 0.5, 0.9, 0.9],
                          "under_trained": 0.25, "log": ["", "odd", "", "odd"]})
    first, second, last = weights.failures(table).splitlines()
    assert "5.0 % of" in first and "**" not in first
    assert first.endswith("It calls 25 % of the random groups under-trained.")
    assert "50.0 % of weightwatcher's fits failed (**above 20 %" in second and last == "- Its words on failures: odd."


def test_the_summary_tells_each_matrix_and_which_measures_agree():
    rare = weights.usable(groups_of()).set_index(["statistic", "matrix"])
    said = weights.summary(rare, "mini-pythia").splitlines()
    assert said[0].startswith("- **$W_{in}$ gate**: Hill exponent **2.00** [1.50, 2.50]; random groups 3.00 (p = "
                              "0.30), matched groups cannot be used, own elements shuffled 9.00. Stable rank **2.00**; "
                              "random groups 3.00 (p = 0.30), matched groups cannot be used. A heavier tail than "
                              "random groups by Hill at k = m/2, entropy; not by Hill by fix-finger, stable rank.")
    assert "matched groups 3.00 (p = 0.30), own" in said[1]
    assert "than random groups and matched groups by Hill at" in said[1]
    assert len(said) == 2
    assert weights.summary(rare, "smollm2").splitlines()[-1].endswith("noise of its own.")


def test_output_weights_stand_beside_the_claim():
    rare = weights.usable(groups_of(p_random=1 / 1001, p_matched=1 / 1001)).replace({"matrix": {"up": "out"}})
    said = weights.summary(rare.set_index(["statistic", "matrix"]), "mini-pythia")
    assert said.splitlines()[1].startswith("- **$W_{out}$** (beside the claim): Hill exponent **2.00**")
    assert "(none of 1,000 random groups is as far out), matched groups 3.00 (none of 1,000 matched groups" in said


def test_a_verdict_on_the_power_law_stands_beside_the_share_of_noise_that_earns_it():
    one = {"matrix": "up", "kind": "rare", "n": 12, "alpha": 2.34, "p_fit": 0.5, "verdict": "not rejected"}
    noise = [one | {"kind": kind, "verdict": verdict} for kind in ("random", "shuffled")
             for verdict in ("rejected", "not rejected" if kind == "random" else "rejected")]
    found = weights.laws(pd.DataFrame([one, *noise])).loc["W_in, up"]
    assert found["same verdict: random groups"] == "50 %" and found["same verdict: shuffled weights"] == "0 %"
    assert found["exponent of the density"] == 2.3
