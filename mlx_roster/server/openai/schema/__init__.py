"""What a request may say: the fields of the two generating routes, their types and their ranges."""

from mlx_roster.server.openai.schema.chat import ChatRequest
from mlx_roster.server.openai.schema.generation import GenerationRequest
from mlx_roster.server.openai.schema.text import TextRequest

__all__ = ["ChatRequest", "GenerationRequest", "TextRequest"]
