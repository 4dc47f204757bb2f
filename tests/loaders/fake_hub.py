"""The Hub, as far as its client asks it for a model: real sockets, a few repos, and failures to order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


class FakeHub(ThreadingHTTPServer):
    """Serves `repos`; what is asked of one in `failures` is answered with that status and error code instead."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.repos: dict[str, Files] = {}
        self.failures: dict[str, tuple[int, str]] = {}
        #: Every request so far: method and path.
        self.seen: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def downloaded(self) -> set[str]:
        return {line.rpartition("/")[2] for line in self.seen if line.startswith("GET") and "/resolve/" in line}


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        thread = Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


def commit(repo: str) -> str:
    return hashlib.sha1(repo.encode()).hexdigest()


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
        if steps[:2] == ["api", "models"]:
            self._listing("/".join(steps[2:4]), steps[4:])
        elif "/".join(steps[:2]) not in self.server.repos:
            # The client also asks for things that have nothing to do with a model.
            self._send(404, b"{}", {}, with_body=with_body)
        else:
            self._file("/".join(steps[:2]), "/".join(steps[4:]), with_body=with_body)

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
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
        else:
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
            listing = {"id": repo, "sha": commit(repo), "siblings": siblings}
        self._send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"}, with_body=True)

    def _file(self, repo: str, name: str, *, with_body: bool) -> None:
        content = self.server.repos[repo][name]
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit(repo)}
        self._send(200, content, headers, with_body=with_body)

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, with_body: bool) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body)), "Connection": "close"}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)
