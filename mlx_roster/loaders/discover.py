"""Models that are in the local Hub cache already. No network, and no mlx."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlx_roster.config import ModelEntry, Roster
from mlx_roster.config.paths import is_repo_id
from mlx_roster.errors import LoadFailed
from mlx_roster.loaders.sizes import weights_bytes
from mlx_roster.loaders.source import cached

#: Only their presence counts: what is in them, a load will find out.
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "tiktoken.model")

#: A module of mlx-lm that is a kind of model: others hold what these share.
_MODEL = re.compile(r"^(class Model\b|from \S+ import .*\bModel\b)", re.MULTILINE)


def discover(roster: Roster) -> dict[str, ModelEntry]:
    """The whole models of the local Hub cache that mlx-lm knows and `roster` does not list, by repo id.

    Each is its main branch, with default settings. Blocks: call it on a thread. What cannot be read is passed over.
    """
    listed = {entry.source for entry in roster.models.values()} | set(_names(roster))
    return {repo: entry_of(repo) for repo in _repos() if repo not in listed and _is_model(repo)}


def entry_of(repo: str) -> ModelEntry:
    """A Hub repo with default settings. (Validation would take it for a folder where there is one of that name.)"""
    return ModelEntry(source=Path("/")).model_copy(update={"source": repo})


def _names(roster: Roster) -> Iterator[str]:
    for name, entry in roster.models.items():
        yield from (name, *entry.aliases)
        for adapter in entry.adapters.values():
            yield from adapter.aliases


def _repos() -> Iterator[str]:
    from huggingface_hub import constants

    try:
        folders = sorted(Path(constants.HF_HUB_CACHE).expanduser().glob("models--*--*"))
    except OSError:
        return
    for folder in folders:
        repo = folder.name.removeprefix("models--").replace("--", "/")
        if is_repo_id(repo):
            yield repo


def _is_model(repo: str) -> bool:
    folder = cached(repo, None)
    if folder is None:
        return False
    try:
        config: Any = json.loads((folder / "config.json").read_bytes())
        weights_bytes(folder)
    except (OSError, ValueError, RecursionError, LoadFailed):
        return False
    return (
        isinstance(config, dict)
        and config.get("model_file") is None
        and _kind(config) in kinds()
        and any((folder / name).is_file() for name in _TOKENIZERS)
    )


def _kind(config: dict[str, Any]) -> str | None:
    """The module of mlx-lm that `config` is for, as mlx-lm itself finds it."""
    kind, architectures = config.get("model_type"), config.get("architectures") or ()
    if not isinstance(kind, str):
        return None
    by_type, by_architecture = remappings()
    for architecture in architectures if isinstance(architectures, list) else [architectures]:
        if isinstance(architecture, str) and (kind, architecture) in by_architecture:
            return by_architecture[kind, architecture]
    return by_type.get(kind, kind)


@lru_cache(1)
def kinds() -> frozenset[str]:
    """The kinds of models that the installed mlx-lm has."""
    files = (_mlx_lm() / "models").glob("*.py")
    return frozenset(file.stem for file in files if _MODEL.search(file.read_text("utf-8")))


@lru_cache(1)
def remappings() -> tuple[dict[str, str], dict[tuple[str, str], str]]:
    """mlx-lm's other names for kinds: by model_type, and by model_type and architecture."""
    tree = ast.parse((_mlx_lm() / "utils.py").read_text("utf-8"))
    found: dict[str, Any] = {}
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id="MODEL_REMAPPING" | "MODEL_ARCHITECTURE_REMAPPING" as name)]):
                found[name] = ast.literal_eval(node.value)
    return found.get("MODEL_REMAPPING", {}), found.get("MODEL_ARCHITECTURE_REMAPPING", {})


def _mlx_lm() -> Path:
    """Where mlx-lm is installed. It is read, not imported: that would bring mlx into the server process."""
    spec = find_spec("mlx_lm")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent
