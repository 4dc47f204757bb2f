from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_roster.config.units import Share, format_bytes, parse_percentage, parse_size


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
