"""Trying the cluster: reachable, with room for a worker, our own packages and versions there, and its GPUs."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.job_submission import JobSubmissionClient

from jobs.cluster import placement
from jobs.cluster.packages import PACKAGES, found_here, on_nodes, package_reader, refuse_others
from jobs.config import RunConfig
from jobs.doctor.models import UNGIVEN
from jobs.doctor.schema import Finding, run_check
from jobs.errors import ClusterError
from jobs.images.judging import models_of
from jobs.images.recipe import KEYED_LIBRARIES
from jobs.models.files import is_single_file

__all__ = ["Facts", "check_cluster", "facts_here", "gpus", "versions_of"]

_COMPARED = (*KEYED_LIBRARIES, "ray", "evenhand")
_FREE = 0.8


@dataclass(frozen=True)
class Facts:
    """What a worker on a node would find.

    Attributes:
        host: the node's name.
        python: its version.
        versions: of the libraries that matter, "" where one is missing.
        gpus: (name, free bytes, bytes) of each; empty where none was looked for.
    """

    host: str
    python: str
    versions: Mapping[str, str]
    gpus: tuple[tuple[str, int, int], ...]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def facts_here(with_gpus: bool = False) -> Facts:
    """Facts of the node that this is called on; looking for GPUs takes torch's import and some memory of each."""
    devices = []
    if with_gpus:
        # Ray may hide the GPUs from a task that asks for none.
        if not os.environ.get("CUDA_VISIBLE_DEVICES"):
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        import torch

        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            devices.append((torch.cuda.get_device_name(index), free, total))
    return Facts(platform.node(), platform.python_version(), {n: _version(n) for n in _COMPARED}, tuple(devices))


def check_cluster(config: RunConfig, connect: Callable[[], None]) -> Iterator[Finding]:
    """Try the cluster of this environment, as `evenhand debias` or, for a dashboard, `evenhand submit` would.

    Args:
        config: of which the workers and the places of models count.
        connect: joins the cluster, or starts one here.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith("http"):
        yield run_check("cluster", "Ray", lambda: _dashboard(address))
        return

    def join() -> str:
        connect()
        count = len(placement.nodes())
        where = f"the cluster at {address}" if address else "a Ray of this process's own, as RAY_ADDRESS is not set"
        return f"{where}: {ray.__version__}, {count} node{'s'[: count != 1]}"

    yield (joined := run_check("cluster", "Ray", join))
    if joined.outcome == "fault":
        return
    yield run_check("cluster", "room for workers", lambda: _room(config))
    nodes = placement.nodes()
    yield places(config, len(nodes))
    packages = run_check("cluster", "our packages", lambda: _packages(nodes))
    yield packages
    if packages.outcome == "fault":
        return
    answers: dict[str, object] = {}
    for has_gpu in (False, True):
        answers |= on_nodes(facts_here, [n for n, r in nodes.items() if (r.get("GPU", 0) > 0) == has_gpu], has_gpu)
    facts = {node: answer for node, answer in answers.items() if isinstance(answer, Facts)}
    yield versions_of(facts_here(), list(facts.values()), silent=len(answers) - len(facts))
    yield gpus(list(facts.values()))


def _dashboard(address: str) -> Finding:
    try:
        version = JobSubmissionClient(address).get_version()
    except (ConnectionError, RuntimeError, OSError, RayError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ClusterError(
            f"no Ray dashboard answers at {address} ({reason:.200}). Correct RAY_ADDRESS; where "
            "the cluster asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH."
        ) from error
    return Finding(
        area="cluster",
        check="Ray",
        outcome="warning",
        found=f"the dashboard at {address} answers, API {version}; nodes and their packages can't be seen from here",
        mend="Run the doctor there: ray job submit --working-dir FOLDER -- evenhand doctor run.yaml",
    )


def _room(config: RunConfig) -> str:
    demand = placement.demand_of(config.workers)
    count = placement.room(demand)
    asked = f", {config.workers.count} asked for" if config.workers.count else ""
    if not count:
        return f"none yet for one worker ({demand.needs}); an autoscaler has to bring nodes"
    return f"{count} worker{'s'[: count != 1]} of {demand.needs}{asked}"


def places(config: RunConfig, nodes: int) -> Finding:
    """Whether what the run names can be reached from every node."""
    named = [("model", config.model), *(("classifier", model) for model in models_of(config))]
    if is_single_file(config.model) and config.model_layout is not None:
        named.append(("model_layout", config.model_layout))
    local = [
        f"{key} {value}"
        for key, value in (*named, ("output", config.output))
        if value != UNGIVEN and "://" not in value and (key == "output" or Path(value).expanduser().exists())
    ]
    alone = nodes <= 1 or not local
    return Finding(
        area="cluster",
        check="places",
        outcome="ok" if alone else "warning",
        found="every node reaches what the run names" if alone else f"folders of this machine: {', '.join(local)}",
        mend="" if alone else f"All {nodes} nodes must see them at the same path; or use s3:// prefixes.",
    )


def _packages(nodes: Mapping[str, object]) -> str:
    here, silent = found_here(), 0
    for node, there in on_nodes(package_reader(), nodes, PACKAGES).items():
        if isinstance(there, Exception):
            silent += 1
        else:
            refuse_others(here, there, node)
    if silent:
        raise ClusterError(f"{silent} of {len(nodes)} nodes ran no task in time. See `ray status`.")
    return f"workers import the same as this process, on {len(nodes)} of {len(nodes)} nodes"


def versions_of(here: Facts, there: Sequence[Facts], *, silent: int = 0) -> Finding:
    """The driver's versions against the nodes'; `silent` nodes did not answer."""
    keyed: list[str] = []
    others: list[str] = []
    for facts in there:
        for name, mine in {**here.versions, "python": here.python}.items():
            other = {**facts.versions, "python": facts.python}[name]
            if other != mine:
                line = f"{name} {other or 'is missing'} on {facts.host}, {mine} here"
                (keyed if name in KEYED_LIBRARIES else others).append(line)
    shown = ", ".join(f"{name} {here.versions[name]}" for name in _COMPARED)
    missing = f"; {silent} nodes did not answer" if silent else ""
    return Finding.model_validate(
        {
            "area": "cluster",
            "check": "versions",
            "outcome": "fault" if keyed else "warning" if others or silent else "ok",
            "found": ("; ".join([*keyed, *others]) or f"{shown}, python {here.python}") + missing,
            "mend": "Install the same versions on all nodes: see constraints.txt." if keyed or others else "",
        }
    )


def gpus(there: Sequence[Facts]) -> Finding:
    """The GPUs of all nodes, and how much of their memory is free."""
    known = [gpu for facts in there for gpu in facts.gpus]
    busy = [gpu for gpu in known if gpu[1] < _FREE * gpu[2]]
    kinds = ", ".join(sorted({f"{name} of {total / 2**30:.0f} GiB" for name, _, total in known}))
    mend = ""
    if busy:
        mend = "Others use them too: an automatic batch size counts only what is free; see `nvidia-smi`."
    elif not known:
        mend = "Small models run on CPUs; Stable Diffusion takes minutes an image there. Give Ray nodes with GPUs."
    return Finding(
        area="cluster",
        check="GPUs",
        outcome="warning" if mend else "ok",
        found=f"{len(known)}: {kinds}; {len(busy)} of them in use" if known else "none that Ray knows of",
        mend=mend,
    )
