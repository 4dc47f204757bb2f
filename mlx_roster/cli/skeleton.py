"""The text of a new roster: every line that is not a comment is meant, and every comment shows what else there is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from mlx_roster.cli.inventory import Candidate, Inventory
from mlx_roster.config.units import format_bytes

SCHEMA = "https://raw.githubusercontent.com/mlx-roster/mlx-roster/main/docs/roster.schema.json"

_HEAD = f"""\
# yaml-language-server: $schema={SCHEMA}
# Written by `mlx-roster init` from what is in this machine's Hub cache. `mlx-roster check` says what it costs and what
# fits together; `mlx-roster serve` serves it. Every key there is:
# https://github.com/mlx-roster/mlx-roster/blob/main/docs/config.md

# server:
#   host: 0.0.0.0              # any but a loopback address needs keys
#   port: 8080                 # HOST and PORT in the environment win over both

# auth:
#   keys:                      # openssl rand -hex 24 makes one
#     - {{name: laptop, key: "${{ROSTER_KEY}}", models: ["*"], scopes: [infer]}}
"""

_EXAMPLES = """\
    # preload: true            # load it when the server starts
    # ttl: never               # keep it until its room is needed; 15m after its last request otherwise
    # defaults: {max_tokens: 1024, temperature: 0.7}
    # adapters:                # LoRA adapters over it, of mlx-lm or PEFT: requests ask for MODEL:NAME
    #   pirate: ./adapters/pirate
"""

_EMPTY = """\
# There is no model in the Hub cache yet that would fit. `mlx-roster pull mlx-community/Qwen3-4B-4bit` brings one, of
# 2.3 GB; it is served at once, or by the next `mlx-roster reload`. Another `mlx-roster init --force` lists it here.
discover:
  hub_cache: true              # serve every MLX model that is in the Hub cache, by its repo id

# models:
#   qwen3-4b:
#     source: mlx-community/Qwen3-4B-4bit
#     aliases: [gpt-4o]        # other names for it
#     adapters:                # LoRA adapters over it, of mlx-lm or PEFT
#       pirate: ./adapters/pirate
"""

_DISCOVER = """\
# discover:
#   hub_cache: true            # serve what is pulled later, too, without listing it
"""


def text(inventory: Inventory) -> str:
    """The file. It lists what fits; what does not is there as a comment that says why."""
    budget = (
        "memory:\n"
        f"  budget: 75%                  # of the {format_bytes(inventory.working_set)} that this machine has for "
        f"models: {format_bytes(inventory.budget)}; or an amount, as 48GiB\n"
    )
    parts = [_HEAD, budget]
    if inventory.default is None:
        parts.append(_EMPTY + "".join(_lines(inventory)))
    else:
        parts += [
            _DISCOVER,
            f"default_model: {scalar(inventory.default)} # for requests that name none; the largest that fits\n",
            "models:\n" + "".join(_lines(inventory)),
        ]
    return "\n".join(parts)


def _lines(inventory: Inventory) -> Iterator[str]:
    shown = False
    for model in inventory.models:
        if not model.fits:
            yield _refused(model, inventory.budget)
            continue
        yield _listed(model)
        if not shown:
            yield _EXAMPLES if not model.adapters else _EXAMPLES.partition("    # adapters:")[0]
            shown = True
    for adapter in inventory.strangers:
        over = f" was trained over {_said(adapter.base)}, which is not here" if adapter.base else " names no model"
        yield f"  # The adapter {adapter.repo}{over}: {_said(str(adapter.folder))}\n"


def _listed(model: Candidate) -> str:
    cost = model.cost
    assert cost.weights is not None
    assert cost.estimated is not None
    weights, estimated = format_bytes(cost.weights), format_bytes(cost.estimated)
    lines = [
        f"  # {weights} of weights; {estimated} with room for requests: it fits\n",
        f"  {scalar(model.name)}:\n",
        f"    source: {scalar(model.source)}\n",
    ]
    if model.name != model.repo:
        lines.append(f"    aliases: [{scalar(model.repo)}] # other names for it, as gpt-4o\n")
    if model.adapters:
        lines.append("    adapters:\n")
    lines += [f"      {scalar(name)}: {scalar(_short(one.folder))}\n" for name, one in model.adapters.items()]
    return "".join(lines)


def _refused(model: Candidate, budget: int) -> str:
    cost = model.cost
    if cost.estimated is None or cost.problems:
        why = "; ".join(cost.problems) or cost.remark or "it cannot be measured"
    else:
        why = f"{format_bytes(cost.estimated)}, {format_bytes(cost.estimated - budget)} more than the budget"
    return f"  # {_said(why)}:\n  # {scalar(model.name)}:\n  #   source: {scalar(model.source)}\n"


def _short(folder: Path) -> str:
    """With `~`, which a roster may have: the file then suits another machine of the same person."""
    home = Path.home()
    return f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) else str(folder)


def scalar(text: str) -> str:
    """`text` as YAML that the roster's reader takes for just that: a dollar sign would begin a variable."""
    text = text.replace("$", "$$")
    plain = re.fullmatch(r"[A-Za-z0-9~/][\w.~/+-]*", text, re.ASCII) is not None
    # Not every word is one: `no` and `1e3` are not.
    return text if plain and yaml.safe_load(text) == text else json.dumps(text)


def _said(text: str) -> str:
    """For a comment: it must not end before its line does."""
    return "".join(char if char.isprintable() else " " for char in text)
