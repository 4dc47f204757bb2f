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
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from mlx_roster.config.names import Name, clashes
from mlx_roster.config.units import PERCENTAGE_PATTERN, SIZE_PATTERN, Share, parse_percentage, parse_size

_SizeText = Annotated[str, Field(pattern=SIZE_PATTERN)]
_PercentageText = Annotated[str, Field(pattern=PERCENTAGE_PATTERN)]
_ByteCount = Annotated[int, Field(ge=1)]
_ByteCountOrNone = Annotated[int, Field(ge=0)]


def _budget(value: object) -> Share | int:
    if isinstance(value, Share):
        return value
    if isinstance(value, str) and value.endswith("%"):
        share = parse_percentage(value)
        if share.fraction == 0:
            raise ValueError("should be more than 0%")
        return share
    amount = parse_size(value)
    if amount < 1:
        raise ValueError("should be at least 1 byte")
    return amount


def _written(budget: Share | int) -> str | int:
    return f"{budget.fraction * 100:g}%" if isinstance(budget, Share) else budget


def _fraction(value: object) -> float:
    return parse_percentage(value).fraction


Size = Annotated[_ByteCount, BeforeValidator(parse_size, json_schema_input_type=_ByteCount | _SizeText)]
SizeOrNone = Annotated[
    _ByteCountOrNone, BeforeValidator(parse_size, json_schema_input_type=_ByteCountOrNone | _SizeText)
]
Budget = Annotated[
    Share | int,
    PlainValidator(_budget, json_schema_input_type=_ByteCount | _SizeText | _PercentageText),
    PlainSerializer(_written),
]
Fraction = Annotated[float, PlainValidator(_fraction, json_schema_input_type=_PercentageText)]
# YAML has lists only, and pydantic's strict tuples take nothing but tuples.
Names = Annotated[tuple[Name, ...], Field(strict=False)]


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
        if not _is_repo_id(text):
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
    defaults: Defaults = Field(default_factory=Defaults, description="For requests to any model.")
    default_model: Name | None = Field(
        default=None, description="The model, or alias, of requests that name none. A single model needs no saying."
    )
    models: Mapping[Name, ModelEntry] = Field(min_length=1, description="Every model, by the name that requests use.")

    _base: Path = PrivateAttr()

    @property
    def base(self) -> Path:
        """The folder that relative sources were resolved against: the roster file's own."""
        return self._base

    def model_post_init(self, context: Any, /) -> None:
        self._base = _base(context)

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


def _is_repo_id(text: str) -> bool:
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
