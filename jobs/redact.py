"""Secrets blacked out of what people and files are told: errors, tracebacks, `run.json`.

Nothing of ours prints a secret on purpose; a server, a library or a URL that somebody typed may.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import quote

__all__ = ["redact", "without_credentials"]

# AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, HF_TOKEN, MLFLOW_TRACKING_PASSWORD, RAY_AUTH_TOKEN and what is like them.
_NAME = re.compile(r"(?i)(?:^|_)(?:TOKEN|SECRET|PASSWORD|ACCESS_KEY|ACCESS_KEY_ID|SECRET_KEY|API_KEY)$")
# A shorter value is no secret, and black-out of it would take words apart.
_SHORTEST = 6
_HIDDEN = "***"
# Up to the last @ where a password follows the name, which may have a slash unescaped; but a port is no password.
_IN_URL = re.compile(
    r"(?<=://)(?:[^\s/?#:@'\"<>]*:(?!\d{1,5}(?:[/?#\s]|$))[^\s'\"<>]*|[^\s/?#'\"<>]+)@",
)
_QUERY = re.compile(r"(?i)([?&](?:x-amz-signature|x-amz-credential|x-amz-security-token|token|signature)=)[^&\s'\"<>]+")
_HEADER = re.compile(r"(?i)(authorization['\"]?\s*[:=]\s*b?['\"]?(?:bearer|basic)\s+)[^\s'\",]+")


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """`text` without the values of variables that hold secrets, and without credentials in URLs and headers.

    Args:
        text: anything that is to be shown.
        environment: variables whose secrets are looked for: those whose names end as such names do.
    """
    secrets = {value for name, value in environment.items() if _NAME.search(name) and len(value) >= _SHORTEST}
    # Also as they stand in a URL; the longest first, as one may begin with another.
    for secret in sorted(secrets | {quote(secret, safe="") for secret in secrets}, key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    for pattern in (_QUERY, _HEADER):
        text = pattern.sub(rf"\1{_HIDDEN}", text)
    return _IN_URL.sub(f"{_HIDDEN}@", text)


def without_credentials(uri: str) -> str:
    """A URI without what stands before an @ in its authority, even where a password has a slash unescaped."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    authority, slash, path = rest.partition("/")
    port = authority.rpartition("]")[2].partition(":")[2]
    if port and not port.isdigit() and "@" not in authority and "@" in path:
        return f"{scheme}://{rest.rpartition('@')[2]}"
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"
