"""Models, and adapters for them, that are in the local Hub cache already. No network, and no mlx."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlx_roster.config import ModelEntry, Roster
from mlx_roster.config.paths import is_repo_id
from mlx_roster.errors import LoadFailed
from mlx_roster.loaders.sizes import MLX_LM_ADAPTER, PEFT_ADAPTER, weights_bytes
from mlx_roster.loaders.source import cached

#: Only their presence counts: what is in them, a load will find out.
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "tiktoken.model")

#: All that is read of an adapter's repo, and the values of `peft_type` and of mlx-lm's `fine_tune_type` that are LoRA.
ADAPTER_FILES = ("adapter_config.json", MLX_LM_ADAPTER, PEFT_ADAPTER)
_LORA = (None, "LORA", "lora", "dora")

#: A module of mlx-lm that is a kind of model: others hold what these share.
_MODEL = re.compile(r"^(class Model\b|from \S+ import .*\bModel\b)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class FoundAdapter:
    """An adapter in the Hub cache: its repo, its folder there, and the model that it says it was trained over."""

    repo: str
    folder: Path
    base: str | None


def discover(roster: Roster) -> dict[str, ModelEntry]:
    """The whole models of the local Hub cache that mlx-lm knows and `roster` does not list, by repo id.

    Each is its main branch, with default settings. Blocks: call it on a thread. What cannot be read is passed over.
    """
    listed = {entry.source for entry in roster.models.values()} | set(_names(roster))
    return {repo: entry_of(repo) for repo in _repos() if repo not in listed and _is_model(repo)}


def discover_adapters() -> list[FoundAdapter]:
    """The LoRA adapters of the local Hub cache, mlx-lm's and PEFT's. Blocks. What cannot be read is passed over."""
    return [adapter for repo in _repos() if (adapter := _adapter(repo)) is not None]


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
    return why_not(config) is None and any((folder / name).is_file() for name in TOKENIZERS)


def why_not(config: object, *, code: bool = False) -> str | None:
    """Why no model with this config.json can be served, None if one can, as far as that tells.

    `code` is whether it may run Python files of its own.
    """
    if not isinstance(config, dict):
        return "its config.json is not a JSON object"
    if config.get("model_file") is not None:
        return None if code else "it brings Python code of its own, which trust_remote_code in a roster would allow"
    kind = _kind(config)
    if kind not in kinds():
        return f"mlx-lm knows no model of type {str(kind)[:80]!r}" if kind else "its config.json names no model_type"
    return None


def _adapter(repo: str) -> FoundAdapter | None:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, allow_patterns=list(ADAPTER_FILES), local_files_only=True))
        config: Any = json.loads((folder / ADAPTER_FILES[0]).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(config, dict) or not any((folder / name).is_file() for name in ADAPTER_FILES[1:]):
        return None
    if config.get("peft_type") not in _LORA or config.get("fine_tune_type") not in _LORA:
        return None
    base = config.get("base_model_name_or_path") or config.get("model")
    return FoundAdapter(repo, folder, base if isinstance(base, str) else None)


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
