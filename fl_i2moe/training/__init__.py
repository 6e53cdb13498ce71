"""
Training under Accelerate, from arguments to results.

Each imports only what stands above it:

- `published`: what the papers trained with; `arguments`: every option, checked at the start
- `checkpoints`, `loop`: train, evaluate, resume
- `features`: encoded or taken from a cache; `experiment`: the whole job of a recipe, over seeds
"""
