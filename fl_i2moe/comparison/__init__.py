"""
Several systems side by side.

- `systems`: the papers' tables, each system trained where it is not yet
- `robustness`, `overhead`: what they do with missing or noised modalities, and what they cost
- `runs`: runs that are trained already, held against the first of them
"""
