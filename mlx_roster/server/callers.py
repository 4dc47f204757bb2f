"""Who asks, and what they may have."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_roster.config import KeyEntry
from mlx_roster.core import Ref


@dataclass(frozen=True, slots=True)
class Caller:
    """The bearer of a key, or, where the roster has no keys, whoever can reach the server."""

    #: None: nobody in particular.
    key: KeyEntry | None = None

    @property
    def name(self) -> str | None:
        """What the log calls them."""
        return None if self.key is None else self.key.name

    def may_use(self, ref: Ref) -> bool:
        """Whether what `ref` names is theirs to use, and to see."""
        return self.key is None or ("infer" in self.key.scopes and self.key.opens(ref.model, ref.adapter))

    @property
    def operates(self) -> bool:
        """Whether they may use the admin routes, as far as a key decides that."""
        return self.key is None or "admin" in self.key.scopes


ANYBODY = Caller()
