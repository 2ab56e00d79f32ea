"""Known vulnerabilities of the pinned packages, from a file of advisories: no network is asked.

    python -m infra.advisories pypi.zip [--pins constraints.txt]

The file is in OSV's format, which the public databases of PyPI's advisories export: a zip of JSON files, a folder of
them, one advisory as JSON, or a list of them. Ends with 0 where no pin is affected, 1 where one is, 2 for a file that
can't be read.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

__all__ = ["Affected", "affected", "read_advisories", "read_pins"]


@dataclass(frozen=True, order=True)
class Affected:
    """A pinned package that an advisory is about."""

    package: str
    version: str
    advisory: str
    summary: str
    fixed: tuple[str, ...]
    """Versions that mend it; empty where none does."""


def read_pins(path: Path) -> dict[str, str]:
    """Package -> exact version, from a constraints file.

    Raises:
        ValueError: a line pins nothing exactly.
    """
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    pins: dict[str, str] = {}
    for line in filter(None, lines):
        name, found, version = line.partition("==")
        if not found:
            raise ValueError(f"{path}: {line!r} is not an exact version")
        pins[canonicalize_name(name.strip())] = version.strip()
    return pins


def read_advisories(path: Path) -> Iterator[Mapping[str, Any]]:
    """Every advisory of a file or folder.

    Raises:
        OSError, ValueError, zipfile.BadZipFile: it can't be read, or is no advisory.
    """
    if path.is_dir():
        texts: Iterable[tuple[str, bytes]] = ((str(p), p.read_bytes()) for p in sorted(path.rglob("*.json")))
    elif zipfile.is_zipfile(path):
        texts = _zipped(path)
    else:
        texts = [(str(path), path.read_bytes())]
    for name, text in texts:
        content = json.loads(text)
        for advisory in content if isinstance(content, list) else [content]:
            if not isinstance(advisory, dict) or "id" not in advisory:
                raise ValueError(f"{name} holds no advisory in OSV's format")
            yield advisory


def _zipped(path: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".json"):
                yield name, archive.read(name)


def affected(pins: Mapping[str, str], advisories: Iterable[Mapping[str, Any]]) -> list[Affected]:
    """Pins that an advisory is about; advisories that were withdrawn are not counted."""
    hits = set()
    for advisory in advisories:
        if advisory.get("withdrawn"):
            continue
        for part in advisory.get("affected", ()):
            package = part.get("package", {})
            name = canonicalize_name(str(package.get("name", "")))
            if package.get("ecosystem") != "PyPI" or name not in pins:
                continue
            events = [r.get("events", ()) for r in part.get("ranges", ()) if r.get("type") == "ECOSYSTEM"]
            if pins[name] in part.get("versions", ()) or any(_is_within(pins[name], each) for each in events):
                fixed = tuple(sorted({e["fixed"] for each in events for e in each if "fixed" in e}, key=_order))
                text = str(advisory.get("summary") or advisory.get("details") or "")
                hits.add(Affected(name, pins[name], str(advisory["id"]), " ".join(text.split())[:120], fixed))
    return sorted(hits)


def _is_within(version: str, events: Sequence[Mapping[str, str]]) -> bool:
    """Whether a version lies between an event that introduces a fault and the next that ends it."""
    inside = False
    for event in sorted(events, key=lambda e: _order(next(iter(e.values()), "0"))):
        kind, at = next(iter(event.items()), ("", "0"))
        if kind == "introduced" and _order(at) <= _order(version):
            inside = True
        if (kind == "fixed" and _order(at) <= _order(version)) or (
            kind == "last_affected" and _order(at) < _order(version)
        ):
            inside = False
    return inside


def _order(text: str) -> Version:
    """A version to compare; what is none, as OSV's "0", comes before all."""
    try:
        return Version(text)
    except InvalidVersion:
        return Version("0.dev0")


def _command(
    advisories: Annotated[Path, typer.Argument(help="Zip, folder or JSON file in OSV's format.")],
    pins: Annotated[Path, typer.Option(help="The constraints file.")] = Path("constraints.txt"),
) -> None:
    """Name the pinned packages that the advisories are about."""
    try:
        known, pinned = list(read_advisories(advisories)), read_pins(pins)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        typer.echo(f"can't read the advisories or the pins: {error}", err=True)
        raise typer.Exit(2) from error
    hits = affected(pinned, known)
    for hit in hits:
        mended = f"mended in {', '.join(hit.fixed)}" if hit.fixed else "not mended yet"
        typer.echo(f"{hit.package} {hit.version}: {hit.advisory}, {mended}. {hit.summary}")
    typer.echo(f"{len(known):,} advisories, {len(pinned)} pinned packages, {len(hits)} affected")
    raise typer.Exit(1 if hits else 0)


if __name__ == "__main__":
    typer.run(_command)
