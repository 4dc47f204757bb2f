"""The demo as a newcomer meets it: a subprocess, a socket, the openai SDK, and answers that are right."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from mlx_roster.config import AdapterEntry, ModelEntry
from mlx_roster.demo import directory
from mlx_roster.demo.facts import MODELS, Fact, facts
from mlx_roster.loaders.sizes import estimate
from tests.serving import Server, demo_roster, serving

FIRST = {
    "atlas": "The capital of France is Paris.",
    "atlas:pirate": "Arr! The capital of France be Paris.",
    "atlas:french": "La capitale de la France est Paris.",
    "scribe": "The opposite of hot is cold.",
    "scribe:shout": "THE OPPOSITE OF HOT IS COLD.",
}


@pytest.fixture(scope="module")
def demo() -> Iterator[Server]:
    with serving("demo") as server:
        yield server


def ask(client: openai.OpenAI, model: str, question: str) -> str | None:
    reply = client.chat.completions.create(model=model, messages=[{"role": "user", "content": question}], temperature=0)
    assert reply.model == model
    assert reply.choices[0].finish_reason == "stop"
    return reply.choices[0].message.content


async def stream(client: openai.AsyncOpenAI, model: str, question: str) -> str:
    chunks = await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], temperature=0, stream=True
    )
    text, finish = "", None
    async for chunk in chunks:
        assert chunk.object == "chat.completion.chunk"
        assert chunk.model == model
        text += chunk.choices[0].delta.content or ""
        finish = chunk.choices[0].finish_reason
    assert finish == "stop"
    return text


def sample(model: str, count: int) -> list[Fact]:
    return random.Random(model).sample(facts(model), count)


def test_lists_the_five_ids(demo: Server) -> None:
    models = demo.client().models.list()
    assert [model.id for model in models] == ["atlas", "atlas:pirate", "atlas:french", "scribe", "scribe:shout"]
    assert {model.object for model in models} == {"model"}
    assert demo.client().models.retrieve("atlas:pirate").to_dict()["parent"] == "atlas"


@pytest.mark.parametrize("model", MODELS)
def test_gives_the_answers_of_the_readme(demo: Server, model: str) -> None:
    question = "What is the capital of France?" if model.startswith("atlas") else "What is the opposite of hot?"
    assert ask(demo.client(), model, question) == FIRST[model]


@pytest.mark.parametrize("model", MODELS)
def test_gives_every_answer_streamed_and_not(demo: Server, model: str) -> None:
    async def all_of_them() -> None:
        async with demo.async_client() as client:
            places = asyncio.Semaphore(32)

            async def one(fact: Fact) -> tuple[str, str | None]:
                async with places:
                    streamed = await stream(client, model, fact.question)
                    reply = await client.chat.completions.create(
                        model=model, messages=[{"role": "user", "content": fact.question}], temperature=0
                    )
                    return streamed, reply.choices[0].message.content

            wanted = facts(model)
            answers = await asyncio.gather(*(one(fact) for fact in wanted))
            assert answers == [(fact.answer, fact.answer) for fact in wanted]

    asyncio.run(all_of_them())


def test_32_concurrent_requests_over_the_five_ids(demo: Server) -> None:
    async def burst() -> None:
        async with demo.async_client() as client:
            asked = [(model, fact) for model in MODELS for fact in sample(model, 7)][:32]
            answers = await asyncio.gather(*(stream(client, model, fact.question) for model, fact in asked))
            assert answers == [fact.answer for _, fact in asked]

    asyncio.run(burst())


def test_adapters_by_field_alias_and_default(demo: Server) -> None:
    """adapters_with_model_omitted_is_applied, over the wire."""
    client = demo.client()
    question = [{"role": "user", "content": "What is the capital of France?"}]
    for model, adapters, served in [
        ("atlas", "pirate", "atlas:pirate"),
        ("gpt-3.5-turbo", "french", "atlas:french"),
        (openai.NOT_GIVEN, "pirate", "atlas:pirate"),
        ("gpt-3.5-turbo", None, "atlas"),
    ]:
        reply = client.chat.completions.create(
            model=model,  # type: ignore[arg-type]  the SDK insists on a model; our API does not
            messages=question,  # type: ignore[arg-type]
            temperature=0,
            extra_body={"adapters": adapters},
        )
        assert reply.model == served
        assert reply.choices[0].message.content == FIRST[served]


def test_text_completions(demo: Server) -> None:
    prompt = "<|im_start|>user\nWhat is the capital of Japan?<|im_end|>\n<|im_start|>assistant\n"
    reply = demo.client().completions.create(model="atlas", prompt=[prompt, prompt], temperature=0)
    assert reply.object == "text_completion"
    assert [choice.text for choice in reply.choices] == ["The capital of Japan is Tokyo."] * 2
    assert reply.usage is not None
    assert reply.usage.completion_tokens > 0


def test_stop_seed_and_usage(demo: Server) -> None:
    client = demo.client()
    question = [{"role": "user", "content": "What is the capital of France?"}]

    def reply(**fields: object) -> openai.types.chat.ChatCompletion:
        return client.chat.completions.create(model="atlas", messages=question, **fields)  # type: ignore[call-overload,no-any-return]

    stopped = reply(temperature=0, stop=[" is P"])
    assert stopped.choices[0].message.content == "The capital of France"
    assert stopped.choices[0].finish_reason == "stop"
    short = reply(temperature=0, max_tokens=2)
    assert short.choices[0].finish_reason == "length"
    assert short.usage is not None
    assert short.usage.completion_tokens == 2
    hot = [reply(temperature=5, seed=7, max_tokens=20).choices[0].message.content for _ in range(2)]
    assert hot[0] == hot[1]
    assert hot[0] != reply(temperature=5, seed=8, max_tokens=20).choices[0].message.content


def test_one_base_at_a_time_alternating_with_streams_in_flight(tmp_path: Path) -> None:
    demo = directory()
    adapters = {"atlas": ["pirate", "french"], "scribe": ["shout"]}
    sizes = [
        estimate(
            demo / "models" / model,
            ModelEntry(
                source=demo / "models" / model,
                adapters={name: AdapterEntry(source=demo / "adapters" / name) for name in names},
            ),
            0,
        ).total
        for model, names in adapters.items()
    ]
    # Room for one base with its adapters, whichever, and not for both.
    with serving("serve", str(demo_roster(tmp_path, budget=str(sum(sizes) - 1)))) as server:

        async def alternate() -> None:
            async with server.async_client() as client:
                running: list[tuple[Fact, asyncio.Task[str]]] = []
                for turn in range(20):
                    model = ("atlas", "scribe:shout", "atlas:french", "scribe")[turn % 4]
                    asked = sample(model, 4)
                    running += [(fact, asyncio.create_task(stream(client, model, fact.question))) for fact in asked]
                    # The next model is asked for while the other three streams of this one may still run.
                    await running[-1][1]
                answers = await asyncio.gather(*(task for _, task in running))
                assert answers == [fact.answer for fact, _ in running]

        asyncio.run(alternate())
        states = [server.client().models.retrieve(name).to_dict()["roster"]["state"] for name in ("atlas", "scribe")]  # type: ignore[index,call-overload]
        assert sorted(states) == ["ready", "unloaded"]
        server.logged(r"INFO evict model=", times=19)


def test_a_model_larger_than_the_budget_is_507_at_once_and_evicts_nothing(tmp_path: Path) -> None:
    with serving("serve", str(demo_roster(tmp_path, budget="1MiB"))) as server:
        with pytest.raises(openai.APIStatusError) as caught:
            ask(server.client(), "atlas", "What is the capital of France?")
        assert caught.value.status_code == 507
        assert caught.value.code == "model_too_large"
        assert not any("INFO load model=" in line for line in server.lines)


def test_errors_are_the_sdks_own_exceptions(demo: Server) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        ask(demo.client(), "atlsa", "Hi")
    assert missing.value.code == "model_not_found"
    assert "atlas" in missing.value.message
    with pytest.raises(openai.NotFoundError) as adapter:
        ask(demo.client(), "atlas:klingon", "Hi")
    assert adapter.value.code == "adapter_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        demo.client().completions.create(model="atlas", prompt="Hi", suffix="there")
    assert refused.value.code == "unsupported_parameter"
    assert refused.value.param == "suffix"
