"""Checks of a device: training that is stopped and resumed, two seeds, explanations by every method, and games."""

import argparse
import io
import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl_i2moe import FLI2MoEConfig, FLI2MoEModel
from fl_i2moe.cache import FeatureCache
from fl_i2moe.explain.attribution import methods_of
from fl_i2moe.explain.explain_sample import explain
from fl_i2moe.explain.explanation import Explanation
from fl_i2moe.explain.feature_game import feature_game
from fl_i2moe.explain.input_attribution import INPUT_METHODS
from fl_i2moe.explain.inputs import sample_row
from fl_i2moe.explain.interactions import ESTIMATORS
from fl_i2moe.model.encoders import load_encoder
from fl_i2moe.training.arguments import TrainingArguments
from fl_i2moe.training.loop import FittedModel, train

from . import interactions
from .features import RandomEncoder, random_cache
from .gpu_losses import SHAPES, make_config, make_model, to_device
from .random_encoders import save_encoders, write_films
from .report import Line, Step, check, holds

# ---- training ------------------------------------------------------------------------------------------------------

ROWS, BATCH = 24, 8  # 3 steps an epoch
ARGUMENTS = TrainingArguments(
    num_epochs=2,
    batch_size=BATCH,
    learning_rate=1e-3,
    checkpoint_steps=4,
    keep_checkpoints=10,
    load_best_model_at_end=False,
    feature_dropout_start=0.0,
)
GOES_ON_FROM = "step-00000004-epoch-0001"
"""A checkpoint in the middle of the second epoch."""


def training(bench: Any) -> Iterator[Step]:
    """The package's own loop, in fp16 on a GPU: one seed decides everything, also across a stop."""
    encoders = {name: RandomEncoder(length, width, ragged=True) for name, (width, length) in list(SHAPES.items())[:2]}
    cache = random_cache(bench.folder / "training", ROWS, encoders)
    cache.splits["validation"] = cache.splits["train"].select(range(BATCH))
    for objective in bench.size.objectives:
        options = {"num_labels": len(cache.label_names), "objective": objective, "feature_dropout": 0.5}
        config = make_config(2, bench.size.check_width, dropout=0.3, **options)
        yield objective, partial(_compare_trainings, bench, objective, config, cache)


def _compare_trainings(bench: Any, name: str, config: FLI2MoEConfig, cache: FeatureCache) -> list[Line]:
    def fit(folder: Path, seed: int = 0, resume: bool = False) -> FittedModel:
        options: dict[str, Any] = {"seed": seed, "metric": "micro_f1", "resume": resume}
        with redirect_stdout(io.StringIO()) as said:
            fitted = train(config, cache, ARGUMENTS, folder, bench.accelerator, **options)
        if resume and "Going on from" not in said.getvalue():
            raise RuntimeError(f"training did not go on from its checkpoint: {said.getvalue()}")
        return fitted

    def stop_and_resume(folder: Path) -> tuple[FittedModel, FittedModel]:
        whole, stopped = fit(folder), folder.with_name(folder.name + "-stopped")
        shutil.copytree(folder / "checkpoints" / GOES_ON_FROM, stopped / "checkpoints" / GOES_ON_FROM)
        return whole, fit(stopped, resume=True)

    torch.use_deterministic_algorithms(True)
    try:
        whole, resumed = stop_and_resume(bench.folder / f"run-{name}")
        other = fit(bench.folder / f"run-{name}-1", seed=1)
    finally:
        torch.use_deterministic_algorithms(False)
    lines = [
        holds(f"{name}: resumed as if never stopped", same_weights(whole, resumed), "with deterministic kernels"),
        holds(f"{name}: the same losses", whole.state.history == resumed.state.history, "of both epochs"),
        holds(f"{name}: another seed, other weights", not same_weights(whole, other), "after it, in one process"),
    ]
    if not bench.size.is_tiny:
        whole, resumed = stop_and_resume(bench.folder / f"run-{name}-default")
        answer = "yes" if same_weights(whole, resumed) else "no"
        note = "bit for bit; kernels that add in any order may not be"
        lines.append(Line(f"{name}: the same with default kernels", answer, note=note))
    return lines


def same_weights(first: FittedModel, second: FittedModel) -> bool:
    a, b = (x.model.state_dict() for x in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- explanations --------------------------------------------------------------------------------------------------

NUM_WORDS = 4  # and four cells: few enough for `exact`
TOLERANCES = {"features": 1e-3, "input": 0.03}
WHY = {
    "features": "scores in [0, 1], and pairs in logits; a min–max over small values magnifies 1e-6 of float32",
    "input": "the same; encoders' features are rounded to float16, and convolutions to TF32: 1e-3",
}


def explanations(bench: Any) -> Iterator[Step]:
    """Every method and estimator, of features and of the raw input, and every fusion, against the CPU's answers."""
    raw = write_films(bench.folder / "explained", 1, NUM_WORDS, 3)
    folders = save_encoders(bench.folder / "tiny", is_tiny=True)
    identities, sizes = {}, {}
    for kind, folder in folders.items():
        encoder = load_encoder(folder, kind, **({"max_length": 16} if kind == "text" else {}))
        identities[kind] = {**encoder.identity(), "kind": kind}
        sizes[kind] = {"feature_size": encoder.feature_size, "max_features": encoder.max_features}

    def make(device: torch.device, fusion: str = "transformer") -> FLI2MoEModel:
        changes = {"num_labels": 3, "fusion": fusion, "modalities": sizes, "encoders": identities}
        return make_model(make_config(2, bench.size.check_width, **changes)).eval().to(device)

    both = [make(torch.device("cpu")), make(bench.device)]
    for model in both:
        model.load_encoders({name: str(folder) for name, folder in folders.items()})
    sample = raw.splits["train"][0]
    row = dict(sample_row(both[0], sample))
    ways = [("features", method) for method in methods_of(both[0])] + [("input", method) for method in INPUT_METHODS]
    for number, (units, method) in enumerate(ways):
        estimator = list(ESTIMATORS)[number % len(ESTIMATORS)]
        shown = sample if units == "input" else row
        yield f"{units}, {method}, {estimator}", partial(_compare_explanations, both, shown, units, method, estimator)
    for fusion in bench.size.fusions:
        pair = [make(torch.device("cpu"), fusion), make(bench.device, fusion)]
        yield fusion, partial(_compare_explanations, pair, row, "features", None, "shared_context", f"{fusion}: ")
    yield "games", partial(_compare_games, bench)


def _compare_explanations(
    models: list[FLI2MoEModel], sample: dict[str, Any], units: Any, method: str | None, estimator: str, of: str = ""
) -> list[Line]:
    found: list[Explanation] = [
        explain(
            model, sample, 0, units=units, method=method, interactions=estimator, universe_share=1.0, num_coalitions=4
        )
        for model in models
    ]
    scores = [np.concatenate([x for expert in one.importance.values() for x in expert.values()]) for one in found]
    pairs = [np.concatenate([x for table in one.pair_tables.values() for x in table.scores.values()]) for one in found]
    error = max(float(np.abs(np.subtract(*x)).max()) for x in (scores, pairs))
    return [check(f"{of}{units}, {found[0].method}, {estimator}", error, TOLERANCES[units], WHY[units])]


def _compare_games(bench: Any) -> list[Line]:
    """A game's values against the model once per coalition, on the device and on the CPU."""
    args = argparse.Namespace(image_features=16, text_features=24, hidden_size=bench.size.check_width)
    model = interactions.make_model(args)
    torch.manual_seed(5)
    inputs, players = interactions.make_inputs(model)
    coalitions = np.random.default_rng(0).random((bench.size.num_calls, len(players))) < 0.5
    expected = interactions.plain_loop(model, inputs, players, coalitions, only_expert=False)
    model.to(bench.device)
    moved = type(inputs)(
        *(to_device(x, bench.device) for x in (inputs.projected, inputs.feature_masks, inputs.candidate_masks))
    )
    game = feature_game(model, moved, interactions.EXPERT, interactions.TARGET, players)(coalitions)
    loop = interactions.plain_loop(model, moved, players, coalitions, only_expert=False)
    why = "logits of about 0.1 to 1 in float32, whose sums are in another order"
    return [
        check("game against the plain loop on the device", float(np.abs(game - loop).max()), 1e-4, why),
        check("game against the plain loop on the CPU", float(np.abs(game - expected).max()), 1e-4, why),
    ]
