"""Drawing which tokens are rare, and what tokens and positions say in words (notebook 01)."""

import numpy as np
import pandas as pd

from rare_token_neurons.figures import axes
from rare_token_neurons.figures.axes import title  # for the notebook
from rare_token_neurons.figures.words import percent
from rare_token_neurons.tables.stage import GROUPS

COUNTS = {"wordfreq": "uses per billion words of general English", "training text": "uses in the training text",
          "text": "uses in the text"}  # in parameters -> in words
IN_TEXT = COUNTS["text"]
LEAST, ENOUGH = 100, 1000  # rare positions: fewer test no claim; with fewer the intervals are wide
BEFORE = 15  # tokens of context


def counted(name):
    """What the counts that decide are, in words. name : `settings.counts_name`."""
    return COUNTS.get(name, "uses in the text that is counted")


def known(tokens):
    """The word tokens that the counts have seen. tokens : table `tokens`."""
    return tokens[tokens["word"] & (tokens["count"] > 0)]


# ---- in words


def some(tokens, name, seed, n=8):
    """Some word tokens with their counts and groups, drawn at random. tokens : table `tokens` ; name : as `counted`."""
    drawn = known(tokens).query("group != ''").sample(n, random_state=seed).sort_values("count")
    columns = {"token": "token", "count": counted(name)} | (
        {"count_text": IN_TEXT} if counted(name) != IN_TEXT else {}) | {"group": "group"}
    return drawn[list(columns)].rename(columns=columns).set_index("token")


def context(row, tokens, blocks, before=BEFORE):
    """The text up to a position, and its target.

    row : of table `positions` ; tokens, blocks : the tables ; before : tokens shown.
    """
    texts = tokens["token"].to_numpy()
    read = texts[list(blocks["tokens"].iloc[row.block][max(0, row.t + 1 - before) : row.t + 1])]
    return "… " + " ".join("".join(read).split()), texts[row.target].strip()


def of_contexts(rows, tokens, blocks):
    """Positions as they stand in the text, the target in bold, in Markdown; rows: of table `positions`."""
    places = [context(row, tokens, blocks) for row in rows.itertuples()]
    return "\n".join(f"- {read} **{target}**" for read, target in places)


def deciding(one, tokens, blocks, rare_of):
    """The token by which a position is rare, as a row of table `tokens`: the target, or (`rare_of`) the one read.

    one : the position's row of table `positions`, as a DataFrame.
    """
    block, t = one[["block", "t"]].iloc[0]
    return tokens.loc[blocks["tokens"].iloc[block][t + (rare_of == "target")]]


def of_rule(token, threshold, name):
    """How one token is judged, in Markdown. token : its row of table `tokens` ; threshold : the largest rare count."""
    if not token["group"]:
        return f"**{token['token'].strip()}** is neither rare nor common: it is no word token, or it was never counted."
    beside = "at or below" if token["count"] <= threshold else "above"
    return (f"**{token['token'].strip()}** has a count of {token['count']:,} ({counted(name)}). The threshold is "
            f"{threshold:,.0f}. The count lies {beside} it, so the token is **{token['group']}**.")


def of_tokens(tokens, percentile, seed):
    """How many tokens are rare, and how much of the text they are, in Markdown; tokens: table `tokens`."""
    seen, rare = known(tokens), tokens[tokens["group"] == "rare"]
    share = tokens.groupby("group")["count_text"].sum() / tokens["count_text"].sum()
    shown = ", ".join(rare["token"].str.strip().sample(min(12, len(rare)), random_state=seed))
    return (f"The vocabulary has {len(tokens):,} tokens. {tokens['word'].sum():,} of them are words, and {len(seen):,} "
            f"of these have a count. The rarest {percentile:g} % are the **{len(rare):,} rare tokens**. In the running "
            f"text {percent(share['rare'], 1)} of all tokens are rare ones, {percent(share['common'], 1)} common ones. "
            f"Some rare tokens: {shown}.")


def held(chosen):
    """Positions and documents by group and half. chosen : table `positions`."""
    made = chosen.groupby(["group", "half"]).agg(positions=("t", "size"), documents=("document", "nunique"))
    return made.unstack("half").swaplevel(axis=1).sort_index(axis=1).loc[list(GROUPS)].rename(
        columns={"A": "half A", "B": "half B"}).rename_axis(index="targets", columns=[None, None])


def of_positions(chosen, blocks):
    """How much there is to measure, in Markdown; chosen, blocks: the tables `positions` and `blocks`."""
    rare = chosen[chosen["group"] == "rare"]
    word = ("enough" if len(rare) >= ENOUGH else "few: the intervals will be wide" if len(rare) >= LEAST else
            "too few to test any claim")
    return (f"There are **{len(rare):,} rare positions from {rare['document'].nunique():,} documents**, in "
            f"{len(blocks):,} blocks of {len(blocks['tokens'].iloc[0])} tokens. That is {word}.")


def summary(tokens, chosen):
    """Paper and here, in Markdown; takes the tables `tokens` and `positions`."""
    n, rare = chosen["group"].eq("rare").sum(), tokens["group"] == "rare"
    share = tokens.loc[rare, "count_text"].sum() / tokens["count_text"].sum()
    return ("On the Pile, the paper's 50 % rule puts 25,151 distinct tokens below the threshold, words and others "
            f"alike. They are 4.7 % of all tokens. Here {rare.sum():,} distinct tokens are rare, and they are "
            f"{percent(share, 1)} of all tokens. The paper's public code ablates at about 120 rare positions (10 "
            f"blocks). Here there are {n:,}, {n / 120:.0f} times as many.")


# ---- figure 1


def zipf(ax, tokens, name):
    """Count by rank of all word tokens, the rare band in colour, and the finding as title.

    tokens : table `tokens` ; name : as `counted`.
    """
    rare = tokens["group"] == "rare"
    seen = known(tokens)["count"].to_numpy(dtype=float)
    axes.zipf(ax, seen, rare_at=tokens.loc[rare, "count"].max())
    ax.set(xlabel="rank of the word token, most common first", ylabel=counted(name))
    types, uses = rare.sum() / len(seen), tokens.loc[rare, "count"].sum() / seen.sum()
    title(ax, f"{percent(types)} of the word tokens are rare,\nand only {percent(uses, 1)} of the uses")
    ax.legend(loc="lower left")


def agreement(ax, tokens, name):
    """The count in the text by the count that decides, a dot a word token, with their rank correlation as title.

    tokens : table `tokens` ; name : as `counted`.
    """
    seen = known(tokens)
    across, up = counted(name), IN_TEXT
    if across == up:
        across, up = "uses in the documents that decide", "uses in all documents"
    for group in GROUPS[::-1]:
        rows = seen[seen["group"] == group]
        ax.plot(rows["count"], rows["count_text"], ".", color=axes.COLORS[group], markersize=1, alpha=0.25,
                rasterized=True)
        ax.plot([], [], "o", color=axes.COLORS[group], label=f"{group} (n = {len(rows):,} tokens)")
    ax.set_yscale("symlog", linthresh=1, linscale=0.4)
    ax.set(xscale="log", xlabel=across, ylabel=up, ylim=(-0.3, 3 * seen["count_text"].max()))
    ticks = [0, *10 ** np.arange(1 + int(np.log10(seen["count_text"].max())))]
    ax.set_yticks(ticks, ["0", *(f"$10^{{{power}}}$" for power in range(len(ticks) - 1))])
    found = seen["count"].corr(seen["count_text"], method="spearman")
    how = "closely" if found > 0.9 else "loosely" if found > 0.3 else "hardly"
    title(ax, f"The text follows these counts {how}:\nrank correlation {found:.2f}")
    ax.legend(loc="upper left", handletextpad=0.2)
