"""`pipeline.py` as users run it: without Evenhand, on the base model, and it draws what the audit draws."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from infra.demo import PIPELINE_PATH
from infra.storage import LocalStore
from jobs.config import SamplerConfig
from jobs.exports.forms.header import Provenance, lams_digest
from jobs.exports.mixture import pipeline as mixture_pipeline
from jobs.exports.mixture import route
from jobs.exports.mixture.folder import write_code, write_mixture
from jobs.exports.mixture.parts import PIPELINE, ROUTE
from jobs.exports.mixture.pipeline import MixturePipeline
from jobs.images.generator import Generator, ImageRequest
from jobs.images.shards import BASE
from jobs.models.digests import content_digest
from jobs.models.pipelines import load_pipeline
from tests.jobs.exports.conftest import Model, mixture_of
from tests.test_architecture import imported
from tests.time_ops.conftest import make_pipe
from time_ops import EditOperator, Mixture, PromptEdit, encode_edits, solve
from time_ops.mixture import UNEDITED
from time_ops.route import ROUTE_VECTORS, WeightTable, prompt_words, unit
from time_ops.route import route as routed

SAMPLER = SamplerConfig(steps=3, guidance_scale=3.0, height=32, width=32, negative_prompt="blurred")
PROMPTS = ["A painting of a nurse", "A painting of a CEO", "a red car"]
USER = f"""
import json, sys
for name in ("jobs", "time_ops", "infra", "manifests"):
    sys.modules[name] = None
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
base, folder, out = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(base, custom_pipeline=folder, mixture=folder, trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
prompts = {PROMPTS}
asked = dict(num_inference_steps=3, height=32, width=32, output_type="latent", guidance_scale=3.0)
guided = asked | dict(negative_prompt=["blurred"] * 6)
seeds = list(range(6))
def each():
    return [torch.Generator().manual_seed(seed) for seed in seeds]
found, drawn = {{}}, {{}}
def draw(name, *args, **options):
    found[name] = pipe(*args, **options).images.contiguous()
    drawn[name] = pipe.drawn_by
draw("list", prompts * 2, generator=each(), **guided)
draw("seeds", prompts * 2, seeds=seeds, **guided)
guided["negative_prompt"] = ["blurred"] * 2
draw("several", prompts[:2], generator=each(), num_images_per_prompt=3, **guided)
draw("one", prompts[0], generator=torch.Generator().manual_seed(5), num_images_per_prompt=6, **asked)
draw("free", prompts * 2, generator=each(), **asked | dict(guidance_scale=1.0))
given = pipe.encode_prompt(prompts * 2, "cpu", 1, True, ["blurred"] * 6)
given = dict(prompt_embeds=given[0], negative_prompt_embeds=given[1])
draw("embeds", generator=each(), route_prompts=prompts * 2, **asked, **given)
torch.manual_seed(0)
draw("unseeded", prompts[0], num_images_per_prompt=6, **asked)
save_file(found, out)
print(json.dumps(drawn))
"""


@pytest.fixture(scope="module")
def base() -> Any:
    return load_pipeline(PIPELINE_PATH, SAMPLER, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def mixture(base: Any) -> Mixture:
    def component(label: str) -> EditOperator:
        edits = [PromptEdit(f"a {name}", {f"a {label} {name}": 1.0}) for name in ("CEO", "nurse")]
        return solve(encode_edits(base, edits), 1.0)

    operators = {"female": component("female"), "male": component("male")}
    operators[UNEDITED] = EditOperator.identity(operators["male"].d)
    return Mixture.of(operators, [0.4, 0.4, 0.2], {"a nurse": [0.2, 0.8, 0.0]})


@pytest.fixture(scope="module")
def folder(mixture: Mixture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("mixture")
    made = Provenance(content_digest(PIPELINE_PATH), "m" * 64, lams_digest(mixture), "r", "pass")
    write_mixture(PIPELINE_PATH, mixture, made, "an edit", "# Card\n", LocalStore(place), "c", only_unet=True)
    return place / "c"


@pytest.fixture(scope="module")
def drawn(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """What a user's process, which has no Evenhand, draws with the folder."""
    place = tmp_path_factory.mktemp("user")
    (place / "user.py").write_text(USER)
    command = [sys.executable, str(place / "user.py"), str(PIPELINE_PATH), str(folder), str(place / "out.safetensors")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(place / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return load_file(place / "out.safetensors"), json.loads(done.stdout.splitlines()[-1])


def audited(base: Any, mixture: Mixture, prompts: list[str], seeds: list[int], **sampler: Any) -> torch.Tensor:
    """Latents of the audit's own generator, each image under the component that its seed picks."""
    generator = Generator(base, SAMPLER.model_copy(update=sampler))
    requests = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        component = mixture.components[mixture.component_of(seed, prompt)]
        generator.add_operator(component.operator)
        requests.append(ImageRequest(prompt, BASE if component.is_identity else component.operator.digest, seed))
    with torch.inference_mode():
        return generator._latents(requests, [torch.Generator().manual_seed(s) for s in seeds]).clone()


def test_it_draws_the_audits_images(
    base: Any, mixture: Mixture, drawn: tuple[dict[str, Any], dict[str, list[str]]]
) -> None:
    found, labels = drawn
    seeds = list(range(6))
    wanted = audited(base, mixture, PROMPTS * 2, seeds)
    unedited = Generator(base, SAMPLER)._latents(
        [ImageRequest(p, BASE, s) for p, s in zip(PROMPTS * 2, seeds, strict=True)],
        [torch.Generator().manual_seed(s) for s in seeds],
    )
    assert labels["list"] == [mixture.labels[mixture.component_of(s, (PROMPTS * 2)[s])] for s in seeds]
    assert set(labels["list"]) == set(mixture.labels)
    for name in ("list", "seeds", "embeds"):
        assert labels[name] == labels["list"]
        torch.testing.assert_close(found[name], wanted, rtol=0, atol=2e-6)
    moved = (wanted - unedited).flatten(1).abs().amax(dim=1)
    assert [bool(m > 1e-2) for m in moved] == [label != UNEDITED for label in labels["list"]]
    several = [prompt for prompt in PROMPTS[:2] for _ in range(3)]
    torch.testing.assert_close(found["several"], audited(base, mixture, several, seeds), rtol=0, atol=2e-6)
    free = audited(base, mixture, PROMPTS * 2, seeds, guidance_scale=1.0)
    torch.testing.assert_close(found["free"], free, rtol=0, atol=2e-6)


def test_one_generator_for_a_batch_is_routed_by_the_images_places(
    mixture: Mixture, drawn: tuple[dict[str, Any], dict[str, list[str]]]
) -> None:
    _, labels = drawn
    assert labels["one"] == [mixture.labels[mixture.component_of(5, PROMPTS[0], place)] for place in range(6)]
    torch.manual_seed(0)
    seed = int(torch.randint(2**63 - 1, ()))
    assert labels["unseeded"] == [mixture.labels[mixture.component_of(seed, PROMPTS[0], i)] for i in range(6)]


weights_ = st.lists(st.integers(0, 20), min_size=2, max_size=5).filter(any)
words_ = st.sampled_from(
    ["a", "the", "nurse", "CEO", "old", "Nurse,", "head", "of", "staff", "head nurse", "ÉLÈVE", "?"]
)
texts_ = st.lists(words_, min_size=1, max_size=6).map(" ".join)


@given(st.integers(-(2**63), 2**64 - 1), st.integers(0, 10**6), weights_)
def test_its_route_is_the_audits(seed: int, place: int, counts: list[int]) -> None:
    weights = [count / sum(counts) for count in counts]
    for module in (mixture_pipeline, route):
        assert module.unit(seed, place) == unit(seed, place)
        assert module.pick(module.unit(seed, place), weights) == routed(seed, weights, place)


@given(
    texts_,
    st.dictionaries(texts_.filter(prompt_words), weights_.map(lambda w: [*w, 0, 0, 0][:3]).filter(any), max_size=4),
)
def test_its_weights_are_the_audits(prompt: str, professions: dict[str, list[int]]) -> None:
    own = {source: [count / sum(counts) for count in counts] for source, counts in professions.items()}
    default = [0.5, 0.25, 0.25]
    try:
        table = WeightTable(default, own)
    except ValueError:
        return  # two sources of the same words: no mixture has such a table
    for module in (mixture_pipeline, route):
        assert module.prompt_words(prompt) == prompt_words(prompt)
        assert tuple(module.weights_of(prompt, default, own)) == table.of(prompt)


def test_both_copies_are_one_text_with_the_published_vectors() -> None:
    texts = []
    for module in (mixture_pipeline, route):
        assert [module.unit(seed, place) for seed, place, _ in ROUTE_VECTORS] == [u for _, _, u in ROUTE_VECTORS]
        text = Path(str(module.__file__)).read_text()
        texts.append(re.search(r"def unit.*?return default\n", text, re.DOTALL))
    assert texts[0]
    assert texts[1]
    assert texts[0][0] == texts[1][0]


def test_it_needs_nothing_of_ours(tmp_path: Path) -> None:
    needed = imported(write_code(tmp_path / PIPELINE).path)
    assert needed - set(sys.stdlib_module_names) == {"torch", "diffusers", "safetensors", "transformers"}
    assert imported(write_code(tmp_path / ROUTE).path) <= set(sys.stdlib_module_names)


def opened(pipe: Any, mixture: Path | str | None, **options: Any) -> Any:
    return MixturePipeline(**pipe.components, mixture=mixture, requires_safety_checker=False, **options)


@pytest.fixture(scope="module")
def small(sd: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A tiny model and the folder of its mixture."""
    place = tmp_path_factory.mktemp("small")
    mixture = mixture_of(sd)
    made = Provenance(content_digest(sd.folder), "m" * 64, lams_digest(mixture), "r", "pass")
    write_mixture(sd.folder, mixture, made, "an edit", "# Card\n", LocalStore(place), "c")
    return sd.pipe(), place / "c"


def test_models_that_it_can_not_be_for_are_refused(small: tuple[Any, Path], base: Any, folder: Path) -> None:
    pipe, place = small
    with pytest.raises(ValueError, match=r"width \d+, the mixture was made for"):
        opened(base, place)
    part = type(pipe).from_pretrained(place / "components" / "male-only", local_files_only=True)
    with pytest.raises(ValueError, match="would be edited twice"):
        opened(part, place)
    assert opened(part, place, any_base=True).labels == ["female", "male"]
    other = {**base.components, "text_encoder": type(base.text_encoder)(base.text_encoder.config)}
    with pytest.raises(ValueError, match="text encoder is not the one"):
        MixturePipeline(**other, mixture=folder, requires_safety_checker=False)
    # The same model in half precision is the same model.
    for dtype in (torch.float16, torch.bfloat16):
        half = load_pipeline(PIPELINE_PATH, SAMPLER, torch.device("cpu"), dtype)
        assert opened(half, folder / "mixture.safetensors").unet.dtype == dtype


def test_files_that_are_no_mixture_are_refused(small: tuple[Any, Path], tmp_path: Path) -> None:
    pipe, place = small
    with pytest.raises(ValueError, match="there is no mixture at"):
        opened(pipe, tmp_path)
    with pytest.raises(ValueError, match="there is no mixture at"):
        opened(pipe, None)
    mixture = Mixture.load(place / "mixture.safetensors")
    mixture.components[0].operator.save(tmp_path / "operator.safetensors")
    with pytest.raises(ValueError, match="is no mixture"):
        opened(pipe, tmp_path / "operator.safetensors")
    data = (place / "mixture.safetensors").read_bytes()
    for old, new, said in (
        (rb"\"route\":1", rb"\"route\":2", "routed by version 2"),
        (b"0.321543039748194", b"0.321543039748195", "by its test vectors"),
    ):
        assert old in data
        (tmp_path / "mixture.safetensors").write_bytes(data.replace(old, new))
        with pytest.raises(ValueError, match=said):
            opened(pipe, tmp_path)


def test_calls_that_can_not_be_right_are_refused(small: tuple[Any, Path], tmp_path: Path) -> None:
    pipe = opened(*small)
    pipe.set_progress_bar_config(disable=True)
    asked: dict[str, Any] = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "latent"}
    used = torch.Generator().manual_seed(1)
    pipe("a ceo", generator=used, **asked)
    # Its seed stays what it was, so every further image would be of one component.
    with pytest.raises(ValueError, match="drawn from before"):
        pipe("a ceo", generator=used, **asked)
    fresh = torch.Generator().manual_seed(1)
    with pytest.raises(ValueError, match="drawn from before"):
        pipe(["a ceo"] * 2, generator=[fresh, fresh], **asked)
    pipe("a ceo", generator=used, seeds=[7], **asked)
    assert pipe.drawn_by == [pipe.component_of(7, "a ceo")]
    with pytest.raises(ValueError, match="1 seeds for 2 images"):
        pipe(["a ceo"] * 2, seeds=[1], **asked)
    with pytest.raises(ValueError, match="1 generators for 2 images"):
        pipe("a ceo", num_images_per_prompt=2, generator=[fresh], **asked)
    with pytest.raises(ValueError, match="prompt or prompt_embeds"):
        pipe(**asked)
    with pytest.raises(NotImplementedError, match="unedited"):
        pipe.save_pretrained(tmp_path)


def test_a_pipeline_that_is_there_becomes_one(small: tuple[Any, Path]) -> None:
    pipe = MixturePipeline.from_pipe(make_pipe(), mixture=str(small[1]))
    assert pipe.labels == ["female", "male"]
