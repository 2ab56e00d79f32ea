"""What an SD3 or a FLUX.1 is, by its configuration files alone. As `jobs.models.kinds`, of transformers.

Both read the text by a linear layer of the token states and one of the pooled embedding. Widths of T5 and CLIP have to
be theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["FLUX", "SD3", "joint_faults"]

SD3, FLUX = "StableDiffusion3Pipeline", "FluxPipeline"
"""Diffusers' classes of these pipelines."""

_TRANSFORMERS = {SD3: "SD3Transformer2DModel", FLUX: "FluxTransformer2DModel"}
_T5 = {SD3: "text_encoder_3", FLUX: "text_encoder_2"}
_PACKED = 4
"""Channels of FLUX's transformer for each of its VAE's: latents go in as patches of 2 x 2."""


def joint_faults(kind: str, configs: Mapping[str, Mapping[str, Any]], scheduler: Mapping[str, Any]) -> Iterator[str]:
    """What in the configurations does not fit together, or wants more than noise, a time and a text.

    Args:
        kind: `SD3` or `FLUX`.
        configs: of the transformer, the VAE and the text encoders, by component; defaults are diffusers' own.
        scheduler: of the scheduler.
    """
    transformer = configs["transformer"]
    wanted = _TRANSFORMERS[kind]
    if transformer.get("_class_name", wanted) != wanted:
        yield f"its transformer is a {transformer['_class_name']}; a {wanted} is audited"
        return
    yield from _channel_faults(kind, transformer, configs["vae"])
    yield from _width_faults(kind, transformer, configs)
    named = str(scheduler.get("_class_name"))
    if not named.startswith("FlowMatch"):
        yield f"its scheduler is a {named}, whose settings a flow matching sampler does not read"
    if scheduler.get("stochastic_sampling"):
        yield "its scheduler draws noise that no seed decides (stochastic_sampling)"


def _channel_faults(kind: str, transformer: Mapping[str, Any], vae: Mapping[str, Any]) -> Iterator[str]:
    latents = vae.get("latent_channels", 4)
    each = 1 if kind == SD3 else _PACKED
    default = 16 if kind == SD3 else 64
    for way, verb in (("in", "reads"), ("out", "gives")):
        # FLUX's gives as many as it reads where it does not say.
        channels = transformer.get(f"{way}_channels") or default
        if way == "out" and kind == FLUX:
            channels = transformer.get("out_channels") or transformer.get("in_channels", default)
        if channels != each * latents:
            also = ": an image or a mask beside the noise" if way == "in" and channels > each * latents else ""
            yield (
                f"the transformer {verb} {channels} channels where the VAE's {latents} are {each * latents} to it "
                f"({way}_channels){also}"
            )


def _width_faults(kind: str, transformer: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    width = transformer.get("joint_attention_dim", 4096)
    pooled = transformer.get("pooled_projection_dim", 2048 if kind == SD3 else 768)
    t5 = configs.get(_T5[kind])
    clips = [configs[name] for name in ("text_encoder", "text_encoder_2") if name in configs and name != _T5[kind]]
    if t5 is not None and t5.get("d_model", 512) != width:
        yield f"the transformer reads texts of width {width}, T5 gives {t5.get('d_model', 512)} (joint_attention_dim)"
    if kind == SD3:
        states, vectors = (sum(c.get(key, 512) for c in clips) for key in ("hidden_size", "projection_dim"))
        if states > width:
            yield f"the transformer reads texts of width {width}, the CLIPs together {states} (joint_attention_dim)"
    else:
        vectors = sum(c.get("hidden_size", 512) for c in clips)
    if len(clips) == (2 if kind == SD3 else 1) and vectors != pooled:
        yield (
            f"the transformer reads a pooled embedding of width {pooled}, CLIP gives {vectors} (pooled_projection_dim)"
        )
