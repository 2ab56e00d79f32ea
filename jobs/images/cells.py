"""What a run looks at: cells, each one prompt with a purpose, and the shards that they are cut into."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from jobs.config import RunConfig
from jobs.errors import ConfigError
from jobs.images.components import components_of
from jobs.images.recipe import Recipe
from jobs.images.shards import ShardSpec
from jobs.images.variants import Variant
from manifests.schema import Manifest
from time_ops.prompts import augment

__all__ = [
    "Cell",
    "audit_cells",
    "calibration_cells",
    "check_held_out",
    "cut_cell",
    "cut_parts",
    "iter_audit_cells",
    "shards_of",
]

UNEDITED_IMAGES = 8
"""Images of a profession that a component leaves alone: what it draws there is its own, and decides its weights."""

Kind = Literal["audit", "explicit", "control", "edit"]
Stream = Literal["audit", "calibration"]


@dataclass(frozen=True)
class Cell:
    """One prompt that images are made of.

    Attributes:
        kind: what for.
        subject: the profession's name, the control's prompt, or of a tested edit its source.
        wording: of an audit cell the template; of an explicit prompt or a control the prompt itself.
        prompt: as rendered.
        images: how many.
        label: the label that an explicit prompt names.
        stream: the family of its seeds.
        first: index of its first image.
    """

    kind: Kind
    subject: str
    wording: str
    prompt: str
    images: int
    label: str | None = None
    stream: Stream = "audit"
    first: int = 0


def audit_cells(manifest: Manifest, config: RunConfig) -> list[Cell]:
    """The cells of the audit: professions x wordings, explicit prompts, controls."""
    return list(iter_audit_cells(manifest, config))


def iter_audit_cells(manifest: Manifest, config: RunConfig) -> Iterator[Cell]:
    """The same, one after the other."""
    for profession in manifest.professions:
        for wording in config.wordings.audit:
            prompt = augment(wording, profession.source)
            yield Cell("audit", profession.name, wording, prompt, config.images_per_cell)
    for profession in manifest.professions:
        for destination in profession.destinations:
            # In an audit wording: the edit preserves these prompts in its own wordings, where holding proves little.
            prompt = augment(config.wordings.audit[0], destination.prompt)
            yield Cell("explicit", profession.name, prompt, prompt, config.explicit_images, destination.label)
    for prompt in config.controls:
        yield Cell("control", prompt, prompt, prompt, config.control_images)


def calibration_cells(
    manifest: Manifest, config: RunConfig, number: int, active: Sequence[bool] | None = None
) -> Iterator[Cell]:
    """The cells of one round of the calibration: professions x wordings with some explicit prompts, then controls.

    No two rounds share an image. Explicit prompts take turns through the wordings.

    Args:
        manifest: the run's.
        config: its configuration.
        number: of the round, from 1.
        active: for each profession, whether it takes part; None: all do.
    """
    search, wordings = config.calibration, config.wordings.calibration

    def cell(kind: Kind, subject: str, wording: str, prompt: str, images: int, label: str | None = None) -> Cell:
        return Cell(kind, subject, wording, prompt, images, label, "calibration", (number - 1) * images)

    for place, profession in enumerate(manifest.professions):
        if active is not None and not active[place]:
            continue
        for wording in wordings:
            yield cell("audit", profession.name, wording, augment(wording, profession.source), search.images)
        for destination in profession.destinations if search.explicit_images else ():
            prompt = augment(wordings[(number + place) % len(wordings)], destination.prompt)
            yield cell("explicit", profession.name, prompt, prompt, search.explicit_images, destination.label)
    for prompt in config.controls if search.control_images else ():
        yield cell("control", prompt, prompt, prompt, search.control_images)


def saturation_cells(
    manifest: Manifest, config: RunConfig, wordings: Sequence[str], number: int, component: str, edited: Sequence[bool]
) -> Iterator[Cell]:
    """The cells of one component in one round of the search for a mixture's strengths: images of one each.

    Professions and rounds take turns through the wordings, and through the explicit prompts of other labels. What is
    left alone in the component is the base model: the first round draws more of it, the later ones none.

    Args:
        manifest: the run's.
        config: its configuration.
        wordings: that the strengths are tried on.
        number: of the round, from 1.
        component: its label.
        edited: for each profession, whether the component edits it.
    """
    search = config.mixture
    each = search.images_of(len(components_of(manifest, list(config.attribute))))

    def cell(
        kind: Kind, subject: str, wording: str, prompt: str, j: int, images: int, label: str | None = None
    ) -> Cell:
        # Enough room for each round's own: no two rounds share an image.
        return Cell(kind, subject, wording, prompt, images, label, "calibration", (number - 1) * 1000 + j)

    for place, (profession, is_edited) in enumerate(zip(manifest.professions, edited, strict=True)):
        images = each if is_edited else (UNEDITED_IMAGES if number == 1 else 0)
        for j in range(images):
            wording = wordings[(place + (number - 1) * each + j) % len(wordings)]
            yield cell("audit", profession.name, wording, augment(wording, profession.source), j // len(wordings), 1)
        others = [d for d in profession.destinations if d.label != component]
        for j in range(search.explicit_images if is_edited and others else 0):
            turn = place + (number - 1) * search.explicit_images + j
            destination, wording = others[turn % len(others)], wordings[turn // len(others) % len(wordings)]
            prompt = augment(wording, destination.prompt)
            yield cell("explicit", profession.name, prompt, prompt, j // len(wordings), 1, destination.label)
    for prompt in config.controls if search.control_images and any(edited) else ():
        yield cell("control", prompt, prompt, prompt, 0, search.control_images)


def check_held_out(manifest: Manifest, config: RunConfig) -> None:
    """Refuse audit prompts that the edit or the calibration has seen, once rendered.

    Raises:
        ConfigError: naming every such prompt.
    """
    audited = {c.prompt.casefold(): c.prompt for c in iter_audit_cells(manifest, config) if c.kind != "control"}
    used: set[str] = set()
    # One at a time: of 5,000 professions in 41 wordings they would take more memory than all else that a plan holds.
    for wording in dict.fromkeys((*config.wordings.edit, *config.wordings.calibration)):
        for profession in manifest.professions:
            prompts = (profession.source, *(destination.prompt for destination in profession.destinations))
            used.update(audited.keys() & {augment(wording, prompt).casefold() for prompt in prompts})
    overlap = [prompt for folded, prompt in audited.items() if folded in used]
    if overlap:
        raise ConfigError(
            "these audit prompts are also used by the edit or the calibration, so they prove nothing; "
            "change the wordings:\n" + "\n".join(f"  {prompt!r}" for prompt in overlap)
        )


def cut_cell(cell: Cell, recipe: Recipe, operator: str, config: RunConfig, *, pictures: bool = True) -> list[ShardSpec]:
    """The shards of one cell under one operator, or the base; see `cut_parts`."""
    return cut_parts(cell, recipe, Variant.plain(operator), config, pictures=pictures)[0]


def cut_parts(
    cell: Cell, recipe: Recipe, variant: Variant, config: RunConfig, *, pictures: bool = True
) -> list[list[ShardSpec]]:
    """The shards of one cell, for each part of the variant that draws any of it, in the parts' order.

    They are blocks of `shard_images`, or of a component's part of that, and a last one of what is left: more images
    only append blocks, and make at most the last one of each part again.

    Raises:
        ValueError: a mixture's images can't begin anywhere but at the first.
    """
    draws = variant.draws(cell.prompt, cell.images, config.shard_images)
    if variant.table is not None and cell.first:
        raise ValueError(f"cell of {cell.prompt!r} begins at image {cell.first}, a mixture's cells at the first")
    cut = []
    for draw in draws:
        shards, end = [], cell.first + draw.count
        for first in range(cell.first, end, draw.block):
            count = min(draw.block, end - first)
            kept = config.pictures.of_shard(first, count) if pictures else 0
            operator = variant.parts[draw.part].operator
            shards.append(
                ShardSpec(
                    recipe,
                    operator,
                    cell.stream,
                    cell.prompt,
                    first,
                    count,
                    kept,
                    picture_format=config.pictures.format,
                    route=draw.route,
                )
            )
        cut.append(shards)
    return cut


def shards_of(
    cells: Iterable[Cell], recipe: Recipe, variant: Variant, config: RunConfig, *, pictures: bool = True
) -> Iterator[ShardSpec]:
    """All shards of all cells, each once, one at a time: equal prompts of two cells are one shard."""
    # 64 bits of each: among two million shards two are alike once in ten million runs, and the tally then says so.
    seen: set[int] = set()
    for cell in cells:
        for spec in chain.from_iterable(cut_parts(cell, recipe, variant, config, pictures=pictures)):
            place = hash((spec.operator, spec.route, spec.stream, spec.prompt, spec.first, spec.count))
            if place not in seen:
                seen.add(place)
                yield spec
