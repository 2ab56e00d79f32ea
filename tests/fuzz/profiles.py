"""How many inputs: `ci` is short and always the same, `long` is by hand, `make fuzz`, and new each time."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings

__all__ = ["inputs"]

_COMMON: dict[str, Any] = {
    # Time is held per reader, in CPU seconds: a deadline of the wall clock fails beside other tests.
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
}
settings.register_profile("ci", max_examples=1, derandomize=True, database=None, **_COMMON)
settings.register_profile("long", max_examples=5, derandomize=False, print_blob=True, **_COMMON)


def inputs(count: int) -> Callable[[Any], Any]:
    """Mark a property: so many inputs in the profile `ci`, five times as many in `long`.

    A setting of each test, not of the session: other folders' properties keep their own.
    """
    chosen = os.environ.get("EVENHAND_FUZZ", "")
    if not chosen:
        chosen = "long" if settings.get_current_profile_name() == "long" else "ci"
    profile = settings.get_profile(chosen)
    return settings(profile, max_examples=count * profile.max_examples)
