"""
Training under Accelerate, from options to results, and trained runs found again.

Each imports only what stands above it:

- `arguments`: every option, checked at the start; `published`: what the papers trained with
- `recipe`: what all recipes share
- `checkpoints`, `loop`: train, evaluate, resume
- `features`: encoded from raw data, or taken from a cache; `experiment`: the whole job, over seeds
- `runs`: trained models by their folders; `conversion`: checkpoints of the published I²MoE code
"""
