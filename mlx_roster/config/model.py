"""What a roster file says, once it is known to be right: frozen models whose descriptions are the file's documentation.

Values are already in their final form: sizes are bytes, local sources are absolute Paths.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from mlx_roster.config.names import Name, clashes
from mlx_roster.config.values import (
    Budget,
    Duration,
    Fraction,
    Glob,
    Lifetime,
    Names,
    Patience,
    Residency,
    Size,
    SizeOrNone,
)


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ServerSettings(_Settings):
    """Where the server listens and what it takes."""

    host: str = Field(default="127.0.0.1", description="Address to listen on; loopback only in this version.")
    port: int = Field(default=8080, ge=0, le=65535, description="Port to listen on; 0 takes any free one.")
    strict_fields: bool = Field(
        default=False,
        description="Refuse unknown request fields instead of naming them in the x-roster-ignored header.",
    )
    request_limit: Size = Field(
        default="8MiB",
        validate_default=True,
        le=128 * 2**20,  # half of the largest frame to a worker: see workers/wire.py
        description="Largest request body: a size, or a number of bytes; at most 128MiB.",
    )

    @field_validator("host")
    @classmethod
    def _loopback(cls, host: str) -> str:
        if not _is_loopback(host):
            raise ValueError(
                f'"{host}" is not a loopback address (127.0.0.0/8, ::1, localhost); '
                "any other needs API keys, which this version does not have yet"
            )
        return host


class MemorySettings(_Settings):
    """How much memory models may take together."""

    budget: Budget = Field(
        default="75%",
        validate_default=True,
        description="Bytes for all models together: a share of the device's recommended working set, or an amount.",
    )
    headroom: Fraction = Field(
        default="10%",
        validate_default=True,
        description="Added to the estimate of a model's size before it is loaded, for what grows with use.",
    )
    spare_worker: bool = Field(
        default=True, description="Keep one idle worker with mlx already imported, so that a load starts at once."
    )


class SchedulingSettings(_Settings):
    """Who waits for whom, and for how long: see docs/scheduling.md."""

    max_wait: Duration = Field(
        default="30s",
        validate_default=True,
        description="How long a request waits for room before the models in its way stop taking new requests.",
    )
    min_residency: Residency = Field(
        default="3x",
        validate_default=True,
        description="How long a freshly loaded model takes requests in any case: a duration, or a multiple of the "
        "time that its load took.",
    )
    queue_timeout: Duration = Field(
        default="2m",
        validate_default=True,
        description="How long a request waits for its model's load to begin before it is refused.",
    )
    max_queued: int = Field(default=512, ge=0, description="Requests that wait, for all models together.")
    load_timeout: Patience = Field(
        default="5m", validate_default=True, description="How long a load may go on without getting any further."
    )
    drain_timeout: Duration = Field(
        default="1m",
        validate_default=True,
        description="How long a model that is to go may keep running requests without producing anything for them.",
    )
    ttl: Lifetime = Field(
        default="15m",
        validate_default=True,
        description='How long a model stays loaded after its last request; "never" keeps it until its room is needed.',
    )


class UnlistedSettings(_Settings):
    """What a request may name beyond this file."""

    hub: tuple[Glob, ...] = Field(
        default=(), strict=False, description='Globs of Hub repo ids that may be loaded, such as "mlx-community/*".'
    )
    paths: bool = Field(
        default=False,
        description="Allow folders of models and adapters below the directory that the server was started in.",
    )


class DiscoverSettings(_Settings):
    """Models that are served without being listed in this file."""

    hub_cache: bool = Field(default=False, description="Serve every MLX model that is in the local Hub cache.")


class Defaults(_Settings):
    """Values for request fields that a request leaves out. None: nothing is said here."""

    max_tokens: int | None = Field(default=None, ge=1, description="Tokens to generate at most.")
    temperature: float | None = Field(default=None, ge=0, description="0 always takes the likeliest token.")
    top_p: float | None = Field(default=None, gt=0, le=1, description="Likeliest tokens up to this sum; 1 is off.")
    top_k: int | None = Field(default=None, ge=0, description="So many of the likeliest tokens; 0 is off.")
    min_p: float | None = Field(
        default=None, ge=0, le=1, description="Tokens at least this likely, relative to the likeliest; 0 is off."
    )


class PromptCacheSettings(_Settings):
    """What a model keeps of finished requests, for prompts that begin the same way. 0 of either keeps nothing."""

    entries: int = Field(default=32, ge=0, description="Beginnings of prompts that are kept at most; 0 keeps none.")
    budget: SizeOrNone = Field(
        default="512MiB",
        validate_default=True,
        description="Bytes for all of them together, within the memory budget; 0 keeps none.",
    )


class AdapterEntry(_Settings):
    """A LoRA adapter of a model."""

    source: Path = Field(description="Its folder, relative to this file.")
    aliases: Names = Field(default=(), description="Names that mean the model with this adapter.")
    pin: bool = Field(default=False, description="Keep it in memory from its first use, as long as its model is.")

    @field_validator("source", mode="plain", json_schema_input_type=str)
    @classmethod
    def _located(cls, value: object, context: ValidationInfo) -> Path:
        if isinstance(value, Path):
            return value
        return _absolute(_text(value), _base(context.context))


def _spelled_out(value: object) -> object:
    return {"source": value} if isinstance(value, str | Path) else value


class ModelEntry(_Settings):
    """A model, its limits and its adapters. `source` is a Path where it is local and a `str` where it is on the Hub."""

    source: Path | str = Field(description="A folder, relative to this file, or a Hub repo id such as org/name.")
    # Validated after `source`, which decides whether it may be there.
    revision: str | None = Field(
        default=None, min_length=1, description="Branch, tag or commit of a Hub repo; its main branch if left out."
    )
    aliases: Names = Field(default=(), description="Other names that requests may use for this model.")
    pin: bool = Field(default=False, description="Once loaded, it is never unloaded to make room, nor by its ttl.")
    preload: bool = Field(default=False, description="Load it when the server starts, in this file's order.")
    ttl: Lifetime | None = Field(
        default=None, description='How long it stays loaded after its last request, or "never"; scheduling.ttl else.'
    )
    priority: int = Field(
        default=0, ge=-100, le=100, description="Of the models that requests wait for, the highest is loaded first."
    )
    max_queued: int | None = Field(
        default=None, ge=0, description="Requests that wait for this model; only scheduling.max_queued if left out."
    )
    trust_remote_code: bool = Field(
        default=False, description="Run the Python files in its folder. They can do whatever the server can."
    )
    max_concurrency: int = Field(default=32, ge=1, description="Sequences decoded together; more wait.")
    max_context: int | None = Field(
        default=None, ge=1, description="Prompt and completion in tokens; the model's own limit if left out."
    )
    prompt_cache: PromptCacheSettings = Field(
        default_factory=PromptCacheSettings, description="What is kept of finished requests to spare later ones work."
    )
    max_adapters: int = Field(default=8, ge=1, description="Adapters held in memory at once; any number may be listed.")
    defaults: Defaults = Field(default_factory=Defaults, description="Come before the file's own defaults.")
    adapters: Mapping[
        Name, Annotated[AdapterEntry, BeforeValidator(_spelled_out, json_schema_input_type=str | AdapterEntry)]
    ] = Field(default_factory=dict, description="LoRA adapters by name: a folder, or source and aliases.")

    @field_validator("source", mode="plain", json_schema_input_type=str)
    @classmethod
    def _located(cls, value: object, context: ValidationInfo) -> Path | str:
        if isinstance(value, Path):
            return value
        text, base = _text(value), _base(context.context)
        if names_folder(text, base):
            return _absolute(text, base)
        if not is_repo_id(text):
            raise ValueError(
                f'"{text}" is neither a folder here (write ./{text} for one that will be) '
                "nor a Hub repo id such as mlx-community/Qwen3-4B-4bit"
            )
        return text

    @field_validator("adapters")
    @classmethod
    def _places_left(cls, adapters: Mapping[str, AdapterEntry], context: ValidationInfo) -> Mapping[str, AdapterEntry]:
        pinned = sum(adapter.pin for adapter in adapters.values())
        places = context.data.get("max_adapters")
        if places is not None and pinned >= places and len(adapters) > places:
            raise ValueError(
                f"adapters with pin: {pinned}, max_adapters: {places}; that leaves no place for the others"
            )
        return adapters

    @field_validator("revision")
    @classmethod
    def _hub_only(cls, revision: str | None, context: ValidationInfo) -> str | None:
        if revision is not None and isinstance(context.data.get("source"), Path):
            raise ValueError("only a model from the Hub has revisions, and this one's source is a folder")
        return revision


class Roster(_Settings):
    """The models and adapters that one server offers."""

    server: ServerSettings = Field(default_factory=ServerSettings, description="The HTTP server.")
    memory: MemorySettings = Field(default_factory=MemorySettings, description="The memory budget.")
    scheduling: SchedulingSettings = Field(
        default_factory=SchedulingSettings, description="Waiting, loading and unloading."
    )
    defaults: Defaults = Field(default_factory=Defaults, description="For requests to any model.")
    unlisted: UnlistedSettings = Field(
        default_factory=UnlistedSettings, description="What a request may name beyond this file; nothing if left out."
    )
    discover: DiscoverSettings = Field(
        default_factory=DiscoverSettings, description="Models that are served without being listed here."
    )
    offline: bool = Field(default=False, description="Never use the network: Hub models come from the local cache.")
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
        self._base = _base(context)

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
    def _names_stand(self) -> Self:
        if found := clashes(self.model_dump()):
            raise PydanticCustomError("clash", "{problems}", {"problems": "; ".join(clash.message for clash in found)})
        return self


def names_folder(source: str, base: Path) -> bool:
    """Whether `source` means a folder, there or not, rather than a Hub repo."""
    looks_local = source in (".", "..") or source.startswith(("./", "../", "/", "~"))
    # Nothing at all would be `base` itself.
    return looks_local or (source != "" and os.path.isdir(base / source))


def _absolute(source: str, base: Path) -> Path:
    # Not `Path.resolve`: a source that is a symlink may point elsewhere by the time of the load.
    return Path(os.path.abspath(base / os.path.expanduser(source)))


def _base(context: Any) -> Path:
    return context["base"] if context else Path.cwd()


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "Input should be a valid string")
    if not value.isprintable() or not value.strip():
        raise ValueError("should be a path without control characters" if value.strip() else "should not be empty")
    return value


def is_repo_id(text: str) -> bool:
    """The Hub's own rules, for `org/name`."""
    shaped = re.fullmatch(r"\b[\w.-]{1,96}\b/\b[\w.-]{1,96}\b", text, re.ASCII)
    return shaped is not None and "--" not in text and ".." not in text and not text.endswith(".git")


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return IPv6Address(host) == IPv6Address("::1") if ":" in host else IPv4Address(host).is_loopback
    except AddressValueError:
        return False
