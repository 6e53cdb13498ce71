"""
A Hub on this machine's loopback: the routes that huggingface_hub's client needs to make a repository, push to it in one
commit, and load from it. Repositories and files are kept in memory.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".arrow", ".png", ".jpg")


@dataclass
class HubRepository:
    kind: str
    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    """Id and files of each commit, the last one is main."""

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)

    def add(self, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits.append((oid, files))
        return oid


class LoopbackHub(ThreadingHTTPServer):
    """`tokens` maps a token to the name under which it may write."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.tokens = {"hf_someone": "someone", "hf_other": "other"}
        self.repositories: dict[str, HubRepository] = {}
        self.large: dict[str, bytes] = {}
        self.cut_uploads = 0
        """How many uploads of large files are still to break off."""

        self.cut_commit: str | None = None
        """Where the next commit breaks off: `"before"` it is made, or `"after"`, when only its answer is lost."""

        self.downloads_left: int | None = None
        """How many shards of training data are still to be sent before every further one breaks off."""

        self.requests: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        return {"HF_ENDPOINT": self.address, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}


@contextmanager
def running_hub() -> Iterator[LoopbackHub]:
    hub = LoopbackHub()
    thread = Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_POST(self):
        self._route("POST")

    def do_PUT(self):
        self._route("PUT")

    def do_GET(self):
        self._route("GET")

    def do_HEAD(self):
        self._route("HEAD")

    def _route(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{method} {path}")
        for pattern, name in ROUTES:
            if match := re.fullmatch(f"{method} {pattern}", f"{method} {path}"):
                return getattr(self, name)(**match.groupdict())
        self._fail(404, "EntryNotFound", f"no route {method} {path}")

    # ---- answers ----

    def _send(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, content, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), Content_Type="application/json")

    def _fail(self, status: int, code: str, message: str) -> None:
        content = json.dumps({"error": message}).encode()
        self._send(status, content, Content_Type="application/json", X_Error_Code=code, X_Error_Message=message)

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _user(self) -> str | None:
        return self.server.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _may_write(self, repo: str) -> bool:
        if self._user() is None:
            self._fail(401, "", "Invalid username or password.")
        elif self._user() != repo.split("/")[0]:
            self._fail(403, "", "You don't have the rights to write there")
        else:
            return True
        return False

    def _readable(self, kind: str, repo: str) -> HubRepository | None:
        found = self.server.repositories.get(f"{kind}/{repo}")
        if found is None or (found.private and self._user() != repo.split("/")[0]):
            self._fail(401 if self._user() is None else 404, "RepoNotFound", "Repository not found")
            return None
        return found

    def _revision(self, kind: str, repo: str, revision: str | None):
        if (found := self._readable(kind, repo)) is None:
            return None
        if (commit := found.at(revision or "main")) is None:
            self._fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # ---- routes ----

    def validate_yaml(self):
        head = json.loads(self._body())["content"]
        good = re.match(r"---\n.*?\n---\n", head, re.DOTALL)
        self._json({"errors": [] if good else [{"message": "a card needs a head"}], "warnings": []})

    def create(self):
        wanted = json.loads(self._body())
        repo = f"{wanted.get('organization') or self._user()}/{wanted['name']}"
        kind = wanted.get("type", "model")
        if not self._may_write(repo):
            return
        exists = f"{kind}/{repo}" in self.server.repositories
        if not exists:
            made = HubRepository(kind, wanted.get("visibility") == "private")
            made.add({".gitattributes": b"*.safetensors filter=lfs\n"})
            self.server.repositories[f"{kind}/{repo}"] = made
        self._json({"url": f"{self.server.address}/{repo}", "name": repo}, 409 if exists else 200)

    def info(self, kind, repo, revision=None):
        if commit := self._revision(kind, repo, revision):
            oid, files = commit
            siblings = [{"rfilename": name} for name in files]
            self._json({"id": repo, "sha": oid, "siblings": siblings, "private": False, "tags": [], "downloads": 0})

    def tree(self, kind, repo, revision, path=None):
        if commit := self._revision(kind, repo, revision):
            recursive = "recursive=true" in self.path.lower()
            inside = {name: x for name, x in commit[1].items() if path is None or name.startswith(path + "/")}
            if path is not None and not inside:
                return self._fail(404, "EntryNotFound", f"{path} does not exist")
            start = 0 if path is None else len(path) + 1
            here = inside if recursive else {name: x for name, x in inside.items() if "/" not in name[start:]}
            folders = {name[: name.index("/", start)] for name in inside if "/" in name[start:]}
            entries = [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in sorted(folders)]
            self._json([*entries, *(_entry(name, content) for name, content in here.items())])

    def paths_info(self, kind, repo, revision):
        body = self._body()
        if commit := self._revision(kind, repo, revision):
            wanted = json.loads(body)["paths"]
            self._json([_entry(name, commit[1][name]) for name in wanted if name in commit[1]])

    def preupload(self, kind, repo, revision):
        files = json.loads(self._body())["files"]
        if self._may_write(repo):
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for file in files
            ]
            self._json({"files": modes})

    def batch(self, repo, prefix=None):
        wanted = json.loads(self._body())
        objects = []
        for entry in wanted["objects"]:
            action = {"upload": {"href": f"{self.server.address}/lfs/{entry['oid']}", "header": {}}}
            objects.append(entry if entry["oid"] in self.server.large else {**entry, "actions": action})
        self._json({"transfer": "basic", "objects": objects})

    def upload(self, oid):
        content = self._body()
        if self.server.cut_uploads:
            self.server.cut_uploads -= 1
            return self._cut()
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.large[oid] = content
        return self._send(200)

    def commit(self, kind, repo, revision):
        lines = [json.loads(line) for line in self._body().splitlines()]
        if not self._may_write(repo):
            return
        cut, self.server.cut_commit = self.server.cut_commit, None
        if cut == "before":
            return self._cut()
        repository = self.server.repositories[f"{kind}/{repo}"]
        head, files = repository.at("main")
        files = dict(files)
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header" if value.get("parentCommit") not in (None, head):
                    return self._fail(412, "", "A commit has happened since")
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.server.large[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        oid = repository.add(files)
        if cut == "after":
            return self._cut()
        self._json({"success": True, "commitOid": oid, "commitUrl": f"{self.server.address}/{repo}/commit/{oid}"})

    def resolve(self, repo, revision, path, prefix=None):
        kind = (prefix or "models/").removesuffix("s/")
        if not (commit := self._revision(kind, repo, revision)):
            return
        oid, files = commit
        if path not in files:
            return self._fail(404, "EntryNotFound", f"{path} is not in this repository")
        if self.command == "GET" and "train/" in path and path.endswith(".arrow"):
            if self.server.downloads_left == 0:
                return self._cut()
            if self.server.downloads_left is not None:
                self.server.downloads_left -= 1
        content, status, more = files[path], 200, {}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
            more, status = {"Content_Range": f"bytes {start}-{end}/{len(content)}"}, 206
            content = content[start : end + 1]
        etag = hashlib.sha256(files[path]).hexdigest()
        self._send(status, content, X_Repo_Commit=oid, ETag=f'"{etag}"', Accept_Ranges="bytes", **more)


def _entry(name: str, content: bytes) -> dict:
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry = {"type": "file", "path": name, "size": len(content), "oid": git}
    if name.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry


REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
API = rf"/api/(?P<kind>model|dataset|space)s/{REPO}"
PREFIX = r"/(?P<prefix>datasets/|spaces/)?"
ROUTES = [
    (r"/api/repos/create", "create"),
    (r"/api/validate-yaml", "validate_yaml"),
    (rf"{API}/preupload/(?P<revision>[^/]+)", "preupload"),
    (rf"{API}/commit/(?P<revision>[^/]+)", "commit"),
    (rf"{API}/paths-info/(?P<revision>[^/]+)", "paths_info"),
    (rf"{API}/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", "tree"),
    (rf"{API}(/revision/(?P<revision>[^/]+))?", "info"),
    (rf"{PREFIX}{REPO}\.git/info/lfs/objects/batch", "batch"),
    (r"/lfs/(?P<oid>\w+)", "upload"),
    (rf"{PREFIX}{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]
