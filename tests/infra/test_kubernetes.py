"""infra/kubernetes: its objects are what the API servers' schemas say, and what the project promises of them."""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml

from jobs.cli import app
from jobs.config import load_config
from jobs.errors import ExitCode

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra/kubernetes"
OVERLAYS = ("debias", "audit", "nightly-raycronjob", "nightly-cronjob")
# The oldest Kubernetes for which they are written: podFailurePolicy is stable there.
KUBERNETES = "1.31"
SCHEMA = json.loads((Path(__file__).parent / "kuberay.schema.json").read_text(encoding="utf-8"))

Document = dict[str, Any]


def sources() -> list[Path]:
    """Files that hold objects, not instructions for Kustomize."""
    found = [f for part in ("base", "components") for f in sorted((FOLDER / part).rglob("*.yaml"))]
    return [f for f in found if f.name not in ("kustomization.yaml", "run.yaml")]


def read(file: Path) -> list[Document]:
    return list(yaml.safe_load_all(file.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[Document]]:
    """Every overlay of the example, as `kubectl apply -k` would send it."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which renders, is not installed")
    done = {}
    for name in OVERLAYS:
        command = ["kubectl", "kustomize", str(FOLDER / "overlays/example" / name)]
        text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
        done[name] = list(yaml.safe_load_all(text))
    return done


def clusters(document: Document) -> Iterator[Document]:
    if document["kind"] == "RayCluster":
        yield document["spec"]
    if document["kind"] in ("RayJob", "RayCronJob"):
        job = document["spec"].get("jobTemplate", document["spec"])
        if "rayClusterSpec" in job:
            yield job["rayClusterSpec"]


def pods(document: Document) -> Iterator[Document]:
    """All pod templates within an object, the autoscaler's container as a pod of its own."""
    kind = document["kind"]
    if kind == "CronJob":
        yield document["spec"]["jobTemplate"]["spec"]["template"]
    for cluster in clusters(document):
        yield from (group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]))
        pod = cluster["headGroupSpec"]["template"]
        options = cluster["autoscalerOptions"]
        container = {key: options[key] for key in ("resources", "securityContext", "volumeMounts")}
        yield {**pod, "spec": {**pod["spec"], "containers": [{"name": "autoscaler", "image": "ray", **container}]}}
    if kind in ("RayJob", "RayCronJob"):
        yield document["spec"].get("jobTemplate", document["spec"])["submitterPodTemplate"]


def check(document: Document) -> None:
    """Raise where an API server would refuse the object, or drop a key of it."""
    if document["apiVersion"].startswith("ray.io/"):
        jsonschema.validate(document, SCHEMA)
        for pod in pods(document):
            template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "p"}, "template": pod}
            kubernetes_validate.validate(template, KUBERNETES, strict=True)
    else:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("file", sources(), ids=lambda file: "/".join(file.parts[-2:]))
def test_sources(file: Path) -> None:
    documents = read(file)
    assert documents
    for document in documents:
        check(document)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_applied(rendered: dict[str, list[Document]], overlay: str) -> None:
    documents = rendered[overlay]
    for document in documents:
        check(document)
        assert document["kind"] == "Namespace" or document["metadata"]["namespace"] == "evenhand"
    found = [d["kind"] for d in documents if d["kind"] in ("RayCluster", "RayJob", "RayCronJob", "CronJob")]
    expected = {"nightly-raycronjob": ["RayCronJob"], "nightly-cronjob": ["CronJob", "RayCluster"]}
    assert sorted(found) == expected.get(overlay, ["RayJob"])
    images = {c["image"] for d in documents for pod in pods(d) for c in pod["spec"]["containers"]} - {"ray"}
    assert images == {"images.example.org/ml/evenhand:0.1.0-cuda"}
    cluster = next(c for d in documents for c in clusters(d))
    group = cluster["workerGroupSpecs"][0]
    assert group["maxReplicas"] == 32, "the overlay's patch reaches every form"
    tolerated = {t["key"] for t in group["template"]["spec"]["tolerations"]}
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot"} <= tolerated


def test_unknown_keys_are_refused() -> None:
    cluster = read(FOLDER / "base/cluster.yaml")[0]
    check(cluster)
    for path in (("spec", "autoscalerOptions"), ("spec", "headGroupSpec", "template", "spec")):
        wrong = copy.deepcopy(cluster)
        part = wrong
        for key in path:
            part = part[key]
        part["idleTimeoutSecond"] = 1
        with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
            check(wrong)


def test_pods_are_restricted() -> None:
    seen = 0
    for document in (d for file in sources() for d in read(file)):
        for pod in pods(document):
            spec = pod["spec"]
            seen += 1
            assert spec["securityContext"]["runAsNonRoot"] is True
            assert spec["securityContext"]["runAsUser"] == 10001
            assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
            assert spec["restartPolicy"] == "Never"
            assert pod["metadata"]["labels"]["app.kubernetes.io/name"] == "evenhand", "else no policy finds it"
            for volume in spec["volumes"]:
                assert "hostPath" not in volume
            for container in spec["containers"]:
                context = container["securityContext"]
                assert context["readOnlyRootFilesystem"] is True
                assert context["allowPrivilegeEscalation"] is False
                assert context["capabilities"] == {"drop": ["ALL"]}
                assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}  # noqa: S108
                assert "memory" in container["resources"]["limits"]
                secret = re.compile("SECRET|PASSWORD|TOKEN$|ACCESS_KEY")
                for variable in container.get("env", []):
                    assert not secret.search(variable["name"]) or "secretKeyRef" in variable["valueFrom"]
    assert seen == 3 + 1 + 1 + 1 + 1  # head, workers, autoscaler; four that submit


def test_the_cluster() -> None:
    spec = read(FOLDER / "base/cluster.yaml")[0]["spec"]
    pinned = dict(re.findall(r"^(ray)==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert spec["rayVersion"] == pinned["ray"]
    assert spec["authOptions"] == {"mode": "token"}
    head, (gpu,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert head["serviceType"] == "ClusterIP"
    start = head["rayStartParams"]
    assert (start["num-cpus"], start["num-gpus"]) == ("0", "0"), "no work on the head"
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert gpu["minReplicas"] == 0
    worker = gpu["template"]["spec"]
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert worker["automountServiceAccountToken"] is False
    grace = int(worker["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert grace < worker["terminationGracePeriodSeconds"]


def test_the_network_gives_names_and_no_credentials_of_the_node() -> None:
    (policy,) = (d for d in read(FOLDER / "base/network.yaml") if "Egress" in d["spec"]["policyTypes"])
    reached = set()
    for rule in policy["spec"]["egress"]:
        ports = {port["port"] for port in rule.get("ports", [])}
        for block in (place["ipBlock"] for place in rule["to"] if "ipBlock" in place):
            for name, address in {
                "metadata": "169.254.169.254",
                "names": "169.254.20.10",
                "store": "203.0.113.9",
            }.items():
                if ip_address(address) in ip_network(block["cidr"]) and not any(
                    ip_address(address) in ip_network(hole) for hole in block.get("except", [])
                ):
                    reached |= {(name, port) for port in ports}
    assert not [port for name, port in reached if name == "metadata"]
    assert {("names", 53), ("store", 443)} <= reached
    assert not {("store", 53), ("store", 80)} & reached


def test_a_verdict_is_not_retried() -> None:
    spec = read(FOLDER / "components/nightly-cronjob/cronjob.yaml")[0]["spec"]
    job = spec["jobTemplate"]["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    rules = [rule for rule in job["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"]
    final = {code for rule in rules for code in rule["onExitCodes"]["values"]}
    assert final == {ExitCode.INPUT, ExitCode.MODEL, ExitCode.GATE_FAILED, ExitCode.GATE_INCONCLUSIVE}
    names = {c["name"] for c in job["template"]["spec"]["containers"]}
    assert {rule["onExitCodes"]["containerName"] for rule in rules} <= names
    for part, file in (("debias", "rayjob"), ("audit", "rayjob"), ("nightly-raycronjob", "raycronjob")):
        ray_job = read(FOLDER / f"components/{part}/{file}.yaml")[0]["spec"]
        assert ray_job.get("jobTemplate", ray_job)["backoffLimit"] == 0, "KubeRay knows no exit codes"


def test_the_command_lines_are_ours() -> None:
    group = typer.main.get_command(app)
    submit = group.commands["submit"]  # type: ignore[attr-defined]
    found = 0
    for document in (d for file in sources() for d in read(file)):
        for container in (c for pod in pods(document) for c in pod["spec"]["containers"] if c["name"] == "submit"):
            (line,) = container["args"]
            words = shlex.split(line)
            assert words[:3] == ["exec", "evenhand", "submit"]
            # click refuses options that there are none of. The file is the pod's.
            given = ["run.yaml" if word == "/etc/evenhand/run.yaml" else word for word in words[3:]]
            assert "run.yaml" in given
            context = submit.make_context("submit", [w for w in given if w != "run.yaml"])
            assert context.params["job"] in ("debias", "audit")
            assert (context.params["schedule"] is None) == ("nightly" not in document["metadata"]["name"])
            found += 1
    assert found == 4


@pytest.mark.parametrize("file", ["base/run.yaml", "overlays/example/cluster/run.yaml"])
def test_the_configurations_load(file: str) -> None:
    config = load_config((FOLDER / file).read_text(encoding="utf-8"))
    assert config.model.startswith("s3://"), "HF_HUB_OFFLINE is set"
    patched = (FOLDER / file).with_name("kustomization.yaml").read_text(encoding="utf-8")
    most = re.search(r"maxReplicas, value: (\d+)", patched)
    base = read(FOLDER / "base/cluster.yaml")[0]["spec"]["workerGroupSpecs"][0]["maxReplicas"]
    assert config.workers.count == (int(most[1]) if most else base), "all workers are asked for at once"
