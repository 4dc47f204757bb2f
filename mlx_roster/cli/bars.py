"""How far a download is: a bar on a terminal, a line now and then elsewhere. All on standard error."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from mlx_roster.config.units import format_bytes
from mlx_roster.loaders.offers import Offer

#: How often a bar is looked after, in seconds.
TICK = 0.1

#: Lines that are printed of one download where there is no terminal.
LINES = 10


class Bars:
    """One download's bar. Use as a context manager. `quiet` leaves out the lines, not the bar."""

    def __init__(self, offer: Offer, *, quiet: bool) -> None:
        self._offer = offer
        self._quiet = quiet
        self._told = 0
        console = Console(stderr=True)
        self._progress: Progress | None = None
        if console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                TimeRemainingColumn(compact=True),
                console=console,
                transient=True,
            )
            name = offer.repo.rpartition("/")[2]
            # The name of a repo is no markup.
            self._task = self._progress.add_task(escape(f"{name}, {offer.files} files"), total=None)

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def reach(self, progress: tuple[int, int] | None) -> None:
        """So many bytes of so many are here; None before anything is known."""
        if progress is None:
            return
        done, total = progress
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=total or None)
        elif not self._quiet and total:
            step = LINES * done // total
            if step > self._told and done < total:
                typer.echo(f"{self._offer.repo}: {format_bytes(done)} of {format_bytes(total)}", err=True)
            self._told = max(step, self._told)
