"""
Several systems side by side.

- `systems`: the papers' tables, each system trained unless it is already
- `measurements`: what they do with missing or noised modalities, and what they cost
- `runs`: runs that are trained already, compared with the first of them
"""
