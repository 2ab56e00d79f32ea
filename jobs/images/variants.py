"""What a model is drawn under: nothing, one operator, or the components of a mixture; and how images are shared out.

    base, edited = Variant.plain(), variant_of(mixture)
    edited.draws("A painting of a CEO", 50)           # 25 images of each component, by the route of their seeds

An audit draws what production would draw. A component draws those seeds that the route gives it, in order, as many as
its weight says: the sample is stratified, and its intervals, made for independent draws, are conservative.
"""

from __future__ import annotations

from dataclasses import dataclass

from jobs.images.shards import BASE
from time_ops.route import WeightTable, apportion, interval

__all__ = ["Draw", "Part", "Variant"]


@dataclass(frozen=True)
class Part:
    """One of the operators of a variant: the label of its component ("" where it is the only one), and its digest."""

    label: str
    operator: str


@dataclass(frozen=True)
class Draw:
    """The images of one prompt that one part draws.

    Attributes:
        part: index of the part.
        count: how many.
        route: [low, high) of the route's numbers that it draws; None: every seed.
        block: images of its whole shards, so that more images later only append shards.
    """

    part: int
    count: int
    route: tuple[float, float] | None
    block: int


@dataclass(frozen=True, eq=False)
class Variant:
    """What images are drawn under.

    Attributes:
        digest: `BASE`, or the digest of the operator or of the mixture.
        parts: the only operator, or the components in their order.
        table: weights of the components; None where there is one part.
    """

    digest: str
    parts: tuple[Part, ...]
    table: WeightTable | None = None

    @classmethod
    def plain(cls, operator: str = BASE) -> Variant:
        """The base model, or one operator by its digest."""
        return cls(operator, (Part("", operator),))

    @property
    def labels(self) -> tuple[str, ...]:
        """The components' labels; none where there is no mixture."""
        return tuple(part.label for part in self.parts) if self.table is not None else ()

    def draws(self, prompt: str, images: int, block: int) -> list[Draw]:
        """How the images of a prompt are shared out between the parts.

        Args:
            prompt: as rendered, by which weights are looked up.
            images: how many in all.
            block: images of one shard of a plain variant; a component's are its part of that.
        """
        if self.table is None:
            return [Draw(0, images, None, block)]
        weights = self.table.of(prompt)
        return [
            Draw(k, count, interval(weights, k), max(1, round(weights[k] * block)))
            for k, count in enumerate(apportion(weights, images, prompt))
            if count > 0
        ]
