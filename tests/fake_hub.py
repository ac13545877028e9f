"""A small local Hugging Face hub: the endpoints that `huggingface_hub` needs to store and fetch small files."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from prompt_transfer.utils.network import hub_reachable

TOKEN = "hf_secretsecretsecret"
Files = dict[str, bytes]


class FakeHub:
    """Repositories in memory.

    Attributes:
        repos: name -> {"private": bool, "branches": branch -> commit}.
        commits: commit -> its files.
        seen: method, path and Authorization header of every request.
        broken: answer every request with 503.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, Any]] = {}
        self.commits: dict[str, Files] = {}
        self.seen: list[tuple[str, str, str | None]] = []
        self.broken = False
        self.url = ""

    def put(self, repo: str, files: Files, branch: str = "main", private: bool = False) -> str:
        """Commit these files on top of the current ones."""
        branches = self.repos.setdefault(repo, {"private": private, "branches": {}})["branches"]
        whole = {**self.commits.get(branches.get(branch, ""), {}), **files}
        commit = hashlib.sha1(f"{repo}{len(self.commits)}".encode()).hexdigest()
        self.commits[commit], branches[branch] = whole, commit
        return commit

    def files(self, repo: str, branch: str = "main") -> Files:
        return self.commits[self.repos[repo]["branches"][branch]]

    def commit_of(self, repo: str, revision: str) -> str | None:
        return self.repos[repo]["branches"].get(revision, revision if revision in self.commits else None)

    def read(self, path: str) -> tuple[int, Any]:
        """Answer a GET request: status, and JSON or the bytes of a file."""
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            repo, verb, revision = "/".join(parts[2:4]), parts[4:5], (parts[5:6] or ["main"])[0]
        elif len(parts) >= 5 and parts[2] == "resolve":
            repo, verb, revision = "/".join(parts[:2]), ["resolve"], parts[3]
        else:
            return 404, "EntryNotFound"
        if repo not in self.repos:
            return 404, "RepoNotFound"
        commit = self.commit_of(repo, revision)
        if commit is None:
            return 404, "RevisionNotFound"
        files = self.commits[commit]
        if verb == ["resolve"]:
            name = "/".join(parts[4:])
            return (200, (commit, files[name])) if name in files else (404, "EntryNotFound")
        if verb == ["tree"]:
            return 200, [
                {"type": "file", "path": name, "size": len(data), "oid": blob(data)} for name, data in files.items()
            ]
        siblings = [{"rfilename": name, "size": len(data), "blobId": blob(data)} for name, data in files.items()]
        return 200, {
            "id": repo,
            "sha": commit,
            "private": self.repos[repo]["private"],
            "siblings": siblings,
            "tags": [],
        }

    def write(self, path: str, body: bytes) -> tuple[int, Any]:
        """Answer a POST request."""
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if path == "/api/validate-yaml":
            return 200, {}
        if path == "/api/repos/create":
            values = json.loads(body)
            repo = f"{values['organization']}/{values['name']}"
            there = repo in self.repos
            if not there:
                self.put(repo, {".gitattributes": b""}, private=values.get("visibility") == "private")
            return (409 if there else 200), {"url": f"{self.url}/{repo}"}
        repo, verb, revision = "/".join(parts[2:4]), parts[4], parts[5]
        if verb == "branch":
            branches = self.repos[repo]["branches"]
            there = revision in branches
            branches.setdefault(revision, branches["main"])
            return (409 if there else 200), {}
        if verb == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            return 200, {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
        assert verb == "commit"
        lines = [json.loads(line) for line in body.splitlines()]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        commit = self.put(repo, files, revision)
        return 200, {"commitUrl": f"{self.url}/{repo}/commit/{commit}", "commitOid": commit}


@contextmanager
def connected(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[FakeHub]:
    """Point this process's `huggingface_hub` at the fake hub, with its cache below `cache`."""
    import huggingface_hub
    from huggingface_hub import constants

    with fake_hub() as server:
        for name, value in {
            "HF_HUB_OFFLINE": False,
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(cache),
        }.items():
            monkeypatch.setattr(constants, name, value)
        for name, text in {
            "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": server.url,
            "HF_TOKEN": TOKEN,
            "NO_PROXY": "*",
        }.items():
            monkeypatch.setenv(name, text)
        hub_reachable.cache_clear()
        huggingface_hub.close_session()
        yield server
        huggingface_hub.close_session()
        hub_reachable.cache_clear()


def blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Serve a fake hub on a free port until the block ends."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            """Log nothing."""

        def answer(self, status: int, content: Any) -> None:
            headers = {"Content-Type": "application/json"}
            if isinstance(content, tuple):
                commit, data = content
                headers = {"ETag": f'"{blob(data)}"', "X-Repo-Commit": commit}
            else:
                if status == 404:
                    headers["X-Error-Code"], content = content, {"error": content}
                data = json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def handle_one(self) -> None:
            path = urlsplit(self.path).path
            token = self.headers.get("Authorization")
            hub.seen.append((self.command, path, token))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if hub.broken:
                self.answer(503, {"error": "out of order"})
            elif self.command == "POST" and token != f"Bearer {TOKEN}":
                self.answer(401, {"error": f"bad token {token}"})
            else:
                self.answer(*(hub.write(path, body) if self.command == "POST" else hub.read(path)))

        do_GET = do_HEAD = do_POST = handle_one  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
