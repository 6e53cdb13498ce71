"""
A repository on the Hub: its files in a folder, and one commit that brings them there.

What the folder holds is all that is published, so a dry run shows it whole. Nothing is pushed twice: files are compared
with those of the repository by their checksums, and where all are equal no commit is made. A repository keeps a list of
the files that were published into it: a later version removes those of the list that it no longer has, and nothing
else.
"""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError
from huggingface_hub.hf_api import RepoFile

from ..model.configuration_fl_i2moe import check_given
from ..utils.checked_json import read_json
from ..utils.files import write_json, write_new_folder

FILE_LIST = "published_files.json"
COMMON_LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc0-1.0", "openrail", "other")


def choose_license(license: str | None, folder: str | Path, what: str) -> str:
    """
    The license given, by the Hub's identifier, or else that in the card of the folder that is to be published. Raises
    `ValueError` where there is none, or it is no identifier; `what` the license is of goes into the message.
    """
    check_given("folder", folder)
    card = Path(folder) / "README.md"
    if license is None and card.is_file():
        license = ModelCard.load(card).data.license
    if isinstance(license, str) and re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        return license
    problem = "is needed" if license is None else f"must be an identifier of the Hub, got {license!r}"
    raise ValueError(
        f"`license` {problem}: what others may do with {what} is yours to say, and depends on what they come from. "
        f"Common ones: {', '.join(COMMON_LICENSES)}; all: https://huggingface.co/docs/hub/repositories-licenses"
    )


def make_empty_folder(folder: str | Path) -> Path:
    """Raises `ValueError` where there is something in it."""
    check_given("folder", folder)
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty: give a folder that does not exist yet.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def copy_file(file: Path, target: Path, root: str | Path) -> None:
    """
    Copies a file from below `root` into a repository. Raises `ValueError` where it is a link that leads elsewhere:
    nobody has seen what would be published.
    """
    place = Path(root).resolve()
    if place.parent.name == "snapshots":  # of the Hub's own cache, which links to its blobs
        place = place.parents[1]
    if not file.resolve().is_relative_to(place) or not file.is_file():
        raise ValueError(f"{file} leads to {file.resolve()}, which is no file below {root}: it is not published.")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)


def write_file_list(folder: Path) -> None:
    """Lists what the folder holds, so that a later version knows which files of the repository are its to remove."""
    (folder / FILE_LIST).unlink(missing_ok=True)
    write_json(folder / FILE_LIST, sorted(_files(folder)))


def _files(folder: Path) -> dict[str, Path]:
    """Name in the repository → file; raises `ValueError` for a link, which would be published as what it leads to."""
    paths = sorted(folder.rglob("*"))
    if links := [path for path in paths if path.is_symlink()]:
        raise ValueError(f"{links[0]} is a link to {links[0].resolve()}: copy what is to be published.")
    return {path.relative_to(folder).as_posix(): path for path in paths if path.is_file()}


def publish(
    write: Callable[[Path], None], repo_id: str, *, dry_run: str | None = None, repo_type: str = "model", **options: Any
) -> None:
    """
    Lets `write` fill an empty folder with the files of a repository, pushes them, and prints what came of it. With
    `dry_run` they stay in that folder. Takes the options of [`push`], and raises as `write` and [`push`].
    """
    check_given("dry_run", dry_run)
    if dry_run is not None:
        make_empty_folder(dry_run)
        write_new_folder(dry_run, write)
        print(f"Nothing is published. The files of {repo_id} are in {dry_run}:")
        for name, path in _files(Path(dry_run)).items():
            print(f"  {name} ({path.stat().st_size:,} bytes)")
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        commit = push(folder, repo_id, repo_type=repo_type, **options)
    print("Nothing has changed, no commit was made." if commit is None else f"Published as commit {commit}.")
    print(f"{ENDPOINT}/{'' if repo_type == 'model' else repo_type + 's/'}{repo_id}")


def push(
    folder: str | Path,
    repo_id: str,
    *,
    repo_type: str = "model",
    private: bool = False,
    message: str = "Publish",
    api: HfApi | None = None,
) -> str | None:
    """
    Brings a folder into a repository, made if there is none, in one commit, which is there whole or not at all. Returns
    its id; `None` where the repository has these files already.

    Raises:
        ValueError: nobody is logged in, or the Hub refuses.
        ConnectionError: the Hub cannot be reached, or the connection broke.
    """
    check_given("folder", folder)
    folder, api = Path(folder), api or HfApi()
    try:
        kind: dict[str, Any] = {"space_sdk": "gradio"} if repo_type == "space" else {}
        api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, **kind)
        head = api.repo_info(repo_id, repo_type=repo_type).sha
        there = {
            entry.path: entry
            for entry in api.list_repo_tree(repo_id, repo_type=repo_type, revision=head, recursive=True)
            if isinstance(entry, RepoFile)
        }
        files = _files(folder)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(name, path)
            for name, path in files.items()
            if name not in there or not same_content(path, there[name])
        ]
        if FILE_LIST in there:
            with tempfile.TemporaryDirectory() as cache:
                options: dict[str, Any] = {"repo_type": repo_type, "revision": head, "cache_dir": cache}
                earlier = read_json(Path(api.hf_hub_download(repo_id, FILE_LIST, **options)), [str])
            operations += [CommitOperationDelete(name) for name in there if name in earlier and name not in files]
        if not operations:
            return None
        commit = api.create_commit(repo_id, operations, commit_message=message, repo_type=repo_type, parent_commit=head)
        return commit.oid
    except LocalTokenNotFoundError as error:
        raise ValueError("Nobody is logged in: run `hf auth login`, or set HF_TOKEN.") from error
    except HfHubHTTPError as error:
        raise ValueError(_explain(error, repo_id)) from error
    except (HTTPError, OSError, RuntimeError) as error:
        # what the client makes of a large file whose upload failed
        if isinstance(error, RuntimeError) and not isinstance(error.__cause__, (HTTPError, OSError)):
            raise
        raise ConnectionError(
            f"The Hub could not be reached, or the connection broke ({error}). Nothing is published by halves: either "
            f"{repo_id} is as it was before, or only the answer was lost and all is there. Run the same command again."
        ) from error


def same_content(path: Path, entry: RepoFile) -> bool:
    """Whether a file has the bytes of one in a repository, by the checksum that the Hub keeps of it."""
    if path.stat().st_size != entry.size:
        return False
    if entry.lfs is not None:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == entry.lfs.sha256
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == entry.blob_id


def without_paths(value: Any) -> Any:
    """JSON in which paths of this machine are cut to their last part."""
    if isinstance(value, dict):
        return {key: without_paths(x) for key, x in value.items()}
    if isinstance(value, list):
        return [without_paths(x) for x in value]
    if isinstance(value, str) and re.match(r"(/|~|\.\.?/|[A-Za-z]:[\\/])", value):
        return re.split(r"[\\/]", value.rstrip("/\\"))[-1]
    return value


def _explain(error: HfHubHTTPError, repo_id: str) -> str:
    reason = (error.server_message or str(error).splitlines()[0]).strip()
    texts = {
        401: f"The Hub does not know who you are: run `hf auth login`, or set HF_TOKEN ({reason}).",
        403: f"You may not write to {repo_id}: it is somebody else's, or your token only reads. Give a --repo_id under "
        f"your own name, and a token that may write ({reason}).",
        412: f"Somebody changed {repo_id} meanwhile: look at it, then run the same command again.",
    }
    status = error.response.status_code if error.response is not None else None
    return texts.get(status, f"The Hub refused to publish {repo_id}: {reason}")
