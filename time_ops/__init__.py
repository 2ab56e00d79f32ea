"""Closed-form TIME edits of text-to-image models: exact, in float64, as one matrix per edit.

    from diffusers import StableDiffusionPipeline
    from time_ops import PromptEdit, encode_edits, encode_preserved, solve

    pipe = StableDiffusionPipeline.from_pretrained("CompVis/stable-diffusion-v1-4")
    edits = [PromptEdit("a CEO", {"a female CEO": 0.5, "a male CEO": 0.5})]
    kept = encode_preserved(pipe, ["a female CEO", "a male CEO", ""])
    operator = solve(encode_edits(pipe, edits), lam=0.1, preserve=kept)
    operator.fold_into(pipe.unet)
    pipe("a photo of a CEO").images[0].save("ceo.png")
    operator.save("ceo.safetensors")

It needs torch, diffusers and transformers, and knows nothing of clusters or storage. Method and equation numbers:
"Editing Implicit Assumptions in Text-to-Image Diffusion Models" (TIME), arXiv 2303.08084.
"""

from time_ops.encoders import EncoderDigest, encoder_digest
from time_ops.encoding import (
    DEFAULT_AUGMENTATIONS,
    PromptEdit,
    PromptFault,
    TokenPairs,
    check_prompts,
    encode_edits,
    encode_preserved,
    encode_prompts,
)
from time_ops.errors import EditError, ModelError
from time_ops.operator import EditOperator, Fold
from time_ops.solve import Problem, Statistics, solve, solve_statistics

__all__ = [
    "DEFAULT_AUGMENTATIONS",
    "EditError",
    "EditOperator",
    "EncoderDigest",
    "Fold",
    "ModelError",
    "Problem",
    "PromptEdit",
    "PromptFault",
    "Statistics",
    "TokenPairs",
    "check_prompts",
    "encode_edits",
    "encode_preserved",
    "encode_prompts",
    "encoder_digest",
    "solve",
    "solve_statistics",
]
