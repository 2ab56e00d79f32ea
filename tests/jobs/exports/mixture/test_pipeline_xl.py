"""A mixture of an SDXL: each form draws what the audit draws, and `pipeline.py` is a file that stands alone."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from infra.storage import LocalStore, StorageSettings
from jobs.config import SamplerConfig
from jobs.exports.mixture.code import code_bytes
from jobs.exports.mixture.folder import write_mixture
from jobs.exports.mixture.parts import CODE, PIPELINE
from jobs.exports.schema import Form
from jobs.exports.verify.mixture import check_route, open_part
from jobs.exports.verify.samples import Sample
from jobs.exports.write import ExportTask, write_export
from jobs.images.generator import Generator, ImageRequest
from jobs.images.shards import BASE
from jobs.models.pipelines import load_pipeline
from tests.jobs.exports.conftest import Model, mixture_of, provenance_of
from tests.test_architecture import imported
from time_ops import Mixture
from time_ops.records import EditRecord, SolveInputs

SAMPLER = SamplerConfig(steps=2, guidance_scale=3.0, height=16, width=16)
PROMPTS = ["a photo of a nurse", "a ceo", "a cat", "a nurse at work"]
SEEDS = [0, 1, 2, 3]


@pytest.fixture(scope="module")
def base(xl: Model) -> Any:
    return load_pipeline(xl.folder, SAMPLER, torch.device("cpu"), torch.float32)


def told_apart(xl: Model) -> Mixture:
    """Operators are known by their inputs, so each component says what it was solved for."""
    plain = mixture_of(xl)
    components = []
    for component in plain.components:
        edit = EditRecord("a ceo", ((f"a {component.label} ceo", 1.0),), 0.1)
        components.append(replace(component, operator=replace(component.operator, steps=(SolveInputs((edit,)),))))
    return Mixture(tuple(components), plain.table)


@pytest.fixture(scope="module")
def mixture(xl: Model) -> Mixture:
    return told_apart(xl)


@pytest.fixture(scope="module")
def place(xl: Model, mixture: Mixture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("xl")
    made = provenance_of(xl, mixture)
    write_mixture(xl.folder, mixture, made, "an edit", "# Card\n", LocalStore(found), "diffusers", only_unet=True)
    return found


def latents(generator: Generator, names: list[str]) -> torch.Tensor:
    requests = [ImageRequest(p, name, s) for p, name, s in zip(PROMPTS, names, SEEDS, strict=True)]
    with torch.inference_mode():
        return generator._latents(requests, [torch.Generator().manual_seed(s) for s in SEEDS]).clone()


def audited(base: Any, mixture: Mixture, label: str | None, sampler: SamplerConfig = SAMPLER) -> torch.Tensor:
    generator, names = Generator(base, sampler), []
    for prompt, seed in zip(PROMPTS, SEEDS, strict=True):
        k = mixture.component_of(seed, prompt) if label is None else mixture.labels.index(label)
        generator.add_operator(mixture.components[k].operator)
        names.append(mixture.components[k].operator.digest)
    return latents(generator, names)


@pytest.mark.parametrize("form", ["diffusers", "operator", "tensors", "lora", "single-file"])
def test_every_form_draws_what_was_audited(
    form: Form, xl: Model, base: Any, mixture: Mixture, place: Path, tmp_path: Path
) -> None:
    store = LocalStore(place)
    if form != "diffusers":
        made = provenance_of(xl, mixture)
        task = ExportTask(
            form, mixture, made, "an edit", "2026-01-01T00:00:00Z", form, "# Card\n", str(xl.file), error=0
        )
        exported = write_export(task, xl.folder, store, scratch=tmp_path / "scratch", settings=StorageSettings())
        assert exported.pipeline == "StableDiffusionXLPipeline"
        assert exported.tensors == xl.edited
    published = store.sub(form)
    whole: list[str | None] = [None] if form in ("diffusers", "operator") else []
    for label in ["female", *whole]:
        part = open_part(form, label, published, tmp_path / str(label), base, xl.folder, SAMPLER)
        drawn = latents(part.generator, [part.operator] * len(SEEDS))
        wanted = audited(base, mixture, label)
        assert torch.allclose(drawn, wanted, atol=1e-4), label
        assert float((wanted - latents(Generator(base, SAMPLER), [BASE] * len(SEEDS))).abs().max()) > 1e-2
    check_route(
        published, mixture, [Sample(p, s, None, 0) for p, s in zip(PROMPTS, SEEDS, strict=True)], base.unet.config
    )


def test_the_pipeline_is_one_file_that_needs_nothing_of_ours(xl: Model, place: Path, tmp_path: Path) -> None:
    file = place / "diffusers" / PIPELINE
    assert imported(file) - set(sys.stdlib_module_names) == {"torch", "diffusers", "safetensors", "transformers"}
    assert file.read_bytes() == code_bytes(PIPELINE, {"addition_embed_type": "text_time"}) != code_bytes(PIPELINE)
    spec = importlib.util.spec_from_file_location("users_pipeline", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pipe = module.MixturePipeline.from_pretrained(xl.folder)
    pipe.set_progress_bar_config(disable=True)
    asked = {"num_inference_steps": 2, "height": 16, "width": 16, "guidance_scale": 3.0, "output_type": "latent"}
    generators = [torch.Generator().manual_seed(s) for s in SEEDS]
    found = pipe(PROMPTS, generator=generators, **asked).images
    base, mixture = load_pipeline(xl.folder, SAMPLER, torch.device("cpu"), torch.float32), told_apart(xl)
    assert torch.allclose(found, audited(base, mixture, None), atol=1e-4)
    assert pipe.drawn_by == [mixture.labels[mixture.component_of(s, p)] for s, p in zip(SEEDS, PROMPTS, strict=True)]
    # Several images of a prompt, with a negative one that the edit moves too, and embeddings: the same images.
    guided = {**asked, "negative_prompt": "an old cat"}
    several = pipe("a nurse", num_images_per_prompt=2, seeds=SEEDS[:2], **guided).images
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    made = dict(zip(names, pipe.encode_prompt(["a nurse"] * 2, negative_prompt=["an old cat"] * 2), strict=True))
    given = pipe(**made, route_prompts="a nurse", seeds=SEEDS[:2], **asked).images
    assert torch.allclose(several, given, atol=1e-5)
    component = next((place / "diffusers" / "components").iterdir()) / "unet"
    pipe.unet.load_state_dict(load_file(next(component.glob("*.safetensors"))))
    with pytest.raises(ValueError, match="an edited one would be edited twice"):
        module.MixturePipeline(**pipe.components)


def test_what_reads_the_pooled_embedding_is_part_of_the_bases_identity(xl: Model, place: Path, tmp_path: Path) -> None:
    from jobs.exports.mixture.pipeline_xl import MixturePipeline

    pipe = xl.pipe()
    MixturePipeline(**pipe.components, mixture=str(place / "diffusers"))
    with torch.no_grad():
        pipe.unet.add_embedding.linear_1.weight[0, 0] += 1
    with pytest.raises(ValueError, match="not the one that was audited"):
        MixturePipeline(**pipe.components, mixture=str(place / "diffusers"))
    # A mixture of version 1, without pooled operators, is no mixture of version 2.
    data = load_file(place / "diffusers" / "mixture.safetensors")
    assert set(data) == {"operators", "pooled"}
    header = {"evenhand": json.dumps({"format": "evenhand-mixture/1", "route": 1})}
    save_file(data, tmp_path / "mixture.safetensors", metadata=header)
    with pytest.raises(ValueError, match=r"evenhand-mixture/1.*evenhand-mixture/2"):
        MixturePipeline(**pipe.components, mixture=str(tmp_path))
    assert set(CODE) == {"pipeline.py", "route.py", "load_mixture.py"}
