"""Evaluate the edits of a set, each by itself: do they take, do they carry over, do they leave other prompts alone?

python -m jobs.evaluate CONFIG.yaml --edits s3://bucket/edits.csv       # under `ray job submit`, or on the head node
evenhand evaluate CONFIG.yaml --edits edits.csv --lam 0.01 --lam 0.1 --lam 1

All edits are evaluated on one resident base model: an edit is a transform of the prompts, so a batch may mix many.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from infra.storage import StorageSettings
from jobs.auditing.reporting import cost_of
from jobs.auditing.tally import part_name, parts_of
from jobs.config import RunConfig
from jobs.errors import ExitCode
from jobs.evaluation.api import EditSetWorker
from jobs.evaluation.figures import evaluation_sentence, figures_of
from jobs.evaluation.inputs import EditInputs, read_edits
from jobs.evaluation.operators import SolvedEdit
from jobs.evaluation.tally import MeasureFrame, Measures, MeasureTask, PartMeasures, cell_of
from jobs.evaluation.tasks import Solved, requests_of, solved_of, specs_of, tasks_of, texts_of
from jobs.images.cells import cut_cell
from jobs.images.shards import BASE, Shard, ShardSpec
from jobs.report.evaluation.page import render_evaluation
from jobs.report.evaluation.schema import EvaluationReport, LeftOut, PictureRow
from jobs.report.evaluation.text import evaluation_table
from jobs.runs.identity import last_name, made_on, provenance_of
from jobs.runs.run import Run, open_run
from jobs.worker.make import make_worker
from manifests import Fault
from manifests.errors import in_order

__all__ = ["Evaluated", "evaluate"]

_SOLVED_AT_ONCE = 8
_PICTURED_EDITS = 24


@dataclass(frozen=True)
class Evaluated:
    """How a run ended: its name, the folder's URL, and what it found."""

    run: str
    url: str
    report: EvaluationReport


def evaluate(config: RunConfig, console: Console) -> Evaluated:
    """Run the job on the Ray cluster that this process is connected to, or can reach.

    Args:
        config: the run; `manifest` names the edit set.
        console: for people.

    Raises:
        ManifestError: the edit set can't be used.
        ConfigError: the output or the run's name must be mended.
        ModelError, StorageError, ClusterError, LeaseHeldError, ShardsFailedError: see `jobs.errors`.
    """

    def read(settings: StorageSettings, token: str) -> EditInputs:
        return read_edits(config, settings, token)

    with open_run(config, console, read, kind="evaluation", worker=make_worker) as (run, inputs):
        return _Evaluation(run, inputs, console).run()


class _Evaluation:
    """The steps of one evaluation, in order."""

    def __init__(self, run: Run, inputs: EditInputs, console: Console) -> None:
        self._run, self._inputs, self._console = run, inputs, console
        self._config = run.config
        self._statuses: Counter[str] = Counter()
        self._makers: Counter[str] = Counter()

    def run(self) -> Evaluated:
        """All steps."""
        run, config = self._run, self._config
        run.reporter.say("solving the edits")
        solved = self._solve()
        tasks = tasks_of(solved, config)
        self._generate(tasks, solved, edited=False)
        self._generate(tasks, solved, edited=True)
        run.reporter.say("deciding and counting")
        measures = self._measure(tasks, solved)
        figures = figures_of(solved, tasks, measures, config)
        pictures, files = self._pictures(solved)
        left_out = in_order([*self._inputs.edit_set.left_out, *solved.left_out])
        provenance: dict[str, Any] = provenance_of(config, run.probe, run.recipe)
        for other in ("undetermined_margin", "wordings"):
            del provenance[other]
        report = EvaluationReport(
            run=run.folder.run,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            sentence=evaluation_sentence(figures.summary),
            edit_set=last_name(config.manifest),
            rows=self._inputs.edit_set.rows,
            images=config.evaluate.images,
            control_images=config.evaluate.control_images,
            lams=list(config.evaluate.lam),
            summary=figures.summary,
            edits=figures.edits,
            controls=figures.controls,
            left_out=[_left_out(fault) for fault in left_out],
            statuses=dict(self._statuses),
            pictures=pictures,
            cost=cost_of(run),
            provenance={
                **provenance,
                "wordings": list(config.evaluate.wordings),
                "edits": self._inputs.edit_set.digest,
                "workers": run.pool.size,
                **made_on(self._makers),
            },
        )
        run.lease.check()
        return self._conclude(report, files)

    def _solve(self) -> Solved:
        """Every edit at every lam, in the workers: which operators there are, and which edits have none."""
        edits = self._inputs.edit_set.edits
        asked = [requests_of(edit, self._config) for edit in edits]
        calls = [
            ([request for each in asked[i : i + _SOLVED_AT_ONCE] for request in each],)
            for i in range(0, len(asked), _SOLVED_AT_ONCE)
        ]
        by_call: dict[int, list[SolvedEdit]] = {}
        for i, of_call in self._run.pool.map(EditSetWorker.solve_edits, calls):
            by_call[i] = of_call
        flat = iter([each for i in range(len(calls)) for each in by_call[i]])
        return solved_of(self._inputs.edit_set, self._config, [[next(flat) for _ in each] for each in asked])

    def _generate(self, tasks: Sequence[MeasureTask], solved: Solved, *, edited: bool) -> None:
        run = self._run
        counts = [spec.count for spec in specs_of(tasks, run.recipe, self._config, edited=edited)]

        def used() -> Iterator[ShardSpec]:
            for spec in specs_of(tasks, run.recipe, self._config, edited=edited):
                run.used.append(spec.digest)
                yield spec

        with run.reporter.stage("edited images" if edited else "base and oracle", sum(counts)) as advance:
            run.spent += run.pool.run(used(), (), advance, len(counts), solved.requests if edited else None)

    def _measure(self, tasks: Sequence[MeasureTask], solved: Solved) -> list[Measures]:
        run = self._run
        run.lease.check()
        controls = self._config.controls if self._config.evaluate.control_images else ()
        texts = run.pool.share(run.pool.call(EditSetWorker.prompt_texts, texts_of(solved.edits, controls)))
        frame = MeasureFrame(run.recipe, self._config.evaluate.lam, frozenset(run.spent.failed))
        parts = list(parts_of(tasks, len(frame.variants)))
        calls = ((part, frame, texts, f"{run.folder.prefix}/{part_name(i)}") for i, part in enumerate(parts))
        by_part: dict[int, PartMeasures] = {}
        for i, measured in run.pool.map(EditSetWorker.measure, calls):
            by_part[i] = measured
            if (digest := measured.sha256) is not None:
                run.folder.note(part_name(i), digest)
            self._statuses += measured.statuses
            self._makers += measured.makers
        return [measures for i in range(len(parts)) for measures in by_part[i].measures]

    def _pictures(self, solved: Solved) -> tuple[list[PictureRow], dict[str, bytes]]:
        """The first image of each edit's source prompt in every variant, of the first edits, whatever it shows."""
        rows: list[PictureRow] = []
        files: dict[str, bytes] = {}
        for edit, operators in list(zip(solved.edits, solved.operators, strict=True))[:_PICTURED_EDITS]:
            stem = f"pictures/edit-{edit.row:05d}"
            seed = self._first(edit.source, BASE).seeds()[0]
            edited = [
                self._picture(edit.source, each.digest, f"{stem}-lam-{lam:g}", files)
                for lam, each in zip(self._config.evaluate.lam, operators, strict=True)
            ]
            rows.append(
                PictureRow(
                    row=edit.row,
                    source=edit.source,
                    destination=edit.destination,
                    seed=seed,
                    base=self._picture(edit.source, BASE, f"{stem}-base", files),
                    oracle=self._picture(edit.destination, BASE, f"{stem}-oracle", files),
                    edited=edited,
                )
            )
        for name, data in files.items():
            self._run.folder.put(name, data, f"image/{name.rpartition('.')[2]}")
        return rows, files

    def _first(self, prompt: str, operator: str) -> ShardSpec:
        return cut_cell(cell_of(prompt, self._config.evaluate.images), self._run.recipe, operator, self._config)[0]

    def _picture(self, prompt: str, operator: str, stem: str, files: dict[str, bytes]) -> str | None:
        spec = self._first(prompt, operator)
        if spec.pictures == 0 or spec.digest in self._run.spent.failed:
            return None
        picture = Shard.from_bytes(self._run.store.get(spec.object_key), spec).pictures[0]
        if picture is None:
            return None
        name = f"{stem}.{spec.picture_format}"
        files[name] = picture
        return name

    def _conclude(self, report: EvaluationReport, files: dict[str, bytes]) -> Evaluated:
        folder = self._run.folder
        folder.put("report.json", report.model_dump_json(indent=1).encode(), "application/json")
        folder.put("report.html", render_evaluation(report, files).encode(), "text/html; charset=utf-8")
        self._run.complete("measured", ExitCode.DONE)
        self._console.print(evaluation_table(report))
        self._console.print(f"report: {folder.url('report.html')}", markup=False, soft_wrap=True)
        return Evaluated(folder.run, folder.url(), report)


def _left_out(fault: Fault) -> LeftOut:
    return LeftOut(place=fault.place, reason=fault.message)


if __name__ == "__main__":
    from jobs.cli import main

    main(["evaluate", *sys.argv[1:]])
