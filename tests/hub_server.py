"""A Hub on this machine: what huggingface_hub asks when it downloads a snapshot, and the refusals of the real one."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """A server of one repository, which says what it was asked. What it does wrong may be changed while it runs."""

    address: str
    repo: str
    files: dict[str, bytes]
    """Its files; large ones too are served from here, not from another address."""
    refusals: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    """(status, headers) of what is answered instead, by a part of the path; "" stands for every path."""
    cut: dict[str, int] = field(default_factory=dict)
    """Of how many bytes of a file the line drops behind them."""
    waits: float = 0.0
    """Seconds before every answer."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """(method, path) of every request."""
    tokens: set[str] = field(default_factory=set)
    """What clients said who they are."""


@contextmanager
def serve(repo: str, files: dict[str, bytes]) -> Iterator[Hub]:
    """Yields a Hub that has one repository with these files, whose branch "main" stands at `COMMIT`."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.hub = Hub(f"http://127.0.0.1:{server.server_port}", repo, files)  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server.hub  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Says nothing of clients that went away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # noqa: N802
        self._answer()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path)
        hub.asked.append((self.command, path))
        hub.tokens |= {self.headers["authorization"]} if self.headers["authorization"] else set()
        time.sleep(hub.waits)
        for part, (status, headers) in hub.refusals.items():
            if part in path:
                return self._send(status, headers, b"")
        if path.startswith(f"/api/models/{hub.repo}/revision/"):
            return self._revision(hub, path.rpartition("/")[2])
        if path.startswith(f"/api/models/{hub.repo}/tree/"):
            return self._json(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in hub.files.items()
                ]
            )
        start, _, rest = path.partition(f"/{hub.repo}/resolve/")
        revision, _, name = rest.partition("/")
        if start or not rest:
            return self._send(404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b"")
        if revision not in ("main", COMMIT):
            return self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"")
        if name not in hub.files:
            return self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b"")
        return self._file(hub, name)

    def _revision(self, hub: Hub, revision: str) -> None:
        if revision not in ("main", COMMIT):
            return self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"")
        siblings = [{"rfilename": name} for name in hub.files]
        return self._json({"id": hub.repo, "modelId": hub.repo, "sha": COMMIT, "tags": [], "siblings": siblings})

    def _file(self, hub: Hub, name: str) -> None:
        data = hub.files[name]
        start = int((self.headers["range"] or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        stop = hub.cut.get(name) if self.command == "GET" else None
        self._send(206 if start else 200, headers, data[start:], stop)

    def _json(self, value: object) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _send(self, status: int, headers: dict[str, str], body: bytes, stop: int | None = None) -> None:
        """Answers; stop: how many bytes of the body go out before the line drops."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:stop])
        if stop is not None:
            self.close_connection = True
