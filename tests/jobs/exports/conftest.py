"""Tiny pipelines of both kinds: as diffusers folders and as single files of the original layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file

from jobs.exports.header import Provenance, lams_digest
from jobs.models import content_digest
from tests.jobs.exports.original_layout import single_file
from tests.time_ops.conftest import make_pipe, make_xl_pipe
from time_ops import EditOperator, Mixture

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

    def operator(self, rank: int = 4, size: float = 3.0) -> EditOperator:
        """An edit of this rank that moves the weights by about a tenth of `size`."""
        g = torch.Generator().manual_seed(3)
        left, right = (torch.randn(*s, dtype=torch.float64, generator=g) for s in ((self.d, rank), (rank, self.d)))
        shift = left @ right
        return EditOperator(torch.eye(self.d, dtype=torch.float64) + size * shift / torch.linalg.norm(shift))

    def pipe(self) -> Any:
        found = self.kind.from_pretrained(self.folder, local_files_only=True)
        found.set_progress_bar_config(disable=True)
        return found


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
    return Model(StableDiffusionXLPipeline, place / "folder", place / "xl.safetensors", 48, 16)


@pytest.fixture(scope="session")
def sd2(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Of the kind of 2.x: another text encoder in the file, linear projections around the attention."""
    place = tmp_path_factory.mktemp("sd2")
    make_pipe(use_linear_projection=True).save_pretrained(place / "folder")
    save_file(single_file(place / "folder", second=True), place / "sd2.safetensors")
    return Model(StableDiffusionPipeline, place / "folder", place / "sd2.safetensors", 32, 8)


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
