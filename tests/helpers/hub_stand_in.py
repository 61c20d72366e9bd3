"""A small server on this machine that stands in for a model hub: the endpoints that its client uses to download a repository."""

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT: Final = "fedcba9876543210fedcba9876543210fedcba98"


class Hub(ThreadingHTTPServer):
    """The endpoints of a model hub that its client uses to download a repository, whose branch `main` is at `commit`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _HubHandler)
        self.folder, self.commit = folder, COMMIT
        self.downloads: list[str] = []
        self.bytes_sent = 0
        """Of the files' contents."""
        self.is_down = False
        self.token = ""
        """The token that reads the repository, which is gated then; empty: everybody does."""
        self.announced: dict[str, bytes] = {}
        """Other contents than the folder's, for the hashes that are announced."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def describe(self, revision: str) -> dict[str, Any]:
        return {
            "id": "org/toy",
            "sha": revision if len(revision) == 40 else self.commit,
            "siblings": [*map(self._sibling, self.folder.iterdir())],
        }

    def _sibling(self, path: Path) -> dict[str, Any]:
        content = self.announced.get(path.name, path.read_bytes())
        blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
        sibling: dict[str, Any] = {"rfilename": path.name, "size": len(content), "blobId": blob}
        if path.suffix == ".safetensors":
            sibling["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return sibling


class _HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if self.server.is_down:
            self._send(404, b"{}", {}, with_body=with_body)
        elif self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo"}, with_body=with_body)
        elif "missing" in self.path:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body=with_body)
        elif "nowhere" in self.path:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, with_body=with_body)
        elif parts[0] == "api":
            revision = parts[5] if "revision" in parts else "main"
            self._send(200, json.dumps(self.server.describe(revision)).encode(), {"Content-Type": "application/json"}, with_body=with_body)
        else:
            revision, name = parts[3], parts[4]
            content = (self.server.folder / name).read_bytes()
            etag = hashlib.sha256(content).hexdigest()
            status, content = self._part_of(content)
            if with_body:
                self.server.downloads.append(name)
                self.server.bytes_sent += len(content)
            self._send(status, content, {"ETag": f'"{etag}"', "X-Repo-Commit": revision}, with_body=with_body)

    def _part_of(self, content: bytes) -> tuple[int, bytes]:
        """What the request asks for: a range, or everything."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return 200, content
        return 206, content[int(asked[1]) : int(asked[2]) + 1 if asked[2] else None]

    def _send(self, status: int, content: bytes, headers: dict[str, str], *, with_body: bool) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)
