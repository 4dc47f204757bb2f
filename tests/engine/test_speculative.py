"""Drafted answers are those of the model by itself, token for token, whatever else is asked of it meanwhile."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import pytest

from mlx_roster.core import Chat, Delta, DraftSource, Format, Generation, Sampling, Tokens
from mlx_roster.demo import directory
from mlx_roster.loaders.models import load
from tests.engine import tiny
from tests.engine.tiny import Driven
from tests.toys import babbler

ATLAS = directory() / "models" / "atlas"

PLACES = ["France", "Japan", "Peru"]
GREEDY = Sampling(temperature=0.0)
#: So hot that it says anything; and cut back to what it might say.
HOT = Sampling(temperature=1.8, seed=7)
CUT = Sampling(temperature=1.2, top_p=0.95, top_k=40, min_p=0.01, seed=11)


@pytest.fixture(scope="module")
def drafts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Draft models for atlas: one that is always right, one that often is, and one that never is."""
    shelf = tmp_path_factory.mktemp("drafts")
    often = shutil.copytree(ATLAS, shelf / "often")
    weights: Any = mx.load(str(ATLAS / "model.safetensors"))
    mx.random.seed(3)
    noisy = {name: value + 0.02 * mx.random.normal(value.shape) for name, value in weights.items()}
    mx.save_safetensors(str(often / "model.safetensors"), noisy)
    return {"always": ATLAS, "often": often, "never": babbler(shelf / "never")}


def engine(model: Path, *drafts: tuple[str, Path, int], kv_bits: int | None = None, **limits: Any) -> Driven:
    sources = tuple(DraftSource(name, str(path), tokens) for name, path, tokens in drafts)
    source = msgspec.structs.replace(tiny.source(model, **limits), drafts=sources, kv_bits=kv_bits)
    return Driven(load(source, lambda done, total: None), source)


@pytest.fixture(scope="module")
def plain() -> Iterator[Driven]:
    """Atlas without any draft."""
    with engine(ATLAS) as one:
        yield one


@pytest.fixture(scope="module")
def drafted(drafts: dict[str, Path]) -> Iterator[Driven]:
    """Atlas with all of its drafts."""
    with engine(ATLAS, *((name, path, 3) for name, path in drafts.items())) as one:
        yield one


def ask(place: str = "France", max_tokens: int = 24, sampling: Sampling = GREEDY, **fields: Any) -> Generation:
    return Generation(Chat(_messages(place)), max_tokens, sampling, **fields)


def _messages(place: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What is the capital of {place}?"}]


def drafting(generation: Generation, draft: str = "always", tokens: int | None = None) -> Generation:
    return msgspec.structs.replace(generation, draft=draft, draft_tokens=tokens)


class Outcome(msgspec.Struct, frozen=True):
    """All that is said of an answer but when."""

    tokens: list[int]
    text: str
    finish: str | None
    counts: tuple[int, int]


def outcome(engine: Driven, number: int) -> Outcome:
    assert number not in engine.said.errors, engine.said.errors[number].message
    last = engine.said.last(number)
    assert last.usage is not None
    counts = (last.usage.prompt, last.usage.completion)
    return Outcome(engine.tokens[number], engine.said.text(number), last.finish, counts)


def answer(engine: Driven, generation: Generation) -> Outcome:
    number = engine.ask(generation)
    engine.until_ended(number)
    return outcome(engine, number)


#: What `plain` has said, by what it was asked.
SAID: dict[bytes, Outcome] = {}


def alone(plain: Driven, generation: Generation) -> Outcome:
    """The answer of atlas by itself."""
    asked = msgspec.json.encode(generation)
    if asked not in SAID:
        SAID[asked] = answer(plain, generation)
    return SAID[asked]


@pytest.mark.parametrize("sampling", [GREEDY, HOT, CUT], ids=["greedy", "hot", "cut"])
@pytest.mark.parametrize("draft", ["always", "often", "never"])
@pytest.mark.parametrize("tokens", [1, 4])
def test_the_same_is_said_as_without(
    plain: Driven, drafted: Driven, draft: str, tokens: int, sampling: Sampling
) -> None:
    for place in PLACES:
        asked = ask(place, sampling=sampling)
        assert answer(drafted, drafting(asked, draft, tokens)) == alone(plain, asked), place


@pytest.mark.parametrize("seed", range(6))
def test_the_same_is_said_to_any_prompt(plain: Driven, drafted: Driven, seed: int) -> None:
    asked = Generation(Tokens(tiny.words(seed, 3 + 7 * seed)), 20, Sampling(temperature=seed % 3 * 0.7, seed=seed))
    assert answer(drafted, drafting(asked, "often", 1 + 3 * seed)) == alone(plain, asked)


def steps(engine: Driven, number: int) -> list[int]:
    """How many tokens each step gave a sequence, where it gave any."""
    frames: list[list[Delta]] = engine.said.frames
    return [count for frame in frames if (count := sum(delta.sequence == number for delta in frame))]


@pytest.mark.parametrize(("tokens", "expected"), [(1, [2, 2, 2, 2, 1]), (3, [4, 4, 1]), (16, [9])])
def test_a_draft_that_is_right_saves_steps(drafted: Driven, tokens: int, expected: list[int]) -> None:
    """Seven tokens of text, a full stop and the end, which may come in the middle of what is drafted."""
    number = drafted.ask(drafting(ask(), "always", tokens))
    drafted.until_ended(number)
    assert steps(drafted, number) == expected
    assert drafted.said.last(number).finish == "stop"


def test_sampled_drafts_are_right_as_well(drafted: Driven) -> None:
    """By its own chance, a draft would hardly ever guess what so hot a model says."""
    number = drafted.ask(drafting(ask(sampling=HOT), "always", 3))
    drafted.until_ended(number)
    assert set(steps(drafted, number)[:-1]) == {4}


def test_the_first_draft_and_its_number_of_tokens_are_the_defaults(drafted: Driven, drafts: dict[str, Path]) -> None:
    number = drafted.ask(ask())
    drafted.until_ended(number)
    assert steps(drafted, number) == [4, 4, 1]
    with engine(ATLAS, ("never", drafts["never"], 2), ("always", ATLAS, 7)) as other:
        number = other.ask(ask())
        other.until_ended(number)
        assert set(steps(other, number)) == {1}
        number = other.ask(drafting(ask(), "always"))
        other.until_ended(number)
        assert steps(other, number) == [8, 1]


@pytest.mark.parametrize("max_tokens", range(1, 9))
def test_no_more_tokens_than_were_asked_for(plain: Driven, drafted: Driven, max_tokens: int) -> None:
    asked = ask(max_tokens=max_tokens)
    assert answer(drafted, drafting(asked, "always", 3)) == alone(plain, asked)


@pytest.mark.parametrize("stop", [("Paris",), (" of Fr",), ("capital", "of"), ("The",), ("e",)])
def test_stop_strings_within_what_is_drafted(plain: Driven, drafted: Driven, stop: tuple[str, ...]) -> None:
    asked = ask(stop=stop)
    one, other = answer(drafted, drafting(asked, "always", 5)), alone(plain, asked)
    assert (one.text, one.finish, one.counts) == (other.text, other.finish, other.counts)
    number = drafted.ask(ask("Japan"))
    drafted.until_ended(number)
    assert drafted.said.text(number) == "The capital of Japan is Tokyo."


def test_an_end_that_does_not_end_it(plain: Driven, drafted: Driven) -> None:
    asked = ask(sampling=Sampling(temperature=0.0, ignore_eos=True))
    assert answer(drafted, drafting(asked, "always", 4)) == alone(plain, asked)


LONG = {"always": Sampling(temperature=1.5, seed=3, ignore_eos=True), "often": Sampling(temperature=0, ignore_eos=True)}


@pytest.mark.parametrize("draft", LONG)
@pytest.mark.parametrize("turns", [0, 1, 2, 5])
def test_others_come_and_go_and_nothing_changes(plain: Driven, drafted: Driven, draft: str, turns: int) -> None:
    """Long enough for it to be alone again, and drafted for once more."""
    asked = ask(max_tokens=60, sampling=LONG[draft])
    others = [ask("Japan", 3), ask("Peru", 5, CUT)]
    expected = alone(plain, asked), [alone(plain, other) for other in others]
    number = drafted.ask(drafting(asked, draft, 2))
    numbers = []
    for other in others:
        for _ in range(turns):
            drafted.turn()
        numbers.append(drafted.ask(drafting(other, "often")))
    drafted.until_ended(number, *numbers)
    assert (outcome(drafted, number), [outcome(drafted, one) for one in numbers]) == expected
    counts = steps(drafted, number)
    if turns:
        assert max(counts[:2]) > 1, counts
    assert 1 in counts
    assert max(counts[-3:]) > 1, counts


def test_a_sequence_that_is_cancelled_leaves_what_was_computed(plain: Driven, drafts: dict[str, Path]) -> None:
    with engine(ATLAS, ("often", drafts["often"], 3)) as drafted:
        for turns in range(6):
            number = drafted.ask(ask(sampling=LONG["often"]))
            for _ in range(turns):
                drafted.turn()
            drafted.cancel(number)
            other = ask("Japan", sampling=CUT)
            assert answer(drafted, other) == alone(plain, other)
        assert drafted.said.last(drafted.ask(ask()) - 1).finish
        again = drafted.ask(ask(sampling=LONG["often"]))
        drafted.until_ended(again)
        usage = drafted.said.last(again).usage
        assert usage is not None
        assert usage.cached == usage.prompt - 1


@pytest.mark.parametrize("turns", [3, 8, 9, 10, 12, 14])
def test_one_that_was_left_alone_in_the_batch_is_cancelled(plain: Driven, drafted: Driven, turns: int) -> None:
    """Before, while and after it comes back to be drafted for."""
    number = drafted.ask(drafting(ask(max_tokens=60, sampling=LONG["often"]), "often", 1))
    drafted.until_tokens(number, 2)
    drafted.until_ended(drafted.ask(ask("Peru", max_tokens=1)))
    for _ in range(turns):
        drafted.turn()
    drafted.cancel(number)
    other = ask("Japan", sampling=CUT)
    assert answer(drafted, other) == alone(plain, other)
    assert not drafted.said.ended(number)


def test_one_that_comes_while_the_prompt_of_another_is_scored(plain: Driven, drafted: Driven) -> None:
    """That is done beside the batch: nobody is alone by that."""
    asked = ask(max_tokens=30, sampling=LONG["often"])
    scored = drafted.ask(Generation(Tokens(tiny.words(2, 1100)), 1, GREEDY, logprobs=0, echo=True))
    while not drafted.measured().kv:
        drafted.turn()
    number = drafted.ask(asked)
    drafted.until_ended(scored)
    assert not drafted.said.ended(number)
    drafted.until_ended(number)
    assert outcome(drafted, number) == alone(plain, asked)


def test_a_second_turn_begins_from_the_first(plain: Driven, drafts: dict[str, Path]) -> None:
    with engine(ATLAS, ("often", drafts["often"], 3)) as drafted:
        first = answer(drafted, ask())
        turns = [*_messages("France"), {"role": "assistant", "content": first.text}, *_messages("Japan")]
        asked = Generation(Chat(turns), 24, GREEDY)
        number = drafted.ask(asked)
        drafted.until_ended(number)
        assert outcome(drafted, number) == alone(plain, asked)
        usage = drafted.said.last(number).usage
        assert usage is not None
        assert usage.cached > first.counts[0]


def test_a_long_prompt_is_taken_in_part_by_part(plain: Driven, drafts: dict[str, Path]) -> None:
    with engine(ATLAS, ("often", drafts["often"], 3)) as drafted:
        asked = Generation(Tokens(tiny.words(1, 600)), 8, LONG["often"])
        number = drafted.ask(asked)
        while not drafted.measured().kv:
            drafted.turn()
        # Who comes now waits for a part of the prompt, and not for all of it.
        other = drafted.ask(ask(max_tokens=2))
        assert number not in drafted.said.deltas
        drafted.until_ended(number, other)
        assert outcome(drafted, number) == alone(plain, asked)


@pytest.mark.parametrize(
    "fields",
    [
        {"draft_tokens": 0},
        {"logprobs": 2},
        {"format": Format()},
        {"sampling": Sampling(temperature=0.0, repetition_penalty=1.1)},
        {"sampling": Sampling(temperature=0.0, presence_penalty=0.5)},
        {"sampling": Sampling(temperature=0.0, frequency_penalty=0.5)},
        {"sampling": Sampling(temperature=0.0, logit_bias={5: 1.0})},
        {"sampling": Sampling(temperature=0.0, min_tokens=3)},
        {"sampling": Sampling(temperature=1.0, seed=1, xtc_probability=0.5)},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_cannot_be_drafted_for_is_answered_without(plain: Driven, drafted: Driven, fields: dict[str, Any]) -> None:
    asked = msgspec.structs.replace(ask(max_tokens=8), **fields)
    numbers = [one.ask(asked) for one in (plain, drafted)]
    for one, number in zip((plain, drafted), numbers, strict=True):
        one.until_ended(number)
    assert set(steps(drafted, numbers[1])) == {1}
    assert outcome(drafted, numbers[1]) == outcome(plain, numbers[0])


def test_several_answers_are_answered_without() -> None:
    asked = msgspec.structs.replace(ask(max_tokens=8, sampling=CUT), n=2)
    outcomes = []
    for drafts in ((), (("always", ATLAS, 3),)):
        with engine(ATLAS, *drafts) as one:
            first = one.ask(asked)
            one.until_ended(first, first + 1)
            outcomes.append([outcome(one, number) for number in (first, first + 1)])
            assert set(steps(one, first)) == {1}
    assert outcomes[0] == outcomes[1]


def test_an_adapter_is_answered_without(plain: Driven, drafted: Driven) -> None:
    pirate = tiny.adapter(directory() / "adapters" / "pirate")
    asked = msgspec.structs.replace(ask(), adapter=pirate)
    number = drafted.ask(asked)
    drafted.until_ended(number)
    assert set(steps(drafted, number)) == {1}
    assert outcome(drafted, number) == alone(plain, asked)


def test_a_sequence_too_long_for_its_draft_goes_on_without(plain: Driven, tmp_path: Path) -> None:
    short = shutil.copytree(ATLAS, tmp_path / "short")
    config = json.loads((short / "config.json").read_text()) | {"max_position_embeddings": 40}
    (short / "config.json").write_text(json.dumps(config))
    asked = ask(max_tokens=60, sampling=LONG["always"])
    with engine(ATLAS, ("short", short, 3)) as drafted:
        number = drafted.ask(asked)
        drafted.until_ended(number)
        assert outcome(drafted, number) == alone(plain, asked)
        counts = steps(drafted, number)
        assert counts[0] == 4
        assert set(counts[-20:]) == {1}


@pytest.mark.parametrize(("large", "small"), [("mamba2", "llama"), ("llama", "mamba2"), ("gemma3_text", "llama")])
def test_models_whose_caches_cannot_be_cut_back_are_answered_without(tmp_path: Path, large: str, small: str) -> None:
    model, draft = (tiny.write_model(tmp_path / family, family) for family in (large, small))
    asked = tiny.request(max_tokens=6)
    with engine(model, ("draft", draft, 3)) as drafted, engine(model) as plain:
        number = drafted.ask(asked)
        drafted.until_ended(number)
        assert set(steps(drafted, number)) == {1}
        assert outcome(drafted, number) == answer(plain, asked)


@pytest.mark.parametrize("vocabulary", [300, 400])
def test_logits_of_another_width(tmp_path: Path, vocabulary: int) -> None:
    """Models of one family are often padded differently. A prompt may have ids that the draft model does not know."""
    model = tiny.write_model(tmp_path / "model")
    draft = tiny.write_model(tmp_path / "draft", seed=1, vocab_size=vocabulary)
    asked = tiny.request([*tiny.words(5, 12), 320, 310], max_tokens=20, temperature=1.0, seed=4)
    with engine(model, ("draft", draft, 3)) as drafted, engine(model) as plain:
        assert answer(drafted, asked) == answer(plain, asked)


def test_quantized_caches_can_be_cut_back(drafts: dict[str, Path]) -> None:
    asked = ask(max_tokens=40, sampling=LONG["often"])
    with (
        engine(ATLAS, ("often", drafts["often"], 3), kv_bits=8) as drafted,
        engine(ATLAS, kv_bits=8) as plain,
    ):
        number = drafted.ask(asked)
        drafted.turn()
        drafted.until_ended(number)
        assert outcome(drafted, number) == answer(plain, asked)
        assert max(steps(drafted, number)) > 1
