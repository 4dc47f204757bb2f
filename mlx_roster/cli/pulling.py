"""`mlx-roster pull`: models and adapters of the Hub into this machine's cache, in the way that a server does it."""

from __future__ import annotations

import json as jsonlib
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_roster.cli import completing, places
from mlx_roster.cli.failing import fail
from mlx_roster.errors import ConfigError, LoadFailed

if TYPE_CHECKING:
    from mlx_roster.cli.bars import Bars
    from mlx_roster.cli.targets import Target
    from mlx_roster.loaders.fetching import Request
    from mlx_roster.loaders.offers import Offer

#: The exit status of what Ctrl-C ended, as shells have it.
INTERRUPTED = 130


@dataclass(slots=True)
class _Pulled:
    """What became of one target. `error` is why it was not pulled, `folder` where it lies if it was."""

    target: Target
    offer: Offer | None = None
    folder: Path | None = None
    estimated: int | None = None
    error: str | None = None

    def summary(self, budget: int) -> dict[str, Any]:
        offer = self.offer
        return {
            "repo": self.target.repo,
            "revision": self.target.revision,
            "commit": None if offer is None else offer.commit,
            "kind": None if offer is None else "adapter" if offer.adapter else "model",
            "path": None if self.folder is None else str(self.folder),
            "bytes": None if offer is None else offer.size,
            "files": None if offer is None else offer.files,
            "estimated": self.estimated,
            "fits": None if self.estimated is None else self.estimated <= budget,
            "error": self.error,
        }


def pull(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="REPO[@REVISION]|MODEL",
            help="Hub repos, or models of the roster with what drafts for them.",
            show_default=False,
            autocompletion=completing.to_pull,
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every model that the roster has from the Hub.")] = False,
    roster: Annotated[
        Path | None,
        typer.Option(help="The roster file; if not given, the one that serve would take.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print what came of it as JSON.")] = False,
) -> None:
    """Download models and adapters into the Hub cache. What is broken off goes on from there the next time."""
    from mlx_roster.cli.targets import wanted
    from mlx_roster.config.machine import budget_bytes, recommended_working_set

    if bool(names) == everything:
        fail("name what to pull, or say --all, and not both: mlx-roster pull mlx-community/Qwen3-4B-4bit", 2)
    try:
        asked = wanted(names or [], everything=everything, roster=roster, found=places.found_roster())
    except ConfigError as error:
        fail(error, 2)
    budget = budget_bytes(asked.memory, recommended_working_set())
    done = [_Pulled(target) for target in asked.targets]
    try:
        # All are asked about first: what cannot be had is known before anything large comes.
        for one in done:
            _look(one, asked.memory.headroom, budget, quiet=json)
        for one in done:
            if one.error is None:
                _fetch(one, asked.memory.headroom, budget, quiet=json)
    except KeyboardInterrupt:
        _stopped(done, quiet=json)
    if json:
        typer.echo(jsonlib.dumps({"budget": budget, "pulled": [one.summary(budget) for one in done]}, indent=2))
    elif steps := _next([one for one in done if one.folder is not None]):
        typer.echo(steps)
    raise typer.Exit(int(any(one.error for one in done)))


def _look(one: _Pulled, headroom: float, budget: int, *, quiet: bool) -> None:
    from mlx_roster.config.units import format_bytes
    from mlx_roster.loaders import offers

    target = one.target
    try:
        one.offer = offer = offers.look(target.repo, target.revision, target.entry, headroom)
        offers.check_space(offer)
    except LoadFailed as error:
        _failed(one, error.message)
        return
    files = "1 file" if offer.files == 1 else f"{offer.files} files"
    here = "" if offer.missing == offer.size else f", {format_bytes(offer.size - offer.missing)} of it here already"
    if offer.missing == 0:
        here = ", all here already"
    if offer.estimate is not None:
        one.estimated = offer.estimate.total
    if not quiet:
        typer.echo(f"{target.repo}: {format_bytes(offer.size)} in {files}{here}; {_purpose(one, budget, 'about ')}")


def _fetch(one: _Pulled, headroom: float, budget: int, *, quiet: bool) -> None:
    import asyncio

    from mlx_roster.cli.bars import Bars
    from mlx_roster.loaders import offers, sizes, source

    offer = one.offer
    assert offer is not None
    try:
        # Again: what came before it may have taken the room.
        offers.check_space(offer)
        with Bars(offer, quiet=quiet) as bars:
            one.folder = folder = asyncio.run(_download(offer, bars))
        if not offer.adapter:
            source.check_folder(folder)
            one.estimated = sizes.estimate(folder, one.target.entry, headroom).total
    except LoadFailed as error:
        one.folder = None
        _failed(one, error.message)
        return
    if not quiet:
        typer.echo(f"{one.target.repo} is in {folder}; {_purpose(one, budget)}")


async def _download(offer: Offer, bars: Bars) -> Path:
    import asyncio

    from mlx_roster.cli.bars import TICK
    from mlx_roster.loaders.downloads import Download

    request: Request = {"repo": offer.repo, "revision": offer.revision, "files": list(offer.globs)}
    download = Download(request, asyncio.Semaphore(1))
    task = asyncio.create_task(download.join(offer.repo))
    try:
        while not task.done():
            await asyncio.wait([task], timeout=TICK)
            bars.reach(download.progress)
        return task.result()
    finally:
        # Ctrl-C ends this, and so the process that downloads: its files are closed before anybody is told so.
        task.cancel()
        await asyncio.wait([task])


def _purpose(one: _Pulled, budget: int, about: str = "") -> str:
    """What it takes in memory and whether that fits, or what an adapter is for."""
    from mlx_roster.config.units import format_bytes

    if one.estimated is None:
        base = one.offer.base if one.offer is not None else None
        return f"an adapter for {base}" if base else "an adapter"
    verdict = f"fits the budget of {format_bytes(budget)}"
    if one.estimated > budget:
        verdict = f"never fits: the budget is {format_bytes(budget)}"
    return f"it takes {about}{format_bytes(one.estimated)} once loaded and {verdict}"


def _next(pulled: list[_Pulled]) -> str:
    """What to do with these; nothing where there are none."""
    models = [one for one in pulled if one.estimated is not None]
    if not models:
        return f"next: in a roster, at its model, adapters: {{NAME: {pulled[0].folder}}}" if pulled else ""
    if all(one.target.listed for one in models):
        return "next: mlx-roster serve"
    if len(models) == 1:
        return f"next: mlx-roster serve --model {models[0].target.repo}, or mlx-roster init for a roster"
    return "next: mlx-roster init for a roster of what is here"


def _failed(one: _Pulled, why: str) -> None:
    one.error = why
    repo = one.target.repo
    typer.secho(why if repo in why else f"{repo}: {why}", err=True, fg=typer.colors.RED)


def _stopped(done: list[_Pulled], *, quiet: bool) -> None:
    """Say what is left where Ctrl-C came, and end the command."""
    # An impatient second one has nothing more to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    left = [one.target.repo for one in done if one.folder is None and one.error is None]
    if not quiet:
        typer.echo(f"stopped: what has come of {', '.join(left)} stays, and the next pull goes on from there", err=True)
    raise typer.Exit(INTERRUPTED)
