"""The check of a stored export by the workers of a session: how many images it takes, and what they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray

from jobs.auditing.tally import TallyTask
from jobs.cluster.pool import Pool
from jobs.config import RunConfig
from jobs.exports.schema import Form
from jobs.exports.verify.samples import Compared, samples, shipped
from jobs.report.schema import Shipped
from time_ops import EditOperator, Mixture

__all__ = ["check_export", "check_mixture"]

_CALL_IMAGES = 64
"""Images of one call: opening the export has to be worth it."""


def check_export(
    form: Form,
    prefix: str,
    operator: EditOperator,
    *,
    pool: Pool,
    config: RunConfig,
    tasks: Sequence[TallyTask],
    texts: Any,
    approximate: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Shipped:
    """Open what was stored, draw with it and with the audited edit, and gate what differs.

    Args:
        form: of the export.
        prefix: where it lies in the run's store.
        operator: the audited edit.
        pool: the workers.
        config: the run's; `export` says how many images, `gates.shipped` what is asked of them.
        tasks: the audit's cells, whose first images are drawn again.
        texts: reference of the classifier's text embeddings.
        approximate: the export leaves out some of the edit by intent, so it is gated as half precision is.
        say: told what is done.

    Raises:
        ModelError: the export can't be opened, or is not what was published.
        StorageError, ClusterError: as `Pool`.
    """
    dtype, half = pool.call("export_precision", form, prefix)
    half |= approximate
    wanted = samples(tasks, config.seed, config.export.half_images if half else config.export.images)
    say(f"checking {prefix.rpartition('/')[2]}/: {len(wanted)} images with it and with the audited edit")
    parts = [wanted[i : i + _CALL_IMAGES] for i in range(0, len(wanted), _CALL_IMAGES)]
    calls = [(form, prefix, operator, part, texts) for part in parts]
    found = Compared()
    for _, result in pool.map("compare_export", calls):
        found += ray.get(result)
        if found.images < len(wanted):
            say(f"checked {found.images} of {len(wanted)}")
    return shipped(found, dtype, half=half, limit=config.gates.shipped)


def check_mixture(
    prefix: str,
    mixture: Mixture,
    *,
    form: Form = "diffusers",
    pool: Pool,
    config: RunConfig,
    tasks: Sequence[TallyTask],
    texts: Any,
    approximate: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Shipped:
    """Open what was stored of a mixture, draw with each component and with the whole, and gate what differs.

    Each component draws under its own operator; the whole draws each image by the component that its seed picks, as
    `pipeline.py` or the operators' loader picks it. Of forms that have neither, the picks themselves are compared.

    Args:
        prefix: see `check_export`.
        mixture: the audited mixture.
        form: see `check_export`; so is all that follows.
        pool: .
        config: `export` says how many images, of each part in full precision, of all together in half.
        tasks: .
        texts: .
        approximate: .
        say: .

    Raises:
        ModelError: a part can't be opened, or is not what was published.
        StorageError, ClusterError: as `Pool`.
    """
    edited = [component.label for component in mixture.components if not component.is_identity]
    dtype, half = pool.call("mixture_precision", form, prefix, edited[0])
    half |= approximate
    whole: list[str | None] = [None] if form in ("diffusers", "operator") else []
    parts = [*edited, *whole]
    count = -(-config.export.half_images // len(parts)) if half else config.export.images
    wanted = samples(tasks, config.seed, count)
    name = prefix.rpartition("/")[2]
    say(f"checking {name}/: {len(wanted)} images of each of {len(parts)} parts, and with the audited mixture")
    pool.call("check_route", prefix, mixture, wanted)
    pieces = [wanted[i : i + _CALL_IMAGES] for i in range(0, len(wanted), _CALL_IMAGES)]
    # Part by part: a worker keeps open what it has opened.
    calls = [(form, prefix, part, mixture, piece, texts) for part in parts for piece in pieces]
    found = {part: Compared() for part in parts}
    for index, result in pool.map("compare_mixture", calls):
        found[calls[index][2]] += ray.get(result)
    total = sum(found.values(), Compared())
    named = {"the whole" if part is None else f"{part} only": each for part, each in found.items()}
    return shipped(total, dtype, half=half, limit=config.gates.shipped, parts=named)
