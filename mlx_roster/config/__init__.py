"""The roster file: YAML to frozen, validated settings. Imports neither mlx nor the Hub's client."""

from mlx_roster.config.model import (
    AdapterEntry,
    Defaults,
    DiscoverSettings,
    MemorySettings,
    ModelEntry,
    PromptCacheSettings,
    Roster,
    SchedulingSettings,
    ServerSettings,
    UnlistedSettings,
)
from mlx_roster.config.units import Multiple, Share, format_bytes, format_duration

__all__ = [
    "AdapterEntry",
    "Defaults",
    "DiscoverSettings",
    "MemorySettings",
    "ModelEntry",
    "Multiple",
    "PromptCacheSettings",
    "Roster",
    "SchedulingSettings",
    "ServerSettings",
    "Share",
    "UnlistedSettings",
    "format_bytes",
    "format_duration",
]
