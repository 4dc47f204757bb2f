"""The body of `POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag

from mlx_roster.core import Capabilities, Chat, Tools
from mlx_roster.errors import InvalidRequest
from mlx_roster.server.openai.logprobs import ScoreForm
from mlx_roster.server.openai.schema.formats import wanted
from mlx_roster.server.openai.schema.generation import GenerationRequest
from mlx_roster.server.openai.schema.messages import Messages
from mlx_roster.server.openai.schema.tools import ToolChoice, ToolList, check_choice, is_forced, offered
from mlx_roster.server.openai.schema.values import at_most, plain_fields

MAX_VARIABLES = 32

#: Clients send these to every model, whether it thinks or not.
_COMMON = ("enable_thinking", "thinking")

_BOUND = Field(json_schema_extra={"maxProperties": MAX_VARIABLES})
Variables = Annotated[dict[str, Any], at_most(MAX_VARIABLES), AfterValidator(plain_fields), _BOUND]
Prefixes = Annotated[dict[str, str], at_most(MAX_VARIABLES), _BOUND]


def _flag_or_count(value: object) -> str | None:
    return "<flag>" if isinstance(value, bool) else "<count>" if isinstance(value, int) else None


ChatLogprobs = Annotated[
    Annotated[bool, Tag("<flag>")] | Annotated[int, Field(ge=1, le=10), Tag("<count>")],
    Discriminator(
        _flag_or_count,
        custom_error_type="logprobs_type",
        custom_error_message="must be true, false or an integer from 1 to 10",
    ),
]


class ChatRequest(GenerationRequest):
    """A chat to be continued."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "qwen", "messages": [{"role": "user", "content": "Say this is a test."}], "temperature": 0.7}
            ]
        }
    )

    messages: Messages
    logprobs: ChatLogprobs | None = Field(
        default=None, description="true: as OpenAI says them; an integer: ids and so many of the likeliest tokens."
    )
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(
        default=None, description="So many of the likeliest tokens; only with logprobs: true."
    )
    tools: ToolList | None = Field(default=None, description="Functions that the model may call.")
    tool_choice: ToolChoice | None = Field(default=None, description='Whether it has to; "auto" if left out.')
    parallel_tool_calls: bool | None = Field(default=None, description="false: one call at most.")
    chat_template_kwargs: Variables | None = Field(
        default=None, description="Variables for the model's chat template.", examples=[{"enable_thinking": False}]
    )
    chat_template_args: Variables | None = Field(default=None, description="Another name of chat_template_kwargs.")
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = Field(
        default=None, description="The template's variable of that name."
    )
    role_mapping: Prefixes | None = Field(
        default=None,
        description="What messages begin with, by role, where the model has no chat template.",
        examples=[{"user": "USER: ", "assistant": "ASSISTANT: "}],
    )

    @property
    def alternatives(self) -> int | None:
        if isinstance(self.logprobs, bool):
            return (self.top_logprobs or 0) if self.logprobs else None
        return self.logprobs

    @property
    def score_form(self) -> ScoreForm | None:
        if self.alternatives is None:
            return None
        return "content" if self.logprobs is True else "ids"

    @property
    def variables(self) -> dict[str, Any]:
        """The request's own variables for the chat template."""
        named = self._named
        return named if self.reasoning_effort is None else {**named, "reasoning_effort": self.reasoning_effort}

    @cached_property
    def tools_offered(self) -> Tools | None:
        return offered(self.tools or (), self.tool_choice, parallel=self.parallel_tool_calls is not False)

    def unheard(self, capabilities: Capabilities) -> list[str]:
        # Without a template, or with one of which nothing is known, it is the worker that decides.
        heard = {*capabilities.template, *_COMMON} if capabilities.template else self.variables.keys()
        unheard = [self._spoken(name) for name in self.variables if name not in heard]
        offer = self.tools_offered
        # Only a call that has to be made is held to its function's schema.
        if offer is not None and offer.choice == "auto" and any(tool.function.strict for tool in self.tools or ()):
            unheard.append("tools.function.strict")
        return unheard

    def check(self, n_limit: int) -> None:
        super().check(n_limit)
        if self.top_logprobs is not None and self.logprobs is not True:
            raise InvalidRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
        check_choice(self.tools or (), self.tool_choice)
        if is_forced(self.tool_choice):
            if wanted(self.response_format) is not None:
                raise InvalidRequest(
                    "response_format does not go together with a tool_choice that demands a call",
                    param="response_format",
                )
            self._check_ends("tool_choice")
        self._check_variables()

    def _check_variables(self) -> None:
        one, other, effort = self.chat_template_kwargs, self.chat_template_args, self.reasoning_effort
        if one is not None and other is not None and one != other:
            raise InvalidRequest(
                "chat_template_args and chat_template_kwargs are two names of one field and must not differ",
                param="chat_template_args",
            )
        field = self._variables_field
        if effort is not None and self._named.get("reasoning_effort", effort) != effort:
            raise InvalidRequest(f"reasoning_effort and that of {field} must not differ", param="reasoning_effort")

    @property
    def _variables_field(self) -> str:
        return "chat_template_args" if self.chat_template_kwargs is None else "chat_template_kwargs"

    @property
    def _named(self) -> dict[str, Any]:
        return self.chat_template_kwargs or self.chat_template_args or {}

    def _spoken(self, variable: str) -> str:
        """How the request says it."""
        return f"{self._variables_field}.{variable}" if variable in self._named else variable

    @cached_property
    def prompts(self) -> Sequence[Chat]:
        messages = [message.for_template() for message in self.messages]
        return [Chat(messages, self.variables, self.role_mapping or {})]
