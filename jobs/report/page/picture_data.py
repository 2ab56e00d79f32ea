"""Pictures inside the page: data URIs, within a budget of bytes, each profession served once before any is twice."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.report.schema import PairedPicture

__all__ = ["Gallery", "Pair", "Picture", "choose_pictures", "data_uri", "picture_of"]

_SIGNATURES = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"))
_SMALL_PX = 128
_MARKUP_BYTES = 900
"""What a pair costs the page besides its pictures, measured and rounded up."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a pair: its data URI (`None`: the file was not there or is no picture) and whether it is tiny."""

    uri: str | None
    small: bool
    label: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Base and edited picture of one prompt and seed."""

    meta: PairedPicture
    base: Picture
    edited: Picture | None


@dataclass(frozen=True, slots=True)
class Gallery:
    """The pairs that the page shows, by profession in the report's order, and how many it leaves out."""

    groups: list[tuple[str, list[Pair]]]
    shown: int
    left_out: int


def data_uri(content: bytes) -> str | None:
    """Write a PNG, JPEG, GIF or WebP as a data URI; `None` for all else, SVG included, which can carry scripts."""
    kind = next((name for signature, name in _SIGNATURES if content.startswith(signature)), None)
    if kind is None and content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        kind = "image/webp"
    return None if kind is None else f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def choose_pictures(wanted: Sequence[PairedPicture], pictures: Mapping[str, bytes], budget_bytes: int) -> Gallery:
    """Choose as many pairs as fit in `budget_bytes`: each profession's first pair, then the second of each, and on."""
    by_profession: dict[str, list[PairedPicture]] = defaultdict(list)
    for meta in wanted:
        by_profession[meta.profession].append(meta)
    chosen: dict[str, list[Pair]] = {name: [] for name in by_profession}
    left, shown = budget_bytes, 0
    for turn in range(max((len(metas) for metas in by_profession.values()), default=0)):
        for name, metas in by_profession.items():
            if turn >= len(metas):
                continue
            pair = _pair(metas[turn], pictures)
            size = _MARKUP_BYTES + len(pair.base.uri or "") + len((pair.edited.uri if pair.edited else None) or "")
            if size <= left:
                left -= size
                shown += 1
                chosen[name].append(pair)
    groups = [(name, pairs) for name, pairs in chosen.items() if pairs]
    return Gallery(groups=groups, shown=shown, left_out=len(wanted) - shown)


def _pair(meta: PairedPicture, pictures: Mapping[str, bytes]) -> Pair:
    base = picture_of(pictures.get(meta.base), meta.base_label)
    edited = None if meta.edited is None else picture_of(pictures.get(meta.edited), meta.edited_label or "no label")
    return Pair(meta=meta, base=base, edited=edited)


def picture_of(content: bytes | None, label: str) -> Picture:
    """A picture as the page embeds it; one without a data URI where there is no content, or it is no picture."""
    if content is None:
        return Picture(uri=None, small=False, label=label)
    small = content.startswith(_SIGNATURES[0][0]) and int.from_bytes(content[16:20], "big") <= _SMALL_PX
    return Picture(uri=data_uri(content), small=small, label=label)
