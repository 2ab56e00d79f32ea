"""Small random classifiers of the real classes, for tests; they read the demo's words and 32 x 32 pixels."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from infra.demo import CLASSIFIER_PATH

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
SIZE = {"height": 32, "width": 32}
_VISION = TINY | {"image_size": 32, "patch_size": 8}
_TEXT = TINY | {
    "vocab_size": 914,
    "max_position_embeddings": 32,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 913,
}
_CUT = {"size": SIZE, "do_center_crop": False}


def _configs(kind: str) -> tuple[Any, Any]:
    """Configuration and image processor of a dual encoder."""
    t = transformers
    clip = t.CLIPImageProcessorPil(**_CUT)
    if kind == "siglip":
        text = _TEXT | {"projection_size": 32}
        return t.SiglipConfig(text_config=text, vision_config=_VISION), t.SiglipImageProcessorPil(size=SIZE)
    if kind == "siglip2":
        vision = TINY | {"num_patches": 16, "patch_size": 8}
        text = _TEXT | {"projection_size": 32}
        processor = t.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
        return t.Siglip2Config(text_config=text, vision_config=vision), processor
    if kind == "metaclip_2":
        return t.MetaClip2Config(text_config=_TEXT, vision_config=_VISION, projection_dim=16), clip
    if kind == "chinese_clip":
        return t.ChineseCLIPConfig(text_config=_TEXT, vision_config=_VISION, projection_dim=16), clip
    if kind == "altclip":
        text = _TEXT | {"max_position_embeddings": 96, "project_dim": 16}
        return t.AltCLIPConfig(text_config=text, vision_config=_VISION, projection_dim=16), clip
    vision = {
        "image_size": 32,
        "hidden_dim": 16,
        "kernel_sizes": [3],
        "in_channels": [32],
        "out_channels": [16],
        "strides": [1],
        "num_block_repeats": [1],
        "expand_ratios": [1],
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
        "depthwise_padding": [],
    }
    return t.AlignConfig(text_config=_TEXT, vision_config=vision, projection_dim=16), clip


_CLASSES = {
    "siglip": "SiglipModel",
    "siglip2": "Siglip2Model",
    "metaclip_2": "MetaClip2Model",
    "chinese_clip": "ChineseCLIPModel",
    "altclip": "AltCLIPModel",
    "align": "AlignModel",
}


def save_encoder(kind: str, folder: Path, seed: int = 0) -> Any:
    """A dual encoder with a folder of its own; the model."""
    config, processor = _configs(kind)
    torch.manual_seed(seed)
    model = getattr(transformers, _CLASSES[kind])(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # As made, towers this small give all images, and all texts, nearly one embedding.
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
        if hasattr(model, "logit_bias"):
            model.logit_scale.fill_(2.0)
            model.logit_bias.fill_(-1.5)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(CLASSIFIER_PATH / name, folder)
    return model


def save_head(kind: str, folder: Path, labels: Sequence[str], seed: int = 0) -> Any:
    """An image classifier with these labels, `vit` or `resnet`; the model."""
    names: dict[str, Any] = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
    t = transformers
    torch.manual_seed(seed)
    if kind == "vit":
        model: Any = t.ViTForImageClassification(t.ViTConfig(**_VISION, **names))
    else:
        small = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
        model = t.ResNetForImageClassification(t.ResNetConfig(**small, **names))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # As made, it says nearly the same of all images.
            if parameter.ndim > 1 and (kind == "vit" or name.startswith("classifier")):
                parameter.normal_(std=0.3)
    model.eval().save_pretrained(folder)
    t.ViTImageProcessorPil(size=SIZE).save_pretrained(folder)
    return model


def save_detector(folder: Path, labels: Sequence[str], seed: int = 0) -> Any:
    """An object detector with these labels; the model."""
    t = transformers
    torch.manual_seed(seed)
    names: dict[str, Any] = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
    small: dict[str, Any] = {"image_size": [32, 32], "patch_size": 8, "num_detection_tokens": 6}
    model: Any = t.YolosForObjectDetection(t.YolosConfig(**TINY, **small, **names))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not name.startswith("vit.embeddings.patch"):
                parameter.normal_(std=0.5)
    model.eval().save_pretrained(folder)
    t.YolosImageProcessorPil(size=SIZE, do_pad=False).save_pretrained(folder)
    return model
