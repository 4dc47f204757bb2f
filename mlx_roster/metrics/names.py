"""Which models and adapters have series of their own: so many at most, whatever clients ask for.

A name gets there when it is in the roster, or has been loaded, and something is to be said of it. All others, and those
for whom there is no room, are "other"; where there is none to name, the label is empty.
"""

from __future__ import annotations

from collections.abc import Callable

#: Models with series of their own: a histogram is some twenty of them.
MODELS = 50

#: Adapters with series of their own: of one model, and of all together.
ADAPTERS = 100
ALL_ADAPTERS = 250

OTHER = "other"


class Names:
    """The labels `model` and `adapter`. `listed` says whether the roster has a model or, of a model, an adapter."""

    def __init__(self, listed: Callable[[str, str | None], bool]) -> None:
        self._listed = listed
        self._models: set[str] = set()
        self._loaded: set[str] = set()
        self._adapters: dict[str, set[str]] = {}

    def loaded(self, model: str) -> None:
        """The model is really there, in the roster or not."""
        if len(self._loaded) < MODELS:
            self._loaded.add(model)

    def model(self, model: str | None) -> str:
        """What a model is called."""
        if model is None:
            return OTHER
        if model in self._models:
            return model
        if len(self._models) >= MODELS or not (model in self._loaded or self._listed(model, None)):
            return OTHER
        self._models.add(model)
        return model

    def both(self, model: str | None, adapter: str | None, *, real: bool = False) -> tuple[str, str]:
        """What a model and an adapter over it are called. A `real` adapter has been used: it need not be listed."""
        label = self.model(model)
        if adapter is None or model is None:
            return label, ""
        if label == OTHER:
            return OTHER, OTHER
        known = self._adapters.setdefault(label, set())
        if adapter in known:
            return label, adapter
        room = len(known) < ADAPTERS and sum(map(len, self._adapters.values())) < ALL_ADAPTERS
        if not room or not (real or self._listed(model, adapter)):
            return label, OTHER
        known.add(adapter)
        return label, adapter

    def unlisted(self) -> tuple[set[str], set[tuple[str, str]]]:
        """Of those with series, the models that the roster does not have, and the adapters of the others."""
        models = {model for model in self._models if not self._listed(model, None)}
        return models, {
            (model, adapter)
            for model, known in self._adapters.items()
            for adapter in known
            if model not in models and not self._listed(model, adapter)
        }

    def forget(self, model: str, adapter: str | None = None) -> None:
        """It has no series any more."""
        if adapter is not None:
            self._adapters[model].discard(adapter)
            return
        self._adapters.pop(model, None)
        self._models.discard(model)
        self._loaded.discard(model)
