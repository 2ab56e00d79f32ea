"""The spread solve is the solve: chunks, caches and lost workers change no digit."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import reduce
from itertools import islice, product
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch
from diffusers import StableDiffusionPipeline

from infra.demo import CLASSIFIER_PATH, PIPELINE_PATH, PROFESSIONS
from infra.storage import LocalStore, StorageError, StorageSettings
from jobs.cluster import tree
from jobs.cluster.pool import Pool
from jobs.config import RunConfig
from jobs.editing import chunk_encoding as chunks
from jobs.editing import solver as solving
from jobs.editing.chunk_encoding import ChunkEncoder, ChunkStrengths, EditChunk, PreserveLams, edit_chunks
from jobs.editing.solver import Solver
from jobs.errors import ClusterError
from jobs.runs import inputs
from jobs.runs.inputs import CHUNK_PROFESSIONS, run_manifest_bytes
from manifests import Manifest, ManifestRow, read_manifest, resolved_shares
from tests.jobs import helpers
from tests.jobs.editing.mortal_worker import MortalWorker
from time_ops import EditError, EditOperator, PromptEdit, Statistics, TokenPairs, encode_edits, encode_preserved, solve
from time_ops import solve_statistics as solve_sums
from time_ops.lams import scale_of
from time_ops.prompts import augment

WORDINGS = ("{source}", "A photo of {source}")
KEY = "runs/r/manifest.parquet"
NAMES = [p.name for p in PROFESSIONS]


def manifest_of(professions: int) -> Manifest:
    """Made of the demo's words, so that no two names read alike; shares unequal, some with one destination only."""
    rows = []
    for i, words in enumerate(islice(product(NAMES, repeat=3), professions)):
        name = " ".join(words)
        for label, share in [("female", 0.25), ("male", None)][: 1 if i % 10 == 9 else 2]:
            rows.append(
                ManifestRow(
                    profession=name,
                    source=f"a {name}",
                    destination=f"a {label} {name}",
                    label=label,
                    share=share if i % 10 != 9 else None,
                )
            )
    return Manifest(tuple(rows))


def config_of(folder: Path, *wordings: str, **preserve: Any) -> RunConfig:
    return helpers.config(
        model=str(PIPELINE_PATH),
        classifier=str(CLASSIFIER_PATH),
        output=str(folder),
        form="single",
        wordings={"edit": wordings or WORDINGS},
        preserve=preserve,
        workers={"count": 2},
    )


@pytest.fixture(scope="module")
def pipe() -> Any:
    return StableDiffusionPipeline.from_pretrained(PIPELINE_PATH)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spread")


@pytest.fixture(scope="module")
def pool(output: Path) -> Iterator[Pool]:
    """Two real workers on a real Ray."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    with Pool(config_of(output), StorageSettings(), str(output / "cache"), MortalWorker) as started:
        started.probe()
        yield started
    ray.shutdown()


def solver_of(pool: Pool, output: Path, manifest: Manifest, *wordings: str, **preserve: Any) -> Solver:
    key = f"runs/{len(manifest.rows)}/manifest.parquet"
    LocalStore(output).put(key, run_manifest_bytes(manifest))
    return Solver(pool, manifest, config_of(output, *wordings, **preserve), key)


@contextmanager
def peak_growth() -> Iterator[list[int]]:
    """Most bytes that this process had resident above what it had at first."""
    me, done, peak = psutil.Process(), threading.Event(), [0]
    before = me.memory_info().rss

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], me.memory_info().rss - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


@pytest.mark.slow
def test_two_thousand_rows_and_a_killed_worker(pool: Pool, output: Path) -> None:
    # First of this module, so that memory which other tests have freed can't hide any growth.
    manifest = manifest_of(1060)
    assert len(manifest.rows) > 2_000
    solver = solver_of(pool, output, manifest, "{source}")
    lam = [float(x) for x in np.geomspace(10, 1e4, len(manifest.professions))]
    order = output / "kill-at-8"
    order.touch()
    with peak_growth() as growth:
        killed = solver.solve(lam)
    assert not order.exists()
    # The tokens in full are 80 MB.
    assert growth[0] < 40 << 20
    assert sorted(r.source for r in killed.steps[0].edits) == sorted(p.source for p in manifest.professions)
    assert len(killed.steps[0].preserved) == len(manifest.rows) + 1
    calm = solver.solve(lam)
    assert calm.checksum == killed.checksum
    assert calm.digest == killed.digest


@pytest.mark.slow
def test_the_solver_gives_the_operator_of_one_solve(pool: Pool, output: Path, pipe: Any) -> None:
    manifest = manifest_of(330)
    solver = solver_of(pool, output, manifest, prompts=("", "a photo of a cat"))
    pairs, kept = in_one_process(pipe, manifest, config_of(output, prompts=("", "a photo of a cat")))
    assert solver.scale == pytest.approx(scale_of(norms_of(pairs)), rel=1e-9)
    lam = [5.0 if i % 3 else solver.scale for i in range(330)]
    assert_same(solver.solve(lam, preserve_lam=3.0), solve(pairs, lam, kept, 3.0))
    shares = [(0.9, 0.1) if len(p.shares) > 1 else (1.0,) for p in pairs]
    moved = [pair.with_shares(s) for pair, s in zip(pairs, shares, strict=True)]
    assert_same(solver.solve(lam, shares, 2.0), solve(moved, lam, kept, 2.0))
    with pytest.raises(EditError, match="'a cashier cashier nurse'"):
        solver.solve([*lam[:2], -1.0, *lam[3:]])
    with pytest.raises(EditError, match="330 professions, but 1 lams"):
        solver.solve([1.0])


def in_parts(
    pipe: Any, manifest: Manifest, config: RunConfig, lam: Sequence[float], shares: Sequence[Any]
) -> list[Statistics]:
    """Statistics of the edits, each wording encoded as an edit of its own where wordings differ; not in chunks."""
    parts = []
    for profession, strength, of_edit in zip(manifest.professions, lam, shares, strict=True):
        differ = of_edit.ndim == 2
        for number, wording in enumerate(config.wordings.edit if differ else [config.wordings.edit]):
            own = of_edit[number] if differ else of_edit
            blend = dict(zip((d.prompt for d in profession.destinations), own.tolist(), strict=True))
            # What the shares leave, as a destination like any other.
            blend |= {profession.source: 1 - own.sum()} if own.sum() < 1 else {}
            edit = PromptEdit(profession.source, blend)
            (pairs,) = encode_edits(pipe, [edit], augmentations=[wording] if differ else wording)
            parts.append(Statistics.of(pairs).weighted(strength))
    return parts


def rows_of(profession: str, source: str, *destinations: str) -> list[ManifestRow]:
    labels = ["female" if " female " in prompt else "male" for prompt in destinations]
    return [
        ManifestRow(profession=profession, source=source, destination=prompt, label=label)
        for prompt, label in zip(destinations, labels, strict=True)
    ]


# Professions, their lams, and shares by wording where they differ; the rest stays with the source.
PROFESSIONS_OF_FOUR_CHUNKS = [
    (("cashier", "a cashier", "a female cashier", "a male cashier"), 2.0, [[0.6, 0.4], [0.2, 0.3]]),
    (("cook", "a cook", "a female cook", "a male cook"), 8.0, [0.0, 0.0]),
    (("nurse", "a nurse", "a female nurse", "a male nurse"), np.inf, [[0.5, 0.5], [0.1, 0.1]]),
    (("baker", "a baker", "a female baker", "a male baker"), 4.0, [[0.25, 0.25], [1.0, 0.0]]),
    (("driver", "a driver", "a female driver", "a male driver"), 16.0, [0.3, 0.7]),
    (("drivers", "driver", "a male driver"), 4.0, [[0.5], [0.75]]),
    (("cashiers", "cashier", "a female cashier"), 64.0, [1.0]),
]
NAMED = ("", "a photo of a cat", "a male cashier", "a cat")
# The empty and the negative prompt: as two wordings of the six edits made and of as many explicit prompts.
UNCONDITIONAL = 1 / (2 * 2 * (1 / 2 + 1 / 8 + 1 / 4 + 1 / 16 + 1 / 4 + 1 / 64))
# Others that are named: the smallest lam, also where an edit has them as its destination.
NAMED_LAM = {"": UNCONDITIONAL, "a cat": UNCONDITIONAL, "a photo of a cat": 2.0, "a male cashier": 2.0}
# Ten times the profession's; the nurse is not edited, drivers of one chunk share a prompt, cashiers of two do.
EXPLICIT_LAM = {
    "a female cashier": 20.0,
    "a female cook": 80.0,
    "a male cook": 80.0,
    "a female nurse": 20.0,
    "a male nurse": 20.0,
    "a female baker": 40.0,
    "a male baker": 40.0,
    "a female driver": 160.0,
    "a male driver": 40.0,
}
PRESERVE_LAM = {
    **NAMED_LAM,
    **EXPLICIT_LAM,
    **{f"A photo of {prompt}": lam for prompt, lam in EXPLICIT_LAM.items()},
    "A photo of a male cashier": 20.0,
}


@pytest.mark.slow
def test_each_kind_of_prompt_has_its_lam_and_each_wording_its_blend(
    pool: Pool, output: Path, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (inputs, chunks, solving):
        monkeypatch.setattr(module, "CHUNK_PROFESSIONS", 2)
    manifest = Manifest(tuple(row for words, _, _ in PROFESSIONS_OF_FOUR_CHUNKS for row in rows_of(*words)))
    lam = np.array([lam for _, lam, _ in PROFESSIONS_OF_FOUR_CHUNKS])
    shares = [np.array(shares) for _, _, shares in PROFESSIONS_OF_FOUR_CHUNKS]
    key = "runs/kinds/manifest.parquet"
    LocalStore(output).put(key, run_manifest_bytes(manifest))

    def solver(**preserve: Any) -> Solver:
        config = config_of(output, prompts=NAMED, **preserve)
        sampler = config.sampler.model_copy(update={"negative_prompt": "a cat"})
        return Solver(pool, manifest, config.model_copy(update={"sampler": sampler}), key)

    def preserved(operator: EditOperator) -> dict[str, float | None]:
        records = operator.steps[0].preserved
        found = {record.source: record.lam for record in records}
        assert len(found) == len(records)
        return found

    assert len(edit_chunks(manifest, config_of(output), key)) == 4
    first = solver().solve(lam, shares)
    assert preserved(first) == PRESERVE_LAM
    edits = in_parts(pipe, manifest, config_of(output), lam.tolist(), shares)
    kept = encode_preserved(pipe, list(PRESERVE_LAM))
    weighted = [Statistics.of(p, preserved=True).weighted(PRESERVE_LAM[p.edit.source]) for p in kept]
    assert_same(first, solve_sums(reduce(add, [*edits, *weighted])))
    assert solver().solve(lam, shares).checksum == first.checksum
    assert solver().solve(lam, [s[::-1] if s.ndim == 2 else s for s in shares]).checksum != first.checksum

    weaker = preserved(solver(explicit_ratio=20.0).solve(lam, shares))
    assert weaker == {p: value if p in NAMED_LAM else 2 * value for p, value in PRESERVE_LAM.items()}
    assert set(preserved(solver(lam=5.0).solve(lam, shares)).values()) == {5.0}
    assert set(preserved(solver(lam=5.0).solve(lam, shares, 7.0)).values()) == {7.0}
    nothing = solver().solve(np.full(7, np.inf), shares)
    assert set(preserved(nothing).values()) == {np.inf}
    assert torch.equal(nothing.matrix, torch.eye(nothing.d, dtype=torch.float64))
    # Of several chunks, all named at once.
    with pytest.raises(EditError, match=r"(?s)edit of 'a cook'.*edit of 'cashier'"):
        solver().solve(lam, [shares[0], [0.7, 0.7], *shares[2:6], [[1.0]] * 3])
    with pytest.raises(EditError, match="preserve_lam -1"):
        solver().solve(lam, shares, -1.0)


@ray.remote(num_cpus=0)
class Holder:
    def hold(self) -> None:
        time.sleep(600)


class Forgetful:
    """Sends calls of a crew; reports some results of a method as made, but whoever holds them is gone."""

    def __init__(self, send: Any, method: str, times: int) -> None:
        self._send, self._method, self.times = send, method, times

    def __call__(self, number: int, method: str, *args: Any) -> tuple[Any, Any]:
        done, result = self._send(number, method, *args)
        if method == self._method and args[0].row_group == 1 and self.times > 0:
            self.times -= 1
            holder = Holder.remote()
            result = holder.hold.remote()
            ray.kill(holder)
        return done, result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "small"), [("chunk_norms", 64 << 20), ("chunk_statistics", 64 << 20), ("chunk_statistics", 0)]
)
def test_lost_results_are_made_again_but_not_for_ever(
    pool: Pool, output: Path, monkeypatch: pytest.MonkeyPatch, method: str, small: int
) -> None:
    manifest = manifest_of(130)
    expected = solver_of(pool, output, manifest).solve([30.0] * 130)
    # Sums by the driver, and by tasks: the same bits.
    monkeypatch.setattr(tree, "_SMALL_BYTES", small)
    forgetful = Forgetful(pool._crew.send, method, 2)
    monkeypatch.setattr(pool._crew, "send", forgetful)
    found = solver_of(pool, output, manifest).solve([30.0] * 130)
    assert (found.checksum, forgetful.times) == (expected.checksum, 0)
    forgetful.times = 3
    with pytest.raises(ClusterError, match=f"results of {method} were lost 3 times"):
        solver_of(pool, output, manifest).solve([30.0] * 130)


class Encoders:
    """Chunk encoders of one node, without Ray; counts how often they ask for the pipeline."""

    def __init__(self, folder: Path, manifest: Manifest, pipe: Any) -> None:
        self.store, self.cache, self.pipe, self.asked = LocalStore(folder / "out"), folder / "cache", pipe, 0
        self.store.put(KEY, run_manifest_bytes(manifest))

    def _given(self) -> Any:
        self.asked += 1
        return self.pipe

    def new(self, **options: Any) -> ChunkEncoder:
        return ChunkEncoder(self.store, self._given, nullcontext(), self.cache, **options)


def preserved_prompts(manifest: Manifest, config: RunConfig) -> list[str]:
    """Prompts that keep their embeddings: explicit ones in all edit wordings, and those that the user names."""
    explicit = [
        augment(wording, destination.prompt)
        for profession in manifest.professions
        for destination in profession.destinations
        for wording in config.wordings.edit
    ]
    return list(dict.fromkeys([*config.preserve.prompts, *(explicit if config.preserve.explicit else [])]))


def in_one_process(pipe: Any, manifest: Manifest, config: RunConfig) -> tuple[list[Any], list[Any]]:
    edits = [
        PromptEdit(p.source, dict(zip((d.prompt for d in p.destinations), resolved_shares(p), strict=True)))
        for p in manifest.professions
    ]
    pairs = encode_edits(pipe, edits, augmentations=config.wordings.edit)
    return pairs, encode_preserved(pipe, preserved_prompts(manifest, config))


def norms_of(pairs: Sequence[TokenPairs]) -> list[float]:
    steps = [(p.destination - p.source.double()).T @ p.source.double() for p in pairs]
    return [float(torch.linalg.matrix_norm(B, ord=2)) for B in steps]


def strengths_of(chunk: EditChunk, lam: Sequence[float], shares: Any, kept: float) -> ChunkStrengths:
    """One operator, all preserved prompts at one lam; every wording has the same shares."""
    blends = tuple(np.tile(np.asarray(own, dtype=float), (len(chunk.wordings), 1)) for own in shares)
    preserve = PreserveLams((kept,) * len(chunk.preserved), tuple((kept,) * len(own) for own in shares))
    return ChunkStrengths(tuple(lam), blends, preserve)


def spread(encoder: ChunkEncoder, chunks: Sequence[EditChunk], lam: Sequence[float], shares: Any, kept: float) -> Any:
    total: Statistics | None = None
    for i, chunk in enumerate(chunks):
        part = slice(i * CHUNK_PROFESSIONS, (i + 1) * CHUNK_PROFESSIONS)
        (found,) = encoder.statistics(chunk, [strengths_of(chunk, lam[part], shares[part], kept)])
        total = found if total is None else total + found
    assert total is not None
    return solve_sums(total)


def assert_same(found: EditOperator, expected: EditOperator) -> None:
    eye = torch.eye(expected.d, dtype=torch.float64)
    assert float((found.matrix - expected.matrix).norm() / (expected.matrix - eye).norm()) < 1e-9
    assert found.digest == expected.digest


def test_chunks_give_the_operator_of_one_solve_and_encode_once(tmp_path: Path, pipe: Any) -> None:
    manifest, config = manifest_of(70), config_of(tmp_path, prompts=("", "a female baker"))
    pairs, kept = in_one_process(pipe, manifest, config)
    chunks = edit_chunks(manifest, config, KEY)
    assert len(chunks) == 2
    node = Encoders(tmp_path, manifest, pipe)
    encoder = node.new()
    shares = [resolved_shares(p) for p in manifest.professions]
    assert shares[0] == (0.25, 0.75)
    open_lam = [float(lam) for lam in np.geomspace(1, 1e4, 70)]
    assert_same(spread(encoder, chunks, open_lam, shares, 1.0), solve(pairs, open_lam, kept, 1.0))
    other = [(0.9, 0.1)[: len(s)] if len(s) > 1 else s for s in shares]
    moved = [pair.with_shares(s) for pair, s in zip(pairs, other, strict=True)]
    assert_same(spread(encoder, chunks, [30.0] * 70, other, 5.0), solve(moved, 30.0, kept, 5.0))
    norms = [n for chunk in chunks for n in encoder.norms(chunk)]
    np.testing.assert_allclose(norms, norms_of(pairs), rtol=1e-9)
    assert node.asked == 2


def test_another_process_of_the_node_reads_the_tokens_and_mends_damaged_ones(tmp_path: Path, pipe: Any) -> None:
    manifest = manifest_of(5)
    chunk, *_ = edit_chunks(manifest, config_of(tmp_path), KEY)
    node = Encoders(tmp_path, manifest, pipe)
    wanted = [strengths_of(chunk, [3.0] * 5, [resolved_shares(p) for p in manifest.professions], 2.0)]
    first = node.new().statistics(chunk, wanted)[0].to_bytes()
    assert node.new().statistics(chunk, wanted)[0].to_bytes() == first
    assert node.asked == 1
    (file,) = (node.cache / "pairs").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert node.new().statistics(chunk, wanted)[0].to_bytes() == first
    assert node.asked == 2


def test_a_full_cache_only_costs_time_and_memory_is_bounded(tmp_path: Path, pipe: Any) -> None:
    manifest = manifest_of(130)
    chunks = edit_chunks(manifest, config_of(tmp_path, WORDINGS[0]), KEY)
    node = Encoders(tmp_path, manifest, pipe)
    node.cache.mkdir()
    (node.cache / "pairs").write_text("a file where the folder should be")
    encoder = node.new(memory_bytes=1)
    for chunk in (*chunks, chunks[-1]):
        encoder.norms(chunk)
    assert node.asked == 3
    encoder.norms(chunks[0])
    assert node.asked == 4


def test_a_preserved_prompt_of_two_professions_counts_once(tmp_path: Path, pipe: Any) -> None:
    whole = manifest_of(CHUNK_PROFESSIONS + 2)
    shared = whole.rows[0].destination
    # The last profession, in the second chunk, names the first one's destination; so does the run itself, in a wording.
    rows = (*whole.rows[:-2], whole.rows[-1].model_copy(update={"destination": shared, "source": "a cashier"}))
    manifest = Manifest(rows)
    config = config_of(tmp_path, prompts=("", f"A photo of {shared}", f"A photo of a{shared[1:]}"))
    first, second = edit_chunks(manifest, config, KEY)
    assert second.skip == {shared, f"A photo of {shared}"}
    node = Encoders(tmp_path, manifest, pipe)
    encoder, shares = node.new(), [resolved_shares(p) for p in manifest.professions]
    parts = [
        encoder.statistics(chunk, [strengths_of(chunk, [1.0] * len(own), own, 1.0)])[0]
        for chunk, own in ((first, shares[:CHUNK_PROFESSIONS]), (second, shares[CHUNK_PROFESSIONS:]))
    ]
    found = [record.source for part in parts for record in part.preserved]
    assert sorted(found) == sorted(preserved_prompts(manifest, config))
    none = edit_chunks(manifest, config_of(tmp_path, explicit=False, prompts=()), KEY)
    assert [chunk.kept(manifest) for chunk in none] == [[], []]


def test_row_groups_hold_whole_professions(tmp_path: Path, pipe: Any) -> None:
    manifest = manifest_of(70)
    # As many people write it: all rows of one label, then all of the other.
    apart = Manifest(tuple(sorted(manifest.rows, key=lambda row: row.label)))
    again = read_manifest(run_manifest_bytes(apart))
    assert again.professions == apart.professions
    assert again.digest == apart.digest
    node = Encoders(tmp_path, apart, pipe)
    chunks = edit_chunks(apart, config_of(tmp_path, WORDINGS[0]), KEY)
    assert [len(node.new().norms(chunk)) for chunk in chunks] == [64, 6]
    node.store.put(KEY, run_manifest_bytes(manifest_of(71)))
    with pytest.raises(StorageError, match="row group 1 does not hold the rows"):
        Encoders.new(node).norms(EditChunk(KEY, 1, chunks[0].digest, WORDINGS, explicit=True))
