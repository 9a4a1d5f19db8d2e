"""Patience with the Hugging Face hub: busy answers and dropped connections are tried again, and what fails is one sentence."""

import contextlib
import errno
import json
import sys
import time

import httpx2
from huggingface_hub import constants
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import get_session, parse_ratelimit_headers

TRIES = 5  # without a byte of progress
TIMEOUT = httpx2.Timeout(30, connect=10)  # seconds
LONGEST_WAIT = 300  # seconds, the window of the hub's rate limits (https://huggingface.co/docs/hub/rate-limits)
BUSY = (408, 429, 500, 502, 503, 504)  # answers that pass
DROPPED = (httpx2.NetworkError, httpx2.TimeoutException, httpx2.RemoteProtocolError)
NO_NETWORK = (httpx2.ConnectError, httpx2.ConnectTimeout)
FAILURES = (httpx2.HTTPError, hub_errors.HFValidationError, hub_errors.RevisionResolutionError, json.JSONDecodeError, OSError)


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
    """Turn what fails inside into one sentence on `what` of a model (`HubError`); RevisionNotFoundError passes as it is."""
    try:
        yield
    except (HubError, hub_errors.RevisionNotFoundError):
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
        return (f"There is no model {model!r}: neither mini-pythia nor smollm2, no folder here, and no such hub repository "
                "(a private one needs `hf auth login` or HF_TOKEN).")
    if status == 429:
        return (f"The hub answers 429 (too many requests) for {model!r}, {what}, after {TRIES} tries: wait some minutes; "
                "`hf auth login` raises the limit.")
    if status is not None:
        return f"The hub answers {status} for {model!r}, {what}: try again later."
    if getattr(error, "errno", None) == errno.ENOSPC:
        return f"The disk has no room for {what} ({model!r}); keep_weights=False holds one checkpoint at a time."
    reason = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else type(error).__name__
    return f"The model {model!r} is no folder here and the hub cannot be reached ({reason}): {what} is not in its cache."
