"""Downloads from the Hub as the server process sees them: each is a process of its own, so that it can be ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_roster.errors import LoadFailed

if TYPE_CHECKING:
    from mlx_roster.loaders.fetching import Request  # it imports the Hub's client, which only that process needs

logger = logging.getLogger(__name__)

#: So many bytes are kept of what the process said last, for the log.
LAST_WORDS = 4000

#: How long a process that has said its last may take to be gone, in seconds.
LEAVE = 1.0


class Download:
    """One repo on its way into the local cache, for all who join: the last who leaves ends it.

    What has come of each file by then stays, and the next download goes on from there.
    """

    def __init__(self, request: Request, turns: asyncio.Semaphore) -> None:
        self.request = request
        #: It waits for one of `turns` until then.
        self.begun = False
        self._turns = turns
        #: Bytes here and bytes in all, once that is known.
        self.progress: tuple[int, int] | None = None
        #: The names of the models that wait.
        self.waiting: list[str] = []
        self._job = asyncio.get_running_loop().create_task(self._run())
        # Everybody may have left when it fails.
        self._job.add_done_callback(lambda job: job.cancelled() or job.exception())

    @property
    def open(self) -> bool:
        """It goes on, and may be joined."""
        return not self._job.done() and not self._job.cancelling()

    async def join(self, name: str) -> Path:
        """Wait for the end: the folder in the cache. Raises LoadFailed with no more than the reason.

        Where this is cancelled for the last who waits, the download has ended when it returns.
        """
        self.waiting.append(name)
        try:
            return await asyncio.shield(self._job)
        finally:
            self.waiting.remove(name)
            if not self.waiting and self.open:
                self._job.cancel()
                await asyncio.wait([self._job])

    async def _run(self) -> Path:
        async with self._turns:
            self.begun = True
            end = await self._fetch()
        if end is None:
            raise LoadFailed("the process that fetched it ended before its time")
        if "error" in end:
            raise LoadFailed(end["error"])
        return Path(end["folder"])

    async def _fetch(self) -> dict[str, Any] | None:
        """What a process of its own says in the end: `folder` or `error`; None where that died without either."""
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # nothing in the working directory may stand in for a module
                "-m",
                "mlx_roster.loaders.fetching",
                str(os.getpid()),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                # Ctrl-C reaches every process of the terminal's group: what becomes of a download, we decide.
                start_new_session=True,
            )
        except OSError as error:
            raise LoadFailed(f"no process for it could be started: {error.strerror}") from error
        assert process.stdin is not None
        assert process.stderr is not None
        listener = asyncio.create_task(_listen(process.stderr))
        level = logging.DEBUG
        try:
            process.stdin.write(json.dumps(self.request).encode() + b"\n")
            end = await self._end(process)
            level = logging.DEBUG if end else logging.WARNING
            with contextlib.suppress(TimeoutError):
                # To kill what ends by itself can take its status from asyncio, which then warns and makes one up.
                await asyncio.wait_for(process.wait(), LEAVE)
        finally:
            await self._bury(process)
            last_words = await listener
            if last_words or level > logging.DEBUG:
                status = process.returncode
                logger.log(level, "downloading %s ended with %s: %s", self.request["repo"], status, last_words)
        return end

    async def _end(self, process: asyncio.subprocess.Process) -> dict[str, Any] | None:
        assert process.stdout is not None
        async for line in process.stdout:
            answer = _answer(line)
            if "folder" in answer or "error" in answer:
                return answer
            if "done" in answer:
                self.progress = (answer["done"], answer["total"])
        return None

    @staticmethod
    async def _bury(process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        # Its input stays open up to here: the end of that would end it.
        process.stdin.close()
        with contextlib.suppress(OSError):
            await process.stdin.wait_closed()
        await process.wait()


def _answer(line: bytes) -> dict[str, Any]:
    """Empty where it is not one of ours."""
    try:
        answer = json.loads(line)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


async def _listen(stream: asyncio.StreamReader) -> str:
    """What comes last."""
    last = b""
    while chunk := await stream.read(LAST_WORDS):
        last = (last + chunk)[-LAST_WORDS:]
    return last.decode(errors="replace").strip()
