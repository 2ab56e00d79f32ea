"""Draw a run's report again, reading nothing but its folder."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from pathlib import Path

from jinja2 import TemplateError
from rich.console import Console, RenderableType

from infra.storage import ObjectMissing, ObjectStore, StorageSettings, open_store
from jobs.errors import ConfigError, exit_code_of
from jobs.report.evaluation.page import render_evaluation
from jobs.report.evaluation.text import evaluation_table
from jobs.report.page.render import render
from jobs.report.reading import is_evaluation, read_evaluation, read_report
from jobs.report.terminal import summary_table
from time_ops.files import json_of

__all__ = ["rerender"]

# What drawing raises where fields fit the schema and not each other, as a share of a label that there is none of.
_CONTRADICTED = (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, TemplateError)


def rerender(run: str, out: Path, console: Console) -> None:
    """Write `report.html` anew, to a file of this machine, and print the summary.

    The run's own folder is not touched: COMPLETE names its files by their digests.

    Raises:
        ConfigError: there is no finished run, or its report can't be read.
    """
    store = open_store(run, StorageSettings.from_environment())
    try:
        data, complete = store.get("report.json"), store.get("COMPLETE")
    except ObjectMissing as error:
        raise ConfigError(f"{run} holds no finished run ({error}); give the folder of one") from error
    try:
        known = json_of(complete)["files"]["report.json"]
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{run}: COMPLETE names no report.json; run the same command again") from error
    if hashlib.sha256(data).hexdigest() != known:
        raise ConfigError(f"{run}: report.json is not the one that COMPLETE names; run the same command again")
    try:
        page, summary = _render_report(data, store)
        drawn = page.encode()
    except _CONTRADICTED as error:
        if exit_code_of(error) is not None:
            raise
        why = f"{type(error).__name__}: {str(error)[:200]}"
        raise ConfigError(f"{store.url('report.json')} contradicts itself and can't be drawn ({why})") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(drawn)
    console.print(summary)
    console.print(f"drawn: {out}", markup=False, soft_wrap=True)


def _render_report(data: bytes, store: ObjectStore) -> tuple[str, RenderableType]:
    """The page and the terminal's summary of a report of either kind."""
    name = store.url("report.json")
    if is_evaluation(data):
        evaluation = read_evaluation(data, name)
        named = [path for row in evaluation.pictures for path in (row.base, row.oracle, *row.edited)]
        return render_evaluation(evaluation, _pictures(store, named)), evaluation_table(evaluation)
    report = read_report(data, name)
    pictures = _pictures(store, [path for pair in report.pictures for path in (pair.base, pair.edited)])
    return render(report, pictures), summary_table(report)


def _pictures(store: ObjectStore, names: Iterable[str | None]) -> dict[str, bytes]:
    pictures = {}
    for name in sorted({name for name in names if name}):
        with contextlib.suppress(ObjectMissing):
            # The page shows a gap for it, as it does for any picture that it is not given.
            pictures[name] = store.get(name)
    return pictures
