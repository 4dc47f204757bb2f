"""Where a server's roster comes from, kept for as long as it runs: what was read at the start can be read again."""

from __future__ import annotations

from pathlib import Path

from mlx_roster.config.load import load, single, with_overrides
from mlx_roster.config.model import Roster
from mlx_roster.config.settings import DiscoverSettings


class RosterSource:
    """A roster file, or a single model of a command line, or else whatever is in the Hub cache, with what overrides the
    address in any of them.

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
        #: The roster file; None: there is only `model` or the Hub cache, and no file that could change.
        self.path = path
        self._model = model
        self._adapter_path = adapter_path
        self._host = host
        self._port = port

    @property
    def origin(self) -> str:
        """What an error that is about the roster as a whole begins with."""
        if self.path is not None:
            return str(self.path)
        return "--model" if self._model else "the Hub cache"

    @property
    def changes(self) -> bool:
        """Whether reading it again may bring something new: only a single model of a command line stays as it is."""
        return not self._model

    def read(self) -> Roster:
        """The roster as it is now. Raises ConfigError. Blocks on the disk."""
        if self.path is not None:
            roster = load(self.path)
        elif self._model:
            roster = single(self._model, self._adapter_path)
        else:
            roster = Roster(discover=DiscoverSettings(hub_cache=True))
        return with_overrides(roster, self._host, self._port)
