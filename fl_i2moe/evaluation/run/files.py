"""What lies in the folder of a run of explanations, for those who read it again: names, and shapes for `read_json`."""

FAITHFULNESS_FILE, PAIR_MASKING_FILE = "faithfulness.json", "pair_masking.json"

_NUMBER = (float, None)
_VALUES = {str: _NUMBER}  # metric → value
_CURVE = {
    **{key: [_NUMBER] for key in ("values", "values_std", "drops", "drops_std")},
    **dict.fromkeys(("mean_drop", "mean_drop_std", "auc", "auc_std"), _NUMBER),
}
_CURVES = {str: {str: {str: _CURVE}}}  # method → expert → metric
_INTERVAL = {"value": _NUMBER, "interval": ([_NUMBER], None)}
_LOSS = {
    **{key: [_NUMBER] for key in ("values", "values_std")},
    **dict.fromkeys(("aopc", "aopc_std"), _NUMBER),
    "interval": ([_NUMBER], None),
    "beyond_random": (_INTERVAL, None),
}
_LOSSES = {str: {str: _LOSS}}  # method → expert
FAITHFULNESS = {
    str: {
        "num_samples": int,
        "problem_type": str,
        "shares": [float],
        "base": _VALUES,
        "emptied": _VALUES,
        "deletion": _CURVES,
        "insertion?": _CURVES,
        "comprehensiveness?": _LOSSES,  # not of regressions, nor in results of version 0.1.0
        "sufficiency?": _LOSSES,
        "confidence?": float,
        "experts": [str],
        "methods": [str],
        "num_random": int,
        "seed": int,
        "target": str,
        "model?": str,  # its fingerprint
        "features?": str,  # the digest of the cache's key
        "units?": str,
        "samples?": str,  # the digest of their ids, of units that are encoded anew
    }
}
"""Name of a model → what [`~fl_i2moe.evaluation.masking.faithfulness`] gives, and which model that is."""

_DRAWS = dict.fromkeys(("mean", "std", "min", "max"), _NUMBER)
_MASKED = {
    "none": _NUMBER,
    "ranked": _NUMBER,
    "random_same_features": _DRAWS,
    "random_same_pairs": _DRAWS,
    "drop": {str: _INTERVAL},
    "ranked_minus_random": _INTERVAL,
}
PAIR_MASKING = {
    str: {
        "num_samples": int,
        "confidence": float,
        "num_pairs": float,
        "num_features": float,
        "num_features_same_pairs": float,
        "metrics": {str: _MASKED},
    }
}
"""Expert → what [`~fl_i2moe.evaluation.pairs.pair_masking_table`] gives."""

MEASURED = {"id": str, "target": str, "predicted?": [str], "pages": [str], "experts?": {str: dict}}
"""What was measured on one sample; what it is predicted to be, which runs of version 0.1.0 did not write."""
