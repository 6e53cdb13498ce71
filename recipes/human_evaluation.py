"""
Ask people whether expert weights make sense (I²MoE, appendix H).

    python recipes/human_evaluation.py draw --model runs/mmimdb --num_samples 20 --num_controls 20
    python recipes/human_evaluation.py summarize --questionnaire runs/mmimdb/questionnaire --answers answers/*.json

The first line writes a page that works from disk, without any network: readers rate the expert weights of samples and
save a file. The second line turns the files into the distribution of ratings (Table 11), how far it lies from that of
the controls, which show the weights of another sample, and how far raters agree.
"""

from rich.console import Console
from transformers.utils import logging as transformers_logging

from fl_i2moe.evaluation.human_evaluation.study import (
    DrawArguments,
    SummarizeArguments,
    draw_questionnaire,
    summarise_answers,
)
from fl_i2moe.training.arguments import parse_command

COMMANDS = {"draw": (DrawArguments, draw_questionnaire), "summarize": (SummarizeArguments, summarise_answers)}


def main():
    command, arguments = parse_command({name: kind for name, (kind, _) in COMMANDS.items()}, description=__doc__)
    transformers_logging.disable_progress_bar()
    COMMANDS[command][1](arguments, Console(highlight=False, markup=False, soft_wrap=True))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
