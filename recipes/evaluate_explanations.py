"""
Check explanations against the interactions that are planted in the built-in samples: right expert, evidence, pairs.

    python recipes/evaluate_explanations.py --models runs/sample runs/dense --output_dir runs/ground_truth

Each of `--models` is the output folder of recipes/train_mmimdb.py or recipes/train_arrays.py on its sample, or of
recipes/train.py on the clips of fl_i2moe.data.planted_sounds, with one trained model a seed, or the folder of one
model. It leaves ground_truth.json, ground_truth.md and carriers.png. A second start skips the models that are measured
already.
"""

from dataclasses import dataclass

from fl_i2moe.evaluation.ground_truth.run import EvaluationArguments, evaluate_runs
from fl_i2moe.evaluation.ground_truth.sample_truth import sample_truth
from fl_i2moe.training.arguments import option
from fl_i2moe.training.command_line import parse_arguments
from fl_i2moe.training.recipe import run_recipe, single_process
from fl_i2moe.training.runs import find_runs


@dataclass
class PlantedArguments(EvaluationArguments):
    """What is compared with the truth, and where that is."""

    data_dir: str | None = option(None, "Folder of the sample; what the run was trained on if not given.")


def main():
    (options,) = parse_arguments((PlantedArguments,), description=__doc__)
    accelerator = single_process()
    runs = find_runs(options.models, options.cache_dir)
    truth, carriers = sample_truth(runs, options.data_dir, ("train", options.split))
    evaluate_runs(runs, truth, carriers, options, accelerator)


if __name__ == "__main__":
    run_recipe(main)
