"""
The frozen encoders that a model's configuration pins, for inputs that are not encoded yet.

They are fetched on first use, by id and commit, and checked against those that made the features of the training. They
are not part of the model: it has neither their weights nor their parameters.

Shapes: B samples · T_m features of modality m · D_m encoder width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError
from transformers.utils import logging

from .encoders import load_encoder
from .kind import FittedEncoder, FrozenEncoder, encode_given, preprocess_given
from .kinds import ENCODED_KINDS, KINDS
from .sample_encoders import resolve_encoder

logger = logging.get_logger(__name__)

ENCODERS_FOLDER = "encoders"
"""Folder of a model's repository with those of its encoders that no hub has: `encoders/<modality>/`."""


def takes_raw_inputs(config: Any) -> bool:
    """Whether every modality of a model's configuration has an encoder that raw values can go through."""
    identities = [(config.encoders or {}).get(name, {}) for name in config.modality_order]
    return all(x.get("kind") in KINDS and KINDS[x["kind"]].needs_features(x) is None for x in identities)


@dataclass
class Repository:
    """Where a model or a processor was loaded from; what is pinned beside it is looked for there.

    Args:
        name: a folder or a hub id; empty for one that was not loaded.
        options: `revision`, `token`, `cache_dir`, `local_files_only` of a hub id, as `from_pretrained` took them.
    """

    name: str = ""
    options: dict[str, Any] = field(default_factory=dict, repr=False)  # no token in a log

    @property
    def client_options(self) -> dict[str, Any]:
        """Those options that hold for other repositories, too."""
        return {key: value for key, value in self.options.items() if key != "revision"}

    @classmethod
    def from_arguments(cls, name: Any, arguments: Mapping[str, Any]) -> "Repository":
        """
        Args:
            arguments: keyword arguments of `from_pretrained`.
        """
        options = {key: arguments.get(key) for key in ("token", "cache_dir", "local_files_only")}
        revision = arguments.get("revision")
        options["revision"] = getattr(revision, "resolved", revision)
        return cls(str(name), {key: value for key, value in options.items() if value is not None})

    def folder(self, path: str) -> Path | None:
        """A folder of this repository, fetched if need be; `None` if it has no such folder or cannot be reached."""
        if not self.name:
            return None
        if (folder := Path(self.name)).is_dir():
            return folder / path if (folder / path).is_dir() else None
        try:
            snapshot = snapshot_download(self.name, allow_patterns=f"{path}/*", **self.options)
        except (OSError, ValueError, HTTPError, LocalEntryNotFoundError) as error:
            logger.warning("%s of %s could not be fetched: %s", path, self.name, error)
            return None
        return Path(snapshot) / path if (Path(snapshot) / path).is_dir() else None


def check_folders(folders: Mapping[str, Any], identities: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises `ValueError` where a folder is given for an encoder that has none."""
    for name in folders:
        if identities.get(name, {}).get("kind") not in ENCODED_KINDS:
            raise ValueError(f"{name!r} has no encoder that could lie in a folder: leave {folders[name]} out.")


def find_encoder(identity: Mapping[str, Any], modality: str, repository: Repository) -> tuple[str, str | None]:
    """
    Where an encoder can be loaded from.

    One with a commit is a hub model. Another one lies beside the model in `encoders/<modality>/`, is a `sample:…` one
    or a local folder.

    Args:
        identity: of the encoder, from the model's configuration.

    Returns:
        A folder or hub id, and the commit of the latter.

    Raises:
        ValueError: a `sample:` encoder is unknown or its package is not installed.
    """
    if identity.get("revision"):
        return identity["name"], identity["revision"]
    if (folder := repository.folder(f"{ENCODERS_FOLDER}/{modality}")) is not None:
        return str(folder), None
    return resolve_encoder(identity["name"]), None


def load_pinned_encoder(
    identity: Mapping[str, Any],
    modality: str,
    repository: Repository,
    folder: str | Path | None = None,
    trust_remote_code: bool = False,
) -> FrozenEncoder | FittedEncoder:
    """
    Loads an encoder and makes sure that it is the one whose features the model was trained on.

    Args:
        identity: of the encoder, from the model's configuration.
        folder: a local copy of the encoder; looked for as [`find_encoder`] does if not given.
        trust_remote_code: allows the encoder to bring its own code.

    Raises:
        ValueError: the encoder cannot be found or read, or has other weights.
    """

    def load(**options: Any) -> FrozenEncoder:
        try:
            name, revision = (str(folder), None) if folder is not None else find_encoder(identity, modality, repository)
            encoder = load_encoder(
                name,
                identity["kind"],
                name=identity["name"],
                revision=revision,
                hidden_layer=identity["hidden_layer"],
                special_features=identity["special_features"],
                dtype=getattr(torch, identity["dtype"]),
                trust_remote_code=trust_remote_code,
                client_options=repository.client_options,
                **options,
            )
        except ValueError as error:
            raise ValueError(
                f"{error} To use a local copy of this encoder: model.load_encoders({{{modality!r}: '<folder>'}})."
            ) from error
        found = encoder.identity()["weights_sha256"]
        if found != identity["weights_sha256"]:
            raise ValueError(
                f"The encoder of {modality!r} in {name} is not the one that this model was trained on "
                f"({identity['name']}, weights {identity['weights_sha256'][:12]}…): its weights are {found[:12]}…."
            )
        return encoder

    try:
        return KINDS[identity["kind"]].pinned_encoder(identity, modality, load)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"The configuration does not say what the encoder of {modality!r} is: {error!r}.") from error


def load_preprocessor(
    identity: Mapping[str, Any], modality: str, repository: Repository, trust_remote_code: bool = False
) -> Any:
    """
    What turns raw values into an encoder's inputs, without the encoder: what the identity describes is made of it, a
    tokenizer is fetched.

    Raises:
        ValueError: a part cannot be loaded.
    """

    def load(auto_class: Any, file: str) -> Any:
        try:
            name, revision = find_encoder(identity, modality, repository)
            return auto_class.from_pretrained(
                name, revision=revision, trust_remote_code=trust_remote_code, **repository.client_options
            )
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise ValueError(
                f"{file} of {modality!r} ({identity['name']}) could not be loaded: {error} To use a local copy of this "
                f"encoder: processor.load_preprocessors({{{modality!r}: '<folder>'}}); the model has load_encoders."
            ) from error

    return KINDS[identity["kind"]].load_preprocessor(identity, modality, load)


class PinnedEncoders:
    """
    The encoders of one model.

    Args:
        identities: modality → identity of its encoder, as the configuration has it.
    """

    def __init__(self, identities: Mapping[str, Mapping[str, Any]] | None):
        self.identities = identities or {}
        self.repository = Repository()
        self._loaded: dict[str, FrozenEncoder | FittedEncoder] = {}

    def load(
        self, modality: str, folder: str | Path | None = None, trust_remote_code: bool = False
    ) -> FrozenEncoder | FittedEncoder:
        """
        Raises:
            ValueError: as [`load_pinned_encoder`]; or the encoder takes no raw values.
        """
        identity = self.identities.get(modality, {})
        if identity.get("kind") not in KINDS:
            raise ValueError(f"The model's configuration names no encoder of {modality!r}: give `features`.")
        if reason := KINDS[identity["kind"]].needs_features(identity):
            raise ValueError(f"The encoder of {modality!r} takes no raw values, {reason}: give `features`.")
        if folder is not None or modality not in self._loaded:
            self._loaded[modality] = load_pinned_encoder(identity, modality, self.repository, folder, trust_remote_code)
        return self._loaded[modality]

    def encode(
        self, modality: str, value: Any, device: torch.device, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            value: one raw value or a list of them, of which some may be None, or what the processor made of them.
            device, dtype: of the model. The encoder follows; under a float32 model it computes as it did at training.

        Returns:
            Features (B, T_m, D_m), rounded as a feature cache rounds them (float16), and their mask (B, T_m), false
            throughout where the value is None.
        """
        encoder = self.load(modality)
        kind = KINDS[encoder.kind]
        pinned = getattr(torch, self.identities[modality].get("dtype", "float32"))
        encoder.to(device=device, dtype=pinned if dtype == torch.float32 else dtype)
        if isinstance(value, Mapping) and isinstance(value.get(kind.main_tensor), torch.Tensor):  # by the processor
            inputs = value
        elif batch := kind.as_batch(value):
            inputs = preprocess_given(encoder.preprocess, batch).inputs
        else:
            raise ValueError(f"{modality!r} is empty: give at least one sample.")
        encoded = encode_given(encoder, inputs)
        return encoded.features.to(device, torch.float16), encoded.feature_mask.to(device)
