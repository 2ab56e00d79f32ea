"""Heads, faces and several classifiers: what is stored of an image, and what labels follow from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor

from infra.demo import CLASSIFIER_PATH
from jobs.auditing.judged_rows import judged_columns, read_judged
from jobs.config import RunConfig
from jobs.config.classifiers import FacesConfig
from jobs.errors import ConfigError, exit_code_of
from jobs.images.classifier import Classifier
from jobs.images.heads import FaceFinder, Head, largest_box
from jobs.images.judging import classifier_digest, judging_rules, models_of, seen_by, stored_width
from jobs.images.labels import Judge, Judged, Labels, TextEmbeddings, decided
from jobs.images.panel import Panel, check_panel
from jobs.models.digests import content_digest
from jobs.models.weights import check_image_model
from jobs.runs.identity import identity_of
from tests.jobs.helpers import RECIPE, config, manifest
from tests.jobs.images.classifiers import save_detector, save_head
from time_ops import ModelError

CPU = torch.device("cpu")
# Of other brightness and colour each, so that a random model sees them differently.
PIXELS = (
    np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3))
    * np.array([[1, 0.2, 0.2], [0.2, 1, 0.2], [0.1, 0.1, 1], [1, 1, 1]])[:, None, None]
).astype(np.uint8)
OK = np.ones(4, bool)
LABELS = ("Male", "Female", "Nobody")
MEANT = {"female": ["Female"], "male": ["Male"]}
CEO = [("CEO", "a CEO")]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("head")
    return folder, save_head("vit", folder, LABELS)


def with_head(head: tuple[Path, Any], **keys: Any) -> RunConfig:
    return config(
        classifier={"model": str(head[0]), "labels": MEANT, "recognition": str(CLASSIFIER_PATH), **keys}, controls=()
    )


def panel_of(there: RunConfig) -> Panel:
    return Panel(there, {model: Path(model) for model in models_of(there)}, CPU)


def probabilities(folder: Path, model: Any, pixels: np.ndarray) -> np.ndarray:
    """The head's softmax, by transformers' own forward pass."""
    images = AutoImageProcessor.from_pretrained(folder)(
        images=list(pixels), return_tensors="pt", input_data_format="channels_last"
    )
    with torch.inference_mode():
        found: np.ndarray = model(**images).logits.softmax(-1).numpy()
    return found


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_head_stores_the_probabilities_of_all_its_labels(kind: str, tmp_path: Path) -> None:
    model = save_head(kind, tmp_path, LABELS, seed=1)
    mine = Head(tmp_path, CPU)
    wanted = probabilities(tmp_path, model, PIXELS)
    np.testing.assert_allclose(mine.images(PIXELS, 6), wanted, atol=1e-6)
    assert np.ptp(wanted, axis=0).max() > 0.01
    np.testing.assert_array_equal(mine.images(PIXELS[:1], 4), mine.images(PIXELS, 4)[:1])


def test_a_label_is_the_sum_of_its_own_and_what_belongs_to_none_competes(head: tuple[Path, Any]) -> None:
    folder, model = head
    panel = panel_of(with_head(head))
    stored = panel.images(PIXELS, 4)
    clip = Classifier(CLASSIFIER_PATH, CPU)
    # The dual encoder comes first and recognises; its embedding is what a run of it alone would store.
    np.testing.assert_array_equal(stored[:, :64], clip.images(PIXELS, 4))
    p = probabilities(folder, model, PIXELS)
    texts = panel.texts(CEO, ["a photo of a tree"])
    assert texts.width == panel.width == stored.shape[1] == 67
    found = Labels.of(stored, OK, texts, 0, 0, margin=0.0)
    np.testing.assert_allclose(found.scores, p[:, [1, 0]], atol=1e-6)
    np.testing.assert_array_equal(found.codes, np.array([1, 0, 2])[p.argmax(axis=1)])
    both = panel_of(config(classifier={**with_head(head).model_dump()["classifier"], "labels": {
        "female": ["Female", "Nobody"], "male": ["Male"]}})).texts(CEO, [])  # fmt: skip
    np.testing.assert_allclose(Labels.of(stored, OK, both, 0, 0, 0.0).scores[:, 0], p[:, 1] + p[:, 2], atol=1e-6)
    lead = np.sort(p, axis=1)[:, -1] - np.sort(p, axis=1)[:, -2]
    strict = Labels.of(stored, OK, texts, 0, 0, margin=float(np.median(lead)))
    np.testing.assert_array_equal(strict.codes == 2, (lead < np.median(lead)) | (p.argmax(axis=1) == 2))


def test_labels_that_a_model_lacks_are_all_named_with_what_it_has(head: tuple[Path, Any]) -> None:
    there = with_head(head, labels={"female": ["Woman"], "male": ["Male", "Boy"]})
    with pytest.raises(ConfigError, match="no label 'Woman', 'Boy'; it has Male, Female, Nobody") as caught:
        check_panel(there, {model: Path(model) for model in models_of(there)})
    assert exit_code_of(caught.value) == 2


def test_a_head_that_is_not_whole_or_is_none_is_refused(tmp_path: Path) -> None:
    save_head("resnet", tmp_path, LABELS)
    check_image_model(tmp_path, "ForImageClassification")
    weights = load_file(tmp_path / "model.safetensors")
    lost = {name: tensor for name, tensor in weights.items() if name != "classifier.1.bias"}
    save_file(lost, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks what config\.json promises: classifier\.1\.bias") as caught:
        check_image_model(tmp_path, "ForImageClassification")
    assert exit_code_of(caught.value) == 3
    with pytest.raises(ModelError, match=r"names CLIPModel .*no \.\.\.ForImageClassification"):
        check_image_model(CLASSIFIER_PATH, "ForImageClassification")
    settings = json.loads((tmp_path / "config.json").read_text())
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(settings | {"problem_type": "multi_label_classification"}))
    with pytest.raises(ModelError, match="gives each image one label"):
        Head(tmp_path, CPU)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(
        ModelError, match=r"never opened\..*import ResNetForImageClassification as M, AutoImageProcessor"
    ):
        Head(tmp_path, CPU)
    (tmp_path / "config.json").write_text(json.dumps(settings | {"architectures": ["os; os.system('x') #"]}))
    with pytest.raises(ModelError, match="import CLIPModel as M"):
        Head(tmp_path, CPU)


@pytest.mark.parametrize(
    ("classifier", "words"),
    [
        ({"model": "h", "labels": MEANT}, "nothing recognises .*recognition: openai/clip"),
        ({"model": "h", "labels": {"female": ["F"], "mal": ["M"]}, "recognition": "c"}, r"\['mal'\].*lacks \['male'\]"),
        (
            {"model": "h", "labels": {"female": ["F"], "male": ["F"]}, "recognition": "c"},
            "'F' means 'female' and 'male': .* a model that names each crossing",
        ),
        ({"model": "h", "labels": MEANT, "scoring": "softmax", "recognition": "c"}, "scoring is of dual encoders"),
        ({"model": "c", "faces": {"model": "d"}}, "nothing recognises"),
        (["c", "c"], "the same classifier twice"),
        (["c", {"model": "h", "label": {}}], r"classifier\.1\.label: is not a key"),
        ([{"model": "h", "labels": MEANT, "recognition": x} for x in ("a", "b")], r"\['a', 'b'\] are named"),
        ({"labels": MEANT}, r"classifier\.model: is needed"),
        ("  ", "classifier"),
        ([], "classifier"),
    ],
)
def test_classifiers_that_make_no_sense_are_refused(classifier: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config(classifier=classifier)


def test_only_what_is_stored_is_in_the_key_and_labels_are_in_the_runs_identity(head: tuple[Path, Any]) -> None:
    plain = config(classifier=str(CLASSIFIER_PATH))
    folders = {str(CLASSIFIER_PATH): CLASSIFIER_PATH, str(head[0]): head[0]}
    assert classifier_digest(plain, folders) == content_digest(CLASSIFIER_PATH)
    named = config(classifier={"model": str(CLASSIFIER_PATH), "margin": 0.3})
    assert classifier_digest(named, folders) == content_digest(CLASSIFIER_PATH)
    one, other = with_head(head), with_head(head, margin=0.3)
    grouped = with_head(head, labels={"female": ["Female", "Nobody"], "male": ["Male"]})
    assert len({classifier_digest(each, folders) for each in (one, other, grouped)}) == 1
    assert classifier_digest(one, folders) not in (content_digest(CLASSIFIER_PATH), content_digest(head[0]))
    # As a member of several that see the same, nothing else is stored.
    several = config(classifier=[str(CLASSIFIER_PATH), one.model_dump(mode="json")["classifier"]])
    assert seen_by(several) == seen_by(one)
    assert classifier_digest(several, folders) == classifier_digest(one, folders)
    assert stored_width(one, folders) == 67
    everyone = (plain, named, one, other, grouped, several)
    assert len({identity_of(each, manifest("CEO"), RECIPE) for each in everyone}) == len(everyone)
    same = config(classifier={"model": str(CLASSIFIER_PATH)})
    assert judging_rules(same) is None
    assert identity_of(same, manifest("CEO"), RECIPE) == identity_of(plain, manifest("CEO"), RECIPE)


def judged(*scores: tuple[float, float], margin: float = 0.1) -> Judged:
    return Judged(np.array(scores, np.float32), has_rest=False, margin=margin)


def test_several_classifiers_label_what_all_of_them_label_the_same() -> None:
    one = judged((0.9, 0.1), (0.9, 0.1), (0.9, 0.1), (0.5, 0.5), (0.5, 0.5))
    two = judged((0.8, 0.2), (0.1, 0.9), (0.5, 0.5), (0.5, 0.5), (0.9, 0.1))
    three = judged((0.7, 0.3), (0.9, 0.1), (0.9, 0.1), (0.9, 0.1), (0.1, 0.9))
    codes, compared, differ = decided([one, two, three])
    assert codes.tolist() == [0, 2, 2, 2, 2]
    assert compared.tolist() == [True, True, True, False, True]
    assert differ.tolist() == [False, True, False, False, True]
    # Under another margin all members are held to it.
    assert decided([one, two], 0.7)[0].tolist() == [2, 2, 2, 2, 2]


def test_an_image_without_a_face_is_undetermined_under_any_margin_and_told_apart() -> None:
    judge = Judge((3, 5), None, np.eye(2, dtype=np.float32), on_face=True)
    texts = TextEmbeddings(np.zeros((1, 2, 3), np.float32), np.eye(3, dtype=np.float32), 1.0, panel=(judge,))
    stored = np.array([[1, 0, 0, 0.9, 0.1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], np.float32)
    found = Labels.of(stored, np.array([True, True, False]), texts, 0, 0, margin=0.0)
    assert found.codes.tolist() == [0, 2, 255]
    assert found.blind.tolist() == [False, True, False]
    assert found.recognised.tolist() == [True, True, False]


def test_rows_keep_what_each_classifier_says(head: tuple[Path, Any]) -> None:
    one, two = Judge((0, 2), None, np.eye(2)), Judge((2, 4), None, np.eye(2), margin=0.5)
    texts = TextEmbeddings(np.zeros((1, 2, 4)), np.eye(4), 1.0, panel=(one, two))
    stored = np.array([[0.9, 0.1, 0.9, 0.1], [0.9, 0.1, 0.1, 0.9], [0.9, 0.1, 0.6, 0.4], [0, 0, 0, 0]])
    ok = np.array([True, True, True, False])
    table = judged_columns(pa.table({"index": range(4)}), Labels.of(stored, ok, texts, 0, 0, 0.1), ok, ("f", "m"))
    assert table.column("by_classifier").to_pylist() == [["f", "f"], ["f", "m"], ["f", "undetermined"], None]
    assert table.column("classifiers_differ").to_pylist() == [False, True, None, None]
    read = read_judged(table, 2)
    assert read is not None
    codes, counted = read
    assert codes[0, :3].tolist() == [0, 2, 0]
    assert counted.sum(axis=0).tolist() == [3, 2, 1, 0]
    assert read_judged(pa.table({"index": range(4)}), 2) is None


@pytest.mark.parametrize(
    ("boxes", "border", "wanted"),
    [
        ([[2, 3, 6, 9], [10, 10, 20, 20]], 0.0, (10, 10, 20, 20)),
        ([[10, 10, 20, 20]], 0.2, (8, 8, 22, 22)),
        ([[-50, -50, 4, 4], [8, 8, 14, 14]], 0.0, (8, 8, 14, 14)),  # of the larger one little is in the image
        ([[28, 20, 40, 30]], 0.5, (26, 15, 32, 32)),
        ([[40, 40, 50, 50]], 0.2, None),
        ([], 0.2, None),
    ],
)
def test_the_largest_face_is_cut_out_with_its_border(boxes: list[Any], border: float, wanted: Any) -> None:
    assert largest_box(np.array(boxes, np.float32).reshape(-1, 4), (32, 32), border) == wanted


def test_a_detector_finds_the_face_that_a_head_sees(head: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = head
    detector = save_detector(tmp_path, ("person", "face"))
    faces = FacesConfig(model=str(tmp_path), score=0.0, border=0.0)
    crops, found = FaceFinder(tmp_path, faces, CPU).crops(PIXELS, 6)
    images = AutoImageProcessor.from_pretrained(tmp_path)(images=list(PIXELS), return_tensors="pt")
    with torch.inference_mode():
        output = detector(pixel_values=images["pixel_values"])
    scores = output.logits.softmax(-1)[..., :-1]
    is_face = scores.argmax(-1) == 1
    assert found.tolist() == is_face.any(dim=1).tolist()
    panel = panel_of(with_head(head, faces=faces.model_dump()))
    stored = panel.images(PIXELS, 4)
    for i in range(4):
        wanted = probabilities(folder, model, crops[i][None])[0] if found[i] else np.zeros(3)
        np.testing.assert_allclose(stored[i, 64:], wanted, atol=1e-5)
    shapes = {crop.shape for crop, is_there in zip(crops, found, strict=True) if is_there}
    assert shapes
    assert (32, 32, 3) not in shapes
    # Nothing is as sure as 1: no face, and zeros in place of what the head says.
    none = panel_of(with_head(head, faces={"model": str(tmp_path), "score": 1.0}))
    assert not none.images(PIXELS, 4)[:, 64:].any()
    with pytest.raises(ConfigError, match="no label 'head'; it has person, face"):
        panel_of(with_head(head, faces={"model": str(tmp_path), "label": "head"}))
