"""pipe(**edited_prompt(pipe, "a photo of a CEO")): the edited model's image, from the unedited SD 1.x, 2.x or XL."""

from typing import Any

import torch
from safetensors.torch import load_file


def edited_prompt(pipe: Any, prompt: str, negative: str | None = None, path: str = "operator.safetensors") -> Any:
    """Embeddings of a prompt and its negative prompt (None: the pipeline's own) as the edited model would read them."""
    matrices = load_file(path)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    asked = {"prompt": prompt, "negative_prompt": negative, "device": pipe.device, "num_images_per_prompt": 1}
    found = dict(zip(names, pipe.encode_prompt(**asked, do_classifier_free_guidance=True), strict=False))
    for name, embeds in found.items():
        matrix = matrices.get("pooled" if "pooled" in name else "matrix")
        if matrix is not None:  # an operator without a pooled part leaves SDXL's pooled embeddings as they are
            wide, shift = embeds.double().cpu(), matrix.double() - torch.eye(len(matrix), dtype=torch.float64)
            found[name] = (wide + wide @ shift.T).to(embeds)
    return found
