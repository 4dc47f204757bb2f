"""Where tokens begin in the text that a client was given."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_roster.core import Aside, Scored
from mlx_roster.server.openai.logprobs import speaker

#: Bytes of whole characters, of halves of them, and of none.
BYTES = st.lists(
    st.sampled_from(
        [b"a", b" ", b"\x80", b"\xc3", b"\xa9", b"\xe2\x82", b"\xac", b"\xf0\x9f", b"\xff", "\ufffd".encode()]
    )
    | st.characters(exclude_categories=["Cs"]).map(str.encode),
    max_size=12,
).map(b"".join)


def cut(draw: Any, raw: bytes) -> list[bytes]:
    places = sorted(draw(st.sets(st.integers(0, len(raw)), max_size=8)) | {0, len(raw)})
    return [raw[begin:end] for begin, end in pairwise(places)]


def characters(raw: bytes) -> list[int]:
    """Of each byte, which character of the decoded text it is part of."""
    found: list[int] = []
    begin, index = 0, 0
    while begin < len(raw):
        # The longest beginning that decodes to a single character.
        ends = range(begin + 1, min(begin + 4, len(raw)) + 1)
        end = max(end for end in ends if len(raw[begin:end].decode(errors="replace")) == 1)
        found += [index] * (end - begin)
        begin, index = end, index + 1
    assert index == len(raw.decode(errors="replace"))
    return found


def expected(tokens: list[bytes], first: int = 0) -> list[int]:
    places = characters(b"".join(tokens))
    return [first + places[begin] for begin in accumulate(map(len, tokens[:-1]), initial=0)] if tokens else []


def scored(tokens: list[bytes]) -> list[Scored]:
    return [Scored(1, raw, -1.0) for raw in tokens]


@settings(deadline=None)
@given(st.data())
def test_offsets_are_those_of_the_text(data: st.DataObject) -> None:
    """However tokens cut the bytes, and however late after its text the prompt's come."""
    prompt, answer = cut(data.draw, data.draw(BYTES)), cut(data.draw, data.draw(BYTES))
    opening = b"".join(prompt).decode(errors="replace")
    said = b"".join(answer).decode(errors="replace")
    right = expected(prompt) + expected(answer, len(opening))
    whole = speaker("text")(opening + said, Aside(prompt=scored(prompt), scores=scored(answer)))
    assert whole["text_offset"] == right
    say = speaker("text")
    pieces = [("", Aside(prompt=[one])) for one in scored(prompt)] + [
        ("", Aside(scores=[one])) for one in scored(answer)
    ]
    streamed = [say(opening, Aside()), *(say(text, aside) for text, aside in pieces)]
    assert [offset for piece in streamed for offset in piece["text_offset"]] == right


@pytest.mark.parametrize(
    ("text", "tokens", "offsets"),
    [
        ("\ufffd\ufffdbcd", [b"\x82", b"\x83", b"b", b"c", b"d"], [0, 1, 2, 3, 4]),
        # A special token that the text has not, and one that it has.
        ("Über", [b"<s>", "Ü".encode(), b"ber"], [0, 0, 1]),
        ("<s>Ü b", [b"<s>", b"\xc3", b"\x9c", b" b"], [0, 3, 3, 4]),
        # A blank that only the tokens have.
        ("Hello you there", [b"<s>", b" Hello", b" you", b" there"], [0, 0, 5, 9]),
        # Composed by the tokenizer.
        ("cafe\u0301 crème !", [b"caf\xc3", b"\xa9", b" cr", "è".encode(), b"me", b" !"], [0, 3, 5, 8, 9, 11]),
        # A replacement for each byte, as some tokenizers have it.
        ("\ufffd\ufffda b", [b"\xe2", b"\x82", b"a", b" b"], [0, 0, 2, 3]),
    ],
)
def test_offsets_in_a_prompt_that_is_not_quite_its_tokens(text: str, tokens: list[bytes], offsets: list[int]) -> None:
    answer = scored([b"\xa9", b"!"])
    said = speaker("text")(text + "\ufffd!", Aside(prompt=scored(tokens), scores=answer))
    assert said["text_offset"] == [*offsets, len(text), len(text) + 1]
