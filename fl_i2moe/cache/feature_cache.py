"""The feature cache: the sequences of frozen encoders, encoded once and kept as Hugging Face data sets.

    cache_dir/
      key.json            what the features depend on; a folder with another key is refused
      info.json           what a reader needs to know, and the checksums of all small files; written last, so that it
                          says the cache is complete
      skipped.jsonl       one line per sample that was left out
      <split>/            a data set as `datasets.load_from_disk` reads it: Arrow shards, each with its checksum

The columns are the raw ones (`id`, `labels`, and per modality a text, the path of a picture or sound, or columns of a
table as JSON; nothing of an array) and per modality `m` `m_features` (T, D) float16 and `m_special_mask` (T,), with
`m_offsets` (T, 2) for texts (characters of each token), `m_seconds` (T, 2) for sounds (start and end), `m_cells` (T, 2)
for columns (name and value) and `m_geometry` for pictures (the region, in pixels, that the grid of patches covers);
`m_sha256` is the checksum of the raw value that was encoded, of pictures and sounds of the file. Where a sample lacks a
modality, T is 0, and its other columns are null. A cache with masked copies has two columns more, see
[`~fl_i2moe.cache.masked_copies`].
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

from ..model.configuration_fl_i2moe import check_given
from .manifest import INFO_FIELDS, WRITE_AGAIN, check_small_files, plan_shards, read_info, read_key, read_skipped
from .shards import CorruptCacheError, naming_damage, verify_shards
from .streaming import StreamedSplit


@dataclass(frozen=True)
class FeatureCache:
    """
    An opened feature cache.

    Args:
        key: what the features depend on, see `cache_key`.
        modalities: name → `kind`, `feature_size` (D), `max_features`, `grid` (rows, columns) or None, `encoder` (its
            identity).
        splits: each a `Dataset`, or a `StreamedSplit` where [`open_features`] was told not to fetch it.
        skipped: `id`, `split`, `field`, `file` and `reason` of each sample that was left out.
        counts: per split `samples`, `skipped`, `cut`: per modality of texts or sounds the number of those that were
            longer than the encoder takes and the mean share of them that is gone; and `missing`: per modality how many
            samples lack it, of those that any sample lacks.
        truth: that of the raw data, where it was read from them; it is in no file.
    """

    path: Path
    key: dict[str, Any]
    label_names: list[str]
    problem_type: str
    modalities: dict[str, dict[str, Any]]
    splits: dict[str, Any]
    skipped: list[dict[str, str]]
    counts: dict[str, dict[str, Any]]
    truth: dict[str, str] = field(default_factory=dict)

    @property
    def masked_copies(self) -> int:
        """How many each training sample has of its pictures, texts and sounds."""
        return self.key.get("masked_copies", 0)

    @property
    def missing(self) -> dict[str, dict[str, int]]:
        """Split → modality → how many of its samples lack it, where there are any."""
        found = {split: counts.get("missing", {}) for split, counts in self.counts.items()}
        return {split: missing for split, missing in found.items() if missing}

    @property
    def notes(self) -> list[str]:
        """Counts that a user should read, as sentences."""
        notes = self.cut_notes + [
            f"{split}: {count:,} of {self.counts[split]['samples']:,} samples have no {name}"
            for split, missing in self.missing.items()
            for name, count in missing.items()
        ]
        if self.skipped:
            notes.append(f"{len(self.skipped):,} samples were left out, see {self.path / 'skipped.jsonl'}")
        return notes

    @property
    def cut_notes(self) -> list[str]:
        """How many texts and sounds were cut, as sentences."""
        return [
            f"{split}: {cut['samples']:,} of {counts['samples']:,} {name}s are longer than "
            f"{self.modalities[name]['max_features']} features and were cut, by {cut['mean_share']:.0%} on average"
            for split, counts in self.counts.items()
            for name, cut in counts["cut"].items()
            if cut["samples"]
        ]


def is_cache(folder: str | Path) -> bool:
    """Whether the folder holds a feature cache, complete or not."""
    return (Path(folder) / "key.json").is_file()


def open_cache(
    cache_dir: str | Path, *, verify: bool = True, here: Collection[str] | None = None, elsewhere: str = ""
) -> FeatureCache:
    """Opens a complete feature cache.

    Args:
        verify: compare every shard with its checksum; reads all bytes once, at about 1 GB/s and more per thread.
        here: splits whose shards lie in the folder; all if not given.
        elsewhere: address of a folder that has the shards of the others.

    Raises:
        ValueError: the folder is no feature cache or an unfinished one.
        CorruptCacheError: a file is missing, has changed, belongs to another cache, or is of a later version.
    """
    check_given("cache_dir", cache_dir)
    cache_dir = Path(cache_dir)
    if not is_cache(cache_dir):
        raise ValueError(f"{cache_dir} is no feature cache: it has no key.json")
    key = read_key(cache_dir)
    if not (cache_dir / "info.json").exists():
        raise ValueError(f"the feature cache {cache_dir} is not finished: run what builds it again, it will go on")
    info, shards = read_info(cache_dir, key), plan_shards(cache_dir, key)
    names = list(key["key"]["data"]["splits"])
    here = names if here is None else here
    own = [shard for shard in shards if shard.split in here]
    for shard in own:
        if not shard.is_complete():
            raise CorruptCacheError(f"{shard.path} or its record is missing: build the cache again, only it is encoded")
    skipped = read_skipped(cache_dir)
    check_small_files(cache_dir, info, shards)
    if verify:
        verify_shards(own)
    splits: dict[str, Any] = {}
    for name in names:
        if name in here:
            with naming_damage(cache_dir / name / "dataset_info.json", WRITE_AGAIN):
                splits[name] = Dataset.load_from_disk(cache_dir / name)
                _check_rows(splits[name], info["counts"][name]["samples"], info["modalities"])
        else:
            rows = tuple(shard.record()["rows"] for shard in shards if shard.split == name)
            splits[name] = StreamedSplit(name, f"{elsewhere}/{name}/data-*.arrow", rows, info["modalities"])
    described = {name: info[name] for name in INFO_FIELDS}
    return FeatureCache(path=cache_dir, key=key["key"], splits=splits, skipped=skipped, **described)


def _check_rows(split: Dataset, num_rows: int, modalities: Mapping[str, Mapping[str, Any]]) -> None:
    if len(split) != num_rows:
        raise ValueError(f"there are {len(split)} rows, the records have {num_rows}")
    for name, modality in modalities.items():
        found = split.features[f"{name}_features"].shape[1]
        if found != modality["feature_size"]:
            raise ValueError(f"features of {name} have {found} numbers, info.json has {modality['feature_size']}")


def open_features(
    name: str | Path, revision: str | None = None, *, fetch: Collection[str] | None = None
) -> FeatureCache:
    """
    Opens a feature cache, and fetches it first if it is on the Hub. Every shard on the disk is held against its
    checksum; what is streamed is not, since that takes a whole file.

    Args:
        name: folder of a cache, or id of a data set on the Hub.
        revision: branch, tag or commit of the latter.
        fetch: splits to fetch from the Hub; others are left there, and can be streamed. All if not given.

    Raises:
        ValueError: neither a folder nor a repository that can be reached; or what is there is no complete cache.
    """
    check_given("features", name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return open_cache(folder)
    if len(folder.parts) != 2 or str(name).startswith((".", "~")):
        raise ValueError(f"The features {name} do not exist; give the folder of a cache, or the id of a data set.")
    files = ["*.json", "skipped.jsonl", *(f"{split}/data-*.arrow" for split in (["*"] if fetch is None else fetch))]
    try:
        snapshot = Path(snapshot_download(str(name), repo_type="dataset", revision=revision, allow_patterns=files))
    except (HTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ValueError(f"The features {name} are no folder and could not be fetched from the Hub: {error}") from error
    try:
        # its name is the commit, so that what is streamed is of the same one
        return open_cache(snapshot, here=fetch, elsewhere=f"hf://datasets/{name}@{snapshot.name}")
    except CorruptCacheError as error:
        raise CorruptCacheError(
            f"What was fetched of {name} is damaged or not all there: delete {snapshot.parents[1]} and run again, "
            f"connected to the Hub ({error})."
        ) from error
