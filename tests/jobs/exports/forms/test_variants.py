"""A base model in half precision alone, as `save_pretrained(variant="fp16")` leaves it, and its exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from infra.storage import LocalStore, StorageSettings
from jobs.config import SamplerConfig
from jobs.exports.export_card import export_card
from jobs.exports.forms.header import Provenance, lams_digest
from jobs.exports.verify.opened import open_export
from jobs.exports.write import ExportTask, write_export
from jobs.models.digests import content_digest
from jobs.models.pipelines import load_pipeline
from tests.time_ops.conftest import make_pipe
from time_ops import EditOperator
from time_ops.records import SolveInputs

SAMPLER = SamplerConfig(steps=2, height=16, width=16)


@pytest.mark.parametrize("only_unet", [False, True])
def test_an_export_keeps_the_variant_and_says_how_it_is_loaded(tmp_path: Path, only_unet: bool) -> None:
    base_folder, out = tmp_path / "base", tmp_path / "store" / "x"
    make_pipe().to(torch.float16).save_pretrained(base_folder, variant="fp16")
    base = load_pipeline(base_folder, SAMPLER, torch.device("cpu"), torch.float32)
    noise = torch.randn(32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    operator = EditOperator(torch.eye(32, dtype=torch.float64) + 0.05 * noise, (SolveInputs((), values_only=False),))
    made = Provenance(content_digest(base_folder), "m" * 64, lams_digest(operator), "r", "pass")
    task = ExportTask("diffusers", operator, made, "title", "2026-11-21", "x", "card", only_unet=only_unet)
    exported = write_export(
        task, base_folder, LocalStore(tmp_path / "store"), scratch=tmp_path / "scratch", settings=StorageSettings()
    )
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in exported.files
    pipe, _, dtype = open_export("diffusers", out, base, base_folder, SAMPLER)
    assert dtype == torch.float16

    said = next(line for line in export_card("", exported, only_unet=only_unet).splitlines() if "FOLDER" in line)
    names: dict[str, Any] = {
        "FOLDER": out,
        "StableDiffusionPipeline": StableDiffusionPipeline,
        "UNet2DConditionModel": UNet2DConditionModel,
    }
    exec(said, names)  # noqa: S102 - what the card tells its readers to run
    theirs = names["unet"] if only_unet else names["pipe"].unet
    theirs_half = theirs.to(torch.float16).state_dict()
    assert all(torch.equal(theirs_half[name], weight) for name, weight in pipe.unet.state_dict().items())
