"""Whether explanations are true: masking, alignment, pairs, a known truth, people."""
