"""The demo model: a tiny, really trained, really biased Stable Diffusion pipeline and a zero-shot CLIP classifier.

Importing this package costs no torch: it gives paths and the words the model knows. See README.md beside this file.
"""

from pathlib import Path

from infra.demo.captions import CONTROLS, HELD_OUT_WORDINGS, PROFESSIONS, WORDINGS, Profession

__all__ = [
    "CLASSIFIER_PATH",
    "CONTROLS",
    "HELD_OUT_WORDINGS",
    "PIPELINE_PATH",
    "PROFESSIONS",
    "WEIGHTS_PATH",
    "WORDINGS",
    "Profession",
]

WEIGHTS_PATH = Path(__file__).parent / "weights"
"""The folder of the committed weights."""
PIPELINE_PATH = WEIGHTS_PATH / "pipeline"
"""The `StableDiffusionPipeline` folder."""
CLASSIFIER_PATH = WEIGHTS_PATH / "classifier"
"""The `CLIPModel` folder, with its processor."""
