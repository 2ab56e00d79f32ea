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

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from time_ops.edit_statistics import Statistics, solve_statistics
    from time_ops.editing import edit_model, restore_model
    from time_ops.encoders import EncoderDigest, encoder_digest
    from time_ops.encoding import TokenPairs, encode_edits, encode_preserved, encode_prompts, encode_texts
    from time_ops.errors import EditError, ModelError
    from time_ops.families import TextEmbeddings
    from time_ops.folding import Fold
    from time_ops.mixture import Component, Mixture
    from time_ops.mixture_solver import solve_mixture
    from time_ops.operator import EditOperator
    from time_ops.prompts import DEFAULT_AUGMENTATIONS, PromptEdit, PromptFault, check_prompts
    from time_ops.solver import Problem, solve

__all__ = [
    "DEFAULT_AUGMENTATIONS",
    "Component",
    "EditError",
    "EditOperator",
    "EncoderDigest",
    "Fold",
    "Mixture",
    "ModelError",
    "Problem",
    "PromptEdit",
    "PromptFault",
    "Statistics",
    "TextEmbeddings",
    "TokenPairs",
    "check_prompts",
    "edit_model",
    "encode_edits",
    "encode_preserved",
    "encode_prompts",
    "encode_texts",
    "encoder_digest",
    "restore_model",
    "solve",
    "solve_mixture",
    "solve_statistics",
]

# What needs torch is imported when it is first asked for: `time_ops.prompts` and `time_ops.errors` serve without it.
_HOMES = {
    "editing": ("edit_model", "restore_model"),
    "encoders": ("EncoderDigest", "encoder_digest"),
    "encoding": ("TokenPairs", "encode_edits", "encode_preserved", "encode_prompts", "encode_texts"),
    "errors": ("EditError", "ModelError"),
    "families": ("TextEmbeddings",),
    "folding": ("Fold",),
    "mixture": ("Component", "Mixture"),
    "mixture_solver": ("solve_mixture",),
    "operator": ("EditOperator",),
    "prompts": ("DEFAULT_AUGMENTATIONS", "PromptEdit", "PromptFault", "check_prompts"),
    "solver": ("Problem", "solve"),
    "edit_statistics": ("Statistics", "solve_statistics"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
