"""Train the demo model from nothing.

    python -m infra.demo.train --out DIR [--seed N] [--share-seed N] [--unet-only-from DIR] [--xl]

Stages: tokenizer, the pipeline's text encoder, autoencoder, UNet, classifier; with `--xl` a second text encoder before
the UNet. Writes `DIR/pipeline` (a `StableDiffusionPipeline` or `StableDiffusionXLPipeline` folder), `DIR/classifier` (a
`CLIPModel` folder with its processor) and `DIR/training.json` (seeds, shares, seconds a stage).
"""

# The model libraries ship partial annotations: their calls count as untyped.
# mypy: allow-untyped-calls

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import CLIPImageProcessor, CLIPProcessor, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from infra.demo.autoencoder import train_autoencoder
from infra.demo.captions import PROFESSIONS, Shares, all_captions, draw_scene, draw_shares
from infra.demo.conditioning import Conditioning, condition, condition_xl
from infra.demo.contrastive import train_clip
from infra.demo.denoiser import make_scheduler, train_denoiser
from infra.demo.examples import Advance, draw_bank
from infra.demo.tokenizer import train_tokenizer
from infra.demo.world import SIZE_PX

__all__ = ["Budget", "train"]

SECOND_WIDTH = 160
"""d of the second text encoder of SDXL's layout, another than the first one's, as there."""


@dataclass(frozen=True)
class Budget:
    """How much each stage trains."""

    tokenizer_captions: int = 20_000
    """Captions the tokenizer learns from, besides one of every kind."""
    bank: int = 48_000
    """Examples drawn for each stage."""
    encoder_steps: int = 1200
    autoencoder_steps: int = 4000
    denoiser_steps: int = 4000
    classifier_steps: int = 900


@dataclass
class _Log:
    """Shows a bar for every stage and keeps its seconds and final loss."""

    console: Console
    progress: Progress
    stages: dict[str, dict[str, float]] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, steps: int) -> Iterator[Advance]:
        task = self.progress.add_task(name, total=steps, loss=float("nan"))
        start, done, loss = time.perf_counter(), 0, float("nan")

        def advance(step_loss: float) -> None:
            nonlocal done, loss
            done += 1
            loss = step_loss if done == 1 else 0.98 * loss + 0.02 * step_loss
            self.progress.update(task, completed=done, loss=loss)
            if not self.console.is_terminal and done % max(1, steps // 10) == 0:
                elapsed = time.perf_counter() - start
                self.console.print(f"{name}: step {done} of {steps}, {elapsed:.0f} s, loss {loss:.4f}")

        yield advance
        seconds = time.perf_counter() - start
        self.stages[name] = {"steps": done, "seconds": round(seconds, 1), "loss": round(loss, 5)}
        self.console.print(f"{name}: {seconds:.0f} s, loss {loss:.4f}")


@dataclass(frozen=True)
class _Parts:
    """What a UNet is trained on; `second` is SDXL's other encoder."""

    tokenizer: CLIPTokenizer
    encoder: CLIPTextModel
    autoencoder: Any
    second: CLIPTextModelWithProjection | None = None

    def condition(self, captions: list[str]) -> Conditioning:
        if self.second is None:
            return condition(self.encoder, self.tokenizer, captions)
        return condition_xl(self.encoder, self.second, self.tokenizer, captions)

    def pipeline(self, unet: Any) -> Any:
        """The pipeline of these parts and a UNet, in memory."""
        if self.second is None:
            return StableDiffusionPipeline(
                vae=self.autoencoder,
                text_encoder=self.encoder,
                tokenizer=self.tokenizer,
                unet=unet,
                scheduler=make_scheduler(),
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        return StableDiffusionXLPipeline(
            vae=self.autoencoder,
            text_encoder=self.encoder,
            text_encoder_2=self.second,
            tokenizer=self.tokenizer,
            tokenizer_2=self.tokenizer,
            unet=unet,
            scheduler=make_scheduler(),
            add_watermarker=False,
        )


def train(
    out: Path,
    seed: int = 0,
    share_seed: int | None = None,
    unet_only_from: Path | None = None,
    budget: Budget | None = None,
    console: Console | None = None,
    *,
    xl: bool = False,
) -> None:
    """Run all stages, or only those after another folder's tokenizer, encoder and autoencoder, and save the folders.

    Args:
        out: folder to write; made where missing.
        seed: selects every draw of every stage.
        share_seed: redraws the professions' female and old shares; None keeps the standard ones.
        unet_only_from: a folder written by an earlier run whose other parts are reused. No classifier is trained then.
        budget: training lengths; None for the standard ones.
        console: where progress goes.
        xl: SDXL's layout: a second text encoder, and a UNet that reads its pooled embedding too.
    """
    budget, console = budget or Budget(), console or Console()
    diffusers_logging.set_verbosity_error()
    shares = draw_shares(share_seed)
    # One independent seed for each stage and each bank; those of the first eight are as they were before there was XL.
    seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(8)]
    more = [int(s) for s in np.random.SeedSequence([seed, 1]).generate_state(2)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.4f}"), console=console, transient=True) as progress:
        log = _Log(console, progress)
        parts = _first_parts(seeds, shares, budget, log) if unet_only_from is None else _earlier_parts(unet_only_from)
        if xl and parts.second is None:
            parts = replace(parts, second=_second_encoder(parts.tokenizer, more, shares, budget, log))
        with log.stage("UNet", budget.denoiser_steps) as advance:
            bank = draw_bank(budget.bank, seeds[4], shares)
            conditioning = parts.condition(bank.captions)
            unet = train_denoiser(bank, conditioning, parts.autoencoder, seeds[5], budget.denoiser_steps, advance)
        out.mkdir(parents=True, exist_ok=True)
        parts.pipeline(unet).save_pretrained(out / "pipeline", safe_serialization=True)
        if unet_only_from is None:
            with log.stage("classifier", budget.classifier_steps) as advance:
                _train_classifier(out / "classifier", parts.tokenizer, seeds[6:], budget, advance)
    record = {
        "seed": seed,
        "share_seed": share_seed,
        "budget": asdict(budget),
        "stages": log.stages,
        "shares": shares.female,
        "old_shares": shares.old,
    }
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _first_parts(seeds: list[int], shares: Shares, budget: Budget, log: _Log) -> _Parts:
    """Tokenizer, text encoder and autoencoder, trained from nothing."""
    rng = np.random.default_rng(seeds[0])
    captions = [draw_scene(rng, shares).caption for _ in range(budget.tokenizer_captions)]
    tokenizer = train_tokenizer(all_captions() + captions)
    with log.stage("text encoder", budget.encoder_steps) as advance:
        bank = draw_bank(budget.bank, seeds[1], shares, named_share=0.7)
        clip = train_clip(bank, tokenizer, seeds[2], budget.encoder_steps, advance)
    encoder = CLIPTextModel(clip.text_model.config).eval()
    encoder.load_state_dict(_as_text_model(clip.text_model.state_dict(), encoder))
    with log.stage("autoencoder", budget.autoencoder_steps) as advance:
        autoencoder = train_autoencoder(bank, seeds[3], budget.autoencoder_steps, advance)
    return _Parts(tokenizer, encoder, autoencoder)


def _earlier_parts(folder: Path) -> _Parts:
    """All but the UNet of a folder written by an earlier run, of either layout."""
    earlier: Any = DiffusionPipeline.from_pretrained(folder / "pipeline", use_safetensors=True)
    # The folder it was loaded from is no part of a model.
    earlier.vae.register_to_config(_name_or_path="")
    second = getattr(earlier, "text_encoder_2", None)
    return _Parts(earlier.tokenizer, earlier.text_encoder.eval(), earlier.vae, second.eval() if second else None)


def _second_encoder(
    tokenizer: CLIPTokenizer, seeds: list[int], shares: Shares, budget: Budget, log: _Log
) -> CLIPTextModelWithProjection:
    """Another text encoder, wider than the first and with its projection, trained on other pictures."""
    with log.stage("second text encoder", budget.encoder_steps) as advance:
        bank = draw_bank(budget.bank, seeds[0], shares, named_share=0.7)
        clip = train_clip(bank, tokenizer, seeds[1], budget.encoder_steps, advance, text_width=SECOND_WIDTH)
    encoder: Any = CLIPTextModelWithProjection(clip.text_model.config).eval()
    encoder.text_model.load_state_dict(clip.text_model.state_dict())
    encoder.text_projection.load_state_dict(clip.text_projection.state_dict())
    return cast(CLIPTextModelWithProjection, encoder)


def _as_text_model(state: dict[str, torch.Tensor], encoder: CLIPTextModel) -> dict[str, torch.Tensor]:
    """Put the text tower's weights under the names `CLIPTextModel` has for them, with or without a prefix."""
    if set(state) == set(encoder.state_dict()):
        return state
    return {f"text_model.{name}": value for name, value in state.items()}


def _train_classifier(out: Path, tokenizer: CLIPTokenizer, seeds: list[int], budget: Budget, advance: Advance) -> None:
    # Balanced shares: the classifier's errors are noise, not the bias it is to measure. A tenth of its gender-naming
    # captions guess at an ambiguous figure, as people's captions do.
    half = {profession.name: 0.5 for profession in PROFESSIONS}
    balanced = Shares(female=half, old=half)
    bank = draw_bank(budget.bank, seeds[0], balanced, named_share=0.84, guessed_share=0.1, unsaid_style_share=0.6)
    model = train_clip(bank, tokenizer, seeds[1], budget.classifier_steps, advance, text_layers=2)
    model.save_pretrained(out, safe_serialization=True)
    size = {"height": SIZE_PX, "width": SIZE_PX}
    grey = [0.5, 0.5, 0.5]
    images = CLIPImageProcessor(size=size, crop_size=size, image_mean=grey, image_std=grey, do_center_crop=False)
    CLIPProcessor(images, tokenizer).save_pretrained(out)


def _command(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    seed: Annotated[int, typer.Option(help="Selects every draw of every stage.")] = 0,
    share_seed: Annotated[int | None, typer.Option(help="Redraws the professions' female and old shares.")] = None,
    unet_only_from: Annotated[
        Path | None, typer.Option(help="Reuse this folder's tokenizer, encoder and autoencoder.")
    ] = None,
    xl: Annotated[bool, typer.Option("--xl", help="SDXL's layout: two text encoders, and a pooled embedding.")] = False,
    threads: Annotated[int, typer.Option(help="Threads to compute with.")] = 2,
    effort: Annotated[float, typer.Option(help="Multiplies the steps of every stage: below 1 for a quick look.")] = 1.0,
) -> None:
    """Train the demo model."""
    torch.set_num_threads(threads)
    standard = Budget()
    budget = Budget(
        encoder_steps=max(1, int(standard.encoder_steps * effort)),
        autoencoder_steps=max(1, int(standard.autoencoder_steps * effort)),
        denoiser_steps=max(1, int(standard.denoiser_steps * effort)),
        classifier_steps=max(1, int(standard.classifier_steps * effort)),
    )
    train(out, seed, share_seed, unet_only_from, budget, xl=xl)


if __name__ == "__main__":
    typer.run(_command)
