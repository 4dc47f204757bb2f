"""What a worker is told of its model's entry: when it loads it, and once more where the entry has changed."""

from __future__ import annotations

from mlx_roster.config import ModelEntry
from mlx_roster.core import Limits, Located, ModelSource


def source_of(model: str, entry: ModelEntry, located: Located, budget: int) -> ModelSource:
    """For the load. `budget` is all that there is: of its share, a worker hears once it is loaded."""
    return ModelSource(
        name=model,
        path=located.path,
        memory=budget,
        limits=limits_of(entry, located),
        max_adapters=entry.max_adapters,
        trust_remote_code=entry.trust_remote_code,
        chat_template=None if entry.chat_template is None else entry.chat_template.text,
        template_args=dict(entry.chat_template_args),
        kv_bits=entry.kv.bits,
        kv_group_size=entry.kv.group_size,
        drafts=located.drafts,
    )


def limits_of(entry: ModelEntry, located: Located) -> Limits:
    """All that can change while the model stays loaded."""
    return Limits(
        max_concurrency=entry.max_concurrency,
        max_context=entry.max_context,
        prompt_cache_entries=entry.prompt_cache.entries,
        prompt_cache_bytes=entry.prompt_cache.budget,
        bank=located.bank,
        kv=located.kv,
    )


def limiting(entry: ModelEntry) -> tuple[object, ...]:
    """What of an entry its limits come from."""
    return entry.adapters, entry.max_concurrency, entry.max_context, entry.prompt_cache
