"""The main job: base audit, strengths, one solve, edited audit, checkpoint, report.

python -m jobs.debias CONFIG.yaml --set key=value      # under `ray job submit`, or on the head node
evenhand debias CONFIG.yaml                            # the same
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import shutil
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from rich.console import Console

from infra.storage import ObjectStore, StorageError, StorageSettings, open_store
from jobs import export
from jobs.card import model_card
from jobs.cells import Cell, audit_cells, calibration_cells, check_held_out, cut, flatten
from jobs.classifier import TextEmbeddings
from jobs.config import RunConfig
from jobs.errors import ExitCode, exit_code_of
from jobs.folder import RunFolder
from jobs.identity import identity_of, preserved_prompts, provenance_of, recipe_of, without_paths
from jobs.inputs import read_inputs
from jobs.models import cache_folder
from jobs.pictures import choose_pictures
from jobs.pool import Pool, Tallied
from jobs.progress import Reporter
from jobs.report.junit import junit_xml
from jobs.report.page import render
from jobs.report.schema import Cost, Report
from jobs.report.terminal import summary_table
from jobs.results import AuditResult, EditedProfession, evaluate, label_counts, sentence
from jobs.shards import BASE, ShardSpec
from jobs.strength import Candidate, calibration_parquet, choose, edit_scale, rounds_for_report, sweep
from jobs.tally import CellTally, TallyTask, tally
from jobs.worker import Probe
from manifests import Manifest, manifest_bytes, resolved_shares, resolved_targets
from time_ops import EditOperator, Problem, PromptEdit

__all__ = ["Outcome", "debias", "main"]


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    run: str
    url: str
    report: Report
    code: ExitCode


def debias(config: RunConfig, console: Console) -> Outcome:
    """Run the whole job on the Ray cluster that this process is connected to, or can reach.

    Raises:
        ManifestError, ConfigError, EditError: the input must be mended; nothing was written.
        ModelError, StorageError, ClusterError, ShardsFailedError: see `jobs.errors`.
    """
    started = time.monotonic()
    token = uuid.uuid4().hex[:12]
    settings = StorageSettings.from_environment()
    store = open_store(config.output, settings)
    try:
        manifest = read_inputs(config, settings, token)
        check_held_out(manifest, config)
        store.check_writable()
        with Pool(config, settings, token) as pool:
            job = _Job(config, manifest, settings, store, pool, console, token, started)
            return job.run()
    finally:
        # This node's staged models; other nodes' caches are theirs to age out.
        shutil.rmtree(cache_folder() / token, ignore_errors=True)


class _Job:
    """The steps of one run, in order."""

    def __init__(
        self,
        config: RunConfig,
        manifest: Manifest,
        settings: StorageSettings,
        store: ObjectStore,
        pool: Pool,
        console: Console,
        token: str,
        started: float,
    ) -> None:
        self.config, self.manifest, self.settings, self.store = config, manifest, settings, store
        self.pool, self.console, self.token, self.started = pool, console, token, started
        self.labels = list(config.attribute)
        self.names = [p.name for p in manifest.professions]
        self.targets = np.array(
            [[resolved_targets(p, self.labels)[label] for label in self.labels] for p in manifest.professions]
        )
        self.cells = audit_cells(manifest, config)
        self.spent = Tallied()
        self.used: list[str] = []
        console.print(f"{len(self.names)} professions, {pool.size} worker(s); loading the models")
        self.probe: Probe = pool.probe()
        self.recipe = recipe_of(config, self.probe)
        identity = identity_of(config, manifest, self.recipe)
        self.folder = RunFolder(store, config.run or f"run-{identity[:16]}")
        self.folder.open(identity, self._facts())
        self.reporter = Reporter(console, self.folder.progress)

    def run(self) -> Outcome:
        """All steps; on a failure run.json says so before the error goes on."""
        try:
            return self._run()
        except BaseException as error:
            # If the store is what failed, its error must reach the user, not the one of saying so.
            with contextlib.suppress(StorageError):
                self.folder.status(
                    "failed", error=f"{type(error).__name__}: {str(error)[:2000]}", exit_code=_code(error)
                )
            raise

    def _run(self) -> Outcome:
        config, pool = self.config, self.pool
        self.folder.put("manifest.parquet", manifest_bytes(self.manifest), "application/vnd.apache.parquet")
        self.texts: TextEmbeddings = pool.call(
            "texts", [(p.name, p.source) for p in self.manifest.professions], config.controls
        )
        base = self._generate(self.cells, None, "base audit")
        tried, chosen, shares = self._strengths()
        operator = chosen.operator
        self.folder.put("calibration.parquet", calibration_parquet(tried, self.names, self.labels, shares))
        self.folder.put("operator.safetensors", operator.to_bytes())
        edited = self._generate(self.cells, operator, "edited audit")
        tasks = self._tasks(self.cells, base, edited)
        self.reporter.say("labelling and counting")
        tallies, parts = self._tally(tasks, ("base", "edited"), f"{self.folder.prefix}/images")
        self._note_parts(parts)
        professions = [
            EditedProfession(
                p.name,
                p.source,
                resolved_targets(p, self.labels),
                chosen.lam[i],
                {d.prompt: float(s) for d, s in zip(p.destinations, shares[i], strict=True)},
            )
            for i, p in enumerate(self.manifest.professions)
        ]
        result = evaluate(
            tasks, tallies, professions, self.labels, list(config.wordings.audit), config.gates, config.seed
        )
        report = self._report(result, tasks, tallies, tried, operator)
        self._publish(report, operator)
        return self._finish(report)

    # Steps

    def _generate(self, cells: Sequence[Cell], operator: EditOperator | None, stage: str) -> list[list[ShardSpec]]:
        digest = BASE if operator is None else operator.digest
        pictures = cells is self.cells
        shards = cut(cells, self.recipe, digest, self.config, pictures=pictures)
        specs = flatten(shards)
        with self.reporter.stage(stage, sum(s.count for s in specs)) as advance:
            self.spent += self.pool.run(specs, operator, advance)
        self.used += [s.digest for s in specs]
        return shards

    def _tasks(self, cells: Sequence[Cell], *variants: list[list[ShardSpec]]) -> list[TallyTask]:
        subjects = {name: i for i, name in enumerate(self.names)}
        controls = {prompt: len(self.names) + i for i, prompt in enumerate(self.config.controls)}
        tasks = []
        for i, cell in enumerate(cells):
            shards = tuple(tuple(variant[i]) for variant in variants)
            if cell.kind == "control":
                tasks.append(TallyTask(cell, shards, None, controls[cell.subject]))
            else:
                tasks.append(TallyTask(cell, shards, subjects[cell.subject], subjects[cell.subject]))
        return tasks

    def _tally(
        self, tasks: Sequence[TallyTask], variants: Sequence[str], prefix: str | None
    ) -> tuple[list[CellTally], list[str]]:
        return tally(
            tasks,
            output=self.config.output,
            settings=self.settings,
            texts=self.texts,
            labels=self.labels,
            variants=variants,
            margin=self.config.undetermined_margin,
            parts_prefix=prefix,
        )

    def _strengths(self) -> tuple[list[Candidate], Candidate, list[tuple[float, ...]]]:
        """Encode the edits, then sweep where the manifest leaves a lambda open."""
        config, professions = self.config, self.manifest.professions
        shares = [resolved_shares(p) for p in professions]
        edits = [
            PromptEdit(p.source, dict(zip((d.prompt for d in p.destinations), s, strict=True)))
            for p, s in zip(professions, shares, strict=True)
        ]
        preserved = preserved_prompts(self.manifest, config)
        pairs, kept = self.pool.call("encode", edits, preserved, config.wordings.edit)
        problem = Problem(pairs, kept)
        cells = calibration_cells(self.manifest, config)
        wordings = config.wordings.calibration

        def solve(lam: tuple[float, ...]) -> EditOperator:
            return problem.solve(list(lam), preserve_lam=config.preserve.lam)

        def audit(operator: EditOperator, name: str) -> np.ndarray:
            shards = self._generate(cells, operator, name)
            tallies, _ = self._tally(self._tasks(cells, shards), ("edited",), None)
            counts = [label_counts(t.codes[0], len(self.labels)) for t in tallies]
            return np.array(counts).reshape(len(professions), len(wordings), len(self.labels) + 1)

        fixed = [p.lam for p in professions]
        relatives = config.strength.sweep if any(f is None for f in fixed) else (1.0,)
        enough = config.strength.delta_within
        tried = sweep(relatives, edit_scale(pairs), fixed, solve, audit, self.targets, enough)
        return tried, choose(tried, enough), shares

    def _report(
        self,
        result: AuditResult,
        tasks: Sequence[TallyTask],
        tallies: Sequence[CellTally],
        tried: Sequence[Candidate],
        operator: EditOperator,
    ) -> Report:
        pictures, files = choose_pictures(self.store, tasks, tallies, self.labels, result.professions)
        for name, data in files.items():
            self.folder.put(name, data, f"image/{name.rpartition('.')[2]}")
        self.pictures = files
        spent = self.spent
        return Report(
            run=self.folder.run,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            verdict=result.verdict.value,
            sentence=sentence(result),
            labels=self.labels,
            summary=result.summary,
            gates=result.gates,
            wordings=result.wordings,
            professions=result.professions,
            controls=result.controls,
            margin_sweep=result.margin_sweep,
            pictures=pictures,
            cost=Cost(
                wall_s=round(time.monotonic() - self.started, 2),
                worker_s=round(spent.worker_s, 2),
                images=spent.images_made,
                images_reused=spent.images_reused,
                images_per_s=round(spent.images_made / spent.wall_s, 2) if spent.images_made else None,
                shards=spent.shards,
                shards_reused=spent.reused,
                shards_failed=0,
                rounds=rounds_for_report(tried),
            ),
            provenance={
                **provenance_of(self.config, self.probe, self.recipe),
                "manifest": self.manifest.digest,
                "operator": operator.digest,
                "operator_checksum": operator.checksum,
                "condition": operator.condition,
                "workers": self.pool.size,
            },
        )

    def _publish(self, report: Report, operator: EditOperator) -> None:
        """`checkpoint/` once the gates pass; until then `candidate/`, marked ungated."""
        name = "checkpoint" if report.verdict == "pass" else "candidate"
        self.reporter.say(f"writing {name}/")
        card = model_card(report, self.config.model, self.probe.model, self.labels)
        written = export.export_checkpoint(
            self.config.model,
            self.probe.model,
            operator,
            card,
            self.config.output,
            self.settings,
            f"{self.folder.prefix}/{name}",
            self.token,
        )
        self.folder.note(f"{name}/{export.CHECKSUMS}", written["sha256sums"])

    def _finish(self, report: Report) -> Outcome:
        self.folder.put("report.json", report.model_dump_json(indent=1).encode(), "application/json")
        self.folder.put("report.html", render(report, self.pictures).encode(), "text/html; charset=utf-8")
        self.folder.put("junit.xml", junit_xml(report), "application/xml")
        code = {"pass": ExitCode.DONE, "fail": ExitCode.GATE_FAILED}.get(report.verdict, ExitCode.GATE_INCONCLUSIVE)
        self.folder.complete(report.verdict, int(code), self.used)
        self.console.print(summary_table(report))
        self.console.print(f"report: {self.folder.url('report.html')}", soft_wrap=True)
        return Outcome(self.folder.run, self.folder.url(), report, code)

    # Facts

    def _facts(self) -> dict[str, Any]:
        return {
            "configuration": without_paths(self.config.model_dump(mode="json")),
            "provenance": provenance_of(self.config, self.probe, self.recipe),
            "environment": {
                "python": platform.python_version(),
                "workers": self.pool.size,
                "device": self.probe.device,
            },
            "exit_code": None,
        }

    def _note_parts(self, parts: Sequence[str]) -> None:
        for key in parts:
            digest = hashlib.sha256(self.store.get(key)).hexdigest()
            self.folder.note(key.removeprefix(f"{self.folder.prefix}/"), digest)


def _code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return int(ExitCode.INTERRUPTED)
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    return int(exit_code_of(error) or ExitCode.FAULT)


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m jobs.debias`: the same as `evenhand debias`."""
    from jobs.cli import main as cli

    cli(["debias", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    main()
