"""Every request is accounted for, and every error must have a cause among the things that were done."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.chaos.requests import Outcome, Request
from bench.chaos.rosters import NAMES, Rosters

DOCUMENT = Path(__file__).parents[2] / "docs" / "api.md"

#: A worker that nobody has given a model yet may be on its way to one.
KILLS = ("kill", "kill the spare")


def documented(text: str) -> set[tuple[int, str]]:
    """Statuses and codes of the table of errors in docs/api.md."""
    found = set()
    for row in re.findall(r"^\| (\d{3}(?:, \d{3})*) \| (.*) \|$", text, re.MULTILINE):
        codes = re.findall(r"`([a-z_]+)`", row[1])
        found |= {(int(status), code) for status in row[0].split(", ") for code in codes}
    return found


@dataclass(frozen=True, slots=True)
class Deed:
    """One thing that was done to the server. `at` is a time of `time.monotonic`; `what` begins with its kind."""

    at: float
    kind: str
    model: str = ""
    what: str = ""


class Log(Protocol):
    """What tells the story of a request."""

    def story(self, request: str, model: str) -> list[str]: ...


class Ledger:
    """The account of a run."""

    def __init__(self, log: Log, rosters: Rosters, say: Callable[[str], None]) -> None:
        self.deeds: list[Deed] = []
        self.outcomes: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        #: When each request ended, and how.
        self.ends: list[tuple[float, str]] = []
        self.firsts: list[float] = []
        self.losses: list[str] = []
        self._log = log
        self._rosters = rosters
        self._say = say
        self._documented = documented(DOCUMENT.read_text())
        #: The longest text seen so far, by what served and the prompt: at temperature 0, each begins all shorter ones.
        self._texts: dict[tuple[str, str], str] = {}

    def did(self, kind: str, model: str = "", what: str = "") -> None:
        self.deeds.append(Deed(time.monotonic(), kind, model, what))
        self._say(f"{kind} {model} {what}".strip())

    def enter(self, request: Request, outcome: Outcome) -> None:
        """Account for a request that has ended."""
        if outcome.kind != "lost" and (why := self._wrong(request, outcome)):
            outcome.kind, outcome.why = "lost", why
        said = outcome.kind
        if outcome.kind == "error":
            said = f"{'in the stream' if outcome.status == 200 else outcome.status} {outcome.code}"
        self.outcomes[said] += 1
        self.ends.append((outcome.ended, said))
        if outcome.kind == "whole" and outcome.first is not None:
            self.firsts.append(outcome.first - outcome.begun)
        if outcome.kind == "lost":
            self.lose(request, outcome)

    def misled(self, what: str, status: int | None, answer: str) -> None:
        """Account for what no server should have been sent. `status` is None where the connection was closed on it."""
        self.operations[f"bad input {status or 'closed'}"] += 1
        # Of some, only the model's own worker can say what is wrong with it; and that may be gone.
        if status is not None and (status in (200, 500) or (status, _code(answer)) not in self._documented):
            self.losses.append(f"{what}: {status} {answer[:500]}")
            self._say(f"LOST {self.losses[-1]}")

    def operated(self, what: str, status: int, well: bool, answer: str) -> None:
        """Account for an operator's request: `well` if it may be answered with `status`."""
        self.operations[f"{what.split()[0]} {status}"] += 1
        if not well or (status >= 400 and (status, _code(answer)) not in self._documented):
            self.losses.append(f"{what}: {status} {answer}")
            self._say(f"LOST {self.losses[-1]}")

    def lose(self, request: Request, outcome: Outcome) -> None:
        before = [deed for deed in self.deeds if outcome.begun - 10 <= deed.at <= outcome.ended]
        story = "\n    ".join(
            [
                f"{request.id} {request.body}: {outcome.why} (status {outcome.status}, code {outcome.code}, "
                f"{outcome.ended - outcome.begun:.2f} s, text {outcome.text[:80]!r})",
                *(f"{deed.at - outcome.begun:+.2f} s: {deed.kind} {deed.model} {deed.what}" for deed in before),
                *self._log.story(request.id, request.name.partition(":")[0])[-12:],
            ]
        )
        self.losses.append(story)
        self._say(f"LOST {story}")

    def _wrong(self, request: Request, outcome: Outcome) -> str | None:
        """What is wrong with an outcome that looks well, if anything is."""
        if outcome.kind == "error" and (why := self._unfounded(request, outcome)):
            return why
        if outcome.model and outcome.model not in NAMES[request.name]:
            return f"{request.name} was served by {outcome.model}"
        if outcome.text and request.temperature == 0:
            return self._other_text(request, outcome)
        return None

    def _other_text(self, request: Request, outcome: Outcome) -> str | None:
        # The end of a text may be half a character.
        text, key = outcome.text.rstrip("\ufffd"), (outcome.model, request.prompt)
        known = self._texts.get(key, "")
        shorter, longer = sorted([known, text], key=len)
        if not longer.startswith(shorter):
            return f"another text than before: {text!r}, not {known!r}"
        self._texts[key] = longer
        return None

    def _unfounded(self, request: Request, outcome: Outcome) -> str | None:
        code, began, ended = outcome.code or "", outcome.begun, outcome.ended
        known = {found for _, found in self._documented} if outcome.status == 200 else set()
        if code not in known and (outcome.status, code) not in self._documented:
            return "an error that docs/api.md does not have"
        models = {served.partition(":")[0] for served in NAMES[request.name]}
        versions = self._rosters.in_effect(began, ended)
        causes: dict[str, Callable[[], bool]] = {
            "model_not_found": lambda: any(request.name in version.absent for version in versions),
            "adapter_not_found": lambda: any(request.name in version.absent for version in versions),
            "model_too_large": lambda: (
                any(version.tight for version in versions) or self._happened(began - 30, ended, "pin")
            ),
            "worker_crashed": lambda: self._happened(began - 5, ended, *KILLS),
            "load_failed": lambda: self._happened(began - 5, ended, *KILLS),
            "load_cooldown": lambda: self._happened(began - 400, ended, *KILLS),
            "draining": lambda: self._happened(began - 15, ended, "unload", models=models),
            "queue_full": lambda: any(version.limited for version in versions),
            "queue_timeout": lambda: ended - began >= min(version.queue_timeout for version in versions) - 0.5,
        }
        if code not in causes or not causes[code]():
            return "an error without a cause"
        return None

    def _happened(self, since: float, until: float, *kinds: str, models: Collection[str] = ()) -> bool:
        return any(
            deed.kind in kinds and since <= deed.at <= until and (not models or deed.model in models)
            for deed in self.deeds
        )

    def figures(self) -> dict[str, Any]:
        """What has been counted."""
        cuts = statistics.quantiles(self.firsts, n=20) if len(self.firsts) > 1 else [0.0] * 19
        return {
            "requests": self.outcomes.total(),
            "outcomes": dict(self.outcomes.most_common()),
            "operations": dict(self.operations.most_common()),
            "deeds": dict(Counter(deed.kind for deed in self.deeds).most_common()),
            "first_byte_p50": round(cuts[9], 3),
            "first_byte_p95": round(cuts[18], 3),
            "first_byte_max": round(max(self.firsts, default=0.0), 3),
        }


def _code(answer: str) -> str:
    try:
        return str(json.loads(answer)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return "no code"
