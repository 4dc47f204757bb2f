"""The roster file: YAML to frozen, validated settings. Imports neither mlx nor the Hub's client."""

from mlx_roster.config.model import (
    AdapterEntry,
    Defaults,
    MemorySettings,
    ModelEntry,
    PromptCacheSettings,
    Roster,
    ServerSettings,
)
from mlx_roster.config.units import Share, format_bytes

__all__ = [
    "AdapterEntry",
    "Defaults",
    "MemorySettings",
    "ModelEntry",
    "PromptCacheSettings",
    "Roster",
    "ServerSettings",
    "Share",
    "format_bytes",
]
