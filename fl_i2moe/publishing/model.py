"""From a training run to the repository of a model: weights, code, processor, card, figures, statistics and results."""

from copy import copy
from pathlib import Path
from typing import Any

from ..evaluation.information.report import find_information
from ..model.kinds import ENCODED_KINDS
from ..model.pinned_encoders import ENCODERS_FOLDER, Repository, find_encoder, load_pinned_encoder, takes_raw_inputs
from ..model.pipeline_fl_i2moe import TASK, FLI2MoEPipeline
from ..model.processing_fl_i2moe import FLI2MoEProcessor
from ..training.runs import STATISTICS_FILE, Run, load_model
from ..utils.files import write_json, write_text
from ..utils.run_folder import SETTINGS_FILE
from .card import CardOptions, build_card, evaluation_results
from .repository import copy_file, make_empty_folder, without_paths, write_file_list

WEIGHTS_FILE = "model.safetensors"
ENCODER_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")


def write_repository(run: Run, folder: str | Path, options: CardOptions) -> None:
    """
    Writes the files of a model's repository into an empty folder, with encoders that no hub has. Raises `ValueError`
    where the folder is not empty, the run has no safetensors, or an encoder cannot be found, or is another one than the
    features of the training come from.
    """
    if not (run.folder / WEIGHTS_FILE).is_file():
        raise ValueError(f"{run.folder} has no {WEIGHTS_FILE}; weights in other formats are not published.")
    folder = make_empty_folder(folder)
    model = load_model(run.folder)
    model.config.encoders = {
        name: _publish_encoder(model.config.encoders[name], name, run, folder)
        for name in model.config.modality_order
        if name in (model.config.encoders or {})
    }
    if takes_raw_inputs(model.config):
        processor = FLI2MoEProcessor.from_config(model.config)
        FLI2MoEPipeline(model=model, processor=processor, task=TASK, device=-1).save_pretrained(folder)
        processor.save_pretrained(folder)
    else:
        model.save_pretrained(folder)

    for source in (run.folder / "figures", run.explanations, find_information(run)):
        for file in [] if source is None else [*source.glob("*.png"), *source.glob("*.json")]:
            if file.name != SETTINGS_FILE:
                copy_file(file, folder / source.name / file.name, run.folder)
    if run.explanations is None and (run.folder / "explanations").is_dir():
        print(f"{run.folder / 'explanations'} is left out: it explains other weights. Explain the model again.")
    write_json(folder / STATISTICS_FILE, run.statistics)
    results = {**without_paths(run.results), "encoders": model.config.encoders}
    write_json(folder / "results.json", results)
    run = copy(run)
    run.config, run.results = model.config, results
    write_text(folder / "README.md", str(build_card(run, options)))
    if (evaluations := evaluation_results(run, options)) is not None:
        write_text(folder / ".eval_results" / f"{options.dataset_id.replace('/', '--')}.yaml", evaluations)
    write_file_list(folder)


def _publish_encoder(identity: dict[str, Any], modality: str, run: Run, folder: Path) -> dict[str, Any]:
    """Pins an encoder of the Hub, or copies another one; its identity as it is published."""
    if identity.get("revision") or identity["kind"] not in ENCODED_KINDS:
        return identity
    repository = Repository(str(run.folder))
    encoder = load_pinned_encoder(identity, modality, repository)  # refuses one with other weights
    source, _ = find_encoder(identity, modality, repository)
    if not Path(source).is_dir():  # a hub id whose commit was not known at training
        commit = encoder.identity()["revision"]
        if commit is None:
            raise ValueError(f"The commit of the encoder {source} of {modality!r} cannot be found out.")
        return {**identity, "revision": commit}
    target = folder / ENCODERS_FOLDER / modality
    for pattern in ENCODER_FILES:
        for file in Path(source).glob(pattern):
            copy_file(file, target / file.name, source)
    return {**identity, "name": without_paths(identity["name"])}
