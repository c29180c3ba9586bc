"""A hub on this machine, over real HTTP: the API that `llm pull` speaks, two origins, and faults to order.

    with FakeHub() as hub:
        commit = hub.add("org/model", folder)       # every file in the folder, as a new commit of `main`
        hub.fault = Fault("truncate", times=2)      # what goes wrong with the next bodies of weights
        run_with({"HF_ENDPOINT": hub.url})
        hub.requests, hub.sent                      # what was asked for, and the bytes of weights that went out
The API and the redirects are on one port (`url`), the bytes of large files on another, as with the real hub. FakeHub(context) speaks TLS.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

LARGE = (".safetensors", "tokenizer.json")
"""Files that are stored as LFS: known by SHA-256, served by the second origin."""
PAGE = 3
"""Files a page of a tree."""


@dataclass
class Fault:
    """What goes wrong. kind: slow, truncate, corrupt, stall, no_range, trickle, gzip, length (bodies of weights); etag, commit, name,
    licence, location, moving (answers of the hub itself); status (`code`, of requests whose path contains `where`).
    times: how often (-1: always); amount: bytes a second (slow), the bytes that still come (truncate, stall), or by how many the
    length that is told is wrong (length)."""

    kind: str
    times: int = -1
    amount: int = 1000
    code: int = 500
    where: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    def strikes(self, *kinds: str) -> bool:
        if self.kind not in kinds or self.times == 0:
            return False
        self.times -= 1
        return True


@dataclass
class Asked:
    origin: str
    path: str
    headers: dict[str, str]


class FakeHub:
    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.context = context
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.heads: dict[str, str] = {}
        self.gated: set[str] = set()
        self.moved: dict[str, str] = {}
        self.token = "hf_right"
        self.fault = Fault("none")
        self.requests: list[Asked] = []
        self.sent = 0
        self.lock = threading.Lock()
        self._servers = [_Server(self, origin) for origin in ("hub", "cdn")]
        self.url, self.cdn = (f"{'https' if context else 'http'}://127.0.0.1:{server.server_port}" for server in self._servers)

    def __enter__(self) -> FakeHub:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.fault = Fault("none")
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(self, repository: str, folder: Path, gated: bool = False) -> str:
        """The files of a folder as a new commit of main; the commit."""
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
        commit = hashlib.sha1(repr([(n, hashlib.sha1(d).digest()) for n, d in files.items()]).encode()).hexdigest()
        self.repositories.setdefault(repository, {})[commit] = files
        self.heads[repository] = commit
        if gated:
            self.gated.add(repository)
        return commit

    def asked(self, part: str) -> list[Asked]:
        """The requests whose path has this in it."""
        return [request for request in self.requests if part in request.path]


def oid(data: bytes) -> str:
    """Git's name of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, hub: FakeHub, origin: str) -> None:
        self.hub, self.origin = hub, origin
        super().__init__(("127.0.0.1", 0), _Handler)

    def server_bind(self) -> None:
        # What is sent should not run far ahead of what is received: the tests count it.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 << 10)
        super().server_bind()

    def get_request(self) -> Any:
        connection, address = super().get_request()
        if self.hub.context is not None:  # the handshake takes place in the connection's own thread
            connection = self.hub.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may go away."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        hub = self.server.hub
        with hub.lock:
            hub.requests.append(Asked(self.server.origin, self.path, dict(self.headers)))
        path = unquote(urlsplit(self.path).path)
        if hub.fault.where in self.path and hub.fault.strikes("status"):
            return self._answer(hub.fault.code, {"error": "no"}, hub.fault.headers)
        if self.server.origin == "cdn":
            return self._blob(path)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/(.+)", path):
            return self._api(*found.groups())
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(*found.groups())
        return self._answer(404, {"error": "no such page"})

    def _allowed(self, repository: str) -> bool:
        right = self.headers.get("Authorization") == f"Bearer {self.server.hub.token}"
        if repository in self.server.hub.gated and not right:
            code = 403 if self.headers.get("Authorization") else 401
            self._answer(code, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
            return False
        return True

    def _api(self, repository: str, what: str, revision: str) -> None:
        hub = self.server.hub
        if repository in hub.moved:
            path = self.path.replace(repository, hub.moved[repository], 1)
            return self._answer(307, {}, {"Location": path})
        commits = hub.repositories.get(repository)
        if commits is None:
            return self._answer(401, {"error": "no such repository"}, {"X-Error-Code": "RepoNotFound"})
        commit = hub.heads[repository] if revision == "main" else revision
        if commit not in commits:
            return self._answer(404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"})
        if what == "revision":
            sha = "../../../evil" if hub.fault.strikes("commit") else commit
            gated = "manual" if repository in hub.gated else False
            licence = hub.fault.headers["licence"] if hub.fault.strikes("licence") else "mit"
            return self._answer(200, {"id": repository, "sha": sha, "gated": gated, "cardData": {"license": licence}})
        if not self._allowed(repository):
            return None
        entries: list[dict[str, Any]] = [{"type": "directory", "path": "onnx", "oid": "0" * 40, "size": 0}]
        for name, data in commits[commit].items():
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": oid(data)}
            if name.endswith(LARGE):
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            entries.append(entry)
        if hub.fault.strikes("name"):
            entries[-1]["path"] = hub.fault.headers["name"]
        first = int(re.sub(r".*cursor=", "", self.path)) if "cursor=" in self.path else 0
        link = f'<{hub.url}/api/models/{repository}/tree/{commit}?cursor={first + PAGE}>; rel="next"'
        return self._answer(200, entries[first : first + PAGE], {"Link": link} if first + PAGE < len(entries) else {})

    def _resolve(self, repository: str, commit: str, name: str) -> None:
        hub = self.server.hub
        if not self._allowed(repository):
            return None
        data = hub.repositories.get(repository, {}).get(commit, {}).get(name)
        if data is None:
            return self._answer(404, {"error": "no such file"}, {"X-Error-Code": "EntryNotFound"})
        large = name.endswith(LARGE)
        etag = hashlib.sha256(data).hexdigest() if large else oid(data)
        if hub.fault.strikes("etag"):
            etag = hub.fault.headers["etag"]
        said = "0" * 40 if hub.fault.strikes("moving") else commit
        headers = {"X-Repo-Commit": said, "X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data)), "ETag": f'"{etag}"'}
        if not large:
            return self._send(200, data, {**headers, "Content-Length": str(len(data))})
        place = hub.fault.headers["to"] if hub.fault.strikes("location") else hub.cdn
        return self._answer(302, {}, {**headers, "Location": f"{place}/{repository}/{commit}/{name}"})

    def _blob(self, path: str) -> None:
        hub, fault = self.server.hub, self.server.hub.fault
        organisation, model, commit, name = path.strip("/").split("/")
        data = hub.repositories[f"{organisation}/{model}"][commit][name]
        if not name.endswith(".safetensors"):
            return self._send(200, data, {"Content-Length": str(len(data))})
        if fault.strikes("corrupt"):
            data = data[:-100] + bytes(byte ^ 0x5A for byte in data[-100:])
        size, code, headers = len(data), 200, {"ETag": '"cdn"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and not fault.strikes("no_range"):
            first, last = int(asked[1]), min(int(asked[2] or size - 1), size - 1)
            code, data = 206, data[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        if fault.strikes("gzip"):
            data, headers["Content-Encoding"] = gzip.compress(data, 1), "gzip"
        told = len(data) + (fault.amount if fault.strikes("length") else 0)
        return self._send(code, data, {**headers, "Content-Length": str(max(0, told))}, weights=True)

    def _answer(self, code: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self._send(code, data, {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})})

    def _send(self, code: int, data: bytes, headers: dict[str, str], weights: bool = False) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        fault = self.server.hub.fault
        if not weights:
            self.wfile.write(data)
        elif len(data) > fault.amount and fault.strikes("truncate"):
            self._weights(data[: fault.amount], 0)
        elif len(data) > fault.amount and fault.strikes("stall"):
            self._weights(data[: fault.amount], 0)
            self._until_gone()
        elif fault.kind == "trickle" and fault.strikes("trickle"):
            self._weights(data, 10, piece=1)
        else:
            self._weights(data, fault.amount if fault.kind == "slow" else 0)

    def _weights(self, data: bytes, rate: int, piece: int = 16 << 10) -> None:
        """Sends weights, at `rate` bytes a second (0: at once)."""
        hub = self.server.hub
        for start in range(0, len(data), piece):
            part = data[start : start + piece]
            self.wfile.write(part)
            with hub.lock:
                hub.sent += len(part)
            if rate:
                time.sleep(len(part) / rate)
                if hub.fault.kind == "none":
                    rate = 0

    def _until_gone(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.settimeout(20)
            self.connection.recv(1)


@pytest.fixture
def fakehub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        yield hub
