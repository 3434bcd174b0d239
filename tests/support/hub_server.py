"""A Hub on this machine, for Hugging Face's own client: repositories with a commit and a licence, files by ranges."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "5f" * 20


@dataclass
class Hub:
    """Repository → file → path of its bytes. ``fetched`` counts the bytes sent of each file; ``cut_after`` drops one
    connection after so many bytes."""

    repositories: dict[str, dict[str, Path]]
    licence: str | None = "apache-2.0"
    cut_after: int | None = None
    fetched: dict[str, int] = field(default_factory=dict)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(rf"/api/models/([^/]+/[^/]+)(?:/revision/(?:main|{COMMIT}))?", path):
            self._info(match[1])
        elif match := re.fullmatch(rf"/api/models/([^/]+/[^/]+)/tree/(?:main|{COMMIT})", path):
            self._tree(match[1])
        elif match := re.fullmatch(rf"/([^/]+/[^/]+)/resolve/(?:main|{COMMIT})/(.+)", path):
            self._file(match[1], match[2])
        else:
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _info(self, repo: str) -> None:
        if repo not in self.hub.repositories:
            return self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        files = self.hub.repositories[repo].items()
        told = {
            "id": repo,
            "sha": COMMIT,
            "siblings": [{"rfilename": name, "size": path.stat().st_size} for name, path in files],
            "cardData": {"license": self.hub.licence} if self.hub.licence else {},
        }
        self._answer(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

    def _tree(self, repo: str) -> None:
        files = [
            {"type": "file", "path": name, "size": path.stat().st_size, "oid": COMMIT}
            for name, path in self.hub.repositories[repo].items()
        ]
        self._answer(200, json.dumps(files).encode(), {"Content-Type": "application/json"})

    def _file(self, repo: str, name: str) -> None:
        data = self.hub.repositories[repo][name].read_bytes()
        start = int(match[1]) if (match := re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")) else 0
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if self.command == "GET" and self.hub.cut_after is not None:
            cut, self.hub.cut_after = self.hub.cut_after, None
            self.send_response(200)
            for key, value in (headers | {"Content-Length": str(len(data))}).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data[:cut])
            self.hub.fetched[name] = self.hub.fetched.get(name, 0) + cut
            self.close_connection = True
            return
        if self.command == "GET":
            self.hub.fetched[name] = self.hub.fetched.get(name, 0) + len(data) - start
        self._answer(206 if start else 200, data[start:], headers)


@contextmanager
def serving(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Let the client talk to this hub, with a cache of its own."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
