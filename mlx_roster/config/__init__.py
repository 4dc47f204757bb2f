"""The roster file: YAML to frozen, validated settings. Imports neither mlx nor the Hub's client."""

from mlx_roster.config.auth import AuthSettings, KeyEntry
from mlx_roster.config.defaults import Defaults
from mlx_roster.config.drafts import DraftEntry
from mlx_roster.config.entries import AdapterEntry, KvSettings, ModelEntry, PromptCacheSettings
from mlx_roster.config.model import Roster
from mlx_roster.config.settings import (
    DiscoverSettings,
    LogSettings,
    MemorySettings,
    SchedulingSettings,
    ServerSettings,
    UnlistedSettings,
)
from mlx_roster.config.units import Multiple, Share, format_bytes, format_duration

__all__ = [
    "AdapterEntry",
    "AuthSettings",
    "Defaults",
    "DiscoverSettings",
    "DraftEntry",
    "KeyEntry",
    "KvSettings",
    "LogSettings",
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
