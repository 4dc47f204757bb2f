"""What a request may say: the fields of the two generating routes, their types and their ranges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from mlx_roster.config import Defaults
from mlx_roster.config.units import parse_lifetime
from mlx_roster.core import Chat, Generation, Sampling, Text, Tokens
from mlx_roster.errors import InvalidRequest
from mlx_roster.server.openai.fields import shown

#: Where neither the request nor the roster says anything.
DEFAULT_MAX_TOKENS = 100

# A list fails at its first bad item, and none is long without end: checking a body happens on the event loop, and
# collecting a million complaints would hold up everybody else's tokens.
MAX_MESSAGES = 4096
MAX_PARTS = 1024
MAX_PROMPTS = 128
MAX_STOPS = 1024
# What a template is handed goes over the wire as msgpack, whose integers have 64 bits, and through recursive code.
_MAX_DEPTH = 64
_MAX_INT = 2**63 - 1
_MAX_COUNT = 2**31 - 1


class _Strict(BaseModel):
    """JSON types as they are: no number from a string, no integer from 3.0 or true."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


def _text_or_list(value: object) -> str | None:
    return "<text>" if isinstance(value, str) else "<list>" if isinstance(value, list) else None


class Part(_Strict):
    """One part of a message's content."""

    model_config = ConfigDict(extra="ignore")

    type: str
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


class Function(_Strict):
    model_config = ConfigDict(extra="allow")

    name: str
    arguments: str | dict[str, Any] = ""


class ToolCall(_Strict):
    """A call that the assistant made earlier in the conversation, passed on to the template as it is."""

    model_config = ConfigDict(extra="allow")

    id: str | None = None
    type: Literal["function"] = "function"
    function: Function


Content = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[Part], Field(fail_fast=True, min_length=1, max_length=MAX_PARTS), Tag("<list>")],
    Discriminator(
        _text_or_list,
        custom_error_type="content_type",
        custom_error_message="must be a string, null or an array of text parts",
    ),
]


class Message(_Strict):
    """One message. Fields that are not named here reach the template too."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _fit_for_the_wire(self) -> Self:
        free = [self.model_extra]
        for call in self.tool_calls or ():
            free += [call.model_extra, call.function.model_extra, {"arguments": call.function.arguments}]
        for fields in free:
            for name, value in (fields or {}).items():
                _check_plain(value, name)
        return self

    def for_template(self) -> dict[str, Any]:
        """The message as a chat template takes it: content a string, or None beside tool calls."""
        message = self.model_dump(exclude_none=True)
        # Few templates know the role that OpenAI renamed "system" to.
        message["role"] = "system" if self.role == "developer" else self.role
        if isinstance(self.content, list):
            message["content"] = "".join(part.text for part in self.content)
        elif self.content is None:
            # A template that has no use for None would print it.
            message["content"] = None if self.tool_calls else ""
        if not self.tool_calls:
            message.pop("tool_calls", None)
        return message


def _check_plain(value: object, name: str, depth: int = 0) -> None:
    if depth > _MAX_DEPTH:
        raise PydanticCustomError("too_deep", "has a field {name} that is nested too deeply", {"name": shown([name])})
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _check_plain(item, name, depth + 1)
    elif isinstance(value, int) and abs(value) > _MAX_INT:
        raise PydanticCustomError("too_large", "has a number beyond 64 bits in {name}", {"name": shown([name])})


class StreamOptions(_Strict):
    include_usage: bool | None = None


def _prompt_kind(value: object) -> str | None:
    if isinstance(value, str):
        return "<text>"
    if not isinstance(value, list):
        return None
    first = value[0] if value else None
    return "<lists>" if isinstance(first, list) else "<texts>" if isinstance(first, str) else "<ids>"


Ids = Annotated[list[Annotated[int, Field(ge=0, le=_MAX_COUNT)]], Field(fail_fast=True, min_length=1)]
Prompt = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[str], Field(fail_fast=True, max_length=MAX_PROMPTS), Tag("<texts>")]
    | Annotated[Ids, Tag("<ids>")]
    | Annotated[list[Ids], Field(fail_fast=True, max_length=MAX_PROMPTS), Tag("<lists>")],
    Discriminator(
        _prompt_kind,
        custom_error_type="prompt_type",
        custom_error_message="must be a string, an array of strings, an array of token ids or an array of such arrays",
    ),
]

Count = Annotated[int, Field(ge=1, le=_MAX_COUNT)]
Stops = Annotated[
    Annotated[str, Field(min_length=1), Tag("<text>")]
    | Annotated[list[Annotated[str, Field(min_length=1)]], Field(fail_fast=True, max_length=MAX_STOPS), Tag("<list>")],
    Discriminator(
        _text_or_list,
        custom_error_type="stop_type",
        custom_error_message="must be a string or an array of strings",
    ),
]


def _lifetime(value: object) -> float:
    try:
        return parse_lifetime(value)
    except (ValueError, OverflowError) as error:
        # The roster's words are for YAML.
        raise PydanticCustomError(
            "lifetime", 'must be a number of seconds from 0, a duration such as "90s", "15m" or "1.5h", or "never"'
        ) from error


class GenerationRequest(_Strict):
    """What both routes take. Fields that are None were left out."""

    model: str | None = None
    adapters: str | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=_MAX_COUNT)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-_MAX_INT - 1, le=_MAX_INT)] | None = None
    stop: Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    #: How long the model stays loaded after this request, in seconds; infinite for "never".
    keep_alive: Annotated[float, PlainValidator(_lifetime)] | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that has the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def check(self) -> None:
        """What no single field can say. Raises InvalidRequest."""
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options needs stream to be true", param="stream_options")
        old, new = self.max_tokens, self.max_completion_tokens
        if old is not None and new is not None and old != new:
            raise InvalidRequest(
                "max_completion_tokens and max_tokens are one limit and must not differ", param="max_completion_tokens"
            )

    def prompts(self) -> Sequence[Chat | Text | Tokens]:
        """One per choice."""
        raise NotImplementedError

    def generations(self, defaults: Defaults) -> list[Generation]:
        """What to submit, one per choice: the request's own values, then `defaults`, then the built-in ones."""
        limit = self.max_completion_tokens or self.max_tokens or defaults.max_tokens or DEFAULT_MAX_TOKENS
        asked = {name: _either(getattr(self, name), getattr(defaults, name)) for name in _DEFAULTED}
        sampling = Sampling(seed=self.seed, **{name: value for name, value in asked.items() if value is not None})
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return [Generation(prompt, limit, sampling, stop) for prompt in self.prompts()]


_DEFAULTED = ("temperature", "top_p", "top_k", "min_p")


def _either(asked: Any, default: Any) -> Any:
    return default if asked is None else asked


class ChatRequest(GenerationRequest):
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)]

    def prompts(self) -> Sequence[Chat]:
        return [Chat([message.for_template() for message in self.messages])]


class TextRequest(GenerationRequest):
    prompt: Prompt

    def prompts(self) -> Sequence[Text | Tokens]:
        many = [self.prompt] if isinstance(self.prompt, str) or isinstance(self.prompt[0], int) else self.prompt
        return [Text(one) if isinstance(one, str) else Tokens(one) for one in many]
