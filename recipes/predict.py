"""
Predict the rows of a table with a trained model.

    python recipes/predict.py --model runs/tweets --dataset new_tweets.csv --output predictions.csv

Each row gets its labels, their probabilities, and what each expert contributed to them. The table has the columns that
the model was trained on, in any of the forms that recipes/train.py reads; --column picture=photo names another. Rows
that cannot be read are named and left out. A stopped job goes on by the same command.
"""

from fl_i2moe.training.command_line import parse_arguments
from fl_i2moe.training.new_rows import PredictArguments, predict_rows
from fl_i2moe.training.recipe import run_recipe, single_process


def main():
    [arguments] = parse_arguments((PredictArguments,), description=__doc__)
    predict_rows(arguments, single_process())


if __name__ == "__main__":
    run_recipe(main)
