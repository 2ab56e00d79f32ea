"""Jobs' parts with SD3 and FLUX: small random models of the real classes, drawn with, edited, checked and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra.storage import StorageSettings
from jobs.config import SamplerConfig
from jobs.doctor.models import check_models
from jobs.errors import ConfigError
from jobs.images.generator import Generator, ImageRequest, is_guided
from jobs.images.shards import BASE
from jobs.models.kinds import check_kind
from jobs.models.pipelines import load_pipeline
from jobs.models.sampling import check_sampler
from jobs.models.weights import check_pipeline
from jobs.runs.inputs import read_inputs
from manifests import write_manifest
from tests.jobs.helpers import config, manifest
from tests.time_ops.families import make_flux_pipe, make_sd3_pipe
from time_ops import EditOperator, ModelError, PromptEdit, encode_edits, solve

CPU = torch.device("cpu")
SAMPLER = SamplerConfig(scheduler="flow-euler", steps=2, guidance_scale=4.0, height=16, width=16)
REQUESTS = [
    ImageRequest(prompt, BASE, seed) for seed, prompt in enumerate(("a photo of a ceo", "an engineer", "a ceo"))
]
MAKERS: dict[str, Callable[[], Any]] = {
    "sd3": make_sd3_pipe,
    "sd3 without T5": lambda: make_sd3_pipe(t5=False),
    "flux": make_flux_pipe,
    "flux without guidance": lambda: make_flux_pipe(guidance=False),
}


@dataclass(frozen=True)
class Family:
    """A model, its sampler, and its loaded pipeline."""

    name: str
    folder: Path
    sampler: SamplerConfig
    pipe: Any

    @property
    def is_flux(self) -> bool:
        return self.name.startswith("flux")


@pytest.fixture(scope="module", params=MAKERS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp("joint") / "model"
    MAKERS[request.param]().save_pretrained(folder)
    scale = 1.0 if request.param == "flux without guidance" else SAMPLER.guidance_scale
    sampler = SAMPLER.model_copy(update={"guidance_scale": scale})
    return Family(request.param, folder, sampler, load_pipeline(folder, sampler, CPU, torch.float32))


def by_diffusers(family: Family, negative: str) -> np.ndarray[Any, Any]:
    options: dict[str, Any] = {} if family.is_flux else {"negative_prompt": [negative] * len(REQUESTS)}
    made = family.pipe(
        prompt=[r.prompt for r in REQUESTS],
        generator=[torch.Generator().manual_seed(r.seed) for r in REQUESTS],
        num_inference_steps=2, guidance_scale=family.sampler.guidance_scale, height=16, width=16, output_type="np",
        **options,
    )  # fmt: skip
    found: np.ndarray[Any, Any] = (made.images * 255).round().astype(np.uint8)
    return found


def apart(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_images_are_the_pipelines_own_and_an_edits_those_of_edited_weights(family: Family) -> None:
    negative = "" if family.is_flux else "an old engineer"
    sampler = family.sampler.model_copy(update={"negative_prompt": negative})
    assert is_guided(family.pipe, sampler) != family.is_flux
    generator = Generator(family.pipe, sampler)
    base = generator.draw(REQUESTS)
    assert not base.statuses.any()
    assert apart(base.pixels, by_diffusers(family, negative)) <= 1
    operator = solve(encode_edits(family.pipe, [PromptEdit("a ceo", {"a female ceo": 1.0})]), 0.5)
    generator.add_operator(operator)
    edited = generator.draw([ImageRequest(r.prompt, operator.digest, r.seed) for r in REQUESTS]).pixels
    kept = {name: weight.clone() for name, weight in family.pipe.transformer.state_dict().items()}
    try:
        operator.fold_into(family.pipe.transformer)
        folded = by_diffusers(family, negative)
    finally:
        family.pipe.transformer.load_state_dict(kept)
    assert apart(edited, folded) <= 1
    assert apart(edited, base.pixels) > 5
    alone = EditOperator(operator.matrix, operator.steps)
    generator.add_operator(alone)
    tokens_only = generator.draw([ImageRequest(r.prompt, alone.digest, r.seed) for r in REQUESTS]).pixels
    assert apart(edited, tokens_only) > 1


def test_an_image_needs_no_neighbours(family: Family) -> None:
    generator = Generator(family.pipe, family.sampler)
    full = generator.draw(REQUESTS)
    assert np.array_equal(generator.draw(REQUESTS[1:2], batch_size=3).pixels[0], full.pixels[1])


def test_bfloat16_draws_all_but_the_same(family: Family) -> None:
    full = Generator(family.pipe, family.sampler).draw(REQUESTS)
    pipe = load_pipeline(family.folder, family.sampler, CPU, torch.bfloat16)
    assert (pipe.transformer.dtype, pipe.vae.dtype) == (torch.bfloat16, torch.bfloat16)
    half = Generator(pipe, family.sampler).draw(REQUESTS)
    assert not half.statuses.any()
    assert np.abs(half.pixels.astype(int) - full.pixels.astype(int)).mean() < 8


def test_files_and_encoders_are_looked_at(family: Family, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_pipeline(family.folder)
    monkeypatch.setenv("EVENHAND_CACHE", str(tmp_path))
    given = config(model=str(family.folder), classifier="-", sampler=family.sampler.model_dump())
    found = {f.check: f for f in check_models(given, StorageSettings(), "test")}
    assert {f.outcome for f in found.values()} == {"ok"}
    assert "transformer in F32, one layer of the token states and one of the pooled embedding" in found["model"].found
    widths = {
        "sd3": "24 x 16 and one pooled vector of 16, 24 x 32 and one pooled vector of 32, 512 x 64",
        "sd3 without T5": "24 x 16 and one pooled vector of 16, 24 x 32 and one pooled vector of 32",
    }.get(family.name, "24 x 32, 512 x 64")
    assert found["text encoder"].found == f"encodes it into {widths}, all finite"
    wrong = config(model=str(family.folder), classifier="-")
    assert "flow-euler" in {f.check: f for f in check_models(wrong, StorageSettings(), "other")}["model"].found


@pytest.mark.parametrize(
    ("name", "keys", "words"),
    [
        ("sd3", {"scheduler": "ddim"}, "ddim is for models that predict noise.*: set it to flow-euler"),
        ("sd3", {"height": 18}, "sampler.height: 18 is no multiple of 4"),
        ("flux", {"negative_prompt": "an old cat"}, "reads no negative prompt: leave it empty"),
        ("flux without guidance", {}, "guidance_scale: 4 would be passed over"),
    ],
)
def test_a_sampler_that_does_not_fit_is_refused_before_anything_is_drawn(
    name: str, keys: dict[str, Any], words: str, tmp_path: Path
) -> None:
    MAKERS[name]().save_pretrained(tmp_path / "model")
    sampler = SAMPLER.model_copy(update=keys)
    with pytest.raises(ConfigError, match=words):
        check_sampler(tmp_path / "model", sampler)
    write_manifest(manifest("ceo"), tmp_path / "m.parquet")
    given = config(manifest=str(tmp_path / "m.parquet"), model=str(tmp_path / "model"), sampler=sampler.model_dump())
    with pytest.raises(ConfigError, match=words):
        read_inputs(given, StorageSettings(), "test")


def settle(folder: Path, file: str, **keys: Any) -> None:
    found = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(found | keys))


@pytest.mark.parametrize(
    ("file", "keys", "words"),
    [
        ("transformer/config.json", {"in_channels": 384}, "reads 384 channels .* an image or a mask beside the noise"),
        ("transformer/config.json", {"joint_attention_dim": 99}, "texts of width 99, "),
        ("transformer/config.json", {"pooled_projection_dim": 99}, "pooled embedding of width 99, CLIP gives"),
        ("transformer/config.json", {"_class_name": "ChromaTransformer2DModel"}, "ChromaTransformer2DModel"),
        ("scheduler/scheduler_config.json", {"stochastic_sampling": True}, "noise that no seed decides"),
        ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "its scheduler is a DDIMScheduler"),
        ("model_index.json", {"text_encoder_2": [None, None]}, "names no text_encoder_2"),
        ("model_index.json", {"_class_name": "FluxKontextPipeline"}, "reads an image beside the text"),
        ("model_index.json", {"_class_name": "PixArtAlphaPipeline"}, "A notebook can edit it, jobs do not audit it"),
        ("model_index.json", {"_class_name": "PixArtSigmaPipeline"}, "A notebook can edit it, jobs do not audit it"),
        ("model_index.json", {"_class_name": "SanaPipeline"}, "A notebook can edit it, jobs do not audit it"),
    ],
)
@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_what_does_not_fit_together_is_refused_by_name(
    name: str, file: str, keys: dict[str, Any], words: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    home = tmp_path_factory.getbasetemp() / f"whole-{name}"
    if not home.exists():
        MAKERS[name]().save_pretrained(home)
        check_kind(home)
    there = Path(shutil.copytree(home, tmp_path / "model"))
    settle(there, file, **keys)
    with pytest.raises(ModelError, match=words):
        check_kind(there)
