"""Dual encoders beside CLIP: our probabilities are those of transformers' own forward pass."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, PreTrainedTokenizerFast

from jobs.errors import exit_code_of
from jobs.images.classifier import Classifier
from jobs.images.labels import Labels, TextEmbeddings
from jobs.models.classifier_kinds import ENCODERS, embedding_width
from jobs.models.weights import check_classifier
from tests.jobs.images.classifiers import save_encoder
from time_ops import ModelError

CPU = torch.device("cpu")
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
PROMPTS = ("a photo of a female CEO", "a photo of a male CEO", "a photo of a nurse")
ATTRIBUTE = {"female": ("a photo of a female {profession}",), "male": ("a photo of a male {profession}",)}


def logits(folder: Path, model: Any, prompts: Sequence[str], length: int, names: Sequence[str]) -> torch.Tensor:
    """`logits_per_image` of transformers' forward pass."""
    tokens = PreTrainedTokenizerFast.from_pretrained(folder)(
        [p.lower() for p in prompts], padding="max_length", max_length=length, return_tensors="pt"
    )
    images = AutoImageProcessor.from_pretrained(folder)(images=list(PIXELS), return_tensors="pt")
    with torch.inference_mode():
        found: torch.Tensor = model(**{name: tokens[name] for name in names}, **images).logits_per_image
    return found


@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_probabilities_of_siglip_are_its_sigmoids(kind: str, tmp_path: Path) -> None:
    model = save_encoder(kind, tmp_path)
    encoder = Classifier(tmp_path, CPU)
    assert (encoder.width, encoder.width) == (embedding_width(tmp_path), 32)
    # No mask: it was trained to read padding, and pools the last position.
    wanted = torch.sigmoid(logits(tmp_path, model, PROMPTS[:2], 32, ["input_ids"])).numpy()
    texts = TextEmbeddings.of(encoder, ATTRIBUTE, ("a photo of {source}",), [("CEO", "a CEO")], ())
    found = Labels.of(encoder.images(PIXELS, 4), np.ones(3, bool), texts, 0, 0, margin=0.0)
    np.testing.assert_allclose(found.scores, wanted, atol=1e-5)
    assert np.abs(wanted.sum(axis=1) - 1).max() > 0.01
    assert (found.codes == wanted.argmax(axis=1)).all()
    # The lead is one of sigmoids: what fits no prompt is undetermined, however the prompts compare.
    lead = np.abs(wanted[:, 0] - wanted[:, 1])
    margin = float(np.median(lead))
    codes = Labels.of(encoder.images(PIXELS, 4), np.ones(3, bool), texts, 0, 0, margin=margin + 1e-4).codes
    assert ((codes == 2) == (lead < margin + 1e-4)).all()
    assert 0 < (codes == 2).sum() < 3


@pytest.mark.parametrize("kind", ["align", "altclip", "chinese_clip", "metaclip_2"])
def test_logits_of_other_dual_encoders_are_their_own(kind: str, tmp_path: Path) -> None:
    model = save_encoder(kind, tmp_path)
    encoder = Classifier(tmp_path, CPU)
    length = min(ENCODERS[kind].tokens or 32, model.config.text_config.max_position_embeddings)
    wanted = logits(tmp_path, model, PROMPTS, length, ["input_ids", "attention_mask"]).numpy()
    found = encoder.scale * (encoder.images(PIXELS) @ encoder.texts(PROMPTS).T)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert encoder.bias is None
    assert np.abs(wanted - wanted.mean()).max() > 1e-3


def test_texts_reach_siglip_as_in_training(tmp_path: Path) -> None:
    save_encoder("siglip", tmp_path)
    plain = Classifier(tmp_path, CPU)
    np.testing.assert_array_equal(plain.texts(["A photo of a CEO"]), plain.texts(["a photo of a ceo"]))
    assert np.abs(plain.texts(["a, photo."]) - plain.texts(["a photo"])).max() > 1e-3
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "SiglipTokenizer"}))
    first = Classifier(tmp_path, CPU)
    np.testing.assert_array_equal(first.texts(["A, photo."]), plain.texts(["a photo"]))


def test_a_siglip_that_is_not_whole_or_not_what_it_says_is_refused(tmp_path: Path) -> None:
    save_encoder("siglip", tmp_path)
    check_classifier(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for changed, words in (
        ({"model_type": "clip"}, "config.json makes no CLIPModel|lacks what config.json promises"),
        ({"architectures": ["SiglipVisionModel"]}, "names SiglipVisionModel, no SiglipModel"),
        ({"model_type": "siglip_vision_model"}, "of type siglip_vision_model"),
        ({"model_type": "vit", "architectures": ["ViTForImageClassification"]}, "is a ViTForImageClassification: say"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | changed))
        with pytest.raises(ModelError, match=words) as caught:
            check_classifier(tmp_path)
        assert exit_code_of(caught.value) == 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "logit_bias"}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks what config\.json promises: logit_bias"):
        check_classifier(tmp_path)
