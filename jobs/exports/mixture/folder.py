"""A mixture as a folder: mixture.json says what it is, and no part of it can be taken for the whole.

    mixture.json  mixture.safetensors  pipeline.py  route.py  README.md  SHA256SUMS
    components/female-only/            # an edited diffusers folder, which says that it is one component
    components/male-only/

The root has no model_index.json: a plain pipeline class finds no model there, and raises. Unchanged files of the
components are the base model's very bytes; a server that has them copies them by itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors

from infra.storage import ObjectStore, StorageSettings
from jobs.exports.forms.diffusers_folder import kept_files, stored_files, write_edited_unet
from jobs.exports.forms.header import Provenance, component_header, file_header, not_alone, spec_of
from jobs.exports.forms.writing import Written, entries_of, scratch_folder, tensor_bytes, write_file, write_safetensors
from jobs.exports.mixture.code import code_bytes
from jobs.exports.mixture.parts import LOADER, MIXTURE_FILE, PIPELINE, ROUTE, component_place
from jobs.exports.schema import Form
from jobs.models.digests import content_digest
from jobs.models.files import denoiser_folder
from jobs.models.publishing import MIXTURE_INDEX, MODEL_INDEX, publish
from jobs.models.sources import open_denoiser
from time_ops import Mixture, ModelError
from time_ops.files import header_of
from time_ops.route import ROUTE_VECTORS, ROUTE_VERSION

__all__ = [
    "component_card",
    "mixture_content",
    "mixture_header",
    "write_about",
    "write_code",
    "write_mixture",
    "write_mixture_file",
]

_HOW = (
    "With the seed of the image's generator and its place among the images drawn from that generator in one call (0 "
    "where each image has its own) as unsigned 64-bit little-endian integers: u is the BLAKE2b digest of 8 bytes of "
    "seed and place, without a key, read as a big-endian integer, without its lowest 11 bits, over 2^53. The component "
    "is the first whose weight, added to those before it from the left in float64, exceeds u; where rounding leaves u "
    "beyond the last sum, the last one whose weight is not 0. Weights are those of the longest profession whose source "
    "words (case folded, without the article in front) the prompt has in a row, of equally long ones the first in the "
    "prompt; of none, `weights`. Prompt and negative prompt pass through the same component."
)


def write_mixture(
    base: Path,
    mixture: Mixture,
    provenance: Provenance,
    title: str,
    card: str,
    store: ObjectStore,
    prefix: str,
    *,
    only_unet: bool = False,
    date: str | None = None,
    licence: str | None = None,
    scratch: Path | None = None,
    settings: StorageSettings | None = None,
    beside: Sequence[str] = (),
) -> dict[str, int]:
    """Write the folder below `prefix`, whole or not at all; see `publish`.

    Args:
        base: folder of the base model.
        mixture: the components and their weights.
        provenance: for every header; its base digest is what the model must have.
        title: the whole's name for people.
        card: text of the whole's README.md.
        store: where to.
        prefix: where in it.
        only_unet: leave the components' other parts out.
        date: of the run, ISO 8601.
        licence: of the base model, as its card says.
        scratch: where the edited files (2 GB for each component of SD 1.x in half precision) lie meanwhile.
        settings: how to reach the store that the base model was staged from; None reads the environment.
        beside: published folders in `store` that may hold some of the same files.

    Returns:
        Bytes of each file but SHA256SUMS, by its name.

    Raises:
        ModelError: the base model is not the one that was audited, or can't be edited.
        StorageError: the store refuses, or there is no space left for the edited files.
    """
    if content_digest(base) != provenance.base_digest:
        raise ModelError("the model has changed since it was audited; run the job again")
    kept = kept_files(base, only_unet=only_unet)
    with scratch_folder(scratch) as folder:
        write_file(folder / "README.md", card.encode())
        parts = _write_parts(folder, base, mixture, provenance, title, date, licence, only_unet=only_unet)
        made = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        unchanged = {f"{part}/{name}": name for part in parts for name in kept}
        unchanged = {name: source for name, source in unchanged.items() if name not in made}
        files = {name: kept[source] for name, source in unchanged.items()} | made
        there = stored_files(base, set(unchanged.values()), settings)
        stored = {name: there[source] for name, source in unchanged.items() if source in there}
        publish(files, store, prefix, main=MIXTURE_INDEX, stored=stored, beside=beside)
        return {name: path.stat().st_size for name, path in files.items()}


def _write_parts(
    folder: Path,
    base: Path,
    mixture: Mixture,
    provenance: Provenance,
    title: str,
    date: str | None,
    licence: str | None,
    *,
    only_unet: bool,
) -> list[str]:
    """All that is not the base model's own, below `folder`; returns the components' folders in it."""
    write_about(folder, base, mixture, provenance, title, "diffusers", date=date, licence=licence)
    header = file_header("tensors", spec_of(base, title, date=date, license=licence), provenance)
    parts, denoiser = [], denoiser_folder(base)
    for component in mixture.components:
        if component.is_identity:
            continue
        label = component.label
        parts.append(component_place("diffusers", label))
        place = folder / parts[-1]
        write_edited_unet(
            denoiser, component.operator, place / denoiser.name, component_header(header, label, mixture.digest)
        )
        write_file(place / "README.md", component_card(label, mixture, title).encode())
        if not only_unet:
            write_file(place / MODEL_INDEX, _component_index(base, label, mixture))
    return parts


def write_about(
    folder: Path,
    base: Path,
    mixture: Mixture,
    provenance: Provenance,
    title: str,
    form: Form,
    *,
    date: str | None = None,
    licence: str | None = None,
) -> list[Path]:
    """Write what every form of a mixture has beside its components: what it is, the route, and operators where used.

    Args:
        folder: where to.
        base: see `write_mixture`; so are all others but `form`.
        mixture: .
        provenance: .
        title: .
        form: which form.
        date: .
        licence: .

    Returns:
        The files.

    Raises:
        ModelError, StorageError: as `write_mixture`.
    """
    content = mixture_content(mixture, provenance, title, form)
    write_file(folder / MIXTURE_INDEX, json.dumps(content, indent=1, ensure_ascii=False).encode())
    code = {"diffusers": [ROUTE, PIPELINE], "operator": [ROUTE, LOADER]}.get(form, [ROUTE])
    config = json.loads((denoiser_folder(base) / "config.json").read_text(encoding="utf-8"))
    for name in code:
        write_code(folder / name, config)
    written = [MIXTURE_INDEX, *code]
    if len(code) > 1:
        header = mixture_header(base, mixture, provenance, title, date, licence)
        write_mixture_file(mixture, folder / MIXTURE_FILE, header)
        written.append(MIXTURE_FILE)
    return [folder / name for name in written]


def _component_index(base: Path, label: str, mixture: Mixture) -> bytes:
    """The base model's model_index.json, with a key beside that diffusers leaves alone."""
    index = json.loads((base / MODEL_INDEX).read_text(encoding="utf-8"))
    said = {"is": not_alone(label), "component": label, "mixture": mixture.digest}
    return json.dumps({"_evenhand": said, **index}, indent=2, ensure_ascii=False).encode()


def mixture_content(mixture: Mixture, provenance: Provenance, title: str, form: Form) -> dict[str, Any]:
    """What mixture.json says.

    Args:
        mixture: the mixture.
        provenance: of the run.
        title: for people.
        form: which form the folder is of: it says where each component lies.
    """

    def by_label(weights: Sequence[float]) -> dict[str, float]:
        return dict(zip(mixture.labels, weights, strict=True))

    return {
        "format": "evenhand-mixture-folder/1",
        "is": "A mixture of edits: each image's seed picks the component that draws it. Only the whole was audited. No "
        "component by itself is a debiased model.",
        "title": title,
        "mixture": mixture.digest,
        "weights": by_label(mixture.table.default),
        "professions": {source: by_label(own) for source, own in sorted(mixture.table.professions.items())},
        "components": [
            {
                "label": component.label,
                "is": "the unedited model" if component.is_identity else not_alone(component.label),
                "operator": None if component.is_identity else component.operator.digest,
                "place": None if component.is_identity else component_place(form, component.label),
            }
            for component in mixture.components
        ],
        "route": {
            "version": ROUTE_VERSION,
            "how": _HOW,
            "vectors": [{"seed": seed, "place": place, "u": u} for seed, place, u in ROUTE_VECTORS],
        },
        "base": {"digest": provenance.base_digest},
        "run": provenance.run,
        "verdict": provenance.verdict,
        "forced": provenance.forced,
        "manifest": provenance.manifest_digest,
        "lams": provenance.lams_digest,
    }


def mixture_header(
    base: Path,
    mixture: Mixture,
    provenance: Provenance,
    title: str,
    date: str | None = None,
    licence: str | None = None,
) -> dict[str, str]:
    """What mixture.safetensors says beside its own header: the run, and by what its base model is known again.

    Raises:
        ModelError: the base model is none that the mixture fits.
    """
    # Only who exports pays for importing diffusers.
    from jobs.exports.mixture.pipeline import weights_digest

    unet = open_denoiser(denoiser_folder(base), d=mixture.d, pooled=mixture.pooled_d)
    digests = {
        f"evenhand.projections_{kind}": weights_digest(
            b"", ((name, unet.read(name)) for name in sorted(unet.names)), kind
        )
        for kind in ("float16", "bfloat16")
    }
    return {**file_header("mixture", spec_of(base, title, date=date, license=licence), provenance), **digests}


def write_mixture_file(mixture: Mixture, out: Path, header: Mapping[str, str]) -> Written:
    """Write mixture.safetensors in float64; `Mixture.load` reads it too.

    Raises:
        StorageError: the disk is full, or the place can't be written to.
    """
    data = mixture.to_bytes()
    tensors = load_tensors(data)
    entries = entries_of((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items())
    pieces = [tensor_bytes(tensors[entry.name]) for entry in entries]
    size = write_safetensors(out, entries, pieces, {**header_of(data), **header})
    return Written(out, size, len(mixture.components))


def write_code(out: Path, config: Mapping[str, Any] | None = None) -> Written:
    """Write the file of this name that users run, as it lies here; see `jobs.exports.mixture.code`.

    Raises:
        StorageError: as for `write_mixture_file`.
    """
    return Written(out, write_file(out, code_bytes(out.name, config)), 0)


def component_card(label: str, mixture: Mixture, title: str) -> str:
    """README.md of a component: first of all what it is not."""
    weight = dict(zip(mixture.labels, mixture.table.default, strict=True))[label]
    return (
        f"# {not_alone(label)}\n\n"
        "Do not publish or serve it alone. It is for those who route between components themselves, by "
        f"`{MIXTURE_INDEX}` two folders up: there it draws {weight:.1%} of the images of prompts without weights of "
        "their own.\n\n"
        f"The whole is *{title}*, mixture `{mixture.digest}`. Its card, README.md beside that file, has every figure "
        "of its audit. None of them is of this component alone.\n"
    )
