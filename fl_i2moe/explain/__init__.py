"""
Explanations of a trained model: which expert, which patches and tokens, which pairs. Each imports only those above it:

- `inputs`, `attribution`: samples behind the stem, and the importance of their features
- `game`, `interactions`: any game, and how pairs of its players interact
- `feature_game`, `masked_expert`: an expert as a game of features
- `explanation_data`, shown by `pages`, saved by `explanation`, made by `explain_sample`
"""

from .explain_sample import explain
from .explanation import Explanation

__all__ = ["Explanation", "explain"]
