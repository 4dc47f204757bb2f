"""What to do next, for a server that could not start."""

from __future__ import annotations

import errno
from pathlib import Path

#: What is exhausted, and what to do about it.
_EXHAUSTED = {
    errno.EMFILE: "too few files may be open\nulimit -n 8192, then start it again",
    errno.ENFILE: "all processes together have too many files open\nend some of them; lsof | wc -l counts",
    errno.ENOMEM: "the system has no memory left\nmlx-roster doctor shows what takes it",
    errno.EAGAIN: "the system starts no more processes for this user\nulimit -u says how many it may have",
}


def advised(message: str, roster: Path | None) -> str:
    """`message`, of a ConfigError, and what to do next, where it does not say so itself."""
    if (advice := _instead(roster)) is not None:
        return f"{message}\n{advice}"
    if roster is not None and message.startswith(f"{roster}:"):
        return f"{message}\nmlx-roster check {roster} tells when it is right"
    for variable in ("HOST", "PORT"):
        if message.startswith(f"{variable}:"):
            return f"{message}\n{variable} is in the environment: unset {variable}, or give --{variable.lower()}"
    return message


def misplaced(message: str, roster: Path) -> str:
    """The same for commands that only read `roster`: what is wrong within it, the message says."""
    return "\n".join(filter(None, [message, _instead(roster)]))


def _instead(roster: Path | None) -> str | None:
    """What to do about a `roster` that is no file."""
    if roster is None or roster.is_file():
        return None
    if roster.is_dir():
        return f"mlx-roster serve --model {roster} serves the model in a folder"
    if roster.exists():
        return None
    if roster.suffix not in (".yaml", ".yml") and len(roster.parts) == 2 and not roster.parent.exists():
        return f"mlx-roster serve --model {roster} serves a model of the Hub"
    return f"mlx-roster init {roster} writes one"


def exhausted(error: OSError) -> str | None:
    """What to say where the system has no more to give; None for any other error."""
    return _EXHAUSTED.get(error.errno or 0)
