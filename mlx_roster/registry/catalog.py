"""What the roster names, and how a request's words become a Ref. Touches neither disk nor network."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from mlx_roster.config import AdapterEntry, ModelEntry, Roster
from mlx_roster.core import Ref
from mlx_roster.errors import AdapterNotFound, InvalidRequest, ModelNotFound, ModelRequired

#: Adapters that a message names of a model that has very many.
SHOWN = 20


class Catalog:
    """Names, aliases and adapters of one roster. Immutable."""

    def __init__(self, roster: Roster) -> None:
        self.entries: Mapping[str, ModelEntry] = roster.models
        self._refs: dict[str, Ref] = {}
        for name, entry in roster.models.items():
            self._refs[name] = Ref(name)
            self._refs.update(dict.fromkeys(entry.aliases, Ref(name)))
            for adapter, spec in entry.adapters.items():
                self._refs[f"{name}:{adapter}"] = Ref(name, adapter)
                self._refs.update(dict.fromkeys(spec.aliases, Ref(name, adapter)))
        only = next(iter(roster.models)) if len(roster.models) == 1 else None
        self._default = roster.default_model or only

    def __iter__(self) -> Iterator[Ref]:
        """Every model, each followed by its adapters, in the roster's order."""
        for name, entry in self.entries.items():
            yield Ref(name)
            for adapter in entry.adapters:
                yield Ref(name, adapter)

    def adapter(self, ref: Ref) -> AdapterEntry | None:
        """The adapter that `ref` names, if it names one."""
        return None if ref.adapter is None else self.entries[ref.model].adapters[ref.adapter]

    def resolve(self, model: str | None, adapters: str | None = None) -> Ref:
        """What a request means. Raises ModelRequired, ModelNotFound, AdapterNotFound or, for two adapters at once,
        InvalidRequest."""
        if model is None:
            if self._default is None:
                raise ModelRequired("name a model: this server has several and no default_model", param="model")
            model = self._default
        ref = self._refs.get(model) or self._with_adapter(model)
        if adapters is None:
            return ref
        if ref.adapter not in (None, adapters):
            raise InvalidRequest(f"model {model!r} already names the adapter {ref.adapter!r}", param="adapters")
        return self._adapted(ref.model, adapters, param="adapters")

    def _with_adapter(self, model: str) -> Ref:
        """`name:adapter`, where the name is an entry or an alias of one."""
        name, colon, adapter = model.rpartition(":")
        base = self._refs.get(name) if colon else None
        if base is None or base.adapter is not None:
            raise self._not_found(model)
        return self._adapted(base.model, adapter, param="model")

    def _adapted(self, name: str, adapter: str, *, param: str) -> Ref:
        known = self.entries[name].adapters
        if adapter not in known:
            there = f"it has {_listed(list(known))}" if known else "it has none"
            raise AdapterNotFound(f"{name} has no adapter {_shown(adapter)}; {there}", param=param)
        return Ref(name, adapter)

    def _not_found(self, model: str) -> ModelNotFound:
        close = difflib.get_close_matches(model[:100], self._refs, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "GET /v1/models lists those there are"
        return ModelNotFound(f"no model {_shown(model)} in the roster; {hint}", param="model")


def _listed(names: list[str]) -> str:
    """Names for a message. There may be thousands."""
    first, rest = names[:SHOWN], len(names) - SHOWN
    return ", ".join(first) + (f" and {rest} more" if rest > 0 else "")


def _shown(name: str) -> str:
    """A client's words, fit to be said back to it."""
    return repr(name if len(name) <= 100 else name[:100] + "…")
