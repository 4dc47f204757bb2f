"""Which adapter lies in which slot of the bank. No mlx."""

from __future__ import annotations

from cachetools import LRUCache


class Slots:
    """Slots 1 to `count`, each free, idle (an adapter no sequence uses) or leased (by so many sequences).

    A leased slot is never given to another adapter; of the idle ones, the least recently used is, unless it is pinned.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._idle: LRUCache[str, int] = LRUCache(maxsize=max(count, 1))
        self._leased: dict[str, tuple[int, int]] = {}
        #: Idle and pinned.
        self._kept: dict[str, int] = {}
        #: The identity that each pinned name has had last.
        self._pins: dict[str, str] = {}
        #: How many adapters have had to make room for another.
        self.displaced = 0
        self.clear()

    def __repr__(self) -> str:
        leased = dict(self._leased.values())
        kept = f", pinned {sorted(self._kept.values())}" if self._kept else ""
        return f"<Slots: {len(self._free)} free, idle {sorted(self._idle.values())}{kept}, leased {leased}>"

    def __contains__(self, identity: object) -> bool:
        return identity in self._leased or identity in self._idle or identity in self._kept

    @property
    def count(self) -> int:
        return self._count

    @property
    def filled(self) -> int:
        """How many have an adapter, in use or not."""
        return self._count - len(self._free)

    @property
    def full(self) -> bool:
        """Whether every slot is leased."""
        return not (self._free or self._idle or self._kept)

    def lease(self, identity: str, pin: str | None = None) -> int | None:
        """A slot for one more sequence with this adapter, or None where all are leased to others, or pinned.

        Where the adapter was not in `self` before, it must now be put into the slot. With `pin`, a name, it keeps its
        slot from now on, and what was pinned under that name before does not.
        """
        if pin is not None:
            self._pin(pin, identity)
        if identity in self._leased:
            slot, users = self._leased[identity]
            self._leased[identity] = slot, users + 1
            return slot
        found = self._take(identity)
        if found is not None:
            self._leased[identity] = found, 1
        return found

    def _take(self, identity: str) -> int | None:
        for there in (self._kept, self._idle):
            if identity in there:
                return there.pop(identity)
        if self._free:
            return self._free.pop()
        if self._idle:
            self.displaced += 1
            return self._idle.popitem()[1]
        if self._kept and not self._leased:
            self.displaced += 1
            # Nothing would ever come free: rather than waiting for ever, the pin that has been idle longest gives way.
            return self._kept.pop(next(iter(self._kept)))
        return None

    def _pin(self, name: str, identity: str) -> None:
        before = self._pins.get(name)
        self._pins[name] = identity
        if before is not None and before not in self._pins.values() and before in self._kept:
            self._idle[before] = self._kept.pop(before)
        if identity in self._idle:
            self._kept[identity] = self._idle.pop(identity)

    def unpin(self) -> None:
        """No adapter is pinned any more, until it is leased with `pin` again."""
        self._pins.clear()
        for identity, slot in self._kept.items():
            self._idle[identity] = slot
        self._kept.clear()

    def release(self, identity: str) -> None:
        """One sequence is done with this adapter."""
        slot, users = self._leased.pop(identity)
        if users > 1:
            self._leased[identity] = slot, users - 1
        elif identity in self._pins.values():
            self._kept[identity] = slot
        else:
            self._idle[identity] = slot

    def forget(self, identity: str) -> None:
        """The adapter was not put into the slot leased for it: the slot is free, whoever leased it."""
        slot, _ = self._leased.pop(identity)
        self._free.append(slot)

    def clear(self) -> None:
        """Every slot is free: what lies in the bank is not known."""
        self._free = list(range(self._count, 0, -1))
        self._idle.clear()
        self._leased.clear()
        self._kept.clear()
