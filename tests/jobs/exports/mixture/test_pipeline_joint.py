"""Mixtures of an SD3 and of a FLUX: each form draws what the audit draws, and `pipeline.py` stands alone."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from safetensors.torch import load_file, save_file

from infra.storage import LocalStore, StorageSettings
from jobs.config import SamplerConfig
from jobs.exports.mixture.code import code_bytes
from jobs.exports.mixture.folder import write_mixture
from jobs.exports.mixture.parts import PIPELINE
from jobs.exports.schema import Form
from jobs.exports.verify.mixture import check_route, open_part
from jobs.exports.verify.opened import open_export
from jobs.exports.verify.samples import Sample
from jobs.exports.write import ExportTask, write_export
from jobs.images.generator import Generator
from jobs.images.latents import unpacked as unpack
from jobs.images.shards import BASE
from jobs.models.pipelines import load_pipeline
from tests.jobs.exports.conftest import Model, provenance_of
from tests.jobs.exports.mixture.test_pipeline_xl import PROMPTS, SEEDS, audited, latents, told_apart
from tests.test_architecture import imported
from time_ops import Mixture, ModelError

SAMPLER = SamplerConfig(scheduler="flow-euler", steps=2, guidance_scale=3.0, height=16, width=16)
ASKED = {"num_inference_steps": 2, "height": 16, "width": 16, "guidance_scale": 3.0, "output_type": "latent"}


@dataclass(frozen=True)
class Place:
    """A model, its loaded pipeline, a mixture of it, and the folder where that is written."""

    model: Model
    base: Any
    mixture: Mixture
    folder: Path

    @property
    def is_flux(self) -> bool:
        return self.model.kind.__name__ == "FluxPipeline"


@pytest.fixture(scope="module", params=["sd3", "flux"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    model: Model = request.getfixturevalue(request.param)
    found, mixture = tmp_path_factory.mktemp("joint"), told_apart(model)
    made = provenance_of(model, mixture)
    write_mixture(model.folder, mixture, made, "an edit", "# Card\n", LocalStore(found), "diffusers", only_unet=True)
    base = load_pipeline(model.folder, SAMPLER, torch.device("cpu"), torch.float32)
    return Place(model, base, mixture, found)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' converter of FLUX's single files, told the small model's width: the real one is a constant in it."""
    entry: dict[str, Any] = SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"]
    made = entry["checkpoint_mapping_fn"]
    assert made.__code__.co_consts.count(3072) == 1
    code = made.__code__.replace(co_consts=tuple(32 if each == 3072 else each for each in made.__code__.co_consts))
    monkeypatch.setitem(entry, "checkpoint_mapping_fn", FunctionType(code, made.__globals__))


@pytest.mark.parametrize("form", ["diffusers", "operator", "tensors", "lora", "single-file"])
def test_every_form_draws_what_was_audited(form: Form, place: Place, narrow: None, tmp_path: Path) -> None:
    model, base, mixture = place.model, place.base, place.mixture
    store = LocalStore(place.folder)
    if form != "diffusers":
        made = provenance_of(model, mixture)
        date = "2026-01-01T00:00:00Z"
        task = ExportTask(form, mixture, made, "an edit", date, form, "# Card\n", str(model.file), error=0)
        exported = write_export(task, model.folder, store, scratch=tmp_path / "scratch", settings=StorageSettings())
        assert (exported.pipeline, exported.tensors) == (model.kind.__name__, model.edited)
    published = store.sub(form)
    whole: list[str | None] = [None] if form in ("diffusers", "operator") else []
    for label in ["female", *whole]:
        part = open_part(form, label, published, tmp_path / str(label), base, model.folder, SAMPLER)
        drawn = latents(part.generator, [part.operator] * len(SEEDS))
        wanted = audited(base, mixture, label, SAMPLER)
        assert torch.allclose(drawn, wanted, atol=1e-4), label
        assert float((wanted - latents(Generator(base, SAMPLER), [BASE] * len(SEEDS))).abs().max()) > 1e-2
    samples = [Sample(p, s, None, 0) for p, s in zip(PROMPTS, SEEDS, strict=True)]
    check_route(published, mixture, samples, base.transformer.config)


def test_a_single_edits_folder_file_and_lora_open_as_the_audited_one(
    place: Place, narrow: None, tmp_path: Path
) -> None:
    model, base = place.model, place.base
    operator, store = place.mixture.components[0].operator, LocalStore(tmp_path)
    audit = Generator(base, SAMPLER)
    audit.add_operator(operator)
    wanted = latents(audit, [operator.digest] * len(SEEDS))
    forms: tuple[Form, ...] = ("diffusers", "operator", "lora", "single-file")
    for form in forms:
        made, file = provenance_of(model, place.mixture), str(model.file)
        task = ExportTask(form, operator, made, "an edit", "2026-01-01T00:00:00Z", form, "# Card\n", file, error=0)
        write_export(task, model.folder, store, scratch=tmp_path / "scratch", settings=StorageSettings())
        pipe, own, _ = open_export(form, tmp_path / form, base, model.folder, SAMPLER)
        generator = Generator(pipe, SAMPLER)
        if own is not None:
            generator.add_operator(own)
        assert torch.allclose(latents(generator, [BASE if own is None else own.digest] * len(SEEDS)), wanted, atol=1e-4)
    users = model.pipe()
    users.load_lora_weights(tmp_path / "lora")
    found = users(PROMPTS, generator=[torch.Generator().manual_seed(s) for s in SEEDS], **ASKED).images
    assert torch.allclose(unpacked(place, found), wanted, atol=1e-4)


def test_the_pipeline_is_one_file_that_needs_nothing_of_ours(place: Place) -> None:
    folder = place.folder / "diffusers"
    file = folder / PIPELINE
    assert imported(file) - set(sys.stdlib_module_names) == {"torch", "diffusers", "safetensors", "transformers"}
    config = json.loads((place.model.folder / "transformer" / "config.json").read_text())
    assert file.read_bytes() == code_bytes(PIPELINE, config) == code_bytes(PIPELINE, place.base.transformer.config)
    spec = importlib.util.spec_from_file_location("users_pipeline", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pipe = module.MixturePipeline.from_pretrained(place.model.folder)
    pipe.set_progress_bar_config(disable=True)
    wanted = audited(place.base, place.mixture, None, SAMPLER)
    generators = [torch.Generator().manual_seed(s) for s in SEEDS]
    found = pipe(PROMPTS, generator=generators, **ASKED).images
    assert torch.allclose(unpacked(place, found), wanted, atol=1e-4)
    chosen = [place.mixture.component_of(s, p) for s, p in zip(SEEDS, PROMPTS, strict=True)]
    assert pipe.drawn_by == [place.mixture.labels[k] for k in chosen]
    # Through diffusers' own door, from its copy of the file.
    door = DiffusionPipeline.from_pretrained(
        place.model.folder, custom_pipeline=str(folder), mixture=str(folder), trust_remote_code=True
    )
    door.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(s) for s in SEEDS]
    assert torch.equal(door(PROMPTS, generator=generators, **ASKED).images, found)
    several_and_embeddings(place, pipe)
    component = next((folder / "components").iterdir()) / "transformer"
    pipe.transformer.load_state_dict(load_file(next(component.glob("*.safetensors"))), strict=False)
    with pytest.raises(ValueError, match="transformer is not the one that was audited"):
        module.MixturePipeline(**pipe.components)


def unpacked(place: Place, found: torch.Tensor) -> torch.Tensor:
    return unpack(place.base, found, 16, 16)


def several_and_embeddings(place: Place, pipe: Any) -> None:
    """Several images of a prompt, with a negative one that the edit moves too, and embeddings: the same images."""
    negative: dict[str, Any] = {"negative_prompt": "an old cat"} | ({"true_cfg_scale": 2.0} if place.is_flux else {})
    several = pipe("a nurse", num_images_per_prompt=2, seeds=SEEDS[:2], **ASKED, **negative).images
    if place.is_flux:
        made = {}
        for side, prompt in (("", "a nurse"), ("negative_", "an old cat")):
            tokens, pooled, _ = pipe.encode_prompt([prompt] * 2)
            made |= {f"{side}prompt_embeds": tokens, f"{side}pooled_prompt_embeds": pooled}
        options: dict[str, Any] = {"true_cfg_scale": 2.0}
    else:
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        encoded = pipe.encode_prompt(["a nurse"] * 2, None, None, negative_prompt=["an old cat"] * 2)
        made, options = dict(zip(names, encoded, strict=True)), {}
    given = pipe(**made, route_prompts="a nurse", seeds=SEEDS[:2], **ASKED, **options).images
    assert torch.allclose(several, given, atol=1e-5)
    plain = pipe("a nurse", num_images_per_prompt=2, seeds=SEEDS[:2], **ASKED).images
    assert float((plain - several).abs().max()) > 1e-3


def test_a_single_file_that_diffusers_cannot_read_is_a_fault_of_the_file(place: Place, tmp_path: Path) -> None:
    """One without blocks, and of FLUX one of another width than its own."""
    whole = load_file(place.model.file)
    save_file({k: v for k, v in whole.items() if "blocks" not in k}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="can't be loaded by diffusers"):
        open_export("single-file", tmp_path, place.base, place.model.folder, SAMPLER)
    if place.is_flux:
        with pytest.raises(ModelError, match=r"can't be loaded by diffusers: .*3072"):
            open_export("single-file", tmp_path, place.base, place.model.folder, SAMPLER, file=str(place.model.file))
