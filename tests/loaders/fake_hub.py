"""The Hub, as far as its client asks it for a model: real sockets, a few repos, and failures to order."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Condition, Thread
from time import monotonic
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]

#: What does not go out in one piece goes out in pieces of so many bytes.
PIECE = 2**14


class FakeHub(ThreadingHTTPServer):
    """Serves `repos`; what is asked of one in `failures` is answered with that status and error code instead. What is
    in `refusals` is asked for too often, or at a bad time, and is there later.

    A file in `stops` breaks off after so many bytes of each answer. One in `ends` breaks off at that place and brings
    nothing more, and one in `gates` waits there: see `open_gate`. Safetensors are kept by LFS, as on the Hub.
    """

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.repos: dict[str, Files] = {}
        self.failures: dict[str, tuple[int, str]] = {}
        self.stops: dict[str, int] = {}
        self.ends: dict[str, int] = {}
        self.gates: dict[str, int] = {}
        #: The file is no longer than that, whatever has been said of it before.
        self.shorts: dict[str, int] = {}
        #: What is said of a file's size before it is asked for, where that is not so.
        self.sizes: dict[str, int] = {}
        #: Of a repo or a file: the answers that come first, as a status and a Retry-After in seconds.
        self.refusals: dict[str, list[tuple[int, int]]] = {}
        #: When what has been refused may be asked for again, and what was asked for before that.
        self.again: dict[str, float] = {}
        self.early: list[str] = []
        #: Every request so far: method and path.
        self.seen: list[str] = []
        #: The bytes of each file that have gone out, whether or not they arrived: (name, first, past the last).
        self.sent: list[tuple[str, int, int]] = []
        #: The answers with a file so far: its name and the first byte asked for.
        self.begun: list[tuple[str, int]] = []
        #: Those who wait at a gate, by name.
        self.held: list[str] = []
        self.moved = Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def downloaded(self) -> set[str]:
        return {line.rpartition("/")[2] for line in self.seen if line.startswith("GET") and "/resolve/" in line}

    def add(self, repo: str, folder: Path) -> None:
        """Serve the files in `folder`."""
        self.repos[repo] = {file.name: file.read_bytes() for file in folder.iterdir()}

    def open_gate(self, name: str) -> None:
        """From now on the file goes out in one go; those who wait for it go on."""
        with self.moved:
            self.gates.pop(name, None)
            self.moved.notify_all()

    def wait_held(self, name: str, times: int = 1) -> None:
        """Until so many answers, all in all, have come to the gate of this file."""
        with self.moved:
            assert self.moved.wait_for(lambda: self.held.count(name) >= times, 60), f"nobody asked for {name}"

    def bytes_sent(self, name: str) -> int:
        return sum(end - begin for file, begin, end in self.sent if file == name)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is no news."""


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        thread = Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            for name in list(hub.gates):
                hub.open_gate(name)
            hub.shutdown()
            thread.join()


def commit(repo: str) -> str:
    return hashlib.sha1(repo.encode()).hexdigest()


def is_large(name: str) -> bool:
    return name.endswith(".safetensors")


def etag(name: str, content: bytes) -> str:
    """As the Hub has them: the hash that LFS or Git keeps the file by."""
    if is_large(name):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


class _Request(BaseHTTPRequestHandler):
    server: FakeHub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Not onto the test run's output."""

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.seen.append(f"{self.command} {path}")
        steps = path.strip("/").split("/")
        if self._refuses(steps[-1], with_body=with_body):
            pass
        elif steps[:2] == ["api", "models"]:
            self._listing("/".join(steps[2:4]), steps[4:])
        elif steps[0] == "cdn":
            assert "Authorization" not in self.headers, "a token went to where it does not belong"
            self._file("/".join(steps[1:3]), "/".join(steps[3:]), with_body=with_body)
        elif "/".join(steps[:2]) not in self.server.repos:
            # The client also asks for things that have nothing to do with a model.
            self._send(404, b"{}", {}, with_body=with_body)
        elif is_large(steps[-1]):
            self._elsewhere("/".join(steps[:2]), "/".join(steps[4:]))
        else:
            self._file("/".join(steps[:2]), "/".join(steps[4:]), with_body=with_body)

    def _refuses(self, name: str, *, with_body: bool) -> bool:
        server = self.server
        if monotonic() < server.again.get(name, 0):
            server.early.append(name)
        if not server.refusals.get(name):
            return False
        status, seconds = server.refusals[name].pop(0)
        server.again[name] = monotonic() + seconds
        self._send(status, b"{}", {"Retry-After": str(seconds)}, with_body=with_body)
        return True

    def _listing(self, repo: str, rest: list[str]) -> None:
        status, code = self.server.failures.get(repo, (404, "RepoNotFound"))
        if repo in self.server.failures or repo not in self.server.repos:
            self._send(status, b"{}", {"X-Error-Code": code}, with_body=True)
            return
        files = self.server.repos[repo]
        if rest[:1] == ["revision"] and rest[1] not in ("main", commit(repo)):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, with_body=True)
            return
        listing: object
        if rest[:1] == ["tree"]:
            listing = [
                {"type": "file", "path": name, "size": len(content), "oid": etag(name, content), **_lfs(name, content)}
                for name, content in files.items()
            ]
        else:
            siblings = [
                {"rfilename": name, **_lfs(name, content), "size": self.server.sizes.get(name, len(content))}
                for name, content in files.items()
            ]
            listing = {"id": repo, "sha": commit(repo), "siblings": siblings}
        self._send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"}, with_body=True)

    def _elsewhere(self, repo: str, name: str) -> None:
        """What LFS keeps is not at the Hub itself, but at another host."""
        content = self.server.repos[repo][name]
        headers = {
            "Location": f"http://localhost:{self.server.server_port}/cdn/{repo}/{name}",
            "X-Linked-ETag": f'"{etag(name, content)}"',
            "X-Linked-Size": str(len(content)),
            "X-Repo-Commit": commit(repo),
        }
        self._send(302, b"", headers, with_body=False)

    def _file(self, repo: str, name: str, *, with_body: bool) -> None:
        content = self.server.repos[repo][name]
        content = content[: self.server.shorts.get(name, len(content))]
        # Of what is elsewhere, the tag is another one there.
        headers = {"ETag": '"x"' if is_large(name) else f'"{etag(name, content)}"', "X-Repo-Commit": commit(repo)}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        begin = int(asked[1]) if asked else 0
        if asked:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        self._head(206 if asked else 200, {**headers, "Content-Length": str(len(content) - begin)})
        if with_body:
            self.server.begun.append((name, begin))
            self._body(name, content, begin)

    def _body(self, name: str, content: bytes, begin: int) -> None:
        """As much of the file as is let through, with a wait on the way where there is a gate."""
        end = min(self.server.ends.get(name, len(content)), begin + self.server.stops.get(name, len(content)))
        end = min(end, len(content))
        gate = self.server.gates.get(name, len(content))
        while begin < end:
            piece = min(end, begin + PIECE, max(gate, begin))
            if piece == begin:
                self._wait(name)
                gate = len(content)
                continue
            self.server.sent.append((name, begin, piece))
            self.wfile.write(content[begin:piece])
            begin = piece

    def _wait(self, name: str) -> None:
        server = self.server
        with server.moved:
            server.held.append(name)
            server.moved.notify_all()
            server.moved.wait_for(lambda: name not in server.gates)

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, with_body: bool) -> None:
        self._head(status, {**headers, "Content-Length": str(len(body))})
        if with_body:
            self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Connection": "close"}.items():
            self.send_header(key, value)
        self.end_headers()


def _lfs(name: str, content: bytes) -> dict[str, object]:
    if not is_large(name):
        return {}
    return {"lfs": {"oid": etag(name, content), "sha256": etag(name, content), "size": len(content), "pointerSize": 1}}
