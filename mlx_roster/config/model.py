"""What a roster file says, once it is known to be right: frozen models whose descriptions are the file's documentation.

Values are already in their final form: sizes are bytes, local sources are absolute Paths.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from mlx_roster.config.auth import AuthSettings
from mlx_roster.config.defaults import Defaults
from mlx_roster.config.entries import ModelEntry
from mlx_roster.config.names import Name, clashes
from mlx_roster.config.paths import base_of
from mlx_roster.config.settings import (
    DiscoverSettings,
    LogSettings,
    MemorySettings,
    SchedulingSettings,
    ServerSettings,
    Settings,
    UnlistedSettings,
    is_loopback,
)


def open_to_all(host: str) -> str:
    """Why `host` cannot be bound."""
    return (
        f'"{host}" is not a loopback address (127.0.0.0/8, ::1, localhost): whoever reaches it could use '
        "the server. Any other address needs API keys, in auth.keys; openssl rand -hex 24 makes one"
    )


class Roster(Settings):
    """The models and adapters that one server offers."""

    server: ServerSettings = Field(default_factory=ServerSettings, description="The HTTP server.")
    auth: AuthSettings = Field(default_factory=AuthSettings, description="Who may use the server.")
    memory: MemorySettings = Field(default_factory=MemorySettings, description="The memory budget.")
    scheduling: SchedulingSettings = Field(
        default_factory=SchedulingSettings, description="Waiting, loading and unloading."
    )
    logs: LogSettings = Field(default_factory=LogSettings, description="What the server writes to its log.")
    defaults: Defaults = Field(
        default_factory=Defaults, description="Values for request fields that a request leaves out, for any model."
    )
    generation_config: bool = Field(
        default=False, description="Heed a model's own generation_config.json, where no defaults say anything."
    )
    unlisted: UnlistedSettings = Field(
        default_factory=UnlistedSettings, description="What a request may name beyond this file; nothing if left out."
    )
    discover: DiscoverSettings = Field(
        default_factory=DiscoverSettings, description="Models that are served without being listed."
    )
    offline: bool = Field(
        default=False,
        description="Never use the network: Hub models come from the local cache, and one that is not there fails to "
        "load.",
    )
    default_model: Name | None = Field(
        default=None, description="The model, or alias, of requests that name none. A single model needs no saying."
    )
    models: Mapping[Name, ModelEntry] = Field(
        default_factory=dict,
        validate_default=True,
        description="Every model, by the name that requests use. None is needed with unlisted or discover.",
    )

    _base: Path = PrivateAttr()

    @property
    def base(self) -> Path:
        """The folder that relative sources were resolved against: the roster file's own."""
        return self._base

    def model_post_init(self, context: Any, /) -> None:
        self._base = base_of(context)
        for entry in self.models.values():
            for draft in entry.draft:
                draft.refer(self.models)

    @field_validator("models")
    @classmethod
    def _something_to_serve(cls, models: Mapping[str, ModelEntry], context: ValidationInfo) -> Mapping[str, ModelEntry]:
        # What is wrong in itself is not there to be asked.
        unlisted, discover = context.data.get("unlisted"), context.data.get("discover")
        elsewhere = not unlisted or unlisted.hub or unlisted.paths or not discover or discover.hub_cache
        if not models and not elsewhere:
            raise ValueError("is required, unless unlisted or discover allow other models")
        return models

    @model_validator(mode="after")
    def _not_open_to_all(self) -> Self:
        host = self.server.host
        if not self.auth.keys and not is_loopback(host):
            raise PydanticCustomError("exposed", "{problem}", {"problem": open_to_all(host)})
        return self

    @model_validator(mode="after")
    def _names_stand(self) -> Self:
        # What is not said clashes with nothing, and most of a large roster is not said.
        if found := clashes(self.model_dump(exclude_unset=True)):
            raise PydanticCustomError("clash", "{problems}", {"problems": "; ".join(clash.message for clash in found)})
        return self
