"""The vocabulary that all layers share. No mlx, no asyncio, no I/O.

What a worker and the server say to each other is made of these (`workers/wire.py` adds the frames).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import msgspec

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Ref:
    """A resolved name: the catalog entry, and the adapter over it, that a request means."""

    model: str
    adapter: str | None = None

    @property
    def id(self) -> str:
        """The canonical id, as `/v1/models` lists it: `atlas` or `atlas:pirate`."""
        return self.model if self.adapter is None else f"{self.model}:{self.adapter}"


@dataclass(frozen=True, slots=True)
class Located:
    """A model on this machine's disk. `estimate` is what it will take once loaded, in bytes.

    `bank` is how much of that is for its adapters, which come later.
    """

    path: str
    estimate: int
    bank: int = 0


class AdapterSource(msgspec.Struct, frozen=True):
    """Where a worker finds an adapter. `path` is a local folder; `name` is what errors call it.

    One with `pin` keeps its place in the worker's bank from its first use on.
    """

    name: str
    path: str
    pin: bool = False


class Sampling(msgspec.Struct, frozen=True):
    """How one sequence picks its tokens. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 are off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None


class Chat(msgspec.Struct, frozen=True, tag="chat"):
    """Messages for the model's own chat template. Contents are strings or None."""

    messages: list[dict[str, Any]]


class Text(msgspec.Struct, frozen=True, tag="text"):
    """A prompt to be tokenized as it stands."""

    text: str


class Tokens(msgspec.Struct, frozen=True, tag="tokens"):
    """A prompt that is token ids already. The worker checks them against the vocabulary."""

    ids: list[int]


class Generation(msgspec.Struct, frozen=True):
    """One sequence to generate: what a Resident is asked for, with every default already applied."""

    prompt: Chat | Text | Tokens
    max_tokens: int
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    adapter: AdapterSource | None = None


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """Token counts of one finished sequence. `completion` includes the end-of-sequence token."""

    prompt: int
    completion: int
    cached: int = 0


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """What one decode step added to one sequence.

    `text` may be empty (a token held back because it may begin a stop string, or half a character).
    The last Delta of a sequence, and only that one, has `finish` and `usage`.
    """

    sequence: int
    text: str
    finish: FinishReason | None = None
    usage: Usage | None = None


class Device(msgspec.Struct, frozen=True):
    """The accelerator as a worker sees it. `working_set` is what the device recommends not to exceed, in bytes."""

    name: str
    backend: Literal["metal", "cuda", "cpu"]
    memory: int
    working_set: int


class ModelSource(msgspec.Struct, frozen=True):
    """What a worker must load: a local folder, and the limits it then lives by.

    `memory` is the most it may ever take, in bytes: the whole budget, since nothing is reserved for what a batch needs
    beyond the weights. `max_adapters` is the number of slots of its LoRA bank, and `bank` how many bytes that may come
    to take. Of finished sequences it keeps the KV caches of at most `prompt_cache_entries`, in at most
    `prompt_cache_bytes`; 0 of either keeps none.
    """

    name: str
    path: str
    memory: int
    max_concurrency: int = 32
    max_context: int | None = None
    max_adapters: int = 8
    prompt_cache_entries: int = 32
    prompt_cache_bytes: int = 512 * 2**20
    bank: int = 0


class Measured(msgspec.Struct, frozen=True):
    """What a worker reports of itself once loaded, and again when it has gone idle. Bytes.

    `growth` is what it may still come to take for adapters, beside `active`.
    """

    active: int
    cache: int = 0
    growth: int = 0


class Capabilities(msgspec.Struct, frozen=True):
    """What a Resident can do: said by its worker, never assumed above `workers/`."""

    vocabulary: int
    context: int | None
    chat: bool
    adapters: bool


class Owner(Protocol):
    """Who hears what becomes of a worker. Called on the event loop, between two awaits of anybody's."""

    def on_progress(self, done: int, total: int) -> None:
        """A load goes on: `done` of `total` bytes are in memory."""

    def on_report(self, measured: Measured) -> None:
        """A loaded worker has gone idle, and holds this much now."""

    def on_death(self) -> None:
        """A loaded worker is lost, without `stop` having been called. Said once."""
