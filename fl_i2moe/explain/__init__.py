"""Explanations of a trained model: which expert, which features, which pairs."""

from .explain_sample import explain
from .explanation import Explanation

__all__ = ["Explanation", "explain"]
