"""What somebody at a terminal sees while `mlx-roster load` waits: how far the model is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from mlx_roster.cli.remote import Refused, Remote, Unreachable
from mlx_roster.config.units import format_bytes

#: How often the server is asked, in seconds.
TICK = 0.2


@contextmanager
def shown(remote: Remote, model: str) -> Iterator[None]:
    """Show how far `model` is while the block runs, on standard error if that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    done = Event()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[amount]}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(escape(f"{model}: asked for"), total=None, amount="")
        # The block waits for the server on this thread, where Ctrl-C ends it.
        Thread(target=_follow, args=(remote, model, progress, task, done), daemon=True).start()
        try:
            yield
        finally:
            done.set()


def _follow(remote: Remote, model: str, progress: Progress, task: TaskID, done: Event) -> None:
    while not done.wait(TICK):
        try:
            status = remote.model(model)
        except (Refused, Unreachable):
            continue  # the block will hear of it
        here, total = status["progress"] or (0, 0)
        words = escape(f"{model}: {status['state']}")
        # Of a model that is read at once, or that waits for room, nobody knows how far it is.
        amount = f"{format_bytes(here)} of {format_bytes(total)}" if total else ""
        progress.update(task, description=words, completed=here, total=total or None, amount=amount)
