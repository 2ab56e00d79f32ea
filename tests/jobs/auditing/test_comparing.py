"""What an audit is compared with: finished runs only, made alike, image by image. Runs in a folder, no cluster."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from infra.storage import LocalStore, StorageSettings
from jobs.audit import read_edit
from jobs.auditing.comparing import Matched, check_comparable, match, reference_shards
from jobs.auditing.figures import AuditedProfession, audit_figures
from jobs.auditing.pictures import Shown, choose_pictures
from jobs.auditing.reporting import code_of
from jobs.auditing.sentence import audit_sentence
from jobs.auditing.tally import Tallies, TallyFrame, TallyTask
from jobs.auditing.tally_part import tally_part
from jobs.cluster.submit import _ship
from jobs.config import RunConfig, load_config
from jobs.errors import ConfigError, ExitCode
from jobs.images.cells import Cell, audit_cells, cut_cell, cut_parts
from jobs.images.generator import encode_picture
from jobs.images.labels import TextEmbeddings
from jobs.images.recipe import Probe, Recipe, recipe_of
from jobs.images.shards import BASE, Shard, ShardSpec, image_seed
from jobs.images.variants import Part, Variant
from jobs.report.figure_schema import RateFigure
from jobs.report.mixture_schema import ComponentReport, MixtureReport, ProfessionWeights
from jobs.report.page.render import render
from jobs.report.schema import Cost, Report
from jobs.runs.finished import FinishedRun, read_finished
from jobs.runs.folder import RunFolder
from jobs.runs.identity import identity_of, provenance_of, without_paths
from manifests import Manifest, ManifestRow, manifest_bytes, resolved_targets
from tests.jobs.helpers import config as plain
from tests.jobs.helpers import manifest
from time_ops import EditOperator
from time_ops.route import WeightTable, route

LABELS = ["female", "male"]
BIASED = "biased"
"""An operator under which every image is of the first label."""
MANIFEST = manifest("nurse", "CEO")
VERSIONS = {"diffusers": "0.42.1", "torch": "2.13.0", "transformers": "5.23.0"}
PROBE = Probe("m" * 64, "c" * 64, "float32", "cpu", 1, "host", VERSIONS)
# Labels along the first two axes, professions along the next two, the control along the last.
TEXTS = TextEmbeddings(
    np.repeat(np.eye(5, dtype=np.float32)[None, :2], 2, axis=0), np.eye(5, dtype=np.float32)[2:], 9.0
)


def config(**keys: Any) -> RunConfig:
    wordings = {"edit": ["{source}"], "calibration": ["{source}"], "audit": ["one {source}", "two {source}"]}
    small = {"images_per_cell": 4, "explicit_images": 2, "control_images": 2, "shard_images": 2}
    few = {"controls": ["a tree"], "pictures": {"per_cell": 2, "format": "png"}}
    return plain(**({"wordings": wordings} | small | few | keys))


@dataclass
class Made:
    """A run as the jobs write one, of random embeddings."""

    store: LocalStore
    config: RunConfig = field(default_factory=config)
    manifest: Manifest = MANIFEST
    probe: Probe = PROBE
    variants: tuple[Variant, ...] = (Variant.plain(),)
    run: str = "earlier"

    @property
    def url(self) -> str:
        return self.store.url(f"runs/{self.run}")

    @property
    def recipe(self) -> Recipe:
        return recipe_of(self.config, self.probe)

    @property
    def tasks(self) -> list[TallyTask]:
        subjects = {p.name: i for i, p in enumerate(self.manifest.professions)}
        cells = audit_cells(self.manifest, self.config)
        return [
            TallyTask(c, None, len(subjects))
            if c.kind == "control"
            else TallyTask(c, subjects[c.subject], subjects[c.subject])
            for c in cells
        ]

    def tally(self, variants: dict[str, Variant], key: str | None = None) -> Tallies:
        """Make what shards are missing, and count."""
        for task in self.tasks:
            for variant in variants.values():
                for spec in chain.from_iterable(cut_parts(task.cell, self.recipe, variant, self.config)):
                    self.store.put(spec.object_key, shard(spec).to_bytes())
        part = tally_part(self.tasks, TallyFrame(self.recipe, variants), TEXTS, self.config, self.store, key)
        return Tallies(self.tasks, [part])

    def write(self) -> Made:
        folder = RunFolder(self.store, self.run)
        folder.open("identity", {"configuration": without_paths(self.config.model_dump(mode="json"))})
        folder.put("manifest.parquet", manifest_bytes(self.manifest))
        names = dict(zip(("base", "edited"), self.variants, strict=False))
        part = "images/part-00000.parquet"
        tallies = self.tally(names, f"{folder.prefix}/{part}")
        folder.put(part, folder.get(part))
        report = self.report(tallies)
        folder.put("report.json", report.model_dump_json().encode())
        folder.complete(report.verdict, 0, [])
        return self

    @property
    def mixture(self) -> MixtureReport | None:
        """What the report says of the last variant's components, as far as a comparison reads it."""
        variant = self.variants[-1]
        if variant.table is None:
            return None

        def named(weights: Sequence[float]) -> dict[str, float]:
            return dict(zip(variant.labels, weights, strict=True))

        own = [
            ProfessionWeights(profession=source, source=source, weights=named(weights))
            for source, weights in variant.table.professions.items()
        ]
        default = named(variant.table.default)
        nothing = RateFigure(value=0, low=0, high=1, n=0)
        rates = dict.fromkeys(("own", "explicit", "recognised", "controls", "undetermined"), nothing)
        components = [
            ComponentReport(label=p.label, operator=p.operator, weight=default[p.label], images=0, wordings=[], **rates)
            for p in variant.parts
        ]
        return MixtureReport(digest=variant.digest, route=1, weights=default, professions=own, components=components)

    def report(self, tallies: Tallies) -> Report:
        result = figures(self, tallies)
        edit = {"operator": self.variants[-1].digest} if self.variants[-1].digest != BASE else {}
        return Report(
            run=self.run,
            created=datetime.now(UTC).isoformat(),
            verdict=result.verdict.value,
            sentence=audit_sentence(result),
            labels=LABELS,
            summary=result.summary,
            gates=result.gates,
            wordings=result.wordings,
            professions=result.professions,
            controls=result.controls,
            mixture=self.mixture,
            pictures=[],
            cost=Cost(
                wall_s=1,
                worker_s=1,
                images=1,
                images_reused=0,
                images_per_s=1,
                shards=1,
                shards_reused=0,
                shards_failed=0,
            ),
            provenance={**provenance_of(self.config, self.probe, self.recipe), **edit},
        )

    def rewrite(self, name: str, data: bytes) -> None:
        """Put another file into the run, and its digest into COMPLETE."""
        complete = json.loads(self.store.get(f"runs/{self.run}/COMPLETE"))
        complete["files"][name] = hashlib.sha256(data).hexdigest()
        self.store.put(f"runs/{self.run}/{name}", data)
        self.store.put(f"runs/{self.run}/COMPLETE", json.dumps(complete).encode())

    def read(self) -> FinishedRun:
        return read_finished(self.url, StorageSettings())

    def match(self, earlier: FinishedRun, write: Callable[[pa.Table], None] = lambda _: None) -> Matched:
        return match(earlier, audit_cells(self.manifest, self.config), LABELS, self.config.seed, write)

    def check(self, earlier: FinishedRun) -> None:
        check_comparable(earlier, self.config, self.manifest, self.recipe)


def shard(spec: ShardSpec) -> Shard:
    """Random embeddings that depend on the shard; one image in some is black."""
    rng = np.random.default_rng(int(spec.digest[:8], 16))
    embeddings = rng.standard_normal((spec.count, 5)).astype(np.float32)
    if spec.operator == BIASED:
        embeddings[:, :2] = 1.0, 0.0
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    statuses = np.array([int(rng.random() < 0.1) for _ in range(spec.count)], np.uint8)
    embeddings[statuses != 0] = 0
    picture = encode_picture(np.zeros((8, 8, 3), np.uint8), "png")
    pictures = [picture if i < spec.pictures else None for i in range(spec.count)]
    return Shard(spec, embeddings, statuses, pictures, {"seconds": 2.0})


def figures(run: Made, tallies: Tallies) -> Any:
    asked = [
        AuditedProfession(p.name, p.source, resolved_targets(p, LABELS), None, {}) for p in run.manifest.professions
    ]
    return audit_figures(tallies, asked, LABELS, list(run.config.wordings.audit), run.config.gates, 0)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


# Pairing


def test_two_runs_give_what_one_tally_of_both_gives(store: LocalStore) -> None:
    earlier = Made(store).write()
    now = Made(store, run="now")
    joint = now.tally({"base": Variant.plain(), "edited": Variant.plain("o")})
    written: list[pa.Table] = []
    matched = now.match(earlier.read(), written.append)
    apart = now.tally({"edited": Variant.plain("o")}).after(matched.part)
    assert (apart.variants, len(apart)) == (2, len(joint))
    for task, one, other in zip(now.tasks, apart, joint, strict=True):
        assert np.array_equal(one.packed, other.packed)
        # Rows of controls have no scores.
        assert task.cell.kind == "control" or np.array_equal(one.swept, other.swept)
        assert np.isnan(one.drift)
    assert apart.seconds.tolist() == joint.seconds.tolist()
    assert apart.statuses == joint.statuses
    one, other = figures(now, apart), figures(now, joint)
    assert (one.summary, one.gates, one.professions) == (other.summary, other.gates, other.professions)
    assert one.margin_sweep == other.margin_sweep
    assert {c.drift for c in one.controls} == {None}
    (rows,) = written
    assert rows.equals(earlier.read().parts().__next__())


def test_of_a_run_of_two_variants_the_last_one_counts(store: LocalStore) -> None:
    earlier = Made(store, variants=(Variant.plain(), Variant.plain("o"))).write().read()
    now = Made(store, run="now")
    assert earlier.variant == "edited"
    assert earlier.reference("earlier run").operator == "o"
    expected = now.tally({"edited": Variant.plain("o")})
    written: list[pa.Table] = []
    found = Tallies(now.tasks, [now.match(earlier, written.append).part])
    assert all(np.array_equal(a.packed, b.packed) for a, b in zip(found, expected, strict=True))
    assert {row["variant"] for table in written for row in table.to_pylist()} == {"base"}


def test_of_more_images_the_first_are_used(store: LocalStore) -> None:
    many = config(images_per_cell=8, explicit_images=4, control_images=6)
    earlier = Made(store, many).write().read()
    now = Made(store, run="now")
    now.check(earlier)
    written: list[pa.Table] = []
    found = Tallies(now.tasks, [now.match(earlier, written.append).part])
    expected = now.tally({"base": Variant.plain()})
    assert all(np.array_equal(a.packed, b.packed) for a, b in zip(found, expected, strict=True))
    assert sum(map(len, written)) == sum(c.images for c in audit_cells(MANIFEST, now.config))


def test_parts_are_read_one_by_one_in_any_order_of_cells(store: LocalStore) -> None:
    earlier = Made(store).write()
    table = pq.read_table(pa.BufferReader(store.get("runs/earlier/images/part-00000.parquet")))
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    for i, rows in enumerate((shuffled.slice(0, 7), shuffled.slice(7))):
        earlier.rewrite(f"images/part-{i:05d}.parquet", parquet(rows))
    now = Made(store, run="now")
    found = Tallies(now.tasks, [now.match(earlier.read()).part])
    expected = now.tally({"base": Variant.plain()})
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.packed, other.packed)


def test_the_earlier_pictures_are_found_by_their_shards(store: LocalStore) -> None:
    earlier = Made(store, probe=replace(PROBE, model="b" * 64)).write().read()
    now = Made(store, run="now")
    now.check(earlier)
    matched = now.match(earlier)
    cell = now.tasks[0].cell
    own = cut_cell(cell, now.recipe, BASE, now.config)[0]
    ((label, spec),) = reference_shards(matched, earlier, own, cell, store)
    assert (label, spec.recipe.model, spec.digest) == ("", "b" * 64, matched.first[cell][""][0])
    assert all(Shard.from_bytes(store.get(spec.object_key), spec).pictures)
    webp = replace(own, picture_format="webp")
    assert reference_shards(matched, earlier, webp, cell, store) == []
    store.delete(spec.object_key)
    assert reference_shards(matched, earlier, own, cell, store) == []


def test_without_the_earlier_picture_the_audited_one_is_shown_alone(store: LocalStore) -> None:
    earlier = Made(store).write().read()
    now = Made(store, run="now")
    tallies = now.tally({"edited": Variant.plain("o")}).after(now.match(earlier).part)

    def shards(task: TallyTask) -> list[Shown]:
        return [[], [("", cut_cell(task.cell, now.recipe, "o", now.config)[0])]]

    report = now.report(tallies)
    pairs, files = choose_pictures(store, tallies, shards, LABELS, report.professions)
    assert pairs
    assert {pair.base for pair in pairs} == {""}
    assert {pair.base_label for pair in pairs} <= {*LABELS, "undetermined", "failed"}
    assert {pair.edited for pair in pairs} == files.keys()
    page = render(report.model_copy(update={"pictures": pairs}), files)
    assert page.count("data:image/png") == len(pairs)


# An earlier run that was a mixture


def mixed(*weights: float, professions: dict[str, tuple[float, ...]] | None = None) -> Variant:
    parts = tuple(Part(name, name) for name in ("female", "male", "other")[: len(weights)])
    return Variant("mixture", parts, WeightTable(weights, professions))


def matched_as_drawn(earlier: Made, now: Made, variant: Variant) -> list[dict[str, Any]]:
    """Match, and hold it against what this run would have drawn itself; the rows that were used."""
    written: list[pa.Table] = []
    read = earlier.read()
    now.check(read)
    found = Tallies(now.tasks, [now.match(read, written.append).part])
    expected = now.tally({"edited": variant}, "expected.parquet")
    for task, one, other in zip(now.tasks, found, expected, strict=True):
        assert np.array_equal(one.packed, other.packed)
        assert task.cell.kind == "control" or np.array_equal(one.swept, other.swept)
    assert found.statuses == expected.statuses
    assert found.components.shape == (len(now.tasks), 0, len(LABELS) + 3)
    rows: list[dict[str, Any]] = pa.concat_tables(written).to_pylist()
    drawn = pq.read_table(pa.BufferReader(now.store.get("expected.parquet"))).to_pylist()
    images = [{(r["prompt"], r["seed"], r["component"], r["label"], r["status"]) for r in of} for of in (rows, drawn)]
    assert images[0] == images[1]
    assert len(rows) == len(drawn) == sum(task.images for task in now.tasks)
    assert {row["variant"] for row in rows} == {"base"}
    return rows


@pytest.mark.parametrize(
    "variant",
    [
        mixed(0.5, 0.5),
        mixed(0.25, 0.75),
        mixed(0.0, 1.0),
        mixed(0.25, 0.25, 0.5),
        mixed(0.5, 0.5, professions={"a CEO": (0.25, 0.75)}),
    ],
)
def test_a_mixture_is_matched_as_it_was_drawn(store: LocalStore, variant: Variant) -> None:
    earlier = Made(store, variants=(Variant.plain(), variant)).write()
    assert earlier.read().reference("earlier run").operator == "mixture"
    rows = matched_as_drawn(earlier, Made(store, run="now"), variant)
    names = {row["component"] for row in rows}
    assert names == {p.label for p, w in zip(variant.parts, variant.table.default, strict=True) if w}  # type: ignore[union-attr]


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.25, 0.75), (0.25, 0.25, 0.5)])
def test_of_a_mixture_of_more_images_the_first_of_each_component_are_used(
    store: LocalStore, weights: tuple[float, ...]
) -> None:
    # Blocks of one image of each component, so that more images are the same ones and some.
    many = config(images_per_cell=16, explicit_images=16, control_images=16)
    few = config(images_per_cell=8, explicit_images=8, control_images=8)
    variant = mixed(*weights)
    earlier = Made(store, many, variants=(Variant.plain(), variant)).write()
    rows = matched_as_drawn(earlier, Made(store, few, run="now"), variant)
    of_cell = [row for row in rows if row["prompt"] == "one a CEO"]
    for k, part in enumerate(variant.parts):
        drawn = sorted(row["index"] for row in of_cell if row["component"] == part.label)
        seeds = (image_seed(few.seed, "audit", "one a CEO", i) for i in range(100))
        assert drawn == [i for i, seed in enumerate(seeds) if route(seed, weights) == k][: int(8 * weights[k])]


def test_two_mixtures_are_paired_at_equal_seeds(store: LocalStore) -> None:
    first, second = (
        mixed(0.5, 0.5),
        Variant("other", (Part("female", "f2"), Part("male", "m2")), WeightTable([0.25, 0.75])),
    )
    run = config(images_per_cell=16)
    earlier = Made(store, run, variants=(Variant.plain(), first)).write()
    now = Made(store, run, run="now")
    part = now.match(earlier.read()).part
    apart, joint = now.tally({"edited": second}).after(part), now.tally({"base": first, "edited": second})
    assert all(np.array_equal(one.packed, other.packed) for one, other in zip(apart, joint, strict=True))
    assert np.array_equal(apart.components, joint.components)
    assert apart.components.shape == (len(now.tasks), 2, len(LABELS) + 3)
    one, other = figures(now, apart), figures(now, joint)
    assert (one.summary, one.gates) == (other.summary, other.gates)


def test_a_run_from_before_there_were_mixtures_is_matched(store: LocalStore) -> None:
    earlier = Made(store).write()
    part = "images/part-00000.parquet"
    table = pq.read_table(pa.BufferReader(store.get(f"runs/earlier/{part}")))
    earlier.rewrite(part, parquet(table.drop_columns(["component"])))
    now = Made(store, run="now")
    found = Tallies(now.tasks, [now.match(earlier.read()).part])
    expected = now.tally({"base": Variant.plain()})
    assert all(np.array_equal(a.packed, b.packed) for a, b in zip(found, expected, strict=True))


def test_a_mixtures_images_missing_or_twice_there_are_refused(store: LocalStore) -> None:
    made = Made(store, variants=(Variant.plain(), mixed(0.5, 0.5))).write()
    part = "images/part-00000.parquet"
    table = pq.read_table(pa.BufferReader(store.get(f"runs/earlier/{part}")))
    edited = table.filter(pc.equal(table.column("variant"), "edited"))
    for changed, said in (
        (edited.slice(1), "too few images"),
        (pa.concat_tables([edited.slice(0, 1), edited]), "some images twice|too few images"),
        (pa.concat_tables([edited, edited.slice(3, 1)]), "some images twice|too few images"),
        (pa.concat_tables([edited, edited.slice(0, 4)]), "some images twice"),
    ):
        made.rewrite(part, parquet(changed))
        with pytest.raises(ConfigError, match=said):
            made.match(made.read())


def test_a_mixtures_pictures_are_found_for_each_component(store: LocalStore) -> None:
    variant = mixed(0.5, 0.5)
    earlier = Made(store, variants=(Variant.plain(), variant)).write().read()
    now = Made(store, run="now")
    matched = now.match(earlier)
    cell = now.tasks[0].cell
    own = cut_cell(cell, now.recipe, BASE, now.config)[0]
    found = reference_shards(matched, earlier, own, cell, store)
    cut = cut_parts(cell, now.recipe, variant, now.config)
    assert [(label, spec.digest) for label, spec in found] == [
        (part.label, specs[0].digest) for part, specs in zip(variant.parts, cut, strict=True)
    ]
    store.delete(found[0][1].object_key)
    assert [label for label, _ in reference_shards(matched, earlier, own, cell, store)] == [found[1][0]]


def test_a_mixture_shows_no_picture_that_its_report_does_not_name(store: LocalStore) -> None:
    """A report without its components' operators does not say which shard holds an image."""
    made = Made(store, variants=(Variant.plain(), mixed(0.5, 0.5))).write()
    report = made.read().report
    assert report.mixture is not None
    without = report.model_copy(update={"mixture": report.mixture.model_copy(update={"components": []})})
    made.rewrite("report.json", without.model_dump_json().encode())
    now = Made(store, run="now")
    earlier, cell = made.read(), now.tasks[0].cell
    own = cut_cell(cell, now.recipe, BASE, now.config)[0]
    assert reference_shards(now.match(earlier), earlier, own, cell, store) == []


def test_a_regression_ends_with_5_and_names_who_moved(store: LocalStore) -> None:
    many = config(images_per_cell=60, shard_images=60)
    earlier = Made(store, many).write().read()
    now = Made(store, many, run="now")
    tallies = now.tally({"edited": Variant.plain(BIASED)}).after(now.match(earlier).part)
    asked = [AuditedProfession(p.name, p.source, resolved_targets(p, LABELS), None, {}) for p in MANIFEST.professions]
    result = audit_figures(tallies, asked, LABELS, list(many.wordings.audit), many.gates, 0, compared=True)
    gates = {gate.name: gate.outcome for gate in result.gates}
    assert (gates["regression"], gates["regression_within"]) == ("fail", "fail")
    assert {m.profession for m in result.moved} == {"nurse", "CEO"}
    assert all(m.worse and m.after == 1.0 for m in result.moved)
    report = now.report(tallies).model_copy(update={"verdict": result.verdict.value, "gates": result.gates})
    assert code_of(report) is ExitCode.GATE_FAILED
    assert re.search(r"has regressed .*moved farthest: (nurse|CEO) \d+ % to 100 %", audit_sentence(result))


# Refusals: what differs


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"images_per_cell": 6}, "images_per_cell: here 6, there only 4; set images_per_cell=4"),
        ({"explicit_images": 4}, "explicit_images: here 4, there only 2"),
        ({"undetermined_margin": 0.2}, "undetermined_margin: here 0.2, there 0.1"),
        ({"seed": 3}, "seed: here 3, there 0"),
        ({"sampler": {"steps": 7}}, "sampler.steps: here 7, there 50"),
        ({"sampler": {"negative_prompt": "blurry"}}, "sampler.negative_prompt: here 'blurry', there ''"),
        ({"controls": ["a car"]}, "controls: here ['a car'], there ['a tree']"),
        ({"recognition": ["{source}"]}, "recognition: "),
        ({"attribute": {"male": ["a man"], "female": ["a woman"]}}, "labels: here ['male', 'female']"),
        ({"attribute": {"female": ["a woman"], "male": ["a man"]}}, "attribute: "),
        (
            {"wordings": {"edit": ["{source}"], "calibration": ["{source}"], "audit": ["one {source}"]}},
            "wordings.audit: here ['one {source}'], there ['one {source}', 'two {source}']",
        ),
    ],
)
def test_settings_that_make_no_pairs_are_refused(store: LocalStore, keys: dict[str, Any], said: str) -> None:
    earlier = Made(store).write().read()
    with pytest.raises(ConfigError) as caught:
        Made(store, config(**keys)).check(earlier)
    assert said in str(caught.value)
    assert str(caught.value).count("\n  ") == 1 + (said.startswith("labels"))


def test_all_that_differs_is_named_at_once(store: LocalStore) -> None:
    earlier = Made(store).write().read()
    other = replace(PROBE, classifier="d" * 64, dtype="bfloat16")
    now = Made(store, config(seed=1, controls=["a car"]), manifest("nurse", "cook"), probe=other)
    with pytest.raises(ConfigError) as caught:
        now.check(earlier)
    text = str(caught.value)
    for said in ("only here: cook", "only there: CEO", "controls", "classifier: here dddd", "sampler.dtype", "seed"):
        assert said in text
    assert earlier.store.url() in text
    assert "--set" in text


def row(profession: str, label: str, **changes: Any) -> ManifestRow:
    values = {"source": f"a {profession}", "destination": f"a {label} {profession}", "target": 0.5}
    return ManifestRow(**({"profession": profession, "label": label, "share": None, "lam": None} | values | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": "one CEO"}, "source of CEO: here 'one CEO', there 'a CEO'"),
        ({"target": 0.3}, "target of CEO: here {'female': 0.3, 'male': 0.7}"),
        ({"destination": "a lady CEO"}, "destinations of CEO"),
    ],
)
def test_another_manifest_is_refused(store: LocalStore, changes: dict[str, Any], said: str) -> None:
    rest = {k: v for k, v in changes.items() if k == "source"}
    if "target" in changes:
        rest["target"] = 0.7
    rows = (row("nurse", "female"), row("nurse", "male"), row("CEO", "female", **changes), row("CEO", "male", **rest))
    earlier = Made(store).write().read()
    with pytest.raises(ConfigError) as caught:
        Made(store, manifest=Manifest(rows)).check(earlier)
    assert said in str(caught.value)


def test_other_gates_lambdas_and_models_are_no_hindrance(store: LocalStore) -> None:
    earlier = Made(store).write().read()
    probe = replace(PROBE, model="z" * 64, versions=VERSIONS | {"torch": "2.14.0"})
    changed = config(gates={"delta": 0.5}, calibration={"images": 9}, shard_images=4, images_per_cell=4)
    Made(store, changed, manifest("CEO", "nurse", lam=3.0), probe=probe).check(earlier)


# Refusals: what is no finished run


def test_what_is_not_finished_or_was_altered_is_refused(store: LocalStore) -> None:
    made = Made(store).write()
    with pytest.raises(ConfigError, match="no finished run; give the folder"):
        read_finished(store.url("runs/other"), StorageSettings())
    report = store.get("runs/earlier/report.json")
    store.put("runs/earlier/report.json", report + b" ")
    with pytest.raises(ConfigError, match=r"report.json is not the file that COMPLETE names"):
        made.read()
    store.delete("runs/earlier/report.json")
    with pytest.raises(ConfigError, match=r"report.json is gone"):
        made.read()
    made.rewrite("report.json", report)
    store.put("runs/earlier/images/part-00000.parquet", b"cut")
    with pytest.raises(ConfigError, match=r"part-00000\.parquet is not the file"):
        made.match(made.read())
    made.rewrite("images/part-00000.parquet", b"no table")
    with pytest.raises(ConfigError, match="no table of images"):
        made.match(made.read())
    store.delete("runs/earlier/COMPLETE")
    with pytest.raises(ConfigError, match=r"not finished .* its status is done"):
        made.read()
    store.put("runs/earlier/COMPLETE", b"{")
    with pytest.raises(ConfigError, match="COMPLETE is not JSON"):
        made.read()


def test_a_report_of_a_newer_schema_is_refused(store: LocalStore) -> None:
    made = Made(store).write()
    content = json.loads(store.get("runs/earlier/report.json")) | {"schema_version": 99, "unheard_of": 1}
    made.rewrite("report.json", json.dumps(content).encode())
    with pytest.raises(ConfigError, match="newer Evenhand"):
        made.read()


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def test_images_missing_twice_there_or_of_other_seeds_are_refused(store: LocalStore) -> None:
    made = Made(store).write()
    part = "images/part-00000.parquet"
    table = pq.read_table(pa.BufferReader(store.get(f"runs/earlier/{part}")))
    seeds = pa.array([s + 1 for s in table.column("seed").to_pylist()], pa.int64())
    place = table.schema.get_field_index("seed")
    for changed, said in (
        (table.slice(1), "too few images"),
        (pa.concat_tables([table, table.slice(3, 1)]), "some images twice"),
        (table.set_column(place, "seed", seeds), "other seeds"),
    ):
        made.rewrite(part, parquet(changed))
        with pytest.raises(ConfigError, match=said):
            made.match(made.read())


# What an audit is asked for


@pytest.mark.parametrize(
    ("audit", "said"),
    [
        ({"base": "m", "against": "r"}, "give one of them"),
        ({"operator": "o", "base": "m"}, "compared with the model itself"),
        ({"model": "m"}, "audit.model: is not a key"),
    ],
)
def test_comparisons_that_make_no_sense_are_refused(audit: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config(audit=audit)


def test_flags_name_what_is_compared() -> None:
    flags = {"manifest": "m", "model": "m", "classifier": "c", "output": "o", "audit": {"against": "flag"}}
    found = load_config("audit: {against: file, operator: op}", flags=flags)
    assert (found.audit.against, found.audit.operator) == ("flag", "op")


def test_the_section_is_no_part_of_debias_and_paths_none_of_an_audit() -> None:
    recipe = recipe_of(config(), PROBE)

    def identity(content: dict[str, Any] | None = None, **audit: str) -> str:
        return identity_of(config(audit=audit), MANIFEST, recipe, content)

    assert identity() == identity(operator="a") == identity(base="b")
    asked = {"kind": "audit", "operator": None}
    assert identity(asked) == identity(asked, operator="elsewhere")
    assert len({identity(), identity(asked), identity(asked | {"operator": "d"})}) == 3


def test_run_json_shows_no_path_of_a_machine() -> None:
    values = config(audit={"operator": "/home/me/op.safetensors", "against": "s3://b/runs/x"}).model_dump(mode="json")
    shown = without_paths(values)["audit"]
    assert shown == {"operator": "op.safetensors", "base": None, "against": "s3://b/runs/x"}


def test_a_submission_takes_operator_and_folders_along(tmp_path: Path) -> None:
    (tmp_path / "o.safetensors").write_bytes(b"o")
    (tmp_path / "shipped").mkdir()
    asked = {"operator": str(tmp_path / "o.safetensors"), "against": str(tmp_path)}
    values = _ship(config(audit=asked), tmp_path / "shipped")
    assert (tmp_path / "shipped" / values["audit"]["operator"]).read_bytes() == b"o"
    assert values["audit"]["against"] == str(tmp_path.resolve())
    assert _ship(config(audit={"base": "hub/id"}), tmp_path)["audit"] == {"base": "hub/id"}
    assert "audit" not in _ship(config(), tmp_path)


def test_operators_that_can_not_be_told_apart_are_refused(tmp_path: Path) -> None:
    settings = StorageSettings()
    with pytest.raises(ConfigError, match="can't read"):
        read_edit(str(tmp_path / "none"), settings)
    (tmp_path / "damaged").write_bytes(b"none")
    with pytest.raises(ConfigError, match=f"^{tmp_path / 'damaged'} is not a safetensors file"):
        read_edit(str(tmp_path / "damaged"), settings)
    EditOperator(torch.eye(3, dtype=torch.float64) * 2).save(tmp_path / "by-hand")
    with pytest.raises(ConfigError, match="does not say what it was solved from"):
        read_edit(str(tmp_path / "by-hand"), settings)


def test_cells_are_the_keys_of_their_first_shards(store: LocalStore) -> None:
    """`Matched.first` is asked by cell: equal cells of two lists are one."""
    assert Cell("audit", "a", "b", "c", 4) == Cell("audit", "a", "b", "c", 4)
    assert set(Made(store).write().match(Made(store).read()).first) == set(audit_cells(MANIFEST, config()))
