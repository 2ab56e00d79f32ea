"""Stable Diffusion XL with a mixture of edits: each image's seed picks the edit that draws it.

    from pipeline import MixturePipeline                       # with the mixture's folder in sys.path
    pipe = MixturePipeline.from_pretrained(BASE, mixture=FOLDER)
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    pipe(["a photo of a CEO"] * 4, generator=generators).images; pipe.drawn_by

BASE is the model that the mixture was made for, unedited. One component of a mixture is no debiased model: what was
audited is the whole, with this route. It needs torch, safetensors, diffusers and transformers only.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from jobs.exports.mixture.pipeline import Routed

__all__ = ["MixturePipeline"]


class MixturePipeline(Routed, StableDiffusionXLPipeline):
    """A base model and K operators; an image's embeddings, pooled ones too, pass through those that its seed picks.

    Args:
        vae: as for `StableDiffusionXLPipeline`; so are the next ten.
        text_encoder: .
        text_encoder_2: .
        tokenizer: .
        tokenizer_2: .
        unet: .
        scheduler: .
        image_encoder: .
        feature_extractor: .
        force_zeros_for_empty_prompt: .
        add_watermarker: .
        mixture: the mixture's folder, or its file; None: the folder that this file lies in.
        any_base: draw with another UNet than the one that was audited, as a fine-tuned one; nobody audited that.

    Attributes:
        labels: of the components, in the order of their weights.
        drawn_by: label of the component that drew each image of the last call.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        tokenizer_2: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
        mixture: str | None = None,
        any_base: bool = False,
    ) -> None:
        super().__init__(
            vae,
            text_encoder,
            text_encoder_2,
            tokenizer,
            tokenizer_2,
            unet,
            scheduler,
            image_encoder,
            feature_extractor,
            force_zeros_for_empty_prompt,
            add_watermarker,
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
        """Draw images. Arguments as of `StableDiffusionXLPipeline`, and two more.

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
        call = inspect.signature(StableDiffusionXLPipeline.__call__).bind(self, *args, **options)
        call.apply_defaults()
        asked = {name: value for name, value in call.arguments.items() if name not in ("self", "kwargs")}
        chosen = self._route(asked, seeds, route_prompts)
        guided = asked["guidance_scale"] > 1 and self.unet.config.time_cond_proj_dim is None
        given = ("negative_prompt_embeds", "negative_pooled_prompt_embeds")
        tokens, negative, pooled, negative_pooled = self.encode_prompt(
            asked["prompt"],
            asked["prompt_2"],
            self._execution_device,
            asked["num_images_per_prompt"] or 1,
            guided,
            asked["negative_prompt"],
            asked["negative_prompt_2"],
            prompt_embeds=asked["prompt_embeds"],
            pooled_prompt_embeds=asked["pooled_prompt_embeds"],
            lora_scale=(asked["cross_attention_kwargs"] or {}).get("scale"),
            clip_skip=asked["clip_skip"],
            **{name: asked[name] if guided else None for name in given},
        )
        asked |= dict.fromkeys(("prompt", "prompt_2", "negative_prompt", "negative_prompt_2"))
        asked |= {
            "num_images_per_prompt": 1,
            "prompt_embeds": self._edited(tokens, chosen),
            "negative_prompt_embeds": self._edited(negative, chosen),
            "pooled_prompt_embeds": self._edited(pooled, chosen, pooled=True),
            "negative_pooled_prompt_embeds": self._edited(negative_pooled, chosen, pooled=True),
        }
        found = super().__call__(**asked, **call.arguments.get("kwargs", {}))
        self.drawn_by = [self.labels[k] for k in chosen]
        return found
