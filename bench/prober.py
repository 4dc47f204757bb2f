"""A process of its own that asks a running server how it is, all the time, and takes the time of each answer.

Of its own, since what makes the traffic has enough to do: how long an answer lies there says nothing of the server. Of
each answer it says what was a wait for a processor, too, as the kernel counts that.
"""

from __future__ import annotations

import http.client
import itertools
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit

#: How long an answer may take, in seconds.
PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; times in seconds. The waits are 0 where the kernel does not count them: only Linux does."""

    path: str
    #: An HTTP status, or why there is none.
    status: int | str
    took: float
    #: How long the server's main thread was ready to run and had no processor.
    server_waited: float
    #: The same of the process that asks.
    asker_waited: float

    @property
    def rest(self) -> float:
        """What it took where there is always a processor: near to that, since both may wait at a time."""
        return max(0.0, self.took - self.server_waited - self.asker_waited)


@contextmanager
def probing(
    url: str, server: int, paths: Sequence[str], every: float
) -> Iterator[Callable[[], dict[str, list[Answer]]]]:
    """Ask the server at `url`, of that process id, for one path after the other, one every so many seconds, over a
    connection each that is kept. What is yielded ends that, and returns what came, by path."""
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    prober = spawning.Process(target=_probe, args=(url, server, paths, every, theirs))
    prober.start()

    def found() -> dict[str, list[Answer]]:
        ours.send(None)
        answers: list[Answer] = ours.recv()
        return {path: [answer for answer in answers if answer.path == path] for path in paths}

    try:
        yield found
    finally:
        prober.kill()
        prober.join()


def spread(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Median, 99th percentile and maximum."""
    ranked = sorted(seconds)
    return statistics.median(ranked), ranked[math.ceil(0.99 * len(ranked)) - 1], ranked[-1]


def _probe(url: str, server: int, paths: Sequence[str], every: float, ended: Connection) -> None:
    where = urlsplit(url).netloc
    connections = {path: http.client.HTTPConnection(where, timeout=PATIENCE) for path in paths}
    answers = []
    for path in itertools.cycle(paths):
        if ended.poll(every):
            break
        before, begun = _delays(server), time.perf_counter()
        status = _ask(connections[path], path)
        took = time.perf_counter() - begun
        theirs, ours = (after - earlier for after, earlier in zip(_delays(server), before, strict=True))
        answers.append(Answer(path, status, took, theirs, ours))
    ended.send(answers)


def _ask(connection: http.client.HTTPConnection, path: str) -> int | str:
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        return f"{type(error).__name__}: {error}"
    return answer.status


def _delays(server: int) -> tuple[float, float]:
    """For how long the server's main thread and this process have waited for a processor until now, in seconds."""
    return _delay(server), _delay(os.getpid())


def _delay(process: int) -> float:
    try:
        return int(Path(f"/proc/{process}/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0  # no Linux, or the server is gone
