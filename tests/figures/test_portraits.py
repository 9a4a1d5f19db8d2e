"""Cards of single neurons: text of any kind is safe, titles and tallies say what the numbers say."""

import html
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from rare_token_neurons.figures import axes, portraits as portrait_figures

NASTY = "a|b *c* `d` $e$ <b>&amp;\n#[x](y) _z_ ~"


def test_text_of_any_kind_is_no_markup():
    made = portrait_figures.code(NASTY)
    assert made.startswith("<code>") and made.endswith("</code>")
    inner = made.removeprefix("<code>").removesuffix("</code>")
    assert re.fullmatch(r"(?:[A-Za-z0-9␣↵]|&#\d+;)+", inner)  # nothing that Markdown, HTML or a formula could read
    assert html.unescape(inner) == NASTY.replace(" ", "␣").replace("\n", "↵")


def test_what_leaves_no_ink_is_shown():
    assert portrait_figures.visible(" a\tb\r\n") == "␣a⇥b␍↵"
    assert portrait_figures.visible(" two words  here ", spaces=False) == "␣two words␣␣here␣".replace("␣two", " two")
    assert portrait_figures.visible("\u200b\u0301x\ufffd") == "[U+200B][U+0301]x\ufffd"
    assert portrait_figures.code("") == "" and portrait_figures.words([]) == "none"
    assert portrait_figures.words(["a", "b", "a"]).count("<code>") == 2


def neuron_row(**changed):
    row = {"neuron": 3, "rank": 1, "top": True, "rare": 0.2, "common": 0.1, "share": 2 / 3, "change_rare": 0.1,
           "change_rare_error": 0.01, "change_common": 0.0, "change_common_error": 0.01, "unigram_rare": 1.0,
           "unigram_rare_error": 0.1, "correlation": -0.9, "kurtosis": 500.0, "at_rare": 0.4, "at_common": 0.3,
           "word_read": 0.9, "word_target": 0.1, "rare_target": 0.05}
    row |= {f"{name}_base": 0.5 for name in ("word_read", "word_target", "rare_target")}
    return pd.Series(row | changed)


def test_the_title_says_whom_it_helps():
    assert portrait_figures.headline(neuron_row()) == "helps rare targets, no clear mean effect on common ones"
    assert portrait_figures.headline(neuron_row(change_common=-0.1)) == "helps rare targets, hurts common targets"
    assert portrait_figures.headline(neuron_row(change_rare=-0.1,
                                                change_common=-0.1)) == "hurts rare and common targets"
    assert portrait_figures.headline(neuron_row(change_rare=0)) == "no clear mean effect"


def test_every_line_of_a_card_has_two_cells_whatever_its_text():
    tokens = pd.DataFrame({"neuron": 3, "side": ["promoted", "suppressed"], "place": 1, "token": [NASTY, "|"]})
    targets = pd.DataFrame({"neuron": 3, "side": ["rises"], "place": [1], "token": ["|\n|"], "change": [0.5]})
    contexts = pd.DataFrame({"neuron": [3], "place": [1], "active": [7.0], "before": [NASTY], "token": ["|"],
                             "target": ["\n"], "after": [""]})
    made = portrait_figures.gallery(neuron_row().to_frame().T, tokens, targets, contexts).splitlines()
    assert made[0].startswith("### 1 · Neuron 3: helps rare") and "falls most without it | none" in "\n".join(made)
    assert all(line.count("|") == 3 for line in made[2:])


def test_the_tally_counts_the_top_neurons_against_the_others():
    rng = np.random.default_rng(0)
    others = pd.DataFrame([neuron_row(neuron=at, top=False, share=0.5, kurtosis=20 + at / 100,
                                      correlation=rng.uniform(-0.3, 0.3)) for at in range(10, 110)])
    other = neuron_row(neuron=4, change_rare=-0.1, unigram_rare=-1, correlation=0.1, kurtosis=0, share=0.4)
    top = pd.DataFrame([neuron_row(), other])
    found = portrait_figures.tally(pd.concat([top, others], ignore_index=True))
    assert found == {"neurons": 2, "helps_rare": 1, "hurts_rare": 1, "helps_common": 0, "hurts_common": 0, "against": 1,
                     "along": 1, "frequency": 1, "rare_share": 1, "dense": 1, "sparse": 1, "word_read": 2,
                     "word_target": 0}


def test_sentences_set_the_top_neurons_beside_the_others():
    top = pd.DataFrame([neuron_row(), neuron_row(neuron=4, change_rare=-0.1, unigram_rare=-1.0)])
    other = {"top": False, "rare": 0.01, "common": 0.01, "share": 0.5, "correlation": 0.1}
    others = pd.DataFrame([neuron_row(neuron=at, **other) for at in range(5, 25)])
    table = pd.concat([top, others], ignore_index=True)
    beside, deeds, summary = (say(table) for say in (portrait_figures.beside_others, portrait_figures.deeds,
                                                     portrait_figures.summary))
    assert beside.startswith("The median of the other 20 neurons changes the loss by 0.0100 nats on rare and by 0.0100 "
                             "on")
    assert beside.endswith("A larger share on rare targets than the median neuron's: 2 of the 2.")
    assert "Of the 2 neurons, rare targets are **helped by 1**" in deeds
    assert "**hurt by 1**; common ones are helped by 0 and hurt by 0" in deeds
    assert "mostly reading a word token: 2 (50 % of all positions do)" in deeds
    assert "the 2 here put 67 % (median)" in summary
    assert "rare targets 20 times" in summary and "common targets 10 times" in summary
    assert summary.endswith("not confined to rare tokens.")


def portrayed(n):
    """The table `portraits` of n top neurons that raise common tokens when on, half of them off at rare targets."""
    top = pd.DataFrame([neuron_row(neuron=at, rank=at + 1, rank_common=at + 1, rare=0.3 - at / 200, rare_error=0.01,
                                   common_error=0.01, correlation=0.5, at_rare=(-1) ** at, promoted=0.9, suppressed=0.2)
                        for at in range(n)])
    other = {"top": False, "rare": 0.01, "common": 0.01, "share": 0.5, "correlation": 0.1, "promoted": 0.5,
             "suppressed": 0.5}
    others = pd.DataFrame([neuron_row(neuron=at, rank=at + 1, rank_common=at + 1,
                                      **other | ({"share": 0.2} if at == n else {}))
                           for at in range(n, n + 40)])
    return pd.concat([top, others], ignore_index=True)


@pytest.mark.parametrize("n", [10, 30])
def test_the_names_of_many_neurons_do_not_overlap(n):
    figure, ax = axes.panels(width=4.6, height=portrait_figures.height(n, least=3.9))
    portrait_figures.effects(ax, portrayed(n))
    figure.draw_without_rendering()
    places = sorted(Text.get_window_extent(name).extents[[1, 3]].tolist() for name in ax.texts)
    assert len(places) == n and all(low[1] < high[0] + 1 for low, high in zip(places, places[1:]))


def test_titles_and_sentences_tell_which_tokens_are_raised():
    table, (_, panels) = portrayed(10), axes.panels(1, 2)
    portrait_figures.frequency(panels[0], table)
    portrait_figures.ends(panels[1], table)
    assert [ax.get_title(loc="left") for ax in panels] == [
        "10 of 10 write by token frequency\n(by chance 0.5)",
        "When on, 10 of 10 raise common tokens\nand lower rare ones"]
    said = portrait_figures.writes("own", table)
    assert said.startswith("In own the top neurons raise mostly **common tokens**") and "**5 of the 10** push" in said
    rare = portrait_figures.writes("own", table.assign(promoted=0.1))
    assert "mostly **rare tokens**" in rare and "0 of the 10 raise" in rare
    said = portrait_figures.rivals(table)
    assert "is done by 1 neuron of the layer, the first of rank 11" in said and "lists share 10 neurons" in said


def test_the_neurons_stand_in_one_table_with_units():
    made = portrait_figures.in_numbers(portrayed(3))
    assert made.index.tolist() == [0, 1, 2] and made["part on rare ones (%)"].tolist() == [67, 67, 67]
    assert made["effect on rare targets (nats)"].tolist() == [0.3, 0.295, 0.29]


# ---- what the head is made of


def linear_table(raised=True, step=9):
    """Ten neurons of the head, linear maps that are always on but for the last three, and ninety others."""
    rank = np.arange(1, 101)
    one = pd.DataFrame({"step": step, "neuron": rank[::-1], "rank": rank, "in_head": (rank <= 10) & raised,
                        "openness": np.where(rank <= 7, 1.0, 0.5), "cv": np.where(rank <= 10, 0.1, 2.0),
                        "r2": np.where(rank <= 10, 0.95, 0.2), "gated": True, "size": 10 if raised else 2,
                        "direction": 0.4,
                        "random_direction": 0.1, "random_low": 0.05, "random_high": 0.15})
    return pd.concat([one.assign(group="rare"), one.assign(group="common", openness=0.5)], ignore_index=True)


def test_neurons_of_the_head_are_counted_that_are_linear_and_always_on():
    said = portrait_figures.made_of(linear_table())
    assert said.startswith("Of the 10 neurons of the head, **7** are linear maps that are always on at rare targets, "
                           "and 0 at common ones. Of the other neurons 0 % are. So **most work as linear maps")
    assert ("One direction holds 40 % of the sum of squares of their gate weights. That is more than random groups of "
            "10, which have 10 % (95 % from 5 % to 15 %)") in said
    told = portrait_figures.traits(linear_table()).loc["rare"]
    assert told["head, median"].tolist() == [1.0, 0.1, 0.95]
    assert told["other neurons, median"].tolist() == [0.5, 2.0, 0.2]
    title = portrait_figures.linear_title(linear_table())
    assert title == "Exploratory: linear maps that are always on, 7 of the head's 10 neurons"
    table = linear_table().assign(openness=0.5, gated=False, direction=0.1)
    said = portrait_figures.made_of(table)
    assert "**0** are" in said and "**most do not work as linear maps" in said
    assert "input weights. That is as in random groups" in said


def test_without_a_raised_head_the_rare_group_stands_for_it():
    table = linear_table(raised=False)
    inside, name = portrait_figures.of_head(table)
    assert set(table.loc[inside, "rank"]) == {1, 2} and name == "rare group (no head is raised)"
    assert portrait_figures.made_of(table).startswith("Of the 2 neurons of the rare group (no head is raised), **2** "
                                                      "are")


def test_the_head_is_drawn_among_all_neurons_and_followed_over_training(ax):
    rows = linear_table().query("group == 'rare'")
    portrait_figures.linear(ax, rows, "openness")
    others, head, median, _ = ax.lines
    assert head.get_xdata().tolist() == list(range(1, 11)) and head.get_color() == axes.COLORS["head"]
    assert len(others.get_xdata()) == 90 and set(median.get_ydata()) == {0.5}
    assert portrait_figures.medians(rows, "openness") == "Head open at 100 %,\nothers open at 50 %"
    assert portrait_figures.medians(rows, "r2") == "Head R² 0.95,\nothers R² 0.20"
    assert portrait_figures.medians(linear_table(raised=False), "r2").startswith("Rare group R² 0.95")
    ax.clear()
    early = linear_table(step=0).assign(rank=lambda one: 101 - one["rank"], r2=0.1)
    portrait_figures.linear_over_steps(ax, pd.concat([early, linear_table()]), "r2")
    others, top, followed = ax.lines
    assert top.get_ydata() == pytest.approx([0.1, 0.95]) and followed.get_ydata() == pytest.approx([0.1, 0.95])
    assert others.get_ydata() == pytest.approx([0.1, 0.2])
    assert "(n = 2)" in top.get_label() and "(n = 10)" in followed.get_label()
