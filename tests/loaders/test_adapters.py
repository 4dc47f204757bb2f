"""Adapter folders: the format is chosen by what is there, identities follow contents, and refusals are remembered."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_roster.core import AdapterSource
from mlx_roster.errors import AdapterIncompatible
from mlx_roster.loaders.adapters import Adapters
from mlx_roster.tensors import AdapterWeights, Target
from tests.loaders.adapter_folders import LAYER, TARGETS, lora, offenders, refused, write_mlxlm, write_peft

BOTH = pytest.mark.parametrize("write", [write_mlxlm, write_peft])


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def refusal(reader: Adapters, source: AdapterSource) -> str:
    with pytest.raises(AdapterIncompatible) as error:
        reader.read(source, TARGETS)
    return error.value.message


#: Where the names go of files that are opened below a folder. An audit hook, once added, stays.
_watched: dict[str, list[str]] = {}


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _watched and isinstance(arguments[0], str | Path):
        for folder, names in _watched.items():
            if str(arguments[0]).startswith(folder):
                names.append(Path(arguments[0]).name)


sys.addaudithook(_watch)


@contextmanager
def opened(folder: Path) -> Iterator[list[str]]:
    """The files below `folder` that are opened meanwhile."""
    _watched[str(folder)] = names = []
    try:
        yield names
    finally:
        del _watched[str(folder)]


def forge(folder: Path, header: object, payload: bytes = b"", *, length: int | None = None) -> AdapterSource:
    """An adapter of mlx-lm's whose safetensors file has this header."""
    source = write_mlxlm(folder)
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = struct.pack("<Q", len(text) if length is None else length)
    (folder / "adapters.safetensors").write_bytes(size + text + payload)
    return source


@BOTH
def test_weights_read_on_one_thread_are_computed_with_on_another(tmp_path: Path, write: type) -> None:
    source = write(tmp_path)
    found: list[AdapterWeights] = []
    thread = threading.Thread(target=lambda: found.append(Adapters().read(source, TARGETS)))
    thread.start()
    while thread.is_alive():
        # What the engine does meanwhile: neither may wait for the other.
        mx.eval(mx.ones((64, 64)) @ mx.ones((64, 64)))
    pair = found[0].layers[LAYER]
    assert (mx.ones((1, 8)) @ pair.a @ pair.b).shape == (1, 6)


def test_the_config_decides_between_both_formats(tmp_path: Path) -> None:
    write_peft(tmp_path)
    assert Adapters().read(write_mlxlm(tmp_path), TARGETS).layers[LAYER].b[0, 0].item() == 2.0
    values = lora(LAYER)
    weights = Adapters().read(write_peft(tmp_path, values), TARGETS)
    assert mx.array_equal(weights.layers[LAYER].a, values[f"{LAYER}.lora_A.weight"].T)


def test_a_config_without_its_format_is_told_what_is_there(tmp_path: Path) -> None:
    source = write_peft(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapters.safetensors")
    assert "has a peft_type, but its folder has adapters.safetensors" in refused(source)
    source = write_mlxlm(tmp_path)
    (tmp_path / "adapters.safetensors").rename(tmp_path / "adapter_model.safetensors")
    assert "has no peft_type, but its folder has adapter_model.safetensors" in refused(source)


def test_pickles_are_never_read(tmp_path: Path) -> None:
    source = write_peft(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    assert "pickled in adapter_model.bin, which is never read" in refused(source)


def identity(reader: Adapters, source: AdapterSource) -> str:
    return reader.known(source) or reader.read(source, TARGETS).identity


@BOTH
def test_identity_is_that_of_the_contents(tmp_path: Path, write: type) -> None:
    one = write(tmp_path / "one")
    same = AdapterSource("other", str(shutil.copytree(tmp_path / "one", tmp_path / "same")))
    other = {"lora_alpha": 1} if write is write_peft else {"lora_parameters": {"scale": 1.0, "rank": 2}}
    scaled = write(tmp_path / "scaled", **other)
    reader = Adapters()
    assert identity(reader, one) == identity(reader, same) == Adapters().read(one, TARGETS).identity
    assert identity(reader, scaled) != identity(reader, one)


@BOTH
def test_identity_follows_the_files(tmp_path: Path, write: type) -> None:
    reader = Adapters()
    source = write(tmp_path)
    before = identity(reader, source)
    assert identity(reader, source) == before
    file = next(tmp_path.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    # As rsync and tar leave it: other contents, the same size and time of change.
    os.utime(file, ns=(0, 0))
    changed = identity(reader, source)
    assert changed == Adapters().read(source, TARGETS).identity != before
    content[-2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(0, 0))
    assert identity(reader, source) == Adapters().read(source, TARGETS).identity != changed


def test_identity_of_unchanged_files_opens_none(tmp_path: Path) -> None:
    reader = Adapters()
    source = write_mlxlm(tmp_path)
    with opened(tmp_path) as files:
        before = identity(reader, source)
        assert sorted(files) == ["adapter_config.json", "adapters.safetensors"]
        assert identity(reader, source) == before
        assert len(files) == 2


def test_a_reader_refuses_what_its_base_has_no_place_for(tmp_path: Path) -> None:
    source = write_mlxlm(tmp_path)
    assert Adapters().read(source, TARGETS).layers[LAYER].a.shape == (8, 2)
    with pytest.raises(AdapterIncompatible, match="no layer of that name"):
        Adapters().read(source, {"other": TARGETS[LAYER]})


@BOTH
def test_missing_files_are_named(tmp_path: Path, write: type) -> None:
    source = write(tmp_path)
    tensors = next(tmp_path.glob("*.safetensors")).name
    for name in (tensors, "adapter_config.json"):
        (tmp_path / name).unlink()
        assert name in refused(source)
        with pytest.raises(AdapterIncompatible, match=name):
            Adapters().read(source, TARGETS)
    assert "its folder does not exist" in refused(AdapterSource("gone", str(tmp_path / "gone")))
    assert "its folder does not exist" in refused(AdapterSource("nul", "a\0b"))


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe", b"", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000])
def test_config_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    source = write_mlxlm(tmp_path)
    (tmp_path / "adapter_config.json").write_bytes(content)
    assert "adapter_config.json is not" in refused(source)


@pytest.mark.parametrize("keep", [0, 4, 60, -10])
def test_tensors_cut_short_are_refused(tmp_path: Path, keep: int) -> None:
    source = write_mlxlm(tmp_path)
    file = tmp_path / "adapters.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert "adapters.safetensors is cut short or damaged" in refused(source)


@BOTH
def test_file_without_tensors_is_refused(tmp_path: Path, write: type) -> None:
    assert "no tensors" in refused(write(tmp_path, {}))


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9, 0])
def test_headers_of_a_claimed_length_are_not_believed(tmp_path: Path, length: int) -> None:
    assert "cut short or damaged" in refused(forge(tmp_path, {}, length=length))


@pytest.mark.parametrize(
    "tensor",
    [
        {"dtype": "F32", "shape": [8, 2], "data_offsets": [0, 2**60]},
        {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 64]},
        {"dtype": "F32", "shape": [8, 2], "data_offsets": [64, 0]},
        {"dtype": "F32", "shape": [-8, 2], "data_offsets": [0, 64]},
        {"dtype": "F1024", "shape": [8, 2], "data_offsets": [0, 64]},
        {"dtype": "F32", "shape": [8, 3], "data_offsets": [0, 64]},
        [],
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, tensor: object) -> None:
    assert "cut short or damaged" in refused(forge(tmp_path, {f"{LAYER}.lora_a": tensor}, bytes(64)))


def test_tensors_that_overlap_are_refused(tmp_path: Path) -> None:
    shared = {"dtype": "F32", "shape": [8, 2], "data_offsets": [0, 64]}
    source = forge(tmp_path, {f"{LAYER}.lora_a": shared, f"{LAYER}.lora_b": shared}, bytes(64))
    assert "cut short or damaged" in refused(source)


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    tensor = '"%s.lora_a":{"dtype":"F32","shape":[8,2],"data_offsets":[%d,%d]}'
    header = "{" + ",".join(tensor % (LAYER, begin, begin + 64) for begin in (0, 64)) + "}"
    refused(forge(tmp_path, header.encode(), bytes(128)))


def test_files_too_large_for_any_adapter_are_not_read(tmp_path: Path) -> None:
    source = write_mlxlm(tmp_path)
    with (tmp_path / "adapters.safetensors").open("wb") as file:
        file.truncate(10**12)
    assert "adapters.safetensors has 1000000000000 bytes" in refused(source)
    with pytest.raises(AdapterIncompatible, match=r"adapters\.safetensors has 1000000000000 bytes"):
        Adapters().read(source, TARGETS)
    with (tmp_path / "adapter_config.json").open("wb") as file:
        file.truncate(10**12)
    assert "adapter_config.json has 1000000000000 bytes" in refused(source)


@pytest.mark.parametrize("name", ["adapters.safetensors", "adapter_config.json"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    source = write_mlxlm(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    assert f"{name} is no regular file" in refused(source)
    with pytest.raises(AdapterIncompatible, match="no regular file"):
        Adapters().read(source, TARGETS)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    assert f"{name} is no regular file" in refused(source)


def test_names_are_shown_on_one_line_and_cut(tmp_path: Path) -> None:
    tensors = {"x" * 1000 + ".lora_a": mx.ones((8, 2)), "two\nlines\x1b[31m.lora_a": mx.ones((8, 2))}
    lines = refused(write_mlxlm(tmp_path, tensors)).splitlines()
    assert len(lines) == 3
    assert "two\\nlines\\x1b[31m.lora_a: shape" in lines[1]
    assert 200 < len(lines[2]) < 320


def test_a_thousand_offending_tensors_are_all_listed(tmp_path: Path) -> None:
    tensors = {f"model.layers.{index}.x.lora_a": mx.ones((1, 1)) for index in range(1000)}
    assert sorted(offenders(refused(write_mlxlm(tmp_path, tensors)))) == sorted(tensors)


def test_a_list_that_would_fill_a_frame_is_cut(tmp_path: Path) -> None:
    header = {
        f"{'x' * 180}{index}.lora_a": {"dtype": "F32", "shape": [0, 1], "data_offsets": [0, 0]}
        for index in range(10_000)
    }
    message = refused(forge(tmp_path, header))
    assert len(message) < 2**21
    listed = len(message.splitlines()) - 2
    assert message.endswith(f"and {10_000 - listed} more")


@BOTH
def test_a_refusal_is_remembered_until_its_cooldown_has_passed(tmp_path: Path, write: type) -> None:
    clock = Clock()
    reader = Adapters(clock)
    source = write(tmp_path, {"x": mx.ones((1,))})
    first = refusal(reader, source)
    waits = []
    with opened(tmp_path) as files:
        for _ in range(7):
            begin = clock.now
            while not files:
                clock.now += 1.0
                assert refusal(reader, source) == first
            waits.append(clock.now - begin)
            files.clear()
    assert waits == [10, 20, 40, 80, 160, 300, 300]


def test_a_folder_that_cannot_be_identified_cools_down_too(tmp_path: Path) -> None:
    clock = Clock()
    reader = Adapters(clock)
    source = write_mlxlm(tmp_path)
    (tmp_path / "adapter_config.json").write_text("[]")
    with opened(tmp_path) as files:
        for later, reads in ((0, 1), (9, 1), (1, 2), (19, 2), (1, 3)):
            clock.now += later
            with pytest.raises(AdapterIncompatible, match="not a JSON object"):
                identity(reader, source)
            assert len(files) == reads


def test_a_remembered_refusal_names_who_asks(tmp_path: Path) -> None:
    reader = Adapters(Clock())
    source = write_mlxlm(tmp_path, {"x": mx.ones((1,))})
    assert refusal(reader, source).startswith("adapter 'mine': ")
    assert refusal(reader, AdapterSource("other", source.path)).startswith("adapter 'other': ")


def test_changed_files_end_a_cooldown(tmp_path: Path) -> None:
    reader = Adapters(Clock())
    source = write_mlxlm(tmp_path, {"x": mx.ones((1,))})
    refusal(reader, source)
    assert reader.read(write_mlxlm(tmp_path), TARGETS).layers.keys() == {LAYER}


def test_a_folder_that_appears_ends_a_cooldown(tmp_path: Path) -> None:
    reader = Adapters(Clock())
    source = AdapterSource("mine", str(tmp_path / "later"))
    with pytest.raises(AdapterIncompatible):
        identity(reader, source)
    write_mlxlm(tmp_path / "later")
    assert identity(reader, source) == Adapters().read(source, TARGETS).identity


def test_another_base_ends_a_cooldown(tmp_path: Path) -> None:
    reader = Adapters(Clock())
    source = write_mlxlm(tmp_path)
    with pytest.raises(AdapterIncompatible):
        reader.read(source, {})
    assert reader.read(source, TARGETS).layers.keys() == {LAYER}


def test_success_ends_the_doubling(tmp_path: Path) -> None:
    clock = Clock()
    reader = Adapters(clock)
    source = write_mlxlm(tmp_path)
    other = {"other": TARGETS[LAYER]}

    def fail() -> None:
        with pytest.raises(AdapterIncompatible):
            reader.read(source, other)

    fail()
    clock.now += 10
    fail()
    reader.read(source, TARGETS)
    fail()
    clock.now += 10
    with opened(tmp_path) as files:
        fail()
    assert len(files) == 2


def test_what_is_remembered_is_bounded(tmp_path: Path) -> None:
    reader = Adapters(remembered=2)
    sources = [write_mlxlm(tmp_path / str(index)) for index in range(3)]
    for source in sources:
        reader.read(source, TARGETS)
    assert [reader.known(source) is not None for source in sources] == [False, True, True]


def test_a_header_too_long_for_any_adapter_is_not_looked_into(tmp_path: Path) -> None:
    tensor = '"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = "{" + ",".join(tensor % index for index in range(100_000)) + "}"
    source = forge(tmp_path, header.encode())
    with pytest.raises(AdapterIncompatible, match="too much for any adapter"):
        Adapters().read(source, {LAYER: Target("linear", 8192, 8192)})
