"""Ticks: the moments that a series' audits stand for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from jobs.errors import ConfigError

__all__ = ["floor_tick", "interval_of", "parse_tick", "tick_text"]

_MONDAY = datetime(1970, 1, 5, tzinfo=UTC)
_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def tick_text(tick: datetime) -> str:
    """A tick as entries write it: `2026-11-21T00:00:00Z`."""
    return f"{tick.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def parse_tick(text: str) -> datetime:
    """A tick from ISO 8601 text with its offset, in UTC, whole seconds.

    Raises:
        ConfigError: it is no such time, or says no offset.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"--tick {text!r} is no time; write it like 2026-11-21T00:00Z") from error
    if moment.tzinfo is None:
        raise ConfigError(f"--tick {text!r} does not say its offset; for UTC write {text}Z")
    try:
        return moment.astimezone(UTC).replace(microsecond=0)
    except OverflowError as error:
        raise ConfigError(f"--tick {text!r} is beyond the calendar; write it like 2026-11-21T00:00Z") from error


def interval_of(every: str) -> timedelta:
    """`15m`, `6h`, `1d` or `2w` as a duration."""
    return int(every[:-1]) * _UNITS[every[-1]]


def floor_tick(moment: datetime, every: str) -> datetime:
    """The last tick at or before a moment: whole intervals since a Monday's midnight in UTC."""
    interval = interval_of(every)
    return _MONDAY + (moment.astimezone(UTC) - _MONDAY) // interval * interval
