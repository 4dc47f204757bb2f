"""Text as it grows: exact to the byte, and cut off at the first stop string."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mlx_roster.engine.detokenizing import ByteDetokenizer, WindowDetokenizer, detokenizers
from mlx_roster.engine.stops import Stops
from mlx_roster.engine.text import TextStream, prompt_text, token_bytes
from tests.engine import tiny


def fast(backend: Tokenizer) -> PreTrainedTokenizerFast:
    backend.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)


def sentencepiece(strip: bool = True) -> PreTrainedTokenizerFast:
    """Llama 2's kind: words marked by U+2581, bytes as <0xNN>."""
    words = [
        "<unk>",
        "▁Hello",
        "▁world",
        "Hello",
        "▁",
        "lo",
        "!",
        "é",
        "▁▁",
        *(f"<0x{byte:02X}>" for byte in range(256)),
    ]
    merged = [*words, *"▁Helowrd", "a"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(merged))}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    return fast(backend)


def byte_level() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken("<tool>"), AddedToken("你!")])
    return fast(backend)


def word_piece() -> PreTrainedTokenizerFast:
    words = ["[UNK]", "play", "##ing", "##s", "a", "tennis", "!", "日", "##本"]
    backend = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    return fast(backend)


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "sentencepiece": sentencepiece,
    "sentencepiece without strip": lambda: sentencepiece(strip=False),
    "byte level": byte_level,
    "word piece": word_piece,
}
TOKENIZERS = {kind: make() for kind, make in KINDS.items()}


def streamed(tokenizer: Any, ids: list[int]) -> list[str]:
    """The text of each id, and what is left at the end."""
    stream = detokenizers(tokenizer)()
    return [*(stream.add(token) for token in ids), stream.finish()]


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("sentencepiece", ByteDetokenizer), ("byte level", ByteDetokenizer), ("word piece", WindowDetokenizer)],
)
def test_usual_tokenizers_take_the_quick_way(kind: str, expected: type) -> None:
    assert isinstance(detokenizers(TOKENIZERS[kind])(), expected)


@pytest.mark.parametrize("kind", ["sentencepiece", "sentencepiece without strip", "byte level"])
@given(text=st.text(max_size=20))
def test_text_comes_out_as_it_went_in(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    if kind != "byte level":
        text = text.replace("▁", " ")
    ids = ids_of(tokenizer, text)
    assert "".join(streamed(tokenizer, ids)) == text


@given(ids=st.lists(st.integers(0, 262), max_size=30))
def test_any_ids_of_a_byte_level_tokenizer_read_as_it_decodes_them(ids: list[int]) -> None:
    tokenizer = TOKENIZERS["byte level"]
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@given(ids=st.lists(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8]), min_size=1, max_size=20))
def test_words_of_a_sentencepiece_tokenizer_keep_the_first_space(ids: list[int]) -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    text = "".join(streamed(tokenizer, ids))
    assert text == TOKENIZERS["sentencepiece without strip"].decode(ids)
    assert text.removeprefix(" ") == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["sentencepiece", "byte level"])
def test_character_split_over_tokens_appears_once_complete(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = ids_of(tokenizer, "🎉")
    assert len(ids) == 4
    assert streamed(tokenizer, ids) == ["", "", "", "🎉", ""]


@pytest.mark.parametrize("kind", ["sentencepiece", "byte level"])
def test_character_cut_off_by_the_end_is_flushed_as_a_replacement(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    assert streamed(tokenizer, ids_of(tokenizer, "🎉")[:3]) == ["", "", "", "\ufffd"]


def test_special_tokens_are_left_out_and_added_ones_are_not() -> None:
    tokenizer = TOKENIZERS["byte level"]
    ids = ids_of(tokenizer, "<s>a<tool>你!</s>")
    assert "".join(streamed(tokenizer, ids)) == "a<tool>你!"


def test_ids_that_the_tokenizer_does_not_know_have_no_text() -> None:
    assert "".join(streamed(TOKENIZERS["byte level"], [10_000, 5, 20_000])) != ""


def test_window_decodes_what_depends_on_neighbours() -> None:
    tokenizer = TOKENIZERS["word piece"]
    ids = ids_of(tokenizer, "playing tennis plays 日本 !")
    assert "".join(streamed(tokenizer, ids)) == " playing tennis plays 日本!"


@pytest.mark.parametrize("kind", ["sentencepiece", "byte level"])
@given(text=st.text(max_size=20))
def test_window_agrees_with_the_quick_way(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    text = text.replace("▁", " ").replace("\ufffd", "?")
    stream = WindowDetokenizer(tokenizer)
    said = "".join([*(stream.add(token) for token in ids_of(tokenizer, text)), stream.finish()])
    assert said == text


def test_window_keeps_the_first_space_after_special_tokens() -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    stream = WindowDetokenizer(tokenizer)
    start = tokenizer.convert_tokens_to_ids("<s>")
    assert isinstance(start, int)
    hello, world = ids_of(tokenizer, " Hello world"), 2
    assert stream.add(start) == ""
    assert "".join(stream.add(token) for token in [*hello[:-1], world]).startswith(" ")


def test_window_does_not_grow_with_the_text() -> None:
    stream = WindowDetokenizer(TOKENIZERS["word piece"])
    for _ in range(200):
        stream.add(1)
    assert len(stream._window) < 5


def test_window_gives_up_on_bytes_that_never_make_a_character() -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    stream = WindowDetokenizer(tokenizer)
    broken = tokenizer.convert_tokens_to_ids("<0xFF>")
    assert isinstance(broken, int)
    shown = [stream.add(broken) for _ in range(4)]
    assert "".join(shown) == "\ufffd" * 4


def test_tokenizer_with_a_decode_of_its_own_is_asked() -> None:
    class Shouting(PreTrainedTokenizerFast):
        def decode(self, *args: Any, **kwargs: Any) -> Any:
            return super().decode(*args, **kwargs).upper()

    tokenizer = Shouting(tokenizer_object=byte_level().backend_tokenizer)
    assert "".join(streamed(tokenizer, ids_of(tokenizer, "hello"))) == "HELLO"


def test_detokenizing_costs_microseconds(tmp_path: Path) -> None:
    tokenizer = tiny.write_tokenizer(tmp_path)
    stream = TextStream(detokenizers(tokenizer)(), ())
    ids = ids_of(tokenizer, "the quick brown fox 你好") * 1000
    start = time.perf_counter()
    for token in ids:
        stream.add(token)
    # A hundred times what it takes, so that only a change of kind fails.
    assert (time.perf_counter() - start) / len(ids) < 50e-6


def cut(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    """What is shown for each piece and, where nothing stopped it, at the end."""
    matcher = Stops(stops)
    shown = []
    for piece in pieces:
        text, stopped = matcher.add(piece)
        shown.append(text)
        if stopped:
            return shown, True
    return [*shown, matcher.finish()], False


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "stopped"),
    [
        (["END"], ["one END two"], ["one "], True),
        (["END"], ["one E", "N", "D two"], ["one ", "", ""], True),
        (["END"], ["one E", "N", "G two"], ["one ", "", "ENG two", ""], False),
        (["END"], ["one EN"], ["one ", "EN"], False),
        # Only the longest end that may begin a stop string is held back.
        (["aab"], ["aaaaa"], ["aaa", "aa"], False),
        (["aab"], ["aaaaab"], ["aaa"], True),
        # A stop string that another begins with, or contains: the first to be complete counts.
        (["stop", "stopping"], ["a stopping"], ["a "], True),
        (["abcd", "bc"], ["xabcd"], ["xa"], True),
        (["abcd", "bc"], ["xab", "xbc"], ["x", "abx"], True),
        # Of those complete with the same character, the longest.
        (["c", "abc"], ["xabc"], ["x"], True),
        (["\n\n"], ["a\n", "b\n", "\nc"], ["a", "\nb", ""], True),
        (["é"], ["caf", "é!"], ["caf", ""], True),
    ],
)
def test_stop_strings(stops: list[str], pieces: list[str], shown: list[str], stopped: bool) -> None:
    assert cut(stops, pieces) == (shown, stopped)


def plainly(stops: list[str], text: str) -> tuple[str, bool]:
    """The rule, the slow way: the shortest text that ends with a stop string, without the longest that it ends with."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4),
    pieces=st.lists(st.text("abc", max_size=5), max_size=8),
)
def test_stop_strings_do_not_depend_on_how_the_text_is_cut(stops: list[str], pieces: list[str]) -> None:
    shown, stopped = cut(stops, pieces)
    assert ("".join(shown), stopped) == plainly(stops, "".join(pieces))


@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4),
    pieces=st.lists(st.text("abc", min_size=1, max_size=3), max_size=8),
)
def test_no_more_is_held_back_than_may_begin_a_stop_string(stops: list[str], pieces: list[str]) -> None:
    matcher = Stops(stops)
    text = shown = ""
    for piece in pieces:
        text += piece
        added, stopped = matcher.add(piece)
        shown += added
        if stopped:
            return
        held = text[len(shown) :]
        begins = [end for end in range(1, len(text) + 1) if any(stop.startswith(text[-end:]) for stop in stops)]
        assert len(held) == max(begins, default=0)


def test_ten_thousand_stop_strings_cost_little() -> None:
    stops = [f"{'na' * (index % 40)}{index}" for index in range(10_000)]
    start = time.perf_counter()
    matcher = Stops(stops)
    for _ in range(500):
        assert matcher.add("nananana batman ") == ("nananana batman ", False) or True
    assert time.perf_counter() - start < 5


def test_long_stop_string_that_nearly_matches_costs_little() -> None:
    start = time.perf_counter()
    assert cut(["a" * 5000 + "b"], ["a" * 5000, "c"]) == (["", "a" * 5000 + "c", ""], False)
    assert time.perf_counter() - start < 5


def test_stream_stops_and_says_so() -> None:
    tokenizer = TOKENIZERS["byte level"]
    stream = TextStream(detokenizers(tokenizer)(), ("ll",))
    said = []
    for token in ids_of(tokenizer, "hello"):
        said.append(stream.add(token))
        if stream.stopped:
            break
    assert said == ["h", "e", "", ""]


def test_stream_flushes_what_it_held_at_the_end() -> None:
    tokenizer = TOKENIZERS["byte level"]
    stream = TextStream(detokenizers(tokenizer)(), ("\ufffd!", "e!"))
    said = [stream.add(token) for token in [*ids_of(tokenizer, "he"), *ids_of(tokenizer, "🎉")[:2]]]
    assert said == ["h", "", "", ""]
    assert stream.finish() == "e\ufffd"
    assert not stream.stopped


def test_stop_string_completed_by_the_flush_is_a_stop() -> None:
    tokenizer = TOKENIZERS["byte level"]
    stream = TextStream(detokenizers(tokenizer)(), ("\ufffd",))
    assert stream.add(ids_of(tokenizer, "🎉")[0]) == ""
    assert (stream.finish(), stream.stopped) == ("", True)


def test_stop_strings_are_not_looked_for_in_the_first_tokens() -> None:
    tokenizer = TOKENIZERS["byte level"]
    stream = TextStream(detokenizers(tokenizer)(), ("el", "lo"), 2)
    # One that would begin in them is none.
    said = [stream.add(token) for token in ids_of(tokenizer, "hello")]
    assert (said, stream.stopped) == (["h", "e", "", "l", ""], True)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_of_any_token(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    spell = token_bytes(tokenizer)
    start = tokenizer.convert_tokens_to_ids("<s>")
    assert isinstance(start, int)
    assert spell(start) == b"<s>"
    assert spell(10_000) == b""
    assert spell(ids_of(tokenizer, "a")[0]).strip() == b"a"


@pytest.mark.parametrize("kind", ["sentencepiece", "byte level"])
def test_bytes_of_tokens_make_the_text(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    spell = token_bytes(tokenizer)
    ids = ids_of(tokenizer, "a 🎉é")
    assert len(spell(ids[-3])) == 1
    assert b"".join(map(spell, ids)) == "a 🎉é".encode()


@pytest.mark.parametrize("kind", ["sentencepiece", "byte level"])
def test_prompt_of_ids_reads_as_it_decodes(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    assert prompt_text(tokenizer, ids_of(tokenizer, "<s>a 🎉 , b</s>")) == "<s>a 🎉 , b</s>"
