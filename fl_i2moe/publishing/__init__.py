"""
On the Hub.

Each imports only what stands above it:

- `finished_run`: what a training recipe left; `card_tables`, `card`: the model card
- `model`: a repository with weights, code, processor and card; `features`: one with a feature cache
"""
