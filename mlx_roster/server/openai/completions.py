"""`POST /v1/completions`."""

from __future__ import annotations

from mlx_roster.registry import Registry
from mlx_roster.server.openai.counting import Gaps
from mlx_roster.server.openai.desk import Desk
from mlx_roster.server.openai.inference import Inference
from mlx_roster.server.openai.schema import TextRequest
from mlx_roster.server.openai.shapes import Form
from mlx_roster.server.openai.waiting import PULSE

TEXT = Form(
    operation="text_completion",
    id_prefix="cmpl-",
    whole_object="text_completion",
    chunk_object="text_completion",
    whole=lambda answer: {"text": answer.text},
    piece=lambda text, aside: {"text": text},
    before=b'"text":',
    after=b"",
)


def text_completions(registry: Registry, gaps: Gaps, desk: Desk, pulse: float = PULSE) -> Inference[TextRequest]:
    """The endpoint."""
    return Inference(registry, TextRequest, TEXT, gaps, desk, pulse)
