"""From a feature cache to the repository of a data set: its shards with their checksums, its key and a card."""

import json
from pathlib import Path

import pyarrow as pa
from huggingface_hub import DatasetCard, DatasetCardData
from huggingface_hub.utils import validate_repo_id
from markupsafe import Markup

from ..cache import FeatureCache
from ..cache.manifest import plan_shards, read_info, read_key, write_info
from ..cache.shards import Shard, write_shard
from ..metrics.markdown import render_template, table
from ..model.kind import Kind
from ..model.kinds import KINDS
from ..utils.files import write_json, write_text
from .card_tables import encoders_table
from .repository import copy_file, make_empty_folder, without_paths, write_file_list

TEMPLATE = Path(__file__).parent / "templates" / "features_card.md.jinja"


def write_features(
    cache: FeatureCache, folder: str | Path, repo_id: str, *, license: str, dataset_name: str | None = None
) -> None:
    """
    Writes a cache as the repository of a data set, which opens again as a cache of the same key. Pictures
    and sounds are left out, and their paths cut to the file's name; texts and columns of tables stay, as explanations
    show them. `license` is that of the
    data, by the Hub's identifier. Raises `ValueError` where the folder is not empty.
    """
    validate_repo_id(repo_id)
    folder = make_empty_folder(folder)
    key = read_key(cache.path)
    info, sources = read_info(cache.path, key), plan_shards(cache.path, key)
    for identity in (*key["key"]["encoders"].values(), *(x["encoder"] for x in info["modalities"].values())):
        identity["name"] = without_paths(identity["name"])  # of encoders that are local folders
    kinds = {name: KINDS[modality["kind"]] for name, modality in cache.modalities.items()}
    targets = plan_shards(folder, key)
    for source, target in zip(sources, targets, strict=True):
        _copy_shard(source, target, kinds)
    for split in cache.splits:
        for name in ("state.json", "dataset_info.json"):
            copy_file(cache.path / split / name, folder / split / name, cache.path)
    write_json(folder / "key.json", key)
    lines = [json.dumps(_skipped_entry(entry), ensure_ascii=False) + "\n" for entry in cache.skipped]
    write_text(folder / "skipped.jsonl", "".join(lines))
    write_info(folder, info, targets)
    write_text(folder / "README.md", str(features_card(cache, repo_id, license=license, dataset_name=dataset_name)))
    write_file_list(folder)


def features_card(cache: FeatureCache, repo_id: str, *, license: str, dataset_name: str | None) -> DatasetCard:
    """The data set's card; its head lets `datasets.load_dataset` read and stream the shards."""
    data = DatasetCardData(
        license=license,
        pretty_name=f"Features of {dataset_name or repo_id}",
        tags=["fl-i2moe", "features", "multimodal"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"{split}/data-*.arrow"} for split in cache.splits],
            }
        ],
    )
    encoders = {name: x["encoder"] for name, x in cache.modalities.items()}
    named = {name: x if x.get("revision") else {**x, "name": without_paths(x["name"])} for name, x in encoders.items()}
    text = render_template(
        TEMPLATE,
        repo_id=Markup(repo_id),
        data=dataset_name or "its data",
        cache=cache,
        encoders=encoders_table(cache.modalities, named),
        splits=table(["split", "samples"], [[split, f"{len(rows):,}"] for split, rows in cache.splits.items()]),
    )
    return DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _copy_shard(source: Shard, target: Shard, kinds: dict[str, Kind]) -> None:
    """A shard without pictures and sounds, which are named by their files alone."""
    record = {key: value for key, value in source.record().items() if key not in ("sha256", "rows")}
    record["skipped"] = [_skipped_entry(entry) for entry in record["skipped"]]
    with pa.memory_map(str(source.path)) as file:
        rows = pa.ipc.open_stream(file).read_all()
        for name in (name for name, kind in kinds.items() if kind.keeps_raw):
            index = rows.schema.get_field_index(name)
            column = rows.schema.field(index)
            cells = [None if cell is None else kinds[name].published_cell(cell) for cell in rows[name].to_pylist()]
            rows = rows.set_column(index, column, pa.array(cells, column.type))
        write_shard(target, rows.schema, rows.to_batches(), record)


def _skipped_entry(entry: dict[str, str]) -> dict[str, str]:
    """Of a sample that was left out; the reason may name the file, too."""
    folder = f"{Path(entry['file']).parent}/"
    return {**entry, "file": without_paths(entry["file"]), "reason": entry["reason"].replace(folder, "")}
