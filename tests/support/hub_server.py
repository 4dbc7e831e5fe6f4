"""A server on 127.0.0.1 that speaks the part of the Hugging Face hub's HTTP that downloads need.

Paths: ``/api/models/ORG/NAME/revision/REV``, ``/api/models/ORG/NAME/tree/REV``, ``/ORG/NAME/resolve/REV/FILE``. Large
files are redirected to ``/lfs/SHA256`` as the hub redirects to its storage. A repository may be private, and a file may
fail for a number of requests: with a status, or with a body that ends too early.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 1 << 12
"Bytes from which on a file is stored as the hub stores large ones, behind a redirect."


@dataclass
class Failure:
    """What goes wrong with a path, for the next ``times`` requests of it."""

    status: int = 0
    "HTTP status to answer with; 0 for a body that ends too early."
    after: int = 0
    "Bytes of the body that arrive, where it ends too early."
    times: int = 1


@dataclass
class Repository:
    """Files by path, as the hub holds them at one commit."""

    files: dict[str, bytes]
    token: str | None = None
    "A private repository answers only requests that carry this token."
    gated: bool = False
    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)
    "Files at other branches or tags."

    def at(self, revision: str) -> dict[str, bytes] | None:
        """Return the files at a branch, tag or commit; None for one that does not exist."""
        if revision == "main" or revision == commit_of(self.files):
            return self.files
        for name, files in self.revisions.items():
            if revision in (name, commit_of(files)):
                return files
        return None


def commit_of(files: dict[str, bytes]) -> str:
    """Return 40 hexadecimal digits that follow from the files."""
    digest = hashlib.sha1()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + files[name])
    return digest.hexdigest()


@dataclass
class Hub:
    """A running server."""

    url: str
    repositories: dict[str, Repository]
    failures: dict[str, Failure] = field(default_factory=dict)
    "By file name, such as ``model.safetensors``, or ``api`` for the listing."
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    "Method, path and Range header of every request, in order."

    @property
    def storage(self) -> str:
        """Return the address of the storage of large files: another host, as on the hub."""
        return self.url.replace("127.0.0.1", "localhost")

    def environment(self, cache: Any) -> dict[str, str]:
        """Return the variables that make the real client use this server and a cache of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
        }


@contextmanager
def serve(repositories: dict[str, Repository]) -> Iterator[Hub]:
    """Run a hub with these repositories while the context lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}", repositories)
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined,no-any-return]

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: tests read `Hub.requests`."""

    def do_HEAD(self) -> None:
        self._route(body=False)

    def do_GET(self) -> None:
        self._route(body=True)

    def _route(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/.*)?)?", path):
            return self._api(match[1], match[2] or "revision", match[3] or "main")
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(match[1], match[2], match[3], body)
        if match := re.fullmatch(r"/lfs/([0-9a-f]{64})/(.+)", path):
            return self._large(match[1], match[2], body)
        return self._error(404, "EntryNotFound")

    def _allowed(self, name: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        sent = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if repository is None or (repository.token is not None and sent != repository.token):
            # The hub does not tell a private repository from one that does not exist.
            self._error(401, "RepoNotFound")
            return None
        if repository.gated:
            self._error(403, "GatedRepo")
            return None
        return repository

    def _api(self, name: str, what: str, revision: str) -> None:
        if self._failed("api", True):
            return None
        repository = self._allowed(name)
        if repository is None:
            return None
        files = repository.at(revision)
        if files is None:
            return self._error(404, "RevisionNotFound")
        if what == "tree":
            return self._json([_tree_entry(path, content) for path, content in sorted(files.items())])
        siblings = [{"rfilename": path} for path in sorted(files)]
        private = repository.token is not None
        return self._json(
            {"id": name, "modelId": name, "sha": commit_of(files), "private": private, "tags": [], "siblings": siblings}
        )

    def _file(self, name: str, revision: str, path: str, body: bool) -> None:
        repository = self._allowed(name)
        if repository is None:
            return None
        files = repository.at(revision)
        if files is None:
            return self._error(404, "RevisionNotFound")
        if path not in files:
            return self._error(404, "EntryNotFound", {"X-Repo-Commit": commit_of(files)})
        content, headers = files[path], {"X-Repo-Commit": commit_of(files)}
        if len(content) < LARGE:
            headers["ETag"] = f'"{_blob_id(content)}"'
            return self._content(path, content, headers, body)
        sha256 = hashlib.sha256(content).hexdigest()
        headers |= {"X-Linked-ETag": f'"{sha256}"', "X-Linked-Size": str(len(content)), "ETag": f'"{sha256}"'}
        headers |= {"Location": f"{self.hub.storage}/lfs/{sha256}/{path}"}
        return self._send(302, b"", headers, body)

    def _large(self, sha256: str, path: str, body: bool) -> None:
        for repository in self.hub.repositories.values():
            for files in (repository.files, *repository.revisions.values()):
                content = files.get(path)
                if content is not None and hashlib.sha256(content).hexdigest() == sha256:
                    return self._content(path, content, {"ETag": f'"{sha256}"'}, body)
        return self._error(404, "EntryNotFound")

    def _content(self, path: str, content: bytes, headers: dict[str, str], body: bool) -> None:
        headers |= {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        status = 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, end = int(match[1]), int(match[2] or len(content) - 1)
            if start >= len(content):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"}, body)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content, status = content[start : end + 1], 206
        if body and self._failed(path.rpartition("/")[2], body, content, headers):
            return None
        return self._send(status, content, headers, body)

    def _failed(self, name: str, body: bool, content: bytes = b"", headers: dict[str, str] | None = None) -> bool:
        """Answer with the failure that is due for ``name``, if one is."""
        failure = self.hub.failures.get(name)
        if failure is None or failure.times <= 0:
            return False
        failure.times -= 1
        if failure.status:
            self._error(failure.status, "")
            return True
        self.send_response(200)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: failure.after])
        self.wfile.flush()
        self.close_connection = True
        return True

    def _json(self, tree: Any) -> None:
        self._send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"}, True)

    def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        more = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        self._send(status, b"", {**more, **(headers or {})}, False)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _tree_entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _blob_id(content)}
    if len(content) >= LARGE:
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 128}
    return entry
