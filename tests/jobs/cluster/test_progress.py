"""What is said of progress: honest rates, and nothing that looks complete when it is not."""

import io
import json

import pytest
from rich.console import Console

from jobs.cluster.progress import MARK, Counts, Reporter, Stage


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_images_found_in_the_store_do_not_spoil_the_time_left() -> None:
    clock = Clock()
    stage = Stage("audit", 20_000, clock)
    for _ in range(200):
        clock.now += 0.05
        stage.add(50, reused=True)
    assert stage.left_s is None  # nothing was made yet: there is nothing to tell from
    for _ in range(10):
        clock.now += 10.0
        stage.add(50)
    # 5 images/s are made; a mean over all would say 95/s.
    assert stage.rate == pytest.approx(5.0, rel=0.1)
    assert stage.left_s == pytest.approx((20_000 - 10_500) / 5.0, rel=0.1)
    for _ in range(200):
        clock.now += 0.05
        stage.add(25, reused=True)
    assert stage.left_s == pytest.approx((20_000 - 15_500) / 5.0, rel=0.15)


def test_a_burst_of_found_and_made_shards_is_not_cut_in_two() -> None:
    clock = Clock()
    stage = Stage("audit", 10_000, clock)
    for _ in range(10):
        clock.now += 30.0
        stage.add(40, reused=True)
        stage.add(60)
    assert stage.rate == pytest.approx(2.0, rel=0.01)


def test_a_slow_start_is_forgotten() -> None:
    clock = Clock()
    stage = Stage("audit", 100_000, clock)
    clock.now += 300.0
    for _ in range(200):
        clock.now += 1.0
        stage.add(80)
    assert stage.rate == pytest.approx(80.0, rel=0.05)


def test_counts_do_not_overlap_and_a_shard_given_up_is_not_done() -> None:
    stage = Stage("audit", 40, Clock())
    stage.add(10, failed_images=3)
    stage.add(10, reused=True, failed_images=1)
    stage.add(10, shard_failed=True)
    assert stage.counts == Counts(7, 9, 4, shards_done=2, shards_failed=1)
    assert (stage.done, stage.lost) == (20, 10)
    stage.end(whole=True)
    assert stage.state == "stopped"
    stage.add(10)
    stage.end(whole=True)
    assert stage.facts() | {"per_s": 0} == {
        "stage": "audit",
        "state": "done",
        "total": 40,
        "done": 30,
        "reused": 9,
        "given_up": 10,
        "per_s": 0,
        "left_s": 0.0,
    }


def _marks(text: str) -> list[dict[str, object]]:
    return [json.loads(line.removeprefix(MARK)) for line in text.splitlines() if line.startswith(MARK)]


def test_marked_lines_and_listeners_hear_the_beginning_every_shard_and_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENHAND_PROGRESS", "json")
    out, heard, states = io.StringIO(), Counts(), []

    def listen(stage: Stage, delta: Counts) -> None:
        nonlocal heard
        heard += delta
        states.append(stage.state)

    with Reporter(Console(file=out), listen, listen).stage("audit", 100) as advance:
        advance(60)
        advance(40, True)
    assert heard == Counts(120, 80, shards_done=4)
    assert states == ["running"] * 6 + ["done"] * 2
    first, *_, last = _marks(out.getvalue())
    assert (first["state"], first["done"], first["left_s"]) == ("running", 0, None)
    assert (last["state"], last["done"], last["total"], last["left_s"]) == ("done", 100, 100, 0.0)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_stage_that_fails_does_not_look_complete(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    monkeypatch.delenv("EVENHAND_PROGRESS", raising=False)
    out = io.StringIO()
    reporter = Reporter(Console(file=out, force_terminal=terminal, width=100))

    def failing() -> None:
        with reporter.stage("audit", 100) as advance:
            advance(30)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        failing()
    text = out.getvalue()
    assert "30/100" in text
    assert "stopped" in text
    assert "100/100" not in text
