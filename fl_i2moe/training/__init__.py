"""Training under Accelerate, from options to results, and trained runs found again."""
