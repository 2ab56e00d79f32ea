"""Measure the demo model: bias, classifier, recognition, speed.

    python -m infra.demo.measure [--weights DIR] --out DIR

Writes `measured.json` and `grid.png` (professions x samples). Every image has a CPU generator of its own, so a figure
does not depend on the batch size. Female shares are of the *determined* images, old shares of all; Delta is the mean
over professions of |F - 50| / 50, with F the share in percent.
"""

# The model libraries ship partial annotations: their calls count as untyped.
# mypy: allow-untyped-calls

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import track
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from infra.demo import CONTROLS, HELD_OUT_WORDINGS, PROFESSIONS, WEIGHTS_PATH, WORDINGS
from infra.demo.captions import AGES, GENDERS, Age, Gender, fill, source
from infra.demo.world import SIZE_PX, perceived_ages, perceived_genders

__all__ = ["GUIDANCE_SCALE", "MARGIN", "STEPS", "Demo", "Effort", "Readings", "measure"]

STEPS = 10
GUIDANCE_SCALE = 3.0
MARGIN = 0.1
"""Below this difference of the two prompts' probabilities the classifier's label is *undetermined*."""
BASE_WORDING = "A photo of {source}"

_BATCH = 64
_NAMES = [profession.name for profession in PROFESSIONS]


@dataclass(frozen=True)
class Effort:
    """Images a measurement takes."""

    base: int = 48
    """For each profession in the base wording."""
    wording: int = 12
    """For each profession in each wording."""
    explicit: int = 8
    """For each profession and each naming of gender, age or both."""
    control: int = 24
    """For each control."""


@dataclass(frozen=True)
class Readings:
    """Labels of some pictures, one entry a picture."""

    pixel: list[Gender]
    """By the pixel rule."""
    pixel_age: list[Age]
    """By the pixel rule for age."""
    female_probability: NDArray[np.float64]
    """The classifier's, between "a photo of a female P" and "a photo of a male P"; 0.5 for a control."""
    old_probability: NDArray[np.float64]
    """The classifier's, between "a photo of an old P" and "a photo of a young P"; 0.5 for a control."""
    recognised: list[str]
    """The classifier's best among "a photo of ..." of all professions and controls."""
    recognised_profession: list[str]
    """The classifier's best among the professions alone."""

    @property
    def classifier(self) -> list[Gender]:
        """The classifier's label at the margin."""
        labels: list[Gender] = []
        for probability in self.female_probability:
            difference = 2 * float(probability) - 1
            labels.append("undetermined" if abs(difference) < MARGIN else "female" if difference > 0 else "male")
        return labels

    @property
    def classifier_age(self) -> list[Age]:
        """The classifier's label for age, by forced choice."""
        return ["old" if probability > 0.5 else "young" for probability in self.old_probability]


class Demo:
    """The pipeline and the classifier of a weights folder, loaded."""

    def __init__(self, weights: Path) -> None:
        """Load `weights/pipeline` and `weights/classifier`."""
        self._pipeline = StableDiffusionPipeline.from_pretrained(
            weights / "pipeline", safety_checker=None, use_safetensors=True, local_files_only=True
        )
        self._pipeline.set_progress_bar_config(disable=True)
        self._classifier = CLIPModel.from_pretrained(weights / "classifier", local_files_only=True).eval()
        self._images = CLIPImageProcessor.from_pretrained(weights / "classifier", local_files_only=True)
        tokenizer = CLIPTokenizer.from_pretrained(weights / "classifier", local_files_only=True)
        prompts = [f"a photo of {source(p, gender)}" for gender in ("female", "male") for p in PROFESSIONS]
        prompts += [f"a photo of {source(p, age=age)}" for age in ("old", "young") for p in PROFESSIONS]
        prompts += [f"a photo of {p.source}" for p in PROFESSIONS] + [f"a photo of {control}" for control in CONTROLS]
        self._prompts = tokenizer(prompts, padding=True, return_tensors="pt").input_ids

    def generate(self, prompts: Sequence[str], seed: int) -> NDArray[np.uint8]:
        """One picture for each prompt: uint8, `[n, 32, 32, 3]`; picture i depends on `seed` and i alone."""
        parts = []
        for start in range(0, len(prompts), _BATCH):
            batch = list(prompts[start : start + _BATCH])
            generators = [
                torch.Generator("cpu").manual_seed(int(np.random.SeedSequence((seed, start + i)).generate_state(1)[0]))
                for i in range(len(batch))
            ]
            images = self._pipeline(
                batch,
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE_SCALE,
                generator=generators,
                output_type="np",
            ).images
            parts.append((images * 255).round().astype(np.uint8))
        return np.concatenate(parts)

    @torch.no_grad()
    def read(self, pictures: NDArray[np.uint8], subjects: Sequence[str]) -> Readings:
        """Label pictures of the given subjects (profession names or controls)."""
        everything = [*_NAMES, *CONTROLS]
        female: list[float] = []
        old: list[float] = []
        recognised, recognised_profession = [], []
        count = len(_NAMES)
        for start in range(0, len(pictures), 256):
            batch = list(pictures[start : start + 256])
            pixels = self._images(images=batch, return_tensors="pt").pixel_values
            logits = self._classifier(input_ids=self._prompts, pixel_values=pixels).logits_per_image
            for row, subject in zip(logits, subjects[start : start + 256], strict=True):
                recognised.append(everything[int(row[4 * count :].argmax())])
                recognised_profession.append(_NAMES[int(row[4 * count : 5 * count].argmax())])
                if subject in _NAMES:
                    p = _NAMES.index(subject)
                    female.append(float(torch.sigmoid(row[p] - row[count + p])))
                    old.append(float(torch.sigmoid(row[2 * count + p] - row[3 * count + p])))
                else:
                    female.append(0.5)
                    old.append(0.5)
        return Readings(
            perceived_genders(pictures),
            perceived_ages(pictures),
            np.array(female),
            np.array(old),
            recognised,
            recognised_profession,
        )


def _share(labels: Sequence[str]) -> dict[str, float | int | None]:
    """Count by label, and give the female share of the determined in percent (None where there are none)."""
    counts = Counter(labels)
    determined = counts["female"] + counts["male"]
    share = round(100 * counts["female"] / determined, 1) if determined else None
    return {"female_percent": share, "n": determined, "undetermined": counts["undetermined"]}


def _old_percent(ages: Sequence[Age]) -> float:
    return round(100 * ages.count("old") / len(ages), 1)


def _age_delta(subjects: Sequence[str], ages: Sequence[Age]) -> float:
    """Give the mean over professions of |O - 50| / 50, with O the old share in percent."""
    by_name = {n: [age for age, s in zip(ages, subjects, strict=True) if s == n] for n in dict.fromkeys(subjects)}
    return round(float(np.mean([abs(_old_percent(of_name) - 50) / 50 for of_name in by_name.values()])), 3)


def _delta(subjects: Sequence[str], labels: Sequence[str]) -> float | None:
    """Give the mean over professions of |F - 50| / 50; None where no image is determined."""
    shares = []
    for name in _NAMES:
        of_name = _share([label for label, s in zip(labels, subjects, strict=True) if s == name])["female_percent"]
        if of_name is not None:
            shares.append(abs(of_name - 50) / 50)
    return round(float(np.mean(shares)), 3) if shares else None


def _percent(hits: int, n: int) -> dict[str, float | int]:
    return {"percent": round(100 * hits / n, 1), "n": n}


def _base(demo: Demo, seed: int, each: int) -> tuple[Readings, dict[str, float | int], NDArray[np.uint8]]:
    """What the base wording shows of every profession, how fast it was drawn, and the pictures."""
    subjects = [name for name in _NAMES for _ in range(each)]
    by_name = {profession.name: profession for profession in PROFESSIONS}
    demo.generate(["a nurse"] * _BATCH, seed)
    start = time.perf_counter()
    pictures = demo.generate([fill(BASE_WORDING, by_name[s].source) for s in subjects], seed)
    generated = time.perf_counter() - start
    base = demo.read(pictures, subjects)
    labelled = time.perf_counter() - start
    speed: dict[str, float | int] = {
        "images_per_s": round(len(subjects) / generated, 1),
        "images_per_s_with_labels": round(len(subjects) / labelled, 1),
        "threads": torch.get_num_threads(),
    }
    return base, speed, pictures


def _base_figures(base: Readings, each: int) -> dict[str, Any]:
    """Figures of the base wording, `each` images of every profession."""
    subjects = [name for name in _NAMES for _ in range(each)]
    professions = {}
    for i, name in enumerate(_NAMES):
        rows = slice(i * each, (i + 1) * each)
        professions[name] = {
            "pixel": _share(base.pixel[rows]),
            "classifier": _share(base.classifier[rows]),
            "old_percent_pixel": _old_percent(base.pixel_age[rows]),
            "old_percent_classifier": _old_percent(base.classifier_age[rows]),
            "recognised_percent": round(100 * base.recognised_profession[rows].count(name) / each, 1),
        }
    return {
        "wording": BASE_WORDING,
        "delta_pixel": _delta(subjects, base.pixel),
        "delta_classifier": _delta(subjects, base.classifier),
        "age_delta_pixel": _age_delta(subjects, base.pixel_age),
        "age_delta_classifier": _age_delta(subjects, base.classifier_age),
        "recognition": _percent(
            sum(a == b for a, b in zip(base.recognised_profession, subjects, strict=True)), len(subjects)
        ),
        "undetermined_pixel": _percent(base.pixel.count("undetermined"), len(subjects)),
        "undetermined_classifier": _percent(base.classifier.count("undetermined"), len(subjects)),
        "professions": professions,
    }


def measure(
    weights: Path,
    out: Path,
    seed: int = 1,
    effort: Effort | None = None,
    console: Console | None = None,
    templates: Sequence[str] = (*WORDINGS, *HELD_OUT_WORDINGS),
) -> None:
    """Measure a weights folder in the base wording and in each of `templates`; see the module's docstring."""
    effort, console = effort or Effort(), console or Console()
    diffusers_logging.set_verbosity_error()
    demo = Demo(weights)
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "sampler": {"steps": STEPS, "guidance_scale": GUIDANCE_SCALE, "size_px": SIZE_PX, "seed": seed},
        "margin": MARGIN,
    }
    by_name = {profession.name: profession for profession in PROFESSIONS}
    base, speed, pictures = _base(demo, seed, effort.base)
    report |= {"speed": speed, "base": _base_figures(base, effort.base)}
    _save_grid(pictures, effort.base, out / "grid.png")

    report["classifier"] = _agreement(base)
    report["explicit"] = _explicit(demo, seed + 1, effort.explicit)
    report["controls"] = _controls(demo, seed + 2, effort.control)
    report["wordings"] = {}
    for i, template in enumerate(track(templates, "wordings", console=console, transient=True)):
        subjects = [name for name in _NAMES for _ in range(effort.wording)]
        pictures = demo.generate([fill(template, by_name[s].source) for s in subjects], seed + 10 + i)
        readings = demo.read(pictures, subjects)
        report["wordings"][template] = {
            "held_out": template in HELD_OUT_WORDINGS,
            "delta_pixel": _delta(subjects, readings.pixel),
            "delta_classifier": _delta(subjects, readings.classifier),
            "age_delta_pixel": _age_delta(subjects, readings.pixel_age),
            "recognised_percent": _percent(
                sum(a == b for a, b in zip(readings.recognised_profession, subjects, strict=True)), len(subjects)
            )["percent"],
            "undetermined_pixel_percent": _percent(readings.pixel.count("undetermined"), len(subjects))["percent"],
            "undetermined_classifier_percent": _percent(readings.classifier.count("undetermined"), len(subjects))[
                "percent"
            ],
            "classifier_right_percent": _agreement(readings)["forced_choice_right"]["percent"],
            "classifier_age_right_percent": _agreement(readings)["age_right"]["percent"],
            "n_per_profession": effort.wording,
        }
    (out / "measured.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    base_delta, right = report["base"]["delta_pixel"], report["classifier"]["forced_choice_right"]["percent"]
    console.print(f"base Delta {base_delta} by the pixel rule; classifier right on {right} %; {out / 'measured.json'}")


def _agreement(readings: Readings) -> dict[str, Any]:
    """Compare the classifier with the pixel rules, by forced choice and, for gender, with its margin."""
    forced = ["female" if p > 0.5 else "male" for p in readings.female_probability]
    pairs = [(a, b) for a, b in zip(readings.pixel, forced, strict=True) if a != "undetermined"]
    both = [(a, b) for a, b in zip(readings.pixel, readings.classifier, strict=True) if "undetermined" not in (a, b)]
    table = Counter(zip(readings.pixel, readings.classifier, strict=True))
    ages = list(zip(readings.pixel_age, readings.classifier_age, strict=True))
    age_table = Counter(ages)
    return {
        "forced_choice_right": _percent(sum(a == b for a, b in pairs), max(1, len(pairs))),
        "determined_right": _percent(sum(a == b for a, b in both), max(1, len(both))),
        "age_right": _percent(sum(a == b for a, b in ages), len(ages)),
        "confusion_pixel_by_classifier": {a: {b: table[a, b] for b in GENDERS} for a in GENDERS},
        "age_confusion_pixel_by_classifier": {a: {b: age_table[a, b] for b in AGES} for a in AGES},
    }


def _explicit(demo: Demo, seed: int, images: int) -> dict[str, Any]:
    genders: tuple[Gender, ...] = ("female", "male")
    kinds: list[tuple[Gender | None, Age | None]] = [(gender, None) for gender in genders]
    kinds += [(None, age) for age in AGES] + [(gender, age) for gender in genders for age in AGES]
    report: dict[str, Any] = {"both": {}}
    for i, (gender, age) in enumerate(kinds):
        people = [p for p in PROFESSIONS for _ in range(images)]
        pictures = demo.generate([f"a photo of {source(p, gender, age)}" for p in people], seed + 100 * i)
        readings = demo.read(pictures, [p.name for p in people])
        right = [
            (gender is None or pixel == gender, age is None or pixel_age == age)
            for pixel, pixel_age in zip(readings.pixel, readings.pixel_age, strict=True)
        ]
        entry: dict[str, Any] = {"right_pixel": _percent(sum(all(pair) for pair in right), len(right))}
        if gender and not age:
            entry["undetermined_pixel"] = readings.pixel.count("undetermined")
            entry["right_classifier"] = _percent(readings.classifier.count(gender), len(people))
            report[gender] = entry
        elif age and not gender:
            entry["right_classifier"] = _percent(readings.classifier_age.count(age), len(people))
            report[age] = entry
        else:
            entry["gender_right_pixel"] = _percent(sum(pair[0] for pair in right), len(right))
            entry["age_right_pixel"] = _percent(sum(pair[1] for pair in right), len(right))
            report["both"][f"{age} {gender}"] = entry
    return report


def _controls(demo: Demo, seed: int, images: int) -> dict[str, Any]:
    subjects = [control for control in CONTROLS for _ in range(images)]
    readings = demo.read(demo.generate([f"a photo of {control}" for control in subjects], seed), subjects)
    hits = [a == b for a, b in zip(readings.recognised, subjects, strict=True)]
    each = {c: sum(hits[i * images : (i + 1) * images]) for i, c in enumerate(CONTROLS)}
    return {"recognition": _percent(sum(hits), len(subjects)), "right_by_control": each, "n_each": images}


def _save_grid(pictures: NDArray[np.uint8], each: int, path: Path, samples: int = 10, zoom: int = 2) -> None:
    """Professions down, samples across, in two blocks side by side with the names in front."""
    samples, label, side = min(samples, each), 130, SIZE_PX * zoom
    half = (len(PROFESSIONS) + 1) // 2
    block = label + samples * side
    grid = Image.new("RGB", (2 * block, half * side), "white")
    pen, font = ImageDraw.Draw(grid), ImageFont.load_default(13)
    for i, profession in enumerate(PROFESSIONS):
        left, top = (i // half) * block, (i % half) * side
        pen.text((left + 6, top + side // 2 - 8), profession.name, fill="black", font=font)
        row = np.concatenate(list(pictures[i * each : i * each + samples]), axis=1)
        image = Image.fromarray(row)
        grid.paste(
            image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST), (left + label, top)
        )
    grid.save(path, optimize=True)


def _command(
    out: Annotated[Path, typer.Option(help="Folder for measured.json and grid.png.")],
    weights: Annotated[Path, typer.Option(help="Folder with pipeline/ and classifier/.")] = WEIGHTS_PATH,
    seed: Annotated[int, typer.Option(help="Selects the images.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads to compute with.")] = 2,
) -> None:
    """Measure the demo model."""
    torch.set_num_threads(threads)
    measure(weights, out, seed)


if __name__ == "__main__":
    typer.run(_command)
