"""What the roster names, and how a request's words become a Ref. Touches neither disk nor network, unless the roster's
`unlisted` has requests name what lies there."""

from __future__ import annotations

import difflib
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from posixpath import normpath

from mlx_roster.config import AdapterEntry, Defaults, ModelEntry, Roster
from mlx_roster.core import Ref
from mlx_roster.errors import AdapterNotFound, InvalidRequest, ModelNotFound, ModelRequired
from mlx_roster.registry.unlisted import Unlisted

#: Whether a client may know of something; None: of all there is.
Sight = Callable[[Ref], bool] | None

#: Adapters that a message names of a model that has very many.
SHOWN = 20

#: An unknown name is compared with about four times so many: ten thousand would hold up the event loop for long.
NEIGHBOURS = 20


class Catalog:
    """Names, aliases and adapters of one roster, and what else it allows. Immutable.

    `directory` is the server's, which paths of `unlisted` are relative to and never leave.
    """

    def __init__(self, roster: Roster, directory: Path | None = None) -> None:
        self.entries: Mapping[str, ModelEntry] = roster.models
        self._roster = roster
        self._unlisted = Unlisted(roster.unlisted, directory or Path.cwd())
        self._refs: dict[str, Ref] = {}
        self._aliased: dict[str, Defaults] = {}
        self._places: dict[Path | str, str] = {}
        for name, entry in roster.models.items():
            self._refs[name] = Ref(name)
            if (place := self._unlisted.place(entry)) is not None:
                self._places.setdefault(place, name)
            self._refs.update(dict.fromkeys(entry.aliases, Ref(name)))
            self._aliased.update(entry.aliases)
            for adapter, spec in entry.adapters.items():
                self._refs[f"{name}:{adapter}"] = Ref(name, adapter)
                self._refs.update(dict.fromkeys(spec.aliases, Ref(name, adapter)))
                self._aliased.update(spec.aliases)
        only = next(iter(roster.models)) if len(roster.models) == 1 else None
        self._default = roster.default_model or only

    def __iter__(self) -> Iterator[Ref]:
        """Every listed model, each followed by its adapters, in the roster's order."""
        for name, entry in self.entries.items():
            yield Ref(name)
            for adapter in entry.adapters:
                yield Ref(name, adapter)

    def entry(self, model: str) -> ModelEntry | None:
        """The entry of a model by its canonical name: a listed one, or one that `unlisted` allows, made on the fly."""
        listed = self.entries.get(model)
        return listed if listed is not None or model in self._refs else self._unlisted.model_entry(model)

    def adapter(self, ref: Ref) -> AdapterEntry | None:
        """The adapter that `ref` names, if it names one.

        Raises ModelNotFound or AdapterNotFound for what was there when `ref` was resolved, and is there no more.
        """
        entry = self.entry(ref.model)
        if entry is None:
            raise ModelNotFound(f"{ref.model} is no longer in the roster", param="model")
        if ref.adapter is None:
            return None
        found = entry.adapters.get(ref.adapter) or self._unlisted.adapter_entry(ref.adapter)
        if found is None:
            # What there is beside it, who asks need not be one to know.
            raise AdapterNotFound(f"{ref.id} is no longer there", param="adapters")
        return found

    def defaults(self, ref: Ref, words: str | None) -> Defaults:
        """What a request for `ref` means by what it leaves out: the alias's defaults come before the adapter's, these
        before the model's and the file's. `words` are what the request has for `model`."""
        found = self._roster.defaults
        entry = self.entry(ref.model)
        if entry is not None:
            found = entry.defaults.over(found)
            adapter = None if ref.adapter is None else entry.adapters.get(ref.adapter)
            found = found if adapter is None else adapter.defaults.over(found)
        name = self._default if words is None else words
        if name is None:
            return found
        alias = self._aliased.get(name) or self._aliased.get(name.rpartition(":")[0])
        return found if alias is None else alias.over(found)

    def uses_generation_config(self, ref: Ref) -> bool:
        """Whether what a model's own generation_config.json says comes after all `defaults`."""
        entry = self.entry(ref.model)
        said = None if entry is None else entry.generation_config
        return self._roster.generation_config if said is None else said

    def resolve(self, model: str | None, adapters: str | None = None, *, sees: Sight = None) -> Ref:
        """What a request means. Raises ModelRequired, ModelNotFound, AdapterNotFound or, for two adapters at once,
        InvalidRequest.

        For a client that `sees` only some of what there is, no error names anything else, and nothing else is looked
        for on the disk. What comes back may be what it does not see. Who sees a model sees all its adapters.
        """
        if model is None:
            if self._default is None:
                raise ModelRequired("name a model: this server has no default_model", param="model")
            model = self._default
        ref = self._model(model, sees) or self._with_adapter(model, sees)
        if adapters is None:
            return ref
        if ref.adapter not in (None, adapters):
            if sees is not None and not sees(ref):
                return ref
            raise InvalidRequest(f"model {model!r} already names the adapter {ref.adapter!r}", param="adapters")
        return self._adapted(ref.model, adapters, sees, param="adapters")

    def _model(self, words: str, sees: Sight) -> Ref | None:
        if words in self._refs:
            return self._refs[words]
        name = self._unlisted.model(words, disk=sees is None or sees(Ref(normpath(words))))
        found = None if name is None else self._unlisted.model_entry(name)
        if name is None or found is None:
            return None
        listed = self._places.get(found.source)
        # The folder may have been swapped for another since.
        if listed is not None and self._unlisted.place(self.entries[listed]) == found.source:
            return Ref(listed)
        # What the roster calls by that name comes first, wherever it lies.
        return None if name in self._refs else Ref(name)

    def _with_adapter(self, model: str, sees: Sight) -> Ref:
        """`name:adapter`, where the name is an entry or an alias of one."""
        name, colon, adapter = model.rpartition(":")
        base = self._model(name, sees) if colon else None
        if base is None or base.adapter is not None:
            raise self._not_found(model, sees)
        return self._adapted(base.model, adapter, sees, param="model")

    def _adapted(self, name: str, adapter: str, sees: Sight, *, param: str) -> Ref:
        entry = self.entry(name)
        if entry is None:
            raise self._not_found(name, sees)
        if adapter in entry.adapters:
            return Ref(name, adapter)
        if sees is not None and not sees(hidden := Ref(name, normpath(adapter))):
            return hidden
        found = self._unlisted.adapter(adapter)
        # A folder that is called as a listed adapter is not that adapter.
        if found is None or found in entry.adapters:
            raise _no_adapter(name, adapter, entry, sees, param=param)
        return Ref(name, found)

    def _not_found(self, model: str, sees: Sight = None) -> ModelNotFound:
        word, names = model[:100], self._neighbours(model[:100])
        if sees is not None:
            names = [name for name in names if sees(self._refs[name])]
        close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "GET /v1/models lists those there are"
        return ModelNotFound(f"no model {_shown(model)} in the roster; {hint}", param="model")

    def _neighbours(self, word: str) -> Iterable[str]:
        """The names that may be close to `word`: of many, those that begin or end most like it."""
        forwards, backwards = self._sorted
        if len(forwards) <= 2 * NEIGHBOURS:
            return forwards
        ahead, behind = bisect(forwards, word), bisect(backwards, word[::-1])
        alike = forwards[max(0, ahead - NEIGHBOURS) : ahead + NEIGHBOURS]
        return {*alike, *(name[::-1] for name in backwards[max(0, behind - NEIGHBOURS) : behind + NEIGHBOURS])}

    @cached_property
    def _sorted(self) -> tuple[list[str], list[str]]:
        """All names by their beginnings; and backwards, so by their ends."""
        return sorted(self._refs), sorted(name[::-1] for name in self._refs)


def _no_adapter(name: str, adapter: str, entry: ModelEntry, sees: Sight, *, param: str) -> AdapterNotFound:
    names = [each for each in entry.adapters if sees is None or sees(Ref(name, each))]
    there = f"it has {_listed(names)}" if names else "it has none"
    return AdapterNotFound(f"{name} has no adapter {_shown(adapter)}; {there}", param=param)


def _listed(names: list[str]) -> str:
    """Names for a message. There may be thousands."""
    first, rest = names[:SHOWN], len(names) - SHOWN
    return ", ".join(first) + (f" and {rest} more" if rest > 0 else "")


def _shown(name: str) -> str:
    """A client's words, fit to be said back to it."""
    return repr(name if len(name) <= 100 else name[:100] + "…")
