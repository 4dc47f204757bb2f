"""What is served: three models where two fit, the roster file, and the ways in which it is changed."""

from __future__ import annotations

import copy
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.models import Lora, write_model
from mlx_roster.config.load import load
from mlx_roster.demo import directory
from mlx_roster.loaders.sizes import estimate

#: Keys of `llama.ModelArgs` of the two random models, which never end a sentence by themselves.
BABBLERS = {
    "lark": {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 256},
    "wren": {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 512},
}
#: Their adapters, which are random too.
TUNES = {"lark": ("hum", "trill"), "wren": ("chirp",)}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4}

#: What requests name, and what may serve it: an alias moves about. All but scribe are in the base roster.
NAMES: dict[str, frozenset[str]] = {
    "atlas": frozenset({"atlas"}),
    "atlas:pirate": frozenset({"atlas:pirate"}),
    "atlas:french": frozenset({"atlas:french"}),
    "lark": frozenset({"lark"}),
    "lark:hum": frozenset({"lark:hum"}),
    "lark:trill": frozenset({"lark:trill"}),
    "wren": frozenset({"wren"}),
    "wren:chirp": frozenset({"wren:chirp"}),
    "gpt-3.5-turbo": frozenset({"atlas", "lark"}),
    "scribe": frozenset({"scribe"}),
}
MODELS = ("atlas", "lark", "wren")

#: How long a roster may stay in effect after the next one was written, in seconds.
LAG = 20.0


@dataclass(frozen=True, slots=True)
class Version:
    """A roster as it was written. `written` is a time of `time.monotonic`."""

    written: float
    absent: frozenset[str]
    #: Not every model fits beside those that its roster pins, or at all.
    tight: bool
    #: There may be too many requests for it.
    limited: bool
    queue_timeout: float


class Rosters:
    """The file at `path`, and every valid version of it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "roster.yaml"
        self._sources = {name: folder / name for name in BABBLERS}
        for seed, (name, size) in enumerate(BABBLERS.items()):
            write_model(self._sources[name], seed, {**size, **HEADS})
            lora = Lora.over(self._sources[name], ("self_attn.q_proj", "self_attn.v_proj"), rank=4)
            for number, tune in enumerate(TUNES[name]):
                lora.write(folder / tune, 10 * seed + number)
        self._base = self._document()
        self.path.write_text(json.dumps(self._base))
        sizes = {name: estimate(Path(entry.source), entry, 0).total for name, entry in load(self.path).models.items()}
        #: Estimates in bytes, by model.
        self.sizes = sizes
        #: Room for any two of them, and a little for what they measure more than was estimated.
        self.budget = sum(sorted(sizes.values())[-2:]) + 2**20
        self._base["memory"]["budget"] = self.budget
        self.versions: list[Version] = []
        self.restore()

    def _document(self) -> dict[str, Any]:
        demo = directory()
        adapters = {name: str(demo / "adapters" / name) for name in ("pirate", "french")}
        models: dict[str, Any] = {
            "atlas": {
                "source": str(demo / "models" / "atlas"),
                "aliases": ["gpt-3.5-turbo"],
                "adapters": adapters,
            },
            **{
                name: {
                    "source": str(source),
                    "adapters": {tune: str(source.with_name(tune)) for tune in TUNES[name]},
                }
                for name, source in self._sources.items()
            },
        }
        scheduling = {
            "max_wait": "3s",
            "min_residency": "1s",
            "queue_timeout": "45s",
            "drain_timeout": "10s",
            "ttl": "20s",
        }
        return {"memory": {"headroom": "0%"}, "scheduling": scheduling, "models": models}

    def restore(self) -> None:
        """Write the base roster."""
        self._write(self._base)

    def vary(self, draw: random.Random) -> str:
        """Write another variation of the base roster; what is different in it."""
        document = copy.deepcopy(self._base)
        said = [draw.choice(_CHANGES)(document, draw) for _ in range(draw.randint(1, 3))]
        self._write(document)
        return ", ".join(said)

    def spoil(self, draw: random.Random) -> str:
        """Make the file invalid, or take it away."""
        text = json.dumps(self._base)
        what = draw.choice(["half of it", "unknown key", "no source", "gone"])
        match what:
            case "half of it":
                self._replace(text[: len(text) // 2])
            case "unknown key":
                self._replace(text.replace('"models"', '"modles"'))
            case "no source":
                self._replace(json.dumps(self._base | {"models": {"atlas": {"ttl": "1s"}}}))
            case "gone":
                self.path.unlink(missing_ok=True)
        return what

    def in_effect(self, begin: float, end: float) -> list[Version]:
        """The versions that may have been in effect at some moment between the two times."""
        until = [version.written + LAG for version in self.versions[1:]] + [float("inf")]
        return [
            version
            for version, last in zip(self.versions, until, strict=True)
            if version.written <= end and last >= begin
        ]

    def _write(self, document: dict[str, Any]) -> None:
        self._replace(json.dumps(document))
        models, scheduling = document["models"], document["scheduling"]
        known = set(models)
        for model, entry in models.items():
            known |= {f"{model}:{adapter}" for adapter in entry.get("adapters", {})} | set(entry.get("aliases", ()))
        pinned = any("pin" in entry for entry in models.values())
        self.versions.append(
            Version(
                written=time.monotonic(),
                absent=frozenset(NAMES.keys() - known),
                tight=pinned or document["memory"]["budget"] < self.budget,
                limited="max_queued" in scheduling or any("max_queued" in entry for entry in models.values()),
                queue_timeout=float(scheduling["queue_timeout"].removesuffix("s")),
            )
        )

    def _replace(self, text: str) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(text)
        new.replace(self.path)


Document = dict[str, Any]


def _entry(document: Document, draw: random.Random) -> tuple[str, dict[str, Any]]:
    name = draw.choice(list(document["models"]))
    return name, document["models"][name]


def _add(document: Document, draw: random.Random) -> str:
    document["models"]["scribe"] = {"source": str(directory() / "models" / "scribe")}
    return "scribe added"


def _remove(document: Document, draw: random.Random) -> str:
    name, _ = _entry(document, draw)
    if len(document["models"]) > 1:
        del document["models"][name]
    return f"{name} removed"


def _renew(document: Document, draw: random.Random) -> str:
    name, entry = _entry(document, draw)
    entry["max_adapters"] = draw.randint(2, 6)
    return f"{name} changed"


def _unadapt(document: Document, draw: random.Random) -> str:
    for entry in document["models"].values():
        entry.get("adapters", {}).pop("pirate", None)
    return "pirate removed"


def _rename(document: Document, draw: random.Random) -> str:
    for entry in document["models"].values():
        entry.pop("aliases", None)
    if "lark" in document["models"]:
        document["models"]["lark"]["aliases"] = ["gpt-3.5-turbo"]
    return "alias moved to lark"


def _ttl(document: Document, draw: random.Random) -> str:
    name, entry = _entry(document, draw)
    entry["ttl"] = draw.choice(["500ms", "3s", "never"])
    return f"ttl of {name}"


def _budget(document: Document, draw: random.Random) -> str:
    factor = draw.choice([0.55, 0.8, 1.6])
    document["memory"]["budget"] = int(document["memory"]["budget"] * factor)
    return f"budget x {factor}"


def _pin(document: Document, draw: random.Random) -> str:
    name, entry = _entry(document, draw)
    entry["pin"] = True
    return f"{name} pinned"


def _limits(document: Document, draw: random.Random) -> str:
    name, entry = _entry(document, draw)
    entry["max_queued"] = draw.randint(1, 8)
    entry["priority"] = draw.randint(-3, 3)
    entry["max_concurrency"] = draw.randint(1, 8)
    return f"limits of {name}"


def _scheduling(document: Document, draw: random.Random) -> str:
    document["scheduling"]["max_wait"] = draw.choice(["0s", "1s", "10s"])
    document["scheduling"]["min_residency"] = draw.choice(["0s", "3x", "4s"])
    document["scheduling"]["queue_timeout"] = draw.choice(["2s", "45s"])
    return "scheduling"


_CHANGES = (
    *(_add, _remove, _renew, _unadapt, _rename, _ttl, _budget, _pin, _limits, _scheduling),
    _renew,  # the one that drains a model and brings it back
)
