"""Which component of a mixture draws an image: a pure function of the image's seed. Plain Python, no torch.

    component = route(seed, weights)                    # one generator for each image, as audits draw
    component = route(seed, weights, place=3)           # the fourth image of a batch drawn from one generator

Planning, workers, exports and users' pipelines share it, so production draws what the audit drew. The test vectors in
`ROUTE_VECTORS` are published with every mixture: an implementation that gives them is this one.

Version 1. With the seed and the place as unsigned 64-bit little-endian integers,

    h = BLAKE2b(seed || place, 8 bytes, no key), read as a big-endian integer
    u = floor(h / 2^11) / 2^53                          # in [0, 1), exact in float64

and the component is the first k with u < w_1 + ... + w_k, summed in float64 from the left; where rounding leaves u
beyond the last sum, the last component whose weight is not 0.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, pairwise

from time_ops.errors import EditError

__all__ = [
    "ROUTE_VECTORS",
    "ROUTE_VERSION",
    "UNEDITED",
    "WeightTable",
    "apportion",
    "checked_weights",
    "interval",
    "prompt_words",
    "route",
    "routed",
    "source_words",
    "unit",
]

ROUTE_VERSION = 1
"""Raised whenever another component would draw the same seed."""

ROUTE_VECTORS: tuple[tuple[int, int, float], ...] = (
    (0, 0, 0.321543039748194),
    (1, 0, 0.7654693489480737),
    (42, 0, 0.5108439214811381),
    (42, 1, 0.611181670265576),
    (2**63 - 1, 0, 0.030777019433963826),
    (2**64 - 1, 7, 0.9113033137069142),
)
"""(seed, place, u) of version 1."""

UNEDITED = "unedited"
"""The component that leaves the model as it is: what a mixture has beside its only label."""

Weights = tuple[float, ...]

_ARTICLES = frozenset({"a", "an", "the"})
# By how much weights may miss 1: they are written by people, in files too.
_TOLERANCE = 1e-6


def unit(seed: int, place: int = 0) -> float:
    """The image's number u in [0, 1).

    Args:
        seed: what its generator was seeded with; negative ones count as torch takes them, modulo 2^64.
        place: of the image among those drawn from this generator in one call; 0 where each has its own.
    """
    told = (seed % 2**64).to_bytes(8, "little") + place.to_bytes(8, "little")
    return (int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "big") >> 11) * 2.0**-53


def interval(weights: Sequence[float], component: int) -> tuple[float, float]:
    """[low, high) of the numbers that a component draws; empty where its weight is 0."""
    last = max((k for k, w in enumerate(weights) if w > 0), default=0)
    ends = [*accumulate(weights, initial=0.0)]
    ends[last + 1 :] = [1.0] * (len(ends) - last - 1)
    return ends[component], ends[component + 1]


def route(seed: int, weights: Sequence[float], place: int = 0) -> int:
    """The component that draws an image.

    Args:
        seed: as for `unit`.
        weights: of the components, none negative, sum 1.
        place: as for `unit`.
    """
    u = unit(seed, place)
    return next(k for k in range(len(weights)) if u < interval(weights, k)[1] and weights[k] > 0)


def routed(seeds: Iterator[int], low: float, high: float) -> Iterator[int]:
    """Places, from 0, of those seeds that [low, high) draws, in order."""
    return (i for i, seed in enumerate(seeds) if low <= unit(seed) < high)


def apportion(weights: Sequence[float], n: int, prompt: str = "") -> list[int]:
    """How many of n images of a prompt each component draws in an audit: w_k n, rounded so that they sum to n.

    Fixed numbers make the sample stratified: a share's standard error is at most that of n independent draws. Which way
    a prompt's numbers are rounded follows from its text, evenly over prompts: rounded alike, all cells would miss the
    weights in the same direction.
    """
    told = hashlib.blake2b(prompt.encode(), digest_size=8).digest()
    start = unit(int.from_bytes(told, "big"))
    # Sums of weights a hair below a whole number are that number.
    ends = [math.floor(round(n * end, 6) + start) for end in accumulate(weights, initial=0.0)]
    ends[-1] = n
    return [high - low for low, high in pairwise(ends)]


def checked_weights(weights: Sequence[float], components: int, of: str) -> Weights:
    """Weights as floats, once they are known to be usable.

    Raises:
        EditError: not one for each component, not finite, negative, or their sum is not 1; `of` names whose they are.
    """
    values = tuple(float(w) for w in weights)
    if len(values) != components:
        raise EditError(f"{of}: {len(values)} weights for {components} components; give one for each")
    if not all(math.isfinite(w) and w >= 0 for w in values) or abs(math.fsum(values) - 1) > _TOLERANCE:
        raise EditError(f"{of}: weights must be finite, not negative and sum to 1, not {list(values)}")
    return values


def prompt_words(text: str) -> tuple[str, ...]:
    """The words by which a prompt is looked up: folded, without punctuation."""
    return tuple(re.findall(r"\w+", text.casefold()))


class WeightTable:
    """Weights by profession, looked up by its source's words in a prompt; the longest that a prompt names counts.

    Of several equally long ones the first in the prompt. An article in front of the source ("a CEO") is no part of it.

    Args:
        default: of prompts that name no profession of the table.
        professions: weights by source prompt.

    Raises:
        EditError: weights that are none, or two sources of the same words; all are named.
    """

    def __init__(self, default: Sequence[float], professions: Mapping[str, Sequence[float]] | None = None) -> None:
        self.default = checked_weights(default, len(default), "default")
        faults: list[str] = []
        self.professions: dict[str, Weights] = {}
        self._by_words: dict[tuple[str, ...], Weights] = {}
        for source, weights in (professions or {}).items():
            words = source_words(source)
            try:
                found = checked_weights(weights, len(self.default), repr(source))
            except EditError as error:
                faults.append(str(error))
                continue
            if not words:
                faults.append(f"{source!r} has no word to be found by")
            elif self._by_words.get(words, found) != found:
                faults.append(f"{source!r} has the words of another source, and other weights")
            self.professions[source] = found
            self._by_words[words] = found
        if faults:
            raise EditError.listing("these weights must be mended:", faults)

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._by_words), default=0)

    def of(self, prompt: str) -> Weights:
        """The weights of a prompt's images."""
        words = prompt_words(prompt)
        for length in range(min(self._longest, len(words)), 0, -1):
            for start in range(len(words) - length + 1):
                found = self._by_words.get(words[start : start + length])
                if found is not None:
                    return found
        return self.default


def source_words(source: str) -> tuple[str, ...]:
    """The words of a source prompt by which it is found, without the article in front."""
    words = prompt_words(source)
    return words[1:] if len(words) > 1 and words[0] in _ARTICLES else words
