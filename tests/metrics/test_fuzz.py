"""Hundreds of requests of every kind, over real sockets and fake workers: then each counter is what the client says."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from mlx_roster.core import Aside, CallDelta, Delta, Generation, Usage
from mlx_roster.errors import AdapterIncompatible, InvalidRequest, LoadFailed
from tests.metrics.scraped import OPENMETRICS
from tests.metrics.truth import Operator, Truth
from tests.server.harness import TIMEOUT, Breaks, Running, post, running

ADAPTERS = ("pirate", "french", "shout")

MODELS = {
    "atlas": {
        "source": "/fake/atlas",
        "aliases": ["gpt-4o"],
        "max_adapters": 2,
        "adapters": {name: f"/fake/{name}" for name in ADAPTERS},
    },
    "org/scribe": {"source": "/fake/scribe"},
}

TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}


class Client:
    """Asks at random, and remembers what came of it."""

    def __init__(self, server: Running, http: httpx2.Client, seed: int) -> None:
        self.server = server
        self.http = http
        self.random = random.Random(seed)
        self.truth = Truth({"atlas": 2, "org/scribe": 8})
        self.operator = Operator(http, self.truth)

    def act(self) -> None:
        acts: list[Callable[[], None]] = [
            *[self.served] * 6,
            self.breaks,
            self.leaves,
            self.wrong,
            self.unknown,
            self.unloadable,
            self.operator.unloads,
            self.together,
        ]
        self.random.choice(acts)()

    # What is served

    def script(self, generation: Generation) -> Sequence[str | Delta]:
        chance, count = self.random, self.random.randint(1, 5)
        prompt = chance.randint(5, 50)
        usage = Usage(
            prompt=prompt,
            completion=count,
            cached=chance.choice([0, prompt // 2]),
            reasoning=chance.randint(0, count),
            accepted=chance.randint(0, 3),
            rejected=chance.randint(0, 3),
        )
        calls = bool(generation.tools)
        finish = "tool_calls" if calls else chance.choice(["stop", "length"])
        aside = Aside(calls=[CallDelta(0, "{}", "c1", "find")]) if calls else None
        return [*["word "] * (count - 1), Delta(0, "" if calls else "end", finish, usage, aside)]

    def asked(self) -> tuple[str, str | None, dict[str, Any], str]:
        """A model, an adapter, a body and a path that go together."""
        model = self.random.choice(["atlas", "atlas", "org/scribe"])
        adapter = self.random.choice([None, *ADAPTERS]) if model == "atlas" else None
        name = self.random.choice([model, "gpt-4o"]) if model == "atlas" else model
        body: dict[str, Any] = {"model": name if adapter is None else f"{name}:{adapter}", "n": 1}
        body["n"] = self.random.choice([1, 1, 3])
        if self.random.random() < 0.5:
            body["prompt"] = self.random.choice(["Once", ["Once", "Twice"]])
            return model, adapter, body, "/v1/completions"
        body["messages"] = [{"role": "user", "content": "hi"}]
        if self.random.random() < 0.3:
            body["tools"] = [TOOL]
        return model, adapter, body, self.random.choice(["/v1/chat/completions", "/chat/completions"])

    def served(self) -> None:
        model, adapter, body, path = self.asked()
        self.server.pieces = self.script
        self.truth.leased(model, adapter)
        self.answered(path, body, model, adapter)

    def answered(self, path: str, body: dict[str, Any], model: str, adapter: str | None) -> None:
        operation = "chat" if "chat" in path else "text_completion"
        if self.random.random() < 0.5:
            reply = self.http.post(path, json=body)
            assert reply.status_code == 200, reply.text
            answer = reply.json()
            finishes = [choice["finish_reason"] for choice in answer["choices"]]
            self.truth.served(answer["usage"], finishes, operation, model, adapter)
            return
        streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
        chunks = self.chunks(self.http.post(path, json=streamed))
        finishes = [
            choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]
        ]
        self.truth.served(chunks[-1]["usage"], finishes, operation, model, adapter)

    @staticmethod
    def chunks(reply: httpx2.Response) -> list[dict[str, Any]]:
        assert reply.status_code == 200, reply.text
        lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: ")]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]

    def together(self) -> None:
        """Several at once, of one model and without adapters: which is first, and so loads, does not matter then."""
        self.server.pieces = self.script
        bodies = [{"model": "org/scribe", "prompt": "Once", "n": number % 3 + 1} for number in range(12)]
        for _ in bodies:
            self.truth.leased("org/scribe")
        with ThreadPoolExecutor(6) as pool:
            for reply in pool.map(lambda body: self.http.post("/v1/completions", json=body), bodies):
                answer = reply.json()
                finishes = [choice["finish_reason"] for choice in answer["choices"]]
                self.truth.served(answer["usage"], finishes, "text_completion", "org/scribe", None)

    # What is not

    def breaks(self) -> None:
        """The worker refuses the sequence, at once or after some tokens."""
        tokens = self.random.choice([0, 2])
        error = self.random.choice([InvalidRequest("no", param="stop"), AdapterIncompatible("no", param="adapters")])
        self.server.pieces = lambda _: Breaks(["word "] * tokens, error)
        self.truth.leased("atlas", "pirate")
        body = {"model": "atlas:pirate", "prompt": "Once", "stream": self.random.random() < 0.5}
        reply = self.http.post("/v1/completions", json=body)
        if body["stream"] and reply.status_code == 200:
            assert self.chunks(reply)[-1]["error"]["code"] == error.code
        else:
            assert reply.json()["error"]["code"] == error.code
        ended = {"operation": "text_completion", "model": "atlas", "adapter": "pirate", "code": error.code}
        self.truth.ended(reply.status_code, tokens=tokens, **ended)

    def leaves(self) -> None:
        """The client goes before the first token."""
        self.server.pieces = self.script
        self.server.call(self.gate(closed=True))
        before = self.server.workers.history.count("submit org/scribe")
        body = {"model": "org/scribe", "prompt": "Once", "stream": self.random.random() < 0.5}
        with self.server.connect() as sock:
            sock.sendall(post("/v1/completions", json.dumps(body).encode()))
            self.server.seen("submit org/scribe", before + 1)
        self.server.idle()
        self.server.call(self.gate(closed=False))
        self.truth.leased("org/scribe")
        self.truth.ended(499, operation="text_completion", model="org/scribe")

    async def gate(self, *, closed: bool) -> None:
        if closed:
            self.server.workers.hold("token org/scribe")
        else:
            self.server.workers.gate("token org/scribe").set()

    def wrong(self) -> None:
        content = self.random.choice([b"{", b"[]", b'{"model": 3}', b'{"model": "atlas", "prompt": "x", "n": -1}'])
        reply = self.http.post("/v1/completions", content=content, headers={"content-type": "application/json"})
        code = reply.json()["error"]["code"]
        self.truth.ended(reply.status_code, operation="text_completion", code=code)

    def unknown(self) -> None:
        name = self.random.choice(["nobody", "atlas:nobody", 'a"}\n# HELP x', "x" * 500, "../atlas"])
        reply = self.http.post("/v1/chat/completions", json={"model": name, "messages": [{"role": "user"}]})
        assert 400 <= reply.status_code < 500
        self.truth.ended(reply.status_code, code=reply.json()["error"]["code"])
        reply = self.http.get("/v1/models/nobody")
        assert reply.status_code == 404
        other = {"operation": "other", "status": "404", "model": "", "adapter": ""}
        self.truth.add("requests_total", **other)
        self.truth.add("request_errors_total", model="", code=reply.json()["error"]["code"])

    def unloadable(self) -> None:
        """A load fails; an operator's next one does not, and ends the cooldown."""
        if self.truth.resident == "org/scribe":
            return
        self.server.workers.failures["org/scribe"] = [LoadFailed("no weights")]
        reply = self.http.post("/v1/completions", json={"model": "org/scribe", "prompt": "Once"})
        code = reply.json()["error"]["code"]
        self.truth.failed("org/scribe", code)
        self.truth.ended(reply.status_code, operation="text_completion", model="org/scribe", code=code)
        self.operator.loads("org/scribe")


@pytest.mark.parametrize("seed", range(3))
def test_metrics_match_ground_truth_after_fuzz(seed: int) -> None:
    with running(budget=1, models=MODELS) as server, server.client() as http:
        client = Client(server, http, seed)
        for _ in range(150):
            client.act()
        server.idle()
        client.truth.compare(lambda: http.get("/metrics", headers={"accept": OPENMETRICS}).text, TIMEOUT)
        kinds = {name for name, _ in client.truth.counts}
        assert len(kinds) >= 19, f"the fuzz does not do everything: {sorted(kinds)}"


def test_one_request_too_few_is_noticed() -> None:
    with running(budget=1, models=MODELS) as server, server.client() as http:
        client = Client(server, http, 0)
        for _ in range(5):
            client.served()
        client.truth.add("prompt_tokens_total", model="atlas", adapter="")
        server.idle()
        with pytest.raises(AssertionError):
            client.truth.compare(lambda: http.get("/metrics", headers={"accept": OPENMETRICS}).text, TIMEOUT)
