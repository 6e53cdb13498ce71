"""
Turn a checkpoint of the published I²MoE code (Transformer fusion) into a model of this package.

    python recipes/convert_i2moe_checkpoint.py checkpoint.pth runs/converted --modalities language img \\
        --num_attention_heads 4 --reweighting_temperature 2 --problem_type multi_label_classification

The options are what the checkpoint does not tell; the published training script has them. The model takes the
embeddings that the published encoders give, one array (samples, pieces, width) for each modality.
"""

import argparse

from fl_i2moe.model.configuration_fl_i2moe import PROBLEM_TYPES
from fl_i2moe.training.command_line import HelpFormatter, given_path
from fl_i2moe.training.conversion import convert_i2moe, load_i2moe_checkpoint
from fl_i2moe.training.recipe import run_recipe
from fl_i2moe.utils.files import write_new_folder
from fl_i2moe.utils.run_folder import JobFiles, check_run_folder


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "checkpoint", type=given_path, help="a state_dict, or what the published training saved (.pth, .safetensors)"
    )
    parser.add_argument("output_dir", type=given_path, help="new folder for the model")
    parser.add_argument("--modalities", nargs="+", required=True, help="names, in the published order")
    parser.add_argument("--num_attention_heads", type=int, required=True, help="attention heads (num_heads)")
    parser.add_argument("--reweighting_temperature", type=float, default=1.0, help="temperature_rw")
    parser.add_argument("--problem_type", choices=PROBLEM_TYPES, default=PROBLEM_TYPES[0], help="what the labels are")
    parser.add_argument("--interaction_loss_weight", type=float, default=0.5, help="λ, for training")
    parser.add_argument("--dropout", type=float, default=0.5, help="dropout of the experts, for training")
    options = vars(parser.parse_args())

    output_dir = options.pop("output_dir")
    check_run_folder(output_dir, JobFiles("conversion", ()), resume=False, overwrite=False)
    state_dict = load_i2moe_checkpoint(options.pop("checkpoint"))
    model = convert_i2moe(state_dict, options.pop("modalities"), **options)
    write_new_folder(output_dir, model.save_pretrained)
    print(f"{len(state_dict)} tensors, experts {', '.join(model.config.expert_names)}: {output_dir}")


if __name__ == "__main__":
    run_recipe(main)
