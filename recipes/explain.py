"""
Explain a trained model's predictions: which expert, which words, cells or seconds, which pairs.

    python recipes/explain.py --model runs/mmimdb --split test --num_samples 16

writes a page, a figure and the data of each sample, and measures on the data what the explanations are worth:
faithfulness (the FL-I²MoE paper's Figure 3; comprehensiveness and sufficiency), alignment of importance and interaction
(Figure 4) and pair masking (Table 1). What does not take part is taken out before the encoders, which are run again;
where raw values or encoders are not there, `--units features` explains features, as the paper does. `accelerate launch`
spreads the samples over processes. A second start goes on after the samples that are explained already.
"""

from fl_i2moe.evaluation.run.arguments import ExplainArguments
from fl_i2moe.evaluation.run.explanations import run_explanations
from fl_i2moe.training.arguments import TrainingArguments
from fl_i2moe.training.command_line import parse_arguments
from fl_i2moe.training.recipe import create_accelerator, run_recipe

# FL-I²MoE, section 4: each pair draws its own coalitions
PAPER = {
    "units": "features",
    "method": "grad_attnroll",
    "interactions": "per_pair",
    "num_coalitions": 4,
    "universe_share": 0.3,
}


def main():
    [arguments] = parse_arguments((ExplainArguments,), presets={"default": {}, "paper": PAPER}, description=__doc__)
    accelerator = create_accelerator(TrainingArguments(num_threads=arguments.num_threads), str(arguments.folder))
    run_explanations(arguments, accelerator)


if __name__ == "__main__":
    run_recipe(main)
