"""
Ask people whether expert weights make sense (I²MoE, appendix H).

    python recipes/human_evaluation.py draw --model runs/mmimdb --num_samples 20 --num_controls 20
    python recipes/human_evaluation.py summarize --questionnaire runs/mmimdb/questionnaire --answers answers/*.json

The first line writes a page that works from disk, without any network: readers rate the expert weights of samples and
save a file. The second line turns the files into the distribution of ratings (Table 11), how far it lies from that of
the controls, which show the weights of another sample, and how far raters agree.
"""

from fl_i2moe.evaluation.human_evaluation.study import (
    DrawArguments,
    SummarizeArguments,
    draw_questionnaire,
    summarise_answers,
)
from fl_i2moe.training.command_line import parse_command
from fl_i2moe.training.recipe import create_console, run_recipe, silence_libraries

COMMANDS = {"draw": (DrawArguments, draw_questionnaire), "summarize": (SummarizeArguments, summarise_answers)}


def main():
    command, arguments = parse_command({name: kind for name, (kind, _) in COMMANDS.items()}, description=__doc__)
    silence_libraries()
    COMMANDS[command][1](arguments, create_console())


if __name__ == "__main__":
    run_recipe(main)
