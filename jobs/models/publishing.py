"""Publishing a folder in an object store: whole or not at all, and no byte sent that the server has already.

The main file makes a folder one that is opened: `model_index.json`, or `mixture.json` of a mixture, whose components'
own `model_index.json` lie below. It goes first where an older folder is replaced and comes last, after SHA256SUMS,
which its readers check (`jobs.models.checksums`). A publication that broke off is gone on with by the next one: what
is there already stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.storage import ObjectMissing, ObjectStore, StorageError, in_parallel
from jobs.models.checksums import CHECKSUMS, checksums_text, parse_checksums, sha256_of
from time_ops.errors import ModelError

__all__ = ["MIXTURE_INDEX", "MODEL_INDEX", "Stored", "promote", "publish", "remove"]

MODEL_INDEX = "model_index.json"
MIXTURE_INDEX = "mixture.json"
"""A mixture's main file: at its root there is no `model_index.json`, so nobody opens a part as the whole."""


@dataclass(frozen=True)
class Stored:
    """An object that may hold a file's bytes already.

    Attributes:
        store: where it lies.
        key: its name there.
        tag: its entity tag when it held them; None: only the digest that it records is believed.
    """

    store: ObjectStore
    key: str
    tag: str | None = None


def publish(
    files: Mapping[str, Path],
    store: ObjectStore,
    prefix: str,
    *,
    main: str = MODEL_INDEX,
    stored: Mapping[str, Stored] | None = None,
    beside: Sequence[str] = (),
) -> str:
    """Make the folder `prefix` hold these files and SHA256SUMS, and nothing else.

    Args:
        files: by their names in the folder.
        store: where to.
        prefix: where in it.
        main: the file without which the folder is none; one of `files`.
        stored: objects that may hold a file's bytes, by the file's name. Where the server that holds one is the one
            that is written to, it copies.
        beside: published folders of the same store that may hold some of the files, by any name.

    Returns:
        The SHA-256 of SHA256SUMS, in hex.

    Raises:
        StorageError: the store refuses or fails; the folder then is none, unless it is as it was before.
        ValueError: `main` is no file of the folder.
    """
    if main not in files:
        raise ValueError(f"{main} is not among the files to publish")
    digests = {name: sha256_of(path) for name, path in sorted(files.items())}
    text = checksums_text(digests)
    folder = store.sub(prefix)
    there = set(folder.list())
    if not _is_published(folder, there, text, digests):
        kept = _unpublish(folder, there, main, set(digests))
        elsewhere = _list_published(store, [each for each in beside if each != prefix])

        def place(name: str, twins: Sequence[Stored] = ()) -> None:
            if name in kept and folder.stat(name).sha256 == digests[name]:
                return
            sources = [stored[name]] if stored and name in stored else []
            if not _copy_any(folder, name, digests[name], [*sources, *twins, *elsewhere.get(digests[name], ())]):
                folder.upload(files[name], name)

        groups = _twins({name: digest for name, digest in digests.items() if not _opens(name, main)})

        def place_all(first: str) -> None:
            place(first)
            for name in groups[first]:
                place(name, [Stored(folder, first)])

        in_parallel(place_all, list(groups))
        folder.put(CHECKSUMS, text.encode(), content_type="text/plain")
        folder.discard_unfinished()
        for name in _opening(digests, main):
            place(name)
    return hashlib.sha256(text.encode()).hexdigest()


def promote(
    store: ObjectStore, source: str, target: str, changed: Mapping[str, bytes], *, main: str | None = None
) -> str:
    """Make the folder `target` hold what a published folder does, with some small files changed, and end the source.

    The server copies what it can. Done again after a break it goes on: the source ends last.

    Args:
        store: of both.
        source: the published folder; may be `target` itself.
        target: where to.
        changed: files that are written anew, or are added.
        main: see `publish`; small, as it is read. None: the one of a mixture or a diffusers folder, as it is there.

    Returns:
        The SHA-256 of SHA256SUMS, in hex.

    Raises:
        ModelError, ObjectMissing: the source is no published folder.
        StorageError: the store refuses or fails.
    """
    origin, folder = store.sub(source), store.sub(target)
    digests = parse_checksums(origin.get(CHECKSUMS).decode())
    main = main or (MIXTURE_INDEX if MIXTURE_INDEX in digests else MODEL_INDEX)
    # What opens the folder, or one below it, is taken away first, and may be the source's own.
    changed = {**{name: origin.get(name) for name in _opening(digests, main)}, **changed}
    digests |= {name: hashlib.sha256(data).hexdigest() for name, data in changed.items()}
    text = checksums_text(digests)
    there = set(folder.list())
    if not _is_published(folder, there, text, digests):
        kept = _unpublish(folder, there, main, set(digests))

        def place(name: str) -> None:
            if name in changed:
                folder.put(name, changed[name])
            elif source != target and not (name in kept and folder.stat(name).sha256 == digests[name]):
                folder.copy(origin, name, name, sha256=digests[name])

        in_parallel(place, [name for name in digests if not _opens(name, main)])
        folder.put(CHECKSUMS, text.encode(), content_type="text/plain")
        for name in _opening(digests, main):
            place(name)
    if source != target:
        remove(store, source, main=main)
    return hashlib.sha256(text.encode()).hexdigest()


def remove(store: ObjectStore, prefix: str, *, main: str = MODEL_INDEX) -> None:
    """Delete a published folder, what makes it one first."""
    folder = store.sub(prefix)
    _unpublish(folder, set(folder.list()), main, set())


def _is_published(folder: ObjectStore, there: set[str], text: str, digests: Mapping[str, str]) -> bool:
    """Whether all of it is there, down to the bytes."""
    if there != {*digests, CHECKSUMS} or folder.get(CHECKSUMS) != text.encode():
        return False
    return all(folder.stat(name).sha256 == digest for name, digest in digests.items())


def _unpublish(folder: ObjectStore, there: set[str], main: str, names: set[str]) -> set[str]:
    """Delete what makes the old folder one, first, and then what the new one will not have; return what is left."""
    opening = _opening(there, main)[::-1]
    gone = dict.fromkeys((MODEL_INDEX, MIXTURE_INDEX, main, *opening, CHECKSUMS, *sorted(there - names)))
    for name in gone:
        if name in there:
            folder.delete(name)
    return there - set(gone)


def _twins(digests: Mapping[str, str]) -> dict[str, list[str]]:
    """Equal files by the first of them, which is sent; a mixture's components have many."""
    groups: dict[str, list[str]] = {}
    for name, digest in digests.items():
        groups.setdefault(digest, []).append(name)
    return {first: others for first, *others in groups.values()}


def _opens(name: str, main: str) -> bool:
    """Whether a file makes the folder, or one below it, one that is opened."""
    return name == main or name.rpartition("/")[2] == MODEL_INDEX


def _opening(names: Iterable[str], main: str) -> list[str]:
    """Those that do, the folder's own last."""
    return sorted((name for name in names if _opens(name, main)), key=lambda name: (name == main, name))


def _list_published(store: ObjectStore, prefixes: Iterable[str]) -> dict[str, list[Stored]]:
    """Objects of published folders by the digests of their bytes."""
    stored: dict[str, list[Stored]] = {}
    for prefix in prefixes:
        folder = store.sub(prefix)
        try:
            digests = parse_checksums(folder.get(CHECKSUMS).decode())
        except (ObjectMissing, ModelError, UnicodeDecodeError):
            continue  # no published folder: what is in it is of no use here
        for name, digest in digests.items():
            stored.setdefault(digest, []).append(Stored(folder, name))
    return stored


def _copy_any(folder: ObjectStore, name: str, digest: str, sources: Iterable[Stored]) -> bool:
    """Whether the server could copy one of these; a source that has changed, or may not be copied, is passed over."""
    for source in sources:
        if not folder.copies_from(source.store):
            continue
        try:
            if source.tag is not None or source.store.stat(source.key).sha256 == digest:
                folder.copy(source.store, source.key, name, if_match=source.tag, sha256=digest)
                return True
        except StorageError as error:
            if error.retriable:
                raise
    return False
