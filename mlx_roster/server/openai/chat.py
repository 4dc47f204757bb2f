"""`POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Any

from mlx_roster.core import Aside, CallDelta
from mlx_roster.registry import Registry
from mlx_roster.server.openai.counting import Gaps
from mlx_roster.server.openai.desk import Desk
from mlx_roster.server.openai.inference import Inference
from mlx_roster.server.openai.saying import Answered
from mlx_roster.server.openai.schema import ChatRequest
from mlx_roster.server.openai.shapes import Form
from mlx_roster.server.openai.waiting import PULSE


def _message(answer: Answered) -> dict[str, Any]:
    # What is only a call has no content.
    content = None if answer.aside.calls and not answer.text else answer.text
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if answer.aside.reasoning:
        message["reasoning_content"] = answer.aside.reasoning
    if answer.aside.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in answer.aside.calls
        ]
    return {"message": message}


def _delta(text: str, aside: Aside) -> dict[str, Any]:
    delta: dict[str, Any] = {}
    if aside.reasoning:
        delta["reasoning_content"] = aside.reasoning
    if text:
        delta["content"] = text
    if aside.calls:
        delta["tool_calls"] = list(map(_call_delta, aside.calls))
    return {"delta": delta}


def _call_delta(call: CallDelta) -> dict[str, Any]:
    if call.id is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    return {
        "index": call.index,
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


CHAT = Form(
    operation="chat",
    id_prefix="chatcmpl-",
    whole_object="chat.completion",
    chunk_object="chat.completion.chunk",
    whole=_message,
    piece=_delta,
    before=b'"delta":{"content":',
    after=b"}",
    opening=b'"delta":{"role":"assistant","content":""}',
)


def chat_completions(registry: Registry, gaps: Gaps, desk: Desk, pulse: float = PULSE) -> Inference[ChatRequest]:
    """The endpoint."""
    return Inference(registry, ChatRequest, CHAT, gaps, desk, pulse)
