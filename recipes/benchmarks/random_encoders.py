"""CLIP's ViT and RoBERTa of random weights, on which speed does not depend; posters and plots for them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedTokenizerFast, RobertaConfig, RobertaModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from fl_i2moe.data.raw import RawDataset

TINY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VOCABULARY = [f"word{number}" for number in range(1000)]
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]
POSTER_SIZE = (256, 384)
"""Of most posters of MM-IMDb."""


def save_encoders(folder: Path, is_tiny: bool) -> dict[str, Path]:
    """CLIP's vision tower, ViT-B/16 at 224 pixels, and RoBERTa-base; or tiny ones. Gives modality → folder."""
    image_size, vocab_size, sizes = (32, 1100, TINY) if is_tiny else (224, 50265, {})
    vision = CLIPVisionModel(CLIPVisionConfig(image_size=image_size, patch_size=16, **sizes))
    # 512 positions, numbered from the padding's on
    language = RobertaModel(RobertaConfig(vocab_size=vocab_size, max_position_embeddings=514, **sizes))
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    folders = {name: folder / f"encoder-{name}" for name in ("image", "text")}
    for part, name in ((vision, "image"), (processor, "image"), (language, "text"), (_tokenizer(), "text")):
        part.save_pretrained(folders[name])
    return folders


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *VOCABULARY])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(token, vocabulary[token]) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **names)


def write_films(folder: Path, num_films: int, num_words: int, num_labels: int) -> RawDataset:
    """Films with posters as JPEG files, coarse noise that takes about as many bytes as a real one, and plots."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows: list[Mapping[str, Any]] = []
    for number in range(num_films):
        path = folder / f"{number}.jpg"
        coarse = rng.integers(0, 256, (POSTER_SIZE[1] // 8, POSTER_SIZE[0] // 8, 3), dtype=np.uint8)
        PILImage.fromarray(coarse).resize(POSTER_SIZE, PILImage.Resampling.BICUBIC).save(path, quality=90)
        rows.append(
            {
                "id": str(number),
                "image": {"path": str(path), "bytes": None},
                "text": " ".join(rng.choice(VOCABULARY, num_words)),
                "labels": rng.integers(0, 2, num_labels).astype(np.float32).tolist(),
            }
        )
    features = Features(
        {
            "id": Value("string"),
            "image": Image(decode=False),
            "text": Value("string"),
            "labels": List(Value("float32"), length=num_labels),
        }
    )
    split = Dataset.from_list(rows, features=features)
    label_names = [f"label {number}" for number in range(num_labels)]
    return RawDataset(
        DatasetDict({"train": split}), {"image": "image", "text": "text"}, label_names, "multi_label_classification"
    )
