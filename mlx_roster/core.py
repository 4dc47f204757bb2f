"""The vocabulary that all layers share. No mlx, no asyncio, no I/O.

What a worker and the server say to each other is made of these (`workers/wire.py` adds the frames).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import msgspec

FinishReason = Literal["stop", "length", "tool_calls"]

#: How many of something. Whoever decodes a message refuses one that has less than none.
Count = Annotated[int, msgspec.Meta(ge=0)]

#: More tokens than one Delta of a worker is ever of: whoever takes it in looks at each.
MOST_TOKENS = 1024


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

    Of that, `bank` is for its adapters and `kv` for the KV caches of its sequences, both of which come later. The
    weights of its `drafts` are part of it, too.
    """

    path: str
    estimate: int
    bank: int = 0
    kv: int = 0
    drafts: tuple[DraftSource, ...] = ()


class AdapterSource(msgspec.Struct, frozen=True):
    """Where a worker finds an adapter. `path` is a local folder; `name` is what errors call it.

    One with `pin` keeps its place in the worker's bank from its first use on.
    """

    name: str
    path: str
    pin: bool = False


class Sampling(msgspec.Struct, frozen=True):
    """How one sequence picks its tokens. `temperature` 0 is greedy. What it has by default is off, temperature aside.

    The penalties look at the last so many tokens of prompt and answer together. `logit_bias` is added to logits by
    token id. Before `min_tokens` are drawn no end-of-sequence token is; with `ignore_eos` one ends nothing.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repetition_penalty: float = 1.0
    repetition_context_size: int = 20
    presence_penalty: float = 0.0
    presence_context_size: int = 20
    frequency_penalty: float = 0.0
    frequency_context_size: int = 20
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False


class Chat(msgspec.Struct, frozen=True, tag="chat"):
    """Messages for the model's own chat template. Contents are strings or None.

    `template_args` are variables for the template, over those of the roster. `role_mapping` are prefixes for a model
    without a template, over the built-in ones.
    """

    messages: list[dict[str, Any]]
    template_args: dict[str, Any] = {}
    role_mapping: dict[str, str] = {}


class Text(msgspec.Struct, frozen=True, tag="text"):
    """A prompt to be tokenized as it stands."""

    text: str


class Tokens(msgspec.Struct, frozen=True, tag="tokens"):
    """A prompt that is token ids already. The worker checks them against the vocabulary."""

    ids: list[int]


class Format(msgspec.Struct, frozen=True):
    """What an answer must be: a JSON object, or any JSON that fits `schema`, the text of a JSON Schema."""

    schema: str | None = None


class Tools(msgspec.Struct, frozen=True):
    """Functions that the model may call, as OpenAI's `tools` has them, and whether it has to.

    `choice` "named" is the call of `name` and of nothing else. Without `parallel` there is one call at most.
    """

    specs: tuple[dict[str, Any], ...]
    choice: Literal["auto", "required", "named"] = "auto"
    name: str | None = None
    parallel: bool = True


class Generation(msgspec.Struct, frozen=True):
    """`n` sequences to generate from one prompt: what a Resident is asked for, with every default already applied.

    With `logprobs`, each token is said with its log-probability and those of so many likeliest tokens; with `echo`, the
    text begins with the prompt, and its tokens are scored too. `max_tokens` is 0 only with `echo`. `draft` names one of
    the Resident's draft models, and None its first; `draft_tokens` 0 is no drafting, None the roster's number.
    `rank` is how many prompts of the same request come before this one. `request` is that request's id, for the log.
    """

    prompt: Chat | Text | Tokens
    max_tokens: int
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    adapter: AdapterSource | None = None
    n: int = 1
    logprobs: int | None = None
    echo: bool = False
    format: Format | None = None
    tools: Tools | None = None
    draft: str | None = None
    draft_tokens: int | None = None
    rank: int = 0
    request: str = ""


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """Token counts of one finished sequence. `completion` includes the end-of-sequence token.

    Of the completion, `reasoning` tokens came before the answer. Of those that a draft model had drafted, so many were
    `accepted`, and so many `rejected`.
    """

    prompt: Count
    completion: Count
    cached: Count = 0
    reasoning: Count = 0
    accepted: Count = 0
    rejected: Count = 0


class Alternative(msgspec.Struct, frozen=True, array_like=True):
    """A token that might have been: `text` are its bytes, which need not make whole characters."""

    id: int
    text: bytes
    logprob: float


class Scored(msgspec.Struct, frozen=True, array_like=True):
    """A token and its log-probability, which a prompt's first token has none of.

    `top` are the likeliest, in falling order; the token itself is among them only where it is one of them.
    """

    id: int
    text: bytes
    logprob: float | None
    top: list[Alternative] = []


class CallDelta(msgspec.Struct, frozen=True, array_like=True):
    """A piece of a tool call. The first of each `index` has `id` and `name`; `arguments` are JSON, joined from all."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


class Aside(msgspec.Struct, frozen=True, array_like=True):
    """What a Delta has besides text. `prompt` are the prompt's tokens, before the first of `scores`."""

    reasoning: str = ""
    calls: list[CallDelta] = []
    scores: list[Scored] = []
    prompt: list[Scored] = []

    @property
    def scored(self) -> int:
        """How many log-probabilities there are in it."""
        return sum([1 + len(one.top) for one in self.scores]) + sum([1 + len(one.top) for one in self.prompt])


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """What one decode step added to one sequence.

    `text` may be empty (a token held back because it may begin a stop string, or half a character).
    The last Delta of a sequence, and only that one, has `finish` and `usage`. It is of so many `tokens`: of one, unless
    it only scores the prompt, or several Deltas were merged.
    """

    sequence: int
    text: str
    finish: FinishReason | None = None
    usage: Usage | None = None
    aside: Aside | None = None
    tokens: Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)] = 1


class Device(msgspec.Struct, frozen=True):
    """The accelerator as a worker sees it. `working_set` is what the device recommends not to exceed, in bytes."""

    name: str
    backend: Literal["metal", "cuda", "cpu"]
    memory: int
    working_set: int


#: How many numbers may share a scale where mlx quantizes.
GROUP_SIZES = (32, 64, 128)


def group_size(asked: int, *widths: int) -> int | None:
    """The largest of GROUP_SIZES, but at most `asked`, that divides all `widths`; None where none does."""
    fitting = (size for size in reversed(GROUP_SIZES) if size <= asked and not any(width % size for width in widths))
    return next(fitting, None)


class CacheSize(msgspec.Struct, frozen=True):
    """Bytes that the KV caches of one sequence take, of a model's layers all together.

    Each token leaves `per_token`, and `windowed` in the layers that forget all but the last `window` tokens; `fixed`
    are states, as large after the first token as they ever are.
    """

    per_token: int = 0
    windowed: int = 0
    window: int = 0
    fixed: int = 0

    def bytes(self, tokens: int) -> int:
        """Of one sequence that is so long."""
        return self.fixed + self.per_token * tokens + self.windowed * min(tokens, self.window)


class Limits(msgspec.Struct, frozen=True):
    """What a running worker can be told anew, as a reload may want it.

    `bank` is how many bytes the LoRA bank may come to take, and `kv` how many are reserved for the KV caches of running
    sequences. Of finished ones the worker keeps the caches of at most `prompt_cache_entries`, in at most
    `prompt_cache_bytes`; 0 of either keeps none.
    """

    max_concurrency: int = 32
    max_context: int | None = None
    prompt_cache_entries: int = 32
    prompt_cache_bytes: int = 512 * 2**20
    bank: int = 0
    kv: int = 0


class DraftSource(msgspec.Struct, frozen=True):
    """A small model that drafts for a large one: a local folder, and how many tokens it drafts at a time."""

    name: str
    path: str
    tokens: int = 3
    trust_remote_code: bool = False


class ModelSource(msgspec.Struct, frozen=True):
    """What a worker must load: a local folder, and the limits it then lives by.

    `memory` is the most it may ever take, in bytes: the whole budget. How much of it the worker may take at a time, its
    share, it is told as that changes. `max_adapters` is the number of slots of its LoRA bank. `chat_template` is Jinja
    instead of the model's own, and `template_args` are variables for it. KV caches have `kv_bits` a number, if any.
    """

    name: str
    path: str
    memory: int
    limits: Limits = Limits()
    max_adapters: int = 8
    trust_remote_code: bool = False
    chat_template: str | None = None
    template_args: dict[str, Any] = {}
    kv_bits: int | None = None
    kv_group_size: int = 64
    drafts: tuple[DraftSource, ...] = ()


class Measured(msgspec.Struct, frozen=True):
    """What a worker reports of itself once loaded, when that has changed a good deal, and when it has gone idle. Bytes.

    `active` is all that it uses; of that, `kv` is for running sequences and `prompts` for the prompt cache, which it
    gives up when told to. `cache` are buffers kept for reuse. `growth` is what it may come to take beside `active` of
    what is reserved for adapters and running sequences.
    """

    active: int
    cache: int = 0
    growth: int = 0
    kv: int = 0
    prompts: int = 0


class Counters(msgspec.Struct, frozen=True, array_like=True):
    """What a worker has done since its model was loaded, and what it is doing.

    It has taken so many `steps`. It has looked so many tokens of prompts up in its prompt cache (`queried`), and had so
    many of them from there (`hits`). So many times it has put an adapter into a slot (`placed`), and so many times for
    that taken one out that was there (`displaced`).

    Now so many sequences are `running`, and so many `waiting` for a place beside them. Of its `slots`, so many are
    `filled`. In bytes, `kv` is what the caches of running sequences take, `reserved` what is kept for them, and
    `prompts` what the prompt cache takes.
    """

    steps: int = 0
    queried: int = 0
    hits: int = 0
    placed: int = 0
    displaced: int = 0
    running: int = 0
    waiting: int = 0
    slots: int = 0
    filled: int = 0
    kv: int = 0
    reserved: int = 0
    prompts: int = 0

    @property
    def done(self) -> Counters:
        """What is left of them when the worker is gone."""
        return Counters(self.steps, self.queried, self.hits, self.placed, self.displaced)

    def after(self, before: Counters) -> Counters:
        """These, and of what only grows no less than it was `before`."""
        return msgspec.structs.replace(
            self,
            steps=max(self.steps, before.steps),
            queried=max(self.queried, before.queried),
            hits=max(self.hits, before.hits),
            placed=max(self.placed, before.placed),
            displaced=max(self.displaced, before.displaced),
        )

    def __add__(self, other: Counters) -> Counters:
        mine, its = msgspec.structs.astuple(self), msgspec.structs.astuple(other)
        return Counters(*(one + another for one, another in zip(mine, its, strict=True)))


class Capabilities(msgspec.Struct, frozen=True):
    """What a Resident can do: said by its worker, never assumed above `workers/`.

    `template` are the names of variables that its chat template looks at; `generation` what its generation_config.json
    has for request fields, by their names.
    """

    vocabulary: int
    context: int | None
    adapters: bool
    template: tuple[str, ...] = ()
    generation: dict[str, float] = {}
    drafts: tuple[str, ...] = ()


class Owner(Protocol):
    """Who hears what becomes of a worker. Called on the event loop, between two awaits of anybody's."""

    def on_progress(self, done: int, total: int) -> None:
        """A load goes on: `done` of `total` bytes are in memory."""

    def on_report(self, measured: Measured) -> None:
        """A loaded worker holds this much now: said when it has changed a good deal, and when it has gone idle."""

    def on_death(self) -> None:
        """A loaded worker is lost, without `stop` having been called. Said once."""
