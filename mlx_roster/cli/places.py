"""Where the commands look for a roster file, and for a server, of which nobody has told them.

Light: shell completion asks here, too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

#: What a roster file is called, where it has to be found.
ROSTER = "roster.yaml"


def candidates(environ: Mapping[str, str] = os.environ) -> tuple[Path, Path]:
    """The roster of this folder, and the user's own. The first that is there is taken."""
    # As the XDG specification has it: a relative path there is no path.
    home = environ.get("XDG_CONFIG_HOME", "")
    settings = Path(home) if os.path.isabs(home) else Path(os.path.expanduser("~/.config"))
    return Path(ROSTER), settings / "mlx-roster" / ROSTER


def found_roster(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The roster file that commands take which are given none."""
    return next((path for path in candidates(environ) if path.is_file()), None)


def default_url(environ: Mapping[str, str] = os.environ) -> str:
    """Where `mlx-roster serve` listens in this environment, if its roster does not say otherwise."""
    host, port = environ.get("HOST") or "127.0.0.1", environ.get("PORT") or "8080"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
