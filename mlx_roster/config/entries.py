"""What a roster file says of one model and of its adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import msgpack
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from mlx_roster.config.defaults import Aliases, Defaults
from mlx_roster.config.drafts import Drafts
from mlx_roster.config.names import Name
from mlx_roster.config.paths import absolute, base_of, is_repo_id, names_folder, text_of
from mlx_roster.config.settings import Settings
from mlx_roster.config.templates import RESERVED, ChatTemplateFile
from mlx_roster.config.values import Lifetime, SizeOrNone


class PromptCacheSettings(Settings):
    """What a model keeps of finished requests, for prompts that begin the same way. 0 of either keeps nothing."""

    entries: int = Field(default=32, ge=0, description="Beginnings of prompts that are kept at most; 0 keeps none.")
    budget: SizeOrNone = Field(
        default="512MiB",
        validate_default=True,
        description="Bytes for all of them together, within the memory budget; 0 keeps none.",
    )


class KvSettings(Settings):
    """How a model keeps the keys and values of its sequences."""

    bits: Literal[2, 3, 4, 5, 6, 8] | None = Field(
        default=None, description="Bits for each number of the keys and values; as the model computes them if left out."
    )
    group_size: Literal[32, 64, 128] = Field(
        default=64, description="How many numbers share a scale and a bias, at most."
    )


class AdapterEntry(Settings):
    """A LoRA adapter of a model."""

    source: Path = Field(description="Its folder, relative to this file.")
    aliases: Aliases = Field(
        default_factory=dict,
        description="Names that mean the model with this adapter: a list, or a mapping from names to defaults.",
    )
    pin: bool = Field(default=False, description="Keep it in memory from its first use on, as long as its model is.")
    defaults: Defaults = Field(default_factory=Defaults, description="Come before those of its model.")

    @field_validator("source", mode="plain", json_schema_input_type=str)
    @classmethod
    def _located(cls, value: object, context: ValidationInfo) -> Path:
        if isinstance(value, Path):
            return value
        return absolute(text_of(value), base_of(context.context))


def _spelled_out(value: object) -> object:
    if isinstance(value, str | Path):
        return {"source": value}
    if value is None or isinstance(value, AdapterEntry | Mapping):
        return value
    raise ValueError("should be its folder, or a mapping with source: and its other keys")


class ModelEntry(Settings):
    """A model, its limits and its adapters. `source` is a Path where it is local and a `str` where it is on the Hub."""

    source: Path | str = Field(description="A folder, relative to this file, or a Hub repo id such as org/name.")
    # Validated after `source`, which decides whether it may be there.
    revision: str | None = Field(
        default=None, min_length=1, description="Branch, tag or commit of a Hub repo; its main branch if left out."
    )
    aliases: Aliases = Field(
        default_factory=dict,
        description="Other names that requests may use for this model: a list, or a mapping from names to defaults.",
    )
    pin: bool = Field(default=False, description="Once loaded, it is never unloaded to make room, nor by its ttl.")
    preload: bool = Field(default=False, description="Load it when the server starts, in this file's order.")
    ttl: Lifetime | None = Field(
        default=None,
        description='How long it stays loaded after its last request, or "never"; scheduling.ttl if left out.',
    )
    priority: int = Field(
        default=0, ge=-100, le=100, description="Of the models that requests wait for, the highest is loaded first."
    )
    max_queued: int | None = Field(
        default=None,
        ge=0,
        description="Requests that wait for this model; only scheduling.max_queued counts if left out.",
    )
    trust_remote_code: bool = Field(
        default=False, description="Run the Python files in its folder. They can do whatever the server can."
    )
    max_concurrency: int = Field(default=32, ge=1, description="Sequences decoded together; more wait.")
    max_context: int | None = Field(
        default=None, ge=1, description="Prompt and completion, in tokens; the model's own limit if left out."
    )
    prompt_cache: PromptCacheSettings = Field(
        default_factory=PromptCacheSettings, description="What is kept of finished requests to spare later ones work."
    )
    kv: KvSettings = Field(default_factory=KvSettings, description="How the KV caches of its sequences are kept.")
    max_adapters: int = Field(default=8, ge=1, description="Adapters in memory at once; any number may be listed.")
    draft: Drafts = Field(
        default=(),
        description="A small model that drafts for this one, so that single requests are answered faster; or several.",
    )
    chat_template: ChatTemplateFile | None = Field(
        default=None, description="A Jinja file, relative to this file, that is used instead of the model's own."
    )
    chat_template_args: Mapping[str, Any] = Field(
        default_factory=dict, description="Variables for the chat template; a request's own come before them."
    )
    defaults: Defaults = Field(default_factory=Defaults, description="Come before the file's own defaults.")
    generation_config: bool | None = Field(
        default=None, description="As at the top level, for this model; what is said there if left out."
    )
    adapters: Mapping[
        Name, Annotated[AdapterEntry, BeforeValidator(_spelled_out, json_schema_input_type=str | AdapterEntry)]
    ] = Field(default_factory=dict, description="LoRA adapters by name: a folder, or an adapter's own keys.")

    @field_validator("source", mode="plain", json_schema_input_type=str)
    @classmethod
    def _located(cls, value: object, context: ValidationInfo) -> Path | str:
        if isinstance(value, Path):
            return value
        text, base = text_of(value), base_of(context.context)
        if names_folder(text, base):
            return absolute(text, base)
        if not is_repo_id(text):
            raise ValueError(
                f'"{text}" is neither a folder here (write ./{text} for one that will be) '
                "nor a Hub repo id such as mlx-community/Qwen3-4B-4bit"
            )
        return text

    @field_validator("chat_template_args")
    @classmethod
    def _can_be_told(cls, args: Mapping[str, Any]) -> Mapping[str, Any]:
        if taken := RESERVED.intersection(args):
            raise ValueError(f'has "{min(taken)}", which is not for a template to be given')
        try:
            msgpack.encode(args)  # as it goes to a worker
        except OverflowError as error:
            raise ValueError("has a number that is too large") from error
        return args

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
