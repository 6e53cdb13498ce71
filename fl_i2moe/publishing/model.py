"""
From a training run to a repository on the Hub: its files in a folder, and one commit that brings them there.

What the folder holds is all that is published, so a dry run shows it whole. Nothing is pushed twice: files are compared
with those of the repository by their checksums, and where all are equal no commit is made. A repository keeps a list of
the files that were published into it: a later version takes away those of the list that it no longer has, and nothing
else.
"""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError
from huggingface_hub.hf_api import RepoFile

from ..model.kinds import ENCODED_KINDS
from ..model.pinned_encoders import (
    ENCODERS_FOLDER,
    Repository,
    find_encoder,
    load_pinned_encoder,
    takes_raw_inputs,
)
from ..model.pipeline_fl_i2moe import TASK, FLI2MoEPipeline
from ..model.processing_fl_i2moe import FLI2MoEProcessor
from ..training.runs import Run, load_model
from ..utils.files import read_json, write_json, write_text
from .card import CardOptions, build_card, evaluation_results

WEIGHTS_FILE = "model.safetensors"
ENCODER_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
FILE_LIST = "published_files.json"
COMMON_LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc0-1.0", "openrail", "other")


def choose_license(license: str | None, folder: str | Path, what: str) -> str:
    """
    The license given, by the Hub's identifier, or else the one in the card of the folder that is to be published.

    Raises:
        ValueError: there is none, or it is no identifier; `what` the license is of goes into the message.
    """
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


def write_repository(run: Run, folder: str | Path, options: CardOptions) -> None:
    """
    Writes the files of a model's repository into an empty folder: weights, code, processor, card, figures, statistics,
    results, and the encoders that no hub has.

    Raises:
        ValueError: the folder is not empty; the run has no safetensors; an encoder cannot be found, or is another one
            than the features of the training come from.
    """
    if not (run.folder / WEIGHTS_FILE).is_file():
        raise ValueError(f"{run.folder} has no {WEIGHTS_FILE}; weights in other formats are not published.")
    folder = make_empty_folder(folder)
    model = load_model(run.folder)
    model.config.encoders = {
        name: _publish_encoder(model.config.encoders[name], name, run, folder)
        for name in model.config.modality_order
        if name in (model.config.encoders or {})
    }
    if takes_raw_inputs(model.config):
        processor = FLI2MoEProcessor.from_config(model.config)
        FLI2MoEPipeline(model=model, processor=processor, task=TASK, device=-1).save_pretrained(folder)
        processor.save_pretrained(folder)
    else:
        model.save_pretrained(folder)

    for pattern in ("figures/*.png", "figures/*.json", "explanations/*.png", "explanations/*.json"):
        for file in run.folder.glob(pattern):
            if file.name != "run.json":
                (target := folder / file.parent.name).mkdir(exist_ok=True)
                shutil.copyfile(file, target / file.name)
    shutil.copyfile(run.folder / "interaction_statistics.json", folder / "interaction_statistics.json")
    results = {**without_paths(run.results), "encoders": model.config.encoders}
    write_json(folder / "results.json", results)
    run = copy(run)
    run.config, run.results = model.config, results
    write_text(folder / "README.md", str(build_card(run, options)))
    if (evaluations := evaluation_results(run, options)) is not None:
        write_text(folder / ".eval_results" / f"{options.dataset_id.replace('/', '--')}.yaml", evaluations)
    write_file_list(folder)


def make_empty_folder(folder: str | Path) -> Path:
    """Raises `ValueError` where there is something in it."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty: give a folder that does not exist yet.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_file_list(folder: Path) -> None:
    """Lists what the folder holds, so that a later version knows which files of the repository are its to remove."""
    (folder / FILE_LIST).unlink(missing_ok=True)
    write_json(folder / FILE_LIST, sorted(_files(folder)))


def _files(folder: Path) -> dict[str, Path]:
    """Name in the repository → file."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def publish(
    write: Callable[[str], None], repo_id: str, *, dry_run: str | None = None, repo_type: str = "model", **options: Any
) -> None:
    """
    Lets `write` fill an empty folder with the files of a repository, pushes them, and prints what came of it. With
    `dry_run` they stay in that folder. Takes the options of [`push`], and raises as `write` and [`push`].
    """
    if dry_run:
        write(dry_run)
        print(f"Nothing is published. The files of {repo_id} are in {dry_run}:")
        for name, path in _files(Path(dry_run)).items():
            print(f"  {name} ({path.stat().st_size:,} bytes)")
        return
    with tempfile.TemporaryDirectory() as folder:
        write(folder)
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
    Brings a folder into a repository, made if there is none, in one commit, which is there whole or not at all.

    Returns:
        The commit's id; `None` where the repository has these files already.

    Raises:
        ValueError: nobody is logged in, or the Hub refuses.
        ConnectionError: the Hub cannot be reached, or the connection broke.
    """
    folder, api = Path(folder), api or HfApi()
    try:
        kind = {"space_sdk": "gradio"} if repo_type == "space" else {}
        api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, **kind)
        head = api.repo_info(repo_id, repo_type=repo_type).sha
        there = {
            entry.path: entry
            for entry in api.list_repo_tree(repo_id, repo_type=repo_type, revision=head, recursive=True)
            if isinstance(entry, RepoFile)
        }
        files = _files(folder)
        operations = [
            CommitOperationAdd(name, path)
            for name, path in files.items()
            if name not in there or not same_content(path, there[name])
        ]
        if FILE_LIST in there:
            with tempfile.TemporaryDirectory() as cache:
                options = {"repo_type": repo_type, "revision": head, "cache_dir": cache}
                earlier = read_json(Path(api.hf_hub_download(repo_id, FILE_LIST, **options)), kind=list)
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


def _publish_encoder(identity: dict[str, Any], modality: str, run: Run, folder: Path) -> dict[str, Any]:
    """Pins an encoder of the Hub, or copies another one; its identity as it is published."""
    if identity.get("revision") or identity["kind"] not in ENCODED_KINDS:
        return identity
    repository = Repository(str(run.folder))
    encoder = load_pinned_encoder(identity, modality, repository)  # refuses one with other weights
    source, _ = find_encoder(identity, modality, repository)
    if not Path(source).is_dir():  # a hub id whose commit was not known at training
        commit = encoder.identity()["revision"]
        if commit is None:
            raise ValueError(f"The commit of the encoder {source} of {modality!r} cannot be found out.")
        return {**identity, "revision": commit}
    target = folder / ENCODERS_FOLDER / modality
    target.mkdir(parents=True)
    for pattern in ENCODER_FILES:
        for file in Path(source).glob(pattern):
            shutil.copyfile(file, target / file.name)
    return {**identity, "name": without_paths(identity["name"])}


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
