"""What the storage raises; all of it pickles."""

from __future__ import annotations

__all__ = ["InvalidKey", "ObjectChanged", "ObjectExists", "ObjectMissing", "StorageError"]


class StorageError(OSError):
    """The storage refused or failed; the message says what was tried, why it failed and what to do.

    Attributes:
        url: the object, bucket or folder concerned, or "".
        retriable: whether the same request may succeed later (network, throttling, a server's fault).
    """

    def __init__(self, message: str, url: str = "", *, retriable: bool = False) -> None:
        super().__init__(message)  # only the message in args, so that pickling rebuilds from it and __dict__
        self.url = url
        self.retriable = retriable


class ObjectMissing(StorageError):  # noqa: N818 - a state, not always a fault
    """No object has this key."""


class ObjectExists(StorageError):  # noqa: N818 - a state, not always a fault
    """A conditional put found that the object is there already."""


class ObjectChanged(StorageError):  # noqa: N818 - a state, not always a fault
    """A conditional put found that the object is another than the one it was to replace, or gone."""


class InvalidKey(ValueError):  # noqa: N818 - named as its siblings
    """A key that is not a relative posix path of plain parts, or that leads out of its store."""
