"""What is in the Hub cache, as a roster would have it: names, adapters beside their models, and what fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_roster.check import ModelCost, check
from mlx_roster.config import DiscoverSettings, MemorySettings, Roster
from mlx_roster.config.machine import budget_bytes, recommended_working_set
from mlx_roster.config.names import sanitized
from mlx_roster.config.paths import names_folder
from mlx_roster.errors import LoadFailed
from mlx_roster.loaders.discover import FoundAdapter, discover, discover_adapters
from mlx_roster.loaders.sizes import adapter_sides
from mlx_roster.loaders.source import cached


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model for the roster. `source` is what is written of it, and `adapters` are its own by name."""

    name: str
    repo: str
    source: str
    adapters: dict[str, FoundAdapter]
    cost: ModelCost

    @property
    def fits(self) -> bool:
        return self.cost.fits is True and not self.cost.problems


@dataclass(frozen=True, slots=True)
class Inventory:
    """Bytes are of this machine, with a roster's own default budget."""

    budget: int
    working_set: int
    models: tuple[Candidate, ...]
    #: Adapters whose base is not here, or that cannot be read.
    strangers: tuple[FoundAdapter, ...]

    @property
    def fitting(self) -> list[Candidate]:
        return [model for model in self.models if model.fits]

    @property
    def default(self) -> str | None:
        """The largest model that fits: likely the ablest."""
        return max(self.fitting, key=lambda model: model.cost.estimated or 0).name if self.fitting else None

    def summary(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "budget": self.budget,
            "working_set": self.working_set,
            "default_model": self.default,
            "models": [_summary(model) for model in self.models],
            "adapters_without_model": [{"repo": one.repo, "base": one.base} for one in self.strangers],
        }


def taken(base: Path) -> Inventory:
    """What is in the Hub cache now, for a roster file in the folder `base`. Blocks."""
    repos = list(discover(Roster(discover=DiscoverSettings(hub_cache=True))))
    adapters = discover_adapters()
    own = {repo: [one for one in adapters if one.base == repo and _readable(one)] for repo in repos}
    strangers = tuple(one for one in adapters if not any(one in found for found in own.values()))
    names = unique(repos)
    sources = {repo: _source(repo, base) for repo in repos}
    by_name = {repo: dict(zip(unique([one.repo for one in own[repo]]), own[repo], strict=True)) for repo in repos}
    working_set = recommended_working_set()
    if not repos:
        return Inventory(budget_bytes(MemorySettings(), working_set), working_set, (), strangers)
    entries = {
        name: {"source": sources[repo], "adapters": {key: str(one.folder) for key, one in by_name[repo].items()}}
        for name, repo in zip(names, repos, strict=True)
    }
    report = check(Roster.model_validate({"models": entries}, context={"base": base}))
    models = tuple(
        Candidate(cost.name, repo, sources[repo], by_name[repo], cost)
        for repo, cost in zip(repos, report.models, strict=True)
    )
    return Inventory(report.budget, report.working_set, models, strangers)


def unique(repos: Sequence[str]) -> list[str]:
    """A name for each: what comes after the organization, or all of it where that would be one name for two."""
    short = [sanitized(repo.rpartition("/")[2]) for repo in repos]
    often: Collection[str] = {name for name, count in Counter(short).items() if count > 1}
    return [sanitized(repo) if name in often else name for repo, name in zip(repos, short, strict=True)]


def _source(repo: str, base: Path) -> str:
    """What a roster in `base` calls `repo`: a folder of that name would come before it."""
    folder = cached(repo, None) if names_folder(repo, base) else None
    return repo if folder is None else str(folder)


def _readable(adapter: FoundAdapter) -> bool:
    try:
        adapter_sides(adapter.folder)
    except LoadFailed:
        return False
    return True


def _summary(model: Candidate) -> dict[str, Any]:
    cost = model.cost
    return {
        "name": model.name,
        "repo": model.repo,
        "weights": cost.weights,
        "estimated": cost.estimated,
        "fits": model.fits,
        "problems": list(cost.problems),
        "adapters": [{"name": name, "repo": one.repo} for name, one in model.adapters.items()],
    }
