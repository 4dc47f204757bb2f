"""The golden path, once for both generating routes: parse, lease, submit, and respond inside the lease."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Generic, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlx_roster.config import ServerSettings
from mlx_roster.core import Delta, Generation, Usage
from mlx_roster.errors import InvalidRequest, WorkerCrashed
from mlx_roster.registry import Lease, Registry
from mlx_roster.registry.ports import Stream
from mlx_roster.server.body import object_of, read_body
from mlx_roster.server.callers import resolved
from mlx_roster.server.disconnect import cancel_on_disconnect
from mlx_roster.server.exchange import Exchange
from mlx_roster.server.openai.counting import Choice, Gaps, counted
from mlx_roster.server.openai.desk import Desk
from mlx_roster.server.openai.drafts import check_draft
from mlx_roster.server.openai.fields import shown
from mlx_roster.server.openai.parse import parse
from mlx_roster.server.openai.saying import NOTHING, Answered, merged
from mlx_roster.server.openai.schema import GenerationRequest
from mlx_roster.server.openai.shapes import Chunks, Envelope, Form
from mlx_roster.server.openai.transcript import transcribed
from mlx_roster.server.openai.waiting import PULSE, kept_alive
from mlx_roster.server.sse import DONE, EventStream

R = TypeVar("R", bound=GenerationRequest)
T = TypeVar("T")

#: Bytes of JSON that a token with its log-probability comes to, about.
SCORE = 64


class Inference(Generic[R]):
    """A generating route, as an ASGI endpoint: the lease is held until uvicorn has the last byte."""

    def __init__(
        self, registry: Registry, schema: type[R], form: Form, gaps: Gaps, desk: Desk, pulse: float = PULSE
    ) -> None:
        self._registry = registry
        self._gaps = gaps
        self._schema = schema
        self._form = form
        self._desk = desk
        self._pulse = pulse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange.of(scope)
        exchange.account.operation = self._form.operation
        with self._desk.place(exchange.caller.name) as came:
            request = await self._request(scope, receive, came)
            await self._answer(request, scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, came: Callable[[int], None]) -> R:
        """What the body asks for. `came` is told of each piece of it."""
        # Looked at for each request: a reload may change them.
        settings = self._registry.roster.server
        raw = await read_body(scope, receive, settings, came)
        request, unknown = await self._desk.done(len(raw), partial(self._read, raw, settings))
        Exchange.of(scope).ignored += unknown
        return request

    def _read(self, raw: bytes, settings: ServerSettings) -> tuple[R, list[str]]:
        """On any thread. Raises what `object_of` and `parse` raise."""
        body = object_of(raw)
        request, unknown = parse(self._schema, body, strict_fields=settings.strict_fields, n_limit=settings.n_limit)
        request.prepare()
        return request, unknown

    async def _answer(self, request: R, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange.of(scope)
        account, caller = exchange.account, exchange.caller
        account.stream = bool(request.stream)
        ref = resolved(self._registry, caller, request.model, request.adapters)
        account.model, account.adapter = ref.model, ref.adapter
        envelope = Envelope(self._form, ref.id, request.choices, request.score_form)
        client, events = cancel_on_disconnect(receive), EventStream(send)
        alive = kept_alive(events, exchange, lambda: self._registry.words(ref), self._pulse)
        try:
            async with (
                # Outside of `client`: its end takes a turn of the event loop.
                alive if request.stream else nullcontext(),
                client,
                self._registry.lease(
                    ref, request.keep_alive, client=caller.name, client_limit=caller.queue_limit
                ) as lease,
            ):
                exchange.granted(lease)
                exchange.ignored += self._unheard(request, lease)
                generations = self._generations(request, lease, exchange.request_id)
                with (
                    _submitted(lease, generations) as streams,
                    counted(streams, request.choices, account, self._gaps(ref.model, ref.adapter)) as choices,
                    transcribed(self._registry.roster.logs.prompts, exchange, generations, choices),
                ):
                    exchange.streams = streams
                    if request.stream:
                        exchange.streaming = True
                        await _stream(choices, envelope, events, include_usage=request.include_usage)
                    else:
                        await (await _whole(choices, envelope, self._desk))(scope, receive, send)
        finally:
            exchange.client_gone = client.gone

    def _unheard(self, request: R, lease: Lease) -> list[str]:
        """What of the request this model has no use for. Raises InvalidRequest where nothing must be ignored."""
        unheard = request.unheard(lease.capabilities)
        if unheard and self._registry.roster.server.strict_fields:
            raise InvalidRequest(f"{lease.ref.id} has no use for {shown(unheard)}", param=shown(unheard[:1]))
        return unheard

    def _generations(self, request: R, lease: Lease, request_id: str) -> list[Generation]:
        """What to submit. Only the model itself knows what its own defaults are, and what drafts for it."""
        own = lease.capabilities.generation if self._registry.uses_generation_config(lease.ref) else {}
        defaults = self._registry.defaults(lease.ref, request.model).model_dump(exclude_none=True)
        generations = request.generations({**own, **defaults})
        check_draft(generations[0], lease.capabilities)
        return [msgspec.structs.replace(generation, request=request_id) for generation in generations]


@contextmanager
def _submitted(lease: Lease, generations: Sequence[Generation]) -> Iterator[list[Stream]]:
    """The running sequences. Whichever way the block ends, none of them goes on."""
    streams: list[Stream] = []
    try:
        for generation in generations:
            streams.extend(lease.submit(generation))
        yield streams
    finally:
        for stream in streams:
            stream.cancel()


async def _whole(choices: Sequence[Choice], envelope: Envelope, desk: Desk) -> Response:
    answers = await _together([_collect(choice) for choice in choices])
    size = sum(len(answer.text) + SCORE * answer.aside.scored for answer in answers)
    payload = await desk.done(size, partial(envelope.whole, answers))
    return Response(payload, media_type="application/json")


async def _collect(choice: Choice) -> Answered:
    deltas: list[Delta] = []
    async for delta in choice.stream:
        woken = [delta, *choice.stream.waiting()]
        choice.heard(woken)
        deltas += woken
        if deltas[-1].finish is not None:
            break
    whole = merged(deltas)
    if whole.finish is None or whole.usage is None:
        raise _unfinished()
    return Answered(whole.text, whole.finish, whole.usage, whole.aside or NOTHING)


async def _stream(said: Sequence[Choice], envelope: Envelope, events: EventStream, *, include_usage: bool) -> None:
    """All choices' chunks as they come, then the usage where it was asked for, and the end."""
    usages = await _together(
        [
            _relay(choice, envelope.chunks(index, usage_follows=include_usage), events)
            for index, choice in enumerate(said)
        ]
    )
    await events.end((envelope.usage_chunk(usages) if include_usage else b"") + DONE)


async def _relay(choice: Choice, chunks: Chunks, events: EventStream) -> Usage:
    """One choice's chunks, one for each wake-up: a client that reads slowly gets fewer, longer ones."""
    opening = chunks.opening
    async for first in choice.stream:
        deltas = [first, *choice.stream.waiting()]
        choice.heard(deltas)
        delta = merged(deltas)
        out = opening
        if delta.text or delta.finish or delta.aside is not None:
            out += chunks.chunk(delta)
        if out:
            await events.write(out)
            opening = b""
        if delta.usage is not None:
            return delta.usage
    raise _unfinished()


def _unfinished() -> WorkerCrashed:
    return WorkerCrashed("the worker ended a sequence without finishing it")


async def _together(jobs: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The jobs' results, in order. The first error stops the others and is raised as itself."""
    if len(jobs) == 1:
        return [await jobs[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(job) for job in jobs]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
