"""A stored mixture opened as its users open it: each component by itself, and the route between them.

Only the part that is looked at is fetched, and checked against SHA256SUMS. Code that lies beside it has to be the
code of this version to the last byte, so that none is run that came with a model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from infra.storage import ObjectStore, in_parallel
from jobs.config import SamplerConfig
from jobs.exports.mixture import pipeline, pipeline_flux, pipeline_sd3, pipeline_xl
from jobs.exports.mixture.code import code_bytes
from jobs.exports.mixture.load_mixture import edited_prompt
from jobs.exports.mixture.parts import CODE, MIXTURE_FILE, PIPELINE, component_place
from jobs.exports.mixture.route import component_of
from jobs.exports.schema import Form
from jobs.exports.verify.opened import open_export, pipeline_options
from jobs.exports.verify.samples import Sample
from jobs.images.generator import Generator, ImageRequest, is_guided, negative_prompt_of
from jobs.images.shards import BASE
from jobs.models.checksums import CHECKSUMS, parse_checksums, sha256_of
from jobs.models.names import Family, family_of
from jobs.models.publishing import MIXTURE_INDEX
from time_ops import Mixture, ModelError
from time_ops.surfaces import denoiser_of

__all__ = ["Part", "RoutedGenerator", "audited_operator", "check_route", "open_part"]

_HOMES: dict[Family, Any] = {"sd": pipeline, "xl": pipeline_xl, "sd3": pipeline_sd3, "flux": pipeline_flux}


@dataclass(frozen=True)
class Part:
    """A component of a stored mixture, or all of it, opened.

    Attributes:
        generator: what draws with it.
        operator: what the generator calls the operator that the embeddings pass through, `BASE` for none.
        dtype: of the edited tensors as stored.
    """

    generator: Generator
    operator: str
    dtype: torch.dtype


class RoutedGenerator(Generator):
    """Draws as users draw with a mixture: `pipeline.py`, or `route.py` and the loader, pick each image's component.

    Args:
        pipe: a `MixturePipeline`, or the base pipeline.
        sampler: as for `Generator`.
        folder: of mixture.json and mixture.safetensors, for the loader; None: the pipeline routes by itself.
    """

    def __init__(self, pipe: Any, sampler: SamplerConfig, folder: Path | None = None) -> None:
        super().__init__(pipe, sampler)
        self._folder = folder

    def _prompts(self, batch: Sequence[ImageRequest]) -> dict[str, Any]:
        options: dict[str, Any] = {"prompt": [request.prompt for request in batch]}
        negative = negative_prompt_of(self._pipe, self._sampler)
        if negative is not None:
            options["negative_prompt"] = [negative] * len(batch)
        if self._folder is not None:
            made = [self._run_loader(request, self._folder) for request in batch]
            options = {name: torch.cat([each[name] for each in made]) for name in made[0]}
        if not is_guided(self._pipe, self._sampler):
            options = {name: value for name, value in options.items() if "negative" not in name}
        return options

    def _run_loader(self, request: ImageRequest, folder: Path) -> dict[str, torch.Tensor]:
        label = component_of(request.seed, request.prompt, folder=folder)
        file = str(folder / MIXTURE_FILE)
        embeddings: dict[str, torch.Tensor] = edited_prompt(
            self._pipe, request.prompt, label, negative_prompt_of(self._pipe, self._sampler), file
        )
        return embeddings


def audited_operator(mixture: Mixture, label: str | None) -> Callable[[Sample], str]:
    """What the audit's generator calls the operator under which it draws an image.

    Args:
        mixture: the audited mixture.
        label: of the component that draws it; None: the one that its seed picks.
    """

    def name(sample: Sample) -> str:
        index = mixture.component_of(sample.seed, sample.prompt) if label is None else mixture.labels.index(label)
        component = mixture.components[index]
        return BASE if component.is_identity else component.operator.digest

    return name


def open_part(
    form: Form,
    label: str | None,
    published: ObjectStore,
    scratch: Path,
    base: Any,
    base_folder: Path,
    sampler: SamplerConfig,
) -> Part:
    """Fetch a part, check it and open it.

    Args:
        form: which form.
        label: of the component; None: the whole, of forms whose users get it opened by one file.
        published: the store of the export's folder.
        scratch: where its files lie; they have to outlive the part.
        base: the resident pipeline; lends what the export does not hold.
        base_folder: the folder that it was loaded from.
        sampler: as for `load_pipeline`.

    Raises:
        ModelError: it is not as it was published, or can't be opened.
        StorageError: the store refuses or fails.
    """
    place = None if label is None else component_place(form, label)
    _fetch(published, place, scratch, denoiser_of(base).config)
    if place is None:
        return _open_whole(form, scratch, base, sampler)
    if label is not None and form == "operator":
        mixture = Mixture.load(scratch / MIXTURE_FILE)
        generator, operator = Generator(base, sampler), mixture.components[mixture.labels.index(label)].operator
        generator.add_operator(operator)
        return Part(generator, operator.digest, torch.float64)
    inside, file = (scratch / place, None) if form == "diffusers" else (scratch, place)
    pipe, _, dtype = open_export(form, inside, base, base_folder, sampler, file=file)
    return Part(Generator(pipe, sampler), BASE, dtype)


def _open_whole(form: Form, folder: Path, base: Any, sampler: SamplerConfig) -> Part:
    if form == "operator":
        return Part(RoutedGenerator(base, sampler, folder), BASE, torch.float64)
    home = _HOMES[family_of(denoiser_of(base).config)]
    try:
        pipe: Any = home.MixturePipeline(**base.components, **pipeline_options(base), mixture=str(folder))
    except ValueError as error:
        raise ModelError(f"{PIPELINE} refuses: {error}") from error
    pipe.set_progress_bar_config(disable=True)  # all else is the resident pipeline's
    return Part(RoutedGenerator(pipe, sampler), BASE, torch.float64)


def check_route(published: ObjectStore, mixture: Mixture, wanted: Sequence[Sample], config: Mapping[str, Any]) -> None:
    """Check that `route.py` and mixture.json, as stored, pick for these images the components that the audit picks.

    Args:
        published: the store of the export's folder.
        mixture: the audited mixture.
        wanted: the images.
        config: of the base model's UNet or transformer, by which `pipeline.py` is known.

    Raises:
        ModelError: they do not, or are not as they were published.
        StorageError: the store refuses or fails.
    """
    with tempfile.TemporaryDirectory(prefix="evenhand-") as name:
        folder = Path(name)
        _fetch(published, None, folder, config)
        wrong = [
            f"{s.prompt!r}, seed {s.seed}"
            for s in wanted
            if component_of(s.seed, s.prompt, folder=folder) != mixture.labels[mixture.component_of(s.seed, s.prompt)]
        ]
    if wrong:
        raise ModelError.listing(f"{published.url(MIXTURE_INDEX)} routes otherwise than the audit:", wrong[:4])


def _fetch(published: ObjectStore, place: str | None, folder: Path, config: Mapping[str, Any]) -> None:
    """The files of one component, or none, and what says of the whole what it is; each as it was published.

    `config` is that of the base model's UNet or transformer.
    """
    digests = parse_checksums(published.get(CHECKSUMS).decode())
    always = {MIXTURE_INDEX, MIXTURE_FILE, *CODE}
    wanted = [n for n in digests if n in always or (place is not None and (n == place or n.startswith(f"{place}/")))]
    in_parallel(lambda name: published.download(name, folder / name), wanted)
    wrong = [f"{name} differs from its checksum" for name in wanted if sha256_of(folder / name) != digests[name]]
    wrong += [
        f"{name} is not the one of this version"
        for name in CODE
        if name in wanted and (folder / name).read_bytes() != code_bytes(name, config)
    ]
    if wrong:
        raise ModelError.listing(f"{published.url()} is not as it was published; publish it again:", wrong)
