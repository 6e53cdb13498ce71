"""How much a data set's modalities tell of its labels, in bits: each alone, in addition, and only together."""
