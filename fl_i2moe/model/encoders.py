"""
Frozen Hugging Face encoders, which turn raw values into feature sequences.

[`load_encoder`] gives a `FrozenEncoder` with two steps:

- `encoder.preprocess(values)`: raw values → small CPU tensors, and what explanations need to know;
- `encoder.encode(inputs)`: those tensors → features, on the encoder's device, without gradients.
"""

import hashlib
import inspect
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedModel
from transformers.utils.hub import resolve_revision

from .configuration_fl_i2moe import check_given
from .kind import WEIGHTS_FILE, EncodedKind, FrozenEncoder, load_part
from .kinds import ENCODED_KINDS
from .weights import check_fit, refuse_non_finite

SPECIAL_FEATURES = ("keep", "drop")


def load_encoder(
    name_or_path: str | Path,
    kind: str,
    *,
    name: str | None = None,
    revision: str | None = None,
    hidden_layer: int | None = None,
    special_features: str = "keep",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    client_options: Mapping[str, Any] | None = None,
    **kind_options: Any,
) -> FrozenEncoder:
    """Loads any Hugging Face vision, text or audio model as a frozen encoder.

    Of a two-tower model (CLIP, SigLIP, CLAP, LLaVA) only the tower of this `kind` is used. The encoder is tried out at
    once: where patches and time steps lie is found out, and a text must have the same features alone and beside another
    one.

    Args:
        name_or_path: a hub id or a local folder with the model (safetensors) and its image processor, tokenizer or
            feature extractor.
        kind: of the raw values, a name in [`KINDS`] that takes them: `"image"`, `"text"`, `"audio"`.
        name: what `identity()` calls the encoder, where that is not `name_or_path`.
        revision: branch, tag or commit of a hub model; `identity()` holds the commit it resolved to.
        hidden_layer: None (or -1) is the last hidden state, as in the paper; 0 … L picks from `hidden_states`, where 0
            is the embeddings.
        special_features: `"keep"`, as in the paper, or `"drop"` CLS, BOS, SEP and registers.
        device, dtype: where and in which precision it computes.
        trust_remote_code: allows a hub model to bring its own code.
        client_options: `token`, `cache_dir`, `local_files_only`, as `from_pretrained` takes them.
        kind_options: of pictures `resize`: `"whole"` (default) squeezes them into the input, `"crop"` does the image
            processor's own resizing and centre crop, which loses a third of a poster. Of texts `max_length`, in tokens
            with the special ones; by default the model's limit, at most 512. Of sounds `max_seconds`, where they are
            cut (default 30), and `frames_per_feature`, how many time steps of the encoder one feature is the mean of
            (default 1).

    Raises:
        ValueError: the model cannot be found or read, is of another kind, has no safetensors or lacks weights, has no
            fast tokenizer, gives no features that can be placed, or an option does not fit it.
    """
    kind_of_value, options_of_kind = _check_options(kind, special_features, kind_options)
    source = _find(name_or_path)
    name = name or str(name_or_path)
    if revision is not None and Path(source).is_dir():
        raise ValueError(f"encoder {name!r} is no hub model: it has no revision {revision!r}, leave it out")
    options = dict(client_options or {})
    resolved = resolve_revision(source, revision, **options)  # the commit it stands for now, where it can be found out
    hub = {"revision": resolved, "trust_remote_code": trust_remote_code, **options}
    config = load_part(AutoConfig, "config.json", name, source, **hub)
    model, sha256 = _load_model(name, source, config, kind_of_value, dtype=dtype, **hub)
    model.to(device)
    origin = {
        "name": name,
        "revision": getattr(resolved, "resolved", resolved),
        "weights_sha256": sha256,
        "transformers": transformers.__version__,
    }
    common = (model, origin, None if hidden_layer == -1 else hidden_layer, special_features)

    def load(auto_class: Any, file: str, **more: Any) -> Any:
        return load_part(auto_class, file, name, source, **more, **hub)

    return kind_of_value.create_encoder(model, common, load, options_of_kind, name)


def hash_weights(model: nn.Module, leave_out: Collection[str] = ()) -> str:
    """sha256 over the names, shapes, types and bytes of a model's parameters and saved buffers, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name not in leave_out:
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _check_options(kind: str, special_features: str, options: Mapping[str, Any]) -> tuple[EncodedKind, dict[str, Any]]:
    """The kind, and its options with their defaults."""
    for option, value, choices in (
        ("kind", kind, tuple(ENCODED_KINDS)),
        ("special_features", special_features, SPECIAL_FEATURES),
    ):
        if value not in choices:
            raise ValueError(f"{option}={value!r} is unknown; choose one of {', '.join(choices)}")
    known = ENCODED_KINDS[kind].default_options
    for option, value in options.items():
        if option not in known:
            raise ValueError(
                f"{option}={value!r} was given for an encoder of kind {kind!r}, which has {', '.join(known)}"
            )
    return ENCODED_KINDS[kind], {**known, **options}


def _find(name_or_path: str | Path) -> str:
    check_given("name_or_path", name_or_path)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return str(path)
    if isinstance(name_or_path, Path) or str(name_or_path).startswith((".", "/", "~")) or len(path.parts) > 2:
        raise ValueError(f"encoder folder {name_or_path} does not exist.")
    return str(name_or_path)


@contextmanager
def _without_report() -> Iterator[None]:
    """Without transformers' table of weights that a tower does not have: what matters is checked here."""

    def is_no_report(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_no_report)
    try:
        yield
    finally:
        logger.removeFilter(is_no_report)


@_without_report()
def _load_model(name: str, source: str, config: Any, kind: EncodedKind, **kwargs: Any) -> tuple[nn.Module, str]:
    tower = getattr(config, kind.tower, None) or config
    options = {"use_safetensors": True, "output_loading_info": True, **kwargs}
    options["ignore_mismatched_sizes"] = True  # they are refused below, by name
    # Some towers have no class of their own (SigLIP's of texts), or it does not know their weights' names (LLaVA's).
    whole = None
    if tower is config or type(tower) in MODEL_MAPPING:
        whole, loading = load_part(AutoModel, WEIGHTS_FILE, name, source, config=tower, **options)
        model = whole
    if tower is not config and (whole is None or _needed(loading["missing_keys"])):
        whole, loading = load_part(AutoModel, WEIGHTS_FILE, name, source, config=config, **options)
        model = _find_tower(name, whole, type(tower), kind)
    main_input = model.main_input_name
    lost = _needed(loading["missing_keys"])  # all of the decoder, if only the encoder was published (T5's)
    if getattr(model.config, "is_encoder_decoder", False) or (lost and all(x.startswith("decoder.") for x in lost)):
        model = model.get_encoder()
        main_input = getattr(model, "main_input_name", main_input)
    takes = inspect.signature(model.forward).parameters
    if main_input not in takes and any(x.kind == x.POSITIONAL_OR_KEYWORD for x in takes.values()):
        # Towers of pictures that say "input_ids" and mean something else.
        main_input = next((x for kind in ENCODED_KINDS.values() for x in kind.main_inputs if x in takes), None)
    if main_input not in kind.main_inputs:
        other = next((x.name for x in ENCODED_KINDS.values() if main_input in x.main_inputs), None)
        fault = f"is of kind {other!r}, not {kind.name!r}" if other else f"cannot be called with {kind.name}s alone"
        raise ValueError(f"encoder {name!r} ({type(model).__name__}) {fault}")
    missing = set(loading["missing_keys"]) if model is whole else _missing_in(model, whole, loading["missing_keys"])
    if needed := _needed(missing):
        raise ValueError(
            f"encoder {name!r}: its checkpoint lacks {len(needed)} weights of {type(model).__name__}, "
            f"such as {min(needed)}; they would be random"
        )
    # a checkpoint may have more, such as heads
    check_fit(f"encoder {name!r}", {**loading, "missing_keys": (), "unexpected_keys": ()})
    refuse_non_finite(f"encoder {name!r}", model)
    return model, hash_weights(model, leave_out=missing)


def _missing_in(part: nn.Module, whole: nn.Module, missing: Collection[str]) -> set[str]:
    """Which weights of a part are missing, by their names there."""
    lost = {id(tensor) for key, tensor in _named_tensors(whole) if key in missing}
    return {key for key, tensor in _named_tensors(part) if id(tensor) in lost}


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _needed(missing: Collection[str]) -> set[str]:
    # Many checkpoints come without the pooler, or what speech models mask with at training: both then hold random
    # numbers, which no feature depends on.
    return {key for key in missing if not any(part in key for part in ("pooler", "masked_spec_embed"))}


def _find_tower(name: str, model: nn.Module, config_class: type, kind: EncodedKind) -> Any:
    for module in model.modules():
        if module is not model and isinstance(module, PreTrainedModel) and isinstance(module.config, config_class):
            return module.base_model  # without a language model's head
    raise ValueError(f"encoder {name!r} ({type(model).__name__}) has no part that encodes {kind.name}s alone")
