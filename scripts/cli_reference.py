"""docs/cli.md, made of the commands themselves: `python scripts/cli_reference.py`.

What a command or an option means is said once, where it is written: `--help` shows it, and this page has it between two
marks. What is outside of the marks is written by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from mlx_roster.cli import PANELS, app

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"

_BEGIN = "<!-- Made by scripts/cli_reference.py: a change belongs into the commands of mlx_roster/cli/. -->"
_END = "<!-- As far as that. -->"


def page(text: str) -> str:
    """`text` with all commands between its marks."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n\n{''.join(_panels())}{_END}{after}"


def commands() -> dict[str, Any]:
    """Every command of the program, by its name, as typer runs it."""
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def options(command: Any) -> list[Any]:
    """What `command` takes, beside --help."""
    return [one for one in command.params if one.name != "help" and not one.hidden]


def _panels() -> Iterator[str]:
    every = commands()
    for panel, members in PANELS.items():
        yield f"## {panel}\n\n"
        for function, example in members.items():
            yield _command(every[function.__name__], example)


def _command(command: Any, example: str) -> str:
    words = "\n\n".join(_marked(part) for part in (command.help or "").split("\n\n"))
    rows = "".join(f"| {_written(one)} | {_meaning(one)} |\n" for one in options(command))
    table = f"| Argument or option | Meaning |\n|---|---|\n{rows}\n" if rows else ""
    return f"### {command.name}\n\n{words}\n\n```console\n$ {example}\n```\n\n{table}"


def _written(one: Any) -> str:
    """How it is typed."""
    if one.param_type_name == "argument":
        name = one.metavar or one.name.upper()
        name = name[1:-1] if name.startswith("[") else name
        name = name if one.required else f"[{name}]"
        return f"`{name}{'...' if one.nargs == -1 else ''}`".replace("|", "\\|")
    names = sorted([*one.opts, *one.secondary_opts], key=lambda name: not name.startswith("--"))
    value = "" if one.is_flag else f" {one.name.upper()}"
    return ", ".join(f"`{name}{value if name.startswith('--') else ''}`" for name in names)


def _meaning(one: Any) -> str:
    told = _marked(one.help or "").replace("|", "\\|")
    if isinstance(one.show_default, str):
        told += f" Default: `{one.show_default}`."
    if one.envvar:
        told += f" Environment: `{one.envvar}`."
    return told


def _marked(words: str) -> str:
    """On one line, with options as what is typed."""
    return re.sub(r"(?<![\w`-])(--[a-z][a-z-]*)", r"`\1`", " ".join(words.split()))


if __name__ == "__main__":
    made = page(PAGE.read_text("utf-8"))
    if "--check" in sys.argv:
        sys.exit(made != PAGE.read_text("utf-8"))
    PAGE.write_text(made, "utf-8")
