"""Tiny pipelines of both kinds: as diffusers folders and as single files of the original layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from infra.demo import CLASSIFIER_PATH, PIPELINE_PATH
from infra.storage import StorageSettings
from jobs.auditing.api import TallyWorker
from jobs.config import RunConfig, SamplerConfig
from jobs.exports.api import ExportWorker
from jobs.exports.forms.header import Provenance, lams_digest
from jobs.models.digests import content_digest
from jobs.models.pipelines import load_pipeline
from jobs.worker.worker import Worker
from tests.jobs.exports.original_layout import flux as flux_layout
from tests.jobs.exports.original_layout import sd3 as sd3_layout
from tests.jobs.exports.original_layout import single_file
from tests.jobs.helpers import config as config_of
from tests.jobs.here_pool import HerePool
from tests.time_ops.conftest import make_pipe, make_xl_pipe
from tests.time_ops.families import make_flux_pipe, make_sd3_pipe
from time_ops import EditOperator, Mixture, PromptEdit, encode_edits, solve
from time_ops.mixture import UNEDITED

BASE_HEADER = {"modelspec.title": "the base", "modelspec.license": "openrail", "sshs_model_hash": "of the base"}
HEADER = {"modelspec.title": "an edit", "evenhand.run": "r1"}


@dataclass(frozen=True)
class Model:
    """One tiny model."""

    kind: type[Any]
    folder: Path
    file: Path
    d: int
    projections: int
    pooled: int | None = None

    @property
    def edited(self) -> int:
        """How many weights an edit changes."""
        return self.projections + (self.pooled is not None)

    def operator(self, rank: int = 4, size: float = 3.0) -> EditOperator:
        """An edit of this rank that moves the weights by about a tenth of `size`, pooled ones as well."""
        pooled = None if self.pooled is None else drawn_operator(self.pooled, rank, size)
        return replace(drawn_operator(self.d, rank, size), pooled=pooled)

    def pipe(self) -> Any:
        found = self.kind.from_pretrained(self.folder, local_files_only=True)
        found.set_progress_bar_config(disable=True)
        return found


def drawn_operator(d: int, rank: int, size: float) -> EditOperator:
    g = torch.Generator().manual_seed(3)
    left, right = (torch.randn(*s, dtype=torch.float64, generator=g) for s in ((d, rank), (rank, d)))
    shift = left @ right
    return EditOperator(torch.eye(d, dtype=torch.float64) + size * shift / torch.linalg.norm(shift))


def edited(operator: EditOperator, name: str, weight: torch.Tensor) -> torch.Tensor:
    """A weight's edit, by its name in any program."""
    pooled = any(part in name for part in ("add_embedding", "label_emb"))
    return (operator.edited_pooled if pooled else operator.edited)(weight)


@pytest.fixture(scope="session")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Of the kind of 1.x; its single file holds a running average."""
    place = tmp_path_factory.mktemp("sd")
    make_pipe().save_pretrained(place / "folder")
    save_file(single_file(place / "folder", averaged=True), place / "sd.safetensors", metadata={"format": "pt"})
    return Model(StableDiffusionPipeline, place / "folder", place / "sd.safetensors", 32, 8)


@pytest.fixture(scope="session")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Model:
    place = tmp_path_factory.mktemp("xl")
    make_xl_pipe().save_pretrained(place / "folder")
    save_file(single_file(place / "folder"), place / "xl.safetensors", metadata=BASE_HEADER)
    return Model(StableDiffusionXLPipeline, place / "folder", place / "xl.safetensors", 48, 16, 32)


@pytest.fixture(scope="session")
def sd2(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Of the kind of 2.x: another text encoder in the file, linear projections around the attention."""
    place = tmp_path_factory.mktemp("sd2")
    make_pipe(use_linear_projection=True).save_pretrained(place / "folder")
    save_file(single_file(place / "folder", second=True), place / "sd2.safetensors")
    return Model(StableDiffusionPipeline, place / "folder", place / "sd2.safetensors", 32, 8)


@pytest.fixture(scope="session")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Its single file holds the transformer alone."""
    place = tmp_path_factory.mktemp("sd3")
    make_sd3_pipe().save_pretrained(place / "folder")
    transformer = load_file(place / "folder" / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file(sd3_layout(transformer), place / "sd3.safetensors")
    return Model(StableDiffusion3Pipeline, place / "folder", place / "sd3.safetensors", 64, 1, 48)


@pytest.fixture(scope="session")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Its single file holds the transformer alone, as FLUX's own does."""
    place = tmp_path_factory.mktemp("flux")
    make_flux_pipe().save_pretrained(place / "folder")
    transformer = load_file(place / "folder" / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file(flux_layout(transformer), place / "flux.safetensors")
    return Model(FluxPipeline, place / "folder", place / "flux.safetensors", 64, 1, 32)


@pytest.fixture(params=["sd", "sd2", "xl"])
def model(request: pytest.FixtureRequest) -> Model:
    """Each in turn."""
    found: Model = request.getfixturevalue(request.param)
    return found


def image_of(pipe: Any, **embeds: Any) -> torch.Tensor:
    """Two steps' latents; of "a ceo" where no embeddings are given."""
    asked = embeds or {"prompt": "a ceo"}
    latents = pipe(
        **asked,
        num_inference_steps=2,
        height=16,
        width=16,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).images
    assert bool(torch.isfinite(latents).all())
    return torch.as_tensor(latents)


def mixture_of(model: Model) -> Mixture:
    """Two strong edits, one of them of a nurse with weights of its own."""
    operators = {"female": model.operator(), "male": model.operator(rank=3, size=4.0)}
    return Mixture.of(operators, [0.4, 0.6], {"a nurse": [0.25, 0.75]})


def provenance_of(model: Model, mixture: Mixture) -> Provenance:
    return Provenance(content_digest(model.folder), "m" * 64, lams_digest(mixture), "r1", "pass")


PREFIX = "runs/r/candidate"
"""Where `demo_run` has written its mixture."""
SAMPLER = SamplerConfig(steps=4, guidance_scale=3.0, height=32, width=32)
PROFESSIONS = [("nurse", "a nurse"), ("CEO", "a CEO")]


@dataclass(frozen=True)
class DemoRun:
    """A worker of the demo model, its configuration, and the zero-shot prompts."""

    pool: HerePool
    config: RunConfig
    texts: Any


@pytest.fixture(scope="module")
def demo_mixture() -> Mixture:
    base = load_pipeline(PIPELINE_PATH, SAMPLER, torch.device("cpu"), torch.float32)

    def component(label: str) -> EditOperator:
        edits = [PromptEdit(source, {f"a {label} {name}": 1.0}) for name, source in PROFESSIONS]
        return solve(encode_edits(base, edits), 1.0)

    operators = {"female": component("female"), "male": component("male")}
    return Mixture.of(operators | {UNEDITED: EditOperator.identity(operators["male"].d)}, [0.4, 0.4, 0.2])


@pytest.fixture(scope="module")
def demo_run(demo_mixture: Mixture, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoRun]:
    """A worker, its configuration and the zero-shot prompts; the mixture's folder is written."""
    output = tmp_path_factory.mktemp("output")
    config = config_of(
        model=str(PIPELINE_PATH),
        classifier=str(CLASSIFIER_PATH),
        output=str(output),
        sampler=SAMPLER.model_dump(),
        export={"images": 4, "half_images": 12},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVENHAND_CACHE", str(output / "cache"))
        pool = HerePool(Worker(config, StorageSettings(), "test", threads=1))
        made = Provenance(content_digest(PIPELINE_PATH), "m" * 64, lams_digest(demo_mixture), "r", "pass")
        pool.call(ExportWorker.write_mixture, demo_mixture, made, "an edit", "# Not checked\n", PREFIX)
        yield DemoRun(pool, config, pool.call(TallyWorker.texts, PROFESSIONS, []))
