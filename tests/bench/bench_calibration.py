"""Does calibration reach its aims, on models that it was not made on? One table: every aim, per model.

python -m tests.bench.bench_calibration --models OUT                # trains what OUT lacks: about an hour on two cores
python -m tests.bench.bench_calibration --models OUT --only shipped # seven minutes

Three demo models: the shipped one; one trained anew from the tokenizer up, with its own classifier; one that shares
the shipped one's tokenizer, encoder and autoencoder, with a UNet of its own. Each has other shares of its professions.
On each the main job runs as a user would run it: all shipped professions in one operator, fifty images per profession
and wording, in wordings and on seeds that neither the solve nor the search has seen.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console

from infra import demo, local
from infra.demo.train import train
from infra.storage import StorageSettings, open_store
from jobs.config import load_config
from jobs.errors import ExitCode
from jobs.models import content_digest
from jobs.report.schema import DeltaFigure, RateFigure, Report
from manifests.build import shipped_manifest_path
from tests.bench.common import conditions, table

AIMS = ("Delta, pooled", "Delta within wordings", "worst wording", "explicit", "recognised / base", "controls / base")
IMAGES = 50


@dataclass(frozen=True)
class Model:
    """A pipeline and the classifier that its images are labelled with; where it is missing it is trained.

    Attributes:
        seed: of the training; None: it is the shipped one.
        share_seed: of its professions' shares.
        anew: from the tokenizer up, or only the UNet.
    """

    name: str
    seed: int | None = None
    share_seed: int | None = None
    anew: bool = False

    def folders(self, models: Path, console: Console) -> tuple[Path, Path]:
        """Pipeline and classifier."""
        if self.seed is None:
            return demo.PIPELINE_PATH, demo.CLASSIFIER_PATH
        out = models / self.name
        if not (out / "training.json").exists():
            console.print(f"training {self.name}")
            reuse = None if self.anew else demo.PIPELINE_PATH.parent
            train(out, self.seed, self.share_seed, reuse, console=console)
        return out / "pipeline", out / "classifier" if self.anew else demo.CLASSIFIER_PATH


MODELS = (Model("shipped"), Model("anew", 11, 5, anew=True), Model("third", 21, 9))


def audited(model: Model, models: Path, output: str, images: int, assignments: list[str], console: Console) -> Report:
    """Run the main job on a model, on a Ray of its own; the same again goes on from what is stored."""
    pipeline, classifier = model.folders(models, console)
    values = yaml.safe_load(files("jobs").joinpath("demo.yaml").read_text(encoding="utf-8"))
    values |= {
        "manifest": str(shipped_manifest_path()),
        "model": str(pipeline),
        "classifier": str(classifier),
        "output": output,
        "images_per_cell": images,
        "explicit_images": images,
        "control_images": images,
        "shard_images": images,
        # The full budget, not the demo's.
        "calibration": {},
    }
    config = load_config(yaml.safe_dump(values), assignments=assignments)
    content = config.model_dump_json() + content_digest(pipeline) + content_digest(classifier)
    run = f"{model.name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(values | {"run": run}, file)
        file.flush()
        command = [sys.executable, "-m", "jobs.debias", file.name]
        command += [f"--set={assignment}" for assignment in assignments]
        done = subprocess.run(command, check=False, stdout=sys.stderr)
    if done.returncode not in (ExitCode.DONE, ExitCode.GATE_FAILED, ExitCode.GATE_INCONCLUSIVE):
        raise SystemExit(done.returncode)
    store = open_store(output, StorageSettings.from_environment())
    return Report.model_validate_json(store.get(f"runs/{run}/report.json"))


def row(name: str, report: Report) -> list[str]:
    """Every aim: the base's value, then the edit's with its interval."""
    base, edited = report.summary.base, report.summary.edited
    if edited is None:
        raise ValueError(f"{name}: the report has no edited variant")
    gates = {gate.name: gate for gate in report.gates}
    figures: list[str] = []
    for before, after in (
        (base.delta, edited.delta),
        (base.delta_within, edited.delta_within),
        (base.delta_wording_max, edited.delta_wording_max),
    ):
        figures.append(f"{before.value:.3f} -> {_figure(after)}")
    figures.append(_figure(edited.explicit))
    for gate in (gates["recognised"], gates["controls"]):
        figures.append(f"{gate.value:.3f} [{gate.low:.3f}, {gate.high:.3f}]")
    rise = gates["undetermined_increase"]
    figures.append(f"{base.undetermined.value:.3f}, rise {rise.value:.3f} [{rise.low:.3f}, {rise.high:.3f}]")
    search = report.calibration
    figures.append(f"{len(search.rounds)} rounds, {search.images:,} images" if search else "none")
    return figures


def _figure(found: DeltaFigure | RateFigure) -> str:
    floor = f", floor {found.floor:.3f}" if isinstance(found, DeltaFigure) else ""
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]{floor}, n {found.n:,}"


def _command(
    models: Annotated[Path, typer.Option(help="Folder of the trained models.")],
    only: Annotated[list[str] | None, typer.Option(help="Of these models alone.")] = None,
    images: Annotated[int, typer.Option(help="Per profession and wording, explicit prompt, and control.")] = IMAGES,
    assign: Annotated[list[str] | None, typer.Option("--set", help="key=value changes of the configuration.")] = None,
) -> None:
    """Calibrate and audit each model, and print the table."""
    console = Console(stderr=True)
    was_up = local.status().is_up
    cluster = local.up()
    try:
        os.environ |= {name: value for name, value in cluster.environment().items() if name.startswith("AWS_")}
        reports = {
            model.name: audited(model, models, f"{cluster.url}/calibration", images, assign or [], console)
            for model in MODELS
            if not only or model.name in only
        }
    finally:
        if not was_up:
            local.down()
    sys.stdout.write(
        table([*AIMS, "undetermined", "calibration"], {name: row(name, report) for name, report in reports.items()})
        + "\n"
    )
    for name, report in reports.items():
        each = "; ".join(
            f"{w.wording.replace('{source}', 'P')} {w.edited.value:.3f}" for w in report.wordings if w.edited
        )
        sys.stdout.write(f"\n{name}, by wording: {each}.\n")
    sys.stdout.write(f"\n{conditions(images=images, professions=len(next(iter(reports.values())).professions))}" + "\n")


if __name__ == "__main__":
    typer.run(_command)
