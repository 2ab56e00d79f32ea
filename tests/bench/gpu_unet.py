"""The UNet alone on one device: what it computes, and how long a pass takes in each manner."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jobs.config import SamplerConfig

__all__ = ["in_float8", "matrix_rate", "pass_flop", "unet_manners"]

_COMPILE_S, _AUTOTUNE_S = 60.0, 240.0
"""What compiling may take on a GPU; `max-autotune` was seen to take minutes."""
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
}


class _Float8Linear(torch.nn.Module):
    """A linear layer in 8 bits, e4m3: one scale for the weight, one for each call's input."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.bias = layer.bias
        self.weight, self.scale = self._scaled(layer.weight.detach())

    @staticmethod
    def _scaled(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kind = torch.float8_e4m3fn
        scale = (values.abs().amax().float() / torch.finfo(kind).max).clamp(min=1e-12)
        return (values / scale).to(kind), scale

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        rows, scale = self._scaled(values.reshape(-1, values.shape[-1]))
        made: torch.Tensor = torch._scaled_mm(
            rows, self.weight.t(), scale_a=scale, scale_b=self.scale, bias=self.bias, out_dtype=values.dtype
        )
        return made.reshape(*values.shape[:-1], -1)


def in_float8(module: torch.nn.Module) -> torch.nn.Module:
    """The same with linear layers in 8 bits, where a product takes their widths; in place."""
    for name, layer in module.named_children():
        if type(layer) is torch.nn.Linear and layer.in_features % 16 == layer.out_features % 16 == 0:
            setattr(module, name, _Float8Linear(layer))
        else:
            in_float8(layer)
    return module


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, the best of five."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(6):
        _settle(device)
        start = time.perf_counter()
        a @ b
        _settle(device)
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


def _inputs(pipe: Any, sampler: SamplerConfig, images: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, time and token states of a pass with guidance: two rows an image."""
    unet, factor = pipe.unet, pipe.vae_scale_factor
    where = {"device": pipe.device, "dtype": unet.dtype}
    latents = torch.randn(
        2 * images, unet.config.in_channels, sampler.height // factor, sampler.width // factor, **where
    )
    tokens = torch.randn(2 * images, 77, unet.config.cross_attention_dim, **where)
    return latents, torch.tensor(500, device=pipe.device), tokens


@torch.inference_mode()
def pass_flop(pipe: Any, sampler: SamplerConfig) -> float:
    """FLOP of one denoising step of one image, with guidance."""
    counter = FlopCounterMode(display=False)
    latents, step, tokens = _inputs(pipe, sampler, 1)
    with counter:
        pipe.unet(latents, step, tokens, return_dict=False)
    return float(counter.get_total_flops())


@torch.inference_mode()
def _passes(run: Callable[..., Any], inputs: tuple[torch.Tensor, ...], repeats: int) -> list[float]:
    """Seconds of a pass, once it has warmed up; five in a row each time."""
    device = inputs[0].device
    for _ in range(2):
        run(*inputs, return_dict=False)
    found = []
    for _ in range(repeats):
        _settle(device)
        start = time.perf_counter()
        for _ in range(5):
            run(*inputs, return_dict=False)
        _settle(device)
        found.append((time.perf_counter() - start) / 5)
    return found


def unet_manners(
    pipe: Any,
    sampler: SamplerConfig,
    images: int,
    repeats: int,
    has_time: Callable[[str, float], bool],
    *,
    compiling: bool,
) -> Iterator[tuple[str, Sequence[float]]]:
    """Seconds of a pass of a batch, by manner; the pipeline's UNet is not what it was afterwards."""
    inputs, unet, cuda = _inputs(pipe, sampler, images), pipe.unet, pipe.device.type == "cuda"

    def timed(
        name: str, run: Callable[..., Any], seconds: float, within: AbstractContextManager[Any] | None = None
    ) -> Iterator[tuple[str, Sequence[float]]]:
        if not has_time(name, seconds if cuda else 0):
            return
        try:
            with within or nullcontext():
                found = _passes(run, inputs, repeats)
        except RuntimeError as error:  # what a card or a version can't do is a finding too
            sys.stderr.write(f"{name}: {str(error).splitlines()[0]}\n")
            return
        sys.stderr.write(f"{name}: {1000 * min(found):.1f} ms\n")
        yield name, found

    yield from timed("eager", unet, 5)
    for name, backend in BACKENDS.items() if cuda else ():
        yield from timed(f"eager, {name} attention", unet, 5, sdpa_kernel(backend))
    if compiling:
        yield from timed("compiled", torch.compile(unet, fullgraph=True, dynamic=False), _COMPILE_S)
    unet.to(memory_format=torch.channels_last)
    yield from timed("eager, channels-last", unet, 5)
    if compiling:
        yield from timed("compiled, channels-last", torch.compile(unet, fullgraph=True, dynamic=False), _COMPILE_S)
    unet.to(memory_format=torch.contiguous_format)
    unet.fuse_qkv_projections()
    yield from timed("eager, fused projections", unet, 5)
    if compiling and cuda:
        graphs = torch.compile(unet, mode="reduce-overhead", fullgraph=True, dynamic=False)
        yield from timed("compiled, fused projections, CUDA graphs", graphs, _COMPILE_S)
        tuned = torch.compile(unet, mode="max-autotune-no-cudagraphs", fullgraph=True, dynamic=False)
        yield from timed("compiled, fused projections, max-autotune", tuned, _AUTOTUNE_S)
    # Last, as it stays so. What it does to labels is seen by an audit of a trained model, not here.
    in_float8(unet)
    yield from timed("eager, fused projections, linear layers in 8 bits", unet, 5)
    if compiling:
        eight = torch.compile(unet, fullgraph=True, dynamic=False)
        yield from timed("compiled, fused projections, linear layers in 8 bits", eight, _COMPILE_S)
