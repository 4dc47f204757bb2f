from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_roster.config.units import (
    Multiple,
    Share,
    format_bytes,
    format_duration,
    parse_duration,
    parse_lifetime,
    parse_multiple,
    parse_percentage,
    parse_size,
)

CENTURY = 100 * 365 * 86400.0


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8MiB", 8 * 2**20),
        ("48GiB", 48 * 2**30),
        ("48gib", 48 * 2**30),
        ("1.5GB", 1_500_000_000),
        ("1.1GB", 1_100_000_000),
        ("10 kB", 10_000),
        ("2TiB", 2 * 2**40),
        ("512B", 512),
        (4096, 4096),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "MiB", "8", "8M", "8 Mi", "-1GiB", "1e9B", "1.GiB", "8MiB!", "٨MiB", "9" * 400 + "B", True, 1.5, None, []],
)
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match="should be a size such as 512MiB"):
        parse_size(text)


@pytest.mark.parametrize(("text", "fraction"), [("75%", 0.75), ("12.5 %", 0.125), ("100%", 1.0), ("0%", 0.0)])
def test_percentages(text: str, fraction: float) -> None:
    assert parse_percentage(text) == Share(fraction)


@pytest.mark.parametrize("text", ["75", "%", "-1%", "1e1%", 75, 0.75, None, "101%", "100.1%"])
def test_what_is_no_percentage(text: object) -> None:
    with pytest.raises(ValueError, match=r"percentage such as 10%|100% at most"):
        parse_percentage(text)


def test_a_share_of_something() -> None:
    assert Share(0.75).of(24 * 2**30) == 18 * 2**30


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (12_897_485, "12.3 MiB"),
        (18 * 2**30, "18 GiB"),
        (2**30 - 1, "1 GiB"),
        (5 * 2**50, "5120 TiB"),
    ],
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert format_bytes(count) == text


@given(st.integers(min_value=0, max_value=2**50))
def test_what_is_shown_is_near_what_is_meant(count: int) -> None:
    assert parse_size(format_bytes(count)) == pytest.approx(count, rel=0.06)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90.0),
        ("15m", 900.0),
        ("1.5h", 5400.0),
        ("2 d", 172800.0),
        ("250ms", 0.25),
        ("9ms", 0.009),
        ("0s", 0.0),
        (30, 30.0),
        (0, 0.0),
        (0.5, 0.5),
        ("1000000d", CENTURY),
        (10**12, CENTURY),
        (10**400, CENTURY),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == parse_lifetime(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *("", "s", "30", "30 sec", "-1s", "1e3s", "1.s", "1h30m", "30S", "٣s", "9" * 400 + "s", "never"),
        *(-1, -0.1, math.nan, math.inf, -math.inf, True, None, []),
    ],
)
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match=r"^should be a duration such as 90s, 15m or 1\.5h"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["never", math.inf])
def test_what_never_ends(text: object) -> None:
    assert parse_lifetime(text) == math.inf


@pytest.mark.parametrize("text", ["Never", "no", "forever", math.nan, -math.inf, -1, False, None])
def test_what_is_no_lifetime(text: object) -> None:
    with pytest.raises(ValueError, match=r'^should be a duration such as .*, or "never"$'):
        parse_lifetime(text)


@pytest.mark.parametrize(("text", "factor"), [("3x", 3.0), ("0x", 0.0), ("1.5 x", 1.5), ("999x", 999.0)])
def test_multiples(text: str, factor: float) -> None:
    assert parse_multiple(text) == Multiple(factor)


@pytest.mark.parametrize("text", ["3", "x", "x3", "-3x", "3X", "1000x", 3, 3.0, None])
def test_what_is_no_multiple(text: object) -> None:
    with pytest.raises(ValueError, match="should be a multiple such as 3x"):
        parse_multiple(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.25, "250ms"),
        (1, "1s"),
        (1.5, "1.5s"),
        (90, "90s"),
        (120, "2m"),
        (5400, "90m"),
        (7200, "2h"),
        (86400, "1d"),
        (CENTURY, "36500d"),
        (math.inf, "never"),
    ],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.floats(min_value=0, max_value=CENTURY) | st.integers(min_value=0, max_value=int(CENTURY)) | st.just(math.inf))
def test_a_duration_that_is_shown_is_the_one_that_is_meant(seconds: float) -> None:
    assert parse_lifetime(format_duration(seconds)) == pytest.approx(seconds, rel=1e-15, abs=1e-9)


@given(st.text(max_size=20))
def test_any_text_is_a_duration_or_an_error(text: str) -> None:
    try:
        seconds = parse_lifetime(text)
    except ValueError:
        return
    assert seconds >= 0
