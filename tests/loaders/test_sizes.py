from __future__ import annotations

import json
import struct
import time
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_roster.config import AdapterEntry, KvSettings, ModelEntry
from mlx_roster.errors import LoadFailed
from mlx_roster.loaders.sizes import (
    Estimate,
    Weights,
    _length,
    _tensors,
    adapter_sides,
    bank_bytes,
    estimate,
    expert_count,
    read_config,
    shards,
    weights,
    weights_bytes,
)


def tensor_bytes(file: Path) -> int:
    """Of all tensors in a file."""
    return sum(map(_length, _tensors(file).values()))


def write(file: Path, header: object, payload: int = 0, *, length: int | None = None) -> Path:
    """A safetensors file with `header`, and `payload` bytes of tensors."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(payload))
    return file


def tensors(*sizes: int) -> dict[str, Any]:
    """The header of a file with tensors of so many bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    begin = 0
    for index, size in enumerate(sizes):
        header[f"layer.{index}"] = {"dtype": "U8", "shape": [size], "data_offsets": [begin, begin + size]}
        begin += size
    return header


def sides(sizes: Mapping[str, int], dtype: str = "F32") -> dict[str, Any]:
    """The header of a file with tensors of these names and bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    begin = 0
    for name, size in sizes.items():
        header[name] = {"dtype": dtype, "shape": [size // 4], "data_offsets": [begin, begin + size]}
        begin += size
    return header


def mlxlm(folder: Path, sizes: Mapping[str, int], dtype: str = "F32") -> Path:
    """An adapter's folder with the file that mlx-lm writes, its tensors of so many bytes."""
    write(folder / "adapters.safetensors", sides(sizes, dtype), sum(sizes.values()))
    return folder


def peft(folder: Path, sizes: Mapping[str, int], dtype: str = "F32") -> Path:
    """The same of PEFT; the names come without `base_model.model.`."""
    full = {f"base_model.model.{name}": size for name, size in sizes.items()}
    write(folder / "adapter_model.safetensors", sides(full, dtype), sum(sizes.values()))
    return folder


def model(folder: Path, files: Mapping[str, int], index: object = None) -> Path:
    for name, size in files.items():
        write(folder / name, tensors(size), size)
    if index is not None:
        content = index if isinstance(index, bytes) else json.dumps(index).encode()
        (folder / "model.safetensors.index.json").write_bytes(content)
    return folder


def entry(folder: Path, adapters: Sequence[Path] = (), **limits: Any) -> ModelEntry:
    """A model with these adapters, each by its number."""
    return ModelEntry(
        source=folder, adapters={str(number): AdapterEntry(source=one) for number, one in enumerate(adapters)}, **limits
    )


def weight_map(*names: str) -> dict[str, Any]:
    return {"metadata": {"total_size": 1}, "weight_map": {f"tensor.{i}": name for i, name in enumerate(names)}}


def test_the_header_is_not_counted(tmp_path: Path) -> None:
    assert tensor_bytes(write(tmp_path / "model.safetensors", tensors(100, 0, 24), 124)) == 124


@pytest.mark.parametrize("header", [{}, {"__metadata__": None}, {"__metadata__": {"format": "mlx"}}])
def test_a_file_without_tensors_takes_nothing(header: dict[str, Any], tmp_path: Path) -> None:
    assert tensor_bytes(write(tmp_path / "model.safetensors", header)) == 0


def test_weights_are_all_shards(tmp_path: Path) -> None:
    model(tmp_path, {"model-00001-of-00002.safetensors": 10, "model-00002-of-00002.safetensors": 5})
    assert weights_bytes(tmp_path) == 15


def test_files_that_mlx_lm_does_not_load_are_not_counted(tmp_path: Path) -> None:
    model(tmp_path, {"model.safetensors": 10, "consolidated.safetensors": 10, "adapters.safetensors": 3})
    assert weights_bytes(tmp_path) == 10


def test_an_index_says_which_files_count(tmp_path: Path) -> None:
    files = {"model-1.safetensors": 10, "model-2.safetensors": 5, "model-old.safetensors": 100}
    model(tmp_path, files, weight_map("model-1.safetensors", "model-2.safetensors", "model-1.safetensors"))
    assert weights_bytes(tmp_path) == 15


def test_a_missing_shard_is_noticed(tmp_path: Path) -> None:
    model(tmp_path, {"model-1.safetensors": 10}, weight_map(*(f"model-{n}.safetensors" for n in (1, 2, 3))))
    with pytest.raises(LoadFailed, match=r"^2 of 3 weight files are missing, model-2\.safetensors among them$"):
        shards(tmp_path)


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match=r"^there is no model\*\.safetensors$"):
        shards(tmp_path)
    model(tmp_path, {}, weight_map())
    with pytest.raises(LoadFailed, match=r"^there is no model\*\.safetensors$"):
        shards(tmp_path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b", "..", ".", "", "a\0b"])
def test_an_index_does_not_lead_out_of_the_folder(name: str, tmp_path: Path) -> None:
    model(tmp_path, {}, weight_map(name))
    with pytest.raises(LoadFailed, match=r"^model\.safetensors\.index\.json names a file outside the model's folder$"):
        shards(tmp_path)


@pytest.mark.parametrize("index", [b"", b"{", b"\xff", b"[]", {}, {"weight_map": {"a": 1}}, b"[" * 10**6])
def test_an_index_that_is_none(index: object, tmp_path: Path) -> None:
    model(tmp_path, {"model.safetensors": 1}, index)
    with pytest.raises(LoadFailed, match=r"^model\.safetensors\.index\.json is not a valid index$"):
        shards(tmp_path)


def test_an_enormous_index_is_not_read(tmp_path: Path) -> None:
    model(tmp_path, {"model.safetensors": 1}, {})
    with (tmp_path / "model.safetensors.index.json").open("wb") as file:
        file.truncate(10**9)
    with pytest.raises(LoadFailed, match="too large to be an index"):
        shards(tmp_path)


def test_an_adapter_without_its_checkpoints(tmp_path: Path) -> None:
    mlxlm(tmp_path, {"model.layers.0.mlp.up_proj.lora_a": 8})
    write(tmp_path / "0000100_adapters.safetensors", sides({"model.layers.0.mlp.up_proj.lora_b": 8}), 8)
    assert adapter_sides(tmp_path).whole == {"layers.0.mlp.up_proj.a": 8}


def test_both_formats_name_a_layer_alike(tmp_path: Path) -> None:
    ours = mlxlm(
        tmp_path / "ours",
        {
            "language_model.model.layers.0.mlp.up_proj.lora_a": 4,
            "language_model.model.layers.0.mlp.up_proj.lora_b": 8,
            "language_model.model.layers.0.mlp.up_proj.m": 12,
            "model.embed_tokens.lora_a": 16,
            "model.embed_tokens.lora_b": 20,
            "lm_head.lora_a": 24,
        },
    )
    theirs = peft(
        tmp_path / "theirs",
        {
            "model.layers.0.mlp.up_proj.lora_A.weight": 4,
            "model.layers.0.mlp.up_proj.lora_B.default.weight": 8,
            "model.layers.0.mlp.up_proj.lora_magnitude_vector": 12,
            "model.embed_tokens.lora_embedding_A": 16,
            "model.embed_tokens.lora_embedding_B.default": 20,
            "lm_head.lora_A.weight": 24,
        },
    )
    assert adapter_sides(ours) == adapter_sides(theirs)
    assert sorted(adapter_sides(ours).whole.values()) == [4, 8, 12, 16, 20, 24]
    dora = peft(tmp_path / "dora", {"model.layers.0.mlp.up_proj.lora_magnitude_vector.default.weight": 12})
    assert adapter_sides(dora).whole == {"layers.0.mlp.up_proj.m": 12}


def test_of_both_formats_in_one_folder_the_larger_counts(tmp_path: Path) -> None:
    peft(tmp_path, {"q.lora_A.weight": 4, "q.lora_B.weight": 12})
    mlxlm(tmp_path, {"q.lora_a": 8, "q.lora_b": 8})
    assert adapter_sides(tmp_path).whole == {"q.a": 8, "q.b": 12}


def test_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match=r"^there is no adapters\.safetensors and no adapter_model\.safetensors$"):
        adapter_sides(tmp_path)
    with pytest.raises(LoadFailed, match=r"^its folder does not exist$"):
        adapter_sides(tmp_path / "missing")


@pytest.mark.parametrize(
    ("most", "count", "slots"),
    [
        (8, 0, 0),
        (8, 1, 2),
        (8, 2, 4),
        (8, 3, 4),
        (8, 4, 8),
        (8, 8, 9),
        (8, 99, 9),
        (2, 9, 3),
        (1, 9, 2),
        (0, 9, 0),
        (5, 4, 6),
    ],
)
def test_slots_double_up_to_the_limit_and_one_is_for_none(most: int, count: int, slots: int, tmp_path: Path) -> None:
    adapter = adapter_sides(mlxlm(tmp_path, {"q.lora_a": 8}))
    assert bank_bytes([adapter] * count, most, None) == slots * 8


def test_a_slot_has_every_layer_at_its_largest_rank(tmp_path: Path) -> None:
    folder = model(tmp_path / "model", {"model.safetensors": 1000})
    adapters = [
        mlxlm(tmp_path / "a", {"q.lora_a": 8, "q.lora_b": 16}),
        mlxlm(tmp_path / "b", {"q.lora_a": 12, "q.lora_b": 24}),
        peft(tmp_path / "c", {"v.lora_A.weight": 100, "v.lora_B.weight": 200}),
    ]
    assert estimate(folder, entry(folder, adapters), 0.1) == Estimate(1000, 4 * (12 + 24 + 100 + 200), 0.1)
    # The two that are there may be any of them.
    assert estimate(folder, entry(folder, adapters, max_adapters=2), 0.0).total == 1000 + 3 * 336
    assert estimate(folder, entry(folder), 0.1).total == 1100


def test_caches_are_as_wide_as_most_of_the_numbers_that_are_computed_with(tmp_path: Path) -> None:
    def typed(**sizes: int) -> Path:
        begin, header = 0, {}
        for dtype, size in sizes.items():
            header[dtype] = {"dtype": dtype, "shape": [size], "data_offsets": [begin, begin + size]}
            begin += size
        write(tmp_path / "model.safetensors", header, begin)
        return tmp_path

    assert weights(typed(F32=8, BF16=4)) == Weights(12, 4)
    assert weights(typed(U32=100, F16=8, F32=4)) == Weights(112, 2)
    assert weights(typed(U8=100)) == Weights(100, 2)


def test_estimate_has_what_is_reserved_for_sequences(tmp_path: Path) -> None:
    folder = model(tmp_path, {"model.safetensors": 10**6})
    config = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "max_position_embeddings": 20}
    (folder / "config.json").write_text(json.dumps(config))
    found = estimate(folder, entry(folder), 0.1)
    assert (found.kv, found.total) == (32 * 20 * 128, 1_100_000 + 32 * 20 * 128)
    assert estimate(folder, entry(folder, max_context=5), 0.1).kv == 32 * 5 * 128
    assert estimate(folder, entry(folder, max_context=99, max_concurrency=3), 0.1).kv == 3 * 20 * 128


def test_estimate_knows_of_quantized_caches(tmp_path: Path) -> None:
    folder = model(tmp_path, {"model.safetensors": 10**6})
    config = {"num_hidden_layers": 2, "hidden_size": 512, "num_attention_heads": 4, "max_position_embeddings": 20}
    (folder / "config.json").write_text(json.dumps(config))
    # 2,048 numbers a token, in two bytes each.
    assert estimate(folder, entry(folder, max_concurrency=1), 0.1).kv == 20 * 4096
    quantized = KvSettings(bits=4, group_size=128)
    assert estimate(folder, entry(folder, max_concurrency=1, kv=quantized), 0.1).kv == 20 * (1024 + 2048 // 128 * 4)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_an_adapter_in_half_precision_takes_twice_its_file(dtype: str, tmp_path: Path) -> None:
    assert adapter_sides(mlxlm(tmp_path, {"q.lora_a": 8}, dtype)).whole == {"q.a": 16}
    assert adapter_sides(mlxlm(tmp_path, {"q.lora_a": 8})).whole == {"q.a": 8}


def test_an_expert_takes_the_room_of_all(tmp_path: Path) -> None:
    block = "model.layers.0.block_sparse_moe"
    adapters = [
        peft(tmp_path / "one", {f"{block}.experts.1.w3.lora_A.weight": 8}),
        peft(tmp_path / "two", {f"{block}.experts.{expert}.w3.lora_A.weight": 4 * expert for expert in (1, 3)}),
        mlxlm(
            tmp_path / "stacked", {f"{block}.switch_mlp.up_proj.lora_a": 64, f"{block}.switch_mlp.up_proj.lora_b": 8}
        ),
    ]
    sides = [adapter_sides(adapter) for adapter in adapters]
    assert bank_bytes(sides[:1], 8, 64) == 2 * 64 * 8
    assert bank_bytes(sides[:2], 8, 64) == 4 * 64 * 12
    # One for an expert that is not there is refused.
    assert bank_bytes(sides[:2], 8, 3) == 4 * 3 * 8
    assert bank_bytes(sides, 8, 4) == 4 * (64 + 8)
    assert bank_bytes(sides, 8, 8) == 4 * (8 * 12 + 8)
    # Not told, there are as many as one has named.
    assert bank_bytes(sides[1:2], 8, None) == 2 * 4 * 12
    assert bank_bytes(sides[:1], 8, None) == 2 * 2 * 8


@pytest.mark.parametrize("name", ["model.layers.0.mlp.experts.12345.w1", "model.layers.0.mlp.experts.٣.w1"])
def test_an_experts_number_is_not_believed_whatever_it_is(name: str, tmp_path: Path) -> None:
    adapter = adapter_sides(peft(tmp_path, {f"{name}.lora_A.weight": 8}))
    assert bank_bytes([adapter], 8, None) == 2 * 8


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({"num_local_experts": 8}, 8),
        ({"num_experts": 64, "num_experts_per_tok": 4}, 64),
        ({"n_routed_experts": 256}, 256),
        ({"text_config": {"num_experts": 128}}, 128),
        ({"num_experts": None, "n_routed_experts": 4, "limit": float("inf")}, 4),
        ({}, None),
        ([], None),
        ({"text_config": 3}, None),
        *[({"num_experts": count}, None) for count in (0, -1, 10**30, True, 1.5, "8", [8])],
        (b"{", None),
        (b"[" * 10**6, None),
    ],
)
def test_experts_are_counted_by_the_config(config: object, count: int | None, tmp_path: Path) -> None:
    content = config if isinstance(config, bytes) else json.dumps(config).encode()
    (tmp_path / "config.json").write_bytes(content)
    assert expert_count(read_config(tmp_path)) == count


def test_without_a_config_experts_are_not_counted(tmp_path: Path) -> None:
    assert expert_count(read_config(tmp_path)) is None


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "q.lora_c", "lora_a", "q.lora_B.bias", "", "." * 9999])
def test_what_is_no_lora_counts_for_nothing(name: str, tmp_path: Path) -> None:
    assert adapter_sides(mlxlm(tmp_path, {name: 8, "q.lora_a": 4})).whole == {"q.a": 4}


def test_a_name_may_be_of_any_length(tmp_path: Path) -> None:
    name = ".".join(["model"] * 10**6)
    assert adapter_sides(mlxlm(tmp_path, {f"{name}.lora_a": 8})).whole == {"model.a": 8}


def test_an_adapter_that_cannot_be_read_does_not_fail_its_base(tmp_path: Path) -> None:
    folder = model(tmp_path / "model", {"model.safetensors": 1000})
    write(tmp_path / "broken" / "adapters.safetensors", b"{")
    assert estimate(folder, entry(folder, [tmp_path / "broken", tmp_path / "missing"]), 0.0).total == 1000


def test_a_thousand_adapters_are_estimated_at_once(tmp_path: Path) -> None:
    folder = model(tmp_path / "model", {"model.safetensors": 1000})
    paths = [f"model.layers.{layer}.self_attn.{name}" for layer in range(32) for name in ("q_proj", "v_proj")]
    adapters = [
        mlxlm(tmp_path / str(number), {f"{path}.lora_{side}": 4 * (1 + number % 7) for path in paths for side in "ab"})
        for number in range(1000)
    ]
    listed = entry(folder, adapters)
    begin = time.process_time()
    found = estimate(folder, listed, 0.0)
    assert time.process_time() - begin < 1
    assert found.bank == 9 * 128 * 28


@pytest.mark.parametrize(
    ("header", "payload", "problem"),
    [
        (b"", 0, "has a header that cannot be read"),
        (b"{", 0, "has a header that cannot be read"),
        (b"\xff\xfe", 0, "has a header that cannot be read"),
        (b"[]", 0, "has a header that cannot be read"),
        ({"a": 1}, 0, "has a header that cannot be read"),
        ({"a": {"data_offsets": [0]}}, 8, "has a header that cannot be read"),
        ({"a": {"data_offsets": [0, 1.5]}}, 8, "has a header that cannot be read"),
        ({"a": {"data_offsets": "08"}}, 8, "has a header that cannot be read"),
        (b'{"a": ' + b"[" * 10**6, 0, "has a header that cannot be read"),
        ({"a": {}}, 8, "has a tensor without data_offsets"),
        ({"a": None}, 8, "has a tensor without data_offsets"),
        ({"a": {"data_offsets": None}}, 8, "has a tensor without data_offsets"),
        ({"a": {"data_offsets": [-8, 0]}}, 8, "has a tensor with impossible data_offsets"),
        ({"a": {"data_offsets": [8, 0]}}, 8, "has a tensor with impossible data_offsets"),
        (tensors(8, 8), 12, "is cut short: it has 12 bytes of tensors and a tensor that ends at 16"),
        (
            {"a": {"data_offsets": [0, 10**30]}},
            8,
            f"is cut short: it has 8 bytes of tensors and a tensor that ends at {10**30}",
        ),
        ({"a": {"data_offsets": [0, 8]}, "b": {"data_offsets": [0, 8]}}, 8, "has tensors that overlap"),
    ],
)
def test_a_header_that_lies(header: object, payload: int, problem: str, tmp_path: Path) -> None:
    file = write(tmp_path / "model.safetensors", header, payload)
    with pytest.raises(LoadFailed) as refused:
        tensor_bytes(file)
    assert refused.value.message == f"model.safetensors {problem}"


@pytest.mark.parametrize("content", [b"", b"\x01", bytes(7), struct.pack("<Q", 3) + b"{}", b"version https://git-lfs"])
def test_a_file_that_is_too_short(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(LoadFailed, match=r"^model\.safetensors is cut short or no safetensors file$"):
        weights_bytes(tmp_path)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**12])
def test_a_length_is_not_believed(length: int, tmp_path: Path) -> None:
    file = write(tmp_path / "model.safetensors", {}, 100, length=length)
    tracemalloc.start()
    try:
        with pytest.raises(LoadFailed, match="is cut short or no safetensors file"):
            tensor_bytes(file)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_an_enormous_header_is_not_read_even_if_it_is_there(tmp_path: Path) -> None:
    file = write(tmp_path / "model.safetensors", {}, length=200 * 10**6)
    with file.open("r+b") as stream:
        stream.truncate(10**9)
    with pytest.raises(LoadFailed, match=r"^model\.safetensors has a header of 200000000 bytes; 100000000 is the most"):
        tensor_bytes(file)


def test_a_folder_where_a_file_should_be(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(LoadFailed, match=r"^model\.safetensors cannot be read: Is a directory$"):
        tensor_bytes(tmp_path / "model.safetensors")


@given(st.binary(max_size=64), st.one_of(st.none(), st.integers(0, 80)))
def test_any_bytes_are_a_size_or_a_failed_load(content: bytes, length: int | None) -> None:
    with TemporaryDirectory() as folder:
        file = write(Path(folder) / "model.safetensors", content, 16, length=length)
        try:
            size = tensor_bytes(file)
        except LoadFailed:
            size = 0
    assert 0 <= size <= 16 + len(content)


def test_headroom_is_added_to_all_of_it() -> None:
    assert Estimate(weights=100, bank=40, headroom=0.1).total == 154
