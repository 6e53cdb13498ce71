"""Files, run folders and the machine: nothing of models."""
