"""
Compare trained runs with the first of them, sample by sample.

    python recipes/compare_runs.py --runs runs/published runs/specialised --output_dir runs/compared

Each of `--runs` is the output folder of a training recipe, all on the same features and with the same seeds. It leaves
runs.json and runs.md: the metrics of the test split, with their differences to the first run and intervals of those;
the same with a threshold for each label from the validation split; log losses; and how often each mixture is right
where its own experts, and where those of the first run, disagree.
"""

from fl_i2moe.comparison.runs import RunComparisonArguments, compare_runs
from fl_i2moe.training.command_line import parse_arguments
from fl_i2moe.training.recipe import run_recipe, single_process
from fl_i2moe.training.runs import find_runs


def main():
    (options,) = parse_arguments((RunComparisonArguments,), description=__doc__)
    accelerator = single_process()
    compare_runs(find_runs(options.runs, options.cache_dir, options.seeds), options, accelerator)


if __name__ == "__main__":
    run_recipe(main)
