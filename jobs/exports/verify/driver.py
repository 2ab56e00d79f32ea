"""The check of a stored export by the workers of a session: how many images it takes, and what they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobs.auditing.tally import TallyTask
from jobs.cluster.pool import Pool
from jobs.config import RunConfig
from jobs.exports.api import ExportWorker
from jobs.exports.schema import Form
from jobs.exports.verify.samples import Compared, samples, shipped
from jobs.images.labels import TextEmbeddings
from jobs.report.schema import Shipped
from time_ops import EditOperator, Mixture

__all__ = ["Checking", "check_export", "check_mixture"]

_CALL_IMAGES = 64
"""Images of one call: opening the export has to be worth it."""


@dataclass(frozen=True)
class Checking:
    """What a check needs, whatever is checked.

    Attributes:
        pool: the workers.
        config: the run's; `export` says how many images, `gates.shipped` what is asked of them.
        tasks: the audit's cells, whose first images are drawn again.
        texts: the classifier's, shared with the pool.
        say: told what is done.
    """

    pool: Pool
    config: RunConfig
    tasks: Sequence[TallyTask]
    texts: TextEmbeddings
    say: Callable[[str], None] = lambda _: None


def check_export(
    form: Form, prefix: str, operator: EditOperator, checking: Checking, *, approximate: bool = False
) -> Shipped:
    """Open what was stored, draw with it and with the audited edit, and gate what differs.

    Args:
        form: of the export.
        prefix: where it lies in the run's store.
        operator: the audited edit.
        checking: with what.
        approximate: the export leaves out some of the edit by intent, so it is gated as half precision is.

    Raises:
        ModelError: the export can't be opened, or is not what was published.
        StorageError, ClusterError: as `Pool`.
    """
    pool, config, texts = checking.pool, checking.config, checking.texts
    dtype, half = pool.call(ExportWorker.export_precision, form, prefix)
    half |= approximate
    wanted = samples(checking.tasks, config.seed, config.export.half_images if half else config.export.images)
    checking.say(f"checking {prefix.rpartition('/')[2]}/: {len(wanted)} images with it and with the audited edit")
    parts = [wanted[i : i + _CALL_IMAGES] for i in range(0, len(wanted), _CALL_IMAGES)]
    calls = [(form, prefix, operator, part, texts) for part in parts]
    total = Compared()
    for _, compared in pool.map(ExportWorker.compare_export, calls):
        total += compared
        if total.images < len(wanted):
            checking.say(f"checked {total.images} of {len(wanted)}")
    return shipped(total, dtype, half=half, limit=config.gates.shipped)


def check_mixture(
    form: Form, prefix: str, mixture: Mixture, checking: Checking, *, approximate: bool = False
) -> Shipped:
    """Open what was stored of a mixture, draw with each component and with the whole, and gate what differs.

    Each component draws under its own operator; the whole draws each image by the component that its seed picks, as
    `pipeline.py` or the operators' loader picks it. Of forms that have neither, the picks themselves are compared.
    `export` counts images of each part in full precision, of all together in half.

    Args:
        form: of the export.
        prefix: where it lies in the run's store.
        mixture: the audited mixture.
        checking: with what.
        approximate: see `check_export`.

    Raises:
        ModelError: a part can't be opened, or is not what was published.
        StorageError, ClusterError: as `Pool`.
    """
    pool, config, texts = checking.pool, checking.config, checking.texts
    edited = [component.label for component in mixture.components if not component.is_identity]
    dtype, half = pool.call(ExportWorker.mixture_precision, form, prefix, edited[0])
    half |= approximate
    whole: list[str | None] = [None] if form in ("diffusers", "operator") else []
    parts = [*edited, *whole]
    count = -(-config.export.half_images // len(parts)) if half else config.export.images
    wanted = samples(checking.tasks, config.seed, count)
    name = prefix.rpartition("/")[2]
    checking.say(f"checking {name}/: {len(wanted)} images of each of {len(parts)} parts, and with the audited mixture")
    pool.call(ExportWorker.check_route, prefix, mixture, wanted)
    pieces = [wanted[i : i + _CALL_IMAGES] for i in range(0, len(wanted), _CALL_IMAGES)]
    # Part by part: a worker keeps open what it has opened.
    calls = [(form, prefix, part, mixture, piece, texts) for part in parts for piece in pieces]
    totals = {part: Compared() for part in parts}
    for index, compared in pool.map(ExportWorker.compare_mixture, calls):
        totals[calls[index][2]] += compared
    total = sum(totals.values(), Compared())
    named = {"the whole" if part is None else f"{part} only": each for part, each in totals.items()}
    return shipped(total, dtype, half=half, limit=config.gates.shipped, parts=named)
