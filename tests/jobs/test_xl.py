"""Jobs with an SDXL: a small random model of the real classes, audited, edited by both operators, solved in chunks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from infra.storage import LocalStore, StorageSettings
from jobs.config import SamplerConfig
from jobs.doctor.models import check_models
from jobs.editing import chunk_encoding as chunks
from jobs.editing import solver as solving
from jobs.editing.chunk_encoding import ChunkEncoder, ComponentStrengths
from jobs.editing.solver import Solver
from jobs.images.generator import Generator, ImageRequest, negative_prompt_of
from jobs.images.shards import BASE
from jobs.models.kinds import check_kind
from jobs.models.pipelines import load_pipeline
from jobs.models.weights import check_pipeline
from jobs.runs import inputs
from jobs.runs.inputs import run_manifest_bytes
from tests.jobs.helpers import config, manifest
from tests.jobs.here_pool import HerePool
from tests.time_ops.conftest import make_xl_pipe
from time_ops import EditOperator, ModelError, PromptEdit, Statistics, encode_edits, solve, solve_statistics
from time_ops.row_encoding import encode_rows
from time_ops.strengths import Strengths

CPU = torch.device("cpu")
SAMPLER = SamplerConfig(steps=2, guidance_scale=4.0, height=16, width=16)
REQUESTS = [ImageRequest(prompt, BASE, seed) for seed, prompt in enumerate(("a photo of a ceo", "a nurse", "a cat"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("xl") / "model"
    make_xl_pipe().save_pretrained(found)
    return found


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Any:
    return load_pipeline(folder, SAMPLER, CPU, torch.float32)


@pytest.fixture(scope="module")
def operator(pipe: Any) -> EditOperator:
    edits = [PromptEdit("a ceo", {"a female ceo": 1.0}), PromptEdit("a nurse", {"a male nurse": 1.0})]
    return solve(encode_edits(pipe, edits), 0.5)


def by_diffusers(pipe: Any, negative: str | None) -> np.ndarray[Any, Any]:
    made = pipe(
        prompt=[r.prompt for r in REQUESTS],
        negative_prompt=None if negative is None else [negative] * len(REQUESTS),
        generator=[torch.Generator().manual_seed(r.seed) for r in REQUESTS],
        num_inference_steps=2, guidance_scale=4.0, height=16, width=16, output_type="np",
    )  # fmt: skip
    found: np.ndarray[Any, Any] = (made.images * 255).round().astype(np.uint8)
    return found


def apart(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("negative", ["", "an old cat"])
def test_images_are_the_pipelines_own_and_an_edits_those_of_edited_weights(
    pipe: Any, operator: EditOperator, negative: str
) -> None:
    sampler = SAMPLER.model_copy(update={"negative_prompt": negative})
    # Where none is given SDXL reads zeros, and not what its encoders make of the empty prompt.
    assert negative_prompt_of(pipe, sampler) == (negative or None)
    generator = Generator(pipe, sampler)
    assert apart(generator.draw(REQUESTS).pixels, by_diffusers(pipe, negative or None)) <= 1
    generator.add_operator(operator)
    edited = generator.draw([ImageRequest(r.prompt, operator.digest, r.seed) for r in REQUESTS]).pixels
    kept = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
    try:
        operator.fold_into(pipe.unet)
        folded = by_diffusers(pipe, negative or None)
    finally:
        pipe.unet.load_state_dict(kept)
    assert apart(edited, folded) <= 1
    assert apart(edited, generator.draw(REQUESTS).pixels) > 5
    alone = EditOperator(operator.matrix, operator.steps)
    generator.add_operator(alone)
    tokens_only = generator.draw([ImageRequest(r.prompt, alone.digest, r.seed) for r in REQUESTS]).pixels
    assert apart(edited, tokens_only) > 1


def settle(folder: Path, file: str, **keys: Any) -> None:
    found = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(found | keys))


@pytest.mark.parametrize(("upcast", "expected"), [(True, torch.float32), (False, torch.float16)])
def test_a_vae_that_overflows_float16_decodes_in_float32(
    folder: Path, tmp_path: Path, upcast: bool, expected: torch.dtype
) -> None:
    there = Path(shutil.copytree(folder, tmp_path / "model"))
    settle(there, "vae/config.json", force_upcast=upcast)
    pipe = load_pipeline(there, SAMPLER, CPU, torch.float16)
    assert (pipe.unet.dtype, pipe.vae.dtype) == (torch.float16, expected)
    full = Generator(load_pipeline(folder, SAMPLER, CPU, torch.float32), SAMPLER).draw(REQUESTS[:1])
    half = Generator(pipe, SAMPLER).draw(REQUESTS[:1])
    assert not half.statuses.any()
    assert np.abs(half.pixels.astype(int) - full.pixels.astype(int)).mean() < 3
    assert load_pipeline(there, SAMPLER, CPU, torch.bfloat16).vae.dtype == torch.bfloat16


def test_latents_are_scaled_as_the_vae_says(folder: Path) -> None:
    pipe = load_pipeline(folder, SAMPLER, CPU, torch.float32)
    pipe.vae.register_to_config(latents_mean=[0.5, -0.5, 0.1, 0.2], latents_std=[1.5, 0.5, 2.0, 1.0])
    assert apart(Generator(pipe, SAMPLER).draw(REQUESTS).pixels, by_diffusers(pipe, None)) <= 1


@pytest.mark.parametrize(
    ("file", "keys", "words"),
    [
        ("unet/config.json", {"addition_embed_type": None}, "reads no pooled text and sizes"),
        (
            "unet/config.json",
            {"projection_class_embeddings_input_dim": 52},
            "reads 52 numbers beside the text .* are 56",
        ),
        ("unet/config.json", {"cross_attention_dim": 32}, "texts of width 32, the text encoders together give 48"),
        ("unet/config.json", {"in_channels": 9}, "inpainting"),
        ("model_index.json", {"text_encoder": [None, None]}, "names no text_encoder"),
        ("model_index.json", {"_class_name": "StableDiffusionXLImg2ImgPipeline"}, "refiner draws none from text alone"),
        ("model_index.json", {"_class_name": "StableDiffusionXLControlNetPipeline"}, "ControlNet reads the text"),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "names no transformer"),
    ],
)
def test_what_is_no_sdxl_from_text_is_refused_by_name(
    folder: Path, tmp_path: Path, file: str, keys: dict[str, Any], words: str
) -> None:
    check_kind(folder)
    there = Path(shutil.copytree(folder, tmp_path / "model"))
    settle(there, file, **keys)
    with pytest.raises(ModelError, match=words):
        check_kind(there)


def test_files_of_both_encoders_are_looked_at(folder: Path, tmp_path: Path) -> None:
    check_pipeline(folder)
    there = Path(shutil.copytree(folder, tmp_path / "model"))
    settle(there, "tokenizer_2/tokenizer_config.json", model_max_length=99)
    with pytest.raises(ModelError, match="tokenizer_2/ pads to 99 tokens, and text_encoder_2/ reads 24"):
        check_pipeline(there)


def test_the_doctor_tries_both_encoders(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EVENHAND_CACHE", str(tmp_path))
    given = config(model=str(folder), classifier="-")
    found = {f.check: f for f in check_models(given, StorageSettings(), "test")}
    assert {f.outcome for f in found.values()} == {"ok"}
    assert "8 layers of cross-attention and one of the pooled embedding" in found["model"].found
    assert found["text encoder"].found == "encodes it into 24 x 16, 24 x 32 and one pooled vector of 32, all finite"


class Here:
    """A worker that encodes chunks, and does no more."""

    def __init__(self, encoder: ChunkEncoder) -> None:
        self._encoder = encoder

    def chunk_norms(self, chunk: chunks.EditChunk) -> tuple[list[float], list[float]]:
        return self._encoder.norms(chunk), self._encoder.pooled_norms(chunk)

    def chunk_statistics(self, *arguments: Any) -> tuple[Statistics, ...]:
        return self._encoder.statistics(*arguments)


def test_a_spread_solve_has_the_pooled_operator_of_one_solve(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two chunks, whose pooled lams are in units of the scale over both."""
    for module in (solving, chunks, inputs):
        monkeypatch.setattr(module, "CHUNK_PROFESSIONS", 1)
    there = manifest("ceo", "nurse")
    store = LocalStore(tmp_path / "store")
    store.put("m.parquet", run_manifest_bytes(there))
    wordings = ("{source}", "A photo of {source}")
    asked = config(wordings={"edit": wordings, "calibration": wordings}, preserve={"explicit": False}, form="single")
    encoder = ChunkEncoder(store, lambda: pipe, threading_lock(), tmp_path / "cache")
    found = Solver(HerePool(Here(encoder)), there, asked, "m.parquet").solve([2.0, 3.0], preserve_lam=4.0)
    edits = [PromptEdit(f"a {n}", {f"a female {n}": 0.5, f"a male {n}": 0.5}) for n in ("ceo", "nurse")]
    rows = encode_rows(pipe, edits, [""], augmentations=wordings)
    total: Statistics = rows.component_statistics([Strengths([2.0, 3.0], None, 4.0, None, rows.pooled_ratio)])[0]
    expected = solve_statistics(total)
    assert found.pooled is not None
    assert expected.pooled is not None
    assert found.digest == expected.digest
    for one, other in ((found, expected), (found.pooled, expected.pooled)):
        assert torch.linalg.norm(one.matrix - other.matrix) < 1e-5 * torch.linalg.norm(other.matrix)
    assert isinstance(pipe, StableDiffusionXLPipeline)


@pytest.mark.parametrize("ratio", [0.01, 0.5])
def test_a_component_edits_the_pooled_embedding_at_a_lambda_of_its_own(pipe: Any, tmp_path: Path, ratio: float) -> None:
    there, edit_wordings = manifest("ceo", "nurse"), ("{source}", "A photo of {source}")
    store = LocalStore(tmp_path / "store")
    store.put("m.parquet", run_manifest_bytes(there))
    wordings = {"edit": edit_wordings, "calibration": edit_wordings[1:]}
    mixture = {"neutral": ["a photo of a cat"]} | ({} if ratio == 0.01 else {"pooled_ratio": ratio})
    asked = config(wordings=wordings, form="mixture", mixture=mixture)
    encoder = ChunkEncoder(store, lambda: pipe, threading_lock(), tmp_path / "cache")
    solver = Solver(HerePool(Here(encoder)), there, asked, "m.parquet")
    (female,) = solver.solve_components([ComponentStrengths("female", (2.0, 3.0), (1.5, 1.5), (3.0, 3.0), 1.0)])
    assert female.pooled is not None
    edits = [PromptEdit(f"a {n}", {f"a female {n}": 0.5, f"a male {n}": 0.5}) for n in ("ceo", "nurse")]
    unit = encode_rows(pipe, edits, [""], augmentations=edit_wordings).pooled_ratio
    tokens, pooled = (
        {r.source: r.lam for r in (*o.steps[0].edits, *o.steps[0].preserved)} for o in (female, female.pooled)
    )
    assert tokens["a ceo"] == 2.0
    # Of all that the solve weighs: edits, other labels' explicit prompts, and what it leaves alone.
    assert pooled == pytest.approx({prompt: lam * ratio * unit for prompt, lam in tokens.items()}, rel=1e-5)
    assert {"a ceo", "a male nurse", "a photo of a cat", ""} <= pooled.keys()


def threading_lock() -> Any:
    import threading

    return threading.RLock()
