"""
Explanations of a trained model: which expert, which patches and tokens, which pairs.

What can be asked of a model (each imports only what stands above it):

- `inputs`, `attribution`: samples behind the stem, and the importance of their features
- `game`, `masked_expert`, `pair_scores`, `interactions`: an expert as a game, and how pairs of features interact
- `masking`, `pairs`, `alignment`, `pair_metrics`: what that is worth, by `summaries` of the metrics

One explanation: `geometry` (where features lie), `explanation_data`, shown by `pages`, saved by `explanation`, made by
`explain_sample`.

Built on that: `run`, over many samples; `ground_truth`, against a known truth; `human_evaluation`, before people.
"""

from .explain_sample import explain
from .explanation import Explanation

__all__ = ["Explanation", "explain"]
