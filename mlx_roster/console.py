"""What the terminal shows while the server runs: rich where there is one, plain lines where there is none."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from mlx_roster.registry import Listing

#: Bytes so far and bytes in all, by model.
Counts = Mapping[str, tuple[int, int]]

#: Models and adapters that are named at the start. There may be thousands.
SHOWN = 50

#: How often bars move, in seconds.
TICK = 0.1


class Display:
    """The server's face. `console` is standard error, so that standard output stays free for what is asked for."""

    def __init__(self, *, verbose: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        handler: logging.Handler
        if self.console.is_terminal:
            handler = RichHandler(console=self.console, show_path=False, omit_repeated_times=False, markup=False)
            handler.setFormatter(logging.Formatter("%(message)s", datefmt="%X"))
        else:
            handler = logging.StreamHandler(self.console.file)
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler], force=True)
        # Their lines repeat ours, or speak of connections.
        for name in ("uvicorn", "asyncio", "httpx", "filelock", "huggingface_hub"):
            logging.getLogger(name).setLevel(logging.WARNING)

    def ready(self, url: str, listings: Sequence[Listing]) -> None:
        """Say where the server is and what it serves."""
        shown, more = listings[:SHOWN], len(listings) - SHOWN
        rest = f"and {more} more" if more > 0 else ""
        if not self.console.is_terminal:
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
        self.console.print(f"\n  Ready at [bold]{url}/v1[/bold]  [dim](Ctrl-C stops)[/dim]\n")

    @asynccontextmanager
    async def watching(self, counts: Callable[[], tuple[Counts, Counts]]) -> AsyncIterator[None]:
        """Show loads and downloads as bars for as long as the block runs; `counts` gives both."""
        if not self.console.is_terminal:
            yield
            return
        bars = Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), console=self.console, transient=True
        )
        task = asyncio.create_task(self._watch(bars, counts))
        try:
            yield
        finally:
            task.cancel()
            bars.stop()

    async def _watch(self, bars: Progress, counts: Callable[[], tuple[Counts, Counts]]) -> None:
        shown: dict[str, TaskID] = {}
        while True:
            loads, downloads = counts()
            going = {f"loading {name}": count for name, count in loads.items()}
            going |= {f"downloading {name}": count for name, count in downloads.items()}
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
            await asyncio.sleep(TICK)
