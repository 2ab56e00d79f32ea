"""Base, both forms and the oracle, side by side on demo models, and how they hold however people sample.

    python -m tests.bench.bench_calibration --models DIR [--only shipped] [--form mixture] [--resample]

Models: the shipped one; one trained anew from the tokenizer up, with its own classifier; one that shares the shipped
one's tokenizer, encoder and autoencoder, with a UNet of its own; and one of SDXL's layout, with a second encoder
besides. Each has other shares of its professions. On each the main job runs as a user would run it: all shipped
professions, fifty images per profession and wording, in wordings and on seeds that neither the solve nor the search has
seen.

*oracle*: each prompt is replaced by one of its own destinations at random, without any edit: the ceiling of a mixture.
`--resample` audits what was found again, without a new solve, at other guidance scales and with another sampler, with
`--resample-images` a cell.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
import yaml
from rich.console import Console

from infra import demo, local
from infra.demo.train import train
from infra.storage import StorageSettings, open_store
from jobs.auditing.counts import label_counts
from jobs.config import load_config
from jobs.errors import ExitCode
from jobs.images.classifier import Classifier
from jobs.images.generator import Generator, ImageRequest
from jobs.images.labels import Labels, TextEmbeddings
from jobs.images.shards import BASE, image_seed
from jobs.models.digests import content_digest
from jobs.models.pipelines import load_pipeline
from jobs.report.figure_schema import DeltaFigure, RateFigure
from jobs.report.schema import Report
from manifests import read_manifest
from manifests.build import shipped_manifest_path
from tests.bench.common import conditions, table
from time_ops.prompts import augment
from time_ops.stats.bounds import delta_bounds

COLUMNS = (
    "Delta, pooled",
    "within wordings",
    "worst wording",
    "explicit, by label",
    "recognised / base",
    "controls / base",
    "undetermined",
    "images before the audit",
)
IMAGES = 50
RESAMPLE_IMAGES = 16
RESAMPLE_EXPLICIT = 4
"""Of each explicit prompt and control, where the question is whether Delta holds."""
FORMS = ("mixture", "single")
SAMPLERS = {
    "guidance 1.5": ("sampler.guidance_scale=1.5",),
    "guidance 7.5": ("sampler.guidance_scale=7.5",),
    "dpm++": ("sampler.scheduler=dpm++",),
}
"""What people sample with beside the demo's own ten DDIM steps at guidance 3."""


@dataclass(frozen=True)
class Model:
    """A pipeline and the classifier that its images are labelled with; where it is missing it is trained.

    Attributes:
        seed: of the training; None: it is the shipped one.
        share_seed: of its professions' shares.
        anew: from the tokenizer up, or only the UNet.
        xl: of SDXL's layout; a second text encoder and the UNet are trained.
    """

    name: str
    seed: int | None = None
    share_seed: int | None = None
    anew: bool = False
    xl: bool = False

    def folders(self, models: Path, console: Console) -> tuple[Path, Path]:
        """Pipeline and classifier."""
        if self.seed is None:
            return demo.PIPELINE_PATH, demo.CLASSIFIER_PATH
        out = models / self.name
        if not (out / "training.json").exists():
            console.print(f"training {self.name}")
            reuse = None if self.anew else demo.PIPELINE_PATH.parent
            train(out, self.seed, self.share_seed, reuse, console=console, xl=self.xl)
        return out / "pipeline", out / "classifier" if self.anew else demo.CLASSIFIER_PATH


MODELS = (Model("shipped"), Model("anew", 11, 5, anew=True), Model("third", 21, 9), Model("xl", 41, 17, xl=True))


@dataclass(frozen=True)
class Workplace:
    """Where the runs of a benchmark go, and what all of them share."""

    models: Path
    output: str
    images: int
    resample_images: int
    assignments: tuple[str, ...]
    console: Console

    def values(self, model: Model, form: str, images: int, explicit: int) -> dict[str, object]:
        """The configuration of a model's run, as its YAML file has it."""
        pipeline, classifier = model.folders(self.models, self.console)
        values: dict[str, object] = yaml.safe_load(files("jobs.cli").joinpath("demo.yaml").read_text(encoding="utf-8"))
        values |= {
            "manifest": str(shipped_manifest_path()),
            "model": str(pipeline),
            "classifier": str(classifier),
            "output": self.output,
            "form": form,
            **dict.fromkeys(("images_per_cell", "shard_images"), images),
            **dict.fromkeys(("explicit_images", "control_images"), explicit),
            # The full budget, not the demo's.
            "calibration": {},
            "mixture": {},
        }
        return values

    def debias(self, model: Model, form: str) -> tuple[str, Report]:
        """The main job on a model, on a Ray of its own; the same again goes on from what is stored."""
        values = self.values(model, form, self.images, self.images)
        config = load_config(yaml.safe_dump(values), assignments=self.assignments)
        content = (
            config.model_dump_json() + content_digest(Path(config.model)) + content_digest(Path(config.classifier))
        )
        run = f"{model.name}-{form}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
        return run, self._run("jobs.debias", {**values, "run": run}, run, self.assignments)

    def resample(self, model: Model, form: str, debiased: str, sampler: str) -> Report:
        """What a run found, audited again under another sampler."""
        name = "mixture" if form == "mixture" else "operator"
        run = f"{debiased}-{sampler.replace(' ', '-').replace('+', 'p')}"
        values = {
            **self.values(model, form, self.resample_images, RESAMPLE_EXPLICIT),
            "run": run,
            "audit": {"operator": f"{self.output}/runs/{debiased}/{name}.safetensors"},
        }
        return self._run("jobs.audit", values, run, (*self.assignments, *SAMPLERS[sampler]))

    def _run(self, job: str, values: dict[str, object], run: str, assignments: tuple[str, ...]) -> Report:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(values, file)
            file.flush()
            command = [sys.executable, "-m", job, file.name, *(f"--set={assignment}" for assignment in assignments)]
            done = subprocess.run(command, check=False, stdout=sys.stderr)
        if done.returncode not in (ExitCode.DONE, ExitCode.GATE_FAILED, ExitCode.GATE_INCONCLUSIVE):
            raise SystemExit(done.returncode)
        store = open_store(self.output, StorageSettings.from_environment())
        return Report.model_validate_json(store.get(f"runs/{run}/report.json"))


def oracle(model: Model, place: Workplace) -> list[str]:
    """The ceiling: half of each cell's images of either destination prompt, drawn by the base model."""
    config = load_config(
        yaml.safe_dump(place.values(model, "single", place.images, place.images)), assignments=place.assignments
    )
    manifest, labels = read_manifest(shipped_manifest_path().read_bytes(), name="shipped"), list(config.attribute)
    sampler, wordings = config.sampler, config.wordings.audit
    pipe = load_pipeline(Path(config.model), sampler, torch.device("cpu"), torch.float32)
    generator, classifier = Generator(pipe, sampler), Classifier(Path(config.classifier), torch.device("cpu"))
    subjects = [(p.name, p.source) for p in manifest.professions]
    texts = TextEmbeddings.of(classifier, config.attribute, config.recognition, subjects, config.controls)
    counts = np.zeros((len(subjects), len(wordings), len(labels) + 1), dtype=np.int64)
    recognised = 0
    for p, profession in enumerate(manifest.professions):
        for w, wording in enumerate(wordings):
            requests = [
                ImageRequest(prompt, BASE, image_seed(config.seed, "audit", prompt, i))
                for d in profession.destinations
                for prompt in [augment(wording, d.prompt)]
                for i in range(place.images // len(profession.destinations))
            ]
            images = generator.draw(requests)
            ok = images.statuses == 0
            found = Labels.of(classifier.images(images.pixels), ok, texts, p, p, config.undetermined_margin)
            counts[p, w] += label_counts(found.codes, len(labels))
            recognised += int(found.recognised.sum())
    bounds = delta_bounds(counts, np.full((len(subjects), len(labels)), 1 / len(labels)))
    total = int(counts.sum())
    deltas = [f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]" for e in (bounds.pooled, bounds.within, bounds.worst)]
    return [
        *deltas,
        "as the base",
        f"{recognised / total:.3f} of {total:,}",
        "1",
        f"{counts[..., -1].sum() / total:.3f}",
        "0",
    ]


def row(report: Report) -> list[str]:
    """Every aim of the last variant, with its interval."""
    summary = report.summary.edited or report.summary.base
    gates = {gate.name: gate for gate in report.gates}
    figures = [_figure(f) for f in (summary.delta, summary.delta_within, summary.delta_wording_max)]
    figures.append("; ".join(_figure(rate) for rate in summary.explicit_by_label.values()))
    for name in ("recognised", "controls"):
        gate = gates.get(name)
        figures.append("" if gate is None else f"{gate.value:.3f} [{gate.low:.3f}, {gate.high:.3f}]")
    figures.append(_figure(summary.undetermined))
    images = 0.0
    if report.saturation is not None:
        images = report.saturation.images_per_profession
    elif report.calibration is not None:
        images = report.calibration.images / len(report.professions)
    return [*figures, f"{images:.0f} a profession"]


def base_row(report: Report) -> list[str]:
    """The same of the base."""
    alone = report.model_copy(update={"summary": report.summary.model_copy(update={"edited": None})})
    return [*row(alone.model_copy(update={"gates": [], "saturation": None, "calibration": None}))[:-1], ""]


def _figure(found: DeltaFigure | RateFigure) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}], n {found.n:,}"


def by_wording(report: Report) -> str:
    """The last variant's Delta in each wording."""
    return "; ".join(f"{w.wording.replace('{source}', 'P')} {(w.edited or w.base).value:.3f}" for w in report.wordings)


def _command(
    models: Annotated[Path, typer.Option(help="Folder of the trained models.")],
    only: Annotated[list[str] | None, typer.Option(help="Of these models alone.")] = None,
    form: Annotated[list[str] | None, typer.Option(help="Of these forms alone.")] = None,
    images: Annotated[int, typer.Option(help="Per profession and wording, explicit prompt, and control.")] = IMAGES,
    resample: Annotated[bool, typer.Option(help="Audit again at other guidance scales and samplers.")] = False,
    resample_images: Annotated[
        int, typer.Option(help="Per profession and wording, where audited again.")
    ] = RESAMPLE_IMAGES,
    with_oracle: Annotated[bool, typer.Option(help="Draw the ceiling too.")] = True,
    assign: Annotated[list[str] | None, typer.Option("--set", help="key=value changes of the configuration.")] = None,
) -> None:
    """Run each form on each model, and print the tables."""
    console = Console(stderr=True)
    was_up = local.status().is_up
    cluster = local.up()
    try:
        os.environ |= {name: value for name, value in cluster.environment().items() if name.startswith("AWS_")}
        place = Workplace(models, f"{cluster.url}/calibration", images, resample_images, tuple(assign or ()), console)
        for model in MODELS:
            if not only or model.name in only:
                _print_model(model, place, form or FORMS, resample=resample, with_oracle=with_oracle)
    finally:
        if not was_up:
            local.down()
    sys.stdout.write(f"\n{conditions(images=images)}\n")


def _print_model(model: Model, place: Workplace, forms: Sequence[str], *, resample: bool, with_oracle: bool) -> None:
    rows: dict[str, list[str]] = {}
    notes = []
    for form in forms:
        run, report = place.debias(model, form)
        rows.setdefault("base", base_row(report))
        rows[form] = row(report)
        notes.append(f"{form}, {report.verdict}, by wording: {by_wording(report)}")
        for sampler in SAMPLERS if resample else ():
            again = place.resample(model, form, run, sampler)
            rows[f"base, {sampler}"] = base_row(again)
            rows[f"{form}, {sampler}"] = row(again)
    if with_oracle:
        rows["oracle"] = oracle(model, place)
    sys.stdout.write(f"\n{model.name}\n\n{table(COLUMNS, rows)}\n\n" + "\n".join(notes) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    typer.run(_command)
