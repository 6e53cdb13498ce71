"""Explanations of many samples, and what they are worth, in one folder."""
