"""Chats for models without a chat template: each message behind a prefix, as mlx-lm's server writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlx_roster.errors import InvalidRequest

#: What a request's `role_mapping` goes over. `system_prompt` opens a chat that brings no system message of its own,
#: `bos` stands before everything, and `stop` behind each message.
DEFAULTS: Mapping[str, str] = {
    "bos": "",
    "system_prompt": (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant follows the given rules no matter what."
    ),
    "system": "ASSISTANT's RULE: ",
    "user": "USER: ",
    "assistant": "ASSISTANT: ",
    "stop": "\n",
}

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def written(messages: Sequence[dict[str, Any]], mapping: Mapping[str, str]) -> str:
    """The chat as text, up to where the model's answer begins. Raises InvalidRequest."""
    unknown = sorted(set(mapping) - set(DEFAULTS))
    if unknown:
        known = ", ".join(DEFAULTS)
        raise InvalidRequest(f"role_mapping has no {unknown[0][:64]!r}: there are {known}", param="role_mapping")
    mapping = {**DEFAULTS, **mapping}
    roles = [_role(message) for message in messages]
    stop = mapping["stop"]
    opening = mapping["system_prompt"]
    lines = [mapping["bos"]] + ([opening + stop] if opening and "system" not in roles else [])
    for role, message in zip(roles, messages, strict=True):
        lines.append(mapping[role] + (message.get("content") or "") + stop)
    # A word that follows brings its space along.
    return ("".join(lines) + mapping["assistant"]).rstrip()


def _role(message: dict[str, Any]) -> str:
    role = message.get("role")
    if role not in _ROLES or message.get("tool_calls"):
        what = "are no calls" if message.get("tool_calls") else f"is no role {role!r}"
        raise InvalidRequest(f"this model has no chat template, and without one there {what}", param="messages")
    return _ROLES[role]
