"""What a machine lacks that has some packages and cannot install others: names and versions, for `bundle.sh`.

    python -m tests.bench.lacking --there "torch transformers" --also "pydantic"

Prints one requirement a line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from importlib.metadata import distribution

from packaging.requirements import Requirement

__all__ = ["closure"]


def closure(names: Iterable[str]) -> dict[str, str]:
    """Version of these packages, and of all that they require, as they are installed here.

    Ray's extras are left out: they are its dashboard's and its submission server's, which a script does without.
    """
    todo, versions = [Requirement(name) for name in names], dict[str, str]()
    walked = set()
    while todo:
        requirement = todo.pop()
        name = requirement.name.lower().replace("_", "-")
        extras = frozenset(requirement.extras if name != "ray" else ())
        if (name, extras) in walked:
            continue
        walked.add((name, extras))
        installed = distribution(name)
        versions[name] = installed.version
        for each in map(Requirement, installed.requires or []):
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in {"", *extras}):
                todo.append(each)
    return versions


def main() -> None:
    """Print one requirement a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--there", default="", help="packages that the machine has, with all that they require")
    parser.add_argument("--also", default="", help="packages to name whatever the machine has")
    options = parser.parse_args()
    needed, there = closure(["evenhand"]), closure(options.there.split())
    lacking = {name: needed[name] for name in needed.keys() - there.keys() - {"evenhand"}}
    lacking |= {name: needed[name] for name in options.also.split()}
    sys.stdout.write("".join(f"{name}=={version}\n" for name, version in sorted(lacking.items())))


if __name__ == "__main__":
    main()
