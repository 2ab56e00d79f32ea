"""Trying again while a storage is away: exponential back-off with jitter, for a limited time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from infra.storage.errors import StorageError

__all__ = ["patiently"]

_SHORTEST_S, _LONGEST_S = 0.2, 5.0
_Result = TypeVar("_Result")


def patiently(action: Callable[[], _Result], patience_s: float) -> _Result:
    """Return what `action` does, tried again as long as it raises a retriable `StorageError`.

    Args:
        action: what to do; it must be harmless to repeat.
        patience_s: seconds from the first try after which none begins; 0 tries once.

    Raises:
        StorageError: one that is not retriable, at once; or the last one, saying how long was tried.
    """
    if not patience_s:
        return action()
    begun = time.monotonic()
    backoff = wait_random_exponential(multiplier=2 * _SHORTEST_S, min=_SHORTEST_S, max=_LONGEST_S)

    def wait(state: RetryCallState) -> float:
        return max(0.0, min(backoff(state), begun + patience_s - time.monotonic()))

    retrying = Retrying(retry=retry_if_exception(_passes), wait=wait, stop=stop_after_delay(patience_s), reraise=True)
    try:
        return retrying(action)
    except StorageError as error:
        if not error.retriable:
            raise
        tried = f"Tried {retrying.statistics['attempt_number']} times in {time.monotonic() - begun:.1f} s."
        raise StorageError(f"{error} {tried}", error.url, retriable=True) from error


def _passes(error: BaseException) -> bool:
    return isinstance(error, StorageError) and error.retriable
