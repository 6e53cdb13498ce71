"""Explanations compared with a known truth: which expert, which evidence and which pairs are right."""
