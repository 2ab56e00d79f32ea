"""Where workers can run: what one asks for, what the nodes have, and what an autoscaler may still bring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import ray

from jobs.config import WorkersConfig
from jobs.errors import ClusterError

__all__ = ["Demand", "NodeType", "demand_of", "node_types", "nodes", "room", "room_to_come"]

Resources = Mapping[str, float]


@dataclass(frozen=True)
class Demand:
    """What one worker asks for; a fraction of a GPU shares it."""

    cpus: float
    gpus: float

    @property
    def needs(self) -> dict[str, float]:
        """By Ray's names; what is not asked for is left out."""
        return {name: need for name, need in {"CPU": self.cpus, "GPU": self.gpus}.items() if need > 0}

    def fits(self, resources: Resources) -> int:
        """How many workers one node with these resources holds."""
        return min(int(resources.get(name, 0) / need + 1e-9) for name, need in self.needs.items())


@dataclass(frozen=True)
class NodeType:
    """What an autoscaler may start: nodes with these resources, so many of them at most; None: without a limit."""

    resources: Resources
    most: int | None


def nodes() -> dict[str, Resources]:
    """Resources of the nodes that are alive, by node id."""
    return {n["NodeID"]: n["Resources"] for n in ray.nodes() if n["Alive"]}  # type: ignore[no-untyped-call]


def node_types() -> list[NodeType]:
    """The node types that an autoscaler may start; empty where there is none, or nobody says.

    Ray keeps a place for it, and its own libraries read it; nothing in the wheel of Ray 2.60 fills it.
    """
    # Ray has no public name for this; its own libraries read it here. Without it, a run only sees what is there.
    from ray._private.state import state

    try:
        config = state.get_cluster_config()
    except Exception:  # noqa: BLE001 - a private interface: whatever it does, not knowing must not end a run
        return []
    groups = getattr(config, "node_group_configs", ())
    # -1 is Ray's word for no limit.
    return [NodeType(dict(g.resources), g.max_count if g.max_count >= 0 else None) for g in groups if g.max_count != 0]


def room(demand: Demand) -> int:
    """How many workers the nodes that are alive hold. Per node: what two have together is of no use to one worker."""
    return sum(demand.fits(resources) for resources in nodes().values())


def room_to_come(demand: Demand) -> float:
    """How many workers the node types hold that an autoscaler may start, those included that it has started already."""
    held = ((demand.fits(node_type.resources), node_type.most) for node_type in node_types())
    return sum(workers * (inf if most is None else most) for workers, most in held if workers)


def demand_of(workers: WorkersConfig) -> Demand:
    """What each worker of this run asks for.

    Raises:
        ClusterError: neither a node nor a node type that an autoscaler may start can hold one. Where no autoscaler
            says what it may bring, a `workers.wait_s` that was set on purpose says that one will.
    """
    here, later = list(nodes().values()), [node_type.resources for node_type in node_types()]
    has_gpu = any(resources.get("GPU", 0) > 0 for resources in [*here, *later])
    demand = Demand(workers.num_cpus, workers.num_gpus if workers.num_gpus is not None else float(has_gpu))
    will_come = not later and "wait_s" in workers.model_fields_set and workers.wait_s > 0
    if not will_come and not any(demand.fits(resources) for resources in [*here, *later]):
        raise ClusterError(
            f"one worker asks for {demand.needs}, and no node has that; the nodes have {_shown(here, demand)}"
            + (f", and the autoscaler's node types {_shown(later, demand)}" if later else "")
            + ". Lower workers.num_cpus or workers.num_gpus, or add larger nodes"
            + ("" if later else "; where an autoscaler will bring one, set workers.wait_s")
        )
    return demand


def _shown(several: Sequence[Resources], demand: Demand) -> list[dict[str, float]]:
    return [{name: resources.get(name, 0) for name in demand.needs} for resources in several]
