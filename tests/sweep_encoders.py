"""
Tries every image and text class of the installed transformers with a tiny random configuration, and writes the table.

    python -m tests.sweep_encoders [model type ...]

Not a test: it takes five minutes. A class that cannot be used has to be refused in a sentence; a traceback is
a fault. With model types it prints what it finds and writes nothing.
"""

import contextlib
import datetime
import io
import re
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import torch
import transformers as hf
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING, MODEL_MAPPING_NAMES
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from fl_i2moe.model.encoders import load_encoder
from tests.tiny_encoders import make_tokenizer

TABLE = Path(__file__).parents[1] / "recipes" / "results" / "encoders.md"
MAX_PARAMETERS = 40_000_000
SECONDS = 60  # a class

# What makes a configuration tiny: by the name's end, the first that fits. Lists keep their length.
SMALL = {
    "num_hidden_layers": 2, "num_layers": 2, "n_layers": 2, "n_layer": 2, "depth": 2, "num_encoder_layers": 2,
    "encoder_layers": 2, "decoder_layers": 2, "num_decoder_layers": 2, "num_blocks": 1, "depths": 1,
    "num_hidden_groups": 1, "num_key_value_heads": 2, "num_kv_heads": 2, "num_attention_heads": 4, "num_heads": 4,
    "n_heads": 4, "n_head": 4, "attention_heads": 4, "head_dim": 8, "kv_channels": 8, "d_kv": 8, "d_head": 8,
    "rotary_dim": 4, "hidden_sizes": 32, "hidden_size": 32, "d_model": 32, "embed_dim": 32, "n_embd": 32, "emb_dim": 32,
    "embedding_size": 32, "dim": 32, "decoder_hidden_size": 32, "projection_dim": 16, "projection_size": 16,
    "intermediate_size": 48, "ffn_dim": 48, "d_ff": 48, "n_inner": 48, "d_inner": 48, "dim_feedforward": 48,
    "hidden_dim": 32, "vocab_size": 64, "max_position_embeddings": 64, "n_positions": 64, "num_experts": 4,
    "n_routed_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "image_size": 64, "patch_size": 8,
    "num_mel_bins": 16, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip

# Classes that need other options.
SPECIAL = {
    "swin": {"depths": [1, 1], "num_heads": [2, 2], "embed_dim": 8, "window_size": 4, "patch_size": 4},
    "swinv2": {"depths": [1, 1], "num_heads": [2, 2], "embed_dim": 8, "window_size": 4, "patch_size": 4},
    "donut-swin": {"depths": [1, 1], "num_heads": [2, 2], "embed_dim": 8, "window_size": 4, "patch_size": 4},
    "hiera": {"depths": [1, 1, 1], "num_heads": [1, 2, 4], "embed_dim": 8, "image_size": [64, 64], "num_query_pool": 2},
    "cvt": {"embed_dim": [16, 24, 32], "num_heads": [1, 2, 2], "depth": [1, 2, 3], "cls_token": [False, False, True]},
    "maskformer-swin": {"depths": [1, 1], "num_heads": [2, 2], "embed_dim": 8, "window_size": 4, "patch_size": 4},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320, "image_size": 128},
    "mobilebert": {"num_hidden_layers": 2, "vocab_size": 64, "pad_token_id": 1},
    "esm": {
        "vocab_size": 64,
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 66,
        "pad_token_id": 1,
    },
    "layoutlmv3": {"num_hidden_layers": 2, "vocab_size": 64},
    "lilt": {"num_hidden_layers": 2, "vocab_size": 64},
    "vit_mae": {
        "mask_ratio": 0.0,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
    },
}


def shrink(config):
    """Options of a tiny configuration like this one."""
    options = {}
    layers = getattr(config, "num_hidden_layers", None)
    for name, value in config.to_dict().items():
        inner = getattr(config, name, None)
        if isinstance(inner, hf.PreTrainedConfig):
            options[name] = {**inner.to_dict(), **shrink(inner)}
            continue
        key = next((key for key in SMALL if name == key), None) or next(
            (k for k in SMALL if name.endswith("_" + k)), None
        )
        if isinstance(value, bool) or value is None:
            continue
        if key == "head_dim" and hasattr(config, "qk_rope_head_dim"):
            continue
        if isinstance(value, int) and key:
            options[name] = min(value, SMALL[key]) if "token_id" not in key else SMALL[key]
        elif isinstance(value, list) and key and all(isinstance(x, int) for x in value):
            options[name] = [min(x, SMALL[key]) for x in value]
        elif isinstance(value, list) and len(value) == layers and name != key:
            options[name] = value[:2]
    return options


def tiny_model(model_type):
    config_class = CONFIG_MAPPING[model_type]
    default = config_class()
    config = config_class(**SPECIAL.get(model_type, shrink(default)))
    with torch.device("meta"):
        size = sum(x.numel() for x in hf.AutoModel.from_config(config).parameters())
    if size > MAX_PARAMETERS:
        raise ValueError(f"{size / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    model = hf.AutoModel.from_config(config).eval()
    for module in model.modules():  # default weights of convolutions are so small that nothing is left of the picture
        if isinstance(module, nn.Conv2d) and module.weight.std() < 0.05:
            nn.init.kaiming_normal_(module.weight)
    return model


def places(encoder, num_cells=32):
    """Of how many painted cells their own patch changes most; how many."""
    (height, width), (rows, columns) = encoder.preprocess.input_size, encoder.grid
    generator = torch.Generator().manual_seed(1)
    cells = torch.randperm(rows * columns, generator=generator)[:num_cells]
    total = 0
    for _ in range(3):
        plain = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        pictures = [plain]
        for cell in cells.tolist():
            (row, column), picture = divmod(cell, columns), plain.clone()
            down = slice(row * height // rows, (row + 1) * height // rows)
            across = slice(column * width // columns, (column + 1) * width // columns)
            picture[down, across] = 255 - picture[down, across]
            pictures.append(picture)
        encoded = [encoder.encode({"pixels": x}) for x in torch.stack(pictures).split(32)]
        special = encoded[0].special_mask[0]
        features = torch.cat([x.features for x in encoded])[:, ~special].float()
        total = total + (features[1:] - features[0]).norm(dim=2)
    return int((total.argmax(1) == cells).sum()), len(cells)


def try_image(folder):
    config = hf.AutoConfig.from_pretrained(folder)
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    size = {"height": size, "width": size} if isinstance(size, int) else {"height": 64, "width": 64}
    ViTImageProcessorPil(size=size).save_pretrained(folder)
    encoder = load_encoder(folder, "image")
    pixels = torch.zeros(1, *encoder.preprocess.input_size, 3, dtype=torch.uint8)
    outputs = encoder.model(**encoder._pixel_values(pixels), output_hidden_states=True)
    last = len(getattr(outputs, "hidden_states", None) or ()) - 1
    layers = sorted({0, 1, last // 2, last}) if last > 0 else []
    special = encoder.layout.special
    outcomes = []
    for layer in [None, *layers]:
        name = "last" if layer is None else layer
        try:
            encoder = load_encoder(folder, "image", hidden_layer=layer)
        except ValueError:
            outcomes.append(f"{name}: refused")
            continue
        right, cells = places(encoder)
        grid = " × ".join(map(str, encoder.grid))
        outcomes.append(f"{name}: {grid}, {right}/{cells}{'' if encoder.layout.is_usual else ', found'}")
    ranges = f"{special[0]}" if len(special) == 1 else f"{special[0]} … {special[-1]}" if special else "none"
    return type(encoder.model).__name__, "; ".join(outcomes), f"{ranges} ({len(special)})" if special else "none"


def try_text(folder):
    make_tokenizer(64).save_pretrained(folder)
    encoder = load_encoder(folder, "text")
    inputs = encoder._model_inputs(encoder.preprocess(["a dog"]).inputs)
    outputs = encoder.model(**inputs, output_hidden_states=True)
    states = getattr(outputs, "hidden_states", None) or ()
    fit = sum(isinstance(x, torch.Tensor) and x.shape[:-1] == inputs["input_ids"].shape for x in states)
    return type(encoder.model).__name__, f"last, {fit} of {len(states)} hidden states", "-"


def sweep(model_types):
    for model_type in model_types:
        rows = []
        noise = io.StringIO()
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(noise), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                model_class = MODEL_MAPPING[CONFIG_MAPPING[model_type]]
                model_class = model_class[0] if isinstance(model_class, tuple) else model_class
                inputs = model_class.main_input_name
                config = CONFIG_MAPPING[model_type]()
            except Exception as error:
                yield model_type, "-", "-", "unknown", f"{type(error).__name__}: {str(error).strip():.100}", "-"
                continue
            kinds = [
                kind
                for kind, main, tower in (
                    ("image", "pixel_values", "vision_config"),
                    ("text", "input_ids", "text_config"),
                )
                if inputs == main or hasattr(config, tower)
            ]
            if not kinds:
                continue
            signal.alarm(SECONDS)
            try:
                tiny_model(model_type).save_pretrained(folder)
            except Exception as error:
                reason = f"{type(error).__name__}: {' '.join(str(error).split()):.100}"
                rows.append((model_type, "/".join(kinds), model_class.__name__, "not made tiny", reason, "-"))
                kinds = []
            for kind in kinds:
                try:
                    name, outcome, special = {"image": try_image, "text": try_text}[kind](folder)
                    rows.append((model_type, kind, name, "loaded", outcome, special))
                except ValueError as error:
                    message = " ".join(str(error).replace(folder, "X").split())
                    message = re.sub(r"'[^']*site-packages/", "'…/", message)  # of this machine
                    is_own = re.search(
                        r"called.*reason: ((Runtime|Index|Attribute|Assertion)Error|.*get_seq_len|.*Could not find)",
                        message,
                    )
                    # Its sizes do not fit each other: which configuration would, is not known here.
                    outcome = "not made tiny" if is_own else "refused"
                    rows.append((model_type, kind, model_class.__name__, outcome, message, "-"))
                except TimeoutError as error:
                    rows.append((model_type, kind, model_class.__name__, "not made tiny", str(error), "-"))
                except Exception as error:
                    where = traceback.extract_tb(error.__traceback__)[-1]
                    reason = f"{type(error).__name__}: {error!s:.150} ({Path(where.filename).name}:{where.lineno})"
                    rows.append((model_type, kind, model_class.__name__, "CRASHED", reason, "-"))
            signal.alarm(0)
        yield from rows


def stop(*_):
    raise TimeoutError(f"more than {SECONDS} seconds")


def cell(text):
    return text.replace("|", "\\|").replace("\n", " ")


def write_table(rows):
    def of(kind, outcome):
        return [row for row in rows if kind in row[1] and row[3] == outcome]

    lines = [
        "# Which encoders load",
        "",
        f"{datetime.date.today():%-d %B %Y}, transformers {hf.__version__}, torch {torch.__version__}, on a CPU: "
        "`python -m tests.sweep_encoders`. Every image and text class of the installed transformers, each with a tiny "
        "configuration and random weights; a model with two towers counts twice.",
        "",
        "| | loaded | refused with a sentence | not tried | traceback |",
        "|---|---|---|---|---|",
    ]
    outcomes = ("loaded", "refused", "not made tiny", "CRASHED")
    lines += [f"| {x}s | " + " | ".join(str(len(of(x, y))) for y in outcomes) + " |" for x in ("image", "text")]
    lines += [
        "",
        "## Images",
        "",
        "Of up to 32 painted cells, how many change their own patch the most, in the last hidden state and in some of "
        "the others; *found*: patches are not row by row behind the special positions, and painting showed where they "
        "are. Random stacks of convolutions smear; their maps are read row by row, as they are.",
        "",
        "| model type | class | layer: grid, patches in their places | special positions |",
        "|---|---|---|---|",
        *(f"| {x[0]} | {x[2]} | {x[4]} | {x[5]} |" for x in of("image", "loaded")),
        "",
        "| refused | class | why |",
        "|---|---|---|",
        *(f"| {x[0]} | {x[2]} | {cell(x[4])} |" for x in of("image", "refused")),
        "",
        "## Texts",
        "",
        "One feature a token, the same whatever texts are beside it. In brackets: some hidden states cannot be used.",
        "",
        ", ".join(
            x[0] + ("" if len(set(re.findall(r"\d+", x[4]))) == 1 else f" ({x[4].removeprefix('last, ')})")
            for x in of("text", "loaded")
        )
        + ".",
        "",
        "| refused | class | why |",
        "|---|---|---|",
        *(f"| {x[0]} | {x[2]} | {cell(x[4])} |" for x in of("text", "refused")),
        "",
        "## Not tried",
        "",
        "The script knows no tiny configuration, or a package is missing.",
        "",
        "| model type | kind | why |",
        "|---|---|---|",
        *(f"| {x[0]} | {x[1]} | {cell(x[4])[:160]} |" for x in rows if x[3] in ("not made tiny", "unknown")),
        *(f"| {x[0]} | {x[1]} | **traceback**: {cell(x[4])} |" for x in rows if x[3] == "CRASHED"),
    ]
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(model_types):
    signal.signal(signal.SIGALRM, stop)
    hf.logging.set_verbosity_error()
    rows = []
    for row in sweep(model_types or list(MODEL_MAPPING_NAMES)):
        print(" | ".join(row), flush=True)
        rows.append(row)
    if not model_types:
        write_table(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
