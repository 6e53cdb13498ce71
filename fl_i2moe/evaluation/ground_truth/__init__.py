"""
Explanations held against a known truth. Each imports only those above it:

- `truth`: which expert and which pairs are right; `evaluation`: how far a model agrees
- `sample_truth`: the truth of the built-in samples; `report`: tables and figures; `run`: trained models, over seeds
"""
