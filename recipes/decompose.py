"""
Which interactions a data set holds, in bits, whatever any expert says: what each modality tells of each label alone,
what only one of them tells (unique), what several tell (redundant), and what only all together tell (synergistic).

    python recipes/decompose.py --features <folder of a feature cache, or data set on the Hub> --output_dir runs/bits
    python recipes/decompose.py --run runs/mmimdb

It trains small plain models on the features, without experts: of each modality, of the sum of their evidence, and of
everything. With --run they are those of a training run, and the result lies in its folder, where hub/publish.py finds
it for the model's card. It leaves information.json and information.png, and prints the table. A second start skips the
models that are trained already.
"""

from dataclasses import dataclass
from pathlib import Path

from fl_i2moe.cache import open_features
from fl_i2moe.cache.key import key_digest
from fl_i2moe.evaluation.information.decomposition import DecompositionArguments, check_output, decompose
from fl_i2moe.evaluation.information.report import INFORMATION_FOLDER
from fl_i2moe.training.arguments import option
from fl_i2moe.training.command_line import parse_arguments
from fl_i2moe.training.recipe import create_accelerator, run_recipe
from fl_i2moe.training.runs import Run, find_cache


@dataclass
class RecipeArguments(DecompositionArguments):
    """On which features, by which plain models."""

    features: str | None = option(None, "Folder of a feature cache, or data set on the Hub.")
    run: str | None = option(None, "Folder of a training run, whose features are taken unless --features has them.")
    output_dir: str | None = option(  # type: ignore[assignment]
        None, f"Folder for the numbers and the figure; `{INFORMATION_FOLDER}` in that of --run if not given."
    )

    def __post_init__(self):
        if not (self.features or self.run):
            raise ValueError("Give `features`, the folder of a feature cache, or `run`, that of a training run.")
        if self.output_dir is None:
            self.output_dir = str(Path(self.run) / INFORMATION_FOLDER) if self.run else "runs/information"
        super().__post_init__()


def find_features(options):
    if options.run is None:
        return open_features(options.features)
    run = Run.open(options.run)
    if options.features is None:
        try:
            return find_cache(run.folder)
        except ValueError as error:
            raise ValueError(str(error).replace("--cache_dir", "--features")) from error
    cache = open_features(options.features)
    if run.settings.get("features", found := key_digest(cache.key)) != found:
        raise ValueError(
            f"{options.run} was trained on the features {run.settings['features']}, those in {options.features} are "
            f"{found}: leave --run or --features out."
        )
    return cache


def main():
    (options,) = parse_arguments((RecipeArguments,), description=__doc__)
    accelerator = create_accelerator(options.job().training, options.output_dir)
    if accelerator.is_main_process:
        check_output(options)
    accelerator.wait_for_everyone()
    decompose(find_features(options), options, accelerator)


if __name__ == "__main__":
    run_recipe(main)
