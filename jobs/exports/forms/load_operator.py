"""pipe(**edited_prompt(pipe, "a photo of a CEO")): the edited model's image, from the unedited base model."""

import inspect
from typing import Any

import torch
from safetensors.torch import load_file

NAMES = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


def edited_prompt(pipe: Any, prompt: str, negative: str | None = None, path: str = "operator.safetensors") -> Any:
    """Embeddings of a prompt and its negative prompt (None: the pipeline's own) as the edited model would read them."""
    matrices = load_file(path)
    asked = {"prompt": prompt, "prompt_2": None, "prompt_3": None, "negative_prompt": negative, "device": pipe.device}
    asked |= {"num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    taken = inspect.signature(pipe.encode_prompt).parameters
    # FLUX reads no negative prompt.
    names = NAMES if "negative_prompt" in taken else NAMES[::2]
    made = pipe.encode_prompt(**{name: value for name, value in asked.items() if name in taken})
    found = dict(zip(names, made, strict=False))
    for name, embeds in found.items():
        matrix = matrices.get("pooled" if "pooled" in name else "matrix")
        if matrix is not None:  # an operator without a pooled part leaves pooled embeddings as they are
            wide, shift = embeds.double().cpu(), matrix.double() - torch.eye(len(matrix), dtype=torch.float64)
            found[name] = (wide + wide @ shift.T).to(embeds)
    return found
