"""Checkpoints on the Hugging Face hub: their revisions, and snapshots of them in the hub's own cache.

Which files of a revision are its weights is decided in `models.weights`; nothing else of its size is asked for. A file goes
on where its connection dropped, in this run or the next one (huggingface_hub itself starts anew:
https://github.com/huggingface/huggingface_hub/issues/4196), and a rate limit is waited for. What was seen of a repository
(its branches and tags, the sha256 of its weights) is remembered, so that finished work needs neither weights nor network.
"""

import contextlib
import errno
import json
import os
import sys
import time
from functools import lru_cache
from pathlib import Path

import httpx2
from huggingface_hub import (HfApi, constants, errors as hub_errors, get_hf_file_metadata, hf_hub_download, hf_hub_url,
                             snapshot_download)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (WeakFileLock, build_hf_headers, disable_progress_bars, get_session, hf_raise_for_status,
                                   parse_ratelimit_headers)
from tqdm import tqdm

from rare_token_neurons import files, packages
from rare_token_neurons.models import weights
from rare_token_neurons.paths import CACHE

disable_progress_bars()  # one for each small file
MEMORY = CACHE / "hub"
SMALL_FILES = ["*.json", "*.txt", "tokenizer.model"]  # beside the weights, nothing else is asked for


# ---- what a repository holds


@lru_cache(maxsize=None)
def names(model):
    """Names of a repository's branches and tags; while the hub cannot be reached, those last seen here.

    Raises
    ------
    HubError
        No such repository, no permission, or no network and nothing known of it.
    """
    try:
        with in_words(model, "the list of its revisions"):
            found = patiently(lambda: HfApi().list_repo_refs(model))
    except HubError:
        refs = _storage(model) / "refs"
        known = _remembered(model)["names"] or [str(path.relative_to(refs)) for path in refs.rglob("*") if path.is_file()]
        if not known:
            raise
    else:
        known = list(dict.fromkeys(one.name for one in (*found.branches, *found.tags)))
        _remember(model, names=known)
    return known


@lru_cache(maxsize=None)
def _resolved(model, revision):
    """A revision (None: main) with its commit, the same one throughout a process."""
    revision = revision or constants.DEFAULT_REVISION
    with in_words(model, f"its {revision}"):
        return patiently(lambda: HfApi().resolve_revision(model, revision=revision))


def _announced(model, commit):
    """{name: sha256} of the files that are a commit's weights as the hub announces them; None for one not kept in LFS."""
    known = _remembered(model)["counted"].get(commit)
    if known is None:
        try:
            tree = list(HfApi().list_repo_tree(model, revision=commit))
        except (*NO_NETWORK, hub_errors.OfflineModeIsEnabled):
            if not _snapshot(model, commit).exists():
                raise
            with contextlib.suppress(weights.NoWeights):
                known = dict.fromkeys(path.name for path in weights.of_folder(_snapshot(model, commit)))
                print(f"{model} is taken as it lies in the hub's cache: what else its revision {commit[:7]} holds is not "
                      "known while the hub cannot be reached.", file=sys.stderr)
                return known
            raise
        there = {entry.path: entry.lfs and entry.lfs.sha256 for entry in tree if isinstance(entry, RepoFile)}
        known = {name: there[name] for name in weights.counted(there, lambda name: _text(model, commit, name))}
        second = weights.SINGLE in there and weights.SINGLE not in known
        _remember(model, counted={commit: known}, beside={commit: there[weights.SINGLE] or ""} if second else {})
    return known


def _text(model, commit, name):
    return Path(patiently(lambda: hf_hub_download(model, name, revision=commit))).read_text(encoding="utf-8")


def counted(model, revision=None):
    """{name: sha256} of the files that are a revision's weights, None for a sha256 that the hub does not announce.

    Raises
    ------
    HubError, huggingface_hub.errors.RevisionNotFoundError
        See `snapshot`.
    weights.NoWeights, ValueError
        See `weights.counted`.
    """
    resolved = _resolved(model, revision)
    with in_words(model, f"its {resolved}"):
        return _announced(model, resolved.resolved)


def beside(model, revision=None):
    """The sha256 of a model.safetensors beside a revision's weights that is none of them, "" where the hub announces none;
    None where there is no such file."""
    counted(model, revision)
    return _remembered(model)["beside"].get(_resolved(model, revision).resolved)


def single(model, revision=None):
    """The sha256 of a revision's model.safetensors, whether it is its weights or lies beside them; None without one."""
    with contextlib.suppress(weights.NoWeights):
        return counted(model, revision).get(weights.SINGLE) or beside(model, revision)


def digests(model, revision=None):
    """{name: sha256} of the weight files of a revision; they are downloaded only where the hub does not announce it."""
    known, commit = counted(model, revision), _resolved(model, revision).resolved
    if all(known.values()):
        return known
    there = _cached(model, commit, known)
    found = {path.name: files.sha256(path) for path in snapshot(model, revision).weights}
    if not there:
        _release(model, commit, known)
    return found


# ---- snapshots


def snapshot(model, revision=None, *, small=False, keep_weights=True, pickles="refuse"):
    """A revision in the hub's cache, downloaded where it is not there, its weights checked, its pickles converted.

    Parameters
    ----------
    revision : str or None, a branch, a tag or a commit; None is main.
    small : True for the small files alone (config, tokenizer).
    keep_weights : False deletes, first, the weights of the revision that was taken last with False.
    pickles : "refuse" or "convert".

    Returns
    -------
    weights.Files

    Raises
    ------
    HubError
        One sentence: what cannot be had, and why.
    huggingface_hub.errors.RevisionNotFoundError
        The repository has no such revision.
    weights.NoWeights, weights.Refused
        See there.
    ValueError
        A weight file is not what the hub announces; it is deleted.
    """
    resolved = _resolved(model, revision)
    commit, names = resolved.resolved, {} if small else counted(model, revision)
    if not small:
        weights.permit(names, pickles)
        if weights.are_pickles(names) and not all(names.values()):
            raise weights.Refused("holds pickles whose sha256 the hub does not announce: they are not read")
        _hold(model, commit, names, keep_weights)
    made = {name: weights.converted(announced) for name, announced in names.items()}
    wanted = [name for name, path in made.items() if path is None]
    there = _cached(model, commit, dict.fromkeys(wanted))
    for name in wanted:
        with in_words(model, f"{name} of its {resolved}"):
            _fetch(model, commit, name)
    with in_words(model, f"its {resolved}"):
        folder = Path(patiently(lambda: snapshot_download(model, revision=resolved, allow_patterns=[*SMALL_FILES, *wanted],
                                                           ignore_patterns="*/*")))
    found = names | {name: files.sha256(folder / name) for name in wanted}
    for name in wanted:
        if names[name] not in (None, found[name]):
            _delete(folder / name)
            raise ValueError(f"{name} of {model!r} at {resolved} is damaged (its sha256 is not the one that the hub "
                             "announces): it is deleted, and the next run downloads it again.")
    if wanted and commit in _remembered(model)["counted"]:
        _remember(model, counted={commit: found})
    made |= {name: weights.safe(folder / name, found[name]) for name in wanted}
    for name in wanted if weights.are_pickles(wanted) and not there else ():
        _delete(folder / name)
    return weights.Files(folder, tuple(made.values()))


def _fetch(model, commit, name):
    """Put one weight file where huggingface_hub looks for it; a part of it that is there already is not asked for again."""
    if _cached(model, commit, {name: None}):
        return
    url = hf_hub_url(model, name, revision=commit, endpoint=constants.ENDPOINT)
    about = patiently(lambda: get_hf_file_metadata(url))
    if about.size is None or about.etag is None:
        return  # left to huggingface_hub
    blob = _storage(model) / "blobs" / about.etag
    part, lock = blob.with_name(f"{blob.name}.incomplete"), _storage(model).parent / ".locks" / _storage(model).name
    for folder in (blob.parent, lock):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock / f"{about.etag}.lock"):
        if not blob.exists():
            if _size(part) > about.size:
                part.unlink()
            patiently(lambda: _append(url, part, about.size, name), progress=lambda: _size(part))
            os.replace(part, blob)


def _append(url, part, size, name):
    """Ask for the bytes from the end of `part` on, and append them as they come."""
    begun = _size(part)
    if begun == size:
        return
    headers = build_hf_headers() | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={begun}-"} if begun else {})
    with get_session().stream("GET", url, headers=headers) as answer:
        hf_raise_for_status(answer)
        whole = answer.status_code == 200  # a server may ignore the range
        with (part.open("wb" if whole else "ab") as file,
              tqdm(desc=name, total=size, initial=0 if whole else begun, unit="B", unit_scale=True, mininterval=10) as bar):
            for chunk in answer.iter_bytes():
                file.write(chunk)
                bar.update(len(chunk))
    if _size(part) != size:
        raise httpx2.RemoteProtocolError(f"{name} ended after {_size(part):,} of {size:,} bytes")


def _size(path):
    return path.stat().st_size if path.exists() else 0


# ---- one checkpoint at a time


def _hold(model, commit, names, keep_weights):
    """Note which commit's weights are to go when the next one is taken, and let the last such go."""
    held = _remembered(model)["held"]
    if keep_weights:
        if held == commit:
            _remember(model, held=None)
    elif held != commit:
        if held:
            _release(model, held, _remembered(model)["counted"].get(held, {}))
        _remember(model, held=None if _cached(model, commit, names) else commit)  # what others put there stays there


@contextlib.contextmanager
def lent(model, revision=None, *, pickles="refuse"):
    """The snapshot of a revision, whose weights are deleted at the end unless they were there before."""
    names, commit = counted(model, revision), _resolved(model, revision).resolved
    there = _cached(model, commit, names)
    try:
        yield snapshot(model, revision, pickles=pickles)
    finally:
        if not there:
            _release(model, commit, names)


def _release(model, commit, names):
    """Delete the weights of a commit from the hub's cache, but not those that another snapshot shares."""
    for name, sha256 in names.items():
        if os.path.lexists(path := _snapshot(model, commit) / name):
            _delete(path)
        if sha256:
            (_storage(model) / "blobs" / f"{sha256}.incomplete").unlink(missing_ok=True)
            weights.forget(sha256)


def _delete(path):
    blob = _target(path)
    path.unlink()
    if blob not in map(_target, path.parents[1].glob("*/*")):
        blob.unlink(missing_ok=True)


def _target(path):
    return Path(os.path.normpath(path.parent / os.readlink(path))) if path.is_symlink() else path


# ---- the hub's cache, and what is remembered beside it


def _storage(model):
    return Path(constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}"


def _snapshot(model, commit):
    return _storage(model) / "snapshots" / commit


def _cached(model, commit, names):
    """Whether weight files ({name: sha256 or None}) are all there, a pickle perhaps as what was made of it."""
    return all((_snapshot(model, commit) / name).exists() or weights.place_of(sha256).exists()
               for name, sha256 in names.items())


def _memory(model):
    return MEMORY / f"{model.strip('/').replace('/', '--')}.json"


def _remembered(model):
    """What is known of a repository: names of branches and tags, by commit {name: sha256} of the files that are its weights
    and the sha256 of a single file beside them, the commit that is held."""
    return {"names": [], "counted": {}, "beside": {}, "held": None} | (files.read_json(_memory(model)) or {})


def _remember(model, **news):
    known = _remembered(model)
    for name in ("counted", "beside"):
        news[name] = known[name] | news.get(name, {})
    if (changed := known | news) != known:
        files.write_json(_memory(model), changed)


# ---- patience

TRIES = 5  # without a byte of progress
TIMEOUT = httpx2.Timeout(30, connect=10)  # seconds
LONGEST_WAIT = 300  # seconds, the window of the hub's rate limits (https://huggingface.co/docs/hub/rate-limits)
BUSY = (408, 429, 500, 502, 503, 504)  # answers that pass
DROPPED = (httpx2.NetworkError, httpx2.TimeoutException, httpx2.RemoteProtocolError)
NO_NETWORK = (httpx2.ConnectError, httpx2.ConnectTimeout)
FAILURES = (httpx2.HTTPError, hub_errors.HFValidationError, hub_errors.RevisionResolutionError, json.JSONDecodeError,
            OSError)


class HubError(FileNotFoundError):
    """What the hub does not give, in one sentence."""


def patiently(call, *, progress=lambda: 0):
    """What `call` returns, tried again after a busy answer or a dropped connection.

    Parameters
    ----------
    call : callable without arguments that asks the hub.
    progress : callable that returns what is there so far (bytes); `TRIES` are counted anew when it has grown.

    Raises
    ------
    whatever `call` raised last
    """
    tries, seen = 0, progress()
    while True:
        get_session().timeout = TIMEOUT  # huggingface_hub sets none
        try:
            return call()
        except FAILURES as error:
            now = progress()
            tries, seen = 1 if now > seen else tries + 1, now
            wait = _wait(error, tries, begun=now > 0)
            if wait is None or tries == TRIES:
                raise
        if wait > 5:
            print(f"The hub is busy; the next try is in {wait} s.", file=sys.stderr)
        time.sleep(wait)


def _wait(error, tries, begun):
    """Seconds until another try, as the hub asks or doubling; None where waiting does not help."""
    answer, doubling = getattr(error, "response", None), 2 ** (tries - 1)
    if answer is None:
        return doubling if isinstance(error, DROPPED) and (begun or not isinstance(error, NO_NETWORK)) else None
    if answer.status_code not in BUSY:
        return None
    asked, limit = answer.headers.get("Retry-After", ""), parse_ratelimit_headers(answer.headers)
    if asked.isdigit():
        return min(int(asked), LONGEST_WAIT)
    return min(limit.reset_in_seconds, LONGEST_WAIT) if limit and not limit.remaining else doubling


@contextlib.contextmanager
def in_words(model, what):
    """Turn what fails inside into one sentence on `what` of a model (`HubError`), but for what is said of a revision."""
    try:
        yield
    except (HubError, weights.NoWeights, weights.Refused, hub_errors.RevisionNotFoundError):
        raise
    except FAILURES as error:
        raise HubError(_sentence(model, what, error)) from None


def _sentence(model, what, error):
    while getattr(error, "response", None) is None and error.__cause__ is not None:
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, hub_errors.GatedRepoError) or status == 403:
        return (f"The hub repository {model!r} is closed to you: accept its conditions on its page, and log in with "
                "`hf auth login` or set HF_TOKEN.")
    if isinstance(error, (hub_errors.RepositoryNotFoundError, hub_errors.HFValidationError)) or status in (401, 404):
        return (f"There is no model {model!r}: neither {' nor '.join(packages.NAMED)}, no folder here, and no "
                "such hub repository (a private one needs `hf auth login` or HF_TOKEN).")
    if status == 429:
        return (f"The hub answers 429 (too many requests) for {model!r}, {what}, after {TRIES} tries: wait some minutes; "
                "`hf auth login` raises the limit.")
    if status is not None:
        return f"The hub answers {status} for {model!r}, {what}: try again later."
    if getattr(error, "errno", None) == errno.ENOSPC:
        return f"The disk has no room for {what} ({model!r}); keep_weights=False holds one checkpoint at a time."
    reason = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else type(error).__name__
    return f"The model {model!r} is no folder here and the hub cannot be reached ({reason}): {what} is not in its cache."
