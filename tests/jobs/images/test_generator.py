"""The generator on the demo model: bits that stay the same, bad images as data, batches that fit."""

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor

from infra.demo import CLASSIFIER_PATH, PIPELINE_PATH
from jobs.config import SamplerConfig
from jobs.images.classifier import Classifier
from jobs.images.generator import Generator, ImageRequest, auto_batch_size, batch_that_fits, decoded_at_once
from jobs.images.shards import BASE, STATUSES
from jobs.models.pipelines import SCHEDULERS, load_pipeline
from jobs.models.sampling import FLOW_SCHEDULERS
from time_ops import EditOperator, encode_prompts

CPU = torch.device("cpu")
SAMPLER = SamplerConfig(steps=2, guidance_scale=3.0, height=32, width=32)
REQUESTS = [
    ImageRequest(prompt, BASE, seed)
    for seed, prompt in enumerate(("A photo of a CEO", "A painting of a nurse", "a photo of a cat", "a CEO smiling"))
]


@pytest.fixture
def pipe() -> Any:
    return load_pipeline(PIPELINE_PATH, SAMPLER, CPU, torch.float32)


@pytest.fixture
def generator(pipe: Any) -> Generator:
    return Generator(pipe, SAMPLER)


def names(statuses: np.ndarray) -> list[str]:
    return [STATUSES[s] for s in statuses]


def from_the_pipeline(pipe: Any, requests: list[ImageRequest]) -> tuple[np.ndarray, list[bool] | None]:
    """What diffusers itself makes of the requests, decoding and checking included."""
    result = pipe(
        prompt_embeds=torch.stack([encode_prompts(pipe, [r.prompt])[0] for r in requests]),
        negative_prompt_embeds=torch.stack([encode_prompts(pipe, [""])[0] for _ in requests]),
        generator=[torch.Generator("cpu").manual_seed(r.seed) for r in requests],
        num_inference_steps=2,
        guidance_scale=3.0,
        height=32,
        width=32,
        output_type="np",
    )
    return (result.images * 255).round().astype(np.uint8), result.nsfw_content_detected


def test_an_image_is_the_same_in_any_place_of_any_batch_of_one_size(generator: Generator) -> None:
    full = generator.draw(REQUESTS)
    assert len({image.tobytes() for image in full.pixels}) == 4
    alone = generator.draw([REQUESTS[2]], batch_size=4)
    assert alone.pixels.shape == (1, 32, 32, 3)
    assert np.array_equal(alone.pixels[0], full.pixels[2])
    turned = generator.draw(REQUESTS[::-1])
    assert np.array_equal(turned.pixels[::-1], full.pixels)
    # Eight bits hide small differences; latents don't.
    latents = generator._latents(REQUESTS, [torch.Generator().manual_seed(r.seed) for r in REQUESTS])
    padded = [REQUESTS[2]] * 4
    assert torch.equal(generator._latents(padded, [torch.Generator().manual_seed(2) for _ in padded])[0], latents[2])


def test_an_embedding_is_the_same_in_any_place_of_any_batch_of_one_size(generator: Generator) -> None:
    pixels = generator.draw(REQUESTS).pixels
    classifier = Classifier(CLASSIFIER_PATH, CPU)
    full = classifier.images(pixels, batch_size=4)
    assert np.array_equal(classifier.images(pixels[2:3], batch_size=4)[0], full[2])
    assert np.array_equal(classifier.images(pixels[::-1], batch_size=4)[::-1], full)
    assert classifier.images(pixels[:0], batch_size=4).shape == (0, classifier.width)
    with pytest.raises(ValueError):
        classifier.images(pixels, batch_size=3)


def test_images_are_the_pipelines_own(pipe: Any) -> None:
    expected, _ = from_the_pipeline(pipe, REQUESTS)
    drawn = Generator(pipe, SAMPLER).draw(REQUESTS)
    assert names(drawn.statuses) == ["ok"] * 4
    assert np.array_equal(drawn.pixels, expected)


def test_a_batch_holds_one_request_at_least_and_no_more_than_its_size(generator: Generator) -> None:
    for requests in ([], REQUESTS):
        with pytest.raises(ValueError, match="batch"):
            generator.draw(requests, batch_size=3)


def small_checker() -> StableDiffusionSafetyChecker:
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**layers, "image_size": 32, "patch_size": 8, "projection_dim": 8, "initializer_range": 1.0}
    torch.manual_seed(0)
    checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=layers, vision_config=vision, projection_dim=8))
    checker.concept_embeds.data = torch.randn(17, 8)
    for thresholds in (checker.concept_embeds_weights, checker.special_care_embeds_weights):
        thresholds.data.fill_(2.0)  # above any cosine: flags nothing
    return checker


def test_what_the_safety_checker_flags_is_black(pipe: Any) -> None:
    pipe.safety_checker = checker = small_checker()
    size = {"height": 32, "width": 32}
    pipe.feature_extractor = CLIPImageProcessor(size=size, crop_size=size)
    unflagged = Generator(pipe, SAMPLER).draw(REQUESTS)
    assert names(unflagged.statuses) == ["ok"] * 4
    seen = pipe.feature_extractor(list(unflagged.pixels), return_tensors="pt").pixel_values
    embeds = checker.visual_projection(checker.vision_model(seen)[1])
    cosines = torch.nn.functional.cosine_similarity(embeds, checker.concept_embeds[0])
    checker.concept_embeds_weights.data[0] = cosines.detach().sort().values[1:3].mean()
    expected, flagged = from_the_pipeline(pipe, REQUESTS)
    assert flagged is not None
    assert sum(flagged) == 2
    drawn = Generator(pipe, SAMPLER).draw(REQUESTS)
    assert names(drawn.statuses) == ["black" if f else "ok" for f in flagged]
    assert np.array_equal(drawn.pixels, expected)
    assert not drawn.pixels[flagged].any()


def test_an_image_that_is_not_finite_is_set_aside_and_leaves_its_neighbours_alone(generator: Generator) -> None:
    good = generator.draw(REQUESTS)
    # Finite itself, but what it makes of an embedding overflows.
    overflowing = EditOperator(torch.eye(128, dtype=torch.float64) * 1e300)
    generator.add_operator(overflowing)
    poisoned = ImageRequest("A photo of a CEO", overflowing.digest, 1)
    drawn = generator.draw([REQUESTS[0], poisoned, *REQUESTS[2:]])
    assert names(drawn.statuses) == ["ok", "nan", "ok", "ok"]
    assert not drawn.pixels[1].any()
    assert np.array_equal(drawn.pixels[[0, 2, 3]], good.pixels[[0, 2, 3]])


class Decode:
    """The VAE's own decoding, that does something else with the image of one latent."""

    def __init__(self, vae: Any, bad: torch.Tensor, instead: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.decode, self.bad, self.instead = vae.decode, bad, instead
        self.calls = 0

    def __call__(self, z: torch.Tensor, **options: Any) -> tuple[torch.Tensor]:
        self.calls += 1
        image: torch.Tensor = self.decode(z, **options)[0]
        for i, latent in enumerate(z):
            if torch.equal(latent, self.bad):
                image[i] = self.instead(image[i])
        return (image,)


def decode_otherwise(generator: Generator, bad: int, instead: Callable[[torch.Tensor], torch.Tensor]) -> Decode:
    vae = generator._pipe.vae
    latents = generator._latents(REQUESTS, [torch.Generator().manual_seed(r.seed) for r in REQUESTS])
    vae.decode = decode = Decode(vae, latents[bad] / vae.config.scaling_factor, instead)
    return decode


def refuse(_: torch.Tensor) -> torch.Tensor:
    raise ValueError("these latents can't be decoded")


@pytest.mark.parametrize("bad", [0, 3])
def test_an_image_that_cannot_be_decoded_is_set_aside(generator: Generator, bad: int) -> None:
    good = generator.draw(REQUESTS)
    decode = decode_otherwise(generator, bad, refuse)
    drawn = generator.draw(REQUESTS)
    assert names(drawn.statuses) == ["undecodable" if i == bad else "ok" for i in range(4)]
    assert not drawn.pixels[bad].any()
    fine = [i for i in range(4) if i != bad]
    assert np.array_equal(drawn.pixels[fine], good.pixels[fine])
    assert decode.calls == 5  # all, two halves, and the bad one's half one by one
    alone = generator.draw([REQUESTS[bad]], batch_size=4)
    assert names(alone.statuses) == ["undecodable"]


def test_a_gpu_decodes_several_images_at_once_within_its_memory() -> None:
    cuda = torch.device("cuda")
    sd, xl = (SAMPLER.model_copy(update={"height": side, "width": side}) for side in (512, 1024))
    assert decoded_at_once(50, torch.float32, CPU, sd) == 50
    assert decoded_at_once(50, torch.bfloat16, cuda, sd) == 8
    assert decoded_at_once(3, torch.bfloat16, cuda, sd) == 3
    assert decoded_at_once(50, torch.float32, cuda, sd) == 4
    assert decoded_at_once(50, torch.bfloat16, cuda, xl) == 2
    assert decoded_at_once(50, torch.float32, cuda, xl) == 1


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_batch_may_be_decoded_in_parts(generator: Generator, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    whole = generator.draw(REQUESTS).pixels.astype(int)
    monkeypatch.setattr("jobs.images.generator.decoded_at_once", lambda *_: at_once)
    drawn = generator.draw(REQUESTS)
    assert names(drawn.statuses) == ["ok"] * 4
    assert abs(drawn.pixels.astype(int) - whole).max() <= 1
    # The last part is short and padded: an image's bits don't depend on where it stands.
    assert np.array_equal(drawn.pixels[::-1], generator.draw(REQUESTS[::-1]).pixels)
    decode = decode_otherwise(generator, 3, refuse)
    assert names(generator.draw(REQUESTS).statuses) == ["ok", "ok", "ok", "undecodable"]
    assert decode.calls == {1: 4, 3: 2}[at_once]


def test_pixels_that_are_not_finite_are_set_aside(generator: Generator) -> None:
    decode_otherwise(generator, 2, lambda image: image * torch.inf)
    drawn = generator.draw(REQUESTS)
    assert names(drawn.statuses) == ["ok", "ok", "nan", "ok"]
    assert not drawn.pixels[2].any()


def test_an_all_black_image_is_black(generator: Generator) -> None:
    decode_otherwise(generator, 1, lambda image: image * 0 - 1)
    assert names(generator.draw(REQUESTS).statuses) == ["ok", "black", "ok", "ok"]


def test_want_of_memory_is_no_fault_of_an_image(generator: Generator) -> None:
    # What the machine itself says: 2**50 floats are more than it can map.
    decode = decode_otherwise(generator, 1, lambda _: torch.empty(1 << 50))
    with pytest.raises(torch.OutOfMemoryError, match="allocate"):
        generator.draw(REQUESTS)
    assert decode.calls == 1


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name not in FLOW_SCHEDULERS])
def test_every_scheduler_draws_images_that_need_no_neighbours(name: str) -> None:
    sampler = SAMPLER.model_copy(update={"scheduler": name})
    generator = Generator(load_pipeline(PIPELINE_PATH, sampler, CPU, torch.float32), sampler)
    full = generator.draw(REQUESTS[:2])
    assert names(full.statuses) == ["ok"] * 2
    assert full.pixels.std() > 5
    assert np.array_equal(generator.draw(REQUESTS[1:2], batch_size=2).pixels[0], full.pixels[1])


def test_every_scheduler_that_may_be_configured_is_known() -> None:
    assert set(get_args(SamplerConfig.model_fields["scheduler"].annotation)) == set(SCHEDULERS)


def test_attention_is_scaled_dot_product(pipe: Any) -> None:
    processors = [*pipe.unet.attn_processors.values(), *pipe.vae.attn_processors.values()]
    assert processors
    assert all(type(processor) is AttnProcessor2_0 for processor in processors)


GIB = 1 << 30


@pytest.mark.parametrize(
    ("budget_gib", "shard_images", "expected"),
    [
        (1000, 50, 50),  # all that was tried fits: one shard
        (1000, 20, 60),  # three shards
        (1000, 100, 50),
        (50, 50, 25),  # 2 + n GiB: 48 fit
        (20, 50, 10),  # 18 fit
        (11, 50, 5),  # 9 fit
        (4.5, 50, 2),
        (1, 50, 1),  # none fits by the figures, and one was drawn
        (32, 53, 27),  # 30 fit; no divisor but 1, so two batches
    ],
)
def test_the_batch_that_fits_cuts_shards_evenly(budget_gib: float, shard_images: int, expected: int) -> None:
    peaks = {n: (2 + n) * GIB for n in (1, 2, 4, 8, 16, 32, 64) if n == 1 or 2 + n <= budget_gib}
    assert batch_that_fits(peaks, int(budget_gib * GIB), shard_images) == expected


def test_a_batch_is_never_larger_than_what_was_tried_allows() -> None:
    # Eight ran out of memory although the line through two and four says that sixty would fit.
    assert batch_that_fits({1: 2 * GIB, 2: 3 * GIB, 4: 5 * GIB}, 61 * GIB, 70) == 7


@pytest.mark.parametrize(("size", "shard_images", "expected"), [(32, 50, 50), (32, 20, 60), (64, 50, 10), (512, 50, 1)])
def test_on_a_cpu_the_pixels_decide(pipe: Any, size: int, shard_images: int, expected: int) -> None:
    sampler = SAMPLER.model_copy(update={"height": size, "width": size})
    assert auto_batch_size(pipe, sampler, CPU, shard_images) == expected
