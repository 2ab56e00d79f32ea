"""Stable Diffusion 3 and 3.5 with a mixture of edits: each image's seed picks the edit that draws it.

    from pipeline import MixturePipeline                       # with the mixture's folder in sys.path
    pipe = MixturePipeline.from_pretrained(BASE, mixture=FOLDER)
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    pipe(["a photo of a CEO"] * 4, generator=generators).images; pipe.drawn_by

BASE is the model that the mixture was made for, unedited. One component of a mixture is no debiased model: what was
audited is the whole, with this route. It needs torch, safetensors, diffusers and transformers only.
"""

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    SiglipImageProcessor,
    SiglipVisionModel,
    T5EncoderModel,
    T5TokenizerFast,
)

from jobs.exports.mixture.pipeline import Routed

__all__ = ["MixturePipeline"]


class MixturePipeline(Routed, StableDiffusion3Pipeline):
    """A base model and K operators; an image's embeddings, pooled ones too, pass through those that its seed picks.

    Args:
        transformer: as for `StableDiffusion3Pipeline`; so are the next ten.
        scheduler: .
        vae: .
        text_encoder: .
        tokenizer: .
        text_encoder_2: .
        tokenizer_2: .
        text_encoder_3: .
        tokenizer_3: .
        image_encoder: .
        feature_extractor: .
        mixture: the mixture's folder, or its file; None: the folder that this file lies in.
        any_base: draw with another transformer than the one that was audited, as a fine-tuned one; nobody audited that.

    Attributes:
        labels: of the components, in the order of their weights.
        drawn_by: label of the component that drew each image of the last call.
    """

    # A model that was saved without T5 loads without being told.
    _optional_components: ClassVar[list[str]] = [
        *StableDiffusion3Pipeline._optional_components,
        "text_encoder_3",
        "tokenizer_3",
    ]

    def __init__(
        self,
        transformer: SD3Transformer2DModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        text_encoder_2: CLIPTextModelWithProjection,
        tokenizer_2: CLIPTokenizer,
        text_encoder_3: T5EncoderModel | None = None,
        tokenizer_3: T5TokenizerFast | None = None,
        image_encoder: SiglipVisionModel | None = None,
        feature_extractor: SiglipImageProcessor | None = None,
        mixture: str | None = None,
        any_base: bool = False,
    ) -> None:
        super().__init__(
            transformer,
            scheduler,
            vae,
            text_encoder,
            tokenizer,
            text_encoder_2,
            tokenizer_2,
            text_encoder_3,
            tokenizer_3,
            image_encoder,
            feature_extractor,
        )
        self.take(mixture, any_base)

    @torch.no_grad()
    def __call__(
        self,
        *args: Any,
        seeds: Sequence[int] | None = None,
        route_prompts: Sequence[str] | str | None = None,
        **options: Any,
    ) -> Any:
        """Draw images. Arguments as of `StableDiffusion3Pipeline`, and two more.

        Embeddings that are given must be the base model's: they pass through the components here.

        Args:
            args: see there.
            seeds: of each image, to route by; None: as the generators say. Without generators they seed these too.
            route_prompts: of each image or one for all, by which professions with weights of their own are found; None:
                the prompts. Of use where embeddings are given.
            options: see there.

        Raises:
            ValueError: a generator that has been drawn from before, or not one seed for each image.
        """
        call = inspect.signature(StableDiffusion3Pipeline.__call__).bind(self, *args, **options)
        call.apply_defaults()
        asked = {name: value for name, value in call.arguments.items() if name != "self"}
        chosen = self._route(asked, seeds, route_prompts)
        guided = asked["guidance_scale"] > 1
        texts = ("prompt", "prompt_2", "prompt_3", "negative_prompt", "negative_prompt_2", "negative_prompt_3")
        given = ("prompt_embeds", "pooled_prompt_embeds")
        negatives = ("negative_prompt_embeds", "negative_pooled_prompt_embeds")
        tokens, negative, pooled, negative_pooled = self.encode_prompt(
            **{name: asked[name] for name in (*texts, *given, "clip_skip", "max_sequence_length")},
            **{name: asked[name] if guided else None for name in negatives},
            device=self._execution_device,
            num_images_per_prompt=asked["num_images_per_prompt"] or 1,
            do_classifier_free_guidance=guided,
            lora_scale=(asked["joint_attention_kwargs"] or {}).get("scale"),
        )
        asked |= dict.fromkeys(texts)
        asked |= {
            "num_images_per_prompt": 1,
            "prompt_embeds": self._edited(tokens, chosen),
            "negative_prompt_embeds": self._edited(negative, chosen) if guided else None,
            "pooled_prompt_embeds": self._edited(pooled, chosen, pooled=True),
            "negative_pooled_prompt_embeds": self._edited(negative_pooled, chosen, pooled=True) if guided else None,
        }
        found = super().__call__(**asked)
        self.drawn_by = [self.labels[k] for k in chosen]
        return found
