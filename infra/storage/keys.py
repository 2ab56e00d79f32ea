"""Keys of objects: relative posix paths that every kind of store can hold."""

from __future__ import annotations

import hashlib
import re
import unicodedata

from infra.storage.errors import InvalidKey

__all__ = ["PARTIAL", "check_key", "join", "safe_name"]

PARTIAL = ".evenhand-partial-"
"""How files begin that are no objects, or not yet."""

_MAX_KEY_BYTES = 1024
_MAX_PART_BYTES = 255
_SLUG_LENGTH = 60


def check_key(key: str) -> str:
    """Return `key` when it is a relative posix path that every kind of store can hold.

    Raises:
        InvalidKey: it is empty, absolute, too long, or has an empty part, ".", "..", a backslash or control character.
    """
    try:
        size = len(key.encode())
    except UnicodeEncodeError as error:
        raise InvalidKey(f"key {key!r}: not valid Unicode") from error
    if size > _MAX_KEY_BYTES:
        raise InvalidKey(f"key {key[:60]!r}...: {size} bytes, more than the {_MAX_KEY_BYTES} that S3 takes")
    if "\\" in key or any(unicodedata.category(character) == "Cc" for character in key):
        raise InvalidKey(f"key {key!r}: a backslash or control character; safe_name() makes any text a part of a key")
    for part in key.split("/"):
        if part in ("", ".", ".."):
            raise InvalidKey(f"key {key!r}: keys are relative paths without empty parts, '.' or '..'")
        if len(part.encode()) > _MAX_PART_BYTES or part.startswith(PARTIAL):
            raise InvalidKey(f"key {key!r}: a part is longer than {_MAX_PART_BYTES} bytes, or reserved")
    return key


def safe_name(text: str) -> str:
    """Turn any text into one part of a key, different texts into different parts.

    Text of lower-case ASCII letters, digits, "-", "_" and "." stays as it is; any other becomes a slug with the first
    ten digits of its SHA-256. Text that already ends like such a digest gets one too: it can't pose as another's.
    """
    plain = re.fullmatch(r"[a-z0-9][a-z0-9._-]*", text) and len(text) <= _SLUG_LENGTH
    if plain and not re.search(r"-[0-9a-f]{10}$", text):
        return text
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9]+", "-", ascii_text.lower()).strip("-")[:_SLUG_LENGTH].rstrip("-")
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return f"{slug or 'x'}-{digest}"


def join(prefix: str, key: str) -> str:
    """Return `key` below `prefix`, which may be ""."""
    return f"{prefix}/{key}" if prefix else key
