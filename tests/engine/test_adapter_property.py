"""Whatever comes and goes, a sequence says what it says alone; and what an adapter is, is its contents."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mlx_roster.core import AdapterSource, Generation
from mlx_roster.loaders.adapters import Adapters
from mlx_roster.loaders.models import load
from mlx_roster.tensors import AdapterWeights, Targets
from tests.engine import tiny
from tests.engine.tiny import Driven

SLOTS = 3
PLACES = 5
LONGEST = 18
EVENTS = 120

EMBEDDINGS = "model.embed_tokens"
PROMPTS = [[(40 + 31 * row + 17 * column) % 300 for column in range(1 + 5 * row)] for row in range(5)]


@pytest.fixture(scope="session")
def base(shelf: Path) -> Path:
    """A base whose embeddings are its head as well."""
    return tiny.write_model(shelf / "tied", tie_word_embeddings=True)


@pytest.fixture(scope="session")
def six(shelf: Path, base: Path) -> list[Path]:
    """Six adapters that differ in all that adapters may differ in."""
    attention, mlp = ("self_attn.q_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.down_proj")
    return [
        tiny.write_adapter(shelf / "six0", base, seed=0, keys=attention, rank=2, scale=3.0),
        tiny.write_adapter(shelf / "six1", base, seed=1, keys=attention + mlp, rank=8, scale=1.0),
        tiny.write_adapter(shelf / "six2", base, seed=2, keys=mlp, rank=4, scale=2.0, layers=1),
        tiny.write_adapter(shelf / "six3", base, seed=3, keys=(*attention, EMBEDDINGS), rank=3, scale=1.0),
        tiny.write_adapter(shelf / "six4", base, seed=4, keys=attention + mlp, rank=4, scale=1.0, dora=True),
        tiny.write_adapter(shelf / "six5", base, seed=5, keys=(EMBEDDINGS,), rank=5, scale=1.0, layers=0, dora=True),
    ]


@dataclass(frozen=True)
class Ask:
    """A request, but for how many tokens. Greedy without a seed."""

    prompt: int
    over: Path | None
    seed: int | None

    def generation(self, tokens: int) -> Generation:
        sampling: dict[str, Any] = {} if self.seed is None else {"temperature": 1.2, "top_p": 0.95, "seed": self.seed}
        return tiny.request(PROMPTS[self.prompt], tokens, over=self.over, **sampling)


class Oracle:
    """What each request says alone: by mlx-lm where it is greedy, else by our engine with nothing else in it."""

    def __init__(self, base: Path) -> None:
        self.tokens = cache(self._tokens)
        self._base = base

    def _tokens(self, ask: Ask) -> list[int]:
        if ask.seed is None:
            return tiny.solo(self._base, PROMPTS[ask.prompt], LONGEST, ask.over)
        with tiny.driven(self._base, max_adapters=1) as engine:
            sequence = engine.ask(ask.generation(LONGEST))
            engine.until_ended(sequence)
            return engine.tokens[sequence]


@pytest.fixture(scope="session")
def oracle(base: Path) -> Oracle:
    return Oracle(base)


@dataclass
class Story:
    """Requests at random, to one engine."""

    engine: Driven
    random: random.Random
    six: list[Path]
    asked: dict[int, tuple[Ask, int]] = field(default_factory=dict)
    #: Cancelled, and what had been said of each by then.
    cancelled: dict[int, int] = field(default_factory=dict)

    def event(self) -> None:
        match self.random.choices(["ask", "turn", "cancel", "rest"], weights=[40, 45, 14, 1])[0]:
            case "ask":
                self.ask()
            case "turn":
                self.turn(self.random.randrange(1, 6))
            case "cancel":
                self.cancel()
            case "rest":
                self.rest()

    def ask(self) -> None:
        # Few seeds, so that the oracle's answers are used again.
        seed = self.random.choice([None, None, None, 1, 2])
        ask = Ask(self.random.randrange(len(PROMPTS)), self.random.choice([None, *self.six]), seed)
        tokens = self.random.randrange(1, LONGEST + 1)
        self.asked[self.engine.ask(ask.generation(tokens))] = (ask, tokens)

    @property
    def open(self) -> list[int]:
        return [one for one in self.asked if one not in self.cancelled and not self.engine.said.ended(one)]

    def turn(self, times: int) -> None:
        for _ in range(times):
            if self.open:
                self.engine.turn()

    def cancel(self) -> None:
        if self.open:
            number = self.random.choice(self.open)
            self.engine.cancel(number)
            self.cancelled[number] = len(self.engine.said.deltas.get(number, []))

    def rest(self) -> None:
        """Let all end, and the engine find out that it has nothing to do."""
        self.engine.until_ended(*self.open)
        # Lest it was at rest before: it says so once.
        self.engine.answer(tiny.request(PROMPTS[0], 1))
        self.engine.rest()


@pytest.mark.parametrize("seed", range(6))
def test_whatever_comes_and_goes_every_sequence_says_what_it_says_alone(
    seed: int, base: Path, six: list[Path], oracle: Oracle
) -> None:
    with tiny.driven(base, max_adapters=SLOTS, max_concurrency=PLACES) as engine:
        story = Story(engine, random.Random(seed), six)
        for _ in range(EVENTS):
            story.event()
        story.rest()
        assert not engine.said.errors
        assert "0 running, 0 waiting" in repr(engine)
        assert "leased {}" in repr(engine)
        for number, said in story.cancelled.items():
            assert len(engine.said.deltas.get(number, [])) == said, "it went on after its end"
        finished = {number: told for number, told in story.asked.items() if number not in story.cancelled}
        assert len(finished) > EVENTS / 5
        assert max(len(frame) for frame in engine.said.frames) == PLACES
        for number, (ask, tokens) in finished.items():
            assert engine.tokens[number] == oracle.tokens(ask)[:tokens], (number, ask)
            usage = engine.said.last(number).usage
            assert usage is not None
            assert usage.completion == len(oracle.tokens(ask)[:tokens])


@pytest.fixture
def engine(base: Path) -> Iterator[Driven]:
    with tiny.driven(base, max_adapters=1) as engine:
        yield engine


def test_two_names_for_one_content_share_a_slot(
    engine: Driven, six: list[Path], tmp_path: Path, oracle: Oracle
) -> None:
    copied = shutil.copytree(six[3], tmp_path / "another")
    sequences = [engine.ask(tiny.request(PROMPTS[1], LONGEST, over=over)) for over in (six[3], copied)]
    engine.until_ended(*sequences)
    for sequence in sequences:
        assert engine.tokens[sequence] == oracle.tokens(Ask(1, six[3], None))
    # There is one slot: were they two adapters, the second would have waited for the first to end.
    assert max(len(frame) for frame in engine.said.frames) == 2


def test_a_name_with_other_weights_is_another_adapter(
    engine: Driven, six: list[Path], tmp_path: Path, oracle: Oracle
) -> None:
    """The slot still holds the old one when the new one is asked for, and the new one when the old one returns."""
    folder = shutil.copytree(six[1], tmp_path / "mine")
    for other in (six[1], six[4], six[3], six[1]):
        tiny.overwrite_adapter(folder, other)
        sequence = engine.ask(tiny.request(PROMPTS[2], LONGEST, over=folder))
        engine.until_ended(sequence)
        assert engine.tokens[sequence] == oracle.tokens(Ask(2, other, None))


def test_a_stream_ends_with_the_weights_it_began_with(
    base: Path, six: list[Path], tmp_path: Path, oracle: Oracle
) -> None:
    folder = shutil.copytree(six[1], tmp_path / "mine")
    with tiny.driven(base, max_adapters=2) as engine:
        old = engine.ask(tiny.request(PROMPTS[2], LONGEST, over=folder))
        engine.until_tokens(old, 3)
        tiny.overwrite_adapter(folder, six[4])
        new = engine.ask(tiny.request(PROMPTS[2], LONGEST, over=folder))
        engine.until_tokens(new, 3)
        assert not engine.said.ended(old)
        engine.until_ended(old, new)
        assert engine.tokens[old] == oracle.tokens(Ask(2, six[1], None))
        assert engine.tokens[new] == oracle.tokens(Ask(2, six[4], None))


class Slow(Adapters):
    """A reader that does not return before it is let on."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = threading.Event()
        self.let_on = threading.Event()

    def read(self, source: AdapterSource, targets: Targets) -> AdapterWeights:
        self.reading.set()
        assert self.let_on.wait(30)
        return super().read(source, targets)


def test_stream_goes_on_while_an_adapter_is_being_read(base: Path, six: list[Path], oracle: Oracle) -> None:
    where = tiny.source(base)
    reader = Slow()
    with Driven(load(where, lambda done, total: None), where, reader) as engine:
        stream = engine.ask(tiny.request(PROMPTS[3], LONGEST))
        engine.until_tokens(stream, 2)
        cold = engine.ask(tiny.request(PROMPTS[1], LONGEST, over=six[4]))
        assert reader.reading.wait(30)
        engine.until_ended(stream)
        assert cold not in engine.said.deltas
        reader.let_on.set()
        engine.until_ended(cold)
        assert engine.tokens[stream] == oracle.tokens(Ask(3, None, None))
        assert engine.tokens[cold] == oracle.tokens(Ask(1, six[4], None))
