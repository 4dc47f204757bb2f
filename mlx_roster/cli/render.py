"""What the admin API says, for people. Takes its JSON as it comes."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlx_roster.config.units import format_bytes

_COLUMNS: tuple[str, ...] = (
    "model",
    "state",
    "leases",
    "queued",
    "bytes (estimate)",
    "expires in",
    "pinned",
    "last event",
)
_FIGURES = frozenset({"leases", "queued", "bytes (estimate)", "expires in", "bytes", "expires"})

#: What is left of them on a terminal that is not wide enough, and in which order these go where it is narrower still.
_NARROW = ("model", "state", "leases", "queued", "bytes", "expires", "last event")
_DISPENSABLE = ("last event", "expires", "queued", "leases")

#: Columns lie so far apart. A last event of fewer characters than these tells nothing.
_GAP = 2
_WORTH_READING = 16

#: What a reload may have changed.
_RELOADED = ("added", "changed", "removed", "settings")

#: Fields of a change: those that are bytes, and those that only tell one request or worker from another.
_BYTES = frozenset({"bytes", "held", "committed", "budget", "reserved", "measured", "growth", "kv", "bank"})
_NUMBERS = frozenset({"ticket", "serial", "job"})

#: Wider than any line: what goes into a pipe is not wrapped.
_ENDLESS = 10_000


def show(overview: dict[str, Any], console: Console) -> None:
    """Every model with something to say, a line each, and the budget. What a terminal has no room for is left out."""
    models = overview["models"]
    if not models:
        _lines(["nothing is loaded", *footer(overview)], console)
        return
    columns, rows = _COLUMNS, [_row(model) for model in models]
    narrow = console.is_terminal and _width(columns, rows) > console.width
    if narrow:
        columns, rows = _cut(_NARROW, [_narrow_row(model) for model in models], console.width)
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in _FIGURES else "left")
    for row in rows:
        # Text: names in square brackets are no markup.
        table.add_row(*map(Text, row))
    aligned = io.StringIO()
    Console(file=aligned, width=_ENDLESS).print(table)
    head, *lines = aligned.getvalue().splitlines()
    for line, style in ((head, "bold"), *((line, "") for line in lines)):
        if console.is_terminal:
            console.print(Text(line.rstrip(), style), no_wrap=True, overflow="ellipsis")
        else:
            _say(line.rstrip(), console)
    if narrow:
        # Why a model failed is never left out.
        _lines((f"{model['id']}: {_last(model)}" for model in models if model["cooldown"]), console)
    _lines(footer(overview), console)


def footer(overview: dict[str, Any]) -> list[str]:
    """The budget in one line, and what needs somebody's attention."""
    memory, preload, reload = overview["memory"], overview["preload"], overview["reload"]
    lines = [
        f"budget: {format_bytes(memory['held'])} of {format_bytes(memory['budget'])} held, "
        f"{format_bytes(memory['committed'])} promised"
    ]
    if preload["done"] + len(preload["failed"]) < preload["total"]:
        lines.append(f"preloading: {preload['done']} of {preload['total']}")
    if preload["failed"]:
        lines.append(f"preloads that failed: {', '.join(preload['failed'])}")
    if reload is not None and not reload["ok"]:
        lines.append(f"the last reload, {rough(reload['seconds_ago'])} ago, failed: {_one_line(reload['error'] or '')}")
    return lines


def model(status: dict[str, Any]) -> str:
    """One model's state, in a line."""
    parts = [_state(status)]
    if status["bytes"]["measured"] is not None:
        parts.append(format_bytes(status["bytes"]["measured"]))
    for key, one, many in (("leases", "request runs", "requests run"), ("queued", "request waits", "requests wait")):
        if status[key]:
            parts.append(f"{status[key]} {one if status[key] == 1 else many}")
    if status["pinned"]:
        parts.append("pinned")
    return f"{status['id']}: {', '.join(parts)}"


def reloaded(reload: dict[str, Any]) -> list[str]:
    """What a reload did."""
    lines = [f"{what}: {', '.join(reload[what])}" for what in _RELOADED if reload[what]]
    return [*(lines or ["nothing has changed"]), *reload["notes"]]


def change(what: dict[str, Any]) -> str:
    """A change, in a line."""
    fields = {key: value for key, value in what["fields"].items() if key not in _NUMBERS}
    return " ".join([what["kind"], what["model"] or "-", *(f"{key}={_figure(key, fields[key])}" for key in fields)])


def rough(seconds: float) -> str:
    """A time span with as much precision as anybody wants of it: `5s`, `14m`, `2h`, `3d`."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f}{unit}"
    return f"{seconds:.0f}s"


def _row(status: dict[str, Any]) -> tuple[str, ...]:
    size = status["bytes"]
    return (
        status["id"],
        _state(status),
        str(status["leases"]),
        str(status["queued"]),
        f"{_amount(size['measured'])} ({_amount(size['estimated'])})",
        "-" if status["expires_in"] is None else rough(status["expires_in"]),
        "yes" if status["pinned"] else "-",
        _last(status),
    )


def _narrow_row(status: dict[str, Any]) -> tuple[str, ...]:
    """The same, in the columns of `_NARROW`. An amount that is only estimated begins with `~`."""
    model, state, leases, queued, _, expires, _, last = _row(status)
    measured, estimated = status["bytes"]["measured"], status["bytes"]["estimated"]
    size = f"~{_amount(estimated)}" if measured is None and estimated is not None else _amount(measured)
    return model, f"{state}, pinned" if status["pinned"] else state, leases, queued, size, expires, last


def _cut(
    columns: tuple[str, ...], rows: list[tuple[str, ...]], width: int
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """As many of the columns as `width` has room for; what happened last, which comes last, may itself be cut."""
    room = width - _width(columns[:-1], [row[:-1] for row in rows]) - _GAP
    if room >= _WORTH_READING:
        return columns, [
            (*row[:-1], set_cell_size(row[-1], room - 1) + "…") if cell_len(row[-1]) > room else row for row in rows
        ]
    for name in _DISPENSABLE:
        if _width(columns, rows) <= width:
            break
        place = columns.index(name)
        columns = columns[:place] + columns[place + 1 :]
        rows = [row[:place] + row[place + 1 :] for row in rows]
    return columns, rows


def _width(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> int:
    """Of the lines that these make, in cells of a terminal."""
    widths = [max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]
    return sum(widths) + _GAP * (len(widths) - 1)


def _last(status: dict[str, Any]) -> str:
    events = status["events"]
    return f"{_one_line(events[-1]['what'])}, {rough(events[-1]['seconds_ago'])} ago" if events else ""


def _state(status: dict[str, Any]) -> str:
    state = str(status["state"])
    if status["progress"] and status["progress"][1]:
        done, total = status["progress"]
        return f"{state} {100 * done // total}%"
    return f"{state}, {rough(status['cooldown'])} left" if status["cooldown"] else state


def _amount(size: int | None) -> str:
    return "-" if size is None else format_bytes(size)


def _figure(key: str, value: Any) -> str:
    if key in _BYTES and isinstance(value, int):
        return format_bytes(value).replace(" ", "")
    text = _one_line(str(value))
    return f'"{text}"' if " " in text else text


def _one_line(text: str) -> str:
    """Whatever a server says, it writes no lines of its own and sends nothing to a terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


def _lines(lines: Iterable[str], console: Console) -> None:
    for line in lines:
        _say(line, console)


def _say(line: str, console: Console) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
