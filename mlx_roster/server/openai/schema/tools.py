"""Functions that a model may call, and whether it has to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from mlx_roster.core import Tools
from mlx_roster.errors import InvalidRequest
from mlx_roster.server.openai.fields import shown
from mlx_roster.server.openai.schema.values import NAME, Strict, plain_fields, schema_size

MAX_TOOLS = 128

#: Bytes of all functions' parameters together.
MAX_PARAMETERS = 256 * 1024


class Function(Strict):
    """A function, as the model is told of it. Fields that are not named here are told too."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(pattern=NAME)
    description: str | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(plain_fields)] | None = Field(
        default=None, description="A JSON Schema of the arguments; none takes any object."
    )
    strict: bool | None = None


class Tool(Strict):
    """One tool: a function is the only kind there is."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "type": "function",
                    "function": {
                        "name": "weather",
                        "description": "The weather in a city.",
                        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
                    },
                }
            ]
        },
    )

    type: Literal["function"]
    function: Function

    def spec(self) -> dict[str, Any]:
        """As it was sent, without what was null."""
        return self.model_dump(exclude_none=True)


def _told_apart(tools: list[Tool]) -> list[Tool]:
    names = [tool.function.name for tool in tools]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise PydanticCustomError("duplicate", "has the function {name} twice", {"name": name})
    for tool in tools:
        plain_fields({**(tool.model_extra or {}), **(tool.function.model_extra or {})})
    if sum(schema_size(tool.function.parameters or {}) for tool in tools) > MAX_PARAMETERS:
        most = MAX_PARAMETERS // 1024
        raise PydanticCustomError("too_large", "must have at most {most} KiB of parameters", {"most": most})
    return tools


ToolList = Annotated[list[Tool], Field(fail_fast=True, max_length=MAX_TOOLS), AfterValidator(_told_apart)]


class NamedFunction(Strict):
    """The function that must be called."""

    name: str


class NamedTool(Strict):
    """The tool that must be called."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"type": "function", "function": {"name": "weather"}}]})

    type: Literal["function"] | None = "function"
    function: NamedFunction


def _word_or_object(value: object) -> str | None:
    return "<word>" if isinstance(value, str) else "<object>" if isinstance(value, dict) else None


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<word>")] | Annotated[NamedTool, Tag("<object>")],
    Discriminator(
        _word_or_object,
        custom_error_type="choice_type",
        custom_error_message='must be "none", "auto", "required" or an object that names a function',
    ),
]


def is_forced(choice: Literal["none", "auto", "required"] | NamedTool | None) -> bool:
    """Whether a call must be made."""
    return choice == "required" or isinstance(choice, NamedTool)


def check_choice(tools: Sequence[Tool], choice: Literal["none", "auto", "required"] | NamedTool | None) -> None:
    """Raises InvalidRequest for a choice that these tools do not allow."""
    if is_forced(choice) and not tools:
        raise InvalidRequest("tool_choice needs tools to choose from", param="tool_choice")
    if isinstance(choice, NamedTool):
        names = [tool.function.name for tool in tools]
        if choice.function.name not in names:
            asked = shown([choice.function.name])
            raise InvalidRequest(
                f"tool_choice names {asked}, which is none of the tools: {shown(names[:20])}", param="tool_choice"
            )


def offered(
    tools: Sequence[Tool], choice: Literal["none", "auto", "required"] | NamedTool | None, *, parallel: bool
) -> Tools | None:
    """What a worker is told of it: nothing where none may be called."""
    if not tools or choice == "none":
        return None
    specs = tuple(tool.spec() for tool in tools)
    if isinstance(choice, NamedTool):
        return Tools(specs, "named", choice.function.name, parallel)
    return Tools(specs, choice or "auto", None, parallel)
