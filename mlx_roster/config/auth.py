"""Who may use the server: the keys of a roster file."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from fnmatch import translate
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import Field, PlainValidator, SecretStr, field_validator, model_validator
from pydantic_core import PydanticCustomError

from mlx_roster.config.settings import Settings

Scope = Literal["infer", "admin"]

#: Fewer could be found by trying.
SHORTEST = 16


def _fitting(pattern: str, should: str) -> PlainValidator:
    """A string of that pattern. What does not fit may be a secret in the wrong place: it is not said back."""

    def check(value: object) -> str:
        if not isinstance(value, str):
            raise PydanticCustomError("string_type", "Input should be a valid string")
        if re.fullmatch(pattern, value) is None:
            raise ValueError(should)
        return value

    return PlainValidator(check, json_schema_input_type=Annotated[str, Field(pattern=f"^{pattern}$")])


_KeyName = Annotated[
    str,
    _fitting(
        r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}",
        "should be a name of up to 64 letters, digits, dots, dashes, underscores and @",
    ),
]
_Digest = Annotated[
    str, _fitting("[0-9a-fA-F]{64}", "should be the 64 hexadecimal digits of a SHA-256: printf %s KEY | shasum -a 256")
]
_ModelGlob = Annotated[str, _fitting(r"[^\s${}]+", 'should be a glob of model ids, as "atlas*", without spaces')]


class KeyEntry(Settings):
    """One API key: whose it is, and what it opens."""

    name: _KeyName = Field(description="Whose it is: what the log calls its bearer.")
    key: SecretStr | None = Field(
        default=None,
        description='The key itself, of at least 16 characters; from the environment, as "${ROSTER_KEY}".',
    )
    key_sha256: _Digest | None = Field(default=None, description="Instead of the key, its SHA-256 in hexadecimal.")
    models: Annotated[tuple[_ModelGlob, ...], Field(strict=False)] = Field(
        default=("*",),
        json_schema_extra={"minItems": 1},
        description='Globs of the models that it opens, each with all its adapters; "atlas:pirate" is one adapter.',
    )
    scopes: Annotated[tuple[Scope, ...], Field(strict=False)] = Field(
        default=("infer",),
        json_schema_extra={"minItems": 1},
        description="infer: to use models. admin: to see and operate the server.",
    )
    max_queued: int | None = Field(
        default=None,
        ge=0,
        description="How many of its requests may wait at a time; half of scheduling.max_queued, and of a model's own, "
        "if left out.",
    )

    @field_validator("key")
    @classmethod
    def _long_enough(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None:
            text = key.get_secret_value()
            if len(text) < SHORTEST:
                raise ValueError(f"should have at least {SHORTEST} characters: openssl rand -hex 24 makes a good one")
            if not (text.isascii() and text.isprintable()) or " " in text:
                raise ValueError("should be of printable ASCII characters, without spaces: it travels in a header")
        return key

    @field_validator("models", "scopes")
    @classmethod
    def _opens_something(cls, opened: tuple[str, ...]) -> tuple[str, ...]:
        if not opened:
            raise ValueError("should not be empty")
        return opened

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.key is None) == (self.key_sha256 is None):
            raise ValueError("needs key or key_sha256, and not both")
        return self

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the key."""
        if self.key_sha256 is not None:
            return bytes.fromhex(self.key_sha256)
        assert self.key is not None
        return hashlib.sha256(self.key.get_secret_value().encode()).digest()

    def opens(self, model: str, adapter: str | None = None) -> bool:
        """Whether it may use the model of this canonical id, through `adapter` where there is one."""
        fits = self._pattern.match
        return fits(model) is not None or (adapter is not None and fits(f"{model}:{adapter}") is not None)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        # One for all globs: a list of ten thousand adapters is gone through for one request.
        return re.compile("|".join(map(translate, self.models)))


class AuthSettings(Settings):
    """API keys."""

    keys: Annotated[tuple[KeyEntry, ...], Field(strict=False)] = Field(
        default=(),
        description="One for each who may use it. With none, no key is needed, "
        "and only a loopback address may be bound.",
    )

    @property
    def unoperated(self) -> bool:
        """Whether there are keys, and none of them is for operating the server."""
        return bool(self.keys) and not any("admin" in key.scopes for key in self.keys)

    @field_validator("keys")
    @classmethod
    def _told_apart(cls, keys: tuple[KeyEntry, ...]) -> tuple[KeyEntry, ...]:
        twice = [name for name, count in Counter(key.name for key in keys).items() if count > 1]
        if twice:
            raise ValueError(f"the name {twice[0]} is given twice")
        if len({key.digest for key in keys}) < len(keys):
            raise ValueError("two of them are the same key")
        return keys
