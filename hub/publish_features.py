"""
Publish a feature cache as a data set: shards with their checksums, key and card, in one commit.

    python hub/publish_features.py --features <feature cache> --repo_id someone/mmimdb-features --license other

A training run prints the folder of its cache. Texts and columns of tables are published with it; pictures and sounds
are not. Needs a token that may write (`hf auth login`, or HF_TOKEN). `--dry_run <folder>` writes the very same files
into a folder.
"""

from dataclasses import dataclass, field

from fl_i2moe.cache import open_features
from fl_i2moe.publishing.features import write_features
from fl_i2moe.publishing.repository import choose_license, publish
from fl_i2moe.training.arguments import option
from fl_i2moe.training.command_line import parse_arguments
from fl_i2moe.training.recipe import run_recipe


@dataclass
class PublishFeaturesArguments:
    """Which features are published, and where."""

    features: str = field(metadata={"help": "Folder of a feature cache."})
    repo_id: str = field(metadata={"help": "Data set on the Hub, <name>/<data set>; made if it does not exist."})
    private: bool = option(False, "Make a new data set private.")
    dry_run: str | None = option(None, "Write the files into this folder and publish nothing.")
    license: str | None = option(
        None, "License of the data, by the Hub's identifier; needed unless a README.md in the cache's folder has it."
    )
    dataset_name: str | None = option(None, "What the data are called.")

    def __post_init__(self):
        self.license = choose_license(self.license, self.features, "the features")


def main():
    [arguments] = parse_arguments((PublishFeaturesArguments,), description=__doc__)
    cache = open_features(arguments.features)
    publish(
        lambda folder: write_features(
            cache,
            folder,
            arguments.repo_id,
            license=arguments.license,
            dataset_name=arguments.dataset_name,
        ),
        arguments.repo_id,
        repo_type="dataset",
        private=arguments.private,
        dry_run=arguments.dry_run,
        message="Publish features",
    )


if __name__ == "__main__":
    run_recipe(main)
