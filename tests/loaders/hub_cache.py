"""The Hub's local cache, and what a small repo has in it."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import huggingface_hub.constants
import pytest

from tests.loaders.fake_hub import Files, commit

REPO = "org/atlas"


def weights(size: int) -> bytes:
    """A safetensors file of one tensor, in which no two places look the same."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    numbers = b"".join(struct.pack("<I", number) for number in range(size // 4 + 1))
    return struct.pack("<Q", len(header)) + header + numbers[:size]


FILES: Files = {
    "config.json": b"{}",
    "tokenizer.json": b"[]",
    "chat_template.jinja": b"{{ messages }}",
    "model-1.safetensors": weights(300_000),
    "model-2.safetensors": weights(200_000),
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    ).encode(),
    # None of these is for us.
    "modeling_atlas.py": b"raise SystemExit",
    "consolidated.safetensors": weights(10_000),
    "pytorch_model.bin": b"x",
    "README.md": b"x",
}
WANTED = {name for name in FILES if name.endswith((".json", ".jinja")) or name.startswith("model-")}


def use(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_HUB_CACHE in the environment does, also for this process, which has read it already."""
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def put(cache: Path, repo: str, files: Files, *, tag: str = "main") -> Path:
    """A repo as its client would have left it: the folder of its one commit."""
    home = cache / f"models--{repo.replace('/', '--')}"
    folder = home / "snapshots" / commit(repo)
    folder.mkdir(parents=True)
    (home / "refs").mkdir()
    for ref in {"main", tag}:
        (home / "refs" / ref).write_text(commit(repo))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder
