"""Raw values → the inputs of an [`FLI2MoEModel`]."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import BatchFeature, ProcessorMixin

from .configuration_fl_i2moe import FLI2MoEConfig, did_you_mean
from .kind import Preprocessed, preprocess_given
from .kinds import KINDS
from .pinned_encoders import Repository, check_folders, load_preprocessor, takes_raw_inputs


class FLI2MoEProcessor(ProcessorMixin):
    r"""
    Prepares every modality as the feature cache of the training was prepared.

    It has no sub-processors of its own, so that there may be two pictures, or two texts, in a sample: what happens to
    pictures is written in the identity of their encoder, and a tokenizer is fetched on first use, by the commit that is
    pinned.

    Args:
        encoders (`dict[str, dict]`):
            Modality → identity of its frozen encoder, as in [`FLI2MoEConfig`].
        modality_order (`list[str]`, *optional*):
            Order of the modalities; that of `encoders` if not given.

    Example:

    ```python
    >>> processor = AutoProcessor.from_pretrained("someone/fl-i2moe-mmimdb", trust_remote_code=True)
    >>> output = model(**processor(image="poster.jpg", text="A pianist …", return_tensors="pt"))
    ```"""

    def __init__(self, encoders: dict | None = None, modality_order: list | None = None):
        super().__init__()
        self.encoders = encoders or {}
        self.modality_order = list(modality_order or self.encoders)
        self._repository = Repository()
        self._preprocessors: dict[str, Any] = {}

    @classmethod
    def from_config(cls, config: FLI2MoEConfig) -> "FLI2MoEProcessor":
        """
        The processor of a model, from its configuration.

        Raises:
            ValueError: the configuration does not name the encoders.
        """
        if not takes_raw_inputs(config):
            raise ValueError(
                "The model's configuration has no encoders that take raw values for all of "
                f"{config.modality_order}: it takes `features` alone."
            )
        processor = cls({name: config.encoders[name] for name in config.modality_order}, config.modality_order)
        processor._repository = Repository(config.name_or_path or "")
        return processor

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if not processor.encoders:  # the folder of a training run has a model only
            hub = {key: kwargs[key] for key in ("revision", "token", "cache_dir", "local_files_only") if key in kwargs}
            processor = cls.from_config(FLI2MoEConfig.from_pretrained(pretrained_model_name_or_path, **hub))
        processor._repository = Repository.from_arguments(pretrained_model_name_or_path, kwargs)
        return processor

    @property
    def model_input_names(self) -> list[str]:
        return list(self.modality_order)

    def load_preprocessors(
        self, folders: Mapping[str, str | Path] | None = None, trust_remote_code: bool = False
    ) -> None:
        """
        Fetches the tokenizers now, which otherwise happens on first use.

        Args:
            folders: modality → a local copy of its encoder, where it is not to be fetched.
            trust_remote_code: allows tokenizers to bring their own code.

        Raises:
            ValueError: a tokenizer cannot be loaded; `folders` has an unknown modality.
        """
        folders = folders or {}
        self._check_names(folders)
        check_folders(folders, self.encoders)
        for name in self.modality_order:
            repository, identity = self._repository, self.encoders[name]
            if name in folders:
                identity = {**identity, "name": str(folders[name]), "revision": None}
                repository = Repository()
            if name not in self._preprocessors or name in folders:
                self._preprocessors[name] = load_preprocessor(identity, name, repository, trust_remote_code)

    def _check_names(self, given: Iterable[str]) -> None:
        if unknown := [name for name in given if name not in self.modality_order]:
            hint = did_you_mean(unknown[0], self.modality_order)
            raise ValueError(f"Unknown inputs {unknown}; this model takes {self.modality_order}.{hint}")

    def preprocess(self, **raw: Any) -> dict[str, Preprocessed]:
        """
        As a call, and with what explanations need to know: where the grid of patches lies in a picture, which
        characters a token covers, when a time step of a sound is.

        Args:
            raw: modality → a value or a list of them. None stands for one that a sample lacks, see
                `FLI2MoEConfig.fill_missing`; a modality that all lack is left out.

        Raises:
            ValueError: a modality is missing or unknown, has another number of samples than the others, or a value
                cannot be read; or all values are None.
        """
        self._check_names(raw)
        if missing := [name for name in self.modality_order if name not in raw]:
            raise ValueError(
                f"The inputs lack {missing}; this model takes {self.modality_order}. Give None for one that a sample "
                "does not have."
            )
        batches = {
            name: KINDS[self.encoders[name]["kind"]].as_batch(raw[name])
            for name in self.modality_order
            if raw[name] is not None
        }
        if not batches:
            raise ValueError(f"A sample needs at least one of {self.modality_order}, and all are None.")
        sizes = {name: len(batch) for name, batch in batches.items()}
        if len(set(sizes.values())) > 1 or not all(sizes.values()):
            raise ValueError(f"Every modality needs the same number of samples, at least one; got {sizes}.")
        self.load_preprocessors()
        batches = {name: batch for name, batch in batches.items() if any(value is not None for value in batch)}
        return {name: preprocess_given(self._preprocessors[name], batch) for name, batch in batches.items()}

    def __call__(self, return_tensors: str | None = "pt", **raw: Any) -> BatchFeature:
        """
        Args:
            return_tensors: `"pt"`; there are no others.
            raw: modality → a picture (path, PIL image, uint8 array, `{"path": …, "bytes": …}`), a text, a sound (path,
                `{"path": …, "bytes": …}`, `{"array": …, "sampling_rate": …}`), an array (D,) or (T, D), or columns of a
                table (column → value), or a list of them, one a sample. A list of numbers is one array.

        Returns:
            Modality → `pixels` (B, rows, columns, 3), uint8; or `input_ids`, `attention_mask`, `special_tokens_mask`
            (B, T); or what a sound's feature extractor makes, and its sizes; or `features` (B, T, D) and `lengths`
            (B,); where some samples lack it, these of the others, and `is_given` (B,). [`FLI2MoEModel`] takes it as
            keyword arguments.

        Raises:
            ValueError: as [`preprocess`]; another `return_tensors`.
        """
        if return_tensors not in ("pt", None):
            raise ValueError(f'`return_tensors` must be "pt", got {return_tensors!r}.')
        return BatchFeature({name: prepared.inputs for name, prepared in self.preprocess(**raw).items()})


__all__ = ["FLI2MoEProcessor"]
