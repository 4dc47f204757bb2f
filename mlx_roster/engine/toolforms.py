"""In which form a forced tool call is written: what `grammar` lets a model say is what `text` then reads."""

from __future__ import annotations

from typing import Any, Literal

#: `tagged` and `mistral` are what such a model says unforced too, between the markers of its tokenizer: a `<tool_call>`
#: around each call, or one `[TOOL_CALLS]` before them all. `array` is ours, for all other models: the answer is
#: `[{"name": "f", "arguments": {…}}, …]` and nothing else, without markers.
Form = Literal["tagged", "mistral", "array"]


def forced_form(tokenizer: Any) -> Form:
    """The form of a call that `tool_choice` demands, for one of mlx-lm's tokenizers."""
    parser = getattr(getattr(tokenizer, "tool_parser", None), "__module__", None) or ""
    match parser.rpartition(".")[2], getattr(tokenizer, "tool_call_start", None):
        case "json_tools", "<tool_call>":
            return "tagged"
        case "mistral", "[TOOL_CALLS]":
            return "mistral"
    return "array"
