"""What the OpenAI routes answer, as the OpenAPI document says it. Nothing is made of it: `shapes` writes the bytes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mlx_roster.core import FinishReason


class Answer(BaseModel):
    """All that there is, and nothing more."""

    model_config = ConfigDict(extra="forbid", strict=True, defer_build=True)


class PromptDetails(Answer):
    cached_tokens: int = Field(ge=0, description="Of the prompt, so many had been computed before.")


class CompletionDetails(Answer):
    reasoning_tokens: int = Field(ge=0, description="Of the completion, so many came before the answer.")
    accepted_prediction_tokens: int | None = Field(
        default=None,
        ge=0,
        description="Drafted tokens that the model said, too; only where any were drafted.",
    )
    rejected_prediction_tokens: int | None = Field(
        default=None, ge=0, description="The drafted tokens that it would not."
    )


class TokenUsage(Answer):
    """Tokens of all choices; a prompt with several counts once."""

    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class ScoredToken(Answer):
    token: str
    logprob: float
    bytes: list[int]


class ContentToken(ScoredToken):
    top_logprobs: list[ScoredToken]


class ContentLogprobs(Answer):
    """What `logprobs: true` asks for in a chat."""

    content: list[ContentToken]


class IdAlternative(Answer):
    id: int
    token: str
    logprob: float


class IdLogprobs(Answer):
    """What an integer as `logprobs` asks for in a chat."""

    token_logprobs: list[float]
    tokens: list[int] = Field(description="Their ids.")
    top_logprobs: list[list[IdAlternative]]


class TextLogprobs(Answer):
    """What `logprobs` asks for of a text completion. The very first token of a prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int] = Field(description="Where each token begins in the text, in characters.")


class Called(Answer):
    name: str
    arguments: str = Field(description="JSON, as far as the model got.")


class Call(Answer):
    id: str
    type: Literal["function"]
    function: Called


class AssistantMessage(Answer):
    role: Literal["assistant"]
    content: str | None = Field(description="null where there are only tool calls.")
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None


class ChatChoice(Answer):
    index: int
    message: AssistantMessage
    logprobs: ContentLogprobs | IdLogprobs | None
    finish_reason: FinishReason


class Head(Answer):
    id: str
    created: int = Field(description="Seconds since 1970.")
    model: str = Field(description="The canonical id of what served.")
    system_fingerprint: str


class ChatCompletion(Head):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: TokenUsage


class CalledDelta(Answer):
    name: str | None = None
    arguments: str


class CallPiece(Answer):
    """The first of each index has an id and a name; the arguments are joined from all."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledDelta


class MessageDelta(Answer):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallPiece] | None = None


class ChatChunkChoice(Answer):
    index: int
    delta: MessageDelta
    logprobs: ContentLogprobs | IdLogprobs | None
    finish_reason: FinishReason | None


class ChatChunk(Head):
    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: TokenUsage | None = None


class TextChoice(Answer):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason


class TextCompletion(Head):
    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: TokenUsage


class TextChunkChoice(Answer):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None


class TextChunk(Head):
    object: Literal["text_completion"]
    choices: list[TextChunkChoice]
    usage: TokenUsage | None = None


class RosterBytes(Answer):
    estimated: int | None
    measured: int | None


class RosterState(Answer):
    """What only a roster knows."""

    state: str
    aliases: list[str]
    adapters: list[str]
    bytes: RosterBytes
    in_flight: int
    queued: int
    pinned: bool
    max_context: int | None


class ModelEntry(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parent: str | None = Field(default=None, description="Of an adapter: its model.")
    roster: RosterState


class ModelList(Answer):
    object: Literal["list"]
    data: list[ModelEntry]


class Residents(Answer):
    loading: int
    ready: int
    draining: int
    unloading: int


class PreloadState(Answer):
    done: int
    of: int
    failed: list[str] | None = Field(default=None, description="Which; only for those who may operate the server.")


class HealthState(Answer):
    status: Literal["ok", "ready", "starting", "stalled", "draining"]
    residents: Residents
    stalled: int = Field(description="Models whose worker gets nowhere with what it runs, and is about to be replaced.")
    preload: PreloadState


class ErrorObject(Answer):
    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None = Field(description="The field at fault, where there is one.")
    code: str


class ErrorBody(Answer):
    """The one shape in which this server says no. In a stream it is an event."""

    error: ErrorObject
