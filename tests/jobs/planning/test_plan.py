"""A plan says what the main job will do, finds what is stored, refuses what the job refuses, and writes nothing."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from infra.demo import CLASSIFIER_PATH, PIPELINE_PATH
from infra.demo.captions import draw_scene, draw_shares
from infra.demo.world import draw_all
from infra.storage import LocalStore, ObjectStore, StorageSettings
from jobs.cli import main
from jobs.config import RunConfig, load_config
from jobs.editing.mixture_evidence import Tried
from jobs.editing.mixture_evidence import evidence_bytes as saturation_bytes
from jobs.editing.single_evidence import Trial, evidence_bytes
from jobs.images import shards as stored
from jobs.images.cells import audit_cells, calibration_cells, saturation_cells, shards_of
from jobs.images.edits import variant_of
from jobs.images.generator import encode_picture
from jobs.images.recipe import Recipe, recipe_of
from jobs.images.shards import BASE, Shard, ShardSpec, stored_keys
from jobs.images.variants import Variant
from jobs.planning.plan import make_plan
from jobs.planning.schema import Plan
from jobs.planning.text import plan_text
from jobs.runs.identity import identity_of
from jobs.worker.worker import Worker
from manifests import Manifest, manifest_bytes
from manifests.schema import SCHEMA
from tests.conftest import S3Server
from tests.jobs.helpers import manifest
from time_ops import EditOperator, Mixture
from time_ops.records import EditRecord, SolveInputs
from time_ops.route import UNEDITED
from time_ops.search.model import Candidate, Measured
from time_ops.search.saturation import Seen
from time_ops.search.saturation import Trial as SaturationTrial

ROOT = Path(__file__).parents[3]
LIMIT_MB = 300
MANIFEST = manifest("nurse", "carpenter")
WIDTH = 64
SETTINGS = (
    "form=single",
    "sampler={steps: 2, height: 32, width: 32, dtype: float32}",
    'wordings.audit=["A painting of {source}", "{source} working"]',
    "shard_images=4",
    "images_per_cell=8",
    "explicit_images=2",
    "control_images=2",
    'controls=["a photo of a cat"]',
    'wordings.calibration=["A photo of {source}", "A picture of {source}"]',
    "calibration={images: 4, explicit_images: 1, control_images: 4}",
    "calibration={base_rounds: 1, search_rounds: 1, verify_rounds: 1}",
    "pictures.per_cell=0",
)
# By hand: 2 professions x 2 wordings x 8 images in blocks of 4; 4 explicit prompts and 1 control, 2 images each.
AUDIT = {"shards": 2 * 2 * 2 + 4 + 1, "images": 2 * 2 * 8 + 4 * 2 + 2}
# A round: 2 professions x 2 calibration wordings x 4 images, 4 explicit prompts once, 1 control 4 times.
ROUND = {"shards": 4 + 4 + 1, "images": 16 + 4 + 4}
ROUNDS = 3
CALIBRATION = {"shards": ROUNDS * ROUND["shards"], "images": ROUNDS * ROUND["images"]}


def configured(folder: Path, output: str, *assignments: str) -> RunConfig:
    file = folder / "manifest.parquet"
    file.write_bytes(manifest_bytes(MANIFEST))
    flags = {"manifest": file, "model": PIPELINE_PATH, "classifier": CLASSIFIER_PATH, "output": output}
    return load_config(flags={k: str(v) for k, v in flags.items()}, assignments=(*SETTINGS, *assignments))


def put(store: ObjectStore, spec: ShardSpec, seconds: float) -> int:
    embeddings = np.random.default_rng(spec.first).standard_normal((spec.count, WIDTH), dtype=np.float32)
    statuses = np.zeros(spec.count, np.uint8)
    provenance = {"seconds": seconds, "device": "cuda H200", "versions": {"torch": "2"}}
    data = Shard(spec, embeddings, statuses, [None] * spec.count, provenance).to_bytes()
    store.put(spec.object_key, data)
    return len(data)


def test_it_finds_the_shards_that_the_job_stores(s3: S3Server, tmp_path: Path) -> None:
    store = s3.store()
    config = configured(tmp_path, store.url())
    before = make_plan(config)
    assert list(store.list()) == []
    assert [(s.shards, s.images, s.shards_stored) for s in before.stages] == [
        (AUDIT["shards"], AUDIT["images"], 0),
        (CALIBRATION["shards"], CALIBRATION["images"], None),
        (AUDIT["shards"], AUDIT["images"], None),
    ]
    assert before.shards == before.shards_to_make == 2 * AUDIT["shards"] + CALIBRATION["shards"]
    assert before.rate.images_per_s is None
    assert before.worker_hours is None

    # The key's ingredients as the job gets them: from a worker.
    recipe = recipe_of(config, Worker(config, StorageSettings.from_environment(), "test").probe())
    cells = audit_cells(MANIFEST, config)
    base = list(shards_of(cells, recipe, Variant.plain(), config))
    seconds = [1.0, 2.0, 4.0, 8.0, 16.0]
    for spec, spent in zip(base, seconds, strict=False):
        put(store, spec, spent)
    half = make_plan(config, workers=2)
    assert half.stages[0].shards_stored == len(seconds)
    assert half.stages[0].shards_to_make == AUDIT["shards"] - len(seconds)
    assert half.stages[0].images_to_make == AUDIT["images"] - sum(s.count for s in base[: len(seconds)])
    assert (half.rate.images_per_s, half.rate.sampled_shards) == (1.0, len(seconds))
    assert half.worker_hours == pytest.approx(half.images_to_make / 3600)
    assert half.gpu_hours == half.worker_hours

    identity = identity_of(config, MANIFEST, recipe)
    assert half.run == f"run-{identity[:16]}"
    operator = EditOperator(torch.eye(4))
    measured = Measured(np.ones((2, 2, 3), np.int64))
    lone = np.array([False, True])
    tried = [
        Trial(Candidate(1, "base", np.ones(2), (np.ones((2, 2)),) * 2, np.ones(2, bool)), measured, BASE),
        Trial(Candidate(2, "search", np.ones(2), (np.ones((2, 2)),) * 2, lone), measured, operator.digest),
    ]
    folder = store.sub(f"runs/{half.run}")
    folder.put("run.json", json.dumps({"identity": identity}).encode())
    folder.put("calibration.parquet", evidence_bytes(tried, MANIFEST, ["female", "male"]))
    going_on = make_plan(config)
    assert [(s.name, s.rounds_at_most, s.shards) for s in going_on.stages[1:-1]] == [
        ("calibration round 1", 1, ROUND["shards"]),
        ("calibration round 2", 1, 2 + 2 + 1),
        ("calibration, at most 1 more rounds", 1, ROUND["shards"]),
    ]
    folder.put("operator.safetensors", operator.to_bytes())
    written = [put(store, spec, 4.0) for spec in base]
    for trial in tried:
        candidate = trial.candidate
        made = calibration_cells(MANIFEST, config, candidate.number, candidate.active.tolist())
        for spec in shards_of(made, recipe, Variant.plain(trial.operator), config, pictures=False):
            written.append(put(store, spec, 4.0))
    edited = list(shards_of(cells, recipe, Variant.plain(operator.digest), config))
    written += [put(store, spec, 4.0) for spec in edited[:-1]]
    after = make_plan(config)
    assert [s.shards_to_make for s in after.stages] == [0, 0, 0, 1]
    assert [s.name for s in after.stages] == [
        "base audit",
        "calibration round 1",
        "calibration round 2",
        "edited audit",
    ]
    assert after.images_to_make == edited[-1].count
    made = after.storage.shards_bytes - after.storage.shards_bytes_to_write
    assert made == pytest.approx(sum(written), rel=0.1)


def test_another_runs_folder_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    config = configured(tmp_path, str(tmp_path / "out"), "run=mine")
    folder = tmp_path / "out" / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"identity": "other"}')
    (folder / "operator.safetensors").write_bytes(EditOperator(torch.eye(4)).to_bytes())
    found = make_plan(config)
    assert found.stages[-1].shards_stored is None
    assert "another configuration" in found.notes[0]


def test_many_objects_are_found_by_listing_as_few_are_one_by_one(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    store = s3.store()
    keys = [f"shards/{i % 3:02x}/{i:04x}.parquet" for i in range(12)]
    for key in keys[::2]:
        store.put(key, b"")
    store.put("shards/00/not-asked-for.parquet", b"")
    assert stored_keys(store, keys) == set(keys[::2])
    monkeypatch.setattr(stored, "_LOOK_UPS", 3)
    monkeypatch.setattr(type(store), "exists", None)
    assert stored_keys(store, keys) == set(keys[::2])


def test_time_is_counted_in_whole_shards_and_stage_by_stage(tmp_path: Path) -> None:
    found = make_plan(configured(tmp_path, str(tmp_path / "out")), rate=2.0, workers=4)
    audit = AUDIT["images"] / 2.0
    assert [s.worker_s for s in found.stages] == [audit, CALIBRATION["images"] / 2.0, audit]
    # 13 shards on 4 workers take 4 turns; a round's 9 shards take 3, each as long as its mean shard.
    each = audit / AUDIT["shards"]
    assert found.wall_hours == pytest.approx(
        (4 * each + 3 * 3 * ROUND["images"] / ROUND["shards"] / 2.0 + 4 * each) / 3600
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rate", "assignment", "advice"),
    [
        (10.0, "shard_images=4", "0.4 s"),
        (0.005, "shard_images=4", "13 min"),
        (1.0, "shard_images=50", "far below shard_images"),
        (1.0, "shard_images=4", None),
    ],
)
def test_another_block_size_is_advised_never_taken(
    tmp_path: Path, rate: float, assignment: str, advice: str | None
) -> None:
    found = make_plan(configured(tmp_path, str(tmp_path / "out"), assignment), rate=rate)
    assert len(found.advice) == (advice is not None)
    assert advice is None or advice in found.advice[0]


@pytest.mark.parametrize("kind", ["webp", "png"])
def test_pictures_take_about_what_is_estimated(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    shares = draw_shares(0)
    sprites = draw_all([draw_scene(rng, shares) for _ in range(16)], rng)
    real = np.mean([len(encode_picture(sprite, kind)) for sprite in sprites])
    without = make_plan(configured(tmp_path, str(tmp_path / "out"))).storage.shards_bytes
    kept = make_plan(configured(tmp_path, str(tmp_path / "out"), f"pictures={{per_cell: 2, format: {kind}}}"))
    pictures = 2 * 2 * (2 * 2 + 4 + 1)
    assert 0.5 < (kept.storage.shards_bytes - without) / pictures / real < 2


def test_the_command_prints_one_json_object_or_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(tmp_path, str(tmp_path / "out"))
    arguments = [f"--{key}={getattr(config, key)}" for key in ("manifest", "model", "classifier", "output")]
    arguments += [f"--set={line}" for line in SETTINGS]
    with pytest.raises(SystemExit) as ended:
        main(["plan", *arguments, "--json", "--rate=1"])
    assert ended.value.code == 0
    found = Plan.model_validate_json(capsys.readouterr().out)
    assert found.images == 2 * AUDIT["images"] + CALIBRATION["images"]
    sink = io.StringIO()
    Console(file=sink, width=80).print(plan_text(found))
    text = " ".join(sink.getvalue().split())
    assert f"base audit {AUDIT['images']} {AUDIT['shards']} 0 {AUDIT['shards']}" in text
    assert "nothing was written" in text


def test_no_figure_is_cut_off_in_eighty_columns(tmp_path: Path) -> None:
    small = make_plan(configured(tmp_path, str(tmp_path / "out")), rate=3.5, workers=8)
    large = {"images": 123_456_789, "shards": 2_469_136, "shards_to_make": 2_469_135}
    stages = [stage.model_copy(update=large) for stage in small.stages]
    sink = io.StringIO()
    Console(file=sink, width=80).print(plan_text(small.model_copy(update={"stages": stages, **large})))
    assert all(f"{number:,}" in sink.getvalue() for number in large.values())
    assert "…" not in sink.getvalue()


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        (["--manifest=nowhere.parquet"], 2, "can't read nowhere.parquet"),
        (['--set=wordings.edit=["{source} working"]'], 2, "held out"),
        (["--rate=0"], 2, "more than 0"),
        ([f"--model={CLASSIFIER_PATH}"], 3, "model_index.json"),
        (["--output=s3://no-such-bucket-here/x"], 4, "no-such-bucket-here"),
    ],
)
def test_what_the_job_would_refuse_is_refused(
    s3: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[str], code: int, says: str
) -> None:
    config = configured(tmp_path, str(tmp_path / "out"))
    given = {f"--{key}": getattr(config, key) for key in ("manifest", "model", "classifier", "output")}
    arguments = [f"{key}={value}" for key, value in given.items()] + [f"--set={line}" for line in SETTINGS]
    with pytest.raises(SystemExit) as ended:
        main(["plan", *arguments, *changes])
    assert ended.value.code == code
    assert says in capsys.readouterr().err


def test_an_unreachable_store_is_exit_code_4(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    s3.apply(monkeypatch, AWS_ENDPOINT_URL_S3="http://127.0.0.1:9")
    config = configured(tmp_path, "s3://tests/x")
    arguments = [f"--{key}={getattr(config, key)}" for key in ("manifest", "model", "classifier", "output")]
    with pytest.raises(SystemExit) as ended:
        main(["plan", *arguments])
    assert ended.value.code == 4
    assert "unreachable" in capsys.readouterr().err


# A mixture

MIXTURE = ("form=mixture", "mixture={images: 4, explicit_images: 1, control_images: 2, budget: 20, rounds: 4}")
# By hand: of each cell both components draw half, in blocks of 2.
MIXED_AUDIT = {"shards": 2 * 2 * (2 + 2) + 4 * 2 + 2, "images": AUDIT["images"]}
# A round of one component: 2 professions x 4 images and 1 explicit prompt, each a shard; 1 control, 2 images.
COMPONENT = {"shards": 2 * (4 + 1) + 1, "images": 2 * (4 + 1) + 2}
LABELS = ["female", "male"]


def tried(number: int, operators: tuple[str, ...], active: tuple[bool, ...]) -> Tried:
    ones = np.ones((2, 2))
    seen = Seen(*(np.zeros(shape, np.int64) for shape in ((2, 2, 3), (2, 2, 2), (2, 2), (2, 2))))
    return Tried(SaturationTrial(number, ones, ones, ones, np.array(active)), seen, operators)


def operator(label: str) -> EditOperator:
    record = EditRecord("a nurse", ((f"a {label} nurse", 1.0),), 1.0)
    return EditOperator(2 * torch.eye(4, dtype=torch.float64), (SolveInputs((record,)),))


def recipe_at(config: RunConfig) -> Recipe:
    """As the job gets it: from a worker."""
    return recipe_of(config, Worker(config, StorageSettings.from_environment(), "test").probe())


def test_a_mixtures_stages_are_what_its_cells_come_to(tmp_path: Path) -> None:
    config = configured(tmp_path, str(tmp_path / "out"), *MIXTURE)
    found = make_plan(config)
    assert [(s.name, s.rounds_at_most, s.shards, s.images, s.shards_stored) for s in found.stages] == [
        ("base audit", 1, AUDIT["shards"], AUDIT["images"], 0),
        ("calibration, at most 2 rounds", 2, 2 * 2 * COMPONENT["shards"], 2 * 2 * COMPONENT["images"], None),
        ("edited audit", 1, MIXED_AUDIT["shards"], MIXED_AUDIT["images"], None),
    ]
    assert found.shards == found.shards_to_make == sum(s.shards for s in found.stages)
    assert not (tmp_path / "out").exists()


def test_a_manifest_of_one_label_is_planned_with_the_unedited_model(tmp_path: Path) -> None:
    config = configured(tmp_path, str(tmp_path / "out"), *MIXTURE)
    one = Manifest(tuple(row for row in MANIFEST.rows if row.label == "female"))
    Path(config.manifest).write_bytes(manifest_bytes(one))
    found = make_plan(config)
    # Two explicit prompts instead of four; the unedited component draws only professions, and only as they are.
    cells = [
        cell
        for component, is_edited in (("female", True), (UNEDITED, False))
        for cell in saturation_cells(one, config, config.wordings.calibration, 1, component, [is_edited] * 2)
    ]
    assert [s.name for s in found.stages] == ["base audit", "calibration, at most 2 rounds", "edited audit"]
    assert found.stages[1].images == 2 * sum(c.images for c in cells)
    assert found.stages[2].images == found.stages[0].images == 32 + 2 * 2 + 2


def test_where_all_lambdas_are_given_one_round_decides_the_weights(tmp_path: Path) -> None:
    config = configured(tmp_path, str(tmp_path / "out"), *MIXTURE)
    Path(config.manifest).write_bytes(manifest_bytes(manifest("nurse", "carpenter", lam=3.0)))
    assert [(s.name, s.images) for s in make_plan(config).stages[1:-1]] == [
        ("calibration, at most 1 rounds", 2 * COMPONENT["images"])
    ]
    none = config.model_copy(update={"mixture": config.mixture.model_copy(update={"budget": 0})})
    assert [s.name for s in make_plan(none).stages] == ["base audit", "edited audit"]


def test_it_finds_what_a_mixtures_run_has_stored(tmp_path: Path) -> None:
    output = tmp_path / "out"
    config = configured(tmp_path, str(output), *MIXTURE)
    store = LocalStore(output)
    recipe = recipe_at(config)
    identity = identity_of(config, MANIFEST, recipe)
    folder = store.sub(f"runs/run-{identity[:16]}")
    folder.put("run.json", json.dumps({"identity": identity}).encode())

    rounds = [tried(1, ("f1", "m1"), (True, True)), tried(2, ("f1", "m2"), (False, True))]
    folder.put("calibration.parquet", saturation_bytes(rounds, MANIFEST, LABELS))
    wordings = config.wordings.calibration
    made = []
    for number, component, digest in ((1, "female", "f1"), (1, "male", "m1"), (2, "male", "m2")):
        cells = saturation_cells(MANIFEST, config, wordings, number, component, [True, True])
        made.append(list(shards_of(cells, recipe, Variant.plain(digest), config, pictures=False)))
    assert [len(specs) for specs in made] == [COMPONENT["shards"]] * 3
    for spec in (*made[0], *made[1][:-1], *made[2]):
        put(store, spec, 4.0)
    going_on = make_plan(config)
    assert [(s.name, s.shards, s.images, s.shards_stored) for s in going_on.stages] == [
        ("base audit", AUDIT["shards"], AUDIT["images"], 0),
        ("calibration round 1", 2 * COMPONENT["shards"], 2 * COMPONENT["images"], 2 * COMPONENT["shards"] - 1),
        ("calibration round 2", COMPONENT["shards"], COMPONENT["images"], COMPONENT["shards"]),
        # Both rounds were made: none is left.
        ("edited audit", MIXED_AUDIT["shards"], MIXED_AUDIT["images"], None),
    ]
    folder.put("calibration.parquet", saturation_bytes(rounds[:1], MANIFEST, LABELS))
    left = make_plan(config).stages[2]
    assert (left.name, left.shards) == ("calibration, at most 1 more rounds", 2 * COMPONENT["shards"])
    folder.put("calibration.parquet", saturation_bytes(rounds, MANIFEST, LABELS))

    mixture = Mixture.of({"female": operator("female"), "male": operator("male")}, [0.25, 0.75], {"a nurse": [1, 0]})
    folder.put("mixture.safetensors", mixture.to_bytes())
    audited = audit_cells(MANIFEST, config)
    edited = list(shards_of(audited, recipe, variant_of(mixture), config))
    assert {s.operator for s in edited} == {c.operator.digest for c in mixture.components}
    for spec in edited[:-1]:
        put(store, spec, 4.0)
    last = make_plan(config).stages[-1]
    assert (last.name, last.shards, last.shards_stored) == ("edited audit", len(edited), len(edited) - 1)
    assert (last.shards_to_make, last.images_to_make) == (1, edited[-1].count)
    assert last.images == AUDIT["images"]
    for spec in (*shards_of(audited, recipe, Variant.plain(), config), edited[-1], made[1][-1]):
        put(store, spec, 4.0)
    done = make_plan(config)
    assert [s.shards_to_make for s in done.stages] == [0, 0, 0, 0]
    assert done.shards == AUDIT["shards"] + 3 * COMPONENT["shards"] + len(edited)


def test_the_unedited_component_is_found_as_the_base_models(tmp_path: Path) -> None:
    config = configured(tmp_path, str(tmp_path / "out"), *MIXTURE, "mixture.rounds=0")
    store = LocalStore(tmp_path / "out")
    recipe = recipe_at(config)
    identity = identity_of(config, MANIFEST, recipe)
    folder = store.sub(f"runs/run-{identity[:16]}")
    folder.put("run.json", json.dumps({"identity": identity}).encode())
    mixture = Mixture.of({"female": operator("female"), UNEDITED: EditOperator.identity(4)})
    folder.put("mixture.safetensors", mixture.to_bytes())
    edited = list(shards_of(audit_cells(MANIFEST, config), recipe, variant_of(mixture), config))
    kept = [spec for spec in edited if spec.operator == BASE]
    assert 0 < len(kept) < len(edited)
    for spec in kept:
        put(store, spec, 4.0)
    base, last = make_plan(config).stages
    # Its seeds are the base's, but its shards are its own.
    assert (base.shards_stored, last.shards_stored) == (0, len(kept))
    assert (last.shards, last.images_to_make) == (len(edited), sum(s.count for s in edited if s.operator != BASE))


def test_an_operator_in_the_folder_is_no_mixture(tmp_path: Path) -> None:
    config = configured(tmp_path, str(tmp_path / "out"), *MIXTURE)
    identity = identity_of(config, MANIFEST, recipe_at(config))
    folder = LocalStore(tmp_path / "out").sub(f"runs/run-{identity[:16]}")
    folder.put("run.json", json.dumps({"identity": identity}).encode())
    for name in ("operator.safetensors", "mixture.safetensors"):
        folder.put(name, operator("female").to_bytes())
    assert make_plan(config).stages[-1].shards_stored is None


MILLION = """
import resource, sys
from jobs.config import load_config
from jobs.planning.plan import make_plan

keys = ("manifest", "model", "classifier", "output")
config = load_config(flags=dict(zip(keys, sys.argv[1:5])), assignments=sys.argv[5:])
plan = make_plan(config, rate=50.0)
# Not getrusage's maximum: that survives exec, and would be this test session's own.
(peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
cpu_s = sum(resource.getrusage(who).ru_utime for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print(plan.stages[0].shards, plan.stages[0].images, peak, cpu_s)
"""


@pytest.mark.slow
def test_a_million_images_are_planned_in_seconds_by_a_small_process(tmp_path: Path) -> None:
    names = [f"worker number {i}" for i in range(5_000)]
    rows = [
        {"profession": name, "source": f"a {name}", "destination": f"a {g} {name}", "label": g}
        for name in names
        for g in ("female", "male")
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "big.parquet")
    where = [str(tmp_path / "big.parquet"), str(PIPELINE_PATH), str(CLASSIFIER_PATH), str(tmp_path / "out")]
    where.append("form=single")
    wordings = 'wordings.audit=["A painting of {source}", "{source} working"]'
    done = subprocess.run(
        [sys.executable, "-c", MILLION, *where, wordings], check=True, capture_output=True, text=True, cwd=ROOT
    )
    shards, images, peak_kb, cpu_s = (float(word) for word in done.stdout.split())
    # Wordings, explicit prompts of both labels, and the six controls; every cell is one shard of 50.
    assert (shards, images) == (20_006, 1_000_300)
    assert peak_kb < LIMIT_MB * 1024
    assert cpu_s < 40
