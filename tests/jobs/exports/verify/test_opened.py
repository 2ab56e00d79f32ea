"""Exports opened again and drawn with beside the audited edit: the demo model, every form, and one that is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from infra.demo import CLASSIFIER_PATH, PIPELINE_PATH
from infra.storage import LocalStore, StorageSettings
from jobs.auditing.tally import TallyTask
from jobs.config import SamplerConfig
from jobs.exports.export_card import export_card
from jobs.exports.forms.header import Provenance, lams_digest
from jobs.exports.schema import FILES, FORMS, Exported, Form, RankAudit
from jobs.exports.verify.opened import compare, is_half, open_export
from jobs.exports.verify.samples import Compared, samples, shipped
from jobs.exports.write import ExportTask, main_file, write_export
from jobs.images.cells import Cell
from jobs.images.classifier import Classifier
from jobs.images.generator import Generator
from jobs.images.labels import TextEmbeddings
from jobs.images.shards import BASE, image_seed
from jobs.models.digests import content_digest
from jobs.models.pipelines import load_pipeline
from jobs.models.sources import open_safetensors
from jobs.report.figure_schema import DeltaFigure, RateFigure
from tests.jobs.exports.original_layout import single_file
from time_ops import EditOperator, ModelError, PromptEdit, encode_edits, solve

SAMPLER = SamplerConfig(steps=4, guidance_scale=3.0, height=32, width=32)
PROFESSIONS = [("nurse", "a nurse"), ("CEO", "a CEO")]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base() -> Any:
    return load_pipeline(PIPELINE_PATH, SAMPLER, CPU, torch.float32)


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier(CLASSIFIER_PATH, CPU)


@pytest.fixture(scope="module")
def texts(classifier: Classifier) -> TextEmbeddings:
    attribute = {g: [f"a photo of a {g} {{profession}}"] for g in ("female", "male")}
    return TextEmbeddings.of(classifier, attribute, ["a photo of {source}"], PROFESSIONS, [])


@pytest.fixture(scope="module")
def operator(base: Any) -> EditOperator:
    edits = [PromptEdit("a CEO", {"a female CEO": 1.0}), PromptEdit("a nurse", {"a male nurse": 1.0})]
    return solve(encode_edits(base, edits), 30.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as one file of the original layout."""
    file = tmp_path_factory.mktemp("single") / "base.safetensors"
    save_file(single_file(PIPELINE_PATH), file, metadata={"format": "pt"})
    return file


def tasks(images: int = 3) -> list[TallyTask]:
    cells = [Cell("audit", name, "A painting of {source}", f"A painting of {s}", images) for name, s in PROFESSIONS]
    explicit = Cell("explicit", "CEO", "", "A painting of a male CEO", 1, "male")
    control = Cell("control", "a photo of a cat", "", "a photo of a cat", images)
    found = [TallyTask(cell, i, i) for i, cell in enumerate(cells)]
    return [*found, TallyTask(explicit, 1, 1), TallyTask(control, None, 2)]


def task(form: Form, operator: EditOperator, base: Path = PIPELINE_PATH, **changes: Any) -> ExportTask:
    made = Provenance(content_digest(base), "m" * 64, lams_digest(operator), "r", "pass")
    return replace(
        ExportTask(form, operator, made, "an edit", "2026-11-21T00:00:00Z", f"x/{form}", "# Card\n"), **changes
    )


def written(tmp_path: Path, asked: ExportTask, base: Path = PIPELINE_PATH) -> Path:
    store = LocalStore(tmp_path / "store")
    write_export(asked, base, store, scratch=tmp_path / "scratch", settings=StorageSettings())
    return tmp_path / "store" / asked.prefix


def compared(
    form: Form, folder: Path, base: Any, operator: EditOperator, classifier: Classifier, texts: TextEmbeddings
) -> tuple[Compared, torch.dtype]:
    pipe, own, dtype = open_export(form, folder, base, PIPELINE_PATH, SAMPLER)
    drawn, audited = Generator(pipe, SAMPLER), Generator(base, SAMPLER)
    audited.add_operator(operator)
    if own is not None:
        drawn.add_operator(own)
    wanted = samples(tasks(), 0, 5)
    named = (drawn, BASE if own is None else own.digest)
    return compare(named, (audited, operator.digest), wanted, classifier, texts, 0.1), dtype


def test_samples_are_the_audits_own_one_of_each_cell_first() -> None:
    found = samples(tasks(), 7, 5)
    first = ["A painting of a nurse", "A painting of a CEO", "A painting of a male CEO"]
    assert [s.prompt for s in found] == [*first, *first[:2]]
    assert found[3].seed == image_seed(7, "audit", first[0], 1)
    assert [s.subject for s in found] == [0, 1, 1, 0, 1]
    # No control, which has no label; beyond the audit's own images further seeds of their prompts, each once.
    many = samples(tasks(), 7, 500)
    assert many[:7] == samples(tasks(), 7, 7)
    assert len({(s.prompt, s.seed) for s in many}) == len(many) == 500
    assert {s.prompt for s in many[7:]} == set(first)
    assert samples(tasks()[-1:], 7, 500) == []


@pytest.mark.parametrize("form", FORMS)
def test_every_form_draws_what_was_audited(
    form: Form,
    base: Any,
    operator: EditOperator,
    classifier: Classifier,
    texts: TextEmbeddings,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    before = {name: weight.clone() for name, weight in base.unet.state_dict().items()}
    folder = written(tmp_path, task(form, operator, base_file=str(checkpoint), error=0.0))
    found, dtype = compared(form, folder, base, operator, classifier, texts)
    assert dtype == (torch.float64 if form == "operator" else torch.float32)
    assert (found.images, found.failed, found.same, found.labelled) == (5, 0, 5, 5)
    # One step of a byte, where a channel lies between two.
    assert found.largest <= 1.01 / 255
    assert found.total / 5 < 1e-4
    assert shipped(found, "float32", half=False, limit=0.95).gate.outcome == "pass"
    assert all(torch.equal(weight, before[name]) for name, weight in base.unet.state_dict().items())


def test_the_unet_alone_in_half_precision_is_opened_as_it_is_stored(
    base: Any, operator: EditOperator, classifier: Classifier, texts: TextEmbeddings, tmp_path: Path
) -> None:
    half = tmp_path / "half"
    load_pipeline(PIPELINE_PATH, SAMPLER, CPU, torch.float16).save_pretrained(half)
    folder = written(tmp_path, task("diffusers", operator, half, only_unet=True), half)
    assert not (folder / "model_index.json").exists()
    assert main_file("diffusers", only_unet=True) == "unet/config.json"
    found, dtype = compared("diffusers", folder, base, operator, classifier, texts)
    assert (dtype, is_half(dtype, torch.float32), is_half(torch.float32)) == (torch.float16, True, False)
    assert base.vae.dtype == torch.float32
    assert 1e-4 < found.total / 5 < 0.05
    assert found.same >= 4


def test_another_edit_fails(
    base: Any, operator: EditOperator, classifier: Classifier, texts: TextEmbeddings, tmp_path: Path
) -> None:
    """The unedited model, as an export that lost its edit would be."""
    folder = written(tmp_path, task("tensors", operator))
    tensors = load_file(folder / FILES["tensors"])
    save_file({name: base.unet.state_dict()[name].clone() for name in tensors}, folder / FILES["tensors"])
    found, _ = compared("tensors", folder, base, operator, classifier, texts)
    assert found.total / 5 > 0.02
    figures = shipped(found, "float32", half=False, limit=0.95)
    assert figures.gate.outcome == "fail"


def test_in_half_precision_the_interval_of_the_labels_decides() -> None:
    same = Compared(images=500, failed=0, largest=0.9, total=20.0, same=495, labelled=500)
    assert shipped(same, "float16", half=True, limit=0.95).gate.outcome == "pass"
    assert shipped(replace(same, same=480), "float16", half=True, limit=0.95).gate.outcome == "inconclusive"
    assert shipped(replace(same, same=440), "float16", half=True, limit=0.95).gate.outcome == "fail"
    assert shipped(same, "float32", half=False, limit=0.95).gate.outcome == "fail"
    nothing = shipped(Compared(images=4, failed=4), "float32", half=False, limit=0.95)
    assert (nothing.gate.outcome, nothing.mean_difference) == ("fail", None)


def test_a_base_that_is_not_the_runs_or_a_missing_single_file_is_refused(
    operator: EditOperator, checkpoint: Path, tmp_path: Path
) -> None:
    wrong = replace(task("lora", operator).provenance, base_digest="0" * 64)
    with pytest.raises(ModelError, match="not the base model of the run"):
        written(tmp_path, task("lora", operator, provenance=wrong))
    with pytest.raises(ModelError, match="--base-file"):
        written(tmp_path, task("single-file", operator))
    other = load_file(checkpoint)
    edited = next(name for name in other if name.endswith("attn2.to_k.weight"))
    save_file(other | {edited: other[edited] + 1}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="is not the base model of this edit"):
        written(tmp_path, task("single-file", operator, base_file=str(tmp_path / "other.safetensors")))
    assert not (tmp_path / "store" / "x").exists()


def test_a_lora_whose_audit_fails_at_its_rank_does_not_pass() -> None:
    passed = shipped(Compared(16, 0, 0.0, 0.0, 16, 16), "float32", half=False, limit=0.95)
    delta = DeltaFigure(value=0.5, low=0.4, high=0.6, floor=0.1, n=9)
    explicit = RateFigure(value=1.0, n=4, low=0.5, high=1.0)
    audited = RankAudit(
        run="a",
        verdict="fail",
        delta=delta,
        delta_within=delta,
        explicit=explicit,
        delta_of_run=delta,
        delta_within_of_run=delta,
    )
    lora = Exported(form="lora", run="r", verdict="pass", forced=False, tensors=8, files={}, shipped=passed)
    assert lora.outcome == "pass"
    failed = lora.model_copy(update={"audit": audited})
    assert failed.outcome == "fail"
    assert failed.model_copy(update={"audit": audited.model_copy(update={"verdict": "inconclusive"})}).outcome == "pass"
    # A run that failed was exported by force: its LoRA fails the run's own gates.
    assert failed.model_copy(update={"forced": True}).outcome == "pass"
    assert lora.model_copy(update={"shipped": None}).outcome == "inconclusive"


def test_every_header_says_where_it_is_from_and_every_file_is_listed(operator: EditOperator, tmp_path: Path) -> None:
    for form in ("diffusers", "lora"):
        store = LocalStore(tmp_path / form)
        asked = task(form, operator, rank=3, licence="openrail")
        told = write_export(asked, PIPELINE_PATH, store, scratch=tmp_path / "s", settings=StorageSettings())
        folder = tmp_path / form / asked.prefix
        found = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*.*")}
        assert told.files == {n: size for n, size in found.items() if n not in ("README.md", "export.json")}
        for file in folder.rglob("*.safetensors"):
            if file.parent.name in ("vae", "text_encoder"):
                continue  # the base model's own bytes
            metadata = open_safetensors(file).metadata
            assert metadata["evenhand.run"] == "r"
            assert metadata["modelspec.license"] == "openrail"
            assert metadata["modelspec.architecture"].endswith("/evenhand-operator") == ("operator" in file.name)


def test_exports_say_the_same_to_the_last_byte_twice(operator: EditOperator, checkpoint: Path, tmp_path: Path) -> None:
    for form in FORMS:
        one, two = (
            written(tmp_path / name, task(form, operator, base_file=str(checkpoint), rank=3)) for name in ("a", "b")
        )
        assert (one / "SHA256SUMS").read_bytes() == (two / "SHA256SUMS").read_bytes()
        assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}


def test_the_card_says_how_it_is_loaded_and_what_was_found(operator: EditOperator, tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    lora = write_export(
        task("lora", operator, rank=3), PIPELINE_PATH, store, scratch=tmp_path / "s", settings=StorageSettings()
    )
    figures = shipped(Compared(16, 0, 0.1, 0.16, 15, 16), "float32", half=True, limit=0.95)
    text = export_card("# Card\n", lora.model_copy(update={"shipped": figures}))
    assert text.startswith("# Card\n")
    assert FILES["lora"] in text
    assert f"{lora.error:.2e}" in text
    assert "93.8% [69.8%, 99.8%] (n = 16)" in text
    assert "did not pass its own check" in text
    assert "forced" not in text
    passed = shipped(Compared(16, 0, 0.0, 0.0, 16, 16), "float32", half=False, limit=0.95)
    text = export_card("# Card\n", lora.model_copy(update={"shipped": passed, "forced": True}))
    assert "a gate of the run did not pass" in text
    assert "its own check" not in text
    assert lora.rank == 3
    assert np.isfinite(lora.weight_error or np.nan)
