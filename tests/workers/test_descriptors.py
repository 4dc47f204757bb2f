"""Out of file descriptors, at every point of starting a worker: a failed load, and nothing else."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import uvloop

from mlx_roster.errors import LoadFailed
from mlx_roster.workers.descriptors import NEEDED
from mlx_roster.workers.process import ProcessWorker


@contextmanager
def only(free: int) -> Iterator[None]:
    """So many more files can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    top = max(int(name) for name in os.listdir("/dev/fd"))
    # No number below the highest may be left.
    filled = [os.open(os.devnull, os.O_RDONLY)]
    while filled[-1] < top:
        filled.append(os.open(os.devnull, os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (filled[-1] + 1 + free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for number in filled:
            os.close(number)


async def _tries() -> list[int]:
    failed = []
    process = psutil.Process()
    before = process.num_fds()
    for free in range(NEEDED + 1):
        try:
            with only(free):
                worker = await ProcessWorker.spawn(os.environ)
        except LoadFailed:
            failed.append(free)
            assert process.num_fds() <= before
        else:
            await worker.kill()
            break
    return failed


def test_without_files_to_open_a_worker_is_a_failed_load() -> None:
    failed = uvloop.run(_tries())
    # From so many on it works. With fewer, each time the error was the one that answers with 502, and nothing was left.
    assert failed == list(range(NEEDED))
