"""Samples that can be explained: hand-made explanations, and a tiny model with a feature cache that fits it."""

import numpy as np
import torch
from fake_encoders import fake_encoders, write_raw
from PIL import Image

from fl_i2moe import FLI2MoEConfig, FLI2MoEModel
from fl_i2moe.cache import build_cache
from fl_i2moe.explain import Explanation
from fl_i2moe.explain.attribution import MIXTURE
from fl_i2moe.explain.game import Player
from fl_i2moe.explain.interactions import cross_modal_pairs
from fl_i2moe.explain.pair_table import PairTable
from fl_i2moe.model.kinds import places_in

SENTENCE = 'He said "<script>alert(1)</script>" & left. The rest was cut'


def make_row(path=None, size=(60, 90), text=SENTENCE):
    """A picture of 2 × 3 patches behind a special feature, and a text whose last words have no token."""
    words = text.split(" ")[:-2]
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])
    offsets = [[0, 0], *([int(start), int(start) + len(word)] for start, word in zip(starts, words, strict=False))]
    geometry = {"width": size[0], "height": size[1], "left": 0, "top": 0, "right": size[0], "bottom": size[1]}
    return {
        "id": "film <1>",
        "image": {"bytes": None, "path": None if path is None else str(path)},
        "image_special_mask": [True] + [False] * 6,
        "image_geometry": geometry,
        "text": text,
        "text_special_mask": [True] + [False] * len(words),
        "text_offsets": offsets,
    }


def write_picture(path, size=(60, 90)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def make_explanation(row=None, seed=0, problem_type="multi_label_classification") -> Explanation:
    """Random numbers on a hand-made sample."""
    rng = np.random.default_rng(seed)
    row = row or make_row()
    modalities = {
        "image": places_in(row, "image", {"name": "some/vision"}, (3, 2)),
        "text": places_in(row, "text", {"name": "some/text", "hidden_layer": 2}),
    }
    experts = ["uniqueness_image", "uniqueness_text", "synergy", "redundancy"]
    importance = {}
    for expert in [*experts, MIXTURE]:
        importance[expert] = {name: np.zeros(x.num_features) for name, x in modalities.items()}
        for name, x in modalities.items():
            importance[expert][name][x.candidates] = rng.permutation(np.linspace(0, 1, len(x.candidates)))
    players = (*(Player("image", i) for i in range(1, 5)), *(Player("text", j) for j in range(1, 4)))
    pairs = cross_modal_pairs([player.modality for player in players])
    kinds = ("sii", "redundancy", "redundancy_both")
    tables = {}
    for expert in ("synergy", "redundancy"):
        scores = {kind: rng.normal(size=len(pairs)) if kind == "sii" else rng.random(len(pairs)) for kind in kinds}
        errors = {kind: 0.1 * rng.random(len(pairs)) for kind in kinds}
        intervals = {kind: scores[kind][:, None] + 3 * errors[kind][:, None] * [-1, 1] for kind in kinds}
        count = np.full(len(pairs), 4)
        tables[expert] = PairTable(pairs, scores, errors, count, 99, "per_pair", 0, players, intervals)
    weights, logits = rng.dirichlet(np.ones(4)), rng.normal(size=(4, 3))
    return Explanation(
        sample_id=row["id"],
        target=1,
        label_names=["Drama", "Comedy & <b>Fun</b>", "Noir"],
        problem_type=problem_type,
        labels=[1.0, 1.0, 0.0],
        modalities=modalities,
        expert_names=experts,
        expert_weights=weights,
        expert_logits=logits,
        logits=weights @ logits,
        method="grad_attnroll",
        importance=importance,
        pair_tables=tables,
        settings={"seed": 0},
    )


def make_explainable(folder, num_samples=6, **changes):
    """A model with random weights and a cache of features made by stand-in encoders, classes a, b and c."""
    encoders = fake_encoders()
    cache = build_cache(write_raw(folder / "raw", {"test": num_samples}), encoders, folder / "cache", progress=False)
    config = FLI2MoEConfig(
        modalities={
            name: {key: entry[key] for key in ("feature_size", "max_features")}
            for name, entry in cache.modalities.items()
        },
        id2label=dict(enumerate(cache.label_names)),
        label2id={name: index for index, name in enumerate(cache.label_names)},
        hidden_size=8,
        num_attention_heads=2,
        reweighting_hidden_size=8,
        identical_experts_init=False,
        encoders={name: entry["encoder"] for name, entry in cache.modalities.items()},
        **changes,
    )
    torch.manual_seed(0)
    model = FLI2MoEModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval(), cache
