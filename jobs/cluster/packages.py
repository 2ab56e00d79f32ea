"""The job's own packages as they lie on this machine and on a worker: one digest each, and where they were found.

A worker imports by its own search path. A folder `jobs/` of the user's in the working directory, or another version
that is installed there, would take our package's place; it is told by comparing digests before any work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.errors import ClusterError

__all__ = [
    "PACKAGES",
    "PackageDigests",
    "check_packages",
    "differences",
    "found_here",
    "on_nodes",
    "package_reader",
    "refuse_others",
]

PACKAGES = ("infra", "jobs", "manifests", "time_ops")

PackageDigests = Mapping[str, tuple[str, str]]
"""Package -> (sha256 of its Python files by name, the folder); ("", "") where there is none."""

_NODE_S = 120.0


def package_reader() -> Callable[[Sequence[str]], dict[str, tuple[str, str]]]:
    """A function that finds packages as the process that calls it would import them, without importing them.

    It is a closure with imports of its own, so that it travels to a worker by value: by name, the worker would look for
    it in the very packages that are in doubt.
    """

    def read(names: Sequence[str]) -> dict[str, tuple[str, str]]:
        import hashlib
        from importlib.util import find_spec
        from pathlib import Path

        packages = {}
        for name in names:
            spec = find_spec(name)
            folders = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
            sha = hashlib.sha256()
            for folder in folders:
                for file in sorted(folder.rglob("*.py")):
                    data = file.read_bytes()
                    sha.update(f"{file.relative_to(folder).as_posix()}\0{len(data)}\0".encode() + data)
            packages[name] = (sha.hexdigest() if folders else "", ", ".join(map(str, folders)))
        return packages

    return read


def found_here() -> PackageDigests:
    """The packages as this process imports them."""
    return package_reader()(PACKAGES)


def differences(here: PackageDigests, there: PackageDigests) -> list[str]:
    """What differs there from here, one line for each package; empty where all are the same."""
    lines = []
    for name, (digest, _) in here.items():
        other, place = there.get(name, ("", ""))
        if other != digest:
            lines.append(f"`{name}` is another one, in {place}" if place else f"`{name}` is not installed")
    return lines


def on_nodes(function: Callable[..., Any], nodes: Iterable[str], *args: Any) -> dict[str, Any]:
    """What a function returns on each of these nodes, by node id; where it failed, the error.

    It asks for no resources, so that it runs beside what is running there.
    """
    remote: Any = ray.remote(num_cpus=0, max_retries=0)(function)
    references = {
        node: remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(*args)
        for node in nodes
    }
    if references:
        ray.wait([*references.values()], num_returns=len(references), timeout=_NODE_S)
    answers = {}
    for node, reference in references.items():
        try:
            answers[node] = ray.get(reference, timeout=0)
        except (RayError, GetTimeoutError) as error:
            answers[node] = error
    return answers


def check_packages(nodes: Iterable[str]) -> None:
    """Refuse to go on where a node would import other packages than this process has; one that is silent passes.

    Raises:
        ClusterError: naming what is found instead, and where.
    """
    for node, there in on_nodes(package_reader(), nodes, PACKAGES).items():
        if not isinstance(there, Exception):
            refuse_others(found_here(), there, node)


def refuse_others(here: PackageDigests, there: PackageDigests, node: str) -> None:
    """Compare what a worker on a node has with what this process has.

    Raises:
        ClusterError: there is a difference.
    """
    if lines := differences(here, there):
        places = ", ".join(sorted({place for _, place in here.values()}))
        raise ClusterError(
            f"workers on node {node[:8]} would not run this job's own code ({places}): {'; '.join(lines)}. Install the "
            f"same version of Evenhand on every node, and let no folder named {', '.join(PACKAGES)} lie in the working "
            "directory or in PYTHONPATH"
        )
