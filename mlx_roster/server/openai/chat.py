"""`POST /v1/chat/completions`."""

from __future__ import annotations

from mlx_roster.registry import Registry
from mlx_roster.server.openai.inference import Inference
from mlx_roster.server.openai.schema import ChatRequest
from mlx_roster.server.openai.shapes import Form
from mlx_roster.server.openai.waiting import PULSE

CHAT = Form(
    id_prefix="chatcmpl-",
    whole_object="chat.completion",
    chunk_object="chat.completion.chunk",
    whole=lambda text: {"message": {"role": "assistant", "content": text}},
    before=b'"delta":{"content":',
    after=b"}",
    opening=b'"delta":{"role":"assistant","content":""}',
)


def chat_completions(registry: Registry, pulse: float = PULSE) -> Inference[ChatRequest]:
    """The endpoint."""
    return Inference(registry, ChatRequest, CHAT, pulse)
