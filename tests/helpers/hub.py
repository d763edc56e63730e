"""A stand-in for the Hub on loopback: what huggingface_hub's client asks of it when a model is pushed and pulled.

It keeps repositories in memory, checks tokens, digests and cards, and can be told to fail.
"""

import base64
import hashlib
import json
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import pytest
import yaml

TOKEN = "hf_aSecretThatMustNeverBeSeen"
LARGE = (".safetensors", ".png")  # kept as LFS objects
PUBLIC = ("README.md", ".huggingface.yaml")  # what those who were not let in may read of a gated repository
ATTRIBUTES = {".gitattributes": b"*.safetensors filter=lfs\n"}

# huggingface.co/docs/hub/repositories-licenses, those that a card of ours may name
LICENCES = {
    "apache-2.0", "mit", "openrail", "bsd", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0",
    "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "gpl-3.0", "agpl-3.0", "lgpl-3.0", "mpl-2.0", "unlicense",
    "unknown", "other",
}  # fmt: skip
REPO = re.compile(r"[\w.-]+(/[\w.-]+)?")
LISTS = ("tags", "datasets", "metrics", "base_model", "language")


def card_errors(text: str) -> list[str]:
    """What the Hub would refuse in a card's metadata, by its specification (hub-docs: modelcard.md, model-cards.md)."""
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    if not match:
        return ["no YAML metadata at the top"]
    try:
        front = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"metadata is not YAML: {error}"]
    errors = [f'"{key}" must be a list of strings' for key in LISTS if not _strings(front.get(key, []))]
    if front.get("license", "other") not in LICENCES:
        errors.append(f'"license" must be one of the Hub\'s, not {front["license"]}')
    if front.get("license") == "other" and not front.get("license_name"):
        errors.append('"license_name" is required where "license" is other')
    if front.get("base_model_relation", "finetune") not in ("finetune", "adapter", "merge", "quantized"):
        errors.append('"base_model_relation" must be one of finetune, adapter, merge, quantized')
    errors += [
        f"{name} is not an id"
        for key in ("base_model", "datasets")
        for name in front.get(key, [])
        if not REPO.fullmatch(name)
    ]
    return errors + [error for model in front.get("model-index", []) for error in _index_errors(model)]


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _index_errors(model: dict[str, Any]) -> Iterator[str]:
    if not isinstance(model.get("name"), str):
        yield "model-index[].name is required"
    for result in model.get("results") or [{}]:
        for part, keys in (("task", ("type",)), ("dataset", ("type", "name"))):
            yield from (
                f"model-index[].results[].{part}.{key} is required" for key in keys if not result.get(part, {}).get(key)
            )
        for metric in result.get("metrics") or [{}]:
            if not isinstance(metric.get("type"), str) or not isinstance(metric.get("value"), int | float | str):
                yield "model-index[].results[].metrics[] needs a type and a value"


@dataclass
class Repo:
    """commits: id → files of that state; branches: name → commit."""

    private: bool = False
    gated: int = 0  # the status that answers a request for a file: 401, 403
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        words = json.dumps([len(self.commits), sorted(files)]).encode()
        oid = hashlib.sha1(words).hexdigest()
        self.branches[branch], self.commits[oid] = oid, files
        return oid

    def files(self, revision: str) -> dict[str, bytes] | None:
        return self.commits.get(self.branches.get(revision, revision))


@dataclass
class Fault:
    """Answer `status` (0: cut the connection inside the body), `times` times, to requests that `where` matches."""

    where: str
    status: int
    times: int = 10**9


class Hub(ThreadingHTTPServer):
    """`url` is its address. `repos`, `faults` and `requests` ("METHOD path") are for tests to look at and change."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []

    def new_repo(self, name: str, files: dict[str, bytes] | None = None, private: bool = False) -> Repo:
        repo = self.repos[name] = Repo(private)
        repo.commit("main", ATTRIBUTES | (files or {}))
        return repo

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no news."""


class Handler(BaseHTTPRequestHandler):
    """Routes of the Hub."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *arguments: Any) -> None:
        """Silent."""

    def answer(self, value: Any = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        if not headers or "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do(self) -> None:
        path = unquote(urlsplit(self.path).path)
        said = f"{self.command} {path}"
        self.server.requests.append(said)
        for fault in self.server.faults:
            if fault.times and re.search(fault.where, said):
                fault.times -= 1
                if fault.status == 0:
                    self.rfile.read(min(100, int(self.headers.get("Content-Length", 0))))
                    self.close_connection = True
                    return self.connection.shutdown(socket.SHUT_RDWR)
                self.body()
                return self.answer({"error": "told to fail"}, fault.status)
        body = self.body()
        writes = path.startswith("/api") and path != "/api/validate-yaml"
        if writes and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            refusal = "Invalid credentials in Authorization header"
            return self.answer({"error": refusal}, 401, {"X-Error-Message": refusal})
        for method, pattern, route in ROUTES:
            if (match := re.fullmatch(pattern, path)) and self.command in method:
                return route(self, body, *match.groups())
        return self.answer({"error": f"no such route: {said}"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = do

    def repo(self, name: str) -> Repo | None:
        """The repository, or None and an answer that there is none."""
        if name not in self.server.repos:
            self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        return self.server.repos.get(name)

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = ("spaces/" if asked.get("type") == "space" else "") + f"{asked['organization']}/{asked['name']}"
        known = name in self.server.repos
        if not known:
            self.server.new_repo(name, private=asked.get("visibility") == "private")
        self.answer({"url": f"{self.server.url}/{name}"}, 409 if known else 200)

    def validate(self, body: bytes) -> None:
        errors = [{"message": error} for error in card_errors(json.loads(body)["content"])]
        self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def branch(self, body: bytes, name: str, branch: str) -> None:
        if repo := self.repo(name):
            known = branch in repo.branches
            repo.branches.setdefault(branch, repo.branches["main"])
            self.answer({}, 409 if known else 200)

    def info(self, body: bytes, name: str, revision: str = "main") -> None:
        if not (repo := self.repo(name)):
            return
        files = repo.files(revision)
        if files is None:
            return self.answer({"error": "Revision not found"}, 404, {"X-Error-Code": "RevisionNotFound"})
        siblings = [
            {"rfilename": path, "size": len(data), "blobId": blob_id(data), **large(path, data)}
            for path, data in files.items()
        ]
        oid = repo.branches.get(revision, revision)
        self.answer(
            {"id": name, "modelId": name, "sha": oid, "private": repo.private, "siblings": siblings, "tags": []}
        )

    def paths(self, body: bytes, name: str, revision: str) -> None:
        if (repo := self.repo(name)) and (files := repo.files(revision)) is not None:
            asked = parse_qs(body.decode()).get("paths") or json.loads(body)["paths"]
            self.answer([entry(path, files[path]) for path in asked if path in files])

    def tree(self, body: bytes, name: str, revision: str, folder: str = "") -> None:
        if not (repo := self.repo(name)):
            return
        below = [entry(p, data) for p, data in (repo.files(revision) or {}).items() if p.startswith(folder)]
        if not below:
            return self.answer({"error": "EntryNotFound"}, 404, {"X-Error-Code": "EntryNotFound"})
        self.answer(below)

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        if not (repo := self.repo(name)):
            return
        there = repo.files(revision) or {}
        self.answer({"files": [_upload_mode(file["path"], there) for file in json.loads(body)["files"]]})

    def batch(self, body: bytes, name: str) -> None:
        asked = json.loads(body)["objects"]
        self.answer({"transfer": "basic", "objects": [self._object(o) for o in asked]})

    def _object(self, asked: dict[str, Any]) -> dict[str, Any]:
        upload = {"upload": {"href": f"{self.server.url}/objects/{asked['oid']}"}}
        return asked | ({} if asked["oid"] in self.server.objects else {"actions": upload})

    def put(self, body: bytes, oid: str) -> None:
        right = hashlib.sha256(body).hexdigest() == oid
        if right:
            self.server.objects[oid] = body
        self.answer({}, 200 if right else 400)

    def commit(self, body: bytes, name: str, branch: str) -> None:
        if not (repo := self.repo(name)):
            return
        files = dict(repo.files(branch) or {})
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = repo.commit(branch, files)
        self.answer({"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid})

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        if not (repo := self.repo(name)):
            return
        if repo.gated and path not in PUBLIC:
            return self.answer({"error": "Access is restricted"}, repo.gated, {"X-Error-Code": "GatedRepo"})
        files = repo.files(revision)
        if files is None or path not in files:
            code = "RevisionNotFound" if files is None else "EntryNotFound"
            return self.answer({"error": code}, 404, {"X-Error-Code": code})
        data = files[path]
        headers = {
            "X-Repo-Commit": repo.branches.get(revision, revision),
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
        }
        if (part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))) and self.command == "GET":
            first, last = int(part[1]), min(int(part[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data = data[first : last + 1]
        status = 206 if "Content-Range" in headers else 200
        self.answer(data, status, headers | {"Content-Length": str(len(data))})


def large(path: str, data: bytes) -> dict[str, Any]:
    """What the Hub tells of a file that is kept as an LFS object."""
    sha = hashlib.sha256(data).hexdigest()
    return {"lfs": {"sha256": sha, "size": len(data), "pointerSize": 130}} if path.endswith(LARGE) else {}


def entry(path: str, data: bytes) -> dict[str, Any]:
    """A file in a listing."""
    return {"type": "file", "path": path, "size": len(data), "oid": blob_id(data), **large(path, data)}


def blob_id(data: bytes) -> str:
    """Git's hash of a file."""
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def _upload_mode(path: str, there: dict[str, bytes]) -> dict[str, Any]:
    is_large = path.endswith(LARGE)
    answer = {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
    if path in there:
        data = there[path]
        answer["oid"] = hashlib.sha256(data).hexdigest() if is_large else blob_id(data)
    return answer


NAME, FILE = r"([^/]+/[^/]+)", r"([^/]+)/(.+)"
OWN = r"(?:models/)?((?:spaces/)?[^/]+/[^/]+)"  # a model's or a Space's
ROUTES: list[tuple[str, str, Any]] = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", f"/api/{OWN}/branch/(.+)", Handler.branch),
    ("GET", f"/api/{OWN}", Handler.info),
    ("GET", f"/api/{OWN}/revision/(.+)", Handler.info),
    ("GET", f"/api/datasets/{NAME}", Handler.info),
    ("GET", f"/api/datasets/{NAME}/revision/(.+)", Handler.info),
    ("POST", f"/api/datasets/{NAME}/paths-info/(.+)", Handler.paths),
    ("GET", f"/api/datasets/{NAME}/tree/([^/]+)", Handler.tree),
    ("GET", f"/api/datasets/{NAME}/tree/{FILE}", Handler.tree),
    ("GET HEAD", f"/datasets/{NAME}/resolve/{FILE}", Handler.resolve),
    ("POST", f"/api/{OWN}/preupload/(.+)", Handler.preupload),
    ("POST", f"/{OWN}.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/objects/(.+)", Handler.put),
    ("POST", f"/api/{OWN}/commit/(.+)", Handler.commit),
    ("GET HEAD", f"/{NAME}/resolve/{FILE}", Handler.resolve),
]


@contextmanager
def running() -> Iterator[Hub]:
    """A Hub that serves until the end of the block."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield hub
    hub.shutdown()
    hub.server_close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A running stand-in that the client of this process talks to, with a token, and without real waiting."""
    with running() as server:
        addresses = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", addresses)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def files(hub: Hub, revision: str = "main", repo: str = "me/student") -> dict[str, bytes]:
    found = hub.repos[repo].files(revision)
    assert found is not None
    return {name: data for name, data in found.items() if name != ".gitattributes"}


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Publish without measuring the student and drawing its pictures again."""
    monkeypatch.setattr("meco_timm.hub.publishing.check_student", lambda results: None)
    monkeypatch.setattr("meco_timm.reporting.drawing.Chart.png", lambda self: b"a picture")


@pytest.fixture
def run(ended: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(ended, tmp_path / "run"))
