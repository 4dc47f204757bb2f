from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_roster.errors import LoadFailed
from mlx_roster.loaders.sizes import adapter_bytes, estimate, shards, tensor_bytes, total, weights_bytes


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


def model(folder: Path, files: Mapping[str, int], index: object = None) -> Path:
    for name, size in files.items():
        write(folder / name, tensors(size), size)
    if index is not None:
        content = index if isinstance(index, bytes) else json.dumps(index).encode()
        (folder / "model.safetensors.index.json").write_bytes(content)
    return folder


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
    write(tmp_path / "adapters.safetensors", tensors(7), 7)
    write(tmp_path / "0000100_adapters.safetensors", tensors(7), 7)
    assert adapter_bytes(tmp_path) == 7


def test_an_adapter_of_peft(tmp_path: Path) -> None:
    write(tmp_path / "adapter_model.safetensors", tensors(9), 9)
    assert adapter_bytes(tmp_path) == 9
    write(tmp_path / "adapters.safetensors", tensors(7), 7)
    assert adapter_bytes(tmp_path) == 9


def test_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match=r"^there is no adapters\.safetensors and no adapter_model\.safetensors$"):
        adapter_bytes(tmp_path)
    with pytest.raises(LoadFailed, match=r"^its folder does not exist$"):
        adapter_bytes(tmp_path / "missing")


def test_a_bank_has_slots_as_large_as_the_largest_adapter_and_one_for_none(tmp_path: Path) -> None:
    folder = model(tmp_path / "model", {"model.safetensors": 1000})
    adapters = [tmp_path / str(size) for size in (10, 300, 200)]
    for adapter in adapters:
        write(adapter / "adapters.safetensors", tensors(int(adapter.name)), int(adapter.name))
    assert estimate(folder, adapters, 2, 0.1) == (1000 + 3 * 300) * 1.1
    assert estimate(folder, adapters, 8, 0.0) == 1000 + 4 * 300
    assert estimate(folder, [], 8, 0.1) == 1100


def test_an_adapter_in_half_precision_takes_twice_its_file(tmp_path: Path) -> None:
    header = {
        "a": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
        "c": {"dtype": "F16", "shape": [2], "data_offsets": [12, 16]},
    }
    write(tmp_path / "adapters.safetensors", header, 16)
    assert adapter_bytes(tmp_path) == 2 * 8 + 4 + 2 * 4


def test_an_adapter_that_cannot_be_read_does_not_fail_its_base(tmp_path: Path) -> None:
    folder = model(tmp_path / "model", {"model.safetensors": 1000})
    write(tmp_path / "broken" / "adapters.safetensors", b"{")
    assert estimate(folder, [tmp_path / "broken", tmp_path / "missing"], 8, 0.0) == 1000


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
    assert total(100, [10, 20], 1, 0.1) == 154
