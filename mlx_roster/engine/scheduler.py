"""Which sequences run, and what they say. Bookkeeping only: no mlx, no threads, no clock.

The engine's loop calls, in turn, `apply` for each command, `schedule`, and `fold` with the tokens of the step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from mlx_roster.core import Alternative, Aside, Delta, FinishReason, Scored, Usage
from mlx_roster.engine.sequences import Adapter, Cancel, Fetched, Rejection, Score, Sequence, Token
from mlx_roster.engine.slots import Slots
from mlx_roster.errors import InternalError, InvalidRequest
from mlx_roster.logs import fields, written

logger = logging.getLogger(__name__)

#: How many sequences may overtake one that waits for an adapter's slot, before no slot is leased to any but it.
OVERTAKES = 64

#: How many later ones may go before each further prompt of a request that has many: a request of one then waits for a
#: few of them, and not for all.
PRECEDENCE = 8


@dataclass(slots=True)
class Plan:
    """What the next step changes: `drop` leaves the batch, the adapters of `place` go into their slots, `admit` joins.

    `place` is of this plan's `admit` or of the next one's. `fetch` goes on waiting, for a Fetched: its adapters lost
    their slots meanwhile.
    """

    drop: list[int]
    place: list[Sequence] = field(default_factory=list)
    admit: list[Sequence] = field(default_factory=list)
    fetch: list[Sequence] = field(default_factory=list)


class Scheduler:
    """Waiting, running and leaving sequences. At most `max_concurrency` run; the rest wait in order of arrival, though
    the many of one request let others in between.

    One is let in where `room` says so of it and those that run; it must be so where none runs. Only one that must wait
    for an adapter's slot is overtaken, and only `OVERTAKES` times by others that lease one; and those whose prompt
    another sequence is computing. `spell` gives the bytes of a token.
    """

    def __init__(
        self,
        max_concurrency: int,
        max_adapters: int,
        room: Callable[[Sequence, Collection[Sequence]], bool] = lambda sequence, running: True,
        spell: Callable[[int], bytes] = lambda token: b"",
    ) -> None:
        #: May be changed at any time; what runs goes on.
        self.max_concurrency = max_concurrency
        self._room = room
        self._spell = spell
        self._waiting: dict[int, Sequence] = {}
        self._arrived = 0
        self._running: dict[int, Sequence] = {}
        #: Running already, and in the next plan's `admit`.
        self._joining: list[Sequence] = []
        self._leaving: list[int] = []
        self.slots = Slots(max_adapters)

    def __repr__(self) -> str:
        return f"<Scheduler: {len(self._running)} running, {len(self._waiting)} waiting | {self.slots}>"

    @property
    def load(self) -> tuple[int, int]:
        """How many run, and how many wait."""
        return len(self._running), len(self._waiting)

    @property
    def running(self) -> bool:
        """Whether a step has anything to compute."""
        return bool(self._running)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do until a command comes."""
        return not (self._running or self._leaving) and all(one.fetching for one in self._waiting.values())

    def apply(self, command: Sequence | Fetched | Cancel) -> None:
        """Take in a sequence, or let one go: it says nothing more from here on."""
        match command:
            case Sequence():
                self._arrived += 1
                command.turn = self._arrived + PRECEDENCE * command.rank
                self._waiting[command.id] = command
            case Fetched(number, adapter) if number in self._waiting:
                self._waiting[number].adapter = adapter
                self._waiting[number].fetching = False
            case Cancel(number) if number in self._running:
                self._leave(number)
            case Cancel(number) if number in self._waiting:
                if (fork := self._waiting.pop(number).fork) is not None:
                    fork.dropped()

    def schedule(self) -> Plan:
        """Decide the next step. Sequences in `admit` run from here on, with their slots leased."""
        plan = Plan(drop=self._leaving)
        joined, self._leaving, self._joining = self._joining, [], []
        busy = bool(self._running)
        if self._waiting and len(self._running) < self.max_concurrency:
            self._admit(plan)
        if busy and plan.place:
            # Filling slots and taking in their prompts in one step would hold up for both those that run.
            plan.admit, self._joining = [], plan.admit
        plan.admit = joined + plan.admit
        return plan

    def _admit(self, plan: Plan) -> None:
        passed: list[Sequence] = []
        for sequence in sorted(self._waiting.values(), key=lambda one: one.turn):
            if len(self._running) >= self.max_concurrency:
                return
            if sequence.fork is not None and sequence.fork.pending:
                continue
            adapter = sequence.adapter
            if adapter is not None and not self._may_lease(sequence, adapter, passed, plan):
                continue
            if not self._room(sequence, self._running.values()):
                return
            if adapter is None:
                self._run(sequence, plan)
            elif self._lease(sequence, adapter, plan):
                self._run(sequence, plan)
                for other in passed:
                    other.overtaken += 1
            else:
                passed.append(sequence)

    def _may_lease(self, sequence: Sequence, adapter: Adapter, passed: list[Sequence], plan: Plan) -> bool:
        """Whether there is any use in trying to lease a slot."""
        if sequence.fetching:
            return False
        if adapter.identity not in self.slots:
            if adapter.weights is None:
                sequence.fetching = True
                plan.fetch.append(sequence)
                return False
            if self.slots.full:
                passed.append(sequence)
                return False
        return all(other.overtaken < OVERTAKES for other in passed)

    def _lease(self, sequence: Sequence, adapter: Adapter, plan: Plan) -> bool:
        placed = adapter.identity in self.slots
        slot = self.slots.lease(adapter.identity, adapter.source.name if adapter.source.pin else None)
        if slot is None:
            return False
        sequence.slot = slot
        if not placed:
            plan.place.append(sequence)
        return True

    def _run(self, sequence: Sequence, plan: Plan) -> None:
        self._running[sequence.id] = self._waiting.pop(sequence.id)
        plan.admit.append(sequence)
        if (fork := sequence.fork) is not None:
            if fork.caches is not None:
                sequence.prefix, sequence.cached = fork.caches, fork.cached
            fork.joined(sequence.id)

    def request(self, number: int) -> str:
        """Whose sequence this is; nothing where it runs no more."""
        return self._running[number].request if number in self._running else ""

    def unplaced(self, plan: Plan, identity: str) -> list[Sequence]:
        """An adapter in `plan.place` cannot be put into its slot: who came for it leaves the plan, and is returned.

        Nobody else leases that slot, since the adapter had none before this plan.
        """
        refused = [one for one in plan.admit + self._joining if one.adapter and one.adapter.identity == identity]
        plan.admit = [one for one in plan.admit if one not in refused]
        self._joining = [one for one in self._joining if one not in refused]
        for sequence in refused:
            del self._running[sequence.id]
            if sequence.fork is not None:
                sequence.fork.left(sequence.id)
        self.slots.forget(identity)
        return refused

    def fold(self, tokens: Iterable[Token]) -> list[Delta | Rejection]:
        """What a step's tokens add to the texts. Those of who has left add nothing."""
        said: list[Delta | Rejection] = []
        for token in tokens:
            sequence = self._running.get(token.sequence)
            if sequence is None:
                continue
            # Of one that is complete, the gate has gone on to what nobody will see.
            gate = sequence.gate
            if gate is not None and gate.error is not None and token.finish != "length":
                self._leave(sequence.id)
                said.append(Rejection(sequence.id, InvalidRequest(gate.error, param=gate.param), sequence.request))
            else:
                said.append(self._attempted(sequence, token))
        return said

    def _attempted(self, sequence: Sequence, token: Token) -> Delta | Rejection:
        try:
            return self._said(sequence, token)
        except Exception:  # tokenizers and parsers are others' code: what one text does must not end the rest
            about = fields(request_id=sequence.request)
            logger.exception("the text of request %s could not be made", written(sequence.request), extra=about)
            if sequence.id in self._running:
                self._leave(sequence.id)
            return Rejection(sequence.id, InternalError("the text of the answer could not be made"), sequence.request)

    def _said(self, sequence: Sequence, token: Token) -> Delta:
        voice, text = sequence.voice, ""
        sequence.accepted += token.accepted
        sequence.rejected += token.rejected
        if token.id is not None:
            sequence.completion += 1
            # An end-of-sequence token is counted, never shown.
            text = "" if token.finish == "stop" else voice.add(token.id)
        ends = token.finish is not None or voice.stopped
        if ends and not voice.stopped:
            text += voice.finish(token.finish == "stop")
        if sequence.opening:
            text, sequence.opening = sequence.opening + text, ""
        aside = self._aside(sequence, token)
        tokens = 0 if token.id is None else 1
        if not ends:
            return Delta(sequence.id, text, None, None, aside, tokens)
        if token.finish is None:
            # Only we know of the stop string: the batch would go on.
            self._leave(sequence.id)
        else:
            self._release(self._running.pop(sequence.id))
        usage = Usage(
            prompt=len(sequence.prompt),
            completion=sequence.completion,
            cached=sequence.cached,
            reasoning=voice.reasoning,
            accepted=sequence.accepted,
            rejected=sequence.rejected,
        )
        return Delta(sequence.id, text, _reason(sequence, token), usage, aside, tokens)

    def _aside(self, sequence: Sequence, token: Token) -> Aside | None:
        said = sequence.voice.aside()
        if said is None and token.score is None and not token.prompt:
            return None
        reasoning, calls = said or ("", [])
        scores = [] if token.score is None or token.id is None else [self._scored(token.id, token.score)]
        begin, end = sequence.scored, sequence.scored + len(token.prompt)
        sequence.scored = end
        ids = sequence.prompt.ids[begin:end]
        prompt = [self._scored(one, score) for one, score in zip(ids, token.prompt, strict=True)]
        return Aside(reasoning, calls, scores, prompt)

    def _scored(self, token: int, score: Score) -> Scored:
        logprob, top = score
        return Scored(token, self._spell(token), logprob, [Alternative(one, self._spell(one), its) for one, its in top])

    def _leave(self, number: int) -> None:
        sequence = self._running.pop(number)
        self._release(sequence)
        if sequence in self._joining:
            self._joining.remove(sequence)
        else:
            self._leaving.append(number)

    def _release(self, sequence: Sequence) -> None:
        if sequence.fork is not None:
            sequence.fork.left(sequence.id)
        if sequence.adapter is not None:
            self.slots.release(sequence.adapter.identity)

    def abandon(self) -> list[Sequence]:
        """Let go of all that runs and of all slots, after a step that failed halfway. Returns who that was."""
        abandoned = list(self._running.values())
        for sequence in self._running.values():
            if sequence.fork is not None:
                sequence.fork.left(sequence.id)
        self._running.clear()
        self._joining.clear()
        self._leaving.clear()
        self.slots.clear()
        return abandoned


def _reason(sequence: Sequence, token: Token) -> FinishReason:
    if token.finish == "length" and not sequence.voice.stopped:
        return "length"
    return "tool_calls" if sequence.voice.called else "stop"
