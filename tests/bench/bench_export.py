"""An export of Stable Diffusion XL's size to an S3 server: time, memory, and what is sent again after a kill.

    python -m tests.bench.bench_export               # 45 GB of disk, some minutes
    python -m tests.bench.bench_export --narrow 2    # layers of half the width, a quarter of the size
    python -m tests.bench.bench_export --narrow 8    # a smoke test

The model has SDXL's names, shapes and files, half precision and random weights. It is put into an embedded SeaweedFS,
staged from there as a worker stages it, and exported in a process of its own, whose memory is measured: once killed
with about half of the UNet sent, then again, then to a second folder beside the first. Prints markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from infra.local import seaweed
from infra.local.home import REGION, Home
from infra.local.ports import SEAWEED_PORTS, choose_ports
from infra.local.processes import stop
from infra.storage import ObjectStore, StorageSettings, open_store
from infra.storage.s3_upload import PART_BYTES
from jobs.exports.forms.diffusers_folder import write_checkpoint
from jobs.exports.forms.writing import entries_of, tensor_bytes, write_safetensors
from jobs.models.checksums import verify_folder
from jobs.models.digests import content_digest
from jobs.models.staging import fetch_model
from tests.bench.common import conditions, table
from tests.wire import Wire
from time_ops import EditOperator

__all__ = ["main"]

_BUCKET = "bench"
_NOISE = 1 << 24
_LIMIT_BYTES = 1e9


def components(narrow: int) -> dict[str, torch.nn.Module]:
    """SDXL's layers on the meta device, of a `narrow`th of their width: 3.5e9 weights at 1."""
    widths = [320 // narrow, 640 // narrow, 1280 // narrow]
    encoders = [
        CLIPTextConfig(
            hidden_size=width // narrow,
            intermediate_size=4 * width // narrow,
            num_hidden_layers=layers // narrow,
            num_attention_heads=4,
            projection_dim=width // narrow,
            vocab_size=49408 // narrow,
        )
        for width, layers in ((768, 12), (1280, 32))
    ]
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel(
                block_out_channels=widths,
                norm_num_groups=32 // narrow,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=(1, 2, 10),
                attention_head_dim=(5, 10, 20),
                cross_attention_dim=2048 // narrow,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256 // narrow,
                projection_class_embeddings_input_dim=2816 // narrow,
            ),
            "text_encoder": CLIPTextModel(encoders[0]),
            "text_encoder_2": CLIPTextModelWithProjection(encoders[1]),
            "vae": AutoencoderKL(
                block_out_channels=[128 // narrow, 256 // narrow, 512 // narrow, 512 // narrow],
                norm_num_groups=32 // narrow,
                layers_per_block=2,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
            ),
        }


def build(folder: Path, narrow: int) -> int:
    """Write the model in half precision, a tensor at a time; return its bytes."""
    noise = (torch.randn(_NOISE, generator=torch.Generator().manual_seed(0)) * 0.02).half()
    index: dict[str, Any] = {"_class_name": "StableDiffusionXLPipeline"}
    total = 0

    def weights(sizes: list[int]) -> Iterator[memoryview]:
        for number, size in enumerate(sizes):
            begin = number * 997 % max(_NOISE - size, 1)
            block = noise if size <= _NOISE else noise.repeat(-(-size // _NOISE) + 1)
            yield tensor_bytes(block[begin : begin + size])

    for name, model in components(narrow).items():
        library = "transformers" if name.startswith("text") else "diffusers"
        index[name] = [library, type(model).__name__]
        model.save_config(folder / name) if library == "diffusers" else model.config.save_pretrained(folder / name)  # type: ignore[operator,union-attr]
        shapes = {key: tensor.shape for key, tensor in model.named_parameters()}
        entries = entries_of((key, torch.float16, tuple(shape)) for key, shape in shapes.items())
        file = "model.fp16" if library == "transformers" else "diffusion_pytorch_model.fp16"
        pieces = weights([shapes[entry.name].numel() for entry in entries])
        total += write_safetensors(folder / name / f"{file}.safetensors", entries, pieces, {})
    (folder / "model_index.json").write_text(json.dumps(index))
    return total


@contextmanager
def server(folder: Path) -> Iterator[dict[str, str]]:
    """An embedded SeaweedFS; yields the environment that reaches it."""
    home = Home.at(folder)
    home.create()
    ports = choose_ports("seaweed", {}, int(home.marker, 16))
    endpoint = f"http://127.0.0.1:{ports['s3']}"
    home.write_aws_config(endpoint)
    running = seaweed.start_seaweed(home, _BUCKET, {name: ports[name] for name in SEAWEED_PORTS})
    try:
        seaweed.wait_ready(home, running, endpoint, _BUCKET)
        yield {
            "AWS_SHARED_CREDENTIALS_FILE": str(home.credentials_file),
            "AWS_CONFIG_FILE": str(home.aws_config),
            "AWS_PROFILE": "default",
            "AWS_ENDPOINT_URL_S3": endpoint,
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
    finally:
        stop(home, running, everything=True)
        seaweed.remove_sockets(ports)
        home.remove_temp()


def export(base: Path, prefix: str, scratch: Path) -> None:
    """The measured process: write the folder and print what it took, as JSON."""
    store = open_store(f"s3://{_BUCKET}/run")
    wire = Wire(store)
    digest = content_digest(base)
    config = json.loads((base / "unet" / "config.json").read_text(encoding="utf-8"))
    d = config["cross_attention_dim"]
    noise = torch.randn(d, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    operator = EditOperator(torch.eye(d, dtype=torch.float64) + 0.02 * noise)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak counts from here
    before = _memory_bytes("VmRSS")
    begun = time.monotonic()
    write_checkpoint(base, digest, operator, "card", store, prefix, scratch=scratch, beside=("candidate",))
    found = {
        "seconds": time.monotonic() - begun,
        "beyond_bytes": _memory_bytes("VmHWM") - before,
        "parts": wire.count("UploadPart"),
        "objects": wire.count("PutObject"),
        "copies": wire.count("CopyObject") + wire.count("UploadPartCopy"),
    }
    sys.stdout.write(json.dumps(found))


def _memory_bytes(field: str) -> int:
    """This process's memory: VmRSS as it is, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _killed(command: list[str], environment: dict[str, str], store: ObjectStore, parts: int) -> int:
    """Start an export, kill it once the server has so many parts of the UNet; return how many there were."""
    prefix = store.url("candidate/unet").removeprefix(f"s3://{_BUCKET}/")
    client = boto3.client("s3")
    running = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    there = 0
    while running.poll() is None and there < parts:
        time.sleep(0.2)
        for upload in client.list_multipart_uploads(Bucket=_BUCKET, Prefix=prefix).get("Uploads", ()):
            pages = client.get_paginator("list_parts").paginate(
                Bucket=_BUCKET, Key=upload["Key"], UploadId=upload["UploadId"]
            )
            there = sum(len(page.get("Parts", ())) for page in pages)
    if running.poll() is not None:
        raise RuntimeError("the export ended before it could be killed")
    running.send_signal(signal.SIGKILL)
    running.wait()
    return there


def measure(folder: Path, narrow: int) -> str:
    """Run all of it below `folder`; return the table and its conditions."""
    begun = time.monotonic()
    total = build(folder / "model", narrow)
    made = time.monotonic() - begun
    with server(folder / "home") as reach:
        os.environ.update(reach)
        settings = StorageSettings.from_environment()
        store = open_store(f"s3://{_BUCKET}", settings)
        begun = time.monotonic()
        store.sub("model").upload_folder(folder / "model")
        uploaded = time.monotonic() - begun
        shutil.rmtree(folder / "model")
        begun = time.monotonic()
        base = fetch_model(store.url("model"), settings, folder / "cache", pipeline=True)
        staged = time.monotonic() - begun
        unet_parts = (base / "unet" / "diffusion_pytorch_model.fp16.safetensors").stat().st_size // PART_BYTES

        command = [sys.executable, "-m", "tests.bench.bench_export", "--export", str(base), "--scratch"]
        command += [str(folder / "scratch"), "--prefix"]
        environment = dict(os.environ)
        there = _killed([*command, "candidate"], environment, store.sub("run"), unet_parts // 2)
        runs = {}
        sys.stderr.write(f"stored in {uploaded:.0f} s, staged in {staged:.0f} s, killed at {there} parts\n")
        for prefix in ("candidate", "checkpoint"):
            done = subprocess.run([*command, prefix], env=environment, stdout=subprocess.PIPE, check=True)
            runs[prefix] = json.loads(done.stdout)
            sys.stderr.write(f"{prefix}: {runs[prefix]}\n")
        store.sub("run").download_folder("checkpoint", folder / "back")
        verify_folder(folder / "back", "checkpoint")
    rows = {
        "model into the store": [f"{uploaded:.0f}", "", "", ""],
        "staged from it, checked for changes": [f"{staged:.0f}", "", "", ""],
        f"exported again after a kill with {there} of {unet_parts + 1} parts sent": _row(runs["candidate"]),
        "exported a second time, beside the first": _row(runs["checkpoint"]),
    }
    columns = ("seconds", "parts of 16 MiB sent", "objects copied by the server", "peak memory beyond that before, MB")
    worst = max(run["beyond_bytes"] for run in runs.values())
    verdict = f"Memory stays under 1 GB beyond that before: {'yes' if worst < _LIMIT_BYTES else 'NO'}."
    said = conditions(model=f"{total / 1e9:.2f} GB", written_in=f"{made:.0f} s", repeats=1)
    return f"{table(columns, rows)}\n\n{verdict}\n{said}"


def _row(found: dict[str, Any]) -> list[str]:
    return [f"{found['seconds']:.0f}", str(found["parts"]), str(found["copies"]), f"{found['beyond_bytes'] / 1e6:.0f}"]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--narrow", type=int, choices=(1, 2, 4, 8), default=1, help="part of SDXL's width")
    parser.add_argument("--folder", type=Path, help="where the files lie; default: a temporary folder")
    parser.add_argument("--export", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--prefix", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.export:
        export(given.export, given.prefix, given.scratch)
        return
    with tempfile.TemporaryDirectory(prefix="evenhand-bench-", dir=given.folder) as folder:
        sys.stdout.write(measure(Path(folder), given.narrow) + "\n")


if __name__ == "__main__":
    main()
