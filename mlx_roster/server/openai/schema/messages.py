"""The messages of a chat."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator
from pydantic_core import PydanticCustomError

from mlx_roster.server.openai.schema.values import Strict, check_plain, text_or_list

MAX_MESSAGES = 4096
MAX_PARTS = 1024
MAX_CALLS = 1024


class Part(Strict):
    """One part of a message's content."""

    model_config = ConfigDict(extra="ignore", json_schema_extra={"examples": [{"type": "text", "text": "Hello!"}]})

    # Any string, so that another one has an error code of its own.
    type: str = Field(json_schema_extra={"const": "text"})
    text: str

    @field_validator("type")
    @classmethod
    def _only_text(cls, value: str) -> str:
        if value != "text":
            raise PydanticCustomError(
                "unsupported_content",
                "is {type}, which this server does not take: only text parts",
                {"type": repr(value[:64])},
            )
        return value


def _text_or_object(value: object) -> str | None:
    return "<text>" if isinstance(value, str) else "<object>" if isinstance(value, dict) else None


Arguments = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[dict[str, Any], Tag("<object>")],
    Discriminator(
        _text_or_object,
        custom_error_type="call_arguments_type",
        custom_error_message="must be an object, or one as a string",
    ),
]


class CalledFunction(Strict):
    """What was called, and with what."""

    model_config = ConfigDict(extra="allow")

    name: str
    arguments: Annotated[Arguments | None, AfterValidator(lambda value: "" if value is None else value)] = ""


class ToolCall(Strict):
    """A call that the assistant made earlier in the conversation, passed on to the template as it is."""

    model_config = ConfigDict(extra="allow")

    id: str | None = None
    type: Annotated[Literal["function"] | None, AfterValidator(lambda value: value or "function")] = "function"
    function: CalledFunction


Content = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[Part], Field(fail_fast=True, min_length=1, max_length=MAX_PARTS), Tag("<list>")],
    Discriminator(
        text_or_list,
        custom_error_type="content_type",
        custom_error_message="must be a string, null or an array of text parts",
    ),
]


class Message(Strict):
    """One message. Fields that are not named here reach the template too."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [{"role": "user", "content": "Hello!"}]})

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True, max_length=MAX_CALLS)] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _fit_for_the_wire(self) -> Self:
        free = [self.model_extra]
        for call in self.tool_calls or ():
            free += [call.model_extra, call.function.model_extra, {"arguments": call.function.arguments}]
        for fields in free:
            for name, value in (fields or {}).items():
                check_plain(value, name)
        return self

    def for_template(self) -> dict[str, Any]:
        """The message as a chat template takes it: content a string, or None beside tool calls."""
        message = self.model_dump(exclude_none=True)
        if isinstance(self.content, list):
            message["content"] = "".join(part.text for part in self.content)
        elif self.content is None:
            # A template that has no use for None would print it.
            message["content"] = None if self.tool_calls else ""
        if not self.tool_calls:
            message.pop("tool_calls", None)
        return message


Messages = Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)]
