"""Random encoders of every supported architecture, tiny, with what prepares their inputs, and pictures for them."""

import numpy as np
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

SQUARE = {"height": 32, "width": 32}
TRANSFORMER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION = {**TRANSFORMER, "image_size": 32, "patch_size": 8}
TINY_SAM = {**VISION, "image_size": 64, "output_channels": 16, "global_attn_indexes": [1], "initializer_range": 0.1}
SPEECH = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [16] * 3,
    "conv_kernel": [10, 4, 4],
    "conv_stride": [8, 4, 4],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"]


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def make_tokenizer(model_max_length, **options):
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    names |= options
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=model_max_length, **names)


def make_clip():
    text = {**TRANSFORMER, "vocab_size": 20, "max_position_embeddings": 10, "bos_token_id": 0, "eos_token_id": 2}
    model = hf.CLIPModel(hf.CLIPConfig(vision_config=VISION, text_config={**text, "pad_token_id": 1}))
    return model, CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE), make_tokenizer(10)


def make_efficientnet():
    config = hf.EfficientNetConfig(
        image_size=64, width_coefficient=0.25, depth_coefficient=0.1, hidden_dim=320, hidden_act="relu6"
    )
    model = hf.EfficientNetModel(config)
    for module in model.modules():  # default weights are so small that nothing is left of the picture
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return model, EfficientNetImageProcessorPil(size={"height": 64, "width": 64}, rescale_offset=True)


def make_text(model_class, config_class, **options):
    config = config_class(**TRANSFORMER, vocab_size=20, max_position_embeddings=20, pad_token_id=1, **options)
    return model_class(config), make_tokenizer(512)


def make_speech(model_class, config_class, **options):
    """One time step each 128 of 8,000 samples a second; the receptive field is 128 + 90 samples."""
    return model_class(config_class(**SPEECH, **options)), hf.Wav2Vec2FeatureExtractor(sampling_rate=8000)


def make_clap():
    """Always 1 s of 16,000 samples, 100 spectra of 16 bands, which are folded in four."""
    audio = hf.ClapAudioConfig(
        spec_size=64,
        num_mel_bins=16,
        hidden_size=32,
        patch_embeds_hidden_size=16,
        patch_size=4,
        patch_stride=[4, 4],
        depths=[1, 1],
        num_attention_heads=[2, 2],
        window_size=4,
        aff_block_r=2,
        num_classes=4,
    )
    text = hf.ClapTextConfig(**TRANSFORMER, vocab_size=20, max_position_embeddings=20)
    model = hf.ClapModel(hf.ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict()))
    return model, hf.ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=16000,
        hop_length=160,
        max_length_s=1,
        frequency_max=8000,
        truncation="rand_trunc",
    )


def make_siglip():
    text = {**TRANSFORMER, "vocab_size": 20, "max_position_embeddings": 10, "projection_size": 16}
    model = hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=VISION))
    return model, vit_processor(), make_tokenizer(10, pad_token="</s>", model_input_names=["input_ids"])


def vit_processor():
    return ViTImageProcessorPil(size=SQUARE)


MAKERS = {
    "clip": make_clip,
    "vit": lambda: (hf.ViTModel(hf.ViTConfig(**VISION)), vit_processor()),
    "vit-classifier": lambda: (hf.ViTForImageClassification(hf.ViTConfig(**VISION)), vit_processor()),
    "dinov2": lambda: (
        hf.Dinov2Model(hf.Dinov2Config(**{**VISION, "image_size": 48})),  # interpolates its positions
        BitImageProcessorPil(size={"shortest_edge": 40}, crop_size=SQUARE),
    ),
    "dinov2-registers": lambda: (
        hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**VISION, num_register_tokens=4)),
        vit_processor(),
    ),
    "siglip": lambda: (hf.SiglipVisionModel(hf.SiglipVisionConfig(**VISION)), vit_processor()),
    "swin": lambda: (
        hf.SwinModel(
            hf.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
        ),
        vit_processor(),
    ),
    "yolos": lambda: (
        hf.YolosModel(hf.YolosConfig(**{**VISION, "image_size": [32, 32]}, num_detection_tokens=4)),
        vit_processor(),
    ),
    "vit-mae": lambda: (hf.ViTMAEModel(hf.ViTMAEConfig(**VISION, mask_ratio=0.0)), vit_processor()),
    "hiera": lambda: (
        hf.HieraModel(
            hf.HieraConfig(embed_dim=8, image_size=[64, 64], depths=[1, 1, 1], num_heads=[1, 1, 1], num_query_pool=2)
        ),
        ViTImageProcessorPil(size={"height": 64, "width": 64}),
    ),
    "sam": lambda: (
        hf.SamVisionModel(hf.SamVisionConfig(**TINY_SAM)),
        ViTImageProcessorPil(size={"height": 64, "width": 64}),
    ),
    "dinov3-convnext": lambda: (
        hf.DINOv3ConvNextModel(hf.DINOv3ConvNextConfig(hidden_sizes=[8, 8, 12, 16], depths=[1, 1, 1, 1])),
        ViTImageProcessorPil(size={"height": 128, "width": 128}),
    ),
    "siglip2": lambda: (
        hf.Siglip2VisionModel(hf.Siglip2VisionConfig(**TRANSFORMER, patch_size=8, num_patches=16)),
        Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16),
    ),
    "efficientnet": make_efficientnet,
    "convnext": lambda: (
        hf.ConvNextModel(hf.ConvNextConfig(hidden_sizes=[8, 8, 12, 16], depths=[1, 1, 1, 1])),
        ConvNextImageProcessorPil(size={"shortest_edge": 64}),
    ),
    "resnet": lambda: (
        hf.ResNetModel(hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")),
        ConvNextImageProcessorPil(size={"shortest_edge": 64}),
    ),
    "bert": lambda: make_text(hf.BertModel, hf.BertConfig),
    "roberta": lambda: make_text(hf.RobertaModel, hf.RobertaConfig),
    "roberta-mlm": lambda: make_text(hf.RobertaForMaskedLM, hf.RobertaConfig),  # as published: no pooler
    "siglip-both": make_siglip,
    "fnet": lambda: (
        hf.FNetModel(
            hf.FNetConfig(
                hidden_size=16, intermediate_size=24, num_hidden_layers=3, vocab_size=20, max_position_embeddings=20
            )
        ),
        make_tokenizer(20, model_input_names=["input_ids", "token_type_ids"]),
    ),
    "xlnet": lambda: (
        hf.XLNetModel(hf.XLNetConfig(vocab_size=20, d_model=16, n_layer=3, n_head=2, d_inner=24)),
        make_tokenizer(10**30, padding_side="left"),
    ),
    "t5-encoder": lambda: (  # as published for pictures from texts: no decoder
        hf.T5EncoderModel(hf.T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=24, num_layers=3, num_heads=2)),
        make_tokenizer(20),
    ),
    "llava": lambda: (
        hf.LlavaModel(
            hf.LlavaConfig(
                text_config=hf.LlamaConfig(
                    **TRANSFORMER, num_key_value_heads=2, vocab_size=20, max_position_embeddings=20
                ),
                vision_config=hf.CLIPVisionConfig(**VISION),
            )
        ),
        vit_processor(),
        make_tokenizer(20),
    ),
    "gpt2": lambda: (
        hf.GPT2Model(hf.GPT2Config(vocab_size=20, n_positions=20, n_embd=16, n_layer=3, n_head=2)),
        make_tokenizer(20, pad_token=None),
    ),
    "funnel": lambda: (
        hf.FunnelBaseModel(
            hf.FunnelConfig(vocab_size=20, block_sizes=[1, 1], d_model=16, n_head=2, d_head=8, d_inner=24)
        ),
        make_tokenizer(20),
    ),
    "mpnet": lambda: make_text(hf.MPNetModel, hf.MPNetConfig),
    "wav2vec2": lambda: make_speech(hf.Wav2Vec2Model, hf.Wav2Vec2Config),
    "wav2vec2-layer-norm": lambda: make_speech(
        hf.Wav2Vec2Model, hf.Wav2Vec2Config, feat_extract_norm="layer", do_stable_layer_norm=True
    ),
    "wavlm": lambda: make_speech(hf.WavLMModel, hf.WavLMConfig, num_buckets=8, max_bucket_distance=16),
    "hubert": lambda: make_speech(hf.HubertModel, hf.HubertConfig),
    "moonshine": lambda: (
        hf.MoonshineModel(
            hf.MoonshineConfig(
                vocab_size=20,
                hidden_size=16,
                intermediate_size=24,
                encoder_num_hidden_layers=2,
                decoder_num_hidden_layers=1,
                encoder_num_attention_heads=2,
                decoder_num_attention_heads=2,
            )
        ),
        hf.Wav2Vec2FeatureExtractor(sampling_rate=16000, do_normalize=False),
    ),
    "ast": lambda: (  # 8 × 3 patches of 8 × 16 in a spectrogram of 1.3 s
        hf.ASTModel(
            hf.ASTConfig(
                **TRANSFORMER, num_mel_bins=32, max_length=128, patch_size=16, time_stride=8, frequency_stride=8
            )
        ),
        hf.ASTFeatureExtractor(num_mel_bins=32, max_length=128),
    ),
    "whisper": lambda: (  # always 2 s, 100 time steps
        hf.WhisperModel(
            hf.WhisperConfig(
                vocab_size=20,
                d_model=16,
                encoder_layers=2,
                decoder_layers=1,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=24,
                decoder_ffn_dim=24,
                num_mel_bins=16,
                max_source_positions=100,
                max_target_positions=8,
                pad_token_id=0,
                bos_token_id=0,
                eos_token_id=0,
                decoder_start_token_id=0,
            )
        ),
        hf.WhisperFeatureExtractor(feature_size=16, chunk_length=2),
    ),
    "clap": make_clap,
}
