"""`mlx-roster doctor`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mlx_roster.cli import places
from mlx_roster.cli.serving import Found


def doctor(
    roster: Found = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    network: Annotated[bool, typer.Option("--network/--no-network", help="Ask whether the Hub answers.")] = True,
) -> None:
    """Look for whatever keeps a server from working well here, and say what to do about it.

    Exits with 1 where there is a problem.
    """
    from rich.console import Console
    from rich.status import Status

    from mlx_roster.doctor import findings, gathering, report

    with Status("looking", console=Console(stderr=True)):
        facts = gathering.gather(roster or places.found_roster(), network=network)
    found = findings.findings(facts)
    if json:
        typer.echo(report.to_json(found))
    else:
        report.render(found, Console())
    sys.exit(report.exit_code(found))
