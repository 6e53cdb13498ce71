"""
Explanations of a trained model: which expert, which patches and tokens, which pairs.

What can be asked of a model (each imports only what stands above it):

- `inputs`, `attribution`: samples behind the stem, and the importance of their features
- `game`, `masked_expert`, `pair_scores`, `interactions`: an expert as a game, and how pairs of features interact
- `masking`, `pairs`, `alignment`, `pair_metrics`: what that is worth, by `summaries` of the metrics

One explanation: `geometry` (where features lie), `explanation_data`, shown by `sample_page` and `sample_figure` with
`display` and `sheet`, saved by `explanation`, made by `explain_sample`.

A run over many samples: `run_arguments`, `run_inputs`, `run_sample`, `run_figures`, `run_page`, `run_results`, `run`.

Against a known truth: `ground_truth`, `evaluation`, `ground_truth_report`, `evaluation_run`.

Before people: `questionnaire`, `questionnaire_page`, `ratings`, `ratings_report`, `human_evaluation`.
"""

from .explain_sample import explain
from .explanation import Explanation

__all__ = ["Explanation", "explain"]
