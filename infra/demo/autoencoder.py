"""Training of the pipeline's `AutoencoderKL`: 32 x 32 pictures to 4 x 8 x 8 latents."""

# The model libraries ship partial annotations: their calls count as untyped.
# mypy: allow-untyped-calls

from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from infra.demo.examples import Advance, Bank
from infra.demo.world import SIZE_PX

__all__ = ["encode_bank", "train_autoencoder"]

_BATCH = 32
_CHANNELS = (16, 32, 32)


def train_autoencoder(bank: Bank, seed: int, steps: int, advance: Advance) -> Any:
    """Train an `AutoencoderKL` on a bank's pictures.

    The loss is squared and absolute error, and a weak Kullback-Leibler term. Sets `scaling_factor` from the latents'
    deviation.
    """
    torch.manual_seed(seed)
    model: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(_CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(_CHANNELS),
        block_out_channels=_CHANNELS,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE_PX,
    )
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps + 1, pct_start=0.05)
    for _ in range(steps):
        pictures = bank.normalised(torch.randint(len(bank.pictures), (_BATCH,)))
        posterior = model.encode(pictures).latent_dist
        error = model.decode(posterior.sample()).sample - pictures
        reconstruction = error.square().mean() + 0.3 * error.abs().mean()
        loss = reconstruction + 1e-5 * posterior.kl().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        advance(loss.item())
    model.eval()
    with torch.no_grad():
        rows = torch.arange(min(2048, len(bank.pictures)))
        deviation = model.encode(bank.normalised(rows)).latent_dist.mean.std().item()
    model.register_to_config(scaling_factor=round(1 / deviation, 4))
    return model


@torch.no_grad()
def encode_bank(model: Any, bank: Bank) -> Tensor:
    """Encode the bank as the UNet sees it: posterior means times `scaling_factor`, `[n, 4, 8, 8]`."""
    parts = [
        model.encode(bank.normalised(rows)).latent_dist.mean * model.config.scaling_factor
        for rows in torch.arange(len(bank.pictures)).split(64)
    ]
    return torch.cat(parts)
