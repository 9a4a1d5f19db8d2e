"""Drawing one neuron's ablation and the ranked curves of one model, and what they say in words (notebook 03)."""

import numpy as np
import pandas as pd

from rare_token_neurons.curve import heads
from rare_token_neurons.figures.axes import COLORS, DECIDES, last_ranks, legend_below, rank_curve, title
from rare_token_neurons.figures.rare_tokens import context
from rare_token_neurons.figures.words import UNTOLD, between, level, many, named, percent, stretches
from rare_token_neurons.statistics.claims import ALWAYS
from rare_token_neurons.statistics.rankings import SIDES
from rare_token_neurons.tables.stage import GROUPS

NULLS = {"law": "the law itself", "lognormal": "lognormal", "half_normal": "half-normal"}  # in columns -> in words
MEANS = {  # what the words say; `curve.heads` decides them
    "plateau": "it stands above its law and is flatter",
    "outliers": "it stands above its law, but is not shown to be flatter",
    "rounded": "it lies below its law, as the head of any sorted sample does",
    "on the line": "it cannot be told from the line: its interval holds 0, or a null scores as high too often",
    UNTOLD: "too few neurons or documents"}
UNDECIDED = heads.WORDS[-1]
RANKED = 1 / 1_001  # of one against ranked half-normal numbers (`nulls.ranked_null`)
PLACES = (1, 3, 10, 30, 100, 300, 1000)  # ranks at which a curve is set beside its law by hand
PLATEAU = dict(zip(heads.WORDS, ("yes", "undecided", "no", "undecided")))  # whether there is one, by the head's word
STRAIGHT = {"not rejected": "yes", "rejected": "no"}  # whether the law is a power law, by the verdict of its test


ALIKE = 0.001  # nats: two changes that differ by less are the same number in three digits
SEEN = (0.002, 0.998)  # of one neuron's changes: a few beyond would squeeze the figure


# ---- one neuron


def by_hand_at(one):
    """The positions of table `one_neuron` at which the whole model was run."""
    return one[one["loss_before"].notna()]


def places(shown, tokens, blocks):
    """Where one neuron is ablated, and what with: a row a position.

    shown : from `by_hand_at` ; tokens, blocks : the tables.
    """
    read, target = zip(*(context(row, tokens, blocks, before=8) for row in shown.itertuples()))
    return pd.DataFrame({"the text that is read": read, "activation": shown["activation"].round(3).array,
                         "set to": shown["reference"].round(3).array}, index=pd.Index(target, name="target"))


def side_by_side(shown, tokens, before, after):
    """Loss before and after, in nats, and their difference beside the change that the table has: a row a position.

    shown, tokens : as `places` takes them ; before, after : (positions,).
    """
    names = tokens["token"].to_numpy()[shown["target"]]
    made = pd.DataFrame({"loss before (nats)": before, "loss after (nats)": after,
                         "change by hand (nats)": after - before,
                         "change in the table (nats)": shown["change"].to_numpy()}, dtype=float)
    return made.map("{:+.3f}".format, na_action="ignore").assign(**{
        name: made[name].map("{:.3f}".format) for name in made.columns[:2]}).set_index(
            pd.Index([name.strip() for name in names], name="target"))


def of_hand(shown, before, after):
    """Whether the two agree, in words; takes what `side_by_side` takes."""
    apart = np.abs(np.asarray(after - before, dtype=float) - shown["change"].to_numpy()).max()
    if apart < ALIKE:
        return f"**The same number**, to {ALIKE:g} nats, at each of the {len(shown)} positions."
    return f"**Not the same number**: at one of the {len(shown)} positions they differ by {apart:.4f} nats."


def of_one(one, influence):
    """One neuron's changes at all positions, and its influence in the table, in Markdown.

    one : table `one_neuron` ; influence : table `influence` of the same checkpoint.
    """
    rows, neuron = one.loc[one["group"] == "rare", "change"], one["neuron"].iloc[0]
    stored = influence.set_index(["group", "neuron"]).loc[("rare", neuron)]
    return (f"Of the {len(rows):,} rare positions the loss rises at {percent((rows > 0).mean())} when neuron {neuron} "
            f"is ablated, and falls at the others. The mean change is {rows.mean():+.3f} nats. The mean "
            f"*absolute* change is **{rows.abs().mean():.3f}** nats. The table of all neurons has "
            f"{stored['mean_abs']:.3f}: this is the neuron's **influence**.")


def changes(ax, one):
    """One neuron's changes of the loss at all rare and all common targets, each sorted; the areas are the influences.

    The common one's area is painted over the rare one's: two colours that shine through each other are a null's grey.

    one : table `one_neuron`.
    """
    mean = one["change"].abs().groupby(one["group"]).mean()
    for group in GROUPS:
        rows = np.sort(one.loc[one["group"] == group, "change"])
        share = 100 * (np.arange(len(rows)) + 0.5) / len(rows)
        for paint, alpha in (("white", 1), (COLORS[group], 0.25)):
            ax.fill_between(share, 0, rows, color=paint, alpha=alpha, linewidth=0)
        ax.plot(share, rows, color=COLORS[group],
                label=f"{group} targets, {len(rows):,} positions: mean |change| {mean[group]:.2f} nats (shaded area)")
    ax.axhline(0, color=COLORS["all"], linewidth=0.6)
    ax.set(xlim=(0, 100), xlabel="positions, sorted by the change (%)",
           ylim=1.1 * one["change"].quantile(SEEN).to_numpy(),
           ylabel="loss without the neuron\nless loss with it (nats)")
    title(ax, f"Neuron {one['neuron'].iloc[0]} moves the loss of rare targets\n"
              f"{mean['rare'] / mean['common']:.1f} times as far as that of common ones")


# ---- all neurons


def strongest(influence, n=4):
    """The most influential neurons for rare and for common targets: a row a neuron.

    influence : table `influence` of one checkpoint.
    """
    rows = influence.sort_values("mean_abs", ascending=False).groupby("group").head(n)
    rows = rows.sort_values(["group", "mean_abs"], ascending=False)
    return pd.DataFrame({
        "neuron": rows["neuron"], "influence (nats)": rows["mean_abs"].round(3),
        "± standard error": rows["sem"].round(3),
        "mean change (nats)": rows["mean"].map("{:+.3f}".format),
        "on average the loss": np.where(rows["mean"] > 0, "rises (boost)", "falls (suppress)")}
    ).set_index(pd.Index(rows["group"], name="targets"))


def of_kernel(influence):
    """How many changes needed the exact sum, in words; influence: as `strongest` takes it."""
    size = influence.groupby("group").agg(positions=("positions", "first"), fallback=("fallback", "first"))
    rare, common = (percent(size.loc[group, "fallback"], 1) for group in GROUPS)
    return (f"Measured: {influence['neuron'].nunique():,} neurons at {size['positions'].sum():,} positions. The exact "
            f"sum was needed for {rare} of the pairs of a rare position and a neuron, and for {common} of those of a "
            "common one.")


def of_lead(lead):
    """How far the rare group leads the median neuron, beside its controls, in Markdown.

    lead : the row of table `prominence` for the ratio.
    """
    return (f"The rare group has {int(lead['size'])} of {int(lead['neurons']):,} neurons ({percent(heads.SHARE, 1)}, "
            f"rounded up). Its influence on rare tokens is "
            f"**{lead['value']:.1f} times** the median neuron's (95 %: {between(lead, form='.1f')}). Ranking "
            f"half-normal numbers gives {lead['null']:.1f} times ({between(lead, 'null', '.1f')}); as much as here: "
            f"{level(lead['p_half_normal'], RANKED, 'draws')}. For comparison: groups that are as active and have "
            f"output weights as large have {lead['matched']:.1f} times.")


# ---- the head beside its law


def by_hand(rows, fit):
    """A curve beside its law at some ranks: influence, the law's line, and the height above it, the log of their ratio.

    rows : one curve's of table `rank_curves` ; fit : its row of table `phases`.
    """
    at = rows[rows["rank"].isin(PLACES)].set_index("rank")
    law = np.exp(fit["beta"] - fit["kappa"] * np.log(at.index))
    return pd.DataFrame({"influence (nats)": at["influence"], "the law's line (nats)": law,
                         "height above it (e-folds)": np.log(at["influence"] / law)})


def of_mean(rows, fit):
    """Delta by hand, beside the table's, in words; takes what `by_hand` takes."""
    if not np.isfinite(fit["delta"]):
        return f"This curve {UNTOLD}: {MEANS[UNTOLD]}."
    if not fit["head"]:
        return "The law begins at rank 1: there is no head before it, and Delta is 0."
    head = rows[rows["rank"] <= fit["head"]]
    height = np.log(head["influence"]) - (fit["beta"] - fit["kappa"] * np.log(head["rank"]))
    return (f"By hand, the mean height over the head's {many(fit['head'], 'rank')} is **{height.mean():+.3f}**. The "
            f"table says Δ = {fit['delta']:+.3f}. So an influence in the head is, in the geometric mean, "
            f"{np.exp(fit['delta']):.2f} times what the line has at its rank.")


def _with_interval(row, name):
    ends = row[[f"{name}_low", f"{name}_high"]]
    return f"{row[name]:.2f}" + (" [{:.2f}, {:.2f}]".format(*ends) if np.isfinite(ends.astype(float)).all() else "")


def _ranks(row):
    """Where a cliff begins, and the law's first and last rank, as text: what follows begins at the next rank."""
    if not np.isfinite(row["kappa"]):
        return {"cliff from rank": "none", "law (ranks)": "none"}
    _, before, last = last_ranks(row)
    return {"cliff from rank": f"{int(row['shelf']) + 1}" if row["shelf"] < row["law_start"] else "none",
            "law (ranks)": f"{before + 1} to {last}"}


def fits(found):
    """The phases of the pooled curves by each rule, as text with 95 % intervals: a row (targets, rule).

    found : rows of table `phases`, indexed by group, sign and rule.
    """
    rows = {}
    for (group, _, rule), row in found.xs("pooled", level="sign", drop_level=False).iterrows():
        rows[group, rule] = {
            "head (neurons)": row["head"], **_ranks(row), "head / law / decay (%)": stretches(row),
            "Δ (e-folds)": _with_interval(row, "delta"), "κ of the law": _with_interval(row, "kappa"),
            "slope of the shelf": _with_interval(row, "slope"), "word": row["word"]}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["targets", "rule"]).replace("nan", "none")


def chances(found):
    """The score of each head, and how often each null scores as high, in words: a row (targets, rule).

    found : as `fits` takes it.
    """
    rows = {}
    for (group, _, rule), row in found.xs("pooled", level="sign", drop_level=False).iterrows():
        if row["word"]:
            rows[group, rule] = {"Δ (e-folds)": f"{row['delta']:+.2f}", "score": f"{score(row):+.1f}"} | {
                f"as high: {name}": level(row[f"p_{null}"], row["p_floor"]) for null, name in NULLS.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["targets", "rule"])


def score(fit):
    """Delta in units of its spread, of which p is the chance."""
    return heads.score(fit["delta"], fit["head"], fit["kappa"])


def largest(fit):
    """The score's p value against the null that speaks most against a raised head, in words."""
    return level(max(fit[f"p_{null}"] for null in NULLS), fit["p_floor"])


def doubt(fit):
    """What speaks against a raised head: the largest p value or, where each is small enough, the interval of Delta."""
    return "interval holds 0" if max(fit[f"p_{null}"] for null in NULLS) < heads.LEVEL else largest(fit)


def of_heads(found):
    """What the heads of the pooled curves are and by what numbers, in Markdown, a line a group.

    found : as `fits` takes it.
    """
    said = []
    for group in GROUPS:
        row, fixed = (found.loc[(group, "pooled", rule)] for rule in (DECIDES, "fixed head"))
        said.append(f"- **{group.capitalize()} tokens: {named(row)}** ({MEANS[named(row)]}).")
        if row["word"]:
            slope = f"{'Up to its cliff' if row['shelf'] < row['law_start'] else 'Over it'} the curve falls with a"
            said[-1] += (
                f" The head holds {many(row['head'], 'neuron')}, in the geometric mean at {np.exp(row['delta']):.2f} "
                f"times the line: Δ = {row['delta']:+.2f} e-folds (95 %: {between(row, 'delta', '+.2f')}). Its score is "
                f"{score(row):.1f}; as high by chance, in the null that comes nearest: {largest(row)}. {slope} "
                f"slope of {row['slope']:.2f}, the law with {row['kappa']:.2f} (as flat by chance: "
                f"{level(row['p_flat'], row['p_floor'])}). The fixed head ({many(fixed['head'], 'neuron')}) is called "
                f"*{named(fixed)}*, with Δ = {fixed['delta']:+.2f}. {of_end(row).capitalize()}.")
            if row["head_low"] < 1 <= row["head"]:
                said[-1] += " In some draws of documents the law begins at rank 1: there is no head, and Δ is 0."
    return "\n".join(said)


def of_end(fit):
    """How often a decay follows the law, in words. fit : row of table `phases`."""
    return (f"a steeper end follows the law in {percent(fit['decay_draws'])} of the draws of documents; of ranked "
            f"random numbers up to {percent(fit['decay_null'])} have one")


def of_noise(found):
    """How well the data can tell, in Markdown, a line a group; found : as `fits` takes it."""
    return "\n".join(
        f"- **{group.capitalize()} tokens**: {row['positions']:,} positions in {row['documents']:,} documents. The "
        f"influences of two halves of the documents correlate, which gives a reliability of {row['reliability']:.2f} "
        f"(1: no noise). A mean change of {row['detectable']:.1e} nats can be told from zero (95 %) for half of the "
        "neurons."
        for group, row in ((one, found.loc[(one, "pooled", DECIDES)]) for one in GROUPS))


def of_same_tokens(rows, fit):
    """How much more the head would seem to have, ranked and measured on the same tokens; takes what `by_hand` takes."""
    head = rows[rows["rank"] <= (fit["head"] or rows["rank"].max())]
    more = head["same_tokens"].mean() / head["influence"].mean() - 1
    how = (f"{percent(abs(more), 1)} {'more' if more > 0 else 'less'}" if abs(more) >= 0.0005 else
           "neither more nor less")
    return f"Ranked and measured on the same tokens, the head would seem {how} influential than it is on fresh ones."


# ---- curves


def finding(name, fit):
    """The title of a curve: the word of its head, Delta with its interval, and why where the word leaves it undecided.

    fit : row of table `phases`, or None where the table has none.
    """
    if fit is None or not fit["word"]:
        return f"{name}: {UNTOLD}"
    by = ("no head before the law" if not fit["head"] else doubt(fit) if fit["word"] == UNDECIDED else
          f"{np.exp(fit['delta']):.1f} times its law")
    return f"{name}: {fit['word']}, {by}\nΔ = {fit['delta']:+.2f} e-folds ({between(fit, 'delta', '+.2f')})"


def curve(ax, rows, fit, label, color):
    """A curve with its phases, interval, nulls and law.

    rows : one curve's of table `rank_curves` ; fit : its row of table `phases` ; label : in the axes' own legend.
    """
    rank_curve(ax, rows, fit, label=f"{label}, {fit['positions']:,} positions\n(band: 95 % over "
                                    f"{fit['documents']:,} documents)", color=color)
    own = [(line, line.get_label()) for line in ax.lines if line.get_label().startswith((label, "line: "))]
    ax.legend(*zip(*own[::-1]), loc="upper right", borderaxespad=0.2, frameon=True, facecolor="white", edgecolor="none",
              framealpha=0.85)


def sign_curve(ax, curves, found, group, sign):
    """The curve of the neurons of one sign, "boost" or "suppress", or a word on why there is none; its title.

    curves : table `rank_curves` of one revision ; found : as `fits` takes it.
    """
    if (group, sign, DECIDES) not in found.index:
        ax.text(0.5, 0.5, f"{UNTOLD}:\n{MEANS[UNTOLD]}", transform=ax.transAxes, ha="center", va="center", fontsize=7)
        title(ax, finding(f"{group.capitalize()}, {sign}", None))
        return
    fit = found.loc[(group, sign, DECIDES)]
    rows = curves[(curves["group"] == group) & (curves["sign"] == sign)]
    curve(ax, rows, fit, f"{fit['neurons']:,} neurons", COLORS[sign])
    title(ax, finding(f"{group.capitalize()}, {sign}", fit))


def signs(found):
    """What the heads of boost and of suppress neurons are: a row a curve; found : as `fits` takes it."""
    made = {}
    for group in GROUPS:
        for sign in SIDES:
            there = (group, sign, DECIDES) in found.index
            row = found.loc[(group, sign, DECIDES)] if there else {"word": ""}
            made[group, sign] = {"word": named(row)} | ({
                "Δ (e-folds)": f"{row['delta']:+.2f} [{row['delta_low']:+.2f}, {row['delta_high']:+.2f}]",
                "score": f"{score(row):+.1f}", "as high by chance": largest(row), "head (neurons)": f"{row['head']}",
                "of neurons": f"{row['neurons']:,}"} if row["word"] else {})
    return pd.DataFrame.from_dict(made, orient="index").fillna("").rename_axis(["targets", "sign"])


def seen(found, prominence):
    """Whether each of the three phases is seen on rare tokens, and by what, in one sentence of Markdown.

    found : as `fits` takes it ; prominence : the table, indexed by group and statistic.
    """
    row, verdict = found.loc[("rare", "pooled", DECIDES)], prominence.loc[("rare", "law"), "verdict"]
    if not row["word"]:
        return f"The three phases {UNTOLD}: {MEANS[UNTOLD]}."
    draws, null = row["decay_draws"], row["decay_null"]  # of random numbers: the null that has it most often
    steep = "yes" if draws >= ALWAYS > null else "no" if draws <= 1 - ALWAYS else "undecided"
    return (f"**Plateau: {PLATEAU[row['word']]}** (the head is called *{row['word']}*; {MEANS[row['word']]}); **power "
            f"law: {STRAIGHT.get(verdict, 'undecided')}** (its test: {verdict}); **rapid decay: {steep}** "
            f"({of_end(row)}).")


def of_signs(found):
    """Which of the two kinds of neurons has a plateau on rare tokens, in Markdown; found: as `fits` takes it."""
    own = [sign for sign in SIDES if (key := ("rare", sign, DECIDES)) in found.index
           and PLATEAU.get(found.loc[key, "word"]) == "yes"]
    who = f"only *{own[0]}* neurons have" if own else "neither kind has"
    who = "both kinds have" if len(own) == len(SIDES) else who
    return (f"On rare tokens **{who} a plateau**, ranked apart. The curve of both kinds together is called "
            f"*{named(found.loc[('rare', 'pooled', DECIDES)])}*.")


def shared(influence, top, aggregate="mean_abs"):
    """How many of the `top` most influential neurons rare and common tokens share; influence: of one checkpoint."""
    first = influence.sort_values(aggregate, ascending=False).groupby("group").head(top).groupby("group")["neuron"]
    return len(set.intersection(*first.agg(set)))


def summary(found, prominence, influence, aggregate):
    """Paper and here, in Markdown.

    found : as `fits` takes it ; prominence : the table, indexed by group and statistic ; influence : as `strongest`
    takes it ; aggregate : the column of it by which neurons are ranked.
    """
    rows = {group: found.loc[(group, "pooled", DECIDES)] for group in GROUPS}
    paper = {group: found.loc[(group, "pooled", "paper's rule"), "head"] for group in GROUPS}
    top = int(prominence.loc[("rare", "ratio"), "size"])
    overlap = shared(influence, top, aggregate) / top
    law, less = prominence.loc[("rare", "law")], prominence.loc[("rare", "contrast")]
    contrast = (f"Rare and common tokens differ in Δ of the first 1.7 % of the neurons by {less['value']:+.2f} e-folds "
                f"(95 %: {between(less, form='+.2f')}). As much between two samples of one law: "
                f"{level(less['p_laws'], heads.FLOOR, 'pairs')}. As much with the labels rare and common swapped in "
                f"documents: {level(less['p_swap'], heads.FLOOR, 'swaps')}. "
                if np.isfinite(less["value"]) else "")
    return ("The paper (by a public summary) divides the neurons into plateau, power law and decay as 1.7 % / about 10 "
            "% / 87.4 %. Its plateau stands above the law, and common tokens lack it. Here head / law / decay are "
            f"**{stretches(rows['rare'])} %** for rare tokens. The head is called *{named(rows['rare'])}*. Is the "
            f"stretch called a law a power law? Its test: {law['verdict']}. For common tokens the shares are "
            f"{stretches(rows['common'])} %, and the head is called *{named(rows['common'])}*. By "
            f"the paper's own rule {many(paper['rare'], 'neuron')} stand above the line of the rare curve, and "
            f"{paper['common']:,} above that of the common one. {contrast}Of the {top} "
            f"most influential neurons for rare tokens, {percent(overlap)} are also among the {top} most influential "
            "for common ones.")
