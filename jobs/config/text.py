"""YAML and texts of a configuration before they are checked: bounded, each key once, and nothing that can not be kept.

YAML's aliases make a mebibyte of a hundred bytes, or a list that holds itself, and its scalars become dates and numbers
that Python refuses in its own ways. A configuration has some hundred lines: what is far from that is refused.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from yaml.composer import ComposerError

from jobs.errors import ConfigError

__all__ = ["MOST_CHARACTERS", "read_yaml", "shown", "unwritable"]

MOST_CHARACTERS = 100_000
_MOST_DEPTH = 30
_MOST_VALUES = 20_000
_MOST_DIGITS = 100
_SHOWN_CHARACTERS = 80
_ODD = (ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError, RecursionError)
"""What PyYAML lets through from a scalar that its tag does not fit, as the thirteenth month."""


def read_yaml(text: str, where: str) -> Any:
    """A YAML text's value.

    Args:
        text: the text.
        where: what a message begins with.

    Raises:
        ConfigError: it is no YAML, has a key twice, or becomes larger than a configuration can be.
    """
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"{where}: has {len(text):,} characters, {MOST_CHARACTERS:,} are read at most")
    try:
        loader = _Loader(text)
        value = loader.get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML: {error}") from error
    except _ODD as error:
        raise ConfigError(f"{where}: a value is not what YAML takes it for: {str(error)[:200]}; quote it") from error
    if loader.twice:
        raise ConfigError("\n  ".join([f"{where}: keys are there twice; keep one of each", *loader.twice]))
    return value


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.twice: list[str] = []
        self._depth = 0
        self._sizes: dict[int, int] = {}
        """Values of each collection that is whole, aliases counted as what they stand for."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise ComposerError(None, None, f"nested more than {_MOST_DEPTH} deep", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias and not isinstance(node, yaml.ScalarNode) and id(node) not in self._sizes:
            raise ComposerError(None, None, "an alias stands for what it is part of", mark)
        if isinstance(node, yaml.SequenceNode) and not is_alias:
            self._sizes[id(node)] = 1 + sum(self._size(item) for item in node.value)
        elif isinstance(node, yaml.MappingNode) and not is_alias:
            self._sizes[id(node)] = 1 + sum(self._size(key) + self._size(value) for key, value in node.value)
        if node is not None and self._size(node) > _MOST_VALUES:
            raise ComposerError(None, None, f"becomes more than {_MOST_VALUES:,} values", mark)
        return node

    def _size(self, node: yaml.Node) -> int:
        return self._sizes.get(id(node), 1)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[tuple[str, str], int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            # A merged key may be overridden, that is what merging is for.
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line, name = key.start_mark.line + 1, (key.tag, key.value)
                if name in seen:
                    said = key.value[:_SHOWN_CHARACTERS]
                    self.twice.append(f"{said} is there twice, in lines {seen[name]} and {line}")
                seen[name] = line
        return super().construct_mapping(node, deep)


def unwritable(values: Any) -> Iterator[tuple[str, str]]:
    """Where texts hold what no file, name or prompt can: (place, what it is).

    Args:
        values: mappings and lists, read before.
    """
    left: list[tuple[str, Any]] = [("", values)]
    while left:
        place, value = left.pop()
        if isinstance(value, Mapping):
            left += [(f"{place}.{key}" if place else str(key), under) for key, under in value.items()]
            left += [(f"{place or '(whole)'}", key) for key in value]
        elif isinstance(value, list | tuple):
            left += [(f"{place}.{i}", under) for i, under in enumerate(value)]
        elif isinstance(value, str):
            if "\0" in value:
                yield place, "holds a NUL character; remove it"
            elif any("\ud800" <= character <= "\udfff" for character in value):
                yield place, "holds half of a surrogate pair; remove it"
        elif isinstance(value, int) and abs(value) >= 10**_MOST_DIGITS:
            yield place, f"is a number of more than {_MOST_DIGITS} digits"


def shown(value: Any) -> str:
    """A value for a message, whatever it is: short, and on one line."""
    try:
        return _REPR.repr(value)[:_SHOWN_CHARACTERS]
    except _ODD:
        return f"a {type(value).__name__}"


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _SHOWN_CHARACTERS
_REPR.maxlevel = 3
