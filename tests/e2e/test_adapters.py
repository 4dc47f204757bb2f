"""Adapters as a client meets them: one worker, one base in it, and whatever adapters are asked for. Real sockets."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest
from mlx_lm.utils import load_tokenizer

from mlx_roster.loaders.sizes import weights_bytes
from tests.engine import tiny
from tests.serving import PATIENCE, Server, serving
from tests.toys import babbler

PROMPT = "What is the capital of France?"
SHORT, LONG = 24, 600
#: More tokens than any test waits for: a stream that is there until the client leaves.
ENDLESS = 30_000
COLD = [f"cold{index}" for index in range(6)]
KEYS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")


@dataclass(frozen=True)
class Toy:
    """A server over one base that babbles, its adapters' folders, and what mlx-lm says with each, and with none."""

    server: Server
    base: Path
    adapters: dict[str, Path]
    mlx_lm: dict[str | None, str]
    #: A copy of the one that changes, as it was at first.
    kept: Path

    @property
    def takes(self) -> int:
        """How often a worker was given the base to load."""
        return sum(line.endswith("takes toy") for line in self.server.lines)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toy]:
    folder = tmp_path_factory.mktemp("adapters")
    base = babbler(folder / "toy")
    adapters = {
        name: tiny.write_adapter(folder / name, base, seed=seed, rank=2 + seed % 5, keys=KEYS, scale=0.5)
        for seed, name in enumerate(["first", "second", "changing", *COLD])
    }
    kept = shutil.copytree(adapters["changing"], folder / "kept")
    said = {name: _mlx_lm(base, over) for name, over in adapters.items()} | {None: _mlx_lm(base, None)}
    assert len(set(said.values())) == len(said)
    other = babbler(folder / "other", hidden=32)
    adapters["wrong"] = tiny.write_adapter(folder / "wrong", other, seed=99, keys=KEYS[:2])
    listed = ", ".join(f"{name}: {path}" for name, path in adapters.items())
    roster = folder / "roster.yaml"
    # Fewer slots than adapters.
    roster.write_text(
        f"default_model: toy\nmodels:\n  toy: {{source: {base}, max_adapters: 4, adapters: {{{listed}}}}}\n"
    )
    with serving("serve", str(roster)) as server:
        yield Toy(server, base, adapters, said, kept)


def _mlx_lm(base: Path, over: Path | None) -> str:
    tokenizer = load_tokenizer(base)
    text: str = tokenizer.decode(tiny.solo(base, tokenizer.encode(PROMPT), SHORT, over), skip_special_tokens=True)
    return text


@pytest.fixture
def client(toy: Toy) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=toy.server.url, timeout=PATIENCE) as client:
        yield client


def body(model: str, tokens: int, **fields: object) -> dict[str, object]:
    return {"model": model, "prompt": PROMPT, "max_tokens": tokens, "temperature": 0} | fields


def complete(client: httpx.Client, model: str, tokens: int = SHORT) -> httpx.Response:
    return client.post("/completions", json=body(model, tokens))


def text(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["text"])


@contextmanager
def streaming(client: httpx.Client, model: str, tokens: int = ENDLESS) -> Iterator[Iterator[str]]:
    """The pieces of a stream's text, until the block ends. If all are read, it must have ended well."""
    with client.stream("POST", "/completions", json=body(model, tokens, stream=True)) as response:
        assert response.status_code == 200
        yield _pieces(response)


def _pieces(response: httpx.Response) -> Iterator[str]:
    finish = None
    for line in response.iter_lines():
        if line == "data: [DONE]":
            assert finish == "length"
            return
        if line.startswith("data: "):
            choice = json.loads(line.removeprefix("data: "))["choices"][0]
            finish = choice["finish_reason"]
            yield choice["text"]
    raise AssertionError("the stream was cut off")


def undisturbed(client: httpx.Client, model: str, beside: list[str]) -> None:
    """Check that a stream with others beside it said what one says that has the engine for itself."""
    said, alone = "".join(beside), ""
    with streaming(client, model) as pieces:
        while len(alone) < len(said):
            alone += next(pieces)
    assert alone.startswith(said)


def running(client: httpx.Client, model: str = "toy") -> int:
    count = client.get(f"/models/{model}").json()["roster"]["in_flight"]
    assert isinstance(count, int)
    return count


def test_adapter_switch_does_not_reload_the_base(toy: Toy, client: httpx.Client) -> None:
    assert text(complete(client, "toy")) == toy.mlx_lm[None]
    worker = psutil.Process(toy.server.worker("toy"))
    takes, log = toy.takes, len(toy.server.lines)
    for adapter in ("first", "second", None, "first", *COLD, None, "second"):
        response = complete(client, "toy" if adapter is None else f"toy:{adapter}")
        assert text(response) == toy.mlx_lm[adapter], adapter
        assert response.headers["x-roster-load-ms"] == "0"
    assert toy.server.worker("toy") == worker.pid
    assert worker.is_running()
    assert toy.takes == takes
    assert not any("INFO load model=" in line for line in toy.server.lines[log:])


def test_adapters_with_model_omitted_is_applied(toy: Toy, client: httpx.Client) -> None:
    asked = body("toy", SHORT, adapters="second")
    del asked["model"]
    response = client.post("/completions", json=asked)
    assert text(response) == toy.mlx_lm["second"]
    assert response.json()["model"] == "toy:second"


def test_base_is_not_evictable_while_an_adapter_is_leased(tmp_path: Path) -> None:
    busy, other = (babbler(tmp_path / name, seed=seed, hidden=256) for seed, name in enumerate(["busy", "other"]))
    over = tiny.write_adapter(tmp_path / "over", busy, seed=1, keys=KEYS, scale=0.5)
    roster = tmp_path / "roster.yaml"
    roster.write_text(
        # Room for one of them with its adapter, and not for both.
        f"memory: {{budget: {weights_bytes(busy) * 3 // 2}, headroom: 0%}}\nmodels:\n"
        f"  busy: {{source: {busy}, adapters: {{over: {over}}}, max_adapters: 1, max_context: 700, max_concurrency: 1}}"
        "\n"
        f"  other: {{source: {other}, max_context: 700, max_concurrency: 1}}\n"
    )
    with serving("serve", str(roster)) as server, httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        alone = text(complete(client, "busy:over", LONG))
        with streaming(client, "busy:over", LONG) as pieces:
            beside = [next(pieces) for _ in range(5)]
            waiting = threading.Thread(target=lambda: text(complete(client, "other", 3)))
            waiting.start()
            while client.get("/models/other").json()["roster"]["queued"] == 0:
                assert waiting.is_alive(), "it was refused, or not made to wait"
            beside += pieces
        waiting.join()
        assert "".join(beside) == alone
        log = "\n".join(server.lines)
        assert log.count("evict model=busy") == 1
        assert log.index("load model=other") > log.index("evict model=busy")


def test_adapter_of_wrong_shape_is_422_naming_every_tensor_and_the_base_is_unharmed(
    toy: Toy, client: httpx.Client
) -> None:
    with streaming(client, "toy") as pieces:
        beside = [next(pieces) for _ in range(5)]
        for _ in range(2):
            response = complete(client, "toy:wrong")
            assert response.status_code == 422
            error = response.json()["error"]
            assert (error["code"], error["param"]) == ("adapter_incompatible", "adapters")
            for layer in (0, 1):
                for name in ("q_proj", "v_proj"):
                    for side in ("lora_a", "lora_b"):
                        assert f"model.layers.{layer}.self_attn.{name}.{side}" in error["message"]
            assert str(toy.base.parent) not in error["message"]
            toy.server.logged(r"WARNING request \S+: adapter 'toy:wrong': holds tensors that cannot be used")
            beside += [next(pieces) for _ in range(5)]
        assert text(complete(client, "toy:first")) == toy.mlx_lm["first"]
        assert running(client) == 1
        beside += [next(pieces) for _ in range(100)]
    undisturbed(client, "toy", beside)
    assert text(complete(client, "toy")) == toy.mlx_lm[None]


def test_adapter_files_changed_on_disk_are_noticed(toy: Toy, client: httpx.Client) -> None:
    assert text(complete(client, "toy:changing")) == toy.mlx_lm["changing"]
    worker = toy.server.worker("toy")
    with streaming(client, "toy:changing") as pieces:
        beside = [next(pieces) for _ in range(5)]
        tiny.overwrite_adapter(toy.adapters["changing"], toy.adapters["second"])
        assert text(complete(client, "toy:changing")) == toy.mlx_lm["second"]
        assert running(client) == 1
        beside += [next(pieces) for _ in range(200)]
    # What ran goes on with what it began with.
    tiny.overwrite_adapter(toy.adapters["changing"], toy.kept)
    undisturbed(client, "toy:changing", beside)
    assert toy.server.worker("toy") == worker


def test_hot_loading_an_adapter_does_not_stall_streams(toy: Toy, client: httpx.Client) -> None:
    with streaming(client, "toy") as pieces:
        beside = [next(pieces) for _ in range(5)]
        # Twice: there are fewer slots than adapters, so that each is cold again.
        for adapter in [*COLD, *COLD]:
            answers: list[str] = []
            cold = threading.Thread(
                target=lambda name=adapter, said=answers: said.append(text(complete(client, f"toy:{name}")))
            )
            cold.start()
            beside += [next(pieces) for _ in range(10)]
            cold.join()
            assert answers == [toy.mlx_lm[adapter]]
        assert running(client) == 1
        beside += [next(pieces) for _ in range(100)]
    undisturbed(client, "toy", beside)
