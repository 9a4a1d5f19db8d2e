"""The ranked curve of one model: what is drawn and said is what the tables hold."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from rare_token_neurons.figures import axes, influence

PLANTED = {"head_end": 20, "plateau_end": 20, "law_end": 150, "kappa": 0.7, "plateau_share": 0.02, "law_share": 0.13,
           "decay_share": 0.85, "slope_1": 0.1, "slope_2": 0.7, "slope_3": 5.0}


@pytest.fixture
def ax():
    figure, ax = axes.panels()
    yield ax
    plt.close(figure)


def found(**changes):
    """Two rows of the table `phases`: intervals of a tenth to either side, three stretches; `changes` to the rare group."""
    row = {"first": 20, "last": 400, "breaks": 2, "plateau_draws": 0.97, "decay_draws": 1.0, "reliability": 0.8,
           "detectable": 2e-4, "positions": 2_000, "documents": 300, "null": "lognormal", "departure": -0.5,
           "p_plateau": 0.01, "p_outliers": 0.99}
    for name, value in PLANTED.items():
        row |= {f"bp_{name}": value, f"bp_{name}_low": 0.9 * value, f"bp_{name}_high": 1.1 * value}
    return pd.DataFrame([row | changes, row | {"p_plateau": 0.4, "p_outliers": 0.6}], index=["rare", "common"])


def three_phases(n=1000):
    ranks = np.arange(1, n + 1)
    return np.maximum(ranks, 20) ** -0.7 * np.exp(-np.maximum(ranks - 150, 0) / 150)


def test_change_points_are_told_with_their_intervals_and_a_slope_a_stretch():
    told = influence.change_points(found())
    assert told.columns.tolist() == ["rare", "common"] and told.loc["head's end (rank)", "rare"] == "20 [18, 22]"
    assert told.index.tolist()[-3:] == ["slope of stretch 1", "slope of stretch 2", "slope of stretch 3"]
    assert "slope of stretch 2" not in influence.change_points(found().assign(breaks=0)).index


def test_boundaries_agree_where_the_rules_lies_inside_the_interval():
    lines = influence.of_boundaries(found(bp_plateau_end=0.0)).splitlines()
    assert len(lines) == 6 and lines[0].startswith("- **Rare tokens, the plateau's last rank**: 20 by the paper's rule, 0 by ")
    assert "(0: there is none): the two agree within the interval." in lines[0]
    assert lines[4] == ("- **Common tokens, the power law's last rank**: 400 by the paper's rule, 150 by change points: "
                        "the two differ beyond the interval.")
    assert "97% have a plateau and 100% a decay" in lines[2] and "2.0e-04 nats (2,000 positions, 300 documents)" in lines[2]


def test_a_head_is_named_with_its_two_sided_p_value():
    assert influence.heads(found()) == {"rare": "plateau beyond the null (p = 0.020)",
                                        "common": "no plateau beyond the null (p = 0.800)"}
    assert influence.heads(found(departure=0.5))["rare"] == "no plateau beyond the null (p = 0.020)"


@pytest.mark.parametrize("breaks", [0, 2])
def test_a_curve_is_drawn_over_its_null_with_the_head_that_change_points_find(ax, breaks):
    values = three_phases()
    rows = pd.DataFrame({"group": "rare", "rank": np.arange(1, 1001), "influence": values, "low": 0.9 * values,
                         "high": 1.1 * values, "null": "lognormal", "null_low": 0.5 * values, "null_high": 2 * values,
                         "same_tokens": 1.2 * values})
    influence.curve(ax, rows, influence.fit(values), found(breaks=breaks).loc["rare"])
    labels = ax.get_legend_handles_labels()[1]
    assert {"rare (n = 2,000, 300 documents; 95 %)", "lognormal null, 95 %", "ranked on the same tokens"} <= set(labels)
    assert ("head's end by change points, rank 20 (95 %)" in labels) == (breaks > 0)


def test_lead_and_summary_tell_the_numbers_of_their_tables():
    lead = pd.Series({"size": 26.0, "neurons": 1536.0, "value": 8.25, "low": 7.0, "high": 9.5, "null": 3.5, "null_low": 3.25,
                      "null_high": 3.75, "p_half_normal": 0.001, "matched": 2.5})
    said = influence.of_lead(lead, 0.0125)
    assert said.startswith("The rare group (26 of 1,536 neurons) has **8.2 times** (7.0 to 9.5) the influence of the median")
    assert "p = 0.001), groups alike in activation scale and output-weight norm have 2.5. 1.2% of the (position" in said
    rare = three_phases()
    fitted = {"rare": influence.fit(rare), "common": influence.fit(rare)}
    falling = np.geomspace(1, 1e-3, 1000)
    said = influence.summary(fitted, {"rare": falling, "common": np.roll(falling, 5)}, 10)
    assert "50% are also among the 10 most influential for common ones" in said
    assert f"Here it is **{' / '.join(f'{share:.1%}' for share in fitted['rare'].shares)}** for rare tokens" in said
