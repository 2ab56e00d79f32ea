"""The main job in its default form, on a real Ray and a real S3 store with the demo model: a mixture, end to end.

One run serves most tests. Small on purpose: whether the figures are right is tested where they are computed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from rich.console import Console

from infra.demo import CLASSIFIER_PATH, PIPELINE_PATH
from infra.storage import ObjectStore
from jobs.audit import audit
from jobs.auditing.reporting import Outcome
from jobs.config import RunConfig, load_config
from jobs.debias import debias
from jobs.errors import ConfigError, ExitCode, exit_code_of
from jobs.images.shards import image_seed
from jobs.planning.plan import make_plan
from manifests import Manifest, ManifestRow, write_manifest
from tests.conftest import S3Server
from time_ops import EditOperator, Mixture
from time_ops.route import UNEDITED, apportion, route

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

EDIT = ["{source}", "A photo of {source}", "A portrait of {source}", "A poster of {source}", "{source} outdoors"]


def rows(*professions: tuple[str, dict[str, Any]]) -> Manifest:
    """Each profession's destinations by label, with what the row fixes."""
    return Manifest(
        tuple(
            ManifestRow(profession=name, source=f"a {name}", destination=f"a {label} {name}", label=label, **fixed)
            for name, labels in professions
            for label, fixed in labels.items()
        )
    )


# One of each kind: open; fixed lambda; other target; fixed shares; no destination of one label.
MANIFEST = rows(
    ("nurse", {"female": {}, "male": {}}),
    ("mechanic", {"female": {"lam": 900.0}, "male": {"lam": 900.0}}),
    ("manager", {"female": {"target": 0.75}, "male": {}}),
    ("sheriff", {"female": {"share": 0.25}, "male": {"share": 0.75}}),
    ("driver", {"female": {}}),
)


@dataclass
class Workplace:
    """A bucket's prefix, a configuration, and the run that is there."""

    store: ObjectStore
    file: Path
    outcome: Outcome

    def config(self, **keys: Any) -> RunConfig:
        return load_config(self.file.read_text(), flags=keys)

    def get(self, name: str) -> bytes:
        return self.store.get(f"runs/{self.outcome.run}/{name}")

    @property
    def mixture(self) -> Mixture:
        return Mixture.from_bytes(self.get("mixture.safetensors"))

    def images(self, outcome: Outcome | None = None) -> list[dict[str, Any]]:
        names = sorted(self.store.list(f"runs/{(outcome or self.outcome).run}/images"))
        tables = [pq.read_table(pa.BufferReader(self.store.get(name))) for name in names]
        return list(pa.concat_tables(tables).to_pylist())


@pytest.fixture(scope="module")
def here(s3_server: S3Server, shared_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    folder = tmp_path_factory.mktemp("mixture")
    write_manifest(MANIFEST, folder / "m.parquet")
    with pytest.MonkeyPatch.context() as patch:
        s3_server.apply(patch)
        store = s3_server.store()
        config = {
            "manifest": str(folder / "m.parquet"),
            "model": str(PIPELINE_PATH),
            "classifier": str(CLASSIFIER_PATH),
            "output": store.url(),
            "wordings": {
                "edit": EDIT,
                "calibration": ["{source} outdoors"],
                "audit": ["A painting of {source}", "{source} at night"],
            },
            "controls": ["a photo of a tree"],
            "images_per_cell": 5,
            "explicit_images": 2,
            "control_images": 2,
            "shard_images": 4,
            "mixture": {"images": 2, "budget": 12, "rounds": 2},
            "sampler": {"steps": 3, "guidance_scale": 3.0, "height": 32, "width": 32, "batch_size": 8},
            "pictures": {"per_cell": 2, "format": "png"},
            "workers": {"count": 1},
            "export": {"images": 3},
        }
        (folder / "run.yaml").write_text(yaml.safe_dump(config))
        outcome = debias(load_config(yaml.safe_dump(config)), Console(file=io.StringIO()))
        yield Workplace(store, folder / "run.yaml", outcome)


def test_the_mixture_is_what_the_manifest_asks_for(here: Workplace) -> None:
    report, mixture = here.outcome.report, here.mixture
    assert mixture.labels == ("female", "male")
    assert report.mixture is not None
    assert report.mixture.digest == mixture.digest == report.provenance["operator"]
    few, many = (mixture.weights_of(f"A painting of a {name}")[0] for name in ("mechanic", "manager"))
    assert many > few
    assert mixture.weights_of("a sheriff") == (0.25, 0.75)
    assert report.mixture.left_alone == {"male": ["driver"]}
    female, male = (c.operator for c in mixture.components)
    lams = {k: {r.source: r.lam for r in o.steps[0].edits} for k, o in (("female", female), ("male", male))}
    assert lams["female"]["a mechanic"] == lams["male"]["a mechanic"] == 900.0
    (driver,) = [r for r in male.steps[0].edits if r.source == "a driver"]
    assert dict(driver.destinations)["a driver"] == 1.0
    # All wordings in the end, those that strengths were tried on too; the own label's destinations are not preserved.
    assert set(driver.augmentations) == set(EDIT)
    held = {r.source: r for r in female.steps[0].preserved if r.lam is not None and np.isfinite(r.lam)}
    assert "a male nurse" in held
    assert "a female nurse" not in held
    assert "a photo of a dog" in held
    assert dict(held["a male nurse"].destinations) == {"a male nurse": 2.0, "a nurse": -1.0}
    told = {p.profession: p.components for p in report.professions}
    assert told["mechanic"] is not None
    assert told["mechanic"]["female"].lam == 900.0
    assert told["driver"] is not None
    assert told["driver"]["male"].left_alone


def test_another_configuration_under_the_same_name_is_refused(here: Workplace) -> None:
    before = {name: here.store.get_tagged(name) for name in here.store.list(f"runs/{here.outcome.run}")}
    with pytest.raises(ConfigError, match="another configuration") as refused:
        debias(here.config(run=here.outcome.run, undetermined_margin=0.3), Console(file=io.StringIO()))
    assert exit_code_of(refused.value) == ExitCode.INPUT
    assert {name: here.store.get_tagged(name) for name in here.store.list(f"runs/{here.outcome.run}")} == before


def test_images_are_those_that_production_would_draw(here: Workplace) -> None:
    mixture = here.mixture
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in here.images():
        if row["variant"] == "edited":
            cells.setdefault((row["kind"], row["prompt"]), []).append(row)
        else:
            assert row["component"] is None
    assert {kind for kind, _ in cells} == {"audit", "explicit", "control"}
    for (_, prompt), drawn in cells.items():
        weights = mixture.weights_of(prompt)
        for row in drawn:
            assert row["seed"] == image_seed(0, "audit", prompt, row["index"])
            assert row["component"] == mixture.labels[route(row["seed"], weights)]
        for k, count in enumerate(apportion(weights, len(drawn), prompt)):
            mine = [row["index"] for row in drawn if row["component"] == mixture.labels[k]]
            assert len(mine) == count
            # The first ones that the route gives it: none that comes before the last is left out.
            before = [i for i in range(max(mine, default=-1) + 1)
                      if route(image_seed(0, "audit", prompt, i), weights) == k]  # fmt: skip
            assert sorted(mine) == before


def test_the_report_counts_each_component_and_the_search_within_its_budget(here: Workplace) -> None:
    report = here.outcome.report
    assert report.saturation is not None
    assert report.saturation.wordings == ["{source} outdoors"]
    # Left alone in one component, a profession takes eight images of the base model there.
    assert report.saturation.images_per_profession <= 12
    assert {r.component for r in report.saturation.rounds} == {"female", "male"}
    assert report.mixture is not None
    drawn = [row for row in here.images() if row["variant"] == "edited" and row["kind"] == "audit"]
    for component in report.mixture.components:
        # Whom a component leaves alone says nothing of where it sends the others.
        alone = report.mixture.left_alone.get(component.label, [])
        mine = [row for row in drawn if row["component"] == component.label and row["profession"] not in alone]
        determined = [row for row in mine if row["label"] in ("female", "male")]
        assert component.own.n == len(determined)
        assert component.own.value == pytest.approx(
            sum(row["label"] == component.label for row in determined) / len(determined)
        )
        assert sum(w.n for w in component.wordings) == component.own.n
    pairs = [p for p in report.pictures if p.component]
    assert pairs
    assert all(p.component == here.mixture.labels[here.mixture.component_of(p.seed, p.prompt)] for p in pairs)


def test_the_candidate_is_whole_and_opens_as_no_plain_model(here: Workplace) -> None:
    from diffusers import StableDiffusionPipeline

    names = set(here.store.list(f"runs/{here.outcome.run}/candidate"))
    folder = f"runs/{here.outcome.run}/candidate"
    for name in ("mixture.json", "mixture.safetensors", "pipeline.py", "README.md", "SHA256SUMS"):
        assert f"{folder}/{name}" in names
    assert here.outcome.report.shipped is not None
    assert here.outcome.report.shipped.gate.outcome == "pass"
    stored = Mixture.from_bytes(here.get("candidate/mixture.safetensors"))
    assert stored.digest == here.mixture.digest
    local = here.file.parent / "fetched"
    here.store.download_folder(folder, local)
    with pytest.raises((OSError, ValueError)):
        StableDiffusionPipeline.from_pretrained(local, local_files_only=True)


def test_the_same_command_again_draws_nothing_and_finds_the_same(here: Workplace) -> None:
    before = here.get("mixture.safetensors")
    evidence = here.get("calibration.parquet")
    again = debias(here.config(), Console(file=io.StringIO()))
    assert again.run == here.outcome.run
    assert again.report.cost.images == 0
    assert here.get("mixture.safetensors") == before
    assert here.get("calibration.parquet") == evidence
    assert again.report.professions == here.outcome.report.professions
    assert again.report.saturation == here.outcome.report.saturation
    plan = make_plan(here.config())
    assert plan.run == again.run
    assert plan.images_to_make == 0


def test_a_search_that_was_cut_off_goes_on_with_its_rounds(here: Workplace) -> None:
    folder = f"runs/{here.outcome.run}"
    evidence, mixture = here.get("calibration.parquet"), here.get("mixture.safetensors")
    rows = pq.read_table(pa.BufferReader(evidence))
    rounds = rows.column("round").to_numpy()
    assert rounds.max() == 2
    sink = pa.BufferOutputStream()
    pq.write_table(rows.filter(pa.array(rounds == 1)), sink)
    here.store.put(f"{folder}/calibration.parquet", bytes(sink.getvalue()))
    here.store.delete(f"{folder}/COMPLETE")
    again = debias(here.config(), Console(file=io.StringIO()))
    assert again.run == here.outcome.run
    assert again.report.cost.images == 0
    assert here.get("calibration.parquet") == evidence
    assert here.get("mixture.safetensors") == mixture


def test_the_file_is_audited_under_and_compared_with_its_run(here: Workplace) -> None:
    url = here.store.url(f"runs/{here.outcome.run}")
    alone = audit(here.config(audit={"operator": f"{url}/mixture.safetensors"}), Console(file=io.StringIO()))
    edited, mine = alone.report.summary.edited, here.outcome.report.summary.edited
    assert edited is not None
    assert mine is not None
    assert alone.report.cost.images == 0
    assert edited.delta == mine.delta
    assert alone.report.mixture == here.outcome.report.mixture
    told = {p.profession: p.components for p in alone.report.professions}
    assert told == {p.profession: p.components for p in here.outcome.report.professions}
    against = audit(
        here.config(audit={"operator": f"{url}/mixture.safetensors", "against": url}), Console(file=io.StringIO())
    )
    assert against.report.moved == []
    assert against.report.summary.base.delta == mine.delta
    assert any(pair.base for pair in against.report.pictures)
    gates = {gate.name: gate.value for gate in against.report.gates}
    assert gates["regression"] == 0


def test_one_label_alone_is_mixed_with_the_unedited_model(here: Workplace) -> None:
    file = here.file.parent / "one.parquet"
    write_manifest(rows(("sheriff", {"female": {}})), file)
    outcome = debias(here.config(manifest=str(file)), Console(file=io.StringIO()))
    mixture = Mixture.from_bytes(here.store.get(f"runs/{outcome.run}/mixture.safetensors"))
    assert mixture.labels == ("female", UNEDITED)
    assert isinstance(mixture.components[1].operator, EditOperator)
    assert torch.equal(mixture.components[1].operator.matrix, torch.eye(mixture.d, dtype=torch.float64))
    assert outcome.report.mixture is not None
    assert outcome.report.mixture.components[1].operator is None
    edited = [r for r in here.images(outcome) if r["variant"] == "edited" and r["component"] == UNEDITED]
    base = {(r["prompt"], r["index"]): r["label"] for r in here.images(outcome) if r["variant"] == "base"}
    shared = [r for r in edited if (r["prompt"], r["index"]) in base]
    assert shared
    assert all(r["label"] == base[r["prompt"], r["index"]] for r in shared)
    index = json.loads(here.store.get(f"runs/{outcome.run}/candidate/mixture.json"))
    assert UNEDITED in json.dumps(index)
