"""What the terminal shows while the server runs: rich where there is one, else the log and nothing beside it."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Literal, Self

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from mlx_roster.config.settings import LogSettings
from mlx_roster.logs import JsonLines, TextLines, fields
from mlx_roster.registry import Listing
from mlx_roster.scribe import Scribe, ScribedLog

logger = logging.getLogger(__name__)

#: Bytes so far and bytes in all, by model.
Counts = Mapping[str, tuple[int, int]]

#: Models and adapters that are named at the start. There may be thousands.
SHOWN = 50

#: Where clients on this machine look for a server if nobody says where it is.
USUAL = "http://127.0.0.1:8080"

#: How often bars move, in seconds.
TICK = 0.1

#: How long the end of the process waits for its last lines to be read, in seconds.
FAREWELL = 1.0


class Display:
    """The server's face. `console` is standard error, so that standard output stays free for what is asked for.

    All that it shows is written on a thread of its own, which the end of its `with` block waits for. `log_format` is
    the command line's, and wins over the roster's. `program` is what a shell finds this program by, `invitation` what
    its `chat` could be given for a first try; the first model if it is empty.
    """

    def __init__(
        self,
        *,
        verbose: bool = False,
        log_format: Literal["auto", "text", "json"] | None = None,
        console: Console | None = None,
        program: Sequence[str] = ("mlx-roster",),
        invitation: Sequence[str] = (),
    ) -> None:
        self.console = console or Console(stderr=True)
        self._program = program
        self._invitation = invitation
        self._log_format = log_format
        # What others log at lower levels repeats ours, speaks of connections, or quotes what nobody may read.
        logging.basicConfig(level=logging.WARNING, handlers=[], force=True)
        logging.getLogger("mlx_roster").setLevel(logging.DEBUG if verbose else logging.INFO)
        self._scribe = Scribe()
        self._log = ScribedLog(self._scribe, logging.NullHandler())
        logging.root.addHandler(self._log)
        self.configure(LogSettings())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.root.removeHandler(self._log)
        if not self._scribe.close(FAREWELL):
            # Nobody reads, and the interpreter would wait for ever for the lock that the writing thread has.
            os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else error is not None)

    def configure(self, settings: LogSettings) -> None:
        """Log as the roster says from here on. Called at the start, and at each reload."""
        chosen = self._log_format or settings.format
        self._json = chosen == "json" or (chosen == "auto" and not self.console.is_terminal)
        target: logging.Handler
        if self._pretty:
            target = RichHandler(console=self.console, show_path=False, omit_repeated_times=False, markup=False)
            target.setFormatter(TextLines(stamped=False, words=settings.prompts, datefmt="%X"))
        else:
            target = logging.StreamHandler(self.console.file)
            target.setFormatter((JsonLines if self._json else TextLines)(words=settings.prompts))
        self._log.target = target

    @property
    def _pretty(self) -> bool:
        return self.console.is_terminal and not self._json

    def ready(self, url: str, listings: Sequence[Listing]) -> None:
        """Say where the server is and what it serves."""
        shown, more = listings[:SHOWN], len(listings) - SHOWN
        rest = f"and {more} more" if more > 0 else ""
        if self._json:
            about = fields(
                event="ready", url=f"{url}/v1", models=[item.id for item in shown], more=max(0, more) or None
            )
            logger.info("ready at %s/v1", url, extra=about)
            return
        self._scribe.put(partial(self._introduce, url, shown, rest))

    def _introduce(self, url: str, shown: Sequence[Listing], rest: str) -> None:
        if not self._pretty:
            self.console.out(f"serving {', '.join(item.id for item in shown)} {rest}".rstrip(), highlight=False)
            self.console.out(f"ready at {url}/v1", highlight=False)
            return
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for item in shown:
            # Text: names in square brackets are no markup.
            names = Text(f"also {', '.join(item.aliases)}" if item.aliases else "", style="dim")
            table.add_row(Text(f"  {item.id}", style="cyan"), "adapter" if item.parent else "model", names)
        self.console.print(table)
        if rest:
            self.console.print(f"  {rest}", style="dim")
        self.console.print(f"\n  Ready at [bold]{url}/v1[/bold]  [dim](Ctrl-C stops)[/dim]")
        if shown:
            words = [*self._program, "chat", *(self._invitation or [shown[0].id])]
            there = [] if url == USUAL else ["--url", url]
            self.console.print("  In another terminal:", style="dim")
            self.console.out(f"    {shlex.join([*words, *there])}", highlight=False)
        self.console.print()

    @asynccontextmanager
    async def watching(self, counts: Callable[[], tuple[Counts, Counts]]) -> AsyncIterator[None]:
        """Show loads and downloads as bars for as long as the block runs; `counts` gives both."""
        if not self._pretty:
            yield
            return
        bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            console=self.console,
            transient=True,
        )
        task = asyncio.create_task(self._watch(bars, counts))
        try:
            yield
        finally:
            task.cancel()
            self._scribe.put(bars.stop)

    async def _watch(self, bars: Progress, counts: Callable[[], tuple[Counts, Counts]]) -> None:
        shown: dict[str, TaskID] = {}
        while True:
            loads, downloads = counts()
            going = {f"loading {name}": count for name, count in loads.items()}
            going |= {f"downloading {name}": count for name, count in downloads.items()}
            # Where one is still to be drawn, nobody misses the next.
            if self._scribe.idle and (going or shown):
                self._scribe.put(partial(_draw, bars, shown, going))
            await asyncio.sleep(TICK)


def _draw(bars: Progress, shown: dict[str, TaskID], going: Counts) -> None:
    """On the scribe's thread, as all that has to do with `bars`."""
    for label, (done, total) in going.items():
        if label not in shown:
            shown[label] = bars.add_task(label, total=None)
        bars.update(shown[label], completed=done, total=total or None)
    for label in shown.keys() - going.keys():
        bars.remove_task(shown.pop(label))
    # A live display redraws itself all the time: only while there is something to see.
    if shown and not bars.live.is_started:
        bars.start()
    elif not shown and bars.live.is_started:
        bars.stop()
