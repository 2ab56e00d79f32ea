"""A configuration read from YAML, environment and flags; every fault is told at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource, SettingsError

from jobs.config.classifiers import TAGS
from jobs.config.run import RunConfig
from jobs.config.text import MOST_CHARACTERS, read_yaml, shown, unwritable
from jobs.errors import ConfigError

__all__ = ["load_config"]

_UNKNOWN = "is not a key of this configuration"
_SHOWN = 200
_MOST_LINES = 100
_MOST_OF_LINE = 1_000
_BY_LABEL = ("attribute", "confusion", "labels")


def _deep_merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` wins; sections merge key by key. What is by label is one value: labels of two sources never mix."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping) and key not in _BY_LABEL:
            merged[key] = _deep_merge(below, value)
        else:
            merged[key] = value
    return merged


def _assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`["sampler.steps=20"]` as a nested mapping; values are read as YAML."""
    result: dict[str, Any] = {}
    for text in assignments:
        path, sign, value = text.partition("=")
        if not sign or not path.strip():
            raise ConfigError(f"--set {text[:_SHOWN]!r}: write key=value, for instance --set sampler.steps=20")
        nested: Any = read_yaml(value, f"--set {text[:_SHOWN]!r}")
        for key in reversed(path.strip().split(".")):
            nested = {key: nested}
        result = _deep_merge(result, nested)
    return result


def load_config(
    text: str | None = None,
    *,
    name: str = "configuration",
    flags: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
) -> RunConfig:
    """The configuration from a YAML text, the environment and flags, in rising precedence.

    Args:
        text: the YAML file's contents, or None.
        name: what to call it in messages.
        flags: keys given by flags of their own; None values count as not given.
        assignments: `key=value` texts of `--set`.

    Raises:
        ConfigError: naming every unknown key and every bad value.
    """
    values: dict[str, Any] = {}
    if text is not None:
        loaded = read_yaml(text, name)
        if loaded is not None and not isinstance(loaded, dict):
            raise ConfigError(f"{name}: must be a mapping of keys to values, not a {type(loaded).__name__}")
        values = loaded or {}
    try:
        values = _deep_merge({str(key): value for key, value in values.items()}, EnvSettingsSource(RunConfig)())
    except (SettingsError, RecursionError) as error:
        raise ConfigError(f"environment: {error}; lists and mappings are written as JSON there") from error
    values = _deep_merge(values, {key: value for key, value in (flags or {}).items() if value is not None})
    values = _deep_merge(values, _assignments(assignments))
    # By name, as pydantic takes keys with an underscore for its own options: files to read, arguments to parse.
    known = {key: value for key, value in values.items() if key in RunConfig.model_fields}
    lines = [f"  {key}: {_UNKNOWN}" for key in values if key not in known]
    lines += [f"  {place}: {what}" for place, what in unwritable(known)]
    try:
        config = RunConfig(**known)
    except ValidationError as error:
        lines += [f"  {_place(e['loc'])}: {_say(e)}" for e in error.errors()]
        raise _faulty(name, lines) from error
    if lines:
        raise _faulty(name, lines)
    return config


def _faulty(name: str, lines: Sequence[str]) -> ConfigError:
    said = [line[:_MOST_OF_LINE].encode("utf-8", "backslashreplace").decode() for line in lines[:_MOST_LINES]]
    more = [f"  and {len(lines) - _MOST_LINES:,} more"] if len(lines) > _MOST_LINES else []
    return ConfigError(
        "\n".join(
            [
                f"{name}: {len(lines)} fault{'s' if len(lines) != 1 else ''}",
                *said,
                *more,
                f"Known keys: {', '.join(RunConfig.model_fields)}",
            ]
        )
    )


def _place(location: Sequence[int | str]) -> str:
    told = [str(each) for each in location if location[0] != "classifier" or each not in TAGS]
    return ".".join(told) or "(whole)"


def _say(fault: Mapping[str, Any]) -> str:
    """One fault in words; pydantic's own prefix for our ValueErrors is dropped."""
    if fault["type"] == "missing":
        return "is needed: give it in the file, by flag or in the environment"
    if fault["type"] == "extra_forbidden":
        return _UNKNOWN
    return str(fault["msg"]).removeprefix("Value error, ") + f" (got {shown(fault['input'])})"


def read_text(path: Path) -> str:
    """A configuration file's text, or a ConfigError that says what to do."""
    try:
        with path.open(encoding="utf-8") as file:
            # One more than is taken, so that a larger one is refused for its size.
            return file.read(MOST_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read the configuration {path}: {error}; give the path of a YAML file") from error
