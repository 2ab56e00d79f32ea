"""A smoke test of the whole job on a GPU: `python -m jobs.debias` on the demo model, from audit to checkpoint.

    python -m tests.bench.gpu_job                    # one GPU
    python -m tests.bench.gpu_job --device cpu       # whether it runs, on any machine

Ray is started by the job itself, and the output is a folder: no network, no store and no dashboard is needed. What is
missing here is said before anything is started. Prints the job's own figures, and images/s as its report has them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
import yaml

from infra import demo
from jobs.errors import ExitCode
from jobs.report.schema import Report
from manifests.build import shipped_manifest_path
from tests.bench.common import conditions

NEEDED = (
    *("accelerate", "boto3", "diffusers", "filelock", "huggingface_hub", "inflect", "jinja2", "numpy", "PIL", "psutil"),
    *("pyarrow", "pydantic", "pydantic_settings", "ray", "rich", "safetensors", "scipy", "statsmodels", "tenacity"),
    *("tokenizers", "torch", "transformers", "typer", "yaml"),
)
VERDICTS = {ExitCode.DONE: "pass", ExitCode.GATE_FAILED: "fail", ExitCode.GATE_INCONCLUSIVE: "inconclusive"}


def configuration(output: Path, device: str, images: int) -> dict[str, object]:
    """The demo's, with batches as a worker finds them."""
    values: dict[str, object] = yaml.safe_load(files("jobs.cli").joinpath("demo.yaml").read_text(encoding="utf-8"))
    sampler = values["sampler"]
    assert isinstance(sampler, dict)
    return values | {
        "manifest": str(shipped_manifest_path()),
        "model": str(demo.PIPELINE_PATH),
        "classifier": str(demo.CLASSIFIER_PATH),
        "output": str(output),
        "run": "gpu",
        "sampler": {**sampler, "batch_size": "auto"},
        "images_per_cell": images,
        "shard_images": images,
        "workers": {"num_gpus": 1} if device == "cuda" else {},
    }


def _command(
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    images: Annotated[int, typer.Option(help="Of each profession and wording.")] = 50,
) -> None:
    """Run the job once and print what it came to."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise SystemExit(f"missing here: {', '.join(missing)}. tests/bench/bundle.sh packs what such a machine lacks")
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here; --device cpu tries the script")
    with tempfile.TemporaryDirectory(prefix="evenhand-gpu-") as name:
        output, path = Path(name) / "output", Path(name) / "gpu.yaml"
        path.write_text(yaml.safe_dump(configuration(output, device, images)), encoding="utf-8")
        code = subprocess.run([sys.executable, "-m", "jobs.debias", str(path)], check=False).returncode
        if code not in VERDICTS:
            raise SystemExit(code)
        report = Report.model_validate_json((output / "runs/gpu/report.json").read_text(encoding="utf-8"))
    cost = report.cost
    sys.stdout.write(
        f"verdict {report.verdict}; {cost.images:,} images in {cost.wall_s:.0f} s, {cost.images_per_s} images/s while "
        f"drawing; {cost.worker_s:.0f} worker seconds\n\n{conditions(device=device, images=images)}\n"
    )


if __name__ == "__main__":
    typer.run(_command)
