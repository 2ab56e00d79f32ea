"""The mixture's image, from the unedited SD 1.x, 2.x or XL: its label from route.py, its embeddings from here.

label = component_of(seed, prompt)
pipe(**edited_prompt(pipe, prompt, label), generator=torch.Generator().manual_seed(seed))
"""

import json
from typing import Any

from safetensors import safe_open


def edited_prompt(
    pipe: Any, prompt: str, label: str, negative: str | None = None, path: str = "mixture.safetensors"
) -> Any:
    """Embeddings of a prompt and its negative prompt as one component reads them; by itself it is no debiased model."""
    with safe_open(path, framework="pt") as file:
        labels = [component["label"] for component in json.loads(file.metadata()["evenhand"])["components"]]
        shifts = {name: file.get_tensor(name)[labels.index(label)].double() for name in file.keys()}  # noqa: SIM118
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    asked = {"prompt": prompt, "negative_prompt": negative, "device": pipe.device, "num_images_per_prompt": 1}
    found = dict(zip(names, pipe.encode_prompt(**asked, do_classifier_free_guidance=True), strict=False))
    for shift in shifts.values():
        shift.diagonal().sub_(1)
    for name, embeds in found.items():
        shift = shifts.get("pooled" if "pooled" in name else "operators")
        if shift is not None:
            wide = embeds.double().cpu()
            found[name] = (wide + wide @ shift.T).to(embeds)
    return found
