"""A small Hugging Face hub on loopback: listings with sizes and hashes, files by HEAD, GET and range, and accidents."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

import pytest
from huggingface_hub import close_session, constants

_API = re.compile(r"/api/models/(?P<repository>[^/]+/[^/]+?)(?:/(?P<what>revision|tree)/(?P<revision>[^/]+))?")
_FILE = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")
_CHUNK = 4096
LONGEST_HEADER = 1 << 16
"""Accidents happen to answers beyond so many bytes alone."""


@dataclass
class Repository:
    """A model on the hub; what it serves can be changed at any time."""

    files: dict[str, bytes]
    gated: bool = False
    private: bool = False
    stated_hashes: dict[str, str] = field(default_factory=dict)
    """By file, in place of the true ones."""

    @classmethod
    def of(cls, folder: Path, **options: bool) -> Repository:
        """The files of a model folder."""
        return cls({path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}, **options)

    @property
    def commit(self) -> str:
        content = [(name, hashlib.sha1(data).hexdigest()) for name, data in sorted(self.files.items())]
        return hashlib.sha1(json.dumps(content).encode()).hexdigest()

    def listing(self, name: str) -> dict[str, object]:
        siblings = []
        for file, data in sorted(self.files.items()):
            entry: dict[str, object] = {"rfilename": file, "size": len(data), "blobId": git_sha1(data)}
            if file.endswith(".safetensors"):
                sha256 = self.stated_hashes.get(file) or hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"size": len(data), "sha256": sha256, "pointerSize": 134}
            siblings.append(entry)
        gated = "auto" if self.gated else False
        return {"id": name, "sha": self.commit, "private": self.private, "gated": gated, "tags": [],
                "downloads": 0, "likes": 0, "siblings": siblings}  # fmt: skip

    def tree(self) -> list[dict[str, object]]:
        entries = []
        for file, data in sorted(self.files.items()):
            entry: dict[str, object] = {"type": "file", "path": file, "size": len(data), "oid": git_sha1(data)}
            if file.endswith(".safetensors"):
                entry["lfs"] = {"size": len(data), "oid": hashlib.sha256(data).hexdigest(), "pointerSize": 134}
            entries.append(entry)
        return entries


@dataclass
class Asked:
    """One request."""

    method: str
    path: str
    range: str | None
    token: str | None
    sent: int = 0
    """Bytes of content."""

    @property
    def file(self) -> str | None:
        found = _FILE.fullmatch(self.path)
        return found["name"] if found else None


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that leave are part of the tests."""


class HubServer:
    """Serves `repositories` at `url` while its block lasts, and remembers what was asked."""

    def __init__(self, repositories: Mapping[str, Repository]) -> None:
        self.repositories = dict(repositories)
        self.asked: list[Asked] = []
        self.cut_after: int | None = None
        """Bytes of a shard after which its connection breaks, counted from where the answer began; once."""
        self.stall_after: int | None = None
        """Bytes of a shard after which nothing more comes."""
        self.ranges = True
        self.most_bytes: int | None = None
        """Of a shard in one response, which ends properly all the same."""
        """Whether parts of files are served; else always the whole."""
        self.status: int | None = None
        """In place of every answer."""
        self._server = _QuietServer(("127.0.0.1", 0), _handler(self))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def sent(self, suffix: str = ".safetensors") -> int:
        """Bytes of content of the files whose names end so."""
        return sum(each.sent for each in self.asked if each.file and each.file.endswith(suffix))

    def wait_until(self, happened: Callable[[], bool], seconds: float) -> None:
        """Wait until something has happened; fails after `seconds`."""
        end = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < end, f"it did not happen within {seconds} s of {self.asked}"
            time.sleep(0.01)

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()


def use_hub(url: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let huggingface_hub in this process speak to the hub at `url`, and everything be kept below `place`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(place)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    close_session()


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = self.path.partition("?")[0]
            asked = Asked(self.command, path, self.headers.get("Range"), self.headers.get("Authorization"))
            hub.asked.append(asked)
            if hub.status is not None:
                self._refuse(hub.status, "Unavailable")
            elif found := _API.fullmatch(path):
                self._list(found["repository"], asked, tree=found["what"] == "tree")
            elif found := _FILE.fullmatch(path):
                self._send_file(found["repository"], found["revision"], found["name"], asked)
            else:
                self._refuse(404, "NotFound")

        def _list(self, name: str, asked: Asked, *, tree: bool) -> None:
            repository = hub.repositories.get(name)
            if repository is None or (repository.private and asked.token is None):
                self._refuse(401 if asked.token is None else 404, "RepoNotFound")
                return
            listed = repository.tree() if tree else repository.listing(name)
            self._send(200, json.dumps(listed).encode(), {"Content-Type": "application/json"})

        def _send_file(self, name: str, revision: str, file: str, asked: Asked) -> None:
            repository = hub.repositories.get(name)
            if repository is None:
                self._refuse(404, "RepoNotFound")
            elif repository.gated and asked.token is None:
                self._refuse(401, "GatedRepo")
            elif revision not in ("main", repository.commit):
                self._refuse(404, "RevisionNotFound")
            elif file not in repository.files:
                self._refuse(404, "EntryNotFound")
            else:
                self._send_part(repository, file, asked)

        def _send_part(self, repository: Repository, file: str, asked: Asked) -> None:
            data = repository.files[file]
            headers = {"X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
            if file.endswith(".safetensors"):
                headers["X-Linked-Size"] = str(len(data))
                headers["X-Linked-Etag"] = headers["ETag"] = f'"{hashlib.sha256(data).hexdigest()}"'
            else:
                headers["ETag"] = f'"{git_sha1(data)}"'
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", asked.range or "")
            if not wanted or not hub.ranges:
                self._send(200, data, headers, asked)
                return
            start = int(wanted[1])
            end = min(int(wanted[2]) + 1 if wanted[2] else len(data), len(data))
            if start >= len(data):
                self._refuse(416, "RangeNotSatisfiable")
                return
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
            self._send(206, data[start:end][: hub.most_bytes], headers, asked)

        def _refuse(self, status: int, code: str) -> None:
            self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

        def _send(self, status: int, data: bytes, headers: Mapping[str, str], asked: Asked | None = None) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "HEAD":
                return
            for start in range(0, len(data), _CHUNK):
                piece = data[start : start + _CHUNK]
                # What is shorter is the header of a shard, or no shard.
                if len(data) > LONGEST_HEADER and self._accident(start):
                    return
                if asked is not None:
                    asked.sent += len(piece)
                try:
                    self.wfile.write(piece)
                except OSError:
                    self.close_connection = True
                    return

        def _accident(self, sent: int) -> bool:
            if hub.cut_after is not None and sent >= hub.cut_after:
                hub.cut_after = None
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return True
            if hub.stall_after is not None and sent >= hub.stall_after:
                while hub.stall_after is not None:
                    time.sleep(0.02)
            return False

        def log_message(self, *_: object) -> None:
            return None

    return Handler
