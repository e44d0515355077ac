"""A local stand-in of the Hub's HTTP interface: as much of it as fetching from and pushing to a repository needs.

It speaks over a socket of this machine, so that `huggingface_hub` runs as it is. Failures are asked for by `HubDouble`:
a token that is needed, a connection that breaks in the middle of a file, bytes that are not those that were pushed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

LFS_FROM = 4096
"""Bytes from which a file is kept apart, as large ones are there."""


@dataclass
class Repository:
    """A repository: its commits, each the files by name."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Add a commit whose files are exactly these, and return its name."""
        name = hashlib.sha1(repr((len(self.commits), branch)).encode()).hexdigest()
        self.commits[name] = dict(files)
        self.branches[branch] = name
        return name

    def resolve(self, revision: str) -> str | None:
        """Return the commit of a branch or commit."""
        return self.branches.get(revision) or (revision if revision in self.commits else None)


class HubDouble:
    """The server.

    Attributes:
        repositories: by `user/name`.
        token: that changes and private repositories ask for.
        break_after: bytes of a file after which the connection breaks, as often as `breaks` says.
        damage: whether the first byte of every large file is another one on its way.
        may_write: whether the token may.
        refusal: what it says where a repository is not shown.
        instead: status, body and headers, if any, for paths that a pattern is found in, in place of its own answer.
        info: what is stated otherwise about a repository, and under `siblings` about each of its files.
        tag: of a file, in place of its digest.
        ignored: names that a commit passes over, as `.gitignore` of a repository makes the Hub do.
        asked: method and path of every request.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        self.token = "hf_of_this_test"
        self.break_after = 0
        self.breaks = 0
        self.damage = False
        self.may_write = True
        self.refusal = "refused"
        self.instead: dict[str, tuple[int, bytes] | tuple[int, bytes, dict[str, str]]] = {}
        self.info: dict[str, Any] = {}
        self.tag: str | None = None
        self.ignored: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def repository(self, name: str, files: dict[str, bytes], **keywords: bool) -> Repository:
        """Add a repository with one commit."""
        self.repositories[name] = Repository(**keywords)
        self.repositories[name].commit(files)
        return self.repositories[name]

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def believed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> HubDouble:
    """Return a server that `huggingface_hub` takes for the real one, with its files in a folder and no login."""
    double = HubDouble()
    for name, value in {
        "ENDPOINT": double.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": double.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_TOKEN_PATH": str(folder / "token"),
        "HF_STORED_TOKENS_PATH": str(folder / "tokens"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    # The library waits a second between attempts.
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    return double


def _handler(hub: HubDouble) -> type[BaseHTTPRequestHandler]:
    return type("Handler", (_Handler,), {"hub": hub})


class _Handler(BaseHTTPRequestHandler):
    hub: HubDouble
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        path = self._path()
        if self._is_answered_instead(path):
            return
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/(.+))?", path):
            self._info(found[1], unquote(found[2] or "main"))
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(found[1], unquote(found[2]), found[3])
        else:
            self._answer(404, {"error": f"no {path}"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        data, path = self._body(), self._path()
        if self._is_answered_instead(path):
            return
        digest = path.rpartition("/")[2]
        self.hub.stored[digest] = data
        same = hashlib.sha256(data).hexdigest() == digest
        self._answer(200 if same else 400, {})

    def do_POST(self) -> None:
        path, body = self._path(), self._body()
        if self._is_answered_instead(path):
            return
        if path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._answer(401, {"error": "Invalid username or password."})
        elif not self.hub.may_write:
            self._answer(403, {"error": "You don't have the rights to create a model under this namespace"})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            made = self.hub.repository(name, {".gitattributes": b"*.p4q filter=lfs"})
            made.private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self._answer(200, {"url": f"{self.hub.url}/{name}", "name": name})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            files = json.loads(body)["files"]
            modes = [("lfs" if file["size"] >= LFS_FROM else "regular", file["path"]) for file in files]
            answer = [
                {"path": name, "uploadMode": mode, "shouldIgnore": name in self.hub.ignored} for mode, name in modes
            ]
            self._answer(200, {"files": answer})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._answer(200, {"objects": [self._upload(one) for one in json.loads(body)["objects"]]})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            self._commit(found[1], unquote(found[2]), body)
        else:
            self._answer(404, {"error": f"no {path}"})

    def _upload(self, one: dict[str, Any]) -> dict[str, Any]:
        href = f"{self.hub.url}/upload/{one['oid']}"
        return {"oid": one["oid"], "size": one["size"], "actions": {"upload": {"href": href, "header": {}}}}

    def _commit(self, name: str, branch: str, body: bytes) -> None:
        repository = self.hub.repositories[name]
        files = dict(repository.commits[repository.branches[branch]])
        for line in map(json.loads, body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "header" and value.get("parentCommit") not in (None, repository.branches[branch]):
                self._answer(412, {"error": "A commit has happened since. Please refresh and try again."})
                return
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        made = repository.commit(files, branch)
        url = f"{self.hub.url}/{name}/commit/{made}"
        self._answer(200, {"success": True, "commitOid": made, "commitUrl": url})

    def _info(self, name: str, revision: str) -> None:
        repository = self._permitted(name)
        if repository is None:
            return
        commit = repository.resolve(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound")
            return
        siblings: list[dict[str, Any]] = []
        for path, data in sorted(repository.commits[commit].items()):
            digest = hashlib.sha256(data).hexdigest()
            lfs = {"lfs": {"sha256": digest, "size": len(data), "pointerSize": 130}} if len(data) >= LFS_FROM else {}
            stated = {"rfilename": path, "size": len(data), "blobId": digest[:40], **lfs}
            siblings.append({**stated, **self.hub.info.get("siblings", {})})
        private, gated = repository.private, "manual" if repository.gated else False
        about = {"id": name, "modelId": name, "sha": commit, "private": private, "gated": gated, "tags": []}
        self._answer(200, {**about, "downloads": 0, "likes": 0, **self.hub.info, "siblings": siblings})

    def _file(self, name: str, revision: str, path: str) -> None:
        repository = self._permitted(name)
        if repository is None:
            return
        if repository.gated:
            self._refuse(403, "GatedRepo")
            return
        commit = repository.resolve(revision)
        data = repository.commits[commit].get(path) if commit else None
        if data is None:
            self._refuse(404, "EntryNotFound")
            return
        etag = self.hub.tag or hashlib.sha256(data).hexdigest()
        if self.hub.damage and len(data) >= LFS_FROM:
            data = bytes([data[0] ^ 1]) + data[1:]
        start = int((re.findall(r"bytes=(\d+)-", self.headers.get("Range") or "") or ["0"])[0])
        self.send_response(206 if start else 200)
        for key, value in (("X-Repo-Commit", str(commit)), ("ETag", f'"{etag}"'), ("Accept-Ranges", "bytes")):
            self.send_header(key, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.breaks and len(data) > self.hub.break_after:
            self.hub.breaks -= 1
            self.wfile.write(data[start : max(start, self.hub.break_after)])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(data[start:])

    def _permitted(self, name: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        allowed = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if repository is None or (repository.private and not allowed):
            self._refuse(404 if allowed else 401, "RepoNotFound" if allowed else None)
            return None
        return repository

    def _is_answered_instead(self, path: str) -> bool:
        for pattern, (status, data, *headers) in self.hub.instead.items():
            if re.search(pattern, path):
                self.send_response(status)
                for name, value in (headers[0] if headers else {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else data)
                return True
        return False

    def _path(self) -> str:
        path = urlsplit(self.path).path
        self.hub.asked.append((self.command, path))
        return path

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _refuse(self, status: int, code: str | None) -> None:
        self._answer(status, {"error": self.hub.refusal}, **({"X-Error-Code": code} if code else {}))

    def _answer(self, status: int, document: dict[str, Any], **headers: str) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
