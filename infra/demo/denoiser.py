"""Training of the pipeline's `UNet2DConditionModel`: v-prediction, caption dropout, averaged weights."""

# The model libraries ship partial annotations: their calls count as untyped.
# mypy: allow-untyped-calls

from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional

from infra.demo.autoencoder import encode_bank
from infra.demo.conditioning import Conditioning
from infra.demo.examples import Advance, Bank
from infra.demo.world import SIZE_PX

__all__ = ["make_scheduler", "train_denoiser"]

_BATCH = 64
_DROPOUT = 0.1
_EMA_DECAY = 0.999
_SIZE_WIDTH = 8
"""Width of the embedding of each number that says a size, as in SDXL, where it is 256."""


def make_scheduler() -> Any:
    """Make the noise schedule; its last step is pure noise, so that ten steps get the picture's brightness right."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def _make_unet(conditioning: Conditioning) -> Any:
    pooled: dict[str, Any] = {}
    if conditioning.pooled is not None:
        # As in SDXL: beside the pooled embedding stand six numbers, the picture's size, its crop and its wanted size.
        pooled = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": _SIZE_WIDTH,
            "projection_class_embeddings_input_dim": conditioning.pooled.shape[1] + 6 * _SIZE_WIDTH,
        }
    # Cross-attention only at the lowest resolution: at the higher one, too, training was five times slower.
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=conditioning.tokens.shape[2],
        attention_head_dim=8,
        norm_num_groups=8,
        **pooled,
    )


def _beside(conditioning: Conditioning, rows: Tensor) -> dict[str, Any]:
    """What the UNet is given beside the token states."""
    if conditioning.pooled is None:
        return {}
    sizes = torch.tensor([[SIZE_PX, SIZE_PX, 0, 0, SIZE_PX, SIZE_PX]]).expand(len(rows), -1)
    return {"added_cond_kwargs": {"text_embeds": conditioning.pooled[rows], "time_ids": sizes}}


def train_denoiser(
    bank: Bank, conditioning: Conditioning, autoencoder: Any, seed: int, steps: int, advance: Advance
) -> Any:
    """Train a `UNet2DConditionModel` on a bank's latents and its captions' embeddings, both computed once, ahead.

    Args:
        bank: pictures and captions.
        conditioning: of the bank's captions in their order, then of no prompt.
        autoencoder: makes the latents.
        seed: of weights and batches.
        steps: batches.
        advance: called after each.
    """
    torch.manual_seed(seed)
    model, averaged, scheduler = _make_unet(conditioning).train(), _make_unet(conditioning), make_scheduler()
    averaged.load_state_dict(model.state_dict())
    latents = encode_bank(autoencoder, bank)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps + 1, pct_start=0.05)
    pairs = list(zip(averaged.parameters(), model.parameters(), strict=True))
    for step in range(steps):
        rows = torch.randint(len(latents), (_BATCH,))
        captions = bank.caption_index[rows].masked_fill(torch.rand(_BATCH) < _DROPOUT, len(bank.captions))
        clean, noise = latents[rows], torch.randn(_BATCH, *latents.shape[1:])
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (_BATCH,))
        noisy = scheduler.add_noise(clean, noise, timesteps)
        predicted = model(noisy, timesteps, conditioning.tokens[captions], **_beside(conditioning, captions)).sample
        loss = functional.mse_loss(predicted, scheduler.get_velocity(clean, noise, timesteps))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        decay = min(_EMA_DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_([a for a, _ in pairs], [p for _, p in pairs], 1 - decay)
        advance(loss.item())
    return averaged.eval()
