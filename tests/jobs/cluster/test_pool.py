"""The pool under failures, on a real Ray: nothing lost, nothing counted twice, no endless retries."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from infra.storage import StorageSettings
from jobs.cluster.pool import Pool, Spent
from jobs.errors import ClusterError, ShardsFailedError
from tests.jobs.cluster.fake_worker import FakeWorker
from tests.jobs.helpers import config, spec

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def run(folder: Path, prompts: list[str], **keys: object) -> tuple[Spent, int, Counter[str]]:
    done = 0

    def advance(images: int, reused: bool = False, failed_images: int = 0, *, shard_failed: bool = False) -> None:
        nonlocal done
        assert (reused, failed_images) == (False, 0)
        done += 0 if shard_failed else images

    with Pool(config(output=str(folder), **keys), StorageSettings(), "t", FakeWorker) as pool:
        pool.probe()
        specs = [spec(prompt=p, first=4 * i) for i, p in enumerate(prompts)]
        try:
            tallied = pool.run(specs, (), advance, len(specs))
        finally:
            log = folder / "log"
            tried = Counter(log.read_text().splitlines()) if log.exists() else Counter()
    return tallied, done, tried


def test_every_shard_is_made_once(tmp_path: Path) -> None:
    tallied, done, tried = run(tmp_path, ["fine"] * 100)
    assert (tallied.shards, tallied.images_made, done, tried["fine"]) == (100, 400, 400, 100)


def test_a_lost_worker_costs_only_what_it_had_in_flight(tmp_path: Path) -> None:
    tallied, done, tried = run(tmp_path, ["fine"] * 60 + ["kills once"] + ["fine"] * 60)
    assert (tallied.shards, done) == (121, 484)
    assert tried["kills once"] == 2
    # A piece holds sixteen of these shards, and only the two that were in flight are tried again.
    assert tried["fine"] <= 120 + 31


def test_a_shard_that_raises_is_set_aside_and_all_others_are_made(tmp_path: Path) -> None:
    with pytest.raises(ShardsFailedError, match=r"1 of 41 shards failed(.|\n)*this shard is bad"):
        run(tmp_path, ["fine"] * 20 + ["raises"] + ["fine"] * 20)
    assert Counter((tmp_path / "log").read_text().splitlines())["raises"] == 3


def test_a_shard_that_kills_its_process_does_not_run_for_ever(tmp_path: Path) -> None:
    with pytest.raises(ShardsFailedError, match="1 of 21"):
        run(tmp_path, ["fine"] * 20 + ["kills"])
    assert Counter((tmp_path / "log").read_text().splitlines())["kills"] == 4


def test_within_the_limit_a_run_goes_on_without_the_shards_that_fail(tmp_path: Path) -> None:
    prompts = ["fine"] * 18 + ["raises", "kills"]
    tallied, done, _ = run(tmp_path, prompts, workers={"failed_shards": 0.1})
    assert (tallied.shards, done) == (18, 72)
    whys = sorted(tallied.failed.values())
    assert len(whys) == 2
    assert whys[0].startswith("'kills' from image 76: ActorDiedError")
    assert whys[1] == "'raises' from image 72: ValueError: this shard is bad"


def test_where_every_shard_fails_the_rest_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # In place of ten: every few failures cost a process.
    monkeypatch.setattr("jobs.cluster.pool._HOPELESS", 3)
    with pytest.raises(ShardsFailedError, match="of 300 shards failed"):
        run(tmp_path, ["raises"] * 300)
    # Four are enough to know: three tries each, and what the two workers' four calls do until they are ended, which a
    # driver without a core of its own is late for. Not 900.
    assert Counter((tmp_path / "log").read_text().splitlines())["raises"] < 300


def test_workers_that_never_start_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="died"):
        run(tmp_path, ["fine"], model="dies at start")


def test_a_worker_that_dies_between_stages_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "probe dies once").touch()
    tallied, _, _ = run(tmp_path, ["fine"])
    assert tallied.shards == 1


def test_what_no_node_has_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="no node has that"):
        run(tmp_path, ["fine"], workers={"num_cpus": 3})


def test_a_node_that_is_said_to_come_is_waited_for(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"within 1 s(.|\n)*workers\.wait_s"):
        run(tmp_path, ["fine"], workers={"num_cpus": 3, "wait_s": 1})
