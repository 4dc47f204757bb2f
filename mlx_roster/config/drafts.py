"""Which small models draft for a model of the roster: see docs/config.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, ValidationInfo, field_validator

from mlx_roster.config.paths import absolute, base_of, is_repo_id, names_folder, text_of
from mlx_roster.config.settings import Settings

#: More tokens at a time are hardly ever all right, and each takes a row of logits.
MOST_DRAFTED = 16


class Origin(NamedTuple):
    """Where a draft model comes from, as a ModelEntry says it of its own."""

    source: Path | str
    revision: str | None = None
    trust_remote_code: bool = False


class _Entry(Protocol):
    """What matters here of a ModelEntry, which refers to this module."""

    @property
    def source(self) -> Path | str: ...

    @property
    def revision(self) -> str | None: ...

    @property
    def trust_remote_code(self) -> bool: ...


class DraftEntry(Settings):
    """A model that drafts for another."""

    model: str = Field(
        description="The name of another model in this file, no alias; or a source as models have it, with a slash."
    )
    tokens: int = Field(
        default=3,
        ge=1,
        le=MOST_DRAFTED,
        description="Tokens that it drafts at a time, unless a request says otherwise.",
    )

    _origin: Origin = PrivateAttr()

    @property
    def name(self) -> str:
        """What requests call it: never a path that says anything of this machine."""
        return Path(self.model).name if self.model.startswith((".", "/", "~")) else self.model

    @property
    def origin(self) -> Origin:
        return self._origin

    def model_post_init(self, context: Any, /) -> None:
        base = base_of(context)
        self._origin = Origin(absolute(self.model, base) if names_folder(self.model, base) else self.model)

    def refer(self, entries: Mapping[str, _Entry]) -> None:
        """Take the model of that name where there is one. For the Roster, while it is made."""
        if (entry := entries.get(self.model)) is not None:
            self._origin = Origin(entry.source, entry.revision, entry.trust_remote_code)

    @field_validator("model", mode="plain", json_schema_input_type=str)
    @classmethod
    def _named(cls, value: object, context: ValidationInfo) -> str:
        text = text_of(value)
        # A word without a slash must be a name, which `names.clashes` sees to.
        if "/" in text and not names_folder(text, base_of(context.context)) and not is_repo_id(text):
            raise ValueError(f'"{text}" is no model of this file, no folder here and no Hub repo id')
        return text


def _listed(value: object) -> object:
    if isinstance(value, Mapping | DraftEntry):
        return [value]
    if value is None or isinstance(value, list | tuple):
        return value
    raise ValueError("should be a mapping with model:, or a list of such")


def _each_once(drafts: tuple[DraftEntry, ...]) -> tuple[DraftEntry, ...]:
    names = [draft.name for draft in drafts]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f'"{twice[0]}" is there twice')
    return drafts


#: One of them, or a list whose first is the one that requests get where they name none.
Drafts = Annotated[
    tuple[DraftEntry, ...],
    Field(strict=False),
    BeforeValidator(_listed, json_schema_input_type=DraftEntry | list[DraftEntry]),
    AfterValidator(_each_once),
]
