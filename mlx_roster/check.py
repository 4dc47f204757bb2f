"""`mlx-roster check`: what each model will cost, and what fits together. Loads nothing, downloads nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlx_roster.config import ModelEntry, Roster
from mlx_roster.config.machine import budget_bytes, check_budget, physical_memory, recommended_working_set
from mlx_roster.config.units import format_bytes
from mlx_roster.errors import ConfigError, LoadFailed
from mlx_roster.loaders.sizes import Sides, adapter_sides, estimate_with
from mlx_roster.loaders.source import cached, check_folder, draft_folders, offline_by_environment
from mlx_roster.reading import too_much

_SIZES = ("weights", "adapters", "kv", "estimated")
_COLUMNS = ("model", "source", *_SIZES, "")

#: A terminal that is too narrow for all of them goes without these, in this order; remarks may be wrapped to so many
#: characters.
_DISPENSABLE = ("kv", "adapters", "source", "weights")
_LEGIBLE = 24


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What one model will take, in bytes. All None where its files are not here to be measured.

    `adapters` is its bank, as large as they can make it, `kv` what is reserved for the KV caches of running requests;
    `estimated` is the sum, with headroom.
    """

    name: str
    source: str
    weights: int | None = None
    adapters: int | None = None
    kv: int | None = None
    estimated: int | None = None
    fits: bool | None = None
    problems: tuple[str, ...] = ()
    remark: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What `check` found, models in the roster's order."""

    budget: int
    working_set: int
    models: tuple[ModelCost, ...]
    #: What would keep a server from starting, beside what is wrong with a model.
    problems: tuple[str, ...] = ()
    #: What is probably not meant.
    remarks: tuple[str, ...] = ()

    @property
    def together(self) -> tuple[str, ...]:
        """The most models that can be loaded at the same time: the smallest ones, up to the budget."""
        chosen, taken = [], 0
        for model in sorted(self.models, key=lambda model: model.estimated or 0):
            if model.estimated is not None and taken + model.estimated <= self.budget:
                chosen.append(model.name)
                taken += model.estimated
        return tuple(model.name for model in self.models if model.name in chosen)

    @property
    def exit_code(self) -> int:
        """1 where a model or an adapter cannot be served as it stands, or nothing can, else 0."""
        return int(bool(self.problems) or any(model.problems or model.fits is False for model in self.models))

    def to_json(self) -> str:
        models = [asdict(model) for model in self.models]
        report = {
            "budget": self.budget,
            "working_set": self.working_set,
            "models": models,
            "together": self.together,
            "problems": self.problems,
            "remarks": self.remarks,
        }
        return json.dumps(report, indent=2)


class _NotHere(Exception):
    """Says what is missing: nothing is wrong with the model, and nothing can be said of it yet."""


def check(roster: Roster) -> Report:
    """Measure every model of `roster` whose files are on this machine."""
    working_set = recommended_working_set()
    budget = budget_bytes(roster.memory, working_set)
    models = tuple(_cost(name, entry, roster, budget) for name, entry in roster.models.items())
    problems, remarks = tuple(_start_problems(roster, models, budget)), tuple(_key_remarks(roster))
    return Report(budget, working_set, models, problems, remarks)


def _start_problems(roster: Roster, models: Iterable[ModelCost], budget: int) -> Iterator[str]:
    try:
        check_budget(budget, physical_memory())
    except ConfigError as error:
        yield error.message
    entries = roster.models
    kept = {
        model.name: model.estimated
        for model in models
        if model.estimated is not None and (entries[model.name].pin or entries[model.name].preload)
    }
    if (problem := too_much(kept, budget)) is not None:
        yield problem


def _key_remarks(roster: Roster) -> Iterator[str]:
    """Keys that open nothing, or less than they say."""
    keys = roster.auth.keys
    # What these allow is known once it is asked for.
    more = roster.discover.hub_cache or roster.unlisted.hub or roster.unlisted.paths
    if roster.auth.unoperated:
        yield "auth.keys: none has the scope admin: nobody can use ps, load, reload and the other commands"
    for key in keys:
        if "infer" not in key.scopes:
            if key.models != ("*",):
                yield f"auth.keys: {key.name} has models, and lacks the scope infer: it opens none"
            continue
        idle = (
            []
            if more
            else [glob for glob in key.models if not any(_opens(glob, *each) for each in roster.models.items())]
        )
        if idle and len(idle) == len(key.models):
            yield f"auth.keys: {key.name} opens no model: none is called {_or(idle)}{_aliased(idle, roster)}"
        elif idle:
            yield f"auth.keys: of {key.name}, no model is called {_or(idle)}{_aliased(idle, roster)}"


def _opens(glob: str, name: str, entry: ModelEntry) -> bool:
    return any(fnmatchcase(found, glob) for found in (name, *(f"{name}:{adapter}" for adapter in entry.adapters)))


def _or(words: Iterable[str]) -> str:
    return " or ".join(words)


def _aliased(globs: Iterable[str], roster: Roster) -> str:
    """Keys go by ids: an alias may come to stand for another model."""
    found = {
        name: None
        for name, entry in roster.models.items()
        for alias in entry.aliases
        if any(fnmatchcase(alias, glob) for glob in globs)
    }
    return f"; aliases do not count, write {_or(found)}" if found else ""


def _cost(name: str, entry: ModelEntry, roster: Roster, budget: int) -> ModelCost:
    sides, problems = _adapters(entry)
    source = entry.source if isinstance(entry.source, str) else _shown(entry.source, roster.base)
    try:
        folder = _folder(entry)
        found = estimate_with(folder, entry, roster.memory.headroom, sides, _drafts(entry))
    except _NotHere as missing:
        if roster.offline or offline_by_environment():
            why = "the roster says offline" if roster.offline else "HF_HUB_OFFLINE is set"
            return ModelCost(name, source, problems=(f"{missing}, and {why}", *problems))
        return ModelCost(name, source, problems=problems, remark=f"{missing}; the first request for it downloads it")
    except LoadFailed as error:
        return ModelCost(name, source, problems=(error.message, *problems))
    fits = found.total <= budget
    return ModelCost(name, source, found.weights, found.bank, found.kv, found.total, fits, problems)


def _folder(entry: ModelEntry) -> Path:
    if isinstance(entry.source, Path):
        check_folder(entry.source)
        return entry.source
    folder = cached(entry.source, entry.revision)
    if folder is None:
        raise _NotHere("not downloaded yet")
    return folder


def _drafts(entry: ModelEntry) -> list[Path]:
    found = []
    for draft, folder in zip(entry.draft, draft_folders(entry), strict=True):
        if folder is None:
            raise _NotHere(f"its draft {draft.name} is not downloaded yet")
        try:
            check_folder(folder)
        except LoadFailed as error:
            raise LoadFailed(f"draft {draft.name}: {error.message}") from error
        found.append(folder)
    return found


def _adapters(entry: ModelEntry) -> tuple[list[Sides], tuple[str, ...]]:
    sides, problems = [], []
    for name, adapter in entry.adapters.items():
        try:
            sides.append(adapter_sides(adapter.source))
        except LoadFailed as error:
            problems.append(f"adapter {name}: {error.message}")
    return sides, tuple(problems)


def _shown(folder: Path, base: Path) -> str:
    return str(folder.relative_to(base)) if folder.is_relative_to(base) else str(folder)


def render(report: Report, console: Console) -> None:
    """Print `report`: a table on a terminal, aligned lines elsewhere."""
    rows = [_row(model, report.budget) for model in report.models]
    if not rows:
        _print_lines(["no model is listed"], console)
    elif console.is_terminal:
        console.print(_table(rows, console.width))
    else:
        _print_lines(_aligned([_COLUMNS, *rows]), console)
    _print_lines(["", *_verdict(report)], console)


def _table(rows: list[tuple[str, ...]], width: int) -> Table:
    """As many of the columns as `width` has room for, whole: two models may differ in the end of their names."""
    widest = {name: max(map(cell_len, cells)) for name, *cells in zip(_COLUMNS, _COLUMNS, *rows, strict=True)}
    widest[""] = min(widest[""], _LEGIBLE)
    shown = list(_COLUMNS)
    for name in _DISPENSABLE:
        if _together(widest, shown) > width:
            shown.remove(name)
    whole = _together(widest, shown) <= width
    table = Table(box=None, pad_edge=False)
    for name in shown:
        justify: Literal["left", "right"] = "right" if name in _SIZES else "left"
        table.add_column(name, justify=justify, no_wrap=whole and name != "", overflow="fold")
    for row in rows:
        # Text: names in square brackets are no markup.
        table.add_row(*(Text(cell) for name, cell in zip(_COLUMNS, row, strict=True) if name in shown))
    return table


def _together(widths: Mapping[str, int], columns: Sequence[str]) -> int:
    """Of a line with these columns, which lie two characters apart."""
    return sum(widths[name] + 2 for name in columns) - 2


def _row(model: ModelCost, budget: int) -> tuple[str, ...]:
    sizes = (model.weights, model.adapters, model.kv, model.estimated)
    remarks = [*filter(None, [model.remark]), *model.problems]
    if model.fits:
        remarks.insert(0, "fits")
    elif model.estimated is not None:
        remarks.insert(0, f"never fits: {format_bytes(model.estimated - budget)} over the budget")
    return (
        model.name,
        model.source,
        *("-" if size is None else format_bytes(size) for size in sizes),
        "; ".join(remarks),
    )


def _verdict(report: Report) -> list[str]:
    known = [model for model in report.models if model.estimated is not None]
    together = report.together
    taken = sum(model.estimated or 0 for model in known if model.name in together)
    used = f"{format_bytes(taken)} of {format_bytes(report.budget)}"
    lines = [f"budget: {format_bytes(report.budget)} on a machine that can hold {format_bytes(report.working_set)}"]
    lines += [f"the server would not start: {problem}" for problem in report.problems]
    lines += report.remarks
    if report.budget > report.working_set and not report.problems:
        lines.append("the budget is more than this machine can hold: loads may fail, or slow everything down")
    if unknown := len(report.models) - len(known):
        lines.append(f"not counted, since the files are not here or not whole: {_models(unknown)}")
    if not known:
        return lines
    if not together:
        lines.append("nothing fits")
    elif len(together) == len(known):
        lines.append(f"{'it fits' if len(known) == 1 else f'all {len(known)} models fit together'}: {used}")
    else:
        lines.append(
            f"at most {len(together)} of {len(known)} models fit at once: {', '.join(together)} ({used}); "
            "others are loaded in their place when asked for"
        )
    return lines


def _models(count: int) -> str:
    return "1 model" if count == 1 else f"{count} models"


def _aligned(rows: list[tuple[str, ...]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _print_lines(lines: Iterable[str], console: Console) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
