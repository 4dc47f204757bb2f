"""Bases with many adapters each, for `bench.adapters` and `bench.decode`: random, and the same on every run.

python -m bench.fleet FOLDER SIZE:TARGETS:RANK:COUNT ...     makes what is missing; prints bytes per adapter
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bench.models import ALL_KEYS, Lora, write_model


class Size(NamedTuple):
    """Keys of `llama.ModelArgs`, and the vocabulary."""

    arguments: dict[str, int]
    vocabulary: int


#: About 5 million and 31 million parameters, in float32.
SIZES = {
    "4M": Size(
        {
            "hidden_size": 256,
            "num_hidden_layers": 6,
            "intermediate_size": 512,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
        },
        2048,
    ),
    "30M": Size(
        {
            "hidden_size": 512,
            "num_hidden_layers": 8,
            "intermediate_size": 1536,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
        },
        4096,
    ),
}

#: The layers of each block that have adapters: as in mlx-lm's example config, and what mlx-lm does if none are named.
TARGETS = {"qv": ("self_attn.q_proj", "self_attn.v_proj"), "all": ALL_KEYS}

RANK = 8
#: Of the bank, where more adapters are listed than it holds.
SLOTS = 16


@dataclass(frozen=True, slots=True)
class Order:
    """So many adapters of one kind. On a command line: its fields, with colons between."""

    size: str
    targets: str
    rank: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Order:
        size, targets, rank, count = text.split(":")
        return cls(size, targets, int(rank), int(count))

    def __str__(self) -> str:
        return f"{self.size}:{self.targets}:{self.rank}:{self.count}"


@dataclass(frozen=True, slots=True)
class Fleet:
    """Where everything lies. A roster and a request name each by the name of its folder."""

    folder: Path

    def base(self, size: str) -> Path:
        return self.folder / f"base-{size}"

    def adapters(self, order: Order) -> list[Path]:
        """The first `count` of their kind."""
        return [
            self.folder / f"{order.size}-{order.targets}-{order.rank}" / f"a{number:04}"
            for number in range(order.count)
        ]


def rank_of(size: str, targets: str, nbytes: int) -> int:
    """The rank at which an adapter has about so many bytes."""
    hidden, inner = (SIZES[size].arguments[name] for name in ("hidden_size", "intermediate_size"))
    # All heads are of one kind, so that every layer of the attention is square.
    widths = [hidden + inner if key.startswith("mlp") else 2 * hidden for key in TARGETS[targets]]
    return max(1, round(nbytes / (4 * SIZES[size].arguments["num_hidden_layers"] * sum(widths))))


def make(fleet: Fleet, orders: Sequence[Order]) -> dict[str, int]:
    """Make what is missing. Returns the bytes of one adapter of each order."""
    fleet.folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for order in orders:
        base = fleet.base(order.size)
        if not base.exists():
            write_model(base, 0, *SIZES[order.size])
        lora = Lora.over(base, TARGETS[order.targets], order.rank)
        found[str(order)] = lora.nbytes
        for seed, folder in enumerate(fleet.adapters(order)):
            if not folder.exists():
                lora.write(folder, seed)
    return found


if __name__ == "__main__":
    print(json.dumps(make(Fleet(Path(sys.argv[1])), [Order.parse(order) for order in sys.argv[2:]])))
