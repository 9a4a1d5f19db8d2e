"""Checkpoints and forward passes: which revisions the settings ask for, and what one pass of each leaves behind."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
import torch

from rare_token_neurons import keys
from rare_token_neurons.ablation import capture as captures, neurons as ablation
from rare_token_neurons.models import audit, checkpoints as models
from rare_token_neurons.statistics import documents
from rare_token_neurons.tables import rare_tokens, stage
from rare_token_neurons.tables.stage import table
from rare_token_neurons.text import rarity


def revisions(settings, default="last"):
    """The revisions that the settings ask for: `steps`, or the last or all of a model's checkpoints; [None] without any.

    "all" leaves out what the audit flags; steps asked for stay, but those without weights.

    Raises
    ------
    FileNotFoundError
        A step that the model does not have; none of those asked for has weights.
    """
    if default == "all" and not settings.steps:
        return [name for name in asked_for(settings) if name not in flagged(settings)]
    asked = asked_for(settings)
    if settings.recompute != "never":
        asked = with_weights(settings) or asked  # without any, what reads them says so
    return asked if settings.steps else asked[-1:]


@lru_cache(maxsize=1)
def with_weights(settings):
    """Those of the settings' `steps` that have weights, or the last checkpoint that has; what is passed over is said."""
    found = []
    for name in reversed(asked_for(settings)):
        if lacking := name and models.lacking(settings.model, name):
            models.tell(f"{name} of {settings.model} {lacking}: it is passed over.")
        else:
            found.insert(0, name)
            if not settings.steps:
                break
    return found


@dataclass(frozen=True)
class Checkpoints:
    """What a table of checkpoints is made from (see `stage.table`): the settings' `steps`, or the last or all of them.

    default : "last" or "all" ; text : whether the table depends on the text, too.
    """

    default: str
    text: bool = True

    def inputs(self, settings):
        """Hashes of the text and of each checkpoint, and what is wrong with one that is measured all the same."""
        read, names = rare_tokens.Text.inputs(settings) if self.text else {}, revisions(settings, self.default)
        wrong = {name or "": words for name, words in known_wrong(settings).items() if name in names}
        return (read | {name or "": models.model_hash(settings.model, name) for name in names}
                | ({stage.CAUTION: wrong} if wrong else {}))

    def walk(self, settings):
        """(revision, its labels) of each checkpoint."""
        return [(name, {"revision": name or "", "step": models.step_of(name)}) for name in revisions(settings, self.default)]


LAST, EVERY = Checkpoints("last"), Checkpoints("all")
MEMORY_GB = 1.0  # working memory of losses and ablations
SPREAD = 10_000  # of all scored positions of half B, evenly spaced
KEPT = ("activations", "residual", "entering")  # of a capture


def pass_inputs(settings, revision, blocks_table):
    """Hashes of what a tensor of one checkpoint depends on: the checkpoint, the blocks and their documents."""
    return {"model": models.model_hash(settings.model, revision), "tokens": keys.array_hash(blocks_table["tokens"]),
            "documents": keys.array_hash([blocks_table["document"].to_numpy()]), "first": rarity.FIRST}


def load(settings, revision=None):
    """A checkpoint of the settings' model as a Subject (see `checkpoints.load`)."""
    return models.load(settings.model, revision, device=settings.device, keep_weights=settings.keep_weights,
                       pickles=settings.pickles)


def capture(settings, subject, blocks_table):
    """The capture of the settings' blocks by one checkpoint; that of a model's last checkpoint is kept in the cache."""
    read, owners = rare_tokens.token_tensor(blocks_table).to(subject.device), torch.tensor(blocks_table["document"].to_numpy())

    def compute():
        with stage.clock("forward"):
            made = captures.capture(subject, read, first=rarity.FIRST, documents=owners)
        return {name: getattr(made, name).contiguous() for name in KEPT}

    known = models.revisions(settings.model, settings.stage)
    last = subject.revision is None or known[-1:] in ([], [subject.revision])  # a step's own folder knows no others
    key = keys.key({}, pass_inputs(settings, subject.revision, blocks_table), ["ablation.capture", "models.checkpoints"])
    kept = stage.tensors(settings.slug, key, compute, recompute=settings.recompute) if last else compute()
    return captures.Capture(read, rarity.FIRST, owners.to(subject.device),
                            **{name: part.to(subject.device) for name, part in kept.items()})


@lru_cache(maxsize=1)
def subject(settings, revision=None):
    """A checkpoint (None: the last) as a Subject with the text's unigram counts."""
    found = load(settings, revision)
    found.unigram_counts = torch.from_numpy(_unigram_counts(settings, found.n_vocab)).to(found.device)
    return found


@lru_cache(maxsize=1)
def captured(settings, revision=None):
    """A checkpoint (None: the last), as `subject` gives it, and its Capture of the blocks."""
    found = subject(settings, revision)
    return found, capture(settings, found, rare_tokens.blocks(settings))


def captured_at(settings, revision, group=None, half="AB"):
    """The Capture of a checkpoint at the settings' positions alone (see `Capture.only`), kept in the cache.

    group : "rare" or "common", its positions; None: those of both ; half : of the documents.
    """
    chosen = rare_tokens.positions(settings)
    rows = torch.tensor(chosen[["block", "t"]].to_numpy(dtype=np.int64))
    inside = chosen["half"].isin(list(half)) & (chosen["group"].eq(group) if group else True)

    def compute():
        made = captured(settings, revision)[1].only(rows)
        return {name: getattr(made, name).cpu().contiguous() for name in ("tokens", "documents", "means", *KEPT)}

    content = pass_inputs(settings, revision, rare_tokens.blocks(settings)) | {"positions": keys.array_hash([rows.numpy()])}
    key = keys.key({}, content, ["ablation.capture", "models.checkpoints"])
    kept = stage.tensors(settings.slug, key, compute, recompute=settings.recompute)
    device, at = settings.device, torch.from_numpy(np.flatnonzero(inside))
    made = captures.Capture(kept["tokens"][at].to(device), 0, kept["documents"][at].to(device),
                            **{name: kept[name][at].to(device) for name in KEPT})
    made.means = kept["means"].to(device)
    return made


def _unigram_counts(settings, n_vocab):
    """Counts over the whole embedding for the unigram direction: those of the text, rows without a token 0."""
    return rarity.fitted(rare_tokens.tokens(settings)["count_text"].to_numpy(dtype=np.float64), n_vocab)


def activations(settings, revision=None, where="rare", half="B"):
    """The final layer's activations at the settings' positions, from one half of the documents.

    Parameters
    ----------
    revision : None for the last checkpoint.
    where : "rare" or "common" (positions of that group) or "all" (every scored position).
    half : "A" or "B".

    Returns
    -------
    values : float32 (n, neurons); documents : int64 (n,)
    """
    kept = captured(settings, revision)[1] if where == "all" else captured_at(settings, revision, where, half)
    values, owners = kept.activations.flatten(0, 1).cpu().numpy(), kept.documents.repeat_interleave(kept.scored).cpu().numpy()
    inside = np.isin(owners, rare_tokens.documents_in(settings, half))
    return values[inside], owners[inside]


def spread(settings, revision):
    """Activations at 10,000 of all scored positions of half B (fewer where there are fewer), evenly spaced, and their documents,
    as `activations` gives them; kept in the cache."""
    content = pass_inputs(settings, revision, rare_tokens.blocks(settings)) | {
        "half": keys.array_hash([rare_tokens.documents_in(settings, "B")])}

    def compute():
        values, owners = activations(settings, revision, "all")
        at = np.linspace(0, len(values) - 1, min(len(values), SPREAD)).round().astype(int)
        return {"activations": torch.from_numpy(values[at]), "documents": torch.from_numpy(owners[at])}

    key = keys.key({}, content, ["tables.checkpoints"])
    kept = stage.tensors(settings.slug, key, compute, recompute=settings.recompute)
    return kept["activations"].numpy(), kept["documents"].numpy()


# ---- losses


@table(EVERY, reads=("steps", *rare_tokens.POSITIONS), per=("revision",))
def losses(settings, revision):
    """Losses in nats of each checkpoint on the settings' blocks: one row (revision, step, group).

    Groups: "all" scored positions, "rare" and "common" targets, and the deciles of the word tokens that the counts
    have seen, by target, "1" (rarest types) to "10".

    Returns
    -------
    DataFrame with revision, step, group, n, documents, loss, sem (over documents)
    """
    sample, chosen = rare_tokens.blocks(settings), rare_tokens.positions(settings)
    deciles, (found, kept) = frequency_deciles(rare_tokens.tokens(settings)), captured(settings, revision)
    for keep in (captured_at, spread):  # for the tables over training, while the pass is there
        keep(settings, revision)
    with stage.clock("forward"):
        loss = ablation.losses(found, kept, memory_gb=MEMORY_GB).double().cpu().numpy()
    every = kept.positions.cpu().numpy()
    target = kept.tokens.cpu().numpy()[every[:, 0], every[:, 1] + 1]
    owner = sample["document"].to_numpy()[every[:, 0]]
    place = {tuple(row): at for at, row in enumerate(every.tolist())}
    masks = {"all": slice(None)}
    for group in stage.GROUPS:
        found = chosen.loc[chosen["group"] == group, ["block", "t"]].to_numpy().tolist()
        masks[group] = [place[tuple(row)] for row in found]
    masks |= {str(decile): deciles[target] == decile for decile in range(1, 11)}
    return [{"group": group, **mean_over_documents(loss[mask], owner[mask])} for group, mask in masks.items()]


def frequency_deciles(vocabulary):
    """The decile (1 rarest to 10) of every seen word token by count, 0 for the others, int (tokens,)."""
    seen = vocabulary["word"] & (vocabulary["count"] > 0)
    rank = vocabulary.loc[seen, "count"].rank(method="first", pct=True)
    return np.ceil(rank * 10).reindex(vocabulary.index, fill_value=0).astype(int).to_numpy()


def mean_over_documents(values, owners):
    """Mean over positions and its standard error over documents, as columns: n, documents, loss, sem."""
    sums = pd.DataFrame({"value": values, "document": owners}).groupby("document")["value"].agg(["sum", "size"]).to_numpy()
    (mean,), (error,) = documents.mean_and_error(sums[:, :1], sums[:, 1])
    return {"n": int(sums[:, 1].sum()), "documents": len(sums), "loss": mean, "sem": error}


# ---- the audit


def asked_for(settings):
    """The settings' `steps`, or all checkpoints of the model, as revisions; [None] for a model without any.

    Raises
    ------
    FileNotFoundError
        A step that the model does not have.
    """
    known = {models.step_of(name): name for name in models.revisions(settings.model, settings.stage)}
    _tell_of_stages(settings)
    if missing := [step for step in settings.steps if step not in known]:
        raise FileNotFoundError(models.no_revision(settings.model, f"step{missing[0]}", settings.stage))
    return [known[step] for step in settings.steps] or list(known.values()) or [None]


@lru_cache(maxsize=1)
def _tell_of_stages(settings):
    """Say which stages of training are left out, where nobody has chosen one."""
    if not settings.stage and (left := models.stages_left(settings.model)):
        models.tell(f"Of {settings.model} the first stage of training is taken; -p stage takes another: {', '.join(left)}.")


def of_main(settings, hashes):
    """Those of some checkpoints ({revision: weight hash}) that have the weights of main and are not the last with any."""
    main = models.main_hash(settings.model) if None not in hashes else ""
    backwards = reversed(models.revisions(settings.model, settings.stage))
    last = next((name for name in backwards if not models.lacking(settings.model, name)), None)
    return [name for name, found in hashes.items() if found == main and name != last]


@lru_cache(maxsize=1)
def known_wrong(settings):
    """What is wrong with checkpoints that are measured all the same, by public issues and by the bytes of their files.

    It is said once, before anything is measured.

    Returns
    -------
    dict of revision to words, of the `steps` that are asked for, or of the last checkpoint
    """
    names, found = revisions(settings), {}
    hashes = {name: models.weight_hash(settings.model, name) for name in names} if settings.steps else {}
    first = {found: name for name, found in reversed(hashes.items())}
    mains = of_main(settings, hashes) if hashes else []
    for name in names:
        issue = _known_issue(settings, name)
        other = first[hashes[name]] if hashes else name
        words = [f"known: {issue}"] * bool(issue) + [f"has the weights of {other}"] * (other != name)
        if words := words + ["has the weights of main"] * (name in mains):
            found[name] = f"{name} {', '.join(words)}"
            models.tell(f"Flagged, and measured since it was asked for: {found[name]}.")
    return found


def _known_issue(settings, revision):
    return audit.known_issue(settings.model, models.step_of(revision), lambda: models.weight_names(settings.model, revision))


class Weights:
    """What the audit is made from: the weight files alone."""

    @staticmethod
    def inputs(settings):
        """Hashes of the weight files of the checkpoints asked for, flagged ones too ("" without weights), and of main."""
        names = asked_for(settings)
        hashes = {str(name): "" if models.lacking(settings.model, name) else models.weight_hash(settings.model, name)
                  for name in names}
        return hashes | {"main": models.main_hash(settings.model) if None not in names else ""}


@table(Weights, reads=("model", "steps"))
def checkpoints(settings):
    """What each checkpoint is: the table `checkpoints`.

    Returns
    -------
    DataFrame, one row a checkpoint: revision, step, weight_hash (sha256; "" without weights), distance (from the row before
    that has weights, relative to its norm) and the columns of `audit.judge`: repeat_of, turn, known_issue, flagged, reason
    """
    lacking = {name: models.lacking(settings.model, name) for name in asked_for(settings)}
    names = [name for name, words in lacking.items() if not words] or list(lacking)
    hashes = {name: models.weight_hash(settings.model, name) for name in names}  # without any weights, this says so
    distances, sketches, unfit = (audit.walk(settings.model, names, keep_weights=settings.keep_weights,
                                             pickles=settings.pickles) if len(names) > 1
                                  else (np.nan, np.zeros((1, 1)), [""]))
    mains = of_main(settings, hashes)
    issues = [_known_issue(settings, name) for name in names]
    made = pd.DataFrame({"revision": [name or "" for name in names], "weight_hash": list(hashes.values()),
                         "distance": distances})
    unfit = ["has the weights of main" if name in mains else words for name, words in zip(names, unfit)]
    made = pd.concat([made, audit.judge(names, issues, sketches, unfit)], axis=1)
    without = [{"revision": name, "weight_hash": "", "repeat_of": "", "known_issue": "", "flagged": True, "reason": words}
               for name, words in lacking.items() if words]
    made = pd.concat([made, pd.DataFrame(without, columns=made.columns).astype(made.dtypes)], ignore_index=True)
    made.insert(1, "step", pd.array(list(map(models.step_of, made["revision"])), dtype="Int64"))
    return made.sort_values("step", ignore_index=True)


def _audited(settings):
    """Whether figures over training ask the audit: steps asked for stay, and drawing may find no table."""
    there = settings.recompute != "never" or (settings.results / "checkpoints.parquet").exists()
    return there and not settings.steps and asked_for(settings) != [None]


@lru_cache(maxsize=1)
def flagged(settings):
    """{revision: reason} of the checkpoints that figures over training do without; {} where `steps` are asked for."""
    if not _audited(settings):
        return {}
    made = checkpoints(settings)
    if made["flagged"].any():
        models.tell(audit.sentence(settings.model, made))
    return made[made["flagged"]].set_index("revision")["reason"].to_dict()


def labelled(rows, revision):
    """Rows (a DataFrame) with revision and step as columns."""
    return rows.assign(revision=revision or "", step=pd.array([models.step_of(revision)] * len(rows), dtype="Int64"))


def of(rows, revision):
    """Those of some rows (a DataFrame) that are of one checkpoint."""
    return rows[rows["revision"] == (revision or "")]
