"""A plan for people: one table and a few plain sentences."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from jobs.planning.schema import Plan, StagePlan

__all__ = ["plan_text"]

_UNITS = ("bytes", "kB", "MB", "GB", "TB")
_UNKNOWN = "?"


def plan_text(plan: Plan) -> RenderableType:
    """Draw a plan: a table of the stages, then what they rest on, whole in 80 columns."""
    return Group(_stages(plan), _facts(plan), *(escape(f"Note: {line}.") for line in (*plan.notes, *plan.advice)))


def _stages(plan: Plan) -> Table:
    # Names fold where figures need the width: a figure that is cut off says nothing.
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=f"run {escape(plan.run)}",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("stage", overflow="fold")
    for heading in ("images", "shards", "stored", "to make", "worker-h", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for stage in plan.stages:
        table.add_row(escape(stage.name), *_figures(stage))
    table.add_section()
    stored = plan.shards - plan.shards_to_make
    hours = _hours(plan.worker_hours)
    row = (f"{plan.images:,}", f"{plan.shards:,}", f"{stored:,}", f"{plan.shards_to_make:,}", hours)
    table.add_row("in all, at most", *row, _duration(plan.wall_hours), style="bold")
    return table


def _figures(stage: StagePlan) -> Iterator[str]:
    yield f"{stage.images:,}"
    yield f"{stage.shards:,}"
    yield _UNKNOWN if stage.shards_stored is None else f"{stage.shards_stored:,}"
    yield f"{stage.shards_to_make:,}"
    yield _hours(None if stage.worker_s is None else stage.worker_s / 3600)
    yield _duration(None if stage.wall_s is None else stage.wall_s / 3600)


def _facts(plan: Plan) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, fact in _named_facts(plan):
        grid.add_row(name, escape(fact))
    return grid


def _named_facts(plan: Plan) -> Iterator[tuple[str, str]]:
    yield "written to", f"{plan.url} (nothing was written now)"
    yield "to make", f"{plan.images_to_make:,} images, at most"
    storage = plan.storage
    yield (
        "bytes",
        f"{_bytes(storage.shards_bytes)} of shards, {_bytes(storage.shards_bytes_to_write)} of it new; checkpoint "
        f"{_bytes(storage.checkpoint_bytes)}",
    )
    memory = plan.memory
    beside = f", and {_bytes(memory.encoding_bytes)} beside them while prompts are encoded" * bool(
        memory.encoding_bytes
    )
    yield "memory", f"{_bytes(memory.weights_bytes)} of weights on each worker{beside}; images come on top"
    yield "speed", _rate(plan)
    if plan.rate.images_per_s is not None:
        yield "cost", _cost(plan)
    asked = ", chosen for this machine" if plan.dtype_asked == "auto" else ""
    versions = ", ".join(f"{name} {number}" for name, number in plan.versions.items())
    yield "stored as", f"{plan.dtype}{asked}, with {versions}; workers of another kind share no shards with these"
    if any(stage.shards_stored is None for stage in plan.stages):
        yield _UNKNOWN, "known once the edit is found"


def _rate(plan: Plan) -> str:
    rate = plan.rate
    if rate.images_per_s is None:
        return "not known, as no shard is stored yet: give --rate IMAGES_PER_S, or run a while and plan again"
    if rate.source == "given":
        return f"{rate.images_per_s:.3g} images/s of one worker, as given; loading not counted"
    on = f" on {rate.device}" if rate.device else ""
    return (
        f"{rate.images_per_s:.3g} images/s of one worker{on}, median of {rate.sampled_shards} stored shards; loading "
        "not counted"
    )


def _cost(plan: Plan) -> str:
    cost = f"at most {_hours(plan.worker_hours)} worker-hours"
    if plan.gpu_hours is None:
        cost += " (GPU-hours where each worker has a GPU)"
    elif plan.gpu_hours:
        cost += f", {_hours(plan.gpu_hours)} GPU-hours"
    if plan.workers is None:
        return f"{cost}; give --workers N for the time"
    return f"{cost}; {_duration(plan.wall_hours)} with {plan.workers} worker{'s'[: plan.workers != 1]}"


def _bytes(size: float) -> str:
    unit = 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:,.3g} {_UNITS[unit]}" if unit else f"{size:,.0f} {_UNITS[0]}"


def _hours(hours: float | None) -> str:
    return "-" if hours is None else f"{hours:,.1f}" if hours >= 0.1 or not hours else f"{hours:.4f}"


def _duration(hours: float | None) -> str:
    if hours is None:
        return "-"
    minutes = round(hours * 60)
    if minutes < 1:
        return f"{hours * 3600:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes < 48 * 60 else f"{hours / 24:.1f} days"
