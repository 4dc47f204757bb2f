"""The prompt cache as a client sees it: in `usage`, and in nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from mlx_roster.demo import directory
from tests.serving import Server, serving

QUESTION = {"role": "user", "content": "What is the capital of France?"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    demo, path = directory(), tmp_path_factory.mktemp("cached") / "roster.yaml"
    path.write_text(
        f"""
memory: {{budget: 75%}}
models:
  atlas: {{source: {demo}/models/atlas, adapters: {{pirate: {demo}/adapters/pirate, french: {demo}/adapters/french}}}}
  forgetful: {{source: {demo}/models/atlas, prompt_cache: {{entries: 0}}}}
  penniless: {{source: {demo}/models/atlas, prompt_cache: {{budget: 0}}}}
"""
    )
    with serving("serve", str(path)) as server:
        yield server


def chat(client: openai.OpenAI, model: str, *messages: dict[str, str]) -> tuple[str, int, int]:
    """The answer, the tokens of the prompt, and those of them that were cached."""
    said: Any = messages
    reply = client.chat.completions.create(model=model, messages=list(said), temperature=0)
    assert reply.usage is not None
    assert reply.usage.prompt_tokens_details is not None
    cached = reply.usage.prompt_tokens_details.cached_tokens
    assert cached is not None
    return reply.choices[0].message.content or "", reply.usage.prompt_tokens, cached


def test_turns_grow_on_what_is_cached_and_answers_are_the_same(server: Server) -> None:
    client = server.client()
    first, prompt, cached = chat(client, "atlas", QUESTION)
    assert cached == 0
    assert chat(client, "atlas", QUESTION) == (first, prompt, prompt - 1)
    turns = [QUESTION, {"role": "assistant", "content": first}, QUESTION]
    second, longer, more = chat(client, "atlas", *turns)
    assert prompt < more < longer
    assert chat(client, "forgetful", *turns) == (second, longer, 0)


def test_no_adapter_has_any_of_another(server: Server) -> None:
    client = server.client()
    question = {"role": "user", "content": "What is the capital of Japan?"}
    base, prompt, _ = chat(client, "atlas", question)
    answers = {base}
    for model in ("atlas:pirate", "atlas:french"):
        answer, _, cached = chat(client, model, question)
        assert cached == 0
        assert chat(client, model, question) == (answer, prompt, prompt - 1)
        answers.add(answer)
    assert len(answers) == 3
    assert chat(client, "atlas", question) == (base, prompt, prompt - 1)


@pytest.mark.parametrize("model", ["forgetful", "penniless"])
def test_what_may_keep_nothing_has_nothing(server: Server, model: str) -> None:
    client = server.client()
    for _ in range(2):
        assert chat(client, model, QUESTION)[2] == 0


def test_streams_say_it_too(server: Server) -> None:
    asked: Any = [{"role": "user", "content": "What is the capital of Japan?"}]
    usages = []
    for _ in range(2):
        chunks = server.client().chat.completions.create(
            model="atlas", messages=asked, temperature=0, stream=True, stream_options={"include_usage": True}
        )
        usages.append([chunk.usage for chunk in chunks][-1])
    last = usages[-1]
    assert last is not None
    assert last.prompt_tokens_details is not None
    assert last.prompt_tokens_details.cached_tokens == last.prompt_tokens - 1
