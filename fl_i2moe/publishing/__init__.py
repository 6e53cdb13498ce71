"""
On the Hub.

Each imports only what stands above it:

- `card_tables`, `card`: the model card, from `templates/`
- `repository`: files in a folder, pushed in one commit
- `model`: a repository with weights, code, processor and card; `features`: one with a feature cache
"""
