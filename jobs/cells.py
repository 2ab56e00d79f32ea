"""What a run looks at: cells, each one prompt with a purpose, and the shards that they are cut into."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from jobs.config import RunConfig
from jobs.errors import ConfigError
from jobs.shards import Recipe, ShardSpec
from manifests.schema import Manifest
from time_ops.prompts import augment

__all__ = ["Cell", "audit_cells", "calibration_cells", "check_held_out", "cut_cell", "iter_audit_cells", "shards_of"]

Kind = Literal["audit", "calibration", "explicit", "control"]


@dataclass(frozen=True)
class Cell:
    """One prompt that images are made of.

    Attributes:
        kind: what for.
        subject: the profession's name, or the control's prompt.
        wording: the template; for explicit prompts and controls the prompt itself.
        prompt: as rendered.
        images: how many.
        label: the label that an explicit prompt names.
    """

    kind: Kind
    subject: str
    wording: str
    prompt: str
    images: int
    label: str | None = None

    @property
    def stream(self) -> str:
        """The family of its seeds."""
        return "calibration" if self.kind == "calibration" else "audit"


def audit_cells(manifest: Manifest, config: RunConfig) -> list[Cell]:
    """The cells of the audit: professions x wordings, explicit prompts, controls."""
    return list(iter_audit_cells(manifest, config))


def iter_audit_cells(manifest: Manifest, config: RunConfig) -> Iterator[Cell]:
    """The same, one after the other."""
    yield from _profession_cells(manifest, config.wordings.audit, "audit", config.images_per_cell)
    for profession in manifest.professions:
        for destination in profession.destinations:
            # In an audit wording: the edit preserves these prompts in its own wordings, where holding proves little.
            prompt = augment(config.wordings.audit[0], destination.prompt)
            yield Cell("explicit", profession.name, prompt, prompt, config.explicit_images, destination.label)
    for prompt in config.controls:
        yield Cell("control", prompt, prompt, prompt, config.control_images)


def calibration_cells(manifest: Manifest, config: RunConfig) -> list[Cell]:
    """The cells on which candidate strengths are tried."""
    images = config.strength.images_per_cell
    return list(_profession_cells(manifest, config.wordings.calibration, "calibration", images))


def _profession_cells(manifest: Manifest, wordings: Sequence[str], kind: Kind, images: int) -> Iterator[Cell]:
    for profession in manifest.professions:
        for wording in wordings:
            yield Cell(kind, profession.name, wording, augment(wording, profession.source), images)


def check_held_out(manifest: Manifest, config: RunConfig) -> None:
    """Refuse audit prompts that the edit or the calibration has seen, once rendered.

    Raises:
        ConfigError: naming every such prompt.
    """
    seen = {
        augment(wording, profession.source).casefold()
        for wording in (*config.wordings.edit, *config.wordings.calibration)
        for profession in manifest.professions
    }
    seen |= {
        augment(wording, destination.prompt).casefold()
        for wording in config.wordings.edit
        for profession in manifest.professions
        for destination in profession.destinations
    }
    audited = (c.prompt for c in iter_audit_cells(manifest, config) if c.kind != "control")
    overlap = [prompt for prompt in audited if prompt.casefold() in seen]
    if overlap:
        raise ConfigError(
            "these audit prompts are also used by the edit or the calibration, so they prove nothing; "
            "change the wordings:\n" + "\n".join(f"  {prompt!r}" for prompt in overlap)
        )


def cut_cell(cell: Cell, recipe: Recipe, operator: str, config: RunConfig, *, pictures: bool = True) -> list[ShardSpec]:
    """The shards of one cell: fixed blocks of `shard_images`, so that more images only append blocks."""
    block = config.shard_images
    shards = []
    for first in range(0, cell.images, block):
        count = min(block, cell.images - first)
        kept = config.pictures.of_shard(first, count) if pictures else 0
        shards.append(
            ShardSpec(
                recipe, operator, cell.stream, cell.prompt, first, count, kept, picture_format=config.pictures.format
            )
        )
    return shards


def shards_of(
    cells: Iterable[Cell], recipe: Recipe, operator: str, config: RunConfig, *, pictures: bool = True
) -> Iterator[ShardSpec]:
    """All shards of all cells, each once, one at a time: equal prompts of two cells are one shard."""
    seen: set[int] = set()
    for cell in cells:
        for spec in cut_cell(cell, recipe, operator, config, pictures=pictures):
            place = hash((spec.stream, spec.prompt, spec.first, spec.count))
            if place not in seen:
                seen.add(place)
                yield spec
