"""Where a server's roster comes from, kept for as long as it runs: what was read at the start can be read again."""

from __future__ import annotations

from pathlib import Path

from mlx_roster.config.load import load, single, with_overrides
from mlx_roster.config.model import Roster


class RosterSource:
    """A roster file, or a single model of a command line, with what overrides the address in either.

    HOST and PORT of the environment and the flags `host` and `port` win each time, as `load.with_overrides` says.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        model: str = "",
        adapter_path: str | None = None,
        host: str | None = None,
        port: int | None = None,
    ) -> None:
        #: The roster file; None: there is only `model`, and nothing that could change.
        self.path = path
        self._model = model
        self._adapter_path = adapter_path
        self._host = host
        self._port = port

    def read(self) -> Roster:
        """The roster as it is now. Raises ConfigError. Blocks on the disk."""
        roster = load(self.path) if self.path is not None else single(self._model, self._adapter_path)
        return with_overrides(roster, self._host, self._port)
