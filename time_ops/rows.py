"""The tokens of many edits in the least space: each distinct embedding once, edits as places among them.

    rows = encode_rows(pipe, edits, preserved)
    part = rows.statistics(lam=[30.0] * len(edits), preserve_lam=30.0)      # other lams or shares: no prompt again
    operator = solve_statistics(part + other_part)

Shares may differ between the augmentations of one edit, and what they leave of 1 stays with the source itself.
Edits too many for one process are cut into parts, each is encoded where there is room, and only the sums travel.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, pairwise
from operator import attrgetter
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as arrays_bytes

from time_ops.alignment import Alignment
from time_ops.edit_statistics import Statistics
from time_ops.encoders import EncoderDigest
from time_ops.errors import EditError
from time_ops.files import header_of, json_of
from time_ops.lams import check_lams, pooled_ratio, scale_of
from time_ops.prompts import MOST_OVERSHOOT, PromptEdit, augment
from time_ops.records import EditRecord
from time_ops.strengths import SHARE_TOLERANCE, Floats, Strengths, checked_blends
from time_ops.sums import Device, EditRows, Sums, spectral_norm

__all__ = ["MASKED", "TokenRows"]

Places = npt.NDArray[np.int32]

MASKED = np.int32(-1)
"""In place of a row: padding that the model does not attend to, which takes no part in a solve."""

_ARRAYS = ("tokens", "sources", "destinations", "kept")


@dataclass(frozen=True)
class _Push:
    """One push of one preserved destination in one augmentation, see `Strengths.push`."""

    edit: int
    row: int
    augmentation: int
    prompt: str
    source: str
    size: float
    lam: float


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Edits and preserved prompts as places in one table of distinct token embeddings.

    Attributes:
        tokens: [u, d] float32, no row twice.
        edits: the edits, E of them.
        sources: [E, n] int32, row of each source token or `MASKED`; n = augmentations x positions.
        destinations: [D, n] int32, row of the token that corresponds to it in each destination, edit by edit, and
            `MASKED` where the source's is.
        preserved: preserved prompts, R of them.
        kept: [R, positions] int32, their rows or `MASKED`.
        augmentations: templates that were used.
        alignment: rule that matched the tokens.
        encoder: the text encoder's digest.
        pooled: the same edits' pooled embeddings, one row for each prompt; None where the model reads none.
    """

    tokens: npt.NDArray[np.float32]
    edits: tuple[PromptEdit, ...]
    sources: Places
    destinations: Places
    preserved: tuple[str, ...]
    kept: Places
    augmentations: tuple[str, ...]
    alignment: Alignment
    encoder: EncoderDigest
    pooled: TokenRows | None = None

    @property
    def nbytes(self) -> int:
        """Memory of the arrays, in bytes."""
        own = sum(a.nbytes for a in (self.tokens, self.sources, self.destinations, self.kept))
        return own + (0 if self.pooled is None else self.pooled.nbytes)

    @property
    def pooled_ratio(self) -> float:
        """Lam of the pooled embeddings, in units of the token states', at which both edit alike: by their scales."""
        return 1.0 if self.pooled is None else pooled_ratio(scale_of(self.pooled.norms()), scale_of(self.norms()))

    def of_augmentations(self, used: Sequence[bool]) -> TokenRows:
        """The same edits in some of their augmentations, in one table of tokens still; preserved prompts stay all.

        Args:
            used: which of `augmentations`; at least one.
        """
        chosen = np.asarray(used, dtype=bool)
        if chosen.shape != (len(self.augmentations),) or not chosen.any():
            raise EditError(f"{len(self.augmentations)} augmentations, of which some are chosen by {list(used)}")
        tokens = np.repeat(chosen, self.sources.shape[1] // len(chosen))
        return replace(
            self,
            sources=self.sources[:, tokens],
            destinations=self.destinations[:, tokens],
            augmentations=tuple(a for a, keep in zip(self.augmentations, chosen, strict=True) if keep),
            pooled=None if self.pooled is None else self.pooled.of_augmentations(used),
        )

    def statistics(
        self,
        lam: Sequence[float],
        shares: Sequence[npt.ArrayLike] | None = None,
        preserve_lam: float | Sequence[float] | None = None,
        *,
        device: Device = "cpu",
        ratio: float = 1.0,
    ) -> Statistics:
        """Weighted statistics of all of them, ready to be merged with other parts and solved.

        Args:
            lam: strength of each edit.
            shares: for each edit other shares of its destinations, in their order: [K], or [W, K] with those of each
                of the `augmentations`. What they leave of 1 stays with the source: all zeros preserve the edit's
                prompts at its lam. A sum beyond 1 overshoots, c + s (c* - c), and the source's share is then negative.
                None: each edit's own.
            preserve_lam: strength of the preserved prompts, or of each of `preserved`; inf leaves one out. None: the
                smallest lam given here.
            device: where to compute; needs float64.
            ratio: see `Strengths`.

        Returns:
            Statistics on the CPU. An edit has one record for each distinct blend, with the augmentations that have it;
            what stays with the source is on record as a destination of that name.

        Raises:
            EditError: bad lams or shares, all of them named; or not one for each edit or preserved prompt.
        """
        kept = min((float(s) for s in lam), default=1.0) if preserve_lam is None else preserve_lam
        return self.component_statistics([Strengths(lam, shares, kept, None, ratio)], device=device)[0]

    def component_statistics(self, components: Sequence[Strengths], *, device: Device = "cpu") -> list[Statistics]:
        """Weighted statistics of several operators over the same tokens, the components of a mixture.

        What components have in common is summed once: G of every edit and preserved prompt whose lam is the same in all
        of them. So K components cost K sums of B, and little more.

        Args:
            components: lams and shares of each; see `statistics`.
            device: where to compute; needs float64.

        Raises:
            EditError: as for `statistics`.
        """
        statistics = self._component_statistics(components, device)
        if self.pooled is None:
            return statistics
        pooled = self.pooled._component_statistics([one.of_pooled() for one in components], device)
        return [replace(one, pooled=second) for one, second in zip(statistics, pooled, strict=True)]

    def _component_statistics(self, components: Sequence[Strengths], device: Device) -> list[Statistics]:
        checked = [self._checked(strengths) for strengths in components]
        pushes = [self._pushes(one.push, kept) for one, (_, _, kept) in zip(components, checked, strict=True)]
        count, d = len(components), self.tokens.shape[1]
        common, own = Sums(d, device, count), [Sums(d, device) for _ in components if count > 1]
        for e, (source, places) in enumerate(zip(self.sources, self._places(), strict=True)):
            lams = [lam[e] for lam, _, _ in checked]
            rows = self._rows(source, places, [blends[e] for _, blends, _ in checked])
            if len(set(lams)) == 1:
                common.add(rows, 1 / lams[0])
            else:
                for k, (sums, lam) in enumerate(zip(own, lams, strict=True)):
                    sums.add(replace(rows, shifts=rows.shifts[k : k + 1]), 1 / lam)
        kept = list(zip(*(lams for _, _, lams in checked), strict=True))
        shared = [lams[0] if len(set(lams)) == 1 else math.inf for lams in kept]
        self._add_kept(common, shared)
        for k, sums in enumerate(own):
            self._add_kept(sums, [math.inf if len(set(lams)) == 1 else lams[k] for lams in kept])
        for sums, of_component in zip(own or [common], pushes, strict=True):
            for (edit, row, size, lam), group in groupby(of_component, key=attrgetter("edit", "row", "size", "lam")):
                moves = self._moves(edit, row, [push.augmentation for push in group])
                shifts = size * np.subtract(self.tokens[moves[1]], self.tokens[moves[0]], dtype=float)
                sums.add_shifts(torch.from_numpy(self.tokens[moves[1]]), torch.from_numpy(shifts), 1 / lam)
        G, B = common.totals()
        parts = [(G, B[0])] if count == 1 else [(G + g, B[k] + b) for k, (g, b) in enumerate(s.total() for s in own)]
        return [
            self._statistics(G_k.cpu(), B_k.cpu(), *strengths, pushed)
            for (G_k, B_k), strengths, pushed in zip(parts, checked, pushes, strict=True)
        ]

    def _pushes(self, push: Sequence[Sequence[float]] | None, kept_lams: Sequence[float]) -> list[_Push]:
        """Every push of a destination that is preserved at all, for each augmentation."""
        if push is None:
            return []
        lams = dict(zip(self.preserved, kept_lams, strict=True))
        pushes, row = [], 0
        for e, (edit, of_edit) in enumerate(zip(self.edits, push, strict=True)):
            for destination, size in zip(edit.destinations, of_edit, strict=True):
                for a, template in enumerate(self.augmentations):
                    prompt = augment(template, destination)
                    lam = lams.get(prompt, math.inf)
                    if size and 1 / lam > 0:
                        pushes.append(_Push(e, row, a, prompt, augment(template, edit.source), float(size), lam))
                row += 1
        return pushes

    def _moves(self, edit: int, row: int, augmentations: Sequence[int]) -> tuple[Places, Places]:
        """Places of a source's tokens and of the destination's that correspond to them, where they differ."""
        n = self.sources.shape[1] // len(self.augmentations)
        tokens = np.concatenate([np.arange(a * n, (a + 1) * n) for a in augmentations])
        source, destination = self.sources[edit, tokens], self.destinations[row, tokens]
        differ = source != destination
        return source[differ], destination[differ]

    def _checked(self, strengths: Strengths) -> tuple[list[float], list[Floats], list[float]]:
        """Lam and blend of each edit, lam of each preserved prompt."""
        blends = self._blends(strengths.shares)
        if len(strengths.lam) != len(self.edits):
            raise EditError(f"{len(self.edits)} edits, but {len(strengths.lam)} lams: give one for each")
        lams = [float(s) for s in strengths.lam]
        check_lams(lams, "lam", [e.source for e in self.edits])
        return lams, blends, self._kept_lams(strengths.preserve_lam)

    def _add_kept(self, sums: Sums, lams: Sequence[float]) -> None:
        """Add the preserved prompts, those of one lam together."""
        for lam in dict.fromkeys(lams):
            if 1 / lam > 0:
                sums.add(self._kept_rows([kept == lam for kept in lams]), 1 / lam)

    def _statistics(
        self,
        G: torch.Tensor,
        B: torch.Tensor,
        lams: Sequence[float],
        blends: Sequence[Floats],
        kept_lams: Sequence[float],
        pushes: Sequence[_Push],
    ) -> Statistics:
        kept_as = {prompt: {prompt: 1.0} for prompt in self.preserved}
        for push in pushes:
            of_prompt = kept_as[push.prompt]
            of_prompt[push.prompt] += push.size
            of_prompt[push.source] = of_prompt.get(push.source, 0.0) - push.size
        edits = zip(self.edits, blends, lams, strict=True)
        kept = zip(self.preserved, kept_lams, strict=True)
        return Statistics(
            G,
            B,
            tuple(record for edit, blend, lam in edits for record in self._records(edit, blend, lam)),
            tuple(EditRecord(prompt, tuple(sorted(kept_as[prompt].items())), lam) for prompt, lam in kept),
            self.encoder,
        )

    def norms(self, shares: Sequence[npt.ArrayLike] | None = None) -> list[float]:
        """Spectral norm of B_p = sum (c* - c) c^T of each edit: the lam at which it begins to bite.

        Args:
            shares: as for `statistics`.

        Raises:
            EditError: as for `statistics`.
        """
        blends = self._blends(shares)
        return [
            spectral_norm(self._rows(source, places, [blend]))
            for source, places, blend in zip(self.sources, self._places(), blends, strict=True)
        ]

    def to_bytes(self) -> bytes:
        """As safetensors."""
        facts = {
            "edits": [[e.source, list(e.destinations.items())] for e in self.edits],
            "preserved": self.preserved,
            "augmentations": self.augmentations,
            "alignment": self.alignment,
            "encoder": asdict(self.encoder),
        }
        parts = {"": self} if self.pooled is None else {"": self, "pooled.": self.pooled}
        arrays = {f"{prefix}{name}": getattr(part, name) for prefix, part in parts.items() for name in _ARRAYS}
        return arrays_bytes(arrays, metadata={"rows": json.dumps(facts)})

    @classmethod
    def from_bytes(cls, data: bytes) -> TokenRows:
        """Read what `to_bytes` wrote.

        Raises:
            EditError: the bytes are no token rows.
        """
        try:
            arrays = load_arrays(data)
            facts = json_of(header_of(data)["rows"])
            pooled: TokenRows | None = None
            for prefix in ("pooled.", "") if "pooled.tokens" in arrays else ("",):
                pooled = cls(
                    tokens=arrays[f"{prefix}tokens"],
                    edits=tuple(PromptEdit(source, dict(destinations)) for source, destinations in facts["edits"]),
                    sources=arrays[f"{prefix}sources"],
                    destinations=arrays[f"{prefix}destinations"],
                    preserved=tuple(facts["preserved"]),
                    kept=arrays[f"{prefix}kept"],
                    augmentations=tuple(facts["augmentations"]),
                    alignment=facts["alignment"],
                    encoder=EncoderDigest(**facts["encoder"]),
                    pooled=pooled,
                )
            return cast(TokenRows, pooled)
        except (SafetensorError, KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise EditError(f"these bytes are no token rows: {error!r}") from error

    def _blends(self, shares: Sequence[npt.ArrayLike] | None) -> list[Floats]:
        """Shares of each edit's destinations in each augmentation, [W, K]."""
        own = [list(e.destinations.values()) for e in self.edits]
        sources, counts = [e.source for e in self.edits], [len(values) for values in own]
        given = own if shares is None else shares
        return checked_blends(sources, counts, len(self.augmentations), given, MOST_OVERSHOOT)

    def _kept_lams(self, preserve_lam: float | Sequence[float]) -> list[float]:
        """Strength of each preserved prompt."""
        given = np.asarray(preserve_lam, dtype=np.float64)
        if given.ndim == 0:
            check_lams([float(given)], "preserve_lam", of="prompt")
        elif given.shape != (len(self.preserved),):
            raise EditError(
                f"{len(self.preserved)} preserved prompts, but preserve_lam of shape {list(given.shape)}: give one "
                "for each, or one number for all"
            )
        lams = [float(s) for s in np.broadcast_to(given, len(self.preserved))]
        check_lams(lams, "preserve_lam", self.preserved, of="prompt")
        return lams

    def _records(self, edit: PromptEdit, blend: Floats, lam: float) -> Iterator[EditRecord]:
        """One record for each distinct blend of an edit."""
        templates: dict[tuple[tuple[str, float], ...], list[str]] = {}
        for shares, template in zip(blend.tolist(), self.augmentations, strict=True):
            blended = dict(zip(edit.destinations, shares, strict=True))
            rest = 1 - math.fsum(shares)
            if abs(rest) > SHARE_TOLERANCE:
                blended[edit.source] = blended.get(edit.source, 0.0) + rest
            templates.setdefault(tuple(sorted(blended.items())), []).append(template)
        for destinations, those in templates.items():
            yield EditRecord(edit.source, destinations, lam, tuple(sorted(those)), self.alignment)

    def _places(self) -> list[Places]:
        """Rows of each edit's destinations, [K, n] each."""
        ends = np.cumsum([0, *(len(e.destinations) for e in self.edits)])
        return [self.destinations[start:end] for start, end in pairwise(ends)]

    def _rows(self, source: Places, destinations: Places, blends: Sequence[Floats]) -> EditRows:
        """Distinct tokens of one edit, with a shift for each blend of its destinations."""
        distinct, inverse, counts = np.unique(source, return_inverse=True, return_counts=True)
        # It sorts in front, and moves nowhere, as its destinations are masked too.
        masked = int(distinct[0] == MASKED)
        distinct, inverse, counts = distinct[masked:], inverse - masked, counts[masked:]
        shifts = torch.zeros(len(blends), len(distinct), self.tokens.shape[1], dtype=torch.float64)
        for shift, blend in zip(shifts, blends, strict=True):
            # Tokens of one augmentation lie together, and what stays with the source shifts by nothing.
            of_tokens = np.repeat(blend, len(source) // len(blend), axis=0)
            for shares, places in zip(of_tokens.T, destinations, strict=True):
                moves = np.flatnonzero((places != source) & (shares != 0))
                moved = np.subtract(self.tokens[places[moves]], self.tokens[source[moves]], dtype=float)
                moved *= shares[moves, None]
                shift.index_add_(0, torch.from_numpy(inverse[moves]), torch.from_numpy(moved))
        return EditRows(torch.from_numpy(self.tokens[distinct]), torch.from_numpy(counts.astype(float)), shifts)

    def _kept_rows(self, which: Sequence[bool]) -> EditRows:
        """Distinct tokens of these preserved prompts; none moves."""
        kept = self.kept[np.asarray(which)]
        distinct, counts = np.unique(kept[kept != MASKED], return_counts=True)
        none = torch.zeros(0, len(distinct), self.tokens.shape[1], dtype=torch.float64)
        return EditRows(torch.from_numpy(self.tokens[distinct]), torch.from_numpy(counts.astype(float)), none)
