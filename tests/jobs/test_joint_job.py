"""The main job with SD3 and FLUX, on a real Ray and a real S3 store: a mixture of the one, a single edit of the other.

One run for each. Small random models of the real classes draw noise, so gates do not pass: what is asked is that every
step is taken, and that what is stored draws what was audited.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from PIL import Image
from rich.console import Console

from infra.demo import CLASSIFIER_PATH
from infra.storage import ObjectStore
from jobs.audit import audit
from jobs.auditing.reporting import Outcome
from jobs.cli import main
from jobs.config import RunConfig, load_config
from jobs.debias import debias
from jobs.evaluate import evaluate
from jobs.planning.plan import make_plan
from manifests import write_manifest
from tests.conftest import S3Server
from tests.jobs.helpers import manifest
from tests.time_ops.families import make_flux_pipe, make_sd3_pipe
from time_ops import EditOperator, Mixture, edit_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FORMS = {"sd3": "mixture", "flux": "single"}


@dataclass(frozen=True)
class Place:
    """A family, its run in a store, and the configuration of that."""

    name: str
    store: ObjectStore
    folder: Path
    outcome: Outcome

    def config(self, **keys: Any) -> RunConfig:
        return load_config((self.folder / "run.yaml").read_text(), flags=keys)

    @property
    def run(self) -> str:
        return f"runs/{self.outcome.run}"

    def get(self, name: str) -> bytes:
        return self.store.get(f"{self.run}/{name}")


@pytest.fixture(scope="module", params=FORMS)
def here(
    request: pytest.FixtureRequest, s3_server: S3Server, shared_ray: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp(request.param)
    {"sd3": make_sd3_pipe, "flux": make_flux_pipe}[request.param]().save_pretrained(folder / "model")
    write_manifest(manifest("nurse", "ceo"), folder / "m.parquet")
    with pytest.MonkeyPatch.context() as patch:
        s3_server.apply(patch)
        store = s3_server.store()
        config = {
            "manifest": str(folder / "m.parquet"),
            "model": str(folder / "model"),
            "classifier": str(CLASSIFIER_PATH),
            "output": store.url(),
            "form": FORMS[request.param],
            "run": request.param,
            "wordings": {
                "edit": ["{source}", "a photo of {source}"],
                "calibration": ["a picture of {source}"],
                "audit": ["{source} at work"],
            },
            "mixture": {"budget": 0, "neutral": ["a photo of a cat"]},
            "calibration": {"images": 2, "control_images": 2, "base_rounds": 1, "search_rounds": 1, "verify_rounds": 1},
            "controls": ["a photo of a black cat"],
            "images_per_cell": 4,
            "explicit_images": 2,
            "control_images": 2,
            "shard_images": 4,
            "sampler": {
                "scheduler": "flow-euler",
                "steps": 2,
                "guidance_scale": 3.0,
                "height": 16,
                "width": 16,
                "batch_size": 8,
            },
            "pictures": {"per_cell": 1, "format": "png"},
            "export": {"images": 3},
            "workers": {"count": 1},
        }
        (folder / "run.yaml").write_text(yaml.safe_dump(config))
        outcome = debias(load_config(yaml.safe_dump(config)), Console(file=io.StringIO()))
        yield Place(request.param, store, folder, outcome)


def test_the_run_goes_through_every_step_and_its_checkpoint_draws_what_was_audited(here: Place) -> None:
    report = here.outcome.report
    assert report.shipped is not None
    assert report.shipped.gate.outcome == "pass"
    # Of a mixture each component and the whole.
    assert report.shipped.images == 3 * (3 if here.name == "sd3" else 1)
    assert report.cost.images > 0
    assert report.summary.base.undetermined.n == 8
    names = {name.removeprefix(f"{here.run}/") for name in here.store.list(here.run)}
    (place,) = {name.partition("/")[0] for name in names} & {"candidate", "checkpoint"}
    card = here.get(f"{place}/README.md").decode()
    assert "of SD3 and FLUX the transformer's `context_embedder`" in card
    if here.name == "sd3":
        edit: Mixture | EditOperator = Mixture.from_bytes(here.get("mixture.safetensors"))
        assert edit.pooled_d == 48
        assert f"{place}/pipeline.py" in names
        assert f"{place}/components/female-only/transformer/config.json" in names
    else:
        (here.folder / "operator.safetensors").write_bytes(here.get("operator.safetensors"))
        edit = EditOperator.load(here.folder / "operator.safetensors")
        assert edit.pooled is not None
        assert f"{place}/transformer/config.json" in names
    assert edit.digest == report.provenance["operator"]


def test_the_same_command_again_draws_nothing_and_a_plan_says_so(here: Place) -> None:
    again = debias(here.config(), Console(file=io.StringIO()))
    assert (again.run, again.report.cost.images) == (here.outcome.run, 0)
    plan = make_plan(here.config())
    assert (plan.run, plan.images_to_make) == (here.outcome.run, 0)
    name = "mixture" if here.name == "sd3" else "operator"
    operator = here.store.url(f"{here.run}/{name}.safetensors")
    alone = audit(here.config(run="alone", audit={"operator": operator}), Console(file=io.StringIO()))
    edited, mine = alone.report.summary.edited, here.outcome.report.summary.edited
    assert edited is not None
    assert mine is not None
    assert (alone.report.cost.images, edited.delta) == (0, mine.delta)


def test_its_exports_are_checked_and_published(here: Place, capsys: pytest.CaptureFixture[str]) -> None:
    forms = [flag for form in ("operator", "lora", "tensors") for flag in ("--form", form)]
    models = ["--model", str(here.folder / "model"), "--classifier", str(CLASSIFIER_PATH)]
    with pytest.raises(SystemExit) as ended:
        main(["export", here.store.url(here.run), *models, *forms, "--force", "--json"])
    assert ended.value.code == 0
    found = {each["form"]: each for each in json.loads(capsys.readouterr().out)}
    assert set(found) == {"operator", "lora", "tensors"}
    for form, told in found.items():
        assert told["pipeline"] == {"sd3": "StableDiffusion3Pipeline", "flux": "FluxPipeline"}[here.name]
        assert told["shipped"]["gate"]["outcome"] == "pass"
        card = here.get(f"exports/{form}/README.md").decode()
        assert "pipe.unet" not in card
        assert ("pipe.transformer.load_state_dict" in card) == (form == "tensors")


def test_an_edit_set_is_evaluated_on_it(here: Place) -> None:
    set_of_one = here.folder / "edits.csv"
    set_of_one.write_text(
        "old,new,positive1,gt1,negative1,gn1\n"
        "a nurse,a female nurse,a nurse at work,a female nurse at work,a ceo at work,a female ceo at work\n"
    )
    settings: dict[str, Any] = {"lam": [0.1, 10.0], "images": 4, "control_images": 2}
    config = here.config(manifest=str(set_of_one), run="evaluated", evaluate=settings)
    evaluated = evaluate(config, Console(file=io.StringIO()))
    folder = f"runs/{evaluated.run}"
    rows = pq.read_table(io.BytesIO(here.store.get(f"{folder}/images/part-00000.parquet"))).to_pylist()
    assert len(rows) == evaluated.report.cost.images + evaluated.report.cost.images_reused
    # What the main job has drawn of the unedited model is not drawn again.
    assert evaluated.report.cost.images_reused > 0
    (shown,), (edit,) = evaluated.report.pictures, evaluated.report.edits
    for found in edit.variants:
        for role, label, figure in (
            ("source", "destination", found.efficacy),
            ("negative", "source", found.specificity),
        ):
            # What should stay is drawn by the base model, in the oracle's row too.
            variant = "base" if (found.variant, role) == ("oracle", "negative") else found.variant
            own = [row for row in rows if (row["role"], row["variant"], row["lam"]) == (role, variant, found.lam)]
            hits = sum(row["label"] == label for row in own)
            assert (figure.value, figure.n, len(own)) == (hits / 4, 4, 4), (found.variant, found.lam, role)
    # The published pictures beside those of a model whose weights a notebook edits, on the same wordings.
    pipe = DiffusionPipeline.from_pretrained(here.folder / "model")
    pipe.set_progress_bar_config(disable=True)
    drawn = {shown.base: users_image(pipe, "a nurse", shown.seed)}
    first = next(row for row in rows if (row["variant"], row["role"]) == ("oracle", "source"))
    drawn[shown.oracle] = users_image(pipe, "a female nurse", first["seed"])
    for name, lam in zip(shown.edited, settings["lam"], strict=True):
        edit_model(pipe, "a nurse", "a female nurse", lam)
        drawn[name] = users_image(pipe, "a nurse", shown.seed)
    stored = {name: pixels_of(here.store.get(f"{folder}/{name}")) for name in drawn if name is not None}
    for name, pixels in stored.items():
        assert np.abs(pixels - drawn[name]).max() <= 2, name
    several = list(stored.values())
    assert min(np.abs(one - other).max() for i, one in enumerate(several) for other in several[:i]) > 2


def test_a_checkpoint_is_evaluated_as_the_edited_model_that_the_run_audited(here: Place) -> None:
    pair = next(p for p in here.outcome.report.pictures if p.profession == "nurse")
    assert pair.edited is not None
    (place,) = {n.split("/")[2] for n in here.store.list(here.run)} & {"candidate", "checkpoint"}
    place += "" if pair.component is None else f"/components/{pair.component}-only"
    (here.folder / "one.csv").write_text(
        "old,new,positive1,gt1\na nurse at work,a female nurse at work,A nurse,A female nurse\n"
    )
    settings = {"lam": [0.1], "images": 1, "control_images": 0}
    keys = {"manifest": str(here.folder / "one.csv"), "run": "of-checkpoint", "evaluate": settings}
    config = here.config(**keys, model=here.store.url(f"{here.run}/{place}"))
    evaluated = evaluate(config, Console(file=io.StringIO()))
    (shown,) = evaluated.report.pictures
    assert shown.seed == pair.seed
    base = pixels_of(here.store.get(f"runs/{evaluated.run}/{shown.base}"))
    assert np.abs(base - pixels_of(here.get(pair.edited))).max() <= 2
    assert np.abs(base - pixels_of(here.get(pair.base))).max() > 2


def users_image(pipe: Any, prompt: str, seed: int) -> np.ndarray:
    """What the pipeline draws, called as in a notebook."""
    size = {"height": 16, "width": 16, "num_inference_steps": 2, "guidance_scale": 3.0}
    return np.asarray(pipe(prompt, generator=torch.Generator().manual_seed(seed), **size).images[0], dtype=int)


def pixels_of(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)), dtype=int)
