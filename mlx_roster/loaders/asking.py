"""Asking the Hub, again where that may help, and saying why it would not answer. For processes that download."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from email.utils import mktime_tz, parsedate_tz
from typing import TypeVar, cast

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

T = TypeVar("T")

#: How often the Hub is asked again for what brings nothing more, and the pause before the first time, which doubles.
RETRIES = 3
PAUSE = 0.5

#: The longest pause, in seconds, where the Hub says itself how long it wants to be left alone.
LONGEST_PAUSE = 60.0

#: Answers below 500 that a later try may well not get: too slow, and too often.
PASSING = (408, 429)

# The base is the error of the HTTP library, whichever one this version of the Hub's client is built on.
TransportError = cast("type[Exception]", HfHubHTTPError.__bases__[0])


def patiently(ask: Callable[[], T]) -> T:
    """What the Hub says to a question, asked again where it does not want to, or cannot, answer now."""
    for fruitless in itertools.count(1):
        try:
            return ask()
        except (TransportError, LocalEntryNotFoundError) as error:
            time.sleep(pause(error, fruitless))
    raise AssertionError


def pause(error: Exception, fruitless: int) -> float:
    """Seconds before what ended with `error` is tried again: as long as the Hub asks for, or longer each time.

    Raises `error` where no other try would help, or enough of them brought nothing.
    """
    # The Hub's client says of what it was refused that it is not in the cache.
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
    asked: float | None = None
    if isinstance(cause, HfHubHTTPError):
        if cause.response.status_code < 500 and cause.response.status_code not in PASSING:
            raise error
        asked = _asked(cause.response.headers.get("Retry-After", ""))
    if fruitless > RETRIES:
        raise error
    ours = PAUSE * 2 ** max(fruitless - 1, 0)
    return ours if asked is None else min(max(asked, 0.0), LONGEST_PAUSE)


def _asked(retry_after: str) -> float | None:
    """The header's seconds from now: it has either those or a date."""
    if retry_after.isdecimal():
        return float(retry_after)
    date = parsedate_tz(retry_after)
    return None if date is None else mktime_tz(date) - time.time()


def reason(error: Exception, repo: str, revision: str | None) -> str:
    """Our own words: the client's name paths of this machine."""
    match error:
        case GatedRepoError():
            return f"{repo} is gated; accept its terms on the Hub and set HF_TOKEN"
        case RepositoryNotFoundError():
            return f"the Hub has no {repo}, or it is private and HF_TOKEN does not open it"
        case RevisionNotFoundError():
            return f"{repo} has no revision {revision}"
        case HfHubHTTPError():
            return f"the Hub answered {error.response.status_code} for {repo}"
        case OSError(strerror=str() as words) if not isinstance(error, LocalEntryNotFoundError):
            return words
    return f"{repo} is not in the local cache, and the Hub cannot be reached or broke off"
