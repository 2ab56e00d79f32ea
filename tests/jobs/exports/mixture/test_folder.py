"""A mixture's folder: what it says, that no part of it passes for the whole, and that it is published whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel

from infra.storage import LocalStore
from jobs.debias import settle
from jobs.exports.forms.header import lams_digest, not_alone
from jobs.exports.mixture.folder import write_mixture
from jobs.exports.mixture.parts import component_name
from jobs.models.checksums import verify_folder
from jobs.models.digests import content_digest
from jobs.models.publishing import promote
from jobs.models.sources import open_safetensors
from jobs.models.staging import fetch_model
from tests.jobs.exports.conftest import Model, mixture_of, provenance_of
from tests.wire import Wire
from time_ops import EditOperator, Mixture, ModelError
from time_ops.mixture import UNEDITED
from time_ops.route import ROUTE_VECTORS, ROUTE_VERSION


def written(sd: Model, mixture: Mixture, tmp_path: Path, **options: Any) -> Path:
    store = LocalStore(tmp_path / "store")
    write_mixture(sd.folder, mixture, provenance_of(sd, mixture), "an edit", "# Whole\n", store, "c", **options)
    verify_folder(tmp_path / "store" / "c", "c")
    return tmp_path / "store" / "c"


def test_every_part_says_what_it_is(sd: Model, tmp_path: Path) -> None:
    mixture = mixture_of(sd)
    folder = written(sd, mixture, tmp_path, licence="openrail")
    at_root = {path.name for path in folder.iterdir() if path.is_file()}
    assert at_root == {"mixture.json", "mixture.safetensors", "pipeline.py", "route.py", "README.md", "SHA256SUMS"}
    told = json.loads((folder / "mixture.json").read_text())
    assert "No component by itself is a debiased model" in told["is"]
    assert (told["mixture"], told["lams"]) == (mixture.digest, lams_digest(mixture))
    assert told["weights"] == {"female": 0.4, "male": 0.6}
    assert told["professions"] == {"a nurse": {"female": 0.25, "male": 0.75}}
    assert told["route"]["version"] == ROUTE_VERSION
    assert [tuple(v.values()) for v in told["route"]["vectors"]] == list(ROUTE_VECTORS)
    assert Mixture.load(folder / "mixture.safetensors").digest == mixture.digest
    for component, said in zip(mixture.components, told["components"], strict=True):
        assert said["is"] == not_alone(component.label)
        assert said["operator"] == component.operator.digest
        part = folder / said["place"]
        assert part.name == f"{component.label}-only"
        assert (part / "README.md").read_text().startswith(f"# {not_alone(component.label)}")
        assert json.loads((part / "model_index.json").read_text())["_evenhand"]["is"] == not_alone(component.label)
        (file,) = (part / "unet").glob("*.safetensors")
        metadata = open_safetensors(file).metadata
        assert metadata["evenhand.is"] == metadata["modelspec.description"] == not_alone(component.label)
        assert metadata["evenhand.mixture"] == mixture.digest
        assert metadata["modelspec.title"].startswith(f"{component.label} only, not debiased")
        assert metadata["modelspec.license"] == "openrail"
        pipe = StableDiffusionPipeline.from_pretrained(part, local_files_only=True)
        folded = sd.pipe().unet
        component.operator.fold_into(folded)
        wanted = folded.state_dict()
        assert all(torch.equal(weight, wanted[name]) for name, weight in pipe.unet.state_dict().items())


@pytest.mark.parametrize("kind", [StableDiffusionPipeline, DiffusionPipeline, UNet2DConditionModel])
def test_the_root_is_no_model_for_a_plain_class(sd: Model, tmp_path: Path, kind: Any) -> None:
    folder = written(sd, mixture_of(sd), tmp_path)
    with pytest.raises(OSError, match=r"no file named (model_index|config)\.json"):
        kind.from_pretrained(folder, local_files_only=True)
    with pytest.raises(ModelError, match=r"is a mixture: several models"):
        fetch_model(str(folder), None, tmp_path, pipeline=True)  # type: ignore[arg-type]


def test_a_component_that_is_the_unedited_model_has_no_folder(sd: Model, tmp_path: Path) -> None:
    mixture = Mixture.of({"old man": sd.operator(), UNEDITED: EditOperator.identity(sd.d)}, [0.5, 0.5])
    folder = written(sd, mixture, tmp_path)
    assert [path.name for path in (folder / "components").iterdir()] == [component_name("old man")]
    last = json.loads((folder / "mixture.json").read_text())["components"][-1]
    assert last == {"label": UNEDITED, "is": "the unedited model", "operator": None, "place": None}


def test_twice_is_byte_for_byte_the_same_and_another_base_is_refused(sd: Model, tmp_path: Path) -> None:
    mixture = mixture_of(sd)
    one, two = (written(sd, mixture, tmp_path / name) for name in ("one", "two"))
    assert (one / "SHA256SUMS").read_bytes() == (two / "SHA256SUMS").read_bytes()
    wrong = replace(provenance_of(sd, mixture), base_digest="0" * 64)
    store = LocalStore(tmp_path / "other")
    with pytest.raises(ModelError, match="changed since it was audited"):
        write_mixture(sd.folder, mixture, wrong, "an edit", "card", store, "c")
    assert list(store.list()) == []


def test_only_the_unets(sd: Model, tmp_path: Path) -> None:
    folder = written(sd, mixture_of(sd), tmp_path, only_unet=True)
    assert {p.name for p in (folder / "components" / "male-only").iterdir()} == {"unet", "README.md"}


def test_it_is_whole_last_and_equal_files_are_sent_once(s3: Any, sd: Model, tmp_path: Path) -> None:
    """The server copies what it has of the base model; what opens the whole, or a part, goes first and comes last."""
    store, model = s3.store(), s3.store()
    model.upload_folder(sd.folder)
    base = fetch_model(model.url(), s3.settings, tmp_path / "cache", pipeline=True)
    mixture = mixture_of(sd)
    provenance = replace(provenance_of(sd, mixture), base_digest=content_digest(base))
    for staged in (True, False):
        wire = Wire(store)
        prefix = f"run-{staged}/candidate"
        folder = base if staged else sd.folder
        write_mixture(folder, mixture, provenance, "an edit", "# Whole\n", store, prefix, settings=s3.settings)
        sent = [url.partition("/candidate/")[2] for url in wire.written]
        indices = [f"components/{label}-only/model_index.json" for label in mixture.labels]
        assert sent[-4:] == ["SHA256SUMS", *indices, "mixture.json"]
        vaes = [name for name in sent if "vae/diffusion_pytorch_model" in name]
        assert vaes == ([] if staged else ["components/female-only/vae/diffusion_pytorch_model.safetensors"])
    gone: list[str] = []
    client = store._client.get()

    def note(model: Any, params: Any, **_: Any) -> None:
        if model.name == "DeleteObject":
            gone.append(params["url_path"].partition("/candidate/")[2])

    client.meta.events.register("before-call.s3", note)
    assert settle(store, "run-True", "pass", "# Passed\n")[0] == "checkpoint"
    assert gone[:4] == ["mixture.json", *indices[::-1], "SHA256SUMS"]
    store.download_folder("run-True/checkpoint", tmp_path / "out")
    verify_folder(tmp_path / "out", "c")
    assert (tmp_path / "out" / "README.md").read_text() == "# Passed\n"
    assert not list(store.list("run-True/candidate"))
    assert settle(store, "run-False", "fail", "# Ungated\n")[0] == "candidate"
    assert store.exists("run-False/candidate/mixture.json")
    # In place, as a run that does not pass leaves it: nothing of it is lost.
    for place in ("run-False/candidate", "run-True/checkpoint"):
        promote(store, place, place, {"README.md": b"again"})
        store.download_folder(place, tmp_path / place)
        verify_folder(tmp_path / place, place)
        assert (tmp_path / place / "components" / "male-only" / "model_index.json").is_file()
