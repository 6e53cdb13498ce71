"""
Publish a trained model: weights, code, processor, card, figures, statistics and results, in one commit.

    python hub/publish.py --model runs/mmimdb --repo_id someone/fl-i2moe-mmimdb --license cc-by-4.0

Needs a token that may write (`hf auth login`, or HF_TOKEN). `--dry_run <folder>` writes the very same files into a
folder and contacts nobody. A second start with the same model changes nothing.
"""

from dataclasses import dataclass, field

from fl_i2moe.publishing.card import CardOptions
from fl_i2moe.publishing.model import write_repository
from fl_i2moe.publishing.repository import choose_license, publish
from fl_i2moe.training.arguments import option
from fl_i2moe.training.command_line import parse_arguments
from fl_i2moe.training.recipe import run_recipe, silence_libraries
from fl_i2moe.training.runs import Run


@dataclass
class PublishArguments:
    """What is published, where, and what its card says."""

    model: str = field(metadata={"help": "Folder of a training run, as recipes/train.py leaves it."})
    repo_id: str = field(metadata={"help": "Repository on the Hub, <name>/<model>; made if it does not exist."})
    private: bool = option(False, "Make a new repository private.")
    dry_run: str | None = option(None, "Write the files into this folder and publish nothing.")
    license: str | None = option(
        None, "License of the weights, by the Hub's identifier; needed unless a README.md in the model's folder has it."
    )
    dataset_name: str | None = option(None, "What the training data are called.")
    dataset_id: str | None = option(None, "Id of the training data on the Hub, where they are there.")
    language: list[str] = option([], "Languages of the texts, such as en.")
    description: str | None = option(None, "A sentence or two at the top of the card.")
    compare: list[str] = option([], "Folders of runs whose results the card shows beside, such as a dense model's.")

    def __post_init__(self):
        self.license = choose_license(self.license, self.model, "the weights")
        self.card = CardOptions(**{name: getattr(self, name) for name in CardOptions.__dataclass_fields__})


def main():
    [arguments] = parse_arguments((PublishArguments,), description=__doc__)
    silence_libraries()
    run = Run.open(arguments.model)
    publish(
        lambda folder: write_repository(run, folder, arguments.card),
        arguments.repo_id,
        private=arguments.private,
        dry_run=arguments.dry_run,
        message=f"Publish {run.title}",
    )


if __name__ == "__main__":
    run_recipe(main)
