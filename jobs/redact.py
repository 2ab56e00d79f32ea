"""Secrets blacked out of what people and files are told: errors, tracebacks, `run.json`.

Nothing of ours prints a secret on purpose; a server, a library or a URL that somebody typed may.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

__all__ = ["redact"]

_NAMES = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
    *("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
    "RAY_AUTH_TOKEN",
)
# A shorter value is no secret, and black-out of it would take words apart.
_SHORTEST = 6
_HIDDEN = "***"
# Up to the last @ where a password follows the name, which may have a slash unescaped; but a port is no password.
_IN_URL = re.compile(
    r"(?<=://)(?:[^\s/?#:@'\"<>]*:(?!\d{1,5}(?:[/?#\s]|$))[^\s'\"<>]*|[^\s/?#'\"<>]+)@",
)
_QUERY = re.compile(r"(?i)([?&](?:x-amz-signature|x-amz-credential|x-amz-security-token|token|signature)=)[^&\s'\"<>]+")


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """`text` without the values of variables that hold secrets, and without credentials in URLs.

    Args:
        text: anything that is to be shown.
        environment: variables whose secrets are looked for.
    """
    for name in _NAMES:
        value = environment.get(name, "")
        if len(value) >= _SHORTEST:
            text = text.replace(value, _HIDDEN)
    return _QUERY.sub(rf"\1{_HIDDEN}", _IN_URL.sub(f"{_HIDDEN}@", text))
