"""
Publish the Space of a model: a page that predicts and explains what its visitors give it.

    python hub/publish_space.py --model_id someone/fl-i2moe-mmimdb --repo_id someone/fl-i2moe-demo

The Space carries this package, and fetches the model. Its examples are the built-in sample's, shown for a model of its
classes alone; `--examples <folder>` has yours: `examples.json`, {"samples": [{"image": "a.jpg", "text": "…"}]} with the
modalities' names, and the pictures beside it. `--dry_run <folder>` writes the very same files into a folder.
To try it on this machine: `pip install gradio`, then `python hub/space/app.py --model <run or model id>`.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from huggingface_hub.utils import validate_repo_id
from PIL.Image import registered_extensions

import fl_i2moe
from fl_i2moe.model.kind_image import open_image
from fl_i2moe.publishing.repository import copy_file, make_empty_folder, publish, write_file_list
from fl_i2moe.training.arguments import option
from fl_i2moe.training.command_line import parse_arguments
from fl_i2moe.training.recipe import run_recipe
from fl_i2moe.utils.files import write_text

SPACE = Path(__file__).parent / "space"


@dataclass
class PublishSpaceArguments:
    """Which model the Space serves, and where it is."""

    model_id: str = field(metadata={"help": "Id of a published model."})
    repo_id: str = field(metadata={"help": "Space on the Hub, <name>/<space>; made if it does not exist."})
    private: bool = option(False, "Make a new Space private.")
    dry_run: str | None = option(None, "Write the files into this folder and publish nothing.")

    examples: str | None = option(None, "Folder with examples.json and its pictures; the built-in sample's.")

    def __post_init__(self):
        validate_repo_id(self.model_id)
        validate_repo_id(self.repo_id)
        if self.examples is not None:
            check_examples(Path(self.examples))


def check_examples(folder: Path) -> None:
    """
    Raises:
        ValueError: there is no examples.json that says what the examples are; or a picture that it names is not in the
            folder, or cannot be read.
    """
    file = folder / "examples.json"
    if not file.is_file():
        raise ValueError(f"`examples` {folder} has no examples.json.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    samples = content.get("samples") if isinstance(content, dict) else None
    if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
        raise ValueError(
            f'{file} must be {{"samples": [{{"image": "a.jpg", "text": "…"}}]}}, by the modalities\' names.'
        )
    pictures = registered_extensions()
    for number, sample in enumerate(samples, 1):
        for modality, value in sample.items():
            if not isinstance(value, str):
                raise ValueError(f"{file}, sample {number}: {modality!r} must be a text or the name of a picture.")
            if Path(value).suffix.lower() in pictures:
                check_picture(folder, value, f"{file}, sample {number}, {modality!r}")


def check_picture(folder: Path, name: str, where: str) -> None:
    """
    Raises:
        ValueError: the picture is not in the folder, or cannot be read.
    """
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{where}: {name} lies outside {folder}; copy the picture into it.")
    try:
        open_image(folder / name)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def write_space(folder: str | Path, model_id: str, examples: str | None = None) -> None:
    """
    Args:
        examples: folder of the examples; the built-in sample's if not given.

    Raises:
        ValueError: the folder is not empty.
    """
    folder = make_empty_folder(folder)
    leave_out = shutil.ignore_patterns("__pycache__", "model_id")
    shutil.copytree(SPACE, folder, ignore=leave_out, dirs_exist_ok=True)
    shutil.copytree(Path(fl_i2moe.__file__).parent, folder / "fl_i2moe", ignore=leave_out)
    if examples is not None:
        shutil.rmtree(folder / "examples")
        for file in Path(examples).rglob("*"):
            if not file.is_dir() and file.name not in ("__pycache__", "model_id"):
                copy_file(file, folder / "examples" / file.relative_to(examples), examples)
    write_text(folder / "model_id", model_id + "\n")
    requirements = (SPACE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    head = {
        "title": "FL-I²MoE",
        "sdk": "gradio",
        "sdk_version": next(line.partition("==")[2] for line in requirements if line.startswith("gradio==")),
        "app_file": "app.py",
        "pinned": False,
        "license": "apache-2.0",  # of the code; the model has its own
        "models": [model_id],
    }
    model = f"[{model_id}](https://huggingface.co/{model_id})"
    text = f"Predictions of {model}, and the words, cells of the picture and pairs behind them.\n"
    write_text(folder / "README.md", f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n\n{text}")
    write_file_list(folder)


def main():
    [arguments] = parse_arguments((PublishSpaceArguments,), description=__doc__)
    publish(
        lambda folder: write_space(folder, arguments.model_id, arguments.examples),
        arguments.repo_id,
        repo_type="space",
        private=arguments.private,
        dry_run=arguments.dry_run,
        message="Publish Space",
    )


if __name__ == "__main__":
    run_recipe(main)
