"""Base models from disk: what loads, and how every broken folder is refused in words for a client."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama4

from mlx_roster.core import ModelSource
from mlx_roster.errors import LoadFailed, LoadOutOfMemory
from mlx_roster.loaders import models
from mlx_roster.loaders.models import load
from tests.engine import tiny


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("models") / "pristine")


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A model to be broken."""
    return shutil.copytree(pristine, tmp_path / "secret-place")


def loading(folder: Path, **limits: Any) -> Any:
    return load(tiny.source(folder, **limits), lambda done, total: None)


def configure(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def refusal(folder: Path) -> str:
    with pytest.raises(LoadFailed) as refused:
        loading(folder)
    message = refused.value.message
    assert message.startswith("model 'tiny': ")
    assert "secret-place" not in message
    assert "Error" not in message
    assert not isinstance(refused.value, LoadOutOfMemory)
    return message


@pytest.mark.parametrize(("family", "bits"), [("llama", None), ("qwen3", None), ("llama", 8)])
def test_model_loads_with_its_tokenizer_and_facts(tmp_path: Path, family: str, bits: int | None) -> None:
    loaded = loading(tiny.write_model(tmp_path / "model", family, bits=bits, hidden_size=64))
    assert (loaded.vocabulary, loaded.context, loaded.config["model_type"]) == (321, 512, family)
    assert loaded.tokenizer.eos_token_ids == {0}
    assert loaded.model(mx.array([[1, 2]])).shape == (1, 2, 321)


def test_progress_rises_to_the_bytes_of_all_weights(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    loaded = load(tiny.source(folder), lambda done, total: seen.append((done, total)), portion=1024)
    size = sum(array.nbytes for _, array in tree_flatten(loaded.model.parameters()))
    assert seen[0] == (0, size)
    assert seen[-1] == (size, size)
    assert len(seen) > 5
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    ("changes", "context"),
    [
        ({}, 512),
        ({"max_position_embeddings": ...}, None),
        ({"max_position_embeddings": ..., "text_config": {"max_position_embeddings": 64}}, 64),
    ],
)
def test_context_is_the_models_own(folder: Path, changes: dict[str, Any], context: int | None) -> None:
    configure(folder, **changes)
    # What the roster allows of it may change while the model is loaded.
    assert loading(folder, max_context=10).context == context


def test_end_of_sequence_tokens_come_from_the_config_too(folder: Path) -> None:
    configure(folder, eos_token_id=[2, 5])
    assert loading(folder).tokenizer.eos_token_ids == {0, 2, 5}


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(name: str, keep: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:keep])

    return change


def drop_tensor(folder: Path) -> None:
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    mx.eval(weights)
    del weights["model.norm.weight"]
    mx.save_safetensors(str(folder / "model.safetensors"), weights)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shutil.rmtree, "folder is missing"),
        (without("config.json"), "config.json is missing"),
        (cut("config.json", 20), "not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "no model_type"),
        (lambda folder: configure(folder, model_type=...), "no model_type"),
        (lambda folder: configure(folder, model_type="teapot"), "Model type teapot not supported"),
        (lambda folder: configure(folder, model_type="cache"), "do not make a model"),
        (lambda folder: configure(folder, hidden_size=...), "do not make a model"),
        (lambda folder: configure(folder, hidden_size=48), "Expected shape"),
        (lambda folder: configure(folder, num_hidden_layers=3), "Missing"),
        (lambda folder: configure(folder, num_hidden_layers=1), "Received"),
        (without("model.safetensors"), "no model*.safetensors"),
        (cut("model.safetensors", -100), "cut short"),
        (cut("model.safetensors", 30), "cut short"),
        (cut("model.safetensors", 0), "cut short"),
        (drop_tensor, "model.norm.weight"),
        (without("tokenizer.json"), "tokenizer"),
        (cut("tokenizer.json", 100), "tokenizer"),
    ],
)
def test_broken_folder_is_refused_in_words(folder: Path, change: Callable[[Path], None], words: str) -> None:
    change(folder)
    assert words in refusal(folder)


def with_model_file(folder: Path) -> None:
    configure(folder, model_file="own.py")
    (folder / "own.py").write_text(TRAP + "from mlx_lm.models.llama import Model, ModelArgs\n")


def with_config_code(folder: Path) -> None:
    configure(folder, auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    code = "from transformers import PretrainedConfig\nclass Config(PretrainedConfig): ...\nclass Model: ...\n"
    (folder / "own.py").write_text(TRAP + code)


def with_tokenizer_code(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"auto_map": {"AutoTokenizer": [None, "own.Own"]}, "tokenizer_class": "Own"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    code = "from transformers import PreTrainedTokenizerFast\nclass Own(PreTrainedTokenizerFast): ...\n"
    (folder / "own.py").write_text(TRAP + code)


#: Code that leaves a mark where it runs.
TRAP = "import os\nfrom pathlib import Path\nPath(os.environ['TRAP']).touch()\n"

#: A load in a process of its own: with transformers' cache of modules, which it reads once, in a place of its own.
LOAD = """
import sys
from mlx_roster.core import ModelSource
from mlx_roster.loaders.models import load
load(ModelSource("tiny", sys.argv[1], memory=2**30, trust_remote_code=True), lambda done, total: None)
"""


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        (with_model_file, "model_file in config.json.* only with trust_remote_code: true"),
        (with_config_code, None),
        (with_tokenizer_code, "its tokenizer cannot be loaded"),
    ],
)
def test_model_code_never_runs_without_opt_in(
    folder: Path, change: Callable[[Path], None], refused: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = folder / "sprung"
    monkeypatch.setenv("TRAP", str(trap))
    change(folder)
    if refused is None:
        assert loading(folder).vocabulary == 321  # by mlx-lm's own code
    else:
        with pytest.raises(LoadFailed, match=refused):
            loading(folder)
    assert not trap.exists()


@pytest.mark.parametrize("change", [with_model_file, with_tokenizer_code])
def test_model_code_runs_where_its_entry_says_so(folder: Path, change: Callable[[Path], None], tmp_path: Path) -> None:
    change(folder)
    trap = tmp_path / "sprung"
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "TRAP": str(trap)}
    subprocess.run([sys.executable, "-c", LOAD, str(folder)], env=environment, check=True)
    assert trap.exists()


def test_model_code_that_is_broken_is_refused_in_words(folder: Path) -> None:
    configure(folder, model_file="own.py")
    (folder / "own.py").write_text("class Model(:\n")
    trusting = msgspec.structs.replace(tiny.source(folder), trust_remote_code=True)
    with pytest.raises(LoadFailed, match="do not make a model"):
        load(trusting, lambda done, total: None)


def test_cache_that_cannot_be_batched_is_refused(folder: Path) -> None:
    """llama4 attends in chunks, and mlx-lm has no batched form of that cache."""
    text = {
        "model_type": "llama4_text",
        "attention_bias": False,
        "attention_chunk_size": 16,
        "head_dim": 8,
        "hidden_act": "silu",
        "hidden_size": 32,
        "interleave_moe_layer_step": 2,
        "intermediate_size": 32,
        "intermediate_size_mlp": 32,
        "max_position_embeddings": 64,
        "num_attention_heads": 4,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "num_local_experts": 2,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "use_qk_norm": True,
        "vocab_size": 321,
        "attn_temperature_tuning": 4,
        "floor_scale": 8192,
        "attn_scale": 0.1,
    }
    config = {"model_type": "llama4", "text_config": text}
    model = llama4.Model(llama4.ModelArgs.from_dict(config))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps(config))
    assert "cannot be decoded in batches" in refusal(folder)


def test_running_out_of_memory_is_told_apart(folder: Path) -> None:
    source = ModelSource("tiny", str(folder), memory=2**30)
    for error in (MemoryError(), RuntimeError("[metal::malloc] Unable to allocate 1234 bytes")):
        with pytest.raises(LoadOutOfMemory, match="not enough memory"):
            models._fail_over(source, "anything", error)


def test_a_template_of_the_roster_comes_instead_of_the_models_own(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("never: {{ messages[0].content }}")
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    # mlx-lm has some models' templates in Python, and the tool parser follows from the template.
    tokenizer |= {"chat_template": "nor this", "chat_template_type": "deepseek_v32"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    template = "ours: {{ messages[0].content }}{# <tool_call> tool_call.name #}"
    source = msgspec.structs.replace(tiny.source(folder), chat_template=template)
    loaded = load(source, lambda done, total: None)
    said = loaded.tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert said == "ours: hi"
    assert loaded.tokenizer.has_tool_calling


def test_what_a_model_recommends_is_told(folder: Path) -> None:
    assert loading(folder).generation == {}
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "top_k": 20, "max_new_tokens": "x"}')
    assert loading(folder).generation == {"temperature": 0.6, "top_k": 20}
