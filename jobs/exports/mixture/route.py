"""Which component of a mixture draws an image, by mixture.json beside this file. Plain Python.

    component_of(7, "a photo of a CEO")                # its label; one generator for each image
    component_of(7, "a photo of a CEO", place=3)       # the fourth image of a batch drawn from one generator

Version 1. With the seed and the place as unsigned 64-bit little-endian integers, BLAKE2b of 8 bytes, read as a
big-endian integer, without its lowest 11 bits, over 2^53 is the image's number u. The component is the first whose
weight, added to those before it from the left, exceeds u.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["ROUTE_VERSION", "component_of", "pick", "prompt_words", "unit", "weights_of"]

ROUTE_VERSION = 1


def unit(seed: int, place: int = 0) -> float:
    """The number in [0, 1) of an image, by its generator's seed and its place among the images drawn from that."""
    told = (seed % 2**64).to_bytes(8, "little") + place.to_bytes(8, "little")
    return (int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "big") >> 11) * 2.0**-53


def pick(u: float, weights: Sequence[float]) -> int:
    """Index of the component that draws number u; a weight of 0 draws nothing."""
    last = max(k for k, weight in enumerate(weights) if weight > 0)
    total = 0.0
    for k, weight in enumerate(weights):
        total += weight
        if weight > 0 and (u < total or k == last):
            return k
    return last


def prompt_words(text: str) -> tuple[str, ...]:
    """The words by which a prompt is looked up."""
    return tuple(re.findall(r"\w+", text.casefold()))


def weights_of(prompt: str, default: Sequence[float], professions: Mapping[str, Sequence[float]]) -> Sequence[float]:
    """The weights of the longest source that a prompt names, of several the first; of none, the default."""
    table = {}
    for source, weights in professions.items():
        words = prompt_words(source)
        table[words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words] = weights
    said = prompt_words(prompt)
    for length in range(min(max(map(len, table), default=0), len(said)), 0, -1):
        for start in range(len(said) - length + 1):
            if said[start : start + length] in table:
                return table[said[start : start + length]]
    return default


def component_of(seed: int, prompt: str = "", place: int = 0, folder: str | Path = Path(__file__).parent) -> str:
    """Label of the component that draws an image.

    Args:
        seed: of the image's generator.
        prompt: the image's, by which a profession with weights of its own is found.
        place: among the images drawn from that generator in one call; 0 where each has its own.
        folder: where mixture.json lies.

    Raises:
        ValueError: the mixture is routed by another version, or the file is none of a mixture.
    """
    file = Path(folder) / "mixture.json"
    try:
        mixture = json.loads(file.read_text(encoding="utf-8"))
        version = mixture["route"]["version"]
        if version == ROUTE_VERSION:
            labels = [component["label"] for component in mixture["components"]]
            default = [mixture["weights"][label] for label in labels]
            professions = {source: [own[label] for label in labels] for source, own in mixture["professions"].items()}
            return str(labels[pick(unit(seed, place), weights_of(prompt, default, professions))])
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: fetch it again, and compare it with SHA256SUMS") from error
    raise ValueError(f"this mixture is routed by version {version}, not {ROUTE_VERSION}")
