"""A hub of models on this machine, in two servers as the real one has them: one knows repositories, one stores files.

It speaks the protocol from its published description and misbehaves on request: each fault is a field.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import re
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPO = "Efficient-Large-Model/NVILA-Lite-2B"
TOKEN = "hf_secret"


def folder_files(folder: Path) -> dict[str, bytes]:
    """The content of a folder, by path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class LocalHub:
    """Serves one repository; a context that lasts as long as the servers."""

    def __init__(self, files: Mapping[str, bytes], repo: str = REPO) -> None:
        self.files, self.repo = dict(files), repo
        self._digests: dict[int, tuple[bytes, str]] = {}
        self.licence: Any = "cc-by-nc-4.0"
        # Faults, the counted ones as often as they say.
        self.page_size = 1000
        self.drops: dict[str, list[int]] = {}  # by path: bytes after which a connection is cut, one answer each
        self.wrong: Counter[str] = Counter()  # answers with a changed byte
        self.ignores_range = self.is_gated = self.is_private = self.has_no_revision = False
        self.sends_wrong_etag: set[str] = set()
        self.moves_to = ""  # commit that answers claim from the first file on
        self.expired = 0  # answers of the store that refuse a link
        self.busy: list[tuple[int, str]] = []  # status and Retry-After
        self.entries: list[Any] = []  # more entries of the tree
        self.next_page = ""  # in place of the real one
        self.redirect = ""  # in place of the store's address
        self.renamed_from = ""
        self.bytes_per_s = 0.0
        self.stalls: set[str] = set()
        # What was seen.
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.sent = 0
        self._servers = [self._serve(is_store=False), self._serve(is_store=True)]
        self.url, self.store = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    @property
    def commit(self) -> str:
        text = "".join(f"{path} {self._digest(data)}\n" for path, data in sorted(self.files.items()))
        return hashlib.sha1(text.encode()).hexdigest()

    def _digest(self, data: bytes) -> str:
        """SHA-256 of a file, computed once: large ones are asked for often."""
        if id(data) not in self._digests:
            self._digests[id(data)] = (data, hashlib.sha256(data).hexdigest())
        return self._digests[id(data)][1]

    def __enter__(self) -> LocalHub:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def seen(self, where: str, part: str = "") -> list[tuple[str, str, dict[str, str]]]:
        """Requests at the hub or the store whose path has this part."""
        return [request for request in self.requests if request[0] == where and part in request[1]]

    def tree(self) -> list[Any]:
        return [{"type": "directory", "path": "llm", "size": 0, "oid": "0" * 40}, *map(self._entry, self.files)]

    def _entry(self, path: str) -> dict[str, Any]:
        data = self.files[path]
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_sha1(b"pointer")}
        if not is_lfs(path):
            entry["oid"] = git_sha1(data)
        else:
            lfs = {"oid": self._digest(data), "size": len(data), "pointerSize": 134}
            entry |= {"lfs": lfs, "xetHash": "0" * 64}
        return entry

    def _serve(self, is_store: bool) -> http.server.ThreadingHTTPServer:
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                where = "store" if is_store else "hub"
                hub.requests.append((where, self.path, {k.lower(): v for k, v in self.headers.items()}))
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a client that had enough
                    (hub.answer_store if is_store else hub.answer_hub)(self)

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        return server

    def answer_hub(self, to: http.server.BaseHTTPRequestHandler) -> None:
        url = urllib.parse.urlsplit(to.path)
        path = urllib.parse.unquote(url.path)
        if self.renamed_from and self.renamed_from in path:
            return send(to, 307, {"Location": to.path.replace(self.renamed_from, self.repo)})
        if self.busy:
            status, after = self.busy.pop(0)
            return send(to, status, {"Retry-After": after} if after else {})
        is_known = to.headers.get("Authorization") == f"Bearer {TOKEN}"
        if self.repo not in path or (self.is_private and not is_known):
            return send(to, 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "no such repository"})
        if self.has_no_revision:
            return send(to, 404, {"X-Error-Code": "RevisionNotFound"})
        if path.startswith(f"/api/models/{self.repo}/revision/"):
            card = {} if self.licence is None else {"license": self.licence}
            return send(to, 200, {}, json.dumps({"id": self.repo, "sha": self.commit, "cardData": card}).encode())
        if self.is_gated and not is_known:
            return send(to, 403, {"X-Error-Code": "GatedRepo"})
        if path.startswith(f"/api/models/{self.repo}/tree/{self.commit}"):
            return self._send_tree(to, url)
        return self._resolve(to, path.partition(f"/resolve/{self.commit}/")[2])

    def _send_tree(self, to: http.server.BaseHTTPRequestHandler, url: urllib.parse.SplitResult) -> None:
        start = int(urllib.parse.parse_qs(url.query).get("cursor", ["0"])[0])
        entries = self.tree() + self.entries
        headers = {}
        if start + self.page_size < len(entries):
            page = self.next_page or f"{self.url}{url.path}?recursive=true&cursor={start + self.page_size}"
            headers["Link"] = f'<{page}>; rel="next"'
        send(to, 200, headers, json.dumps(entries[start : start + self.page_size]).encode())

    def _resolve(self, to: http.server.BaseHTTPRequestHandler, path: str) -> None:
        if path not in self.files:
            return send(to, 404, {"X-Error-Code": "EntryNotFound"})
        data = self.files[path]
        digest = self._digest(data) if is_lfs(path) else git_sha1(data)
        if path in self.sends_wrong_etag:
            digest = digest[::-1]
        headers = {"X-Repo-Commit": self.moves_to or self.commit}
        if not is_lfs(path):
            return self._send_file(to, path, {**headers, "ETag": f'"{digest}"'})
        headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data)), "ETag": '"of the link"'}
        headers |= {"Link": '<https://xet.invalid>; rel="xet-auth"', "X-Xet-Hash": "0" * 64}
        where = self.redirect or f"{self.store}/{urllib.parse.quote(path)}?signature=1"
        send(to, 302, {**headers, "Location": where})

    def answer_store(self, to: http.server.BaseHTTPRequestHandler) -> None:
        if self.expired:
            self.expired -= 1
            return send(to, 403, {})
        self._send_file(to, urllib.parse.unquote(urllib.parse.urlsplit(to.path).path[1:]), {"ETag": f'"{"e" * 64}"'})

    def _send_file(self, to: http.server.BaseHTTPRequestHandler, path: str, headers: dict[str, str]) -> None:
        data, status, total = self.files[path], 200, len(self.files[path])
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", to.headers.get("Range", ""))
        if asked and not self.ignores_range:
            start, last = int(asked[1]), min(int(asked[2] or total), total - 1)
            if start >= total:
                return send(to, 416, {"Content-Range": f"bytes */{total}"})
            status, headers = 206, {**headers, "Content-Range": f"bytes {start}-{last}/{total}"}
            data = data[start : last + 1]
        if self.wrong[path] and not (asked and asked[2]):
            self.wrong[path] -= 1
            data = data[:-1] + bytes([data[-1] ^ 1])
        whole = data
        if self.drops.get(path) and not (asked and asked[2]):
            data = data[: self.drops[path].pop(0)]
        to.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(whole))}.items():
            to.send_header(key, value)
        to.end_headers()
        self._write(to, data)
        if path in self.stalls and len(data) < len(whole):
            time.sleep(2)

    def _write(self, to: http.server.BaseHTTPRequestHandler, data: bytes) -> None:
        for start in range(0, len(data), 1 << 16):
            piece = data[start : start + (1 << 16)]
            to.wfile.write(piece)
            self.sent += len(piece)
            if self.bytes_per_s:
                time.sleep(len(piece) / self.bytes_per_s)


def send(to: http.server.BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes = b"") -> None:
    to.send_response(status)
    for key, value in {**headers, "Content-Length": str(len(body))}.items():
        to.send_header(key, value)
    to.end_headers()
    to.wfile.write(body)


def is_lfs(path: str) -> bool:
    return path.endswith((".safetensors", ".bin", ".pt", ".model"))


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
