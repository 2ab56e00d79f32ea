"""The mixture's image, from the unedited base model: its label from route.py, its embeddings from here.

label = component_of(seed, prompt)
pipe(**edited_prompt(pipe, prompt, label), generator=torch.Generator().manual_seed(seed))
"""

import inspect
import json
from typing import Any

from safetensors import safe_open

NAMES = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


def edited_prompt(
    pipe: Any, prompt: str, label: str, negative: str | None = None, path: str = "mixture.safetensors"
) -> Any:
    """Embeddings of a prompt and its negative prompt as one component reads them; by itself it is no debiased model."""
    with safe_open(path, framework="pt") as file:
        labels = [component["label"] for component in json.loads(file.metadata()["evenhand"])["components"]]
        shifts = {name: file.get_tensor(name)[labels.index(label)].double() for name in file.keys()}  # noqa: SIM118
    asked = {"prompt": prompt, "prompt_2": None, "prompt_3": None, "negative_prompt": negative, "device": pipe.device}
    asked |= {"num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    taken = inspect.signature(pipe.encode_prompt).parameters
    # FLUX reads no negative prompt.
    names = NAMES if "negative_prompt" in taken else NAMES[::2]
    made = pipe.encode_prompt(**{name: value for name, value in asked.items() if name in taken})
    found = dict(zip(names, made, strict=False))
    for shift in shifts.values():
        shift.diagonal().sub_(1)
    for name, embeds in found.items():
        shift = shifts.get("pooled" if "pooled" in name else "operators")
        if shift is not None:
            wide = embeds.double().cpu()
            found[name] = (wide + wide @ shift.T).to(embeds)
    return found
