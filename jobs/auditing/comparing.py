"""Comparing with an earlier run on common seeds: whether that can be done, and its images in this run's places.

check_comparable(earlier, config, manifest, recipe)           # refuses, naming all that differs
matched = match(earlier, cells, labels, seed, write)          # its labels, in the order of these cells
tallies.after(matched.part)                                   # two variants: the earlier run's, then this one's
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from infra.storage import ObjectMissing, ObjectStore
from jobs.auditing.blocks import places_of, swept_counts
from jobs.auditing.judged_rows import MARGINS, counted_codes, read_judged
from jobs.auditing.tally import Judging, PartTally, pack
from jobs.config import RunConfig
from jobs.images.cells import Cell
from jobs.images.judging import judging_rules
from jobs.images.labels import FAILED
from jobs.images.recipe import Recipe, keyed_versions, sampler_facts
from jobs.images.shards import BASE, STATUSES, Shard, ShardError, ShardSpec, image_seed
from jobs.runs.finished import EarlierRunError, FinishedRun
from manifests import Manifest, resolved_targets
from time_ops.route import WeightTable, apportion, interval

__all__ = ["IncomparableError", "Matched", "check_comparable", "match", "reference_shards"]


class IncomparableError(EarlierRunError):
    """The earlier run is sound, but its images are no pairs of this run's, or were labelled in another way."""


_CELL = ("kind", "profession", "wording", "prompt")


def check_comparable(earlier: FinishedRun, config: RunConfig, manifest: Manifest, recipe: Recipe) -> None:
    """Refuse an earlier run whose images are no pairs of this run's, or were labelled in another way.

    An earlier run with more images in a cell will do: the first of them are used.

    Raises:
        IncomparableError: naming all that differs, and what to do.
    """
    faults = [
        *_manifest_faults(earlier, manifest, list(config.attribute)),
        *_setting_faults(earlier, config),
        *_sampler_faults(earlier, recipe, judging_rules(config)),
    ]
    if faults:
        raise IncomparableError(
            f"{earlier.store.url()} can't be compared with this run on common seeds:\n"
            + "\n".join(f"  {fault}" for fault in faults)
            + "\nSet these as they are there (--set key=value), or compare with a run that was made as this one is"
        )


def _manifest_faults(earlier: FinishedRun, manifest: Manifest, labels: Sequence[str]) -> Iterator[str]:
    here = {p.name: p for p in manifest.professions}
    there = {p.name: p for p in earlier.manifest.professions}
    for where, names in (("here", here.keys() - there.keys()), ("there", there.keys() - here.keys())):
        if names:
            yield f"professions: only {where}: {', '.join(sorted(names))}"
    for name in sorted(here.keys() & there.keys()):
        mine, other = here[name], there[name]
        if mine.source != other.source:
            yield f"source of {name}: here {mine.source!r}, there {other.source!r}"
        prompts = [{d.prompt: d.label for d in p.destinations} for p in (mine, other)]
        if prompts[0] != prompts[1]:
            yield f"destinations of {name}: here {_shown(prompts[0])}, there {_shown(prompts[1])}"
        if list(labels) == earlier.report.labels:
            targets = [resolved_targets(p, labels) for p in (mine, other)]
            if targets[0] != targets[1]:
                yield f"target of {name}: here {_shown(targets[0])}, there {_shown(targets[1])}"


def _setting_faults(earlier: FinishedRun, config: RunConfig) -> Iterator[str]:
    here, there = config.model_dump(mode="json"), earlier.configuration
    if list(config.attribute) != earlier.report.labels:
        yield f"labels: here {list(config.attribute)}, there {earlier.report.labels}"
    wordings = there.get("wordings") or {}
    pairs = {
        "wordings.audit": (here["wordings"]["audit"], wordings.get("audit")),
        **{key: (here[key], there.get(key)) for key in ("attribute", "recognition", "undetermined_margin", "controls")},
    }
    for key, (mine, other) in pairs.items():
        if mine != other:
            yield f"{key}: here {_shown(mine)}, there {_shown(other)}"
    for key in ("images_per_cell", "explicit_images", "control_images"):
        if (most := int(there.get(key) or 0)) < here[key]:
            yield f"{key}: here {here[key]}, there only {most}; set {key}={most}"


def _sampler_faults(earlier: FinishedRun, recipe: Recipe, rules: object) -> Iterator[str]:
    facts = earlier.report.provenance
    if facts.get("classifier_digest") != recipe.classifier:
        yield (
            f"classifier: here {recipe.classifier[:12]}, there {str(facts.get('classifier_digest'))[:12]} "
            f"({facts.get('classifier')}), by their contents"
        )
    if facts.get("classifier_rules") != rules:
        yield f"classifier, its labels and margins: here {_shown(rules)}, there {_shown(facts.get('classifier_rules'))}"
    known = facts.get("sampler")
    there: Mapping[str, Any] = known if isinstance(known, dict) else {}
    for key, mine in sampler_facts(recipe).items():
        if key not in there or there[key] != mine:
            name = key if key == "seed" else f"sampler.{key}"
            yield f"{name}: here {_shown(mine)}, there {_shown(there.get(key))}"


def _shown(value: object) -> str:
    return "nothing" if value is None else f"{value!r}"


@dataclass(frozen=True)
class Matched:
    """An earlier run's images in the places of this run's cells.

    Attributes:
        part: one variant; failures where it has failures.
        first: for each cell, by the label of the component ("" where there was no mixture), digest and number of images
            of the shard that holds the first image.
    """

    part: PartTally
    first: Mapping[Cell, Mapping[str, tuple[str, int]]]


def match(
    earlier: FinishedRun, cells: Sequence[Cell], labels: Sequence[str], seed: int, write: Callable[[pa.Table], None]
) -> Matched:
    """Read the earlier run's rows, one part at a time, into the places of these cells.

    Args:
        earlier: the run.
        cells: what this run looks at, in order.
        labels: the attribute's, as in that run.
        seed: the run's.
        write: gets the rows that are used, as of variant `base`.

    Raises:
        EarlierRunError: images are missing, twice there, or of other seeds; or see `FinishedRun.parts`.
    """
    matching = _Matching(earlier, cells, labels, seed)
    for table in earlier.parts():
        used = matching.take(table)
        if used.any():
            kept = table.filter(pa.array(used))
            column = kept.schema.get_field_index("variant")
            write(kept.set_column(column, "variant", pa.repeat("base", len(kept))))
    return matching.matched()


class _Matching:
    """An earlier run's images, put in their places part by part."""

    def __init__(self, earlier: FinishedRun, cells: Sequence[Cell], labels: Sequence[str], seed: int) -> None:
        self._earlier, self._cells, self._labels, self._seed = earlier, cells, labels, seed
        self._places: dict[tuple[str, ...], int] = {
            (c.kind, c.subject, c.wording, c.prompt): i for i, c in enumerate(cells)
        }
        self._starts = np.cumsum([0, *(cell.images for cell in cells)])
        failed = pack(np.array([FAILED]), np.array([False]), np.array([False]))[0]
        self._packed = np.full(self._starts[-1], failed, np.uint8)
        self._seen = np.zeros(self._starts[-1], bool)
        self._swept = np.zeros((len(cells), len(MARGINS), len(labels) + 1), np.int32)
        self._judged = np.zeros((len(cells), len(Judging)), np.int32)
        self._bad: Counter[str] = Counter()
        self._first: dict[Cell, dict[str, tuple[str, int]]] = {}
        self._drawn, self._components = _weights_of(earlier)

    def take(self, table: pa.Table) -> np.ndarray:
        """[n] bool: which rows of a part are images of these cells."""
        used = np.zeros(len(table), bool)
        for start, rows in _by_cell(table, self._labels):
            if (place := self._places.get(rows.cell)) is not None:
                keep = self._take_cell(place, rows)
                used[start : start + len(keep)] = keep
        return used

    def _take_cell(self, place: int, rows: _Rows) -> np.ndarray:
        earlier, cell = self._earlier, self._cells[place]
        if len(np.unique(rows.index)) != len(rows.index):
            raise _damaged(earlier, cell, "some images twice")
        keep, within = rows.places(cell, self._drawn, self._components)
        if self._drawn is not None and keep.sum() != cell.images:
            raise _damaged(earlier, cell, "too few images together")
        at = self._starts[place] + within
        if self._seen[at].any():
            raise _damaged(earlier, cell, "some images twice")
        _check_seeds(earlier, cell, rows, self._seed)
        self._seen[at] = True
        self._packed[at] = pack(rows.codes, rows.recognised, rows.ok)[keep]
        if rows.judged is not None:
            codes, counted = rows.judged
            self._swept[place] += counted_codes(codes[:, keep & rows.ok], len(self._labels))
            self._judged[place] += counted[keep].sum(axis=0)
        elif rows.scores is not None:
            self._swept[place] += swept_counts(rows.scores[keep & rows.ok])
        self._bad.update(rows.statuses[keep & ~rows.ok].tolist())
        self._first.setdefault(cell, {}).update(rows.first_shards(cell, self._components))
        return keep

    def matched(self) -> Matched:
        """All of them, once every part is taken.

        Raises:
            EarlierRunError: some are missing.
        """
        cells, starts = self._cells, self._starts
        if not self._seen.all():
            short = [cell for i, cell in enumerate(cells) if not self._seen[starts[i] : starts[i + 1]].all()]
            raise _damaged(self._earlier, short[0], f"too few images of it, and of {len(short)} prompts in all")
        part = PartTally(
            self._packed[None],
            self._swept[:, :, None],
            np.full(len(cells), np.nan),
            np.zeros((len(cells), 0, len(self._labels) + 3), np.int32),
            np.array([self._earlier.summary.seconds]),
            self._bad,
            Counter(),
            None,
            self._judged[:, None],
        )
        return Matched(part, self._first)


def _weights_of(earlier: FinishedRun) -> tuple[WeightTable | None, list[str]]:
    """Weights and labels of the components that an earlier run's images were drawn by; None: no mixture drew them."""
    mixture = earlier.report.mixture
    if mixture is None or earlier.variant == "base":
        return None, []
    professions = {each.source: list(each.weights.values()) for each in mixture.professions}
    return WeightTable(list(mixture.weights.values()), professions), list(mixture.weights)


def _damaged(earlier: FinishedRun, cell: Cell, what: str) -> EarlierRunError:
    return EarlierRunError(
        f"{earlier.store.url('images')}: of {cell.prompt!r} ({cell.kind}) it holds {what}, so they can't be paired "
        "with this run's; start that run's command again, or compare with another run"
    )


@dataclass(frozen=True)
class _Rows:
    """Rows of one cell, one after the other: n images."""

    cell: tuple[str, str, str, str]
    index: np.ndarray
    seeds: np.ndarray
    codes: np.ndarray
    recognised: np.ndarray
    statuses: np.ndarray
    shards: np.ndarray
    scores: np.ndarray | None
    """[n, L], or None where the cell has none."""
    components: np.ndarray
    """[n] the mixture's component that drew each; None where there was no mixture."""
    judged: tuple[np.ndarray, np.ndarray] | None = None
    """See `read_judged`."""

    def places(self, cell: Cell, drawn: WeightTable | None, labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Which of them a run of so many images would have drawn, [n] bool, and the place of each of those in the cell.

        Args:
            cell: of this run.
            drawn: the weights of a mixture, whose rows of a cell stand together: the first of each component are taken.
            labels: of its components.
        """
        if drawn is None:
            keep = (self.index >= cell.first) & (self.index < cell.first + cell.images)
            return keep, self.index[keep] - cell.first
        keep = np.zeros(len(self.index), bool)
        for label, count in zip(labels, apportion(drawn.of(cell.prompt), cell.images, cell.prompt), strict=True):
            mine = np.flatnonzero(self.components == label)
            keep[mine[np.argsort(self.index[mine], kind="stable")][:count]] = True
        return keep, np.argsort(places_of(self.index[keep], cell.first))

    def first_shards(self, cell: Cell, labels: Sequence[str]) -> Iterator[tuple[str, tuple[str, int]]]:
        """For each component that is there, "" where there is no mixture: its first shard's digest and size."""
        for label in labels or ("",):
            mine = self.shards[self.components == label] if labels else self.shards[self.index == cell.first]
            if len(mine):
                yield label, (str(mine[0]), int((self.shards == mine[0]).sum()))

    @property
    def ok(self) -> np.ndarray:
        return np.asarray(self.statuses == STATUSES[0])


def _by_cell(table: pa.Table, labels: Sequence[str]) -> Iterator[tuple[int, _Rows]]:
    """First row and rows of each stretch of one cell."""
    if not len(table):
        return
    known = {**{label: i for i, label in enumerate(labels)}, "undetermined": len(labels)}
    columns = [table.column(name).combine_chunks().dictionary_encode() for name in _CELL]
    keys = np.stack([column.indices.to_numpy() for column in columns])
    turns = np.flatnonzero((keys[:, 1:] != keys[:, :-1]).any(axis=0)) + 1
    index, seeds, recognised, statuses, shards = (
        table.column(name).to_numpy() for name in ("index", "seed", "recognised", "status", "shard")
    )
    codes = np.array([known.get(label, FAILED) for label in table.column("label").to_pylist()], np.uint8)
    # Runs from before there were mixtures have no such column.
    has = "component" in table.column_names
    components = np.array(table.column("component").to_pylist() if has else [None] * len(table), dtype=object)
    scores = table.column("scores").combine_chunks()
    for start, end in zip([0, *turns], [*turns, len(table)], strict=True):
        part = slice(int(start), int(end))
        kind, profession, wording, prompt = (
            column.dictionary[int(keys[i, start])].as_py() for i, column in enumerate(columns)
        )
        values = scores.slice(start, end - start).flatten().to_numpy(zero_copy_only=False)
        yield (
            int(start),
            _Rows(
                (kind, profession, wording, prompt),
                index[part],
                seeds[part],
                codes[part],
                recognised[part].astype(bool),
                statuses[part],
                shards[part],
                values.reshape(-1, len(labels)) if len(values) == (end - start) * len(labels) else None,
                components[part],
                read_judged(table.slice(start, end - start), len(labels)),
            ),
        )


def _check_seeds(earlier: FinishedRun, cell: Cell, rows: _Rows, seed: int) -> None:
    """One image stands for its cell: all seeds of a run are made in one way."""
    if rows.seeds[0] != image_seed(seed, cell.stream, cell.prompt, int(rows.index[0])):
        raise _damaged(earlier, cell, "images of other seeds than this version gives them")


def reference_shards(
    matched: Matched, earlier: FinishedRun, own: ShardSpec, cell: Cell, store: ObjectStore
) -> list[tuple[str, ShardSpec]]:
    """The shards that hold the earlier run's first images of a cell with their pictures, by component.

    A shard is left out where this store does not have it, or has it without the pictures that this run keeps.

    Args:
        matched: the earlier run's images.
        earlier: that run.
        own: this run's first shard of the cell.
        cell: what both have drawn.
        store: where shards are.

    Returns:
        Label of the component ("" where there was no mixture), and the shard.
    """
    facts = earlier.report.provenance
    versions, reference = facts.get("versions"), earlier.reference("earlier run")
    if not isinstance(versions, dict):
        return []
    recipe = replace(own.recipe, model=reference.model_digest, versions=keyed_versions(versions))
    own = replace(own, recipe=recipe, operator=reference.operator or BASE, first=cell.first, route=None)
    table, labels = _weights_of(earlier)
    mixture = earlier.report.mixture
    operators = {} if mixture is None else {each.label: each.operator for each in mixture.components}
    shown = []
    for label, (digest, count) in matched.first.get(cell, {}).items():
        spec = replace(own, count=count)
        if table is not None:
            route = interval(table.of(cell.prompt), labels.index(label))
            spec = replace(spec, operator=operators.get(label) or BASE, route=route)
        if spec.digest == digest and _is_stored(spec, store):
            shown.append((label, spec))
    return shown


def _is_stored(spec: ShardSpec, store: ObjectStore) -> bool:
    try:
        Shard.from_bytes(store.get(spec.object_key), spec)
    except (ObjectMissing, ShardError):
        return False
    return True
