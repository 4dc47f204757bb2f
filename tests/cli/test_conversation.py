from __future__ import annotations

import re
from pathlib import Path

import pytest

from mlx_roster.cli.conversation import (
    COMMANDS,
    Conversation,
    Gathering,
    Listed,
    Misused,
    command,
    completions,
    said,
    value_of,
)
from mlx_roster.cli.terminal import clean

ATLAS, PIRATE, SHOUT = (
    Listed("atlas", None, ("gpt",)),
    Listed("atlas:pirate", "atlas"),
    Listed("scribe:shout", "scribe"),
)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_a_request_has_all_that_was_said() -> None:
    talk = Conversation(name="atlas", system="Be brief.", settings={"temperature": 0})
    assert talk.ask("One?") == {
        "model": "atlas",
        "messages": [{"role": "system", "content": "Be brief."}, user("One?")],
        "temperature": 0,
    }
    talk.answered("1")
    assert talk.ask("Two?")["messages"][1:] == [user("One?"), assistant("1"), user("Two?")]


def test_a_question_without_an_answer_is_forgotten_and_can_be_retried() -> None:
    talk = Conversation()
    talk.ask("One?")
    talk.failed()
    assert talk.request() == {"messages": []}
    assert talk.retried() == "One?"
    talk.ask("One?")
    talk.answered("")
    assert talk.turns == []


def test_retry_forgets_the_last_answer_only() -> None:
    talk = Conversation()
    with pytest.raises(Misused):
        talk.retried()
    for question, answer in (("One?", "1"), ("Two?", "2")):
        talk.ask(question)
        talk.answered(answer)
    assert talk.retried() == "Two?"
    assert talk.request()["messages"] == [user("One?"), assistant("1")]


def test_clear() -> None:
    talk = Conversation(name="atlas", system="Be brief.")
    talk.ask("One?")
    talk.answered("1")
    talk.clear()
    assert talk.request() == {"model": "atlas", "messages": [{"role": "system", "content": "Be brief."}]}
    with pytest.raises(Misused):
        talk.retried()


def test_adapters_over_an_alias_keep_its_words() -> None:
    """An alias may have defaults of its own, which only a request that names it gets."""
    talk = Conversation()
    talk.through("gpt", ATLAS)
    talk.adapted("pirate", PIRATE)
    assert (talk.name, talk.adapter) == ("gpt", "pirate")
    talk.adapted("french", Listed("atlas:french", "atlas"))
    assert (talk.name, talk.adapter) == ("gpt", "french")
    talk.adapted(None, ATLAS)
    assert (talk.name, talk.adapter) == ("gpt", None)


def test_adapters_over_an_adapter_are_the_bases() -> None:
    talk = Conversation()
    talk.through("atlas:pirate", PIRATE)
    talk.adapted(None, ATLAS)
    assert (talk.name, talk.adapter) == ("atlas", None)
    talk.through("captain", PIRATE)
    talk.adapted("french", Listed("atlas:french", "atlas"))
    assert (talk.name, talk.adapter) == ("atlas", "french")


def test_adapters_over_the_servers_default() -> None:
    talk = Conversation(served=ATLAS)
    talk.adapted("pirate", PIRATE)
    assert talk.request() == {"model": "atlas", "adapters": "pirate", "messages": []}


def test_another_model_ends_an_adapter() -> None:
    talk = Conversation(served=ATLAS)
    talk.adapted("pirate", PIRATE)
    talk.through("scribe:shout", SHOUT)
    assert talk.request() == {"model": "scribe:shout", "messages": []}


def test_settings() -> None:
    talk = Conversation()
    assert talk.set("") == "nothing is set"
    assert talk.set("temperature 0.2") == "temperature is 0.2"
    assert talk.set('stop ["a", "b"]') == 'stop is ["a", "b"]'
    assert talk.set("reasoning_effort low") == 'reasoning_effort is "low"'
    assert talk.settings == {"temperature": 0.2, "stop": ["a", "b"], "reasoning_effort": "low"}
    talk.set("stop none")
    talk.set("temperature")
    assert talk.set("") == 'reasoning_effort "low"'


@pytest.mark.parametrize("name", ["model", "adapters", "messages", "stream", "stream_options", "n"])
def test_fields_that_are_the_talks_own(name: str) -> None:
    talk = Conversation()
    with pytest.raises(Misused, match=name):
        talk.set(f"{name} 3")
    assert talk.settings == {}


def test_values() -> None:
    assert [value_of(text) for text in ("1", "0.5", "true", "x y", "[" * 100_000)][:4] == [1, 0.5, True, "x y"]


def test_commands() -> None:
    assert command("/model a:b") == ("/model", "a:b")
    assert command("/quit") == ("/exit", "")
    assert command("How are you?") is None
    assert command("/etc/hosts\nis a file") is None
    assert command("//etc is a folder") is None
    assert said("//etc is a folder") == "/etc is a folder"
    with pytest.raises(Misused, match="/frobnicate"):
        command("/frobnicate now")


def test_lines_that_make_one_message() -> None:
    gathering = Gathering()
    assert gathering.feed("one line") == "one line"
    assert gathering.feed("first \\") is None
    assert gathering.open
    assert gathering.feed("second") == "first \nsecond"
    assert gathering.feed('"""a') is None
    assert gathering.feed("") is None
    assert gathering.feed("b \\") is None
    assert gathering.feed('c"""') == "a\n\nb \\\nc"
    assert gathering.feed('"""whole"""') == "whole"
    assert not gathering.open


def test_halves_of_characters_are_not_sent() -> None:
    """They come from a terminal or a pipe whose bytes are no UTF-8."""
    talk = Conversation(system="\udcff")
    assert [message["content"] for message in talk.ask("a\udc80")["messages"]] == ["\ufffd", "a\ufffd"]


def test_completions() -> None:
    models = [ATLAS, PIRATE, SHOUT]
    assert completions("/mod", models, None) == ["/model ", "/models"]
    assert completions("/model at", models, None) == ["atlas", "atlas:pirate"]
    assert completions("/adapter ", models, ATLAS) == ["pirate", "none"]
    assert completions("/adapter ", models, None) == []
    assert completions("hello", models, ATLAS) == []


def test_what_a_terminal_would_obey_is_taken_out() -> None:
    assert clean("a\x1b[31mb\x9b2Jc\x07\x08\r\n\td\x7f\x00") == "a[31mb2Jc\n\td"
    assert clean("\x1b]0;title\x07 \x1bPq\x1b\\") == "]0;title Pq\\"
    assert (
        clean("half \ud83d, whole \N{GRINNING FACE} é") == "half \N{REPLACEMENT CHARACTER}, whole \N{GRINNING FACE} é"
    )


def test_every_command_of_a_talk_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    documented = re.findall(r"^\| `(/\w+)", page, re.MULTILINE)
    assert documented == list(COMMANDS)
