"""The mixture's image, from the unedited SD 1.x or 2.x: its label from route.py, its embeddings from here.

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
        shift = file.get_tensor("operators")[labels.index(label)].double()
    shift.diagonal().sub_(1)
    asked = {"prompt": prompt, "negative_prompt": negative, "device": pipe.device, "num_images_per_prompt": 1}
    found = pipe.encode_prompt(**asked, do_classifier_free_guidance=True)
    wide = [embeds.double().cpu() for embeds in found]
    edited = [(w + w @ shift.T).to(embeds) for w, embeds in zip(wide, found, strict=True)]
    return dict(zip(("prompt_embeds", "negative_prompt_embeds"), edited, strict=True))
