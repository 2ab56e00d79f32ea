"""A plan for people: one table and a few plain sentences."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from jobs.plan_schema import Plan, StagePlan

__all__ = ["plan_text"]

_UNITS = ("bytes", "kB", "MB", "GB", "TB")
_UNKNOWN = "?"


def plan_text(plan: Plan) -> RenderableType:
    """Draw a plan."""
    return Group(_table(plan), *(escape(line) for line in _sentences(plan)))


def _table(plan: Plan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=f"run {plan.run}", title_justify="left", title_style="bold")
    table.add_column("stage", no_wrap=True)
    for heading in ("images", "shards", "stored", "to make", "hours", "wall time"):
        table.add_column(heading, justify="right")
    for stage in plan.stages:
        table.add_row(stage.name, *_figures(stage))
    table.add_section()
    stored = plan.shards - plan.shards_to_make
    hours = _hours(plan.worker_hours)
    row = (f"{plan.images:,}", f"{plan.shards:,}", f"{stored:,}", f"{plan.shards_to_make:,}", hours)
    table.add_row("total, at most", *row, _duration(plan.wall_hours), style="bold")
    return table


def _figures(stage: StagePlan) -> Iterator[str]:
    yield f"{stage.images:,}"
    yield f"{stage.shards:,}"
    yield _UNKNOWN if stage.shards_stored is None else f"{stage.shards_stored:,}"
    yield f"{stage.shards_to_make:,}"
    yield _hours(None if stage.worker_s is None else stage.worker_s / 3600)
    yield _duration(None if stage.wall_s is None else stage.wall_s / 3600)


def _sentences(plan: Plan) -> Iterator[str]:
    yield f"Goes to {plan.url}; {plan.images_to_make:,} images are left to make, at most. Nothing was written."
    storage = plan.storage
    yield (
        f"Shards take about {_bytes(storage.shards_bytes)} in all, {_bytes(storage.shards_bytes_to_write)} of it still "
        f"to be written, and the checkpoint {_bytes(storage.checkpoint_bytes)}. Estimated from: {storage.basis}."
    )
    yield _rate(plan)
    if plan.rate.images_per_s is not None:
        yield _cost(plan)
    asked = " (auto)" if plan.dtype_asked == "auto" else ""
    versions = ", ".join(f"{name} {number}" for name, number in plan.versions.items())
    yield (
        f"Shards are looked for as made in {plan.dtype}{asked} with {versions}, which is what this machine would use. "
        "Where the workers differ, other shards count: set sampler.dtype, and plan with the workers' versions."
    )
    if any(stage.shards_stored is None for stage in plan.stages):
        yield "?: what is stored under an edit can be told once the run has found it, from the run's folder."
    for line in (*plan.notes, *plan.advice):
        yield f"Note: {line}."


def _rate(plan: Plan) -> str:
    rate = plan.rate
    if rate.images_per_s is None:
        return (
            "How fast a worker is, is not known: no shard of this recipe is stored. Give --rate IMAGES_PER_S, or let "
            "`evenhand debias` make some shards, interrupt it and plan again: it goes on from there."
        )
    if rate.source == "given":
        return f"Times rest on the given {rate.images_per_s:.3g} images/s of one worker, its loading not counted."
    on = f" on {rate.device}" if rate.device else ""
    return (
        f"Times rest on {rate.images_per_s:.3g} images/s of one worker{on}, the median of {rate.sampled_shards} stored "
        "shards; loading and counting are not in it."
    )


def _cost(plan: Plan) -> str:
    worker = f"{_hours(plan.worker_hours)} worker-hours"
    if plan.gpu_hours is None:
        cost = f"{worker}, which are GPU-hours where each worker has a GPU"
    elif plan.gpu_hours:
        cost = f"{worker}, {_hours(plan.gpu_hours)} GPU-hours"
    else:
        cost = worker
    if plan.workers is None:
        return f"At most {cost}. Give --workers N for the wall time."
    return f"At most {cost}; {_duration(plan.wall_hours)} with {plan.workers} worker{'s'[: plan.workers != 1]}."


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
