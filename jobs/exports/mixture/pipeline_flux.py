"""FLUX.1 with a mixture of edits: each image's seed picks the edit that draws it.

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
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    T5EncoderModel,
    T5TokenizerFast,
)

from jobs.exports.mixture.pipeline import Routed

__all__ = ["MixturePipeline"]


class MixturePipeline(Routed, FluxPipeline):
    """A base model and K operators; an image's embeddings, pooled ones too, pass through those that its seed picks.

    Args:
        scheduler: as for `FluxPipeline`; so are the next eight.
        vae: .
        text_encoder: .
        tokenizer: .
        text_encoder_2: .
        tokenizer_2: .
        transformer: .
        image_encoder: .
        feature_extractor: .
        mixture: the mixture's folder, or its file; None: the folder that this file lies in.
        any_base: draw with another transformer than the one that was audited, as a fine-tuned one; nobody audited that.

    Attributes:
        labels: of the components, in the order of their weights.
        drawn_by: label of the component that drew each image of the last call.
    """

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        text_encoder_2: T5EncoderModel,
        tokenizer_2: T5TokenizerFast,
        transformer: FluxTransformer2DModel,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        mixture: str | None = None,
        any_base: bool = False,
    ) -> None:
        super().__init__(
            scheduler,
            vae,
            text_encoder,
            tokenizer,
            text_encoder_2,
            tokenizer_2,
            transformer,
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
        """Draw images. Arguments as of `FluxPipeline`, and two more.

        Embeddings that are given must be the base model's: they pass through the components here. A negative prompt is
        read with `true_cfg_scale` above 1 only; nobody audited that.

        Args:
            args: see there.
            seeds: of each image, to route by; None: as the generators say. Without generators they seed these too.
            route_prompts: of each image or one for all, by which professions with weights of their own are found; None:
                the prompts. Of use where embeddings are given.
            options: see there.

        Raises:
            ValueError: a generator that has been drawn from before, or not one seed for each image.
        """
        call = inspect.signature(FluxPipeline.__call__).bind(self, *args, **options)
        call.apply_defaults()
        asked = {name: value for name, value in call.arguments.items() if name != "self"}
        chosen = self._route(asked, seeds, route_prompts)
        sides = ["", "negative_"] if asked["true_cfg_scale"] > 1 and self._has_negative(asked) else [""]
        made: dict[str, Any] = dict.fromkeys(("negative_prompt_embeds", "negative_pooled_prompt_embeds"))
        for side in sides:
            names = (f"{side}prompt_embeds", f"{side}pooled_prompt_embeds")
            tokens, pooled, _ = self.encode_prompt(
                prompt=asked[f"{side}prompt"],
                prompt_2=asked[f"{side}prompt_2"],
                prompt_embeds=asked[names[0]],
                pooled_prompt_embeds=asked[names[1]],
                device=self._execution_device,
                num_images_per_prompt=asked["num_images_per_prompt"] or 1,
                max_sequence_length=asked["max_sequence_length"],
                lora_scale=(asked["joint_attention_kwargs"] or {}).get("scale"),
            )
            made[names[0]] = self._edited(tokens, chosen)
            made[names[1]] = self._edited(pooled, chosen, pooled=True)
        asked |= dict.fromkeys(("prompt", "prompt_2", "negative_prompt", "negative_prompt_2"))
        found = super().__call__(**{**asked, **made, "num_images_per_prompt": 1})
        self.drawn_by = [self.labels[k] for k in chosen]
        return found

    @staticmethod
    def _has_negative(asked: dict[str, Any]) -> bool:
        given = (asked["negative_prompt_embeds"], asked["negative_pooled_prompt_embeds"])
        return asked["negative_prompt"] is not None or all(each is not None for each in given)
