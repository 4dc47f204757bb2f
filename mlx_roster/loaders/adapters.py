"""Adapters from disk: mlx-lm's folders and PEFT's, told apart by what is in them.

LoRA and DoRA are read. What cannot be a delta on the base's layers is recognised and refused by name.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from cachetools import LRUCache

from mlx_roster.core import AdapterSource
from mlx_roster.errors import AdapterIncompatible
from mlx_roster.loaders import adapter_files, mlxlm, peft
from mlx_roster.loaders.adapter_files import Signature
from mlx_roster.loaders.lora_pairs import most_bytes, most_tensors
from mlx_roster.loaders.offences import refusal
from mlx_roster.tensors import AdapterWeights, Targets

#: Seconds for which a folder that was refused is not looked into again: the first time, and at most.
COOLDOWN = 10.0
LONGEST_COOLDOWN = 300.0

#: Folders whose identity is remembered. More may be registered: those used least recently are read anew.
REMEMBERED = 4096

#: Characters of all refusals that are remembered.
REFUSALS = 4 * 2**20


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why a folder was refused: as it was then, for that base."""

    signature: Signature
    targets: Targets
    reason: str
    cooldown: float
    until: float

    def concerns(self, signature: Signature, targets: Targets) -> bool:
        return self.signature == signature and self.targets == targets


class Adapters:
    """The engine's AdapterReader. For one thread.

    It remembers identities by what `stat` says of the files, and refusals, too: while the files of a refused folder
    stay as they are, the same refusal comes without reading them, for 10 s at first and up to 5 min from then on.
    `clock` is in seconds; `remembered` is how many folders are.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, remembered: int = REMEMBERED) -> None:
        self._clock = clock
        self._known: LRUCache[str, tuple[Signature, str]] = LRUCache(remembered)
        self._refused: LRUCache[str, _Refusal] = LRUCache(REFUSALS, getsizeof=lambda refused: len(refused.reason))

    def known(self, source: AdapterSource) -> str | None:
        """The content hash of what lies at `source` now, if it has been read and not changed since. Reads nothing."""
        known = self._known.get(source.path)
        return known[1] if known is not None and known[0] == adapter_files.signature(source.path) else None

    def read(self, source: AdapterSource, targets: Targets) -> AdapterWeights:
        """The tensors of an adapter, every one checked against `targets`.

        May be called while another thread computes, and what it returns used on any. Raises AdapterIncompatible, for
        now or from memory, saying what was found instead, or naming every tensor that cannot be used.
        """
        # Before the files: if they change meanwhile, this is not what they have afterwards.
        signature = adapter_files.signature(source.path)
        last = self._refused.get(source.path)
        if last is not None and not last.concerns(signature, targets):
            last = None
        if last is not None and self._clock() < last.until:
            raise _about(source, last.reason)
        try:
            weights = _read(source, targets)
        except AdapterIncompatible as error:
            cooldown = COOLDOWN if last is None else min(2 * last.cooldown, LONGEST_COOLDOWN)
            until = self._clock() + cooldown
            self._refused[source.path] = _Refusal(signature, targets, error.message, cooldown, until)
            raise _about(source, error.message) from error
        self._refused.pop(source.path, None)
        self._known[source.path] = (signature, weights.identity)
        return weights


def _read(source: AdapterSource, targets: Targets) -> AdapterWeights:
    files = adapter_files.read(source.path, most_bytes(targets), most_tensors(targets))
    if files.peft:
        return peft.read(source.name, files, targets)
    return mlxlm.read(source.name, files, targets)


def _about(source: AdapterSource, reason: str) -> AdapterIncompatible:
    return refusal(f"adapter {source.name!r}: {reason}")
