"""Which versions of what are installed, for bug reports and scripts."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version

from mlx_roster import __version__

#: Packages whose versions decide what works.
_PACKAGES = ("mlx", "mlx-lm", "transformers", "huggingface-hub")


def as_json() -> str:
    """A JSON object; a package that is not installed is null."""
    packages = {name: _installed(name) for name in _PACKAGES}
    python = platform.python_version()
    return json.dumps({"mlx-roster": __version__, "python": python, **packages, "platform": platform.platform()})


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
