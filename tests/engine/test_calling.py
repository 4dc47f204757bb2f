"""Reasoning and calls of a running engine: what is said of them, when it ends, and why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from mlx_roster.core import Chat, Generation, Sampling, Tools
from tests.engine import tiny
from tests.engine.speech import TOOLS, Said, spec
from tests.engine.tiny import Driven
from tests.toys import scripted

CALL = '<tool_call>\n{"name": "now", "arguments": {"zone": "É"}}\n</tool_call>'
ANSWER = f"<think>\nIt rains?\n</think>\n\nLet me see.\n{CALL}"
BROKEN = "<tool_call>\n{'name': 'now'}\n</tool_call>"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    folder = scripted(tmp_path_factory.mktemp("calling") / "caller", ANSWER, BROKEN, thinking=True)
    with tiny.driven(folder) as engine:
        yield engine


def said(engine: Driven, tools: Tools | None = TOOLS, turns: int = 1, **asked: Any) -> tuple[Said, Any]:
    """What is said in all, and the last Delta."""
    messages = [{"role": "user", "content": "Rain?"}]
    messages += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Now?"}] * (turns - 1)
    asked = {"max_tokens": 200, **asked}
    number = engine.ask(Generation(Chat(messages), sampling=Sampling(temperature=0), tools=tools, **asked))
    engine.until_ended(number)
    assert number not in engine.said.errors
    whole = Said()
    for delta in engine.said.deltas[number]:
        whole.take(delta.text, delta.aside and (delta.aside.reasoning, delta.aside.calls))
    return whole, engine.said.last(number)


def test_call_ends_with_its_reason(engine: Driven) -> None:
    whole, last = said(engine)
    assert whole.key() == ("Let me see.\n", "It rains?", [("now", '{"zone": "É"}')])
    assert last.finish == "tool_calls"
    assert 3 <= last.usage.reasoning < last.usage.completion


def test_without_functions_there_is_no_call(engine: Driven) -> None:
    whole, last = said(engine, None)
    assert whole.content == ANSWER.partition("</think>\n\n")[2]
    assert (whole.calls, last.finish) == ([], "stop")


def test_malformed_call_is_an_answer(engine: Driven) -> None:
    whole, last = said(engine, turns=2)
    assert whole == Said(BROKEN)
    assert last.finish == "stop"


def test_answer_that_is_cut_off_anywhere_is_as_far_as_it_got(engine: Driven) -> None:
    """Wherever `max_tokens` falls, what was said is a beginning of the whole, and the reason is "length"."""
    whole, last = said(engine)
    for tokens in range(1, last.usage.completion - 1):
        part, end = said(engine, max_tokens=tokens)
        assert end.finish == "length"
        assert whole.reasoning.startswith(part.reasoning.rstrip("\n\ufffd"))
        assert part.content in ANSWER
        for (name, arguments), (_, all_of_them) in zip(part.calls, whole.calls, strict=False):
            assert name == "now"
            assert all_of_them.startswith(arguments.rstrip("\ufffd"))


def test_without_parallel_calls_the_sequence_ends_with_the_first(engine: Driven) -> None:
    whole, last = said(engine, Tools(TOOLS.specs, parallel=False))
    assert len(whole.calls) == 1
    assert last.finish == "tool_calls"


def test_stop_string_in_a_call_stops_nothing(engine: Driven) -> None:
    assert said(engine, stop=("zone", "rains"))[0].key() == said(engine)[0].key()
    whole, last = said(engine, stop=("see",))
    assert (whole.content, whole.calls, last.finish) == ("Let me ", [], "stop")


@pytest.fixture(scope="module")
def toy() -> Iterator[Driven]:
    with tiny.driven(Path(__file__).parents[1] / "assets" / "caller") as engine:
        yield engine


@pytest.mark.parametrize("choice", ["required", "named"])
def test_forced_call_that_is_cut_off_anywhere_is_no_content(toy: Driven, choice: Literal["required", "named"]) -> None:
    tools = Tools(tuple(spec(f"get_{name}", city="string") for name in ("weather", "time")), choice)
    if choice == "named":
        tools = Tools(tools.specs, choice, "get_weather")
    ended = False
    for tokens in range(1, 60, 3):
        whole, last = said(toy, tools, max_tokens=tokens)
        assert whole.content == ""
        assert last.finish == "tool_calls" or last.usage.completion == tokens
        ended = ended or last.finish == "tool_calls"
    assert ended
    assert whole.calls[0][0] in ("get_weather", "get_time")
