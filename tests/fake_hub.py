"""A Hub in memory, with the methods of `HfApi` that publishing calls."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import HfHubHTTPError, Response
from huggingface_hub.hf_api import RepoFile, RepoFolder
from huggingface_hub.utils._http import httpx2


def http_error(status: int, message: str = "no") -> HfHubHTTPError:
    response = Response(status, request=httpx2.Request("POST", "http://hub"))
    return HfHubHTTPError(f"{status} error", response=response, server_message=message)


class FakeHub:
    def __init__(self, fail: Exception | None = None):
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.commits: list[tuple[str, list[str]]] = []
        self.fail = fail

    def create_repo(self, repo_id, *, repo_type, private, exist_ok, **options):
        assert exist_ok
        if repo_id not in self.repositories:
            self.repositories[repo_id] = {".gitattributes": b"*.safetensors lfs\n"}
            self.private[repo_id] = private

    def repo_info(self, repo_id, *, repo_type):
        return SimpleNamespace(sha=f"commit-{len(self.commits)}")

    def list_repo_tree(self, repo_id, *, repo_type, revision, recursive):
        assert revision == f"commit-{len(self.commits)}"
        assert recursive
        for path, content in self.repositories[repo_id].items():
            if "/" in path:
                yield RepoFolder(path=path.rpartition("/")[0], oid="0" * 40)
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            lfs = {"size": len(content), "oid": hashlib.sha256(content).hexdigest(), "pointerSize": 130}
            large = path.endswith((".safetensors", ".arrow", ".png"))
            size = len(content)
            yield RepoFile(path=path, size=size, oid="f" * 40 if large else git, lfs=lfs if large else None)

    def create_commit(self, repo_id, operations, *, commit_message, repo_type, parent_commit):
        assert parent_commit == f"commit-{len(self.commits)}"
        files = dict(self.repositories[repo_id])
        for operation in operations:
            if isinstance(operation, CommitOperationAdd):
                files[operation.path_in_repo] = Path(operation.path_or_fileobj).read_bytes()
            else:
                assert isinstance(operation, CommitOperationDelete)
                del files[operation.path_in_repo]
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        self.repositories[repo_id] = files
        self.commits.append((commit_message, [operation.path_in_repo for operation in operations]))
        return SimpleNamespace(oid=f"commit-{len(self.commits)}")

    def hf_hub_download(self, repo_id, filename, *, repo_type, revision, cache_dir):
        assert revision == f"commit-{len(self.commits)}"
        path = Path(cache_dir) / filename
        path.write_bytes(self.repositories[repo_id][filename])
        return str(path)
