"""What each entry of text carries in a model of SDXL's layout: token states, the pooled embedding, or both edited.

    python -m tests.bench.bench_entries --models DIR [--images 8]

The model is `xl` of `bench_calibration`, trained by it or by `python -m infra.demo.train --xl`. One mixture is solved
as in a notebook over all shipped professions. Each component then draws every profession, in wordings that the solve
has not seen, with both embeddings transformed, with either alone, and with none. *Own label* is the share of
determined images that show the component's label: 1 is saturated. Beside it stands the share of explicit prompts of
the other label that stay right. Prints markdown.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
import yaml
from rich.console import Console
from rich.progress import track
from statsmodels.stats.proportion import proportion_confint

from jobs.config import RunConfig, load_config
from jobs.images.classifier import Classifier
from jobs.images.generator import Generator, ImageRequest
from jobs.images.labels import Labels, TextEmbeddings
from jobs.images.shards import BASE, image_seed
from jobs.models.pipelines import load_pipeline
from manifests import Profession, read_manifest
from manifests.build import shipped_manifest_path
from tests.bench.bench_calibration import MODELS, Workplace
from tests.bench.common import conditions, table
from time_ops import EditOperator, Mixture, solve_mixture
from time_ops.prompts import augment

COLUMNS = ("own label, by component", "undetermined", "other label's explicit prompts right")


@dataclass(frozen=True)
class Bench:
    """A model with its classifier, and what is drawn of each profession."""

    config: RunConfig
    professions: Sequence[Profession]
    pipe: object
    images: int

    def mixture(self) -> Mixture:
        """As the main job solves where its search changes nothing."""
        edits: dict[str, dict[str, str]] = {label: {} for label in self.config.attribute}
        for p in self.professions:
            for destination in p.destinations:
                edits[destination.label][p.source] = destination.prompt
        return solve_mixture(self.pipe, edits, 0.1, overshoot=1.5, ratio=3.0, push=1.0)

    def counts(self, label: str, operator: EditOperator | None) -> np.ndarray:
        """[3]: images of sources with the component's label, with another one, undetermined; then of explicit prompts
        of other labels, those that are right and those that are not."""
        labels = list(self.config.attribute)
        generator = Generator(self.pipe, self.config.sampler)
        if operator is not None:
            generator.add_operator(operator)
        classifier = Classifier(Path(str(self.config.classifier)), torch.device("cpu"))
        subjects = [(p.name, p.source) for p in self.professions]
        texts = TextEmbeddings.of(
            classifier, self.config.attribute, self.config.recognition, subjects, self.config.controls
        )
        found = np.zeros(5, dtype=np.int64)
        for p, profession in enumerate(track(self.professions, label, console=Console(stderr=True), transient=True)):
            for wanted, prompt, images in self._prompts(profession, label):
                digest = BASE if operator is None else operator.digest
                seeds = [image_seed(self.config.seed, "audit", prompt, i) for i in range(images)]
                drawn = generator.draw([ImageRequest(prompt, digest, seed) for seed in seeds])
                codes = Labels.of(
                    classifier.images(drawn.pixels),
                    drawn.statuses == 0,
                    texts,
                    p,
                    p,
                    self.config.undetermined_margin,
                ).codes
                right = int((codes == labels.index(wanted)).sum())
                other = int(((codes >= 0) & (codes < len(labels)) & (codes != labels.index(wanted))).sum())
                if wanted == label:
                    found[:3] += right, other, len(codes) - right - other
                else:
                    found[3:] += right, len(codes) - right
        return found

    def _prompts(self, profession: Profession, label: str) -> Iterator[tuple[str, str, int]]:
        wordings = self.config.wordings.audit
        for wording in wordings:
            yield label, augment(wording, profession.source), self.images
        for destination in profession.destinations:
            if destination.label != label:
                yield destination.label, augment(wordings[0], destination.prompt), self.images


def manners(operator: EditOperator) -> dict[str, EditOperator | None]:
    """What is transformed."""
    nothing = EditOperator.identity(operator.d)
    return {
        "both": operator,
        "token states alone": replace(operator, pooled=None),
        "pooled embedding alone": replace(nothing, pooled=operator.pooled),
        "neither": None,
    }


def _rate(hits: int, n: int) -> str:
    low, high = proportion_confint(hits, n, method="wilson")
    return f"{hits / n:.3f} [{low:.3f}, {high:.3f}], n {n:,}"


def _command(
    models: Annotated[Path, typer.Option(help="Folder of the trained models.")],
    images: Annotated[int, typer.Option(help="Of each profession, wording and component.")] = 8,
) -> None:
    """Solve once, draw with each choice of entries, and print the table."""
    model = next(each for each in MODELS if each.xl)
    place = Workplace(models, "unused", images, images, (), Console(stderr=True))
    config = load_config(yaml.safe_dump(place.values(model, "mixture", images, images)))
    manifest = read_manifest(shipped_manifest_path().read_bytes(), name="shipped")
    pipe = load_pipeline(Path(config.model), config.sampler, torch.device("cpu"), torch.float32)
    bench = Bench(config, manifest.professions, pipe, images)
    solved = bench.mixture()
    rows: dict[str, list[str]] = {}
    for manner in manners(solved.components[0].operator):
        counts = {c.label: bench.counts(c.label, manners(c.operator)[manner]) for c in solved.components}
        total = sum(counts.values())
        rows[manner] = [
            "; ".join(f"{label} {_rate(int(c[0]), int(c[:2].sum()))}" for label, c in counts.items()),
            _rate(int(total[2]), int(total[:3].sum())),
            _rate(int(total[3]), int(total[3:].sum())),
        ]
    sys.stdout.write(f"{table(COLUMNS, rows)}\n\n{conditions(images=images)}\n")


if __name__ == "__main__":
    typer.run(_command)
