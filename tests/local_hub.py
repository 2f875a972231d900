"""A Hub on this machine: the endpoints that huggingface_hub asks when it creates, uploads, lists and downloads.

Repositories are kept in memory as branches of {path: bytes}; a token is needed to write, and to read what is private.
Large files take the LFS route with its checksum, downloads can be resumed. Faults can be planted: bytes that change on
the way (`corrupted`), a connection that breaks once (`cut_once`), files that the server has no answer for (`silent`).
"""

import base64
import hashlib
import json
import re
import sys
import threading
import time
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import huggingface_hub
import pytest
import yaml
from huggingface_hub import constants


TOKEN, USER = "hf_local_token", "user"
LFS_SUFFIXES = (".safetensors", ".bin")


@dataclass
class Repository:
    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def files(self, revision: str) -> dict[str, bytes] | None:
        revision = urllib.parse.unquote(revision)
        named = {self.sha(name): files for name, files in self.branches.items()} | self.branches
        return named.get(revision)

    def sha(self, branch: str) -> str:
        content = json.dumps({path: hashlib.sha256(data).hexdigest() for path, data in self.branches[branch].items()})
        return hashlib.sha1(f"{branch}{content}".encode()).hexdigest()


class LocalHub:
    """A running server; `endpoint` is its address."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.lfs: dict[str, bytes] = {}
        self.corrupted: set[str] = set()
        self.cut_once: set[str] = set()
        self.silent: set[str] = set()
        self.log: list[tuple[str, str]] = []
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def put(self, repo_id: str, folder, private: bool = False) -> Repository:
        """A repository that holds a folder's files, as somebody else uploaded it."""
        files = {str(p.relative_to(folder).as_posix()): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        self.repositories[repo_id] = Repository(private, {"main": files})
        return self.repositories[repo_id]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def log_message(self, *args):
        pass

    def answer(self, content=None, status: int = 200, headers: dict | None = None, body: bytes | None = None):
        body = json.dumps(content).encode() if body is None else body
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json"}.items():
            if name not in (headers or {}):
                self.send_header(name, value)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str):
        self.answer({"error": code}, status, {"X-Error-Code": code, "X-Error-Message": code})

    def payload(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    @property
    def is_user(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, repo_id: str) -> Repository | None:
        """The repository if this caller may see it; a private one does not exist for others."""
        found = self.hub.repositories.get(repo_id)
        if found is None or (found.private and not self.is_user):
            self.refuse(404 if self.is_user else 401, "RepoNotFound")
            return None
        return found

    def handle_any(self):
        path = urllib.parse.urlsplit(self.path).path
        self.hub.log.append((self.command, path))
        for method, pattern, name in ROUTES:
            if self.command in method.split() and (match := re.fullmatch(pattern, path)):
                if name not in OPEN and not self.is_user:
                    self.payload()
                    return self.refuse(401, "Unauthorized")
                return getattr(self, name)(*match.groups())
        return self.refuse(404, "EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def whoami(self):
        self.answer({"name": USER, "type": "user", "orgs": []})

    def validate(self):
        content, errors = json.loads(self.payload())["content"], []
        head = re.match(r"---\n(.*?)\n---\n", content, flags=re.DOTALL)
        try:
            yaml.safe_load(head.group(1) if head else "")
        except yaml.YAMLError as error:
            errors = [{"message": str(error)}]
        self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def create(self):
        asked = json.loads(self.payload())
        repo_id = f"{asked.get('organization') or USER}/{asked['name']}"
        url = f"{self.hub.endpoint}/{repo_id}"
        if repo_id in self.hub.repositories:
            return self.answer({"url": url, "error": "exists"}, 409)
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.repositories[repo_id] = Repository(private=bool(private))
        return self.answer({"url": url, "id": repo_id, "name": repo_id})

    def branch(self, repo_id, name):
        self.payload()
        repository = self.repository(repo_id)
        if repository is None:
            return None
        name = urllib.parse.unquote(name)
        if name in repository.branches:
            return self.answer({"error": "exists"}, 409)
        repository.branches[name] = dict(repository.branches["main"])
        return self.answer({}, 201)

    def info(self, repo_id, revision=None):
        repository = self.repository(repo_id)
        if repository is None:
            return None
        revision = urllib.parse.unquote(revision or "main")
        files = repository.files(revision)
        if files is None:
            return self.refuse(404, "RevisionNotFound")
        sha = repository.sha(revision) if revision in repository.branches else revision
        siblings = [{"rfilename": path} for path in files]
        answer = {"id": repo_id, "modelId": repo_id, "sha": sha, "private": repository.private, "siblings": siblings}
        return self.answer(answer | {"tags": [], "downloads": 0, "likes": 0})

    def tree(self, repo_id, revision):
        repository = self.repository(repo_id)
        if repository is None:
            return None
        files = repository.files(revision)
        if files is None:
            return self.refuse(404, "RevisionNotFound")
        entries = [{"type": "file", "path": p, "size": len(d), "oid": git_sha(d)} for p, d in files.items()]
        return self.answer(entries)

    def preupload(self, repo_id, revision):
        repository, asked = self.repository(repo_id), json.loads(self.payload())
        if repository is None:
            return None
        answer = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": False,
            }
            for file in asked["files"]
        ]
        return self.answer({"files": answer})

    def lfs_batch(self, repo_id):
        asked = json.loads(self.payload())
        objects = []
        for entry in asked["objects"]:
            oid, action = entry["oid"], {"href": f"{self.hub.endpoint}/lfs/{entry['oid']}"}
            known = oid in self.hub.lfs
            objects.append({"oid": oid, "size": entry["size"]} | ({} if known else {"actions": {"upload": action}}))
        self.answer({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid):
        data = self.payload()
        if hashlib.sha256(data).hexdigest() != oid:
            return self.refuse(400, "WrongChecksum")
        self.hub.lfs[oid] = data
        return self.answer({})

    def commit(self, repo_id, revision):
        lines = [json.loads(line) for line in self.payload().splitlines() if line]
        repository = self.repository(repo_id)
        if repository is None:
            return None
        revision = urllib.parse.unquote(revision)
        files = repository.branches.get(revision)
        if files is None:
            return self.refuse(404, "RevisionNotFound")
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repository.commits.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.lfs[value["oid"]]
        oid = repository.sha(revision)
        url = f"{self.hub.endpoint}/{repo_id}/commit/{oid}"
        return self.answer({"success": True, "commitUrl": url, "commitOid": oid})

    def resolve(self, repo_id, revision, path):
        if urllib.parse.unquote(path) in self.hub.silent:
            return self.answer({"error": "Gateway Timeout"}, 504)
        repository = self.repository(repo_id)
        if repository is None:
            return None
        revision, path = urllib.parse.unquote(revision), urllib.parse.unquote(path)
        files = repository.files(revision)
        if files is None:
            return self.refuse(404, "RevisionNotFound")
        sha = repository.sha(revision) if revision in repository.branches else revision
        if path not in files:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}
            return self.answer({"error": "EntryNotFound"}, 404, headers)
        data = files[path]
        etag = hashlib.sha256(data).hexdigest() if path.endswith(LFS_SUFFIXES) else git_sha(data)
        headers = {"X-Repo-Commit": sha, "ETag": f'"{etag}"', "Content-Type": "application/octet-stream"}
        headers["Accept-Ranges"] = "bytes"
        if path.endswith(LFS_SUFFIXES):
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
        if path in self.hub.corrupted:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start, status = 0, 200
        if (asked := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))) is not None:
            start, end = int(asked.group(1)), int(asked.group(2) or len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            data, status = data[start : end + 1], 206
        if path in self.hub.cut_once and self.command == "GET":
            self.hub.cut_once.discard(path)
            self.answer(
                status=status, headers=headers | {"Content-Length": str(len(data))}, body=data[: len(data) // 2]
            )
            self.wfile.flush()
            self.close_connection = True
            return None
        return self.answer(status=status, headers=headers, body=data)


OPEN = ("info", "tree", "resolve", "validate", "lfs_put")  # the last by its address alone, as the Hub's own storage
NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = (
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("POST", r"/api/repos/create", "create"),
    ("GET", rf"/api/models/{NAME}", "info"),
    ("GET", rf"/api/models/{NAME}/revision/([^/]+)", "info"),
    ("GET", rf"/api/models/{NAME}/tree/([^/]+).*", "tree"),
    ("POST", rf"/api/models/{NAME}/branch/([^/]+)", "branch"),
    ("POST", rf"/api/models/{NAME}/preupload/([^/]+)", "preupload"),
    ("POST", rf"/api/models/{NAME}/commit/([^/]+)", "commit"),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/([0-9a-f]{64})", "lfs_put"),
    ("GET HEAD", rf"/{NAME}/resolve/([^/]+)/(.+)", "resolve"),
)


def git_sha(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A local server in the Hub's place, with an empty cache; nothing else can be reached."""
    server = LocalHub()
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server speaks LFS
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.endpoint)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)  # transformers' own, with its address
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # A server that keeps silent is asked six times; not with seconds between them here.
    impatient = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", impatient, raising=False)
    yield server
    server.close()
